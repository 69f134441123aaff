//! `seeds`: a run at several seeds, and whether it beats another.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use mtdnn_raw::train::config::RunConfig;
use mtdnn_raw::train::experiment::measure::measure;
use mtdnn_raw::train::experiment::seeds::{self, Difference, PREFIX, Spread};
use mtdnn_raw::train::experiment::{RunResult, results_below};
use serde_json::json;

use super::experiment::chart::{Dots, dots};
use super::experiment::report::{Part, Report};
use super::experiment::{ExperimentFlags, Setting, bounds, column, interval, points, verdict};
use super::options::RunArgs;
use super::{Exit, cache_directory};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw seeds glue.toml --seeds 5                         seeds 2018 to 2022 if the run file says none
  mtdnn-raw seeds glue.toml --seeds 0,1,2 --learning-rate 1e-4 --output runs/slow
  mtdnn-raw seeds glue.toml --seeds 0,1,2 --against runs/slow   is the difference more than chance?

Run the same command again to go on after a kill or Ctrl-C: finished runs are not done again.";

/// Train the same run at several seeds: mean, deviation and bootstrap intervals of every dev figure.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SeedsArgs {
    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    experiment: ExperimentFlags,

    /// Compare with another experiment of seeds, a run, or a model directory, measured on the same dev sets: the paired
    /// bootstrap interval of the difference.
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
}

pub(super) fn run(args: &SeedsArgs) -> anyhow::Result<Exit> {
    let sample = || RunConfig { output: PathBuf::from("runs/sample"), ..super::train::sample_config() };
    let config = args.run.named()?.unwrap_or_else(sample);
    let setting = args.experiment.setting(&args.run, "seeds", 5, config)?;
    let others = match &args.against {
        None => None,
        Some(path) => match other_side(path, &setting)? {
            None => return Ok(Exit::Stopped),
            others => others,
        },
    };
    let plan = seeds::plan(&setting.config, &setting.output, &setting.seeds);
    let Some(results) = setting.perform(&plan)? else { return Ok(Exit::Stopped) };
    let spreads = seeds::spreads(&results, &setting.bootstrap);
    let differences = match &others {
        Some(others) => seeds::differences(&results, others, &setting.bootstrap)?,
        None => Vec::new(),
    };
    if others.is_some() && differences.is_empty() {
        bail!("--against: it has none of this run's dev sets, so there is nothing to compare");
    }
    report(args, &setting, &spreads, others.as_deref(), &differences).publish(&setting.output)?;
    Ok(Exit::Done)
}

/// The results of what is to be compared with.
fn other_side(path: &Path, setting: &Setting) -> anyhow::Result<Option<Vec<RunResult>>> {
    if !path.is_dir() {
        bail!("--against {}: no such directory", path.display());
    }
    let results = results_below(path, PREFIX)?;
    if !results.is_empty() {
        return Ok(Some(results));
    }
    let best = path.join("best");
    let model = if best.is_dir() { &best } else { path };
    let mut backend = setting.device().backend()?;
    let mut console = setting.console(1);
    let config = &setting.config;
    let sets = measure(config, model, cache_directory().as_deref(), &mut *backend, &mut console);
    console.clear();
    Ok(sets?.map(|sets| vec![RunResult::of_model(config, sets)]))
}

fn report(
    args: &SeedsArgs,
    setting: &Setting,
    spreads: &[Spread],
    others: Option<&[RunResult]>,
    differences: &[Difference],
) -> Report {
    let level = setting.level();
    let seeds: Vec<String> = setting.seeds.iter().map(u64::to_string).collect();
    let title = format!(
        "One run at {}",
        if seeds.len() == 1 { "one seed".into() } else { format!("{} seeds", seeds.len()) }
    );
    let titles =
        ["task", "set", "metric", "mean", "deviation", "least", "most"].map(String::from).into_iter();
    let titles = titles.chain([format!("{level} over examples"), format!("{level} over seeds")]).collect();
    let row = |spread: &Spread| {
        let least = spread.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = spread.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        vec![
            spread.task.clone(),
            spread.set.clone(),
            spread.metric.to_string(),
            points(spread.mean),
            spread.deviation.map_or("-".into(), points),
            points(least),
            points(most),
            bounds(spread.over_examples),
            bounds(spread.over_seeds),
        ]
    };
    let caption =
        format!("Dev sets, in points (shares and correlations times 100); seeds {}.", seeds.join(", "));
    let mut parts = vec![Part::Table { caption, titles, rows: spreads.iter().map(row).collect() }];
    let other = args.against.as_ref().map_or(String::new(), |path| path.display().to_string());
    if !differences.is_empty() {
        let titles = ["task", "set", "metric", "difference"].map(String::from).into_iter();
        let titles =
            titles.chain([format!("{level} over examples"), format!("{level} over seeds")]).collect();
        let rows = differences.iter().map(|difference| {
            vec![
                difference.task.clone(),
                difference.set.clone(),
                difference.metric.to_string(),
                format!("{:+.1}", 100.0 * difference.difference),
                interval(difference.over_examples),
                interval(difference.over_seeds),
            ]
        });
        let caption = format!("This run less {other}.");
        parts.push(Part::Table { caption, titles, rows: rows.collect() });
        let said = differences.iter().map(|one| verdict("this run", &other, one, seeds.len()));
        parts.push(Part::List(said.collect()));
    }
    parts.push(Part::Text(setting.explain_intervals()));
    let of_other = others.map(|others| seeds::spreads(others, &setting.bootstrap)).unwrap_or_default();
    let panels: Vec<(String, Vec<Dots>)> = spreads
        .iter()
        .map(|spread| {
            let name = column(&spread.task, &spread.set, spread.metric);
            let same = |other: &&Spread| name == column(&other.task, &other.set, other.metric);
            let rows = [("this run".to_string(), Some(spread)), (other.clone(), of_other.iter().find(same))];
            let rows = rows.into_iter().filter_map(|(label, spread)| Some(dots_of(label, spread?)));
            (name.clone(), rows.collect())
        })
        .collect();
    Report {
        data: json!({
            "experiment": "seeds",
            "seeds": setting.seeds,
            "level": setting.bootstrap.level,
            "resamples": setting.bootstrap.resamples,
            "figures": spreads,
            "differences": differences,
        }),
        chart: dots(&title, &panels),
        title,
        parts,
    }
}

/// A spread as a line of a figure.
pub(super) fn dots_of(label: String, spread: &Spread) -> Dots {
    Dots {
        label,
        values: spread.values.iter().map(|value| 100.0 * value).collect(),
        mean: 100.0 * spread.mean,
        deviation: spread.deviation.map(|deviation| 100.0 * deviation),
    }
}
