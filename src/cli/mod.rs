//! The command line: the only place that reads the clock, the environment or a terminal.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0; 1 for a failure; 2 for what cannot
//! be meant, on the command line (a flag, its value, a name of a task) or as a run file's text (a key, a type, a range);
//! 75 for a training run that a signal stopped and that `--resume` goes on with. What is named rightly and is missing or
//! wrong itself is a failure: a file, a folder, the files of a known task, a task as a run file puts it together.

mod ablate;
mod adapt;
mod config_file;
mod console;
#[cfg(feature = "cuda")]
mod cuda;
mod data;
mod device;
mod distill;
mod doctor;
mod encode;
mod eval;
mod experiment;
mod fill;
mod finetune;
mod format;
mod input;
mod kernels;
mod known_answer;
mod mix;
mod model;
mod options;
mod output;
mod predict;
mod pretrain;
mod probe;
mod reference;
mod seeds;
mod soft;
mod submit;
mod table;
mod train;
mod vectors;
mod vocab;

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::train::config::ConfigValueError;

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw train                                            the built-in sample tasks: a first look, under two minutes
  mtdnn-raw train --data glue --tasks rte,mrpc --init bert   two GLUE tasks on a pretrained encoder
  mtdnn-raw eval --model runs/mtdnn/best --data glue         the dev sets of a trained model
  mtdnn-raw pretrain --help                                  stage one: an encoder from raw text
  mtdnn-raw doctor                                           what this machine offers and what is wrong with it

Results go to standard output, everything else to standard error.
Exit codes: 0 done, 1 failure, 2 wrong usage (a flag, its value, a task's name, a key of the run file),
75 stopped by a signal and saved (run again with --resume).";

/// Trains one BERT encoder on many language-understanding tasks at once (MT-DNN), evaluates it and predicts with it.
#[derive(Parser)]
#[command(name = "mtdnn-raw", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Threads to compute with; all cores if not said. The results are the same with any number.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<options::TrainArgs>),
    Mix(Box<mix::MixArgs>),
    Pretrain(Box<pretrain::PretrainArgs>),
    Fill(fill::FillArgs),
    Vocab(vocab::VocabArgs),
    Eval(eval::EvalArgs),
    Seeds(Box<seeds::SeedsArgs>),
    Finetune(Box<finetune::FinetuneArgs>),
    Ablate(Box<ablate::AblateArgs>),
    Adapt(Box<adapt::AdaptArgs>),
    Predict(predict::PredictArgs),
    Distill(Box<distill::DistillArgs>),
    Submit(submit::SubmitArgs),
    Encode(encode::EncodeArgs),
    Probe(probe::ProbeArgs),
    Data(data::DataArgs),
    Doctor(doctor::DoctorArgs),
    Kernels(kernels::KernelsArgs),
}

/// More threads than this are a slip of the hand: no machine has so many cores, and starting them would take minutes.
const MOST_THREADS: usize = 1024;

/// How a command that did not fail ended.
enum Exit {
    /// All was done.
    Done,
    /// A check found something wrong and has said it.
    Unwell,
    /// A signal stopped it, and what it had done is kept.
    Stopped,
}

/// A command line or a run file that cannot be meant: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The whole program.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Unwell) => ExitCode::FAILURE,
        Ok(Exit::Stopped) => ExitCode::from(75),
        // The reader of our output has seen enough (`mtdnn-raw predict … | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", explain(&error));
            let usage = error.chain().any(|cause| cause.is::<Usage>() || cause.is::<ConfigValueError>());
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    Isa::asked().map_err(Usage)?;
    let threads = match cli.threads {
        Some(threads) if threads.get() > MOST_THREADS => {
            return Err(Usage(format!("--threads {threads}: {MOST_THREADS} are the most")).into());
        }
        Some(threads) => threads.get(),
        None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
    };
    // Kernels run in the pool of their caller, so the whole program runs inside one.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.with_context(|| format!("cannot start {threads} threads; --threads takes fewer"))?;
    pool.install(|| match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Mix(args) => mix::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Fill(args) => fill::run(&args),
        Command::Vocab(args) => vocab::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Seeds(args) => seeds::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Ablate(args) => ablate::run(&args),
        Command::Adapt(args) => adapt::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Distill(args) => distill::run(&args),
        Command::Submit(args) => submit::run(&args),
        Command::Encode(args) => encode::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Kernels(args) => kernels::run(&args),
    })
}

/// An error and its causes in one line; a cause that the text before it quotes already is left out.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(pipe)
}

/// Where token ids and compiled kernels are kept between runs; none where the environment names no home.
fn cache_directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("mtdnn-raw"))
}

/// The known name most like `name`, if any is like it at all.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&name, &known.to_lowercase()), known))
        .filter(|&(likeness, _)| likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// A task that a flag names and that is not what it should be: `what`, one of `known`.
fn unknown_task<'a>(
    flag: &str,
    name: &str,
    what: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Usage {
    let hint = match nearest(name, known.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("the names are {}", known.collect::<Vec<_>>().join(", ")),
    };
    Usage(format!("{flag} {name}: not {what}; {hint}"))
}

/// What [`unknown_task`] says of GLUE's names and their like.
const KNOWN_TASK: &str = "a known task (your own go into a run file)";

/// A task that a flag names a second time.
fn named_twice(flag: &str, name: &str) -> Usage {
    Usage(format!("{flag} {name}: named twice"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_is_described() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let described = argument.get_help().is_some_and(|help| !help.to_string().is_empty());
                assert!(described, "{}: {} has no help", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        check(&command);
        command.debug_assert();
    }

    #[test]
    fn a_cause_is_said_once() {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::new(missing()).context("cannot read a.tsv: no such file");
        assert_eq!(explain(&error), "cannot read a.tsv: no such file");
        let error = anyhow::Error::new(missing()).context("cannot read a.tsv");
        assert_eq!(explain(&error), "cannot read a.tsv: no such file");
    }
}
