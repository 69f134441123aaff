//! Runs programs.

pub mod cpu;
