//! Which backend a command runs on.

use clap::Args;
use mtdnn_raw::backend::Backend;
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::tensor::Precision;

use super::Usage;

/// Where to compute, and in which arithmetic.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct DeviceArgs {
    /// Where to compute: auto (a GPU if there is one that works), cpu, or cuda[:N].
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,

    /// The arithmetic: auto (bf16 on a GPU and on a CPU with AVX512-BF16, else f32), f32, or bf16.
    #[arg(long, default_value = "auto", value_name = "KIND")]
    precision: String,
}

/// A device as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Auto,
    Cpu,
    Cuda(usize),
}

impl DeviceArgs {
    /// Refuses words that are no device or precision.
    pub(super) fn check(&self) -> Result<(), Usage> {
        self.wish()?;
        hopper_kernels()?;
        match self.precision.as_str() {
            "auto" | "f32" | "bf16" => Ok(()),
            other => Err(Usage(format!("--precision {other}: not a precision; take auto, f32 or bf16"))),
        }
    }

    /// The same for what was begun in `precision`, where that is known: it goes on so where nothing else was asked for.
    ///
    /// # Errors
    /// If another one was asked for.
    pub(super) fn going_on(&self, precision: Option<Precision>) -> Result<Self, Usage> {
        let begun = precision.map_or(self.precision.clone(), |precision| precision.to_string());
        if self.precision != "auto" && self.precision != begun {
            return Err(Usage(format!(
                "--precision {}: what is there was computed in {begun}; leave it out, or choose another --output",
                self.precision
            )));
        }
        Ok(Self { precision: begun, ..self.clone() })
    }

    /// The backend that was asked for, with a word about it on standard error where it is no CPU or was to be none.
    ///
    /// # Errors
    /// A GPU that was asked for and cannot be had: what is missing, and what to do.
    pub(super) fn backend(&self) -> anyhow::Result<Box<dyn Backend>> {
        self.check()?;
        let hopper = hopper_kernels()?;
        let cpu = || -> Box<dyn Backend> {
            if hopper {
                eprintln!(
                    "warning: {VARIABLE}=hopper chooses among kernels of a GPU and does nothing on the CPU"
                );
            }
            let precision = self.cpu_precision();
            if precision == Precision::Bf16 {
                eprintln!("device: cpu, bf16{}", slow_bf16().unwrap_or_default());
            }
            Box::new(CpuBackend::new().with_precision(precision))
        };
        match self.wish()? {
            Wish::Cpu => Ok(cpu()),
            Wish::Cuda(number) => match cuda::backend(number, &self.precision, hopper) {
                Ok(backend) => Ok(backend),
                Err(error) => anyhow::bail!(
                    "--device {}: {error}; mtdnn-raw doctor says more, and --device cpu needs no GPU",
                    self.device
                ),
            },
            Wish::Auto if !cuda::is_there() => Ok(cpu()),
            Wish::Auto if hopper => Ok(cuda::backend(0, &self.precision, hopper)?),
            Wish::Auto => Ok(cuda::backend(0, &self.precision, hopper).unwrap_or_else(|error| {
                eprintln!("warning: the GPU is not used: {error}; going on with the CPU (mtdnn-raw doctor says more)");
                cpu()
            })),
        }
    }

    fn cpu_precision(&self) -> Precision {
        match self.precision.as_str() {
            "bf16" => Precision::Bf16,
            "auto" => automatic_precision(),
            _ => Precision::F32,
        }
    }

    fn wish(&self) -> Result<Wish, Usage> {
        let device = self.device.as_str();
        let number = device.strip_prefix("cuda").map(|rest| rest.strip_prefix(':').unwrap_or(rest));
        match (device, number) {
            ("auto", _) => Ok(Wish::Auto),
            ("cpu", _) => Ok(Wish::Cpu),
            ("cuda", _) => Ok(Wish::Cuda(0)),
            (_, Some(number)) if device.contains(':') => match number.parse() {
                Ok(number) => Ok(Wish::Cuda(number)),
                Err(_) => Err(Usage(format!("--device {device}: {number:?} is not the number of a GPU"))),
            },
            _ => Err(Usage(format!("--device {device}: not a device; take auto, cpu or cuda[:N]"))),
        }
    }
}

/// The environment variable that chooses among kernels for the same.
const VARIABLE: &str = "MTDNN_KERNELS";

/// Whether it asks for the kernels for Hopper: `hopper`, instead of `portable` or nothing.
///
/// # Errors
/// If it is anything else.
fn hopper_kernels() -> Result<bool, Usage> {
    match std::env::var_os(VARIABLE) {
        None => Ok(false),
        Some(value) if value == "portable" => Ok(false),
        Some(value) if value == "hopper" => Ok(true),
        Some(value) => {
            let value = value.to_string_lossy();
            Err(Usage(format!("{VARIABLE}={value}: no such kernels; take portable or hopper, or unset it")))
        }
    }
}

/// What `--precision auto` takes on this CPU: bf16 where products of it are faster than those of f32.
fn automatic_precision() -> Precision {
    if Isa::detect() == Isa::Avx512Bf16 { Precision::Bf16 } else { Precision::F32 }
}

/// Where bf16 saves memory alone.
fn slow_bf16() -> Option<&'static str> {
    (Isa::detect() < Isa::Avx512Bf16).then_some(
        " (this processor multiplies no bf16: it saves memory, and products take about as long as in f32)",
    )
}

/// What `--device auto` takes here.
pub(super) fn automatic() -> &'static str {
    if cuda::is_there() { "cuda:0" } else { "cpu" }
}

#[cfg(feature = "cuda")]
mod cuda {
    use mtdnn_raw::backend::cuda::backend::CudaBackend;
    use mtdnn_raw::backend::cuda::device::Device;
    use mtdnn_raw::backend::cuda::launch::Kernels;
    use mtdnn_raw::backend::cuda::probe;
    use mtdnn_raw::backend::{Backend, BackendError};
    use mtdnn_raw::tensor::Precision;

    use super::VARIABLE;
    use crate::cli::cuda::tools;

    /// Whether there is a driver that sees a GPU.
    pub(super) fn is_there() -> bool {
        probe::driver().is_ok_and(|driver| driver.is_some_and(|driver| !driver.devices.is_empty()))
    }

    pub(super) fn backend(
        number: usize,
        precision: &str,
        hopper: bool,
    ) -> Result<Box<dyn Backend>, BackendError> {
        let kernels = if hopper { Kernels::Hopper } else { Kernels::Portable };
        let precision = if precision == "f32" { Precision::F32 } else { Precision::Bf16 };
        if hopper && precision == Precision::F32 {
            eprintln!(
                "warning: {VARIABLE}=hopper does nothing with --precision f32: those kernels are for bf16"
            );
        }
        let device = Device::new(number, kernels, &tools())?;
        device.images().notes.iter().for_each(|note| eprintln!("warning: {note}"));
        let of_hopper = if hopper { ", kernels for Hopper" } else { "" };
        eprintln!("device: cuda:{number}, {}, {precision}{of_hopper}", device.name());
        Ok(Box::new(CudaBackend::new(device, precision)?))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use mtdnn_raw::backend::{Backend, BackendError};

    pub(super) fn is_there() -> bool {
        false
    }

    pub(super) fn backend(
        _number: usize,
        _precision: &str,
        _hopper: bool,
    ) -> Result<Box<dyn Backend>, BackendError> {
        let reason = "this program was built without its feature cuda".to_string();
        Err(BackendError::NoDevice { reason })
    }
}
