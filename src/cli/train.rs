//! `train`: the settings, the run, and the table at its end.

use std::io::{Write, stdout};
use std::path::Path;
use std::time::SystemTime;

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::backend::{Backend, Rule};
use mtdnn_raw::data::TaskKind;
use mtdnn_raw::nn::BertConfig;
use mtdnn_raw::train::checkpoint;
use mtdnn_raw::train::config::{ModelConfig, RunConfig, TrainConfig};
use mtdnn_raw::train::run::{self, Outcome, TaskResult};
use mtdnn_raw::train::signals::Stop;
use mtdnn_raw::train::trainer::Ending;

use super::console::Console;
use super::options::{Request, TrainArgs};
use super::table::Table;
use super::{Exit, cache_directory, format};

pub(super) fn run(args: &TrainArgs) -> anyhow::Result<Exit> {
    let Request { mut config, resume, check, device } = args.request()?;
    let sample = config.tasks.is_empty();
    if sample {
        let named = if config.model.init.is_some() { "" } else { ", a small encoder from scratch" };
        eprintln!("no tasks are named: training on the built-in sample tasks{named}");
        if config.model.init.is_none() && config.model.config.is_none() {
            config.model.config = sample_config().model.config;
        }
    }
    let cache = cache_directory();
    let begun = resume.then(|| checkpoint::recorded_precision(&config.output)).flatten();
    let mut backend = device.going_on(begun)?.backend()?;
    if check {
        return compare(&config, cache.as_deref(), &mut *backend);
    }
    eprintln!("run directory: {}", config.output.display());
    let mut console = Console::new(config.train.epochs, Stop::on_signals()?);
    let outcome = run::run(&config, resume, cache.as_deref(), SystemTime::now(), &mut *backend, &mut console);
    console.clear();
    let outcome = outcome?;
    let again = format!("mtdnn-raw train --resume --output {}", config.output.display());
    match outcome.ending {
        None => eprintln!("stopped before training began; nothing but token ids in the cache was kept"),
        Some(Ending::Stopped) => eprintln!("stopped and saved; to go on: {again}"),
        Some(Ending::Patience) => {
            eprintln!(
                "stopped early: the mean has not become better for {} evaluations",
                config.train.patience
            );
        }
        Some(Ending::Complete) => {}
    }
    if matches!(outcome.ending, None | Some(Ending::Stopped)) {
        return Ok(Exit::Stopped);
    }
    print_results(&outcome)?;
    hint(&config, &outcome, sample);
    Ok(Exit::Done)
}

/// `--check`: a training step of each task on the backend and on the plainest one, a line each.
fn compare(config: &RunConfig, cache: Option<&Path>, backend: &mut dyn Backend) -> anyhow::Result<Exit> {
    let mut console = Console::new(config.train.epochs, Stop::on_signals()?);
    // A GPU is held against the CPU as it is, the CPU against its plainest instructions.
    let isa = if backend.line() == 1 { Isa::Portable } else { Isa::detect() };
    let mut reference = CpuBackend::with_isa(isa);
    let reports = run::compare(config, cache, &mut reference, backend, &mut console);
    console.clear();
    let mut exit = Exit::Done;
    let mut out = stdout().lock();
    for (task, report) in reports? {
        match (report.difference, report.largest) {
            (Some(difference), _) => {
                writeln!(out, "{task}: {difference}")?;
                exit = Exit::Unwell;
            }
            (None, Some((error, value))) => {
                writeln!(
                    out,
                    "{task}: {} results agree; the largest error is {error:.1e}, of {value}",
                    report.compared
                )?;
            }
            (None, None) => writeln!(out, "{task}: nothing to compare")?,
        }
    }
    Ok(exit)
}

/// The settings for the built-in sample tasks: a small encoder that learns them in under two minutes on two cores.
pub(super) fn sample_config() -> RunConfig {
    RunConfig {
        model: ModelConfig {
            config: Some(BertConfig {
                hidden_size: 128,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                intermediate_size: 512,
                max_position_embeddings: 64,
                ..BertConfig::default()
            }),
            ..ModelConfig::default()
        },
        // Measured: with the textbook's Adamax at 2e-3 the similarity task was not learned in five epochs.
        train: TrainConfig {
            epochs: 6,
            learning_rate: 3e-3,
            optimizer: Rule::AdamaxMtdnn,
            max_length: 64,
            ..TrainConfig::default()
        },
        ..RunConfig::default()
    }
}

fn print_results(outcome: &Outcome) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if !outcome.results.is_empty() {
        write!(out, "{}", results_table(&outcome.results))?;
    }
    let updates = outcome.progress.updates;
    let time = format::duration(outcome.seconds);
    match outcome.best() {
        Some(best) => {
            writeln!(out, "best mean {:.4} after update {} of {updates}; {time}", best.mean, best.updates)?;
        }
        None => writeln!(out, "{updates} updates; {time}; no dev set was measured")?,
    }
    Ok(())
}

/// A row for each metric of each set, beside what is reached without reading.
pub(super) fn results_table(results: &[TaskResult]) -> Table {
    let mut table = Table::new(&["task", "set", "examples", "metric", "value", "baseline"]);
    for TaskResult { task, evaluation, baseline } in results {
        for (index, (metric, value)) in evaluation.metrics.iter().enumerate() {
            let once = |text: String| if index == 0 { text } else { String::new() };
            table.row(vec![
                once(task.clone()),
                once(evaluation.split.clone()),
                once(evaluation.examples.to_string()),
                metric.to_string(),
                format!("{value:.4}"),
                baseline.get(index).map_or("-".into(), |baseline| format!("{baseline:.4}")),
            ]);
        }
        for (step, accuracy) in (1..).zip(&evaluation.steps) {
            let [task, set, examples] = [(); 3].map(|()| String::new());
            let metric = format!("accuracy of step {step}");
            table.row(vec![task, set, examples, metric, format!("{accuracy:.4}"), "-".into()]);
        }
    }
    table
}

/// Where the model lies and what to do with it.
fn hint(config: &RunConfig, outcome: &Outcome, sample: bool) {
    let name = if outcome.best().is_some() { "best" } else { "last" };
    let model = config.output.join(name);
    let model = model.display();
    eprintln!("\nthe model is in {model}; what next:");
    if sample {
        eprintln!("  echo 'the film was not dull .' | mtdnn-raw predict --model {model} --task sentiment");
        eprintln!("  mtdnn-raw train --help    your own tasks, or GLUE's on a pretrained encoder");
    } else {
        // Of masked words nothing is predicted.
        let task = config.tasks.iter().find(|task| task.kind != Some(TaskKind::Masked));
        let task = task.map_or("TASK", |task| task.name.as_str());
        eprintln!("  mtdnn-raw predict --model {model} --task {task} FILE");
        eprintln!("  mtdnn-raw encode --model {model} FILE --output vectors.safetensors");
    }
}
