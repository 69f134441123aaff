//! Stage one: a BERT from raw text (Devlin et al. 2018), by masked words and next sentences.
//!
//! | file | what it does |
//! |---|---|
//! | [`config`] | the run file's `[pretrain]`: every setting and its default |
//! | [`corpora`] | the text as token ids, made once |
//! | [`trainer`] | the loop: instances, steps, updates, phases |
//! | [`evaluate`] | what the model makes of text that it is not trained on |
//! | [`run`] | a whole run and its directory |

pub mod config;
pub mod corpora;
pub mod evaluate;
pub mod run;
pub mod trainer;

pub use config::{Phase, PretrainConfig};
pub use evaluate::Evaluation;
pub use trainer::{Progress, StepReport};
