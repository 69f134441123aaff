//! `eval`: the dev sets of a trained model's tasks.

use std::fs::{self, OpenOptions};
use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use mtdnn_raw::data::{
    DataError, Dataset, MaskedOptions, MaskedText, Split, TaskKind, TaskSpec, cache, glue, reference,
};
use mtdnn_raw::train::baseline::baseline;
use mtdnn_raw::train::evaluate::{Evaluation, Predictor, evaluation_capacity, measure, measure_steps};
use mtdnn_raw::train::masked;
use mtdnn_raw::train::prepare;
use mtdnn_raw::train::run::TaskResult;
use mtdnn_raw::train::trainer::mean_of_main_metrics;
use serde_json::{Value, json};

use super::device::DeviceArgs;
use super::model::Loaded;
use super::train::results_table;
use super::{Exit, KNOWN_TASK, Usage, cache_directory, config_file, unknown_task};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw eval --model runs/three/best --data glue
  mtdnn-raw eval --model runs/three/best --data glue --tasks rte --json rte.json
  mtdnn-raw eval --model runs/mine/best --data runs/mine/config.toml      tasks of your own: a run file names their files";

/// Measure a trained model on the dev sets of its tasks.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct EvalArgs {
    /// A model directory that `train` has written (best or last in a run directory).
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,

    /// A folder with GLUE's tasks, or a run file that names the tasks' files.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// A task-definition file of MT-DNN's own code (YAML) that says what the tasks are; --data is then their folder.
    #[arg(long, value_name = "FILE.yml")]
    task_def: Option<PathBuf>,

    /// The tasks to measure; all of the model that have a dev set there if not said.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    tasks: Option<Vec<String>>,

    /// Write the figures to this file as JSON as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &EvalArgs) -> anyhow::Result<Exit> {
    if let Some(path) = &args.json {
        check_writable(path).with_context(|| format!("--json {}: cannot be written", path.display()))?;
    }
    let mut loaded = Loaded::with_tasks(&args.model, &args.device)?;
    let asked = args.tasks.as_ref().map(|names| loaded.find("--tasks", names)).transpose()?;
    let all: Vec<usize> = (0..loaded.model.tasks().len()).collect();
    let source = match &args.task_def {
        Some(definition) => Source::defined(definition, &args.data)?,
        None => Source::open(&args.data)?,
    };
    for &task in asked.iter().flatten() {
        source.check_name("--tasks", &loaded.model.tasks()[task].name)?;
    }
    let cache = cache_directory();
    let mut results = Vec::new();
    for &task in asked.as_ref().unwrap_or(&all) {
        let spec = loaded.model.tasks()[task].clone();
        let sets = match source.dev_sets(&spec, &loaded, cache.as_deref()) {
            // Of tasks that were not asked for by name, one may lie elsewhere.
            Err(error) if asked.is_none() && source.lacks(&spec) => {
                eprintln!("not measured: {error:#}");
                continue;
            }
            Ok(sets) if asked.is_none() && sets.is_empty() => {
                eprintln!("not measured: task {} has no dev set", spec.name);
                continue;
            }
            Ok(sets) if sets.is_empty() => bail!("task {}: there is no dev set", spec.name),
            sets => sets?,
        };
        let train = source.train_answers(&spec, &loaded, cache.as_deref());
        results.extend(measure_task(&mut loaded, task, &train, &sets)?);
    }
    if results.is_empty() {
        bail!("none of the model's tasks has a dev set in {}", args.data.display());
    }
    let evaluations: Vec<Evaluation> = results.iter().map(|result| result.evaluation.clone()).collect();
    let mean = mean_of_main_metrics(&evaluations);
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", to_json(&results, mean));
        fs::write(path, text).with_context(|| format!("--json {}: cannot be written", path.display()))?;
    }
    let mut out = stdout().lock();
    write!(out, "{}", results_table(&results))?;
    writeln!(out, "mean {mean:.4}")?;
    Ok(Exit::Done)
}

/// Whether a file can be written, asked before there is anything to write: what it holds stays, and where there is none
/// none is left. A pipe is not asked, because its reader takes the first end for the last.
fn check_writable(path: &Path) -> io::Result<()> {
    let known = fs::metadata(path).ok();
    if known.as_ref().is_none_or(|known| known.is_file() || known.is_dir()) {
        OpenOptions::new().append(true).create(true).open(path)?;
    }
    match known {
        Some(_) => Ok(()),
        // Not `path` itself, which may be a link.
        None => fs::remove_file(path.canonicalize()?),
    }
}

