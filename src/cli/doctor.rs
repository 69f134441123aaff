//! `doctor`: what this machine offers, whether the engine computes rightly on it, and what to do where something is off.

#[cfg(feature = "cuda")]
mod cuda;

use std::fs;
use std::io::{Write, stdout};
use std::path::Path;

use clap::Args;
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::tensor::Precision;
use serde_json::json;

use super::{Exit, cache_directory, device, format, known_answer};

/// Say what this machine offers, check that the engine computes rightly on it, and how to mend what is off.
#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Print JSON: an object for each line, with name, value, ok and remedy.
    #[arg(long)]
    json: bool,
}

/// One line of the report.
struct Finding {
    name: &'static str,
    value: String,
    /// What to do, where something is off.
    remedy: Option<String>,
}

/// Less memory than this is off: BERT-base with gradients and moments takes 1.8 GB, and its arena as much.
const LITTLE_MEMORY: u64 = 4_000_000_000;
/// Less room than this is off: a run on BERT-base saves 2.2 GB, and for a moment twice.
const LITTLE_DISK: u64 = 5_000_000_000;

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let mut findings = vec![
        version(),
        processor(),
        instructions(),
        threads(),
        memory(),
        disk(),
        cache(),
        device(),
        engine(),
    ];
    findings.extend(cuda::findings());
    let mut out = stdout().lock();
    for Finding { name, value, remedy } in &findings {
        if args.json {
            writeln!(
                out,
                "{}",
                json!({"name": name, "value": value, "ok": remedy.is_none(), "remedy": remedy})
            )?;
            continue;
        }
        let mark = if remedy.is_none() { "ok " } else { "OFF" };
        writeln!(out, "{mark}  {name:<13} {value}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "                   -> {remedy}")?;
        }
    }
    match findings.iter().all(|finding| finding.remedy.is_none()) {
        true => Ok(Exit::Done),
        false => Ok(Exit::Unwell),
    }
}

fn fine(name: &'static str, value: String) -> Finding {
    Finding { name, value, remedy: None }
}

/// What a program that was built without CUDA says of it.
#[cfg(not(feature = "cuda"))]
mod cuda {
    pub(super) fn findings() -> Vec<super::Finding> {
        vec![super::fine("CUDA", "this program was built without its feature cuda".into())]
    }
}

fn version() -> Finding {
    let build = if cfg!(debug_assertions) { "development build" } else { "release build" };
    let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
    let remedy = cfg!(debug_assertions)
        .then(|| "it computes several times slower than it could: build with cargo build --release".into());
    Finding {
        name: "version",
        value: format!("mtdnn-raw {}, {build}, {os} {architecture}", env!("CARGO_PKG_VERSION")),
        remedy,
    }
}

fn processor() -> Finding {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    fine("processor", model.map_or("unknown", |(_, name)| name.trim()).to_string())
}

fn instructions() -> Finding {
    let (chosen, available) = (Isa::detect(), Isa::available());
    let names = |isas: &[Isa]| isas.iter().map(|isa| format!("{isa:?}")).collect::<Vec<_>>().join(", ");
    let best = available[available.len() - 1];
    let remedy = if chosen != best {
        Some(format!("MTDNN_ISA asks for less than {best:?}; unset it"))
    } else if chosen == Isa::Portable {
        Some("there is no AVX2 with FMA here: training will be slow; take a newer processor".into())
    } else {
        None
    };
    Finding { name: "instructions", value: format!("{chosen:?}, of {}", names(available)), remedy }
}

fn threads() -> Finding {
    let (used, cores) =
        (rayon::current_num_threads(), std::thread::available_parallelism().map_or(1, |n| n.get()));
    let remedy =
        (used > cores).then(|| format!("more threads than cores are slower; take --threads {cores}"));
    Finding { name: "threads", value: format!("{used}, on {cores} cores"), remedy }
}

fn memory() -> Finding {
    let Some(free) = available_memory() else { return fine("memory", "unknown".into()) };
    let remedy = (free < LITTLE_MEMORY).then(|| {
        "a BERT-base wants 4 GB to be trained: end other programs, or take a smaller --batch-size and --max-length".into()
    });
    Finding { name: "memory", value: format!("{} free", format::bytes(free)), remedy }
}

fn disk() -> Finding {
    let Some(free) = free_bytes(Path::new(".")) else { return fine("disk", "unknown".into()) };
    let remedy = (free < LITTLE_DISK).then(|| {
        "a run on BERT-base saves 2.2 GB, and for a moment twice: make room, or give --output elsewhere"
            .into()
    });
    Finding { name: "disk", value: format!("{} free in the working directory", format::bytes(free)), remedy }
}

fn cache() -> Finding {
    let Some(path) = cache_directory() else {
        let remedy = "token ids will be made anew in every run: set XDG_CACHE_HOME or HOME".to_string();
        return Finding { name: "cache", value: "none".into(), remedy: Some(remedy) };
    };
    let probe = path.join(format!("probe-{}", std::process::id()));
    let written =
        fs::create_dir_all(&path).and_then(|()| fs::write(&probe, "")).and_then(|()| fs::remove_file(&probe));
    let used: u64 = fs::read_dir(&path)
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|facts| facts.len()).sum()
        })
        .unwrap_or(0);
    let remedy = written.err().map(|error| {
        format!(
            "it cannot be written ({error}), so token ids will be made anew in every run: set XDG_CACHE_HOME"
        )
    });
    Finding { name: "cache", value: format!("{}, {}", path.display(), format::bytes(used)), remedy }
}

fn device() -> Finding {
    fine("device", format!("{}, where --device names none", device::automatic()))
}

/// The memory that the system could give without swapping, in bytes; none where it does not say.
pub(super) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn free_bytes(path: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(path).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

fn engine() -> Finding {
    let errors = [Precision::F32, Precision::Bf16]
        .map(|precision| known_answer::check(&mut CpuBackend::new().with_precision(precision)));
    match errors {
        [Ok(wide), Ok(narrow)] => fine(
            "engine",
            format!("a training step gives the known answer to within {wide:.0e}, in bf16 {narrow:.0e}"),
        ),
        [Err(error), _] | [_, Err(error)] => Finding {
            name: "engine",
            value: format!("a training step gives a wrong answer: {error:#}"),
            remedy: Some("try MTDNN_ISA=avx2 or MTDNN_ISA=portable, and report it with this output".into()),
        },
    }
}
