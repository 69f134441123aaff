//! A from-scratch tensor engine that trains MT-DNN.

pub mod backend;
pub mod data;
pub mod nn;
pub mod random;
pub mod tensor;
pub mod train;