/// Where the tasks' files are.
pub(super) enum Source<'a> {
    Glue(&'a PathBuf),
    /// The tasks of a run file.
    RunFile(Vec<TaskSpec>),
    /// The built-in sample tasks: the run file of a run on them names none.
    Sample(Vec<TaskSpec>),
}

impl<'a> Source<'a> {
    /// The tasks of a task-definition file that have files in a folder.
    fn defined(definition: &Path, data: &Path) -> anyhow::Result<Self> {
        let known = reference::tasks(definition, data)?;
        let tasks = known.iter().map(|(name, _)| reference::task(definition, name, data));
        // A task without files is lacking, not wrong.
        let here = tasks.filter(|task| !matches!(task, Err(DataError::NoFile { .. })));
        Ok(Source::RunFile(here.collect::<Result<_, _>>()?))
    }

    /// A folder or a run file.
    pub(super) fn open(data: &'a PathBuf) -> anyhow::Result<Self> {
        if data.is_dir() {
            return Ok(Source::Glue(data));
        }
        if !data.is_file() {
            bail!("--data {}: no such folder, and no such run file", data.display());
        }
        let config = config_file::read(data)?;
        let specs = prepare::tasks(&config)?;
        Ok(if config.tasks.is_empty() { Source::Sample(specs) } else { Source::RunFile(specs) })
    }

    /// Refuses a name from the command line that no task has here.
    pub(super) fn check_name(&self, flag: &str, name: &str) -> Result<(), Usage> {
        let (what, specs) = match self {
            Source::Glue(_) if glue::find(name).is_some() => return Ok(()),
            Source::Glue(_) => return Err(unknown_task(flag, name, KNOWN_TASK, glue::names())),
            Source::RunFile(specs) => ("a task of the run file", specs),
            Source::Sample(specs) => ("a built-in sample task", specs),
        };
        let names = specs.iter().map(|spec| spec.name.as_str());
        match names.clone().any(|known| known == name) {
            true => Ok(()),
            false => Err(unknown_task(flag, name, what, names)),
        }
    }

    /// A task and its files; one of the built-in sample tasks has none.
    pub(super) fn task(&self, name: &str) -> anyhow::Result<TaskSpec> {
        match self {
            Source::Glue(folder) => Ok(glue::task(name, folder)?),
            Source::RunFile(specs) | Source::Sample(specs) => specs
                .iter()
                .find(|spec| spec.name == name)
                .cloned()
                .with_context(|| format!("task {name}: the run file does not name it")),
        }
    }

    /// Whether a task is not to be found here at all, rather than wrong.
    fn lacks(&self, task: &TaskSpec) -> bool {
        match self {
            Source::Glue(folder) => glue::task(known_name(task), folder).is_err(),
            Source::RunFile(specs) => specs.iter().all(|spec| spec.name != task.name),
            Source::Sample(_) => false,
        }
    }

    /// The dev sets of a task as token ids; labels are numbered as the model numbers them.
    fn dev_sets(
        &self,
        task: &TaskSpec,
        loaded: &Loaded,
        cache: Option<&Path>,
    ) -> anyhow::Result<Vec<(String, Dataset)>> {
        if let Source::Sample(_) = self {
            return sample_sets(task, loaded);
        }
        let name = if let Source::Glue(_) = self { known_name(task) } else { &task.name };
        let found = self.task(name)?;
        if found.kind != task.kind {
            bail!("task {}: it is {} in the model and {} in the data", task.name, task.kind, found.kind);
        }
        if let (Some(trained), Some(found)) = (&task.masked, &found.masked) {
            if found.dev_text.is_empty() {
                return Ok(Vec::new());
            }
            // The text is the run file's; how it is read is the model's.
            let text = MaskedText {
                task: &task.name,
                options: &MaskedOptions {
                    dev_text: found.dev_text.clone(),
                    layout: found.layout,
                    ..trained.clone()
                },
                tokenizer: &loaded.tokenizer,
                vocabulary: Path::new("vocab.txt"),
                max_length: loaded.max_length,
                cache,
            };
            let prepared = text.dev(&mut |_, _, _| true)?.expect("nothing stops it");
            prepared.notes.iter().for_each(|note| eprintln!("warning: {note}"));
            return Ok(vec![("dev".to_string(), prepared.dataset)]);
        }
        let spec = TaskSpec { files: found.files, soft: found.soft, ..task.clone() };
        let mut sets = Vec::new();
        for file in spec.files_of(Split::Dev) {
            let prepared = cache::prepare(file, &spec, &loaded.tokenizer, loaded.max_length, cache)?;
            if prepared.skipped.count > 0 {
                eprintln!("warning: task {}: {}", task.name, prepared.skipped);
            }
            prepared.notes.iter().for_each(|note| eprintln!("warning: {note}"));
            sets.push((file.name.clone(), prepared.dataset));
        }
        Ok(sets)
    }

