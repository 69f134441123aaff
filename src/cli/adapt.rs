//! `adapt`: BERT and MT-DNN on small parts of a new task.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use mtdnn_raw::nn::directory::{read_description, read_encoder};
use mtdnn_raw::train::experiment::adapt::{self, Cell, ENCODERS, percent};
use mtdnn_raw::train::experiment::seeds::{self, Difference};
use mtdnn_raw::train::experiment::statistics::{deviation, mean};
use mtdnn_raw::train::experiment::{RunResult, published};
use serde_json::{Value, json};

use super::experiment::chart::{Curve, Panel, curves};
use super::experiment::report::{Part, Report};
use super::experiment::{ExperimentFlags, Setting, check_names, interval, named_tasks, spread, task_names};
use super::options::{RunArgs, set};
use super::{Exit, Usage};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw adapt examples/adapt.toml
  mtdnn-raw adapt glue.toml --targets scitail --shares 0.01,0.1,1 --mt-dnn runs/four/best --seeds 3

BERT's side starts from --init (or model.init), MT-DNN's from --mt-dnn, or from a model that is first trained on the run
file's other tasks. Both see the same examples, drawn by the seed, and have new linear heads.
Run the same command again to go on after a kill or Ctrl-C: finished runs are not done again.";

/// Make the paper's domain adaptation table: how few examples of a new task suffice, with BERT and with MT-DNN.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AdaptArgs {
    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    experiment: ExperimentFlags,

    /// The new tasks. [default: snli,scitail]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    targets: Option<Vec<String>>,

    /// The shares of their training examples. [default: 0.001,0.01,0.1,1]
    #[arg(long, value_delimiter = ',', value_name = "X,...", allow_negative_numbers = true)]
    shares: Option<Vec<f64>>,

    /// An MT-DNN model directory, in place of training one on the other tasks.
    #[arg(long, value_name = "DIR")]
    mt_dnn: Option<PathBuf>,

    /// Seeds of share 1, where every seed draws all examples. [default: all]
    #[arg(long, value_name = "N")]
    whole_seeds: Option<usize>,

    /// Shares up to this one are small. [default: 0.01]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    small: Option<f64>,

    /// Examples in a batch on small shares. [default: 8]
    #[arg(long, value_name = "N")]
    small_batch_size: Option<usize>,

    /// Epochs on small shares; as many as on others if not said.
    #[arg(long, value_name = "N")]
    small_epochs: Option<u32>,
}

pub(super) fn run(args: &AdaptArgs) -> anyhow::Result<Exit> {
    let mut config = named_tasks(&args.run, "adapt")?;
    let adapt = &mut config.adapt;
    set(&mut adapt.targets, &args.targets);
    set(&mut adapt.shares, &args.shares);
    set(&mut adapt.small, &args.small);
    set(&mut adapt.small_batch_size, &args.small_batch_size);
    adapt.mt_dnn = args.mt_dnn.clone().or(adapt.mt_dnn.take());
    adapt.whole_seeds = args.whole_seeds.or(adapt.whole_seeds);
    adapt.small_epochs = args.small_epochs.or(adapt.small_epochs);
    let setting = args.experiment.setting(&args.run, "adapt", 5, config)?;
    let config = &setting.config;
    check_names("--targets", &config.adapt.targets, task_names(config))?;
    check_shares(&config.adapt.shares)?;
    if config.adapt.whole_seeds == Some(0) {
        return Err(
            Usage("--whole-seeds: 0 leaves share 1 without a run; leave it out of --shares".into()).into()
        );
    }
    if !(config.adapt.small >= 0.0 && config.adapt.small <= 1.0) {
        return Err(Usage(format!("--small {}: not a share in [0, 1]", config.adapt.small)).into());
    }
    let plan = adapt::plan(config, &setting.output, &setting.seeds)?;
    if let (Some(bert), Some(mt_dnn)) = (&config.model.init, &config.adapt.mt_dnn) {
        check_comparable(bert, mt_dnn)?;
        [bert, mt_dnn].into_iter().try_for_each(|model| warn_of_known(model, &config.adapt.targets))?;
    }
    let Some(results) = setting.perform(&plan.runs)? else { return Ok(Exit::Stopped) };
    report(&setting, &plan.cells, &results)?.publish(&setting.output)?;
    Ok(Exit::Done)
}

/// What is compared is what an encoder was trained on, not its size.
fn check_comparable(bert: &Path, mt_dnn: &Path) -> anyhow::Result<()> {
    let sizes = |model: &Path| -> anyhow::Result<[(&'static str, usize); 5]> {
        let (config, _) = read_encoder(model)?;
        Ok([
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("intermediate_size", config.intermediate_size),
        ])
    };
    for ((name, one), (_, other)) in sizes(bert)?.into_iter().zip(sizes(mt_dnn)?) {
        if one != other {
            bail!(
                "adapt compares encoders of one size: {name} is {one} in {} and {other} in {}; give --mt-dnn a model that \
                 was trained from --init",
                bert.display(),
                mt_dnn.display()
            );
        }
    }
    Ok(())
}

/// A target should be new to both encoders.
fn warn_of_known(model: &Path, targets: &[String]) -> anyhow::Result<()> {
    let tasks = read_description(model)?.map(|description| description.tasks).unwrap_or_default();
    for task in tasks.iter().filter(|task| targets.contains(&task.name)) {
        eprintln!("warning: {} was trained on {}, which is no new task to it", model.display(), task.name);
    }
    Ok(())
}

fn check_shares(shares: &[f64]) -> Result<(), Usage> {
    for (index, &share) in shares.iter().enumerate() {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Usage(format!("--shares {share}: not a share in (0, 1]")));
        }
        if shares[..index].contains(&share) {
            return Err(Usage(format!("--shares {share}: named twice")));
        }
    }
    match shares.is_empty() {
        true => Err(Usage("--shares: no share, so there is nothing to do".into())),
        false => Ok(()),
    }
}

