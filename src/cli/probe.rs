//! `probe`: what frozen sentence vectors are worth to a linear model.

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::bail;
use clap::Args;
use mtdnn_raw::data::{Dataset, Example, Label, Split, TaskKind, TaskSpec, Text, cache, glue, reader};
use mtdnn_raw::train::baseline::baseline;
use mtdnn_raw::train::probe::{LOGISTIC_GRID, Matrix, Probed, RIDGE_GRID, Set, fits, pair_features, probe};
use mtdnn_raw::train::signals::Stop;
use serde_json::{Map, Value, json};

use super::console::Counter;
use super::device::DeviceArgs;
use super::model::Loaded;
use super::table::Table;
use super::vectors::{self, Pool};
use super::{Exit, KNOWN_TASK, Usage, format, named_twice, unknown_task};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw probe --model all-MiniLM-L6-v2 --data glue,extra
  mtdnn-raw probe --model runs/glue/best --data glue --tasks mrpc,stsb --pool cls --folds 10 --json

The encoder stays as it is. Each sentence is a vector, a pair the features [|u - v|; u * v]. Classes are answered by a
logistic regression, scores by a ridge regression; how strong its penalty is is chosen by cross-validation on the train
set, and the dev set is measured.";

/// Measure frozen sentence vectors: linear models on them, as SentEval does.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ProbeArgs {
    /// A model directory in Hugging Face layout, or one that `train` has written.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,

    /// Folders with GLUE's tasks and SICK; a task is taken from the first that has it.
    #[arg(long, required = true, value_delimiter = ',', value_name = "DIR,...")]
    data: Vec<PathBuf>,

    /// Known tasks of one sentence or pairs.
    #[arg(long, value_delimiter = ',', default_value = "mrpc,sick-r,sick-e,stsb", value_name = "NAME,...")]
    tasks: Vec<String>,

    /// How a sentence's tokens become its vector.
    #[arg(long, value_enum, default_value = "mean")]
    pool: Pool,

    /// The key of the draw of the folds.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,

    /// Parts of the train set that cross-validation holds out in turn.
    #[arg(long, default_value_t = 5, value_name = "N")]
    folds: usize,

    /// Print a JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// A task with its texts.
struct Task {
    spec: TaskSpec,
    /// The train set, then the sets to measure, by name.
    sets: Vec<(String, Vec<Example>)>,
}

/// What GenSen's frozen vectors reached (Subramanian et al. 2018, arXiv 1804.00079) on the test sets, in the order of the
/// task's metrics.
fn gensen(task: &str) -> &'static [f64] {
    match task {
        "mrpc" => &[0.786, 0.844],
        "sick-r" => &[0.888],
        "sick-e" => &[0.878],
        "stsb" => &[0.789, 0.786],
        _ => &[],
    }
}

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<Exit> {
    if args.folds < 2 {
        return Err(Usage(format!("--folds {}: cross-validation takes 2 or more", args.folds)).into());
    }
    let mut names = Vec::new();
    for name in args.tasks.iter().map(|name| name.trim()) {
        let known =
            glue::find(name).ok_or_else(|| unknown_task("--tasks", name, KNOWN_TASK, glue::names()))?;
        if names.contains(&known) {
            return Err(named_twice("--tasks", name).into());
        }
        names.push(known);
    }
    let tasks = names.into_iter().map(|name| read(args, name)).collect::<anyhow::Result<Vec<Task>>>()?;
    let mut loaded = Loaded::encoder(&args.model, &args.device)?;
    args.pool.check(&loaded)?;
    let stop = Stop::on_signals()?;
    let vectors = Vectors::of(&mut loaded, &tasks, args.pool, &stop)?;
    let mut results = Vec::new();
    for task in &tasks {
        if stop.requested() {
            bail!("stopped by a signal");
        }
        let [train, sets @ ..] = task.sets.as_slice() else { unreachable!("a task has a train set") };
        eprintln!(
            "{}: {} to fit, {} features, {} folds",
            task.spec.name,
            train.1.len(),
            vectors.columns(&train.1),
            args.folds
        );
        let train = vectors.set(&train.1);
        let measured: Vec<Set> = sets.iter().map(|(_, examples)| vectors.set(examples)).collect();
        let counter = Mutex::new(Counter::new(&task.spec.name, "fits", fits(args.folds)));
        let done = || counter.lock().expect("no other thread has panicked").next();
        let probed = probe(&task.spec, &train, &measured, args.folds, args.seed, &done);
        drop(counter);
        say_doubts(&task.spec, &probed);
        let known = train.answers();
        let baselines: Vec<Vec<f64>> =
            measured.iter().map(|set| baseline(&task.spec, &known, &set.answers())).collect();
        results.push((task, probed, baselines));
    }
    match args.json {
        true => print_json(args, &results),
        false => print_table(&results),
    }
}

