//! What the commands of several runs have in common: their flags, doing the runs one after another, and the report.

pub(super) mod chart;
pub(super) mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use mtdnn_raw::data::MetricKind;
use mtdnn_raw::train::checkpoint;
use mtdnn_raw::train::config::RunConfig;
use mtdnn_raw::train::experiment::config::{Keep, Seeds};
use mtdnn_raw::train::experiment::seeds::Difference;
use mtdnn_raw::train::experiment::statistics::{Bootstrap, Interval};
use mtdnn_raw::train::experiment::{RunResult, SubRun, perform};
use mtdnn_raw::train::lock::Lock;
use mtdnn_raw::train::signals::Stop;
use serde_json::Value;

use super::console::Console;
use super::device::DeviceArgs;
use super::options::{RunArgs, named, set};
use super::{Usage, cache_directory, format, named_twice, unknown_task};

/// The flags of every experiment: a flag for each key of the run file's `[experiment]`.
#[derive(Args, Debug, Default)]
pub(super) struct ExperimentFlags {
    /// The seeds: a number of them, from --seed on (5), or a list (0,1,2). [default: 5; 1 for finetune]
    #[arg(long, value_name = "N|LIST")]
    seeds: Option<Seeds>,

    /// Which models of finished runs stay: none (but those that later runs start from), best, or all that a run leaves.
    /// [default: best]
    #[arg(long, value_name = "NAME", value_parser = named::<Keep>)]
    keep: Option<Keep>,

    /// Resamples of each bootstrap. [default: 1000]
    #[arg(long, value_name = "N")]
    resamples: Option<u32>,

    /// The share of resamples within an interval. [default: 0.95]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    level: Option<f64>,
}

/// An experiment as it was asked for.
pub(super) struct Setting {
    pub(super) config: RunConfig,
    /// Its directory.
    pub(super) output: PathBuf,
    pub(super) seeds: Vec<u64>,
    pub(super) bootstrap: Bootstrap,
    keep: Keep,
    device: DeviceArgs,
    stop: Stop,
}

impl ExperimentFlags {
    /// The settings of the experiment `command`, on so many seeds if nothing is said of them; `config` is what the run
    /// file says, completed by `change` where the command has flags of its own.
    pub(super) fn setting(
        &self,
        run: &RunArgs,
        command: &str,
        seeds: u32,
        mut config: RunConfig,
    ) -> anyhow::Result<Setting> {
        run.device.check()?;
        let beside = PathBuf::from(format!("{}-{command}", config.output.display()));
        let experiment = &mut config.experiment;
        set(&mut experiment.keep, &self.keep);
        set(&mut experiment.resamples, &self.resamples);
        set(&mut experiment.level, &self.level);
        experiment.seeds = self.seeds.clone().or(experiment.seeds.take());
        experiment.validate().map_err(|error| Usage(error.to_string()))?;
        let output = run.output.clone().or(experiment.output.clone()).unwrap_or(beside);
        let config = run.complete(config)?;
        let experiment = &config.experiment;
        if run.seed.is_some() && matches!(experiment.seeds, Some(Seeds::List(_))) {
            return Err(
                Usage("--seed: the seeds are a list, which says them all; leave one out".into()).into()
            );
        }
        refuse_another(&output, command)?;
        let seeds = experiment.seeds.clone().unwrap_or(Seeds::Count(seeds)).from(config.seed);
        let (resamples, level, keep) = (experiment.resamples, experiment.level, experiment.keep);
        let bootstrap = Bootstrap { seed: config.seed, resamples, level };
        let stop = Stop::on_signals()?;
        Ok(Setting { output, seeds, bootstrap, keep, device: run.device.clone(), stop, config })
    }
}

