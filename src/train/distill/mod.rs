//! Knowledge distillation as one experiment (Liu et al. 2019, arXiv 1904.09482): teachers, the average of their answers
//! as soft labels, and students that learn from these beside twins that do not.
//!
//! The directory holds `teachers/N`, `soft/TASK.jsonl`, `students/SEED`, `twins/SEED`, each run of them an ordinary one
//! that is not trained again once it is finished, and the figures in `results.json` and `results.md`.

mod config;
mod part;
mod results;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;

use super::config::{ConfigValueError, EvalEvery, RunConfig};
use super::evaluate::{Evaluation, measure};
use super::monitor::{Event, Monitor};
use super::settings::replace_file;
use super::trainer::mean_of_main_metrics;
use super::{prepare, teachers};
use crate::backend::Backend;
use crate::data::{Split, TaskKind, TaskSpec, reader, soft};
pub use config::DistillConfig;
use part::Finished;
pub use results::{Results, Row, Spread};

/// Where the figures are in the experiment's directory.
pub const RESULTS: &str = "results.md";

/// What the runs of an experiment share.
struct Experiment<'a> {
    base: &'a RunConfig,
    distill: &'a DistillConfig,
    /// The tasks of the run file; labels are known.
    tasks: Vec<TaskSpec>,
    /// Which of them have teachers.
    taught: Vec<bool>,
    cache: Option<&'a Path>,
    now: SystemTime,
}

