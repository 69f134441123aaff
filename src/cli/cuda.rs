//! Where this program looks for a compiler of kernels, and where it keeps what that makes.

use std::path::{Path, PathBuf};

use mtdnn_raw::backend::cuda::arch::Arch;
use mtdnn_raw::backend::cuda::images::Tools;
use mtdnn_raw::backend::cuda::{nvrtc, probe};

/// The tools of this machine: `.cuda` beside the program or in a folder around it, and what the environment names.
pub(super) fn tools() -> Tools {
    let program = std::env::current_exe().unwrap_or_default();
    let around = program.ancestors().skip(1).map(|folder| folder.join(".cuda"));
    let ours: Vec<PathBuf> = around.filter(|folder: &PathBuf| Path::is_dir(folder)).collect();
    Tools::new(nvrtc::roots(&ours, |name| std::env::var_os(name)), super::cache_directory())
}

/// The architecture of this machine's first device, if there is one.
pub(super) fn device_arch() -> Option<Arch> {
    let driver = probe::driver().ok()??;
    let (major, minor) = driver.devices.first()?.capability;
    Some(Arch::of_capability(major, minor))
}