impl Setting {
    /// Does the runs that are not done, in order, and says how far it is. `None` if a signal stopped it.
    pub(super) fn perform(&self, plan: &[SubRun]) -> anyhow::Result<Option<Vec<RunResult>>> {
        let _lock = Lock::acquire(&self.output, SystemTime::now())?;
        for run in plan {
            run.config.train.validate().map_err(|error| Usage(format!("{}: {error}", run.kind)))?;
        }
        let done: Vec<Option<RunResult>> = plan.iter().map(SubRun::result).collect::<anyhow::Result<_>>()?;
        let mut precisions = done.iter().flatten().map(|result| result.precision);
        let device = precisions.try_fold(self.device.clone(), |device, of_run| device.going_on(of_run))?;
        let all = plan.len();
        let finished = done.iter().flatten().count();
        let output = self.output.display();
        eprintln!("experiment directory: {output}; {finished} of {all} runs are done");
        let mut pace = Pace::default();
        for (run, result) in plan.iter().zip(&done) {
            pace.add(run, result.as_ref());
        }
        let cache = cache_directory();
        let mut results = Vec::new();
        for (number, (run, result)) in plan.iter().zip(done).enumerate() {
            if let Some(result) = result {
                results.push(result);
                continue;
            }
            let left = pace.left(&plan[number..]);
            eprintln!("run {} of {all}: {}, seed {}{left}", number + 1, run.kind, run.config.seed);
            let mut backend =
                device.going_on(checkpoint::recorded_precision(&run.config.output))?.backend()?;
            let mut console = self.console(run.config.train.epochs);
            let (now, cache) = (SystemTime::now(), cache.as_deref());
            let result = perform(run, self.keep, cache, now, &mut *backend, &mut console);
            console.clear();
            let Some(result) = result? else {
                eprintln!("stopped and saved after {number} of {all} runs; the same command goes on");
                return Ok(None);
            };
            pace.add(run, Some(&result));
            results.push(result);
        }
        Ok(Some(results))
    }

    /// A console for work that the experiment does beside its runs.
    pub(super) fn console(&self, epochs: u32) -> Console {
        Console::new(epochs, self.stop.clone())
    }

    pub(super) fn device(&self) -> &DeviceArgs {
        &self.device
    }

    /// `95 %`, as it stands in titles of columns.
    pub(super) fn level(&self) -> String {
        format!("{} %", (self.bootstrap.level * 1e4).round() / 1e2)
    }

    /// What the intervals are made of, for a report's reader.
    pub(super) fn explain_intervals(&self) -> String {
        format!(
            "Intervals of {} by the percentile bootstrap, {} resamples: over examples, the dev examples are drawn again, \
             the same ones for every seed and both sides of a difference, and the seeds stay; over seeds, the seeds are \
             drawn again (in pairs where both sides have the same), and the examples stay. With five seeds or so the \
             second kind is too narrow.",
            self.level(),
            self.bootstrap.resamples
        )
    }
}

/// Seconds of finished runs by kind: runs of one kind take about as long.
#[derive(Default)]
struct Pace(BTreeMap<String, (f64, u32)>);

impl Pace {
    fn add(&mut self, run: &SubRun, result: Option<&RunResult>) {
        if let Some(result) = result {
            let (seconds, count) = self.0.entry(run.kind.clone()).or_default();
            *seconds += result.seconds;
            *count += 1;
        }
    }

    /// `; about 3 min 20 s left`; of kinds that no run was done of, nothing is known.
    fn left(&self, ahead: &[SubRun]) -> String {
        let known = ahead.iter().map(|run| self.0.get(&run.kind).map(|(sum, count)| sum / f64::from(*count)));
        let known: Vec<Option<f64>> = known.collect();
        let seconds: f64 = known.iter().flatten().sum();
        let more = if known.contains(&None) { "more than " } else { "about " };
        match seconds > 0.0 {
            true => format!("; {more}{} left", format::duration(seconds)),
            false => String::new(),
        }
    }
}

/// A share or correlation in points, as papers print it: `62.1`.
pub(super) fn points(value: f64) -> String {
    format!("{:.1}", 100.0 * value)
}

/// `62.1 ± 1.3`; without a deviation the mean alone.
pub(super) fn spread(mean: f64, deviation: Option<f64>) -> String {
    match deviation {
        Some(deviation) => format!("{} ± {}", points(mean), points(deviation)),
        None => points(mean),
    }
}

/// `58.1 to 64.9`, of a value.
pub(super) fn bounds(interval: Option<Interval>) -> String {
    interval.map_or("-".into(), |Interval { low, high }| format!("{} to {}", points(low), points(high)))
}

/// `-0.4 to +3.1`, of a difference.
pub(super) fn interval(interval: Option<Interval>) -> String {
    interval
        .map_or("-".into(), |Interval { low, high }| format!("{:+.1} to {:+.1}", 100.0 * low, 100.0 * high))
}