/// Trains teachers, students and twins, or goes on with what is there; `None` if the monitor stopped it.
///
/// # Errors
/// Settings that fit no experiment, and whatever a run may fail with.
pub fn run(
    config: &RunConfig,
    cache: Option<&Path>,
    now: SystemTime,
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<Results>> {
    let distill = config.distill.clone().unwrap_or_default();
    let (tasks, taught) = tasks(config, &distill)?;
    let experiment = Experiment { base: config, distill: &distill, tasks, taught, cache, now };
    let Some(teachers) = experiment.teachers(backend, monitor)? else { return Ok(None) };
    let Some(ensemble) = experiment.write_soft_labels(&teachers, backend, monitor)? else { return Ok(None) };
    let (mut students, mut twins) = (Vec::new(), Vec::new());
    for seed in (0..u64::from(distill.seeds)).map(|number| config.seed + number) {
        for (soft, name, runs) in [(false, "twin", &mut twins), (true, "student", &mut students)] {
            let own = experiment.learner(soft, seed)?;
            let title = format!("{name} of seed {seed}, {} seeds in all", distill.seeds);
            let Some(finished) = part::train(&title, &own, cache, now, backend, monitor)? else {
                return Ok(None);
            };
            runs.push(finished.evaluations);
        }
    }
    let teachers: Vec<Vec<Evaluation>> =
        teachers.into_iter().map(|(_, finished)| finished.evaluations).collect();
    let results =
        Results::new(&experiment.tasks, &experiment.taught, &teachers, &ensemble, &twins, &students);
    let json = format!("{}\n", serde_json::to_string_pretty(&results)?);
    replace_file(&config.output.join("results.json"), &json)?;
    replace_file(&config.output.join(RESULTS), &results.to_string())?;
    Ok(Some(results))
}

/// Checks what can be checked before anything is read.
///
/// # Errors
/// A number out of its range, a task that is not there, a setting that leaves nothing to compare.
pub fn check(config: &RunConfig) -> Result<(), ConfigValueError> {
    let distill = config.distill.clone().unwrap_or_default();
    distill.validate()?;
    config.train.validate()?;
    if config.train.eval == EvalEvery::Never {
        let problem = "teachers and students are compared by dev figures; leave it at epoch";
        return Err(ConfigValueError::new("train", "eval", problem.into()));
    }
    if config.tasks.is_empty() {
        let problem =
            "the built-in sample tasks have no files that soft labels could be made for; name tasks";
        return Err(ConfigValueError::new("distill", "tasks", problem.into()));
    }
    if let Some(entry) = config.tasks.iter().find(|task| task.share.is_some() || task.examples.is_some()) {
        let problem = format!(
            "{} trains on a part that each seed draws anew, so that teachers would see what students do not; leave \
             share and examples out, and give it a smaller train file",
            entry.name
        );
        return Err(ConfigValueError::new("distill", "tasks", problem));
    }
    Ok(())
}

/// The tasks of the run file, and which of them have teachers.
fn tasks(config: &RunConfig, distill: &DistillConfig) -> anyhow::Result<(Vec<TaskSpec>, Vec<bool>)> {
    check(config)?;
    let mut tasks = prepare::tasks(config)?;
    for name in &distill.tasks {
        if tasks.iter().all(|task| task.name != *name) {
            let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
            let problem = format!("{name:?} is no task of the run file; they are {}", names.join(", "));
            return Err(ConfigValueError::new("distill", "tasks", problem).into());
        }
    }
    for task in &mut tasks {
        reader::learn_labels(task)?;
    }
    let named = |task: &TaskSpec| distill.tasks.contains(&task.name);
    // A task that shares a head is measured alone, and labels of words and spans are not distilled.
    let able = |task: &TaskSpec| !task.kind.reads_tokens() && task.files_of(Split::Train).next().is_some();
    if let Some(task) = tasks.iter().find(|task| named(task) && !able(task)) {
        let problem =
            format!("{} has no train file, or is of a kind without soft labels: {}", task.name, task.kind);
        return Err(ConfigValueError::new("distill", "tasks", problem).into());
    }
    let taught: Vec<bool> =
        tasks.iter().map(|task| able(task) && (distill.tasks.is_empty() || named(task))).collect();
    for (task, _) in tasks.iter().zip(&taught).filter(|(_, taught)| **taught) {
        if task.soft.is_some() {
            let problem =
                format!("{} has soft labels of its own; name the tasks that teachers are for", task.name);
            return Err(ConfigValueError::new("distill", "tasks", problem).into());
        }
    }
    Ok((tasks, taught))
}

impl Experiment<'_> {
    /// The teachers that teach, each with its directory.
    fn teachers(
        &self,
        backend: &mut dyn Backend,
        monitor: &mut dyn Monitor,
    ) -> anyhow::Result<Option<Vec<(PathBuf, Finished)>>> {
        let DistillConfig { teachers: count, top, dropouts, seeds, .. } = self.distill;
        let mut teachers = Vec::new();
        for number in 0..*count {
            let mut own = self.part("teachers", &(number + 1).to_string());
            // No twin has a teacher's seed.
            own.seed = self.base.seed + u64::from(seeds + number);
            if !dropouts.is_empty() {
                own.train.dropout = Some(dropouts[number as usize % dropouts.len()]);
            }
            let title = format!("teacher {} of {count}", number + 1);
            let Some(finished) = part::train(&title, &own, self.cache, self.now, backend, monitor)? else {
                return Ok(None);
            };
            teachers.push((own.output, finished));
        }
        let figure = |finished: &Finished| {
            let taught = finished.evaluations.iter().filter(|evaluation| self.taught[evaluation.task]);
            mean_of_main_metrics(&taught.cloned().collect::<Vec<_>>())
        };
        // A stable sort: of equals the first.
        teachers.sort_by(|(_, a), (_, b)| figure(b).total_cmp(&figure(a)));
        teachers.truncate(if *top == 0 { teachers.len() } else { *top as usize });
        for (directory, finished) in &teachers {
            let note = format!("{} teaches: mean {:.4}", directory.display(), figure(finished));
            monitor.tell(Event::Note(&note));
        }
        Ok(Some(teachers))
    }

    /// Writes each taught task's soft labels, and measures the teachers' average on its dev sets.
    fn write_soft_labels(
        &self,
        teachers: &[(PathBuf, Finished)],
        backend: &mut dyn Backend,
        monitor: &mut dyn Monitor,
    ) -> anyhow::Result<Option<Vec<Evaluation>>> {
        let models: Vec<PathBuf> = teachers.iter().map(|(run, finished)| finished.model(run)).collect();
        let mut evaluations = Vec::new();
        for (number, task) in self.tasks.iter().enumerate().filter(|(number, _)| self.taught[*number]) {
            let examples = prepare::train_examples(task)?;
            let Some(answers) = teachers::answer(&models, &task.name, &examples, backend, monitor)? else {
                return Ok(None);
            };
            let path = self.soft_labels(task)?;
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
            let names = models.iter().map(|model| model.display().to_string()).collect();
            let header = soft::file::Header::new(&answers.task, names, &examples);
            soft::file::write(&path, &header, &answers.task, &examples, &answers.targets)?;
            for file in task.files_of(Split::Dev) {
                let (examples, _) = reader::read(file, task)?;
                let Some(answers) = teachers::answer(&models, &task.name, &examples, backend, monitor)?
                else {
                    return Ok(None);
                };
                evaluations.push(Evaluation {
                    task: number,
                    split: file.name.clone(),
                    examples: examples.len(),
                    metrics: measure(&answers.task, &answers.dataset, &answers.targets),
                    steps: Vec::new(),
                });
            }
        }
        Ok(Some(evaluations))
    }

    /// A student's run, or its twin's.
    fn learner(&self, soft: bool, seed: u64) -> anyhow::Result<RunConfig> {
        let mut own = self.part(if soft { "students" } else { "twins" }, &seed.to_string());
        own.seed = seed;
        let entries = own.tasks.iter_mut().zip(&self.tasks).zip(&self.taught);
        for ((entry, task), _) in entries.filter(|(_, taught)| soft && **taught) {
            entry.soft_labels = Some(self.soft_labels(task)?);
            entry.hard_weight = Some(self.distill.hard_weight);
            entry.temperature = (task.kind != TaskKind::Regression).then_some(self.distill.temperature);
        }
        Ok(own)
    }

    fn soft_labels(&self, task: &TaskSpec) -> anyhow::Result<PathBuf> {
        let path = self.base.output.join("soft").join(format!("{}.jsonl", task.name));
        Ok(std::path::absolute(path)?)
    }

    fn part(&self, group: &str, name: &str) -> RunConfig {
        RunConfig { output: self.base.output.join(group).join(name), distill: None, ..self.base.clone() }
    }
}
