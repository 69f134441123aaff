//! `distill`: teachers, soft labels and students from one run file.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use mtdnn_raw::train::config::ConfigValueError;
use mtdnn_raw::train::distill::{self, RESULTS};
use mtdnn_raw::train::signals::Stop;

use super::console::Console;
use super::device::DeviceArgs;
use super::options::TrainArgs;
use super::{Exit, Usage, cache_directory};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw distill examples/distill.toml --data glue --tasks rte,mrpc --init bert-base-uncased
  mtdnn-raw distill examples/distill.toml --seed 7 --output runs/distill-7

A run that was stopped goes on when the same command is given again; what is finished is not trained again.
The run file's [distill] says how many teachers and students there are, and its [train] how each is trained.";

/// Train teachers, write their average as soft labels, and train students on these beside twins that do without.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DistillArgs {
    /// A run file (TOML) with [distill].
    #[arg(value_name = "RUN.toml")]
    file: PathBuf,

    /// A folder with GLUE's tasks in their official layout, in place of the run file's tasks.
    #[arg(long, value_name = "GLUE_DIR")]
    data: Option<PathBuf>,

    /// The tasks to train on: of --data (all that are there if not said), else of the run file.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    tasks: Option<Vec<String>>,

    /// A pretrained model that teachers and students start from.
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,

    /// The directory of the experiment. [default: the run file's output]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// The first student's seed. [default: 2018]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &DistillArgs) -> anyhow::Result<Exit> {
    let DistillArgs { file, data, tasks, init, output, seed, device } = args;
    let request = TrainArgs::of_file(file, data, tasks, init, output, *seed, device).request()?;
    let config = request.config;
    if config.distill.is_none() {
        return Err(Usage(format!(
            "{}: it has no [distill] table; [distill] alone takes its defaults",
            file.display()
        ))
        .into());
    }
    distill::check(&config).map_err(|error| Usage(error.to_string()))?;
    let mut backend = device.backend()?;
    let mut console = Console::new(config.train.epochs, Stop::on_signals()?);
    let results =
        distill::run(&config, cache_directory().as_deref(), SystemTime::now(), &mut *backend, &mut console);
    console.clear();
    let results = results.map_err(|error| match error.downcast::<ConfigValueError>() {
        Ok(wrong) => Usage(wrong.to_string()).into(),
        Err(error) => error,
    })?;
    let Some(results) = results else {
        eprintln!("stopped; to go on give the same command again");
        return Ok(Exit::Stopped);
    };
    write!(stdout().lock(), "{results}")?;
    eprintln!("saved in {}", config.output.join(RESULTS).display());
    Ok(Exit::Done)
}
