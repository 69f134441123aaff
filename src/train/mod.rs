//! Floor 4: training, from a run's settings to its checkpoints.
//!
//! | file | what it does |
//! |---|---|
//! | [`config`] | the run file: every setting and its default |
//! | [`prepare`] | what it names: tasks, token ids, an encoder |
//! | [`run`], [`monitor`], `keeper`, `settings` | a whole run and its directory; what it tells, and what it writes down |
//! | [`distill`], [`teachers`] | teachers and students as one experiment; what several models answer together |
//! | [`experiment`] | several runs and the tables made of them |
//! | [`pretrain`] | stage one: masked words and next sentences |
//! | [`mix`], [`forecast`] | which task comes how often, and what a run will draw |
//! | [`trainer`], [`error`], `coverage` | the loop: steps, updates, when to measure and to save; what makes it impossible |
//! | [`check`] | one step on two backends, operation by operation |
//! | `groups` | what of the parameters an update takes together |
//! | [`schedule`] | the learning rate of every update |
//! | [`evaluate`], [`metrics`] | predictions of whole sets, and the figures made of them |
//! | [`masked`] | the figures of masked words, whose logits are not kept |
//! | [`baseline`] | the figures that a model has to beat |
//! | [`probe`] | linear models on frozen vectors |
//! | [`checkpoint`], [`store`], `writer` | what is saved, how a directory is saved whole or not at all, and the thread that does it |
//! | [`log`], [`lock`], [`signals`] | the run's record, its owner, and its end by request |

pub mod baseline;
pub mod check;
pub mod checkpoint;
pub mod config;
mod coverage;
pub mod distill;
pub mod entities;
pub mod error;
pub mod evaluate;
pub mod experiment;
pub mod forecast;
mod groups;
mod keeper;
pub mod lock;
pub mod log;
pub mod masked;
pub mod metrics;
pub mod mix;
pub mod monitor;
pub mod prepare;
pub mod pretrain;
pub mod probe;
pub mod run;
pub mod schedule;
mod settings;
pub mod signals;
pub mod spans;
pub mod store;
pub mod teachers;
pub mod trainer;
mod writer;