fn report(setting: &Setting, cells: &[Cell], results: &[RunResult]) -> anyhow::Result<Report> {
    let listed: Vec<String> = setting.seeds.iter().map(u64::to_string).collect();
    let (mut parts, mut data, mut panels) = (Vec::new(), Vec::new(), Vec::new());
    for target in &setting.config.adapt.targets {
        let of_target: Vec<&Cell> = cells.iter().filter(|cell| cell.target == *target).collect();
        let of_encoder = |encoder: usize| of_target.iter().filter(move |cell| cell.encoder == encoder);
        let titles = of_encoder(0).map(|cell| {
            let (share, examples) = (percent(cell.share), cell.examples(results));
            match cell.runs.len() {
                all if all == setting.seeds.len() => format!("{share} ({examples})"),
                1 => format!("{share} ({examples}, one seed)"),
                some => format!("{share} ({examples}, {some} seeds)"),
            }
        });
        let titles = std::iter::once(target.clone()).chain(titles).collect();
        let mut rows = Vec::new();
        for (encoder, name) in ENCODERS.iter().enumerate() {
            let figures = of_encoder(encoder).map(|cell| cell.values(results));
            let cells = figures.map(|values| spread(mean(&values), deviation(&values)));
            rows.push(std::iter::once(name.to_string()).chain(cells).collect());
        }
        let mut gains = Vec::new();
        for (bert, mt_dnn) in of_encoder(0).zip(of_encoder(1)) {
            let both = [bert, mt_dnn].map(|cell| cell.results(results));
            gains.push(seeds::differences(&both[1], &both[0], &setting.bootstrap)?);
        }
        let row = |title: String, cell: &dyn Fn(&Difference) -> String| {
            let cells = gains.iter().map(|gain| gain.first().map_or("-".into(), cell));
            std::iter::once(title).chain(cells).collect::<Vec<String>>()
        };
        let level = setting.level();
        rows.push(row("MT-DNN less BERT".into(), &|gain| format!("{:+.1}", 100.0 * gain.difference)));
        rows.push(row(format!("{level} over examples"), &|gain| interval(gain.over_examples)));
        rows.push(row(format!("{level} over seeds"), &|gain| interval(gain.over_seeds)));
        let caption = format!(
            "{target}: main dev figure in points by share (and number) of the training examples; mean and sample \
             deviation over seeds {}.",
            listed.join(", ")
        );
        parts.push(Part::Table { caption, titles, rows });
        panels.push(panel(target, &of_target, results));
        data.extend(of_target.iter().map(|cell| {
            let values = cell.values(results);
            json!({
                "target": cell.target,
                "encoder": ENCODERS[cell.encoder],
                "share": cell.share,
                "examples": cell.examples(results),
                "values": values,
                "mean": mean(&values),
                "deviation": deviation(&values),
            })
        }));
        let gains =
            gains.iter().flatten().zip(of_encoder(0)).map(
                |(gain, cell)| json!({ "target": target, "share": cell.share, "mt_dnn_less_bert": gain }),
            );
        data.extend(gains.collect::<Vec<Value>>());
    }
    parts.push(Part::Text(setting.explain_intervals()));
    parts.extend(published_table(&setting.config.adapt.targets));
    let title = "Domain adaptation".to_string();
    let figure = curves(
        "Domain adaptation: mean and deviation over seeds",
        "training examples (share of all), logarithmic",
        "main dev figure, points",
        &panels,
    );
    Ok(Report {
        data: json!({ "experiment": "adapt", "seeds": setting.seeds, "cells": data }),
        chart: figure,
        title,
        parts,
    })
}

fn panel(target: &str, cells: &[&Cell], results: &[RunResult]) -> Panel {
    let of_encoder = |encoder: usize| cells.iter().filter(move |cell| cell.encoder == encoder);
    let ticks = of_encoder(0).map(|cell| {
        let examples = cell.examples(results);
        (examples.max(1) as f64, format!("{examples} ({})", percent(cell.share)))
    });
    let curve = |(encoder, name): (usize, &&str)| {
        let points = of_encoder(encoder).map(|cell| {
            let values: Vec<f64> = cell.values(results).iter().map(|value| 100.0 * value).collect();
            (cell.examples(results).max(1) as f64, mean(&values), deviation(&values))
        });
        let mut points: Vec<_> = points.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name: name.to_string(), points }
    };
    Panel {
        title: target.into(),
        ticks: ticks.collect(),
        curves: ENCODERS.iter().enumerate().map(curve).collect(),
    }
}

/// The paper's table for those of the tasks that it has.
fn published_table(targets: &[String]) -> Option<Part> {
    let known = published::TABLE_4.iter().filter(|row| targets.iter().any(|target| target == row.task));
    let rows: Vec<Vec<String>> = known
        .map(|row| {
            let cells = row.figures.iter().map(|(examples, value)| format!("{value:.1} ({examples})"));
            [row.task, row.encoder].map(String::from).into_iter().chain(cells).collect()
        })
        .collect();
    let titles = ["task", "encoder"].map(String::from).into_iter();
    let titles = titles.chain(published::SHARES.map(percent)).collect();
    let caption = "Published, for the shape of it and not to be compared: Liu et al. 2019, table 4, BERT-base, dev accuracy \
                   (and number of training examples), the mean of five samples.";
    (!rows.is_empty()).then(|| Part::Table { caption: caption.into(), titles, rows })
}
