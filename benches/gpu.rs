//! `cargo bench --bench gpu`: each group of CUDA kernels and whole training steps on this machine's first GPU, as
//! tables in Markdown. Where there is no GPU, it says so in a line.
//!
//! `MTDNN_KERNELS=hopper` measures Hopper's own kernels where there are any. Arguments pick rows by a part of their name:
//! `cargo bench --bench gpu -- attention step`.
//! A kernel is launched from graphs, sixteen times or more in each; its time is the median of fifty replays. "Cold"
//! launches take turns among sets of operands that together are more than three times the second-level cache; "warm"
//! ones have one set, which the cache may hold. All numbers are random.

#[path = "gpu/kernels.rs"]
mod kernels;
#[path = "common/models.rs"]
mod models;
#[path = "gpu/steps.rs"]
mod steps;
#[path = "gpu/table.rs"]
mod table;

use std::path::{Path, PathBuf};

use mtdnn_raw::backend::BackendError;
use mtdnn_raw::backend::cuda::device::Device;
use mtdnn_raw::backend::cuda::images::Tools;
use mtdnn_raw::backend::cuda::launch::Kernels;
use mtdnn_raw::backend::cuda::nvrtc::roots;
use table::Bench;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    match Device::new(0, kernels(), &tools()) {
        Ok(device) => {
            if let Err(error) = run(device, asked) {
                eprintln!("{error}");
                std::process::exit(1);
            }
        }
        Err(error) => println!("nothing is measured: {error}"),
    }
}

fn run(device: Device, asked: Vec<String>) -> Result<(), BackendError> {
    let mut bench = Bench::new(device, asked)?;
    bench.heading()?;
    kernels::products(&mut bench)?;
    kernels::attentions(&mut bench)?;
    kernels::rows(&mut bench)?;
    kernels::tables(&mut bench)?;
    kernels::updates(&mut bench)?;
    steps::steps(bench)
}

/// The kernels that the environment asks for, as the program understands it.
fn kernels() -> Kernels {
    match std::env::var("MTDNN_KERNELS").as_deref() {
        Err(_) | Ok("portable") => Kernels::Portable,
        Ok("hopper") => Kernels::Hopper,
        Ok(other) => panic!("MTDNN_KERNELS={other}: take portable or hopper"),
    }
}

/// A compiler, where one is found, for a program that holds no kernels, and a place to keep what it makes.
fn tools() -> Tools {
    let ours = [Path::new(env!("CARGO_MANIFEST_DIR")).join(".cuda")];
    let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
    Tools::new(roots(&ours, |name| std::env::var_os(name)), kept.is_dir().then(|| kept.join("kernels")))
}