/// A task's train and dev examples from the first folder that has it.
fn read(args: &ProbeArgs, name: &str) -> anyhow::Result<Task> {
    let found: Vec<Result<TaskSpec, _>> = args.data.iter().map(|folder| glue::task(name, folder)).collect();
    let mut specs = Vec::new();
    let mut errors = Vec::new();
    for result in found {
        match result {
            Ok(spec) => specs.push(spec),
            Err(error) => errors.push(error),
        }
    }
    let Some(spec) = specs.into_iter().next() else { return Err(errors.remove(0).into()) };
    if !matches!(spec.kind, TaskKind::Classification | TaskKind::Regression) {
        return Err(Usage(format!("--tasks {name}: it is {}, which is not probed", spec.kind)).into());
    }
    let mut sets = Vec::new();
    for split in [Split::Train, Split::Dev] {
        for file in spec.files_of(split) {
            let (examples, skipped) = reader::read(file, &spec)?;
            if skipped.count > 0 {
                eprintln!("warning: task {name}: {skipped}");
            }
            sets.push((file.name.clone(), examples));
        }
        if sets.is_empty() {
            bail!("task {name}: there is no train set to fit to");
        }
    }
    if sets.len() < 2 {
        bail!("task {name}: there is no dev set to measure");
    }
    let train = sets[0].1.len();
    if train < args.folds {
        let folds = args.folds;
        return Err(Usage(format!("--folds {folds}: task {name} has {train} examples to fit to")).into());
    }
    Ok(Task { spec, sets })
}

/// The vector of every different sentence of all tasks.
struct Vectors {
    places: HashMap<String, usize>,
    values: Vec<f32>,
    hidden: usize,
}

impl Vectors {
    fn of(loaded: &mut Loaded, tasks: &[Task], pool: Pool, stop: &Stop) -> anyhow::Result<Self> {
        let mut places = HashMap::new();
        let mut singles = Vec::new();
        let mut asked = 0;
        for example in tasks.iter().flat_map(|task| &task.sets).flat_map(|(_, examples)| examples) {
            for text in texts(example) {
                asked += 1;
                if !places.contains_key(text) {
                    places.insert(text.to_string(), singles.len());
                    singles.push(Example { text: Text::Single(text.to_string()), label: Label::None });
                }
            }
        }
        let dataset: Dataset = cache::tokenize(&singles, &loaded.tokenizer, loaded.max_length);
        let tokens = format::count(dataset.ids.len() as f64);
        eprintln!("encoding {} different sentences of {asked}, {tokens} tokens", singles.len());
        if dataset.truncated > 0 {
            let (truncated, most) = (dataset.truncated, loaded.max_length);
            eprintln!("warning: {truncated} sentences were cut to {most} tokens, the model's length");
        }
        let values = vectors::pooled(loaded, &dataset, pool, stop)?;
        Ok(Self { places, values, hidden: loaded.model.config().hidden_size })
    }

    fn vector(&self, text: &str) -> &[f32] {
        &self.values[self.places[text] * self.hidden..][..self.hidden]
    }

    /// How many features an example of a set has.
    fn columns(&self, examples: &[Example]) -> usize {
        self.hidden * texts(&examples[0]).len()
    }

    /// The features and answers of examples.
    fn set(&self, examples: &[Example]) -> Set {
        let mut features = Vec::with_capacity(examples.len() * self.columns(examples));
        for example in examples {
            match texts(example).as_slice() {
                [a, b] => features.extend(pair_features(self.vector(a), self.vector(b))),
                texts => features.extend(self.vector(texts[0]).iter().map(|&value| f64::from(value))),
            }
        }
        let labels = examples.iter().map(|example| example.label).collect();
        Set { features: Matrix::new(features, self.columns(examples)), labels }
    }
}