    /// The train set of a task whose baseline goes by its labels; empty where there is none, or none that can be read.
    fn train_answers(&self, task: &TaskSpec, loaded: &Loaded, cache: Option<&Path>) -> Dataset {
        let mut train = Dataset::new();
        if !matches!(task.kind, TaskKind::Classification | TaskKind::Labelling) {
            return train;
        }
        if let Source::Sample(_) = self {
            let examples = prepare::sample_train(&task.name).unwrap_or_default();
            return cache::tokenize(&examples, &loaded.tokenizer, loaded.max_length);
        }
        let name = if let Source::Glue(_) = self { known_name(task) } else { &task.name };
        let Ok(found) = self.task(name) else { return train };
        let spec = TaskSpec { files: found.files, soft: None, ..task.clone() };
        for file in spec.files_of(Split::Train) {
            // Smaller files take less than a second.
            if file.path.metadata().is_ok_and(|file| file.len() > 4 << 20) {
                eprintln!("reading {} for the baseline", file.path.display());
            }
            match cache::prepare(file, &spec, &loaded.tokenizer, loaded.max_length, cache) {
                Ok(prepared) => train.append(&prepared.dataset),
                Err(error) => {
                    eprintln!(
                        "warning: task {}: the baseline goes by the dev set's labels, because {error}",
                        task.name
                    );
                    return Dataset::new();
                }
            }
        }
        train
    }
}

/// What GLUE's files of a task go by, which may be cast as another kind (QNLI as ranking).
fn known_name(task: &TaskSpec) -> &str {
    let known = glue::find(&task.name);
    known.and_then(|known| glue::cast(known, task.kind)).unwrap_or(&task.name)
}

fn sample_sets(task: &TaskSpec, loaded: &Loaded) -> anyhow::Result<Vec<(String, Dataset)>> {
    let examples = prepare::sample_dev(&task.name)
        .with_context(|| format!("task {}: it is none of the built-in sample tasks", task.name))?;
    Ok(vec![("dev".into(), cache::tokenize(&examples, &loaded.tokenizer, loaded.max_length))])
}

fn measure_task(
    loaded: &mut Loaded,
    task: usize,
    train: &Dataset,
    sets: &[(String, Dataset)],
) -> anyhow::Result<Vec<TaskResult>> {
    let recorded = loaded
        .model
        .evaluation(task, evaluation_capacity(sets.iter().map(|(_, set)| set), loaded.backend.line()));
    loaded.reserve(&recorded)?;
    let spec = &loaded.model.tasks()[task];
    let mut results = Vec::new();
    for (split, set) in sets {
        eprintln!("measuring {} {split}: {} examples, {} tokens", spec.name, set.len(), set.ids.len());
        let (metrics, steps) = if spec.masked.is_some() {
            let metrics = masked::measure(spec, set, &recorded, &mut *loaded.backend, &|| false)?;
            (metrics.expect("nothing stops it"), Vec::new())
        } else {
            let predictor = Predictor::new(&loaded.model, &[task], &recorded, &mut *loaded.backend);
            let logits = predictor.with_steps().logits(set, &|| false)?.expect("nothing stops it");
            (measure(spec, set, &logits[0]), measure_steps(spec, set, &logits[1..]))
        };
        results.push(TaskResult {
            task: spec.name.clone(),
            evaluation: Evaluation { task, split: split.clone(), examples: set.len(), metrics, steps },
            baseline: baseline(spec, train, set),
        });
    }
    Ok(results)
}

fn to_json(results: &[TaskResult], mean: f64) -> Value {
    let sets = results.iter().map(|TaskResult { task, evaluation, baseline }| {
        let named = |values: &mut dyn Iterator<Item = f64>| -> Value {
            let names = evaluation.metrics.iter().map(|(metric, _)| metric.name().to_string());
            names.zip(values.map(Value::from)).collect::<serde_json::Map<_, _>>().into()
        };
        let mut of_set = json!({
            "task": task,
            "set": evaluation.split,
            "examples": evaluation.examples,
            "metrics": named(&mut evaluation.metrics.iter().map(|&(_, value)| value)),
            "baseline": named(&mut baseline.iter().copied()),
        });
        if !evaluation.steps.is_empty() {
            of_set["accuracy_of_steps"] = evaluation.steps.clone().into();
        }
        of_set
    });
    json!({ "mean": mean, "sets": sets.collect::<Vec<_>>() })
}
