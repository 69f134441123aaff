//! The three actions, in a program that was built with CUDA.

use std::io::{Write, stdout};
use std::time::Instant;

use mtdnn_raw::backend::cuda::arch::Arch;
use mtdnn_raw::backend::cuda::figures::Figures;
use mtdnn_raw::backend::cuda::images::{self, HOW_TO_INSTALL, Image, ImageError, Module, Tools};
use serde_json::json;

use super::{Action, KernelsArgs};
use crate::cli::cuda::{device_arch, tools};
use crate::cli::table::Table;
use crate::cli::{Exit, Usage, format};

type Wanted = Vec<(Module<'static>, Arch)>;

pub(super) fn run(args: &KernelsArgs) -> anyhow::Result<Exit> {
    let archs = archs(args)?;
    let of_arch =
        |arch: &Arch| images::modules_for(arch).map(|module| (module, arch.clone())).collect::<Vec<_>>();
    let wanted: Wanted = archs.iter().flat_map(of_arch).collect();
    let tools = tools();
    match args.action {
        Action::List => list(&tools, &wanted, args.json),
        Action::Build => build(&tools, &wanted, args.json),
        Action::Check => check(&tools, &wanted, args.json),
    }
}

fn archs(args: &KernelsArgs) -> Result<Vec<Arch>, Usage> {
    let parse = |name: &String| name.trim().parse().map_err(|error| Usage(format!("--arch: {error}")));
    match (&args.arch, args.action) {
        (Some(names), _) => names.iter().map(parse).collect(),
        (None, Action::Check) => Ok(Arch::all()),
        (None, Action::List | Action::Build) => Ok(device_arch().map_or_else(Arch::all, |arch| vec![arch])),
    }
}

fn list(tools: &Tools, wanted: &Wanted, json: bool) -> anyhow::Result<Exit> {
    let mut table = Table::new(&["arch", "module", "kernel", "image"]);
    let mut out = stdout().lock();
    for (module, arch) in wanted {
        let image = tools.find(module, arch);
        let origin = match &image {
            Some(image) => image.origin.to_string(),
            None => match tools.compiler() {
                Ok(compiler) if compiler.supports(arch.name()) => {
                    format!("{compiler} makes it at the first use")
                }
                Ok(compiler) => format!("none: {compiler} does not know the architecture"),
                Err(_) => "none: there is no compiler".into(),
            },
        };
        let kernels = image.iter().flat_map(|image| &image.kernels).map(|figures| figures.kernel.as_str());
        if json {
            let kernels: Vec<&str> = kernels.collect();
            let line =
                json!({"arch": arch.to_string(), "module": module.name, "kernels": kernels, "image": origin});
            writeln!(out, "{line}")?;
            continue;
        }
        let mut row = |kernel: &str| {
            table.row(vec![arch.to_string(), module.name.into(), kernel.into(), origin.clone()]);
        };
        match &image {
            Some(_) => kernels.for_each(row),
            // What is in a module is known when it has been compiled.
            None => row("?"),
        }
    }
    if !json {
        write!(out, "{table}")?;
    }
    if tools.compiler().is_err() {
        eprintln!("there is no compiler here; to have one: {HOW_TO_INSTALL}");
    }
    Ok(Exit::Done)
}

fn build(tools: &Tools, wanted: &Wanted, json: bool) -> anyhow::Result<Exit> {
    let (images, failures) = make(tools, wanted);
    let mut table = Table::new(&["arch", "module", "kernels", "image"]);
    let mut out = stdout().lock();
    for (arch, image) in &images {
        let (arch, count, origin) = (arch.to_string(), image.kernels.len(), image.origin.to_string());
        match json {
            true => {
                let line = json!({"arch": arch, "module": image.module, "kernels": count, "image": origin});
                writeln!(out, "{line}")?;
            }
            false => table.row(vec![arch, image.module.clone(), count.to_string(), origin]),
        }
    }
    if !json && !images.is_empty() {
        write!(out, "{table}")?;
    }
    end(failures)
}

fn check(tools: &Tools, wanted: &Wanted, json: bool) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let (images, failures) = make(tools, wanted);
    let titles = ["arch", "module", "kernel", "registers", "shared", "stack", "spilled"];
    let mut table = Table::new(&titles);
    let mut out = stdout().lock();
    let mut spilling = Vec::new();
    for (arch, image) in &images {
        image.warnings.iter().for_each(|warning| eprintln!("warning: {arch}: {warning}"));
        for figures in &image.kernels {
            let Figures { kernel, registers, shared, stack, spill_stores, spill_loads } = figures;
            if figures.spills() {
                spilling.push(format!("{kernel} of {} for {arch} spills registers to memory", image.module));
            }
            let arch = arch.to_string();
            if json {
                let line = json!({
                    "arch": arch,
                    "module": image.module,
                    "kernel": kernel,
                    "registers": registers,
                    "shared": shared,
                    "stack": stack,
                    "spill_stores": spill_stores,
                    "spill_loads": spill_loads,
                });
                writeln!(out, "{line}")?;
                continue;
            }
            let numbers = [*registers, *shared, *stack, spill_stores + spill_loads];
            let names = [arch, image.module.clone(), kernel.clone()];
            table.row(names.into_iter().chain(numbers.map(|number| number.to_string())).collect());
        }
    }
    if !json && !images.is_empty() {
        write!(out, "{table}")?;
    }
    let kernels: usize = images.iter().map(|(_, image)| image.kernels.len()).sum();
    let unwell = matches!(end(failures)?, Exit::Unwell) || !spilling.is_empty();
    spilling.iter().for_each(|line| eprintln!("error: {line}"));
    let time = format::duration(started.elapsed().as_secs_f64());
    eprintln!("{kernels} kernels in {} images, {} with spills; {time}", images.len(), spilling.len());
    Ok(if unwell { Exit::Unwell } else { Exit::Done })
}

/// The images with their architectures, and what there is none of.
fn make<'a>(tools: &Tools, wanted: &'a Wanted) -> (Vec<(&'a Arch, Image)>, Vec<ImageError>) {
    let mut notes = Vec::new();
    let (mut images, mut failures) = (Vec::new(), Vec::new());
    for ((_, arch), result) in wanted.iter().zip(tools.make(wanted, &mut notes)) {
        match result {
            Ok(image) => images.push((arch, image)),
            Err(error) => failures.push(error),
        }
    }
    notes.iter().for_each(|note| eprintln!("warning: {note}"));
    (images, failures)
}

/// Says what failed; that there is no compiler only once.
fn end(failures: Vec<ImageError>) -> anyhow::Result<Exit> {
    if let Some(error @ ImageError::NoCompiler { .. }) = failures.first() {
        return Err(error.clone().into());
    }
    failures.iter().for_each(|error| eprintln!("error: {error}"));
    Ok(if failures.is_empty() { Exit::Done } else { Exit::Unwell })
}
