//! `kernels`: what there is of the CUDA kernels, compiling them ahead of the first use, and checking them.

#[cfg(feature = "cuda")]
mod act;

use clap::{Args, ValueEnum};

use super::Exit;

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw kernels list                  every kernel, and where its image comes from
  mtdnn-raw kernels build                 compiles what is missing into the cache, so that no run has to
  mtdnn-raw kernels check --arch 90a,80   registers and memory of every kernel; fails if one spills

No GPU is needed, only the compiler: scripts/install-nvrtc.sh brings it.";

/// List the CUDA kernels, compile them ahead of the first use, or check them.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct KernelsArgs {
    /// What to do.
    #[arg(value_enum)]
    action: Action,

    /// For which architectures. [default: that of this machine's GPU; without one, and for check, all of ours]
    #[arg(long, value_delimiter = ',', value_name = "ARCH,...")]
    arch: Option<Vec<String>>,

    /// Print JSON: an object for each line.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Name every module and kernel, and where its image comes from.
    List,
    /// Compile what is missing, into the cache.
    Build,
    /// Compile what is missing, and print what each kernel takes of a multiprocessor.
    Check,
}

#[cfg(feature = "cuda")]
pub(super) fn run(args: &KernelsArgs) -> anyhow::Result<Exit> {
    act::run(args)
}

#[cfg(not(feature = "cuda"))]
pub(super) fn run(args: &KernelsArgs) -> anyhow::Result<Exit> {
    let KernelsArgs { action: Action::List | Action::Build | Action::Check, arch: _, json: _ } = args;
    anyhow::bail!(
        "kernels: this program was built without its feature cuda; build it without --no-default-features"
    )
}
