//! Domain adaptation: BERT and MT-DNN on a part of the examples of a task that neither has seen (Liu et al. 2019, section
//! 5.5, table 4 and figure 2).

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::{RunResult, SubRun, model_of, plain, start_from, sub_run};
use crate::data::TaskEntry;
use crate::train::config::RunConfig;

/// The two encoders that are compared.
pub const ENCODERS: [&str; 2] = ["BERT", "MT-DNN"];

/// The runs of the experiment.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which they must be done.
    pub runs: Vec<SubRun>,
    /// A cell for each target, encoder and share.
    pub cells: Vec<Cell>,
}

/// One cell of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The new task.
    pub target: String,
    /// Which of the [`ENCODERS`].
    pub encoder: usize,
    /// The share of the training examples.
    pub share: f64,
    /// The run of each seed, a number in the plan.
    pub runs: Vec<usize>,
}

/// Plans the experiment; all runs of one seed come before those of the next.
///
/// # Errors
/// As [`check`](super::check); without a pretrained encoder; shares or targets that cannot be meant.
pub fn plan(config: &RunConfig, output: &Path, seeds: &[u64]) -> anyhow::Result<Plan> {
    super::check(config, "adapt")?;
    let adapt = &config.adapt;
    let Some(bert) = config.model.init.clone() else {
        bail!("adapt compares a pretrained encoder with MT-DNN's: say which with --init DIR or model.init");
    };
    let is_target = |entry: &&TaskEntry| adapt.targets.contains(&entry.name);
    let mut runs = Vec::new();
    let mt_dnn: PathBuf = match &adapt.mt_dnn {
        Some(model) => model.clone(),
        None => {
            let tasks: Vec<TaskEntry> =
                config.tasks.iter().filter(|entry| !is_target(entry)).cloned().collect();
            if tasks.is_empty() {
                bail!(
                    "adapt: all tasks are targets, so none is left to train MT-DNN on; add others, or give its model with \
                     --mt-dnn DIR"
                );
            }
            let mut run =
                sub_run(config, output, "mt-dnn".into(), "all other tasks, MT-DNN".into(), seeds[0], tasks);
            run.needed = true;
            run.config.model.new_heads = true;
            runs.push(run);
            model_of(&output.join("mt-dnn"))
        }
    };
    let mut cells = Vec::new();
    for target in &adapt.targets {
        for encoder in 0..ENCODERS.len() {
            for &share in &adapt.shares {
                cells.push(Cell { target: target.clone(), encoder, share, runs: Vec::new() });
            }
        }
    }
    for (number, &seed) in seeds.iter().enumerate() {
        for cell in &mut cells {
            if cell.share == 1.0 && adapt.whole_seeds.is_some_and(|most| number >= most) {
                continue;
            }
            let entry = config.tasks.iter().find(|entry| entry.name == cell.target);
            let Some(entry) = entry else { bail!("adapt: {} is not one of the tasks", cell.target) };
            let entry = part(plain(entry), cell.share);
            let (share, encoder) = (percent(cell.share), ENCODERS[cell.encoder]);
            let name = format!(
                "{}-{}-{}-seed{seed}",
                cell.target,
                share.replace(" %", "pc"),
                encoder.to_lowercase()
            );
            let kind = format!("{}, {encoder}, {share}", cell.target);
            let mut run = sub_run(config, output, name, kind, seed, vec![entry]);
            start_from(&mut run, if cell.encoder == 0 { &bert } else { &mt_dnn }, true)?;
            if cell.share <= adapt.small {
                run.config.train.batch_size = adapt.small_batch_size;
                run.config.tasks[0].batch_size = None;
                run.config.train.epochs = adapt.small_epochs.unwrap_or(run.config.train.epochs);
            }
            cell.runs.push(runs.len());
            runs.push(run);
        }
    }
    Ok(Plan { runs, cells })
}

impl Cell {
    /// The cell's results, one a seed.
    pub fn results(&self, results: &[RunResult]) -> Vec<RunResult> {
        self.runs.iter().map(|&run| results[run].clone()).collect()
    }

    /// The value of the target's main metric at each seed: the mean over its dev sets.
    pub fn values(&self, results: &[RunResult]) -> Vec<f64> {
        let main = |run: &usize| {
            let values: Vec<f64> = results[*run].sets.iter().map(|set| set.metrics[0].1).collect();
            super::statistics::mean(&values)
        };
        self.runs.iter().map(main).collect()
    }

    /// How many examples were trained on.
    pub fn examples(&self, results: &[RunResult]) -> usize {
        self.runs.first().and_then(|&run| results[run].examples.first()).map_or(0, |(_, examples)| *examples)
    }
}

/// A task to be trained on a share of its examples, or of those that the run file leaves it.
fn part(entry: TaskEntry, share: f64) -> TaskEntry {
    match entry.examples {
        Some(all) => TaskEntry { examples: Some(((all as f64 * share) as usize).max(1)), ..entry },
        None => TaskEntry { share: Some(share * entry.share.unwrap_or(1.0)), ..entry },
    }
}

/// A share as it is read: `0.1 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", (share * 1e8).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_what_the_run_file_leaves() {
        let entry = |examples, share| TaskEntry { examples, share, ..TaskEntry::default() };
        assert_eq!(part(entry(None, None), 0.1), entry(None, Some(0.1)));
        assert_eq!(part(entry(None, Some(0.5)), 0.25), entry(None, Some(0.125)));
        assert_eq!(part(entry(Some(250), None), 0.1), entry(Some(25), None));
        assert_eq!(part(entry(Some(250), None), 0.001), entry(Some(1), None));
        assert_eq!([0.001, 0.1, 0.235, 1.0].map(percent), ["0.1 %", "10 %", "23.5 %", "100 %"]);
    }
}
