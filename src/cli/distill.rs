//! `distill`: teachers, soft labels and students from one run file.

use std::io::{Write, stdout};
use std::time::SystemTime;

use clap::Args;
use mtdnn_raw::train::config::ConfigValueError;
use mtdnn_raw::train::distill::{self, RESULTS};
use mtdnn_raw::train::signals::Stop;

use super::console::Console;
use super::options::RunArgs;
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
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(args: &DistillArgs) -> anyhow::Result<Exit> {
    args.run.device.check()?;
    let named = args.run.named()?;
    let named = named.ok_or_else(|| Usage("distill: name a run file with a [distill] table".into()))?;
    let config = args.run.complete(named)?;
    if config.distill.is_none() {
        let usage =
            "distill: there is no [distill] table; a run file with [distill] alone takes its defaults";
        return Err(Usage(usage.into()).into());
    }
    distill::check(&config).map_err(|error| Usage(error.to_string()))?;
    let mut backend = args.run.device.backend()?;
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
