//! Training: schedules, metrics, checkpoints, the log of a run.

pub mod lock;
pub mod log;
pub mod metrics;
pub mod schedule;
pub mod signals;
pub mod store;
