//! A from-scratch tensor engine that trains MT-DNN: one BERT encoder, many language-understanding tasks at once
//! (Liu et al. 2019, [arXiv 1901.11504](https://arxiv.org/abs/1901.11504)).
//!
//! The house has floors, and imports point down only. A tour from the ground up:
//!
//! 0. [`random`]: counter-based random numbers. Every draw of the program is a function of what it is for.
//! 1. [`tensor`]: what is to be computed, as plain data. A [`Tape`](tensor::Tape) of operations is recorded,
//!    differentiated and planned into a [`Program`](tensor::Program), in which every value has a fixed place.
//! 1. [`data`]: what a step reads. Files become examples, examples become token ids, token ids become packed
//!    [`Batch`](data::Batch)es.
//! 2. [`backend`]: how the numbers are computed. A [`Backend`](backend::Backend) runs programs over flat buffers;
//!    [`backend::cpu`] has the kernels.
//! 3. [`nn`]: what is computed: BERT, heads and losses as a [`Model`](nn::Model) that records programs, and model
//!    directories in Hugging Face's layout.
//! 4. [`train`]: in what order and at which rate, and what is kept: the [`Trainer`](train::trainer::Trainer) with
//!    Algorithm 1 of the paper, schedules, metrics, checkpoints.
//!
//! A step by hand, from tape to numbers: `y = x W^T + b`, the mean of `(t - y)^2`, and its gradient.
//!
//! ```
//! use mtdnn_raw::backend::{Backend, Sizes, StepScalars, cpu::CpuBackend};
//! use mtdnn_raw::tensor::{Activation, DType, Extents, Mode, Program, Rows, Space, Span, Tape};
//!
//! let mut tape = Tape::new(Mode::Training);
//! let x = tape.input("x", DType::F32, Rows::Sequences, 2);
//! let targets = tape.input("targets", DType::F32, Rows::Sequences, 1);
//! let weight = tape.parameter("weight", 0, 1, 2); // elements 0 and 1 of the flat parameter buffer
//! let bias = tape.parameter("bias", 2, 1, 1);
//! let y = tape.linear(x, weight, bias, Activation::Identity);
//! let loss = tape.squared_error(y, targets);
//!
//! let extents = Extents { sequences: 3, groups: 3, ..Extents::default() };
//! let program = Program::training(tape, &[loss], 1.0, false, extents);
//! println!("{program}"); // every step, its shapes, bytes and place
//!
//! let mut backend = CpuBackend::new();
//! backend.reserve(&Sizes { parameters: 3, arena: program.arena_len(), training: true })?;
//! let mut write = |span, values: &[f32]| backend.write(span, bytemuck::cast_slice(values));
//! write(Span { space: Space::Parameters, offset: 0, len: 3 }, &[1.0, -1.0, 0.5])?;
//! write(program.span(x, &extents), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! write(program.span(targets, &extents), &[0.0, 0.0, 0.0])?;
//! backend.run(&program, &StepScalars { extents, seed: 0, step: 0 })?;
//!
//! let mut gradient = [0.0f32; 3];
//! let span = Span { space: Space::Gradients, offset: 0, len: 3 };
//! backend.read(span, bytemuck::cast_slice_mut(&mut gradient))?;
//! // y = -0.5 three times, so d loss / d y = 2 * -0.5 / 3 each.
//! assert_eq!(gradient, [-3.0, -4.0, -1.0]);
//! # Ok::<(), mtdnn_raw::backend::BackendError>(())
//! ```

pub mod backend;
pub mod data;
pub mod nn;
pub mod random;
pub mod tensor;
pub mod train;
