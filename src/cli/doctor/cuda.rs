//! What there is of CUDA: the driver, its devices, where their kernels come from, the compiler, and whether each
//! device computes rightly.
//!
//! No GPU is nothing to be mended, since the CPU serves; a GPU that there are no kernels for is.

use mtdnn_raw::backend::cuda::arch::Arch;
use mtdnn_raw::backend::cuda::backend::CudaBackend;
use mtdnn_raw::backend::cuda::device;
use mtdnn_raw::backend::cuda::images::{self, HOW_TO_INSTALL, Tools};
use mtdnn_raw::backend::cuda::launch::Kernels;
use mtdnn_raw::backend::cuda::probe::{self, Device};
use mtdnn_raw::tensor::Precision;

use super::{Finding, fine, format, known_answer};
use crate::cli::cuda::tools;

pub(super) fn findings() -> Vec<Finding> {
    let tools = tools();
    let mut findings = Vec::new();
    let mut archs: Vec<Arch> = Vec::new();
    let mut devices = 0;
    match probe::driver() {
        Ok(None) => findings.push(fine("CUDA driver", "none (no libcuda)".into())),
        Ok(Some(driver)) => {
            let (major, minor) = driver.version;
            let none = if driver.devices.is_empty() { ", without a device" } else { "" };
            findings.push(fine("CUDA driver", format!("for CUDA {major}.{minor}{none}")));
            devices = driver.devices.len();
            for device in &driver.devices {
                let arch = Arch::of_capability(device.capability.0, device.capability.1);
                findings.push(gpu(device, &arch));
                if !archs.contains(&arch) {
                    archs.push(arch);
                }
            }
        }
        Err(reason) => findings.push(Finding {
            name: "CUDA driver",
            value: format!("it tells of no device: {reason}"),
            remedy: Some("see what nvidia-smi says; until that is mended, --device cpu".into()),
        }),
    }
    match archs.is_empty() {
        true => findings.push(fine("kernels", held())),
        false => findings.extend(archs.iter().map(|arch| kernels(&tools, arch))),
    }
    findings.push(compiler(&tools));
    for number in 0..devices {
        findings.extend([Precision::F32, Precision::Bf16].map(|precision| engine(number, precision, &tools)));
    }
    findings
}

/// Whether a device gives the known answer. What has to be compiled for that is kept for the first run.
fn engine(number: usize, precision: Precision, tools: &Tools) -> Finding {
    let backend = device::Device::new(number, Kernels::Portable, tools)
        .and_then(|device| CudaBackend::new(device, precision));
    let checked =
        backend.map_err(anyhow::Error::from).and_then(|mut backend| known_answer::check(&mut backend));
    let step = format!("a training step on cuda:{number} in {precision}");
    let (value, remedy) = match checked {
        Ok(error) => (format!("{step} gives the known answer to within {error:.0e}"), None),
        Err(error) => (
            format!("{step} fails: {error:#}"),
            Some("take --device cpu, and report it with this output".into()),
        ),
    };
    Finding { name: "GPU engine", value, remedy }
}

fn gpu(device: &Device, arch: &Arch) -> Finding {
    fine("GPU", format!("{}, {}, {arch}", device.name, format::bytes(device.memory)))
}

/// What the program holds for devices that are not here.
fn held() -> String {
    let archs = images::embedded().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let modules = images::modules().len();
    match archs.is_empty() {
        true => format!("{modules} modules as sources, which a GPU's first use compiles"),
        false => format!("{modules} modules in the program, for {archs}"),
    }
}

/// Where the kernels for a device come from.
fn kernels(tools: &Tools, arch: &Arch) -> Finding {
    let found = images::modules().iter().map(|module| match tools.find(module, arch) {
        Some(image) => Some(image.origin),
        None if tools.compiler().is_ok_and(|compiler| compiler.supports(arch.name())) => None,
        None => images::earlier(module, arch).map(|image| image.origin),
    });
    let (mut held, mut kept, mut rest) = (0, 0, 0);
    for origin in found {
        match origin {
            Some(images::Origin::Embedded { .. }) => held += 1,
            Some(_) => kept += 1,
            None => rest += 1,
        }
    }
    let makes = tools.compiler().is_ok_and(|compiler| compiler.supports(arch.name()));
    let last = if makes { "to be compiled at the first use" } else { "to be had nowhere" };
    let parts = [(held, "in the program"), (kept, "in the cache"), (rest, last)];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, place)| format!("{count} {place}"));
    let value = format!("modules for {arch}: {}", parts.collect::<Vec<_>>().join(", "));
    let remedy = (rest > 0 && !makes).then(|| format!("install a compiler: {HOW_TO_INSTALL}"));
    Finding { name: "kernels", value, remedy }
}

fn compiler(tools: &Tools) -> Finding {
    let value = match tools.compiler() {
        Ok(compiler) => format!("{compiler}, {}", compiler.path.display()),
        Err(_) => format!("none, which only a GPU would ever need: {HOW_TO_INSTALL}"),
    };
    fine("compiler", value)
}
