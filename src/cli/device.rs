//! Which backend a command runs on.

use clap::Args;
use mtdnn_raw::backend::Backend;
use mtdnn_raw::backend::cpu::CpuBackend;

use super::Usage;

/// Where to compute, and in which arithmetic.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct DeviceArgs {
    /// Where to compute: auto (a GPU if there is one that works), cpu, or cuda[:N].
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,

    /// The arithmetic: auto (bf16 on a GPU, f32 on the CPU), f32, or bf16.
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
    /// Refuses words that are no device or precision, and a pair that does not go together.
    pub(super) fn check(&self) -> Result<(), Usage> {
        let wish = self.wish()?;
        match self.precision.as_str() {
            "auto" | "f32" => Ok(()),
            "bf16" if wish != Wish::Cpu => Ok(()),
            "bf16" => {
                Err(Usage("--precision bf16: the CPU backend computes in f32; take auto or f32".into()))
            }
            other => Err(Usage(format!("--precision {other}: not a precision; take auto, f32 or bf16"))),
        }
    }

    /// The backend that was asked for, with a word about it on standard error where it is no CPU or was to be none.
    ///
    /// # Errors
    /// A GPU that was asked for and cannot be had: what is missing, and what to do.
    pub(super) fn backend(&self) -> anyhow::Result<Box<dyn Backend>> {
        self.check()?;
        let cpu = || -> Box<dyn Backend> { Box::new(CpuBackend::new()) };
        match self.wish()? {
            Wish::Cpu => Ok(cpu()),
            Wish::Cuda(number) => match cuda::backend(number, &self.precision) {
                Ok(backend) => Ok(backend),
                Err(error) => anyhow::bail!(
                    "--device {}: {error}; mtdnn-raw doctor says more, and --device cpu needs no GPU",
                    self.device
                ),
            },
            Wish::Auto if !cuda::is_there() => match self.precision.as_str() {
                "bf16" => Err(Usage("--precision bf16 needs a GPU, and there is none here".into()).into()),
                _ => Ok(cpu()),
            },
            Wish::Auto => Ok(cuda::backend(0, &self.precision).or_else(|error| {
                if self.precision == "bf16" {
                    return Err(error);
                }
                eprintln!("warning: the GPU is not used: {error}; going on with the CPU (mtdnn-raw doctor says more)");
                Ok(cpu())
            })?),
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

/// What `--device auto` takes here.
pub(super) fn automatic() -> &'static str {
    if cuda::is_there() { "cuda:0" } else { "cpu" }
}

#[cfg(feature = "cuda")]
mod cuda {
    use mtdnn_raw::backend::cuda::backend::CudaBackend;
    use mtdnn_raw::backend::cuda::device::Device;
    use mtdnn_raw::backend::cuda::probe;
    use mtdnn_raw::backend::{Backend, BackendError};
    use mtdnn_raw::tensor::Precision;

    use crate::cli::cuda::tools;

    /// Whether there is a driver that sees a GPU.
    pub(super) fn is_there() -> bool {
        probe::driver().is_ok_and(|driver| driver.is_some_and(|driver| !driver.devices.is_empty()))
    }

    pub(super) fn backend(number: usize, precision: &str) -> Result<Box<dyn Backend>, BackendError> {
        let precision = if precision == "f32" { Precision::F32 } else { Precision::Bf16 };
        let device = Device::new(number, &tools())?;
        device.images().notes.iter().for_each(|note| eprintln!("warning: {note}"));
        let arithmetic = if precision == Precision::F32 { "f32" } else { "bf16" };
        eprintln!("device: cuda:{number}, {}, {arithmetic}", device.name());
        Ok(Box::new(CudaBackend::new(device, precision)?))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use mtdnn_raw::backend::{Backend, BackendError};

    pub(super) fn is_there() -> bool {
        false
    }

    pub(super) fn backend(_number: usize, _precision: &str) -> Result<Box<dyn Backend>, BackendError> {
        let reason = "this program was built without its feature cuda".to_string();
        Err(BackendError::NoDevice { reason })
    }
}
