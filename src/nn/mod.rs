//! Models: their configuration, their weights and the programs they record.

mod config;
pub mod weights;

pub use config::{BertConfig, ConfigError, FieldError, HiddenAct};