/// The name of a column: task, set where it is not plain `dev`, metric.
pub(super) fn column(task: &str, set: &str, metric: MetricKind) -> String {
    match set.strip_prefix("dev").map(|rest| rest.trim_start_matches('_')) {
        Some("") => format!("{task} {metric}"),
        Some(rest) => format!("{task} {rest} {metric}"),
        None => format!("{task} {set} {metric}"),
    }
}

/// Says of one difference whether `ours` beats `theirs`, and by how much.
pub(super) fn verdict(ours: &str, theirs: &str, difference: &Difference, seeds: usize) -> String {
    let Difference { task, set, metric, difference, over_examples, over_seeds } = difference;
    let amount = 100.0 * difference.abs();
    let said = match difference {
        d if *d > 0.0 => format!("{ours} beats {theirs} by {amount:.1} points"),
        d if *d < 0.0 => format!("{ours} does not beat {theirs}: it is {amount:.1} points lower"),
        _ => format!("{ours} does not beat {theirs}: the two are equal"),
    };
    let over = |what: &str, value: &Option<Interval>| {
        value.map_or(String::new(), |value| format!("; over {what} {}", interval(Some(value))))
    };
    let mean = if seeds > 1 { format!(" in the mean over {seeds} seeds") } else { " at one seed".into() };
    let both = [over_examples, over_seeds].into_iter().flatten();
    let chance = match both.clone().any(|interval| interval.low <= 0.0 && interval.high >= 0.0) {
        true => "; this may be chance, as an interval holds 0",
        false => "",
    };
    format!(
        "{}: {said}{mean}{}{}{chance}.",
        column(task, set, *metric),
        over("examples", over_examples),
        over("seeds", over_seeds)
    )
}

/// Refuses a directory that has the tables of another kind of experiment, which would be lost.
fn refuse_another(output: &Path, command: &str) -> Result<(), Usage> {
    let results = std::fs::read(output.join("results.json")).unwrap_or_default();
    let results: Value = serde_json::from_slice(&results).unwrap_or_default();
    match results["experiment"].as_str() {
        Some(other) if other != command => Err(Usage(format!(
            "{} has the results of {other}, which would be lost; choose another --output",
            output.display()
        ))),
        _ => Ok(()),
    }
}

/// What the lists of a run file or a command line must be: names of known things, none of them twice.
pub(super) fn check_names<'a>(
    flag: &str,
    names: &[String],
    known: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Usage> {
    for (index, name) in names.iter().enumerate() {
        if !known.clone().any(|known| known == name) {
            return Err(unknown_task(flag, name, "a task of the run", known));
        }
        if names[..index].contains(name) {
            return Err(named_twice(flag, name));
        }
    }
    match names.is_empty() {
        true => Err(Usage(format!("{flag}: nothing is named, so there is nothing to do"))),
        false => Ok(()),
    }
}

/// The task's names of a run.
pub(super) fn task_names(config: &RunConfig) -> impl Iterator<Item = &str> + Clone {
    config.tasks.iter().map(|entry| entry.name.as_str())
}

/// The tasks that the command line or the run file names.
///
/// # Errors
/// Neither names any: the built-in sample tasks go together alone.
pub(super) fn named_tasks(run: &RunArgs, command: &str) -> anyhow::Result<RunConfig> {
    run.named()?.ok_or_else(|| {
        Usage(format!("{command}: say which tasks: a run file with [[task]], or --data GLUE_DIR")).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_whose_interval_holds_zero_may_be_chance() {
        let said = |difference, low, high| {
            let one = Difference {
                task: "rte".into(),
                set: "dev".into(),
                metric: MetricKind::Accuracy,
                difference,
                over_examples: Some(Interval { low, high }),
                over_seeds: None,
            };
            verdict("A", "B", &one, 3)
        };
        let sure =
            "rte accuracy: A beats B by 5.0 points in the mean over 3 seeds; over examples +1.0 to +9.0.";
        assert_eq!(said(0.05, 0.01, 0.09), sure);
        assert!(
            said(0.05, -0.01, 0.09).ends_with("-1.0 to +9.0; this may be chance, as an interval holds 0.")
        );
        assert!(said(-0.05, -0.09, 0.01).contains("does not beat B: it is 5.0 points lower"));
    }
}