fn texts(example: &Example) -> Vec<&str> {
    match &example.text {
        Text::Single(text) => vec![text],
        Text::Pair(a, b) => vec![a, b],
        _ => unreachable!("only texts and pairs are probed"),
    }
}

fn say_doubts(spec: &TaskSpec, probed: &Probed) {
    let grid = grid(spec);
    if probed.strength == grid[0] || probed.strength == grid[grid.len() - 1] {
        let (name, strength, least, most) = (&spec.name, probed.strength, grid[0], grid[grid.len() - 1]);
        eprintln!(
            "warning: {name}: the best penalty, {strength}, is at an end of those tried, {least} to {most}"
        );
    }
    if probed.unfinished > 0 {
        eprintln!("warning: {}: {} fits had not converged at their last step", spec.name, probed.unfinished);
    }
}

fn grid(spec: &TaskSpec) -> [f64; 8] {
    if spec.kind == TaskKind::Regression { RIDGE_GRID } else { LOGISTIC_GRID }
}

type Results<'a> = [(&'a Task, Probed, Vec<Vec<f64>>)];

/// Said with every table that has GenSen's figures.
const NOTE: &str = "GenSen: published, on the test sets (arXiv 1804.00079); not comparable with other sets";

fn print_table(results: &Results) -> anyhow::Result<Exit> {
    let mut table =
        Table::new(&["task", "set", "examples", "metric", "value", "baseline", "GenSen", "penalty"]);
    let mut published = false;
    for (task, probed, baselines) in results {
        let penalty = match task.spec.kind {
            TaskKind::Regression => format!("{:?}", probed.strength),
            _ => format!("C = {:?}", probed.strength),
        };
        for (((set, examples), metrics), baseline) in
            task.sets[1..].iter().zip(&probed.metrics).zip(baselines)
        {
            for (place, ((metric, value), baseline)) in metrics.iter().zip(baseline).enumerate() {
                let first = |text: String| if place == 0 { text } else { String::new() };
                let known = gensen(&task.spec.name).get(place);
                published |= known.is_some();
                table.row(vec![
                    first(task.spec.name.clone()),
                    first(set.clone()),
                    first(examples.len().to_string()),
                    metric.to_string(),
                    format!("{value:.4}"),
                    format!("{baseline:.4}"),
                    known.map_or("-".into(), |value| format!("{value:.3}")),
                    first(penalty.clone()),
                ]);
            }
        }
    }
    let mut out = stdout().lock();
    write!(out, "{table}")?;
    if published {
        writeln!(out, "{NOTE}")?;
    }
    Ok(Exit::Done)
}

fn print_json(args: &ProbeArgs, results: &Results) -> anyhow::Result<Exit> {
    let tasks = results.iter().map(|(task, probed, baselines)| {
        let sets = task.sets[1..].iter().zip(&probed.metrics).zip(baselines).map(|(((set, examples), metrics), baseline)| {
            let names = || metrics.iter().map(|(metric, _)| metric.name().to_string());
            let values: Map<String, Value> = names().zip(metrics.iter().map(|&(_, value)| value.into())).collect();
            let baseline: Map<String, Value> = names().zip(baseline.iter().map(|&value| value.into())).collect();
            let published: Map<String, Value> =
                names().zip(gensen(&task.spec.name).iter().map(|&value| value.into())).collect();
            json!({"set": set, "examples": examples.len(), "metrics": values, "baseline": baseline, "gensen": published})
        });
        let grid: Vec<Value> = grid(&task.spec)
            .iter()
            .zip(&probed.validation)
            .map(|(strength, value)| json!({"penalty": strength, "validation": value}))
            .collect();
        json!({
            "task": task.spec.name,
            "train": task.sets[0].1.len(),
            "penalty": probed.strength,
            "grid": grid,
            "sets": sets.collect::<Vec<_>>(),
        })
    });
    let tasks: Vec<Value> = tasks.collect();
    let (pool, folds, seed) = (args.pool.name(), args.folds, args.seed);
    let object = json!({"pool": pool, "folds": folds, "seed": seed, "tasks": tasks, "note": NOTE});
    writeln!(stdout().lock(), "{object:#}")?;
    Ok(Exit::Done)
}
