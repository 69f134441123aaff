//! Floor 3: models, which record programs. No device type, no kernel.

mod bert;
mod config;
pub mod directory;
mod heads;
mod model;
mod parameters;
pub mod weights;

pub use bert::Bert;
pub use config::{BertConfig, ConfigError, FieldError, HiddenAct};
pub use heads::{Answers, Head};
pub use model::{Model, Recorded, extents};
pub use parameters::{Init, Parameter, ParameterTable};
