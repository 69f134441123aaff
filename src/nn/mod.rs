//! Floor 3: models, which record programs. No device type, no kernel.

pub mod config;
mod bert;
mod heads;
mod model;
mod parameters;

pub use bert::{Bert, Encoded};
pub use config::BertConfig;
pub use heads::{Answers, Head};
pub use model::{Model, Recorded, extents};
pub use parameters::{Init, Parameter, ParameterTable};
