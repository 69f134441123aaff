//! Floor 3: models, which record programs. No device type, no kernel.

mod bert;
mod config;
pub mod directory;
mod heads;
mod inputs;
mod masked;
mod model;
mod parameters;
mod pretraining;
mod san;
mod soft;
pub mod weights;

pub use bert::{Bert, Picked};
pub use config::{BertConfig, ConfigError, FieldError, HiddenAct};
pub use heads::{Answers, Head, Reads};
pub use model::{Model, Recorded, extents};
pub use parameters::{Init, Parameter, ParameterTable};
pub use pretraining::{
    PretrainingInputs, PretrainingModel, RecordedFilling, RecordedPretraining, masked_extents,
};
