//! Kernels without a GPU: `kernels/*.cu` compiled for the host, where every CUDA thread is a fiber.
//!
//! ```ignore
//! let Some(emulation) = Emulation::get() else { return };
//! let mut memory = Memory::new();
//! let x = memory.floats("x", DType::Bf16, &values);
//! let y = memory.poison("y", DType::Bf16, values.len());
//! let step = memory.words("step", bytemuck::cast_slice(&[Step { tokens: 63, ..Step::default() }]));
//! let mut launches = Launches::new(step, extents, scratch);
//! activation::forward(&mut launches, operand(x), operand(y));
//! emulation.run(&memory, &launches.list).unwrap();
//! assert_eq!(memory.read_floats(y), expected);
//! ```

mod backend;
mod library;
mod memory;

pub use backend::EmulatedBackend;
pub use library::{Emulation, Order};
pub use memory::Memory;
