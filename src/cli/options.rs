//! The flags of a run, and how they and a run file make one [`RunConfig`]; those of `train` alone.

mod mix_flags;

use std::path::{Path, PathBuf};

use clap::Args;
use mtdnn_raw::backend::Rule;
use mtdnn_raw::data::{HeadKind, TaskEntry, glue};
use mtdnn_raw::train::config::{EvalEvery, OtherHeads, RunConfig};
use mtdnn_raw::train::schedule::ScheduleKind;
use serde::de::DeserializeOwned;
use serde::de::value::{Error as NameError, StrDeserializer};

use super::device::DeviceArgs;
use super::{KNOWN_TASK, Usage, config_file, named_twice, reference, unknown_task};
use mix_flags::MixFlags;

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw train
      the built-in sample tasks, a small encoder from scratch, into a fresh runs/sample
  mtdnn-raw train --data glue --tasks rte,mrpc,stsb --init bert-base-uncased --output runs/three
      three GLUE tasks on a pretrained encoder (a directory in Hugging Face layout)
  mtdnn-raw train glue.toml --learning-rate 2e-5
      as a run file says, with one value changed
  mtdnn-raw train --output runs/three --resume
      goes on with a run that was stopped or killed, from its last checkpoint

A run file holds every setting, and any task of your own:
  output = \"runs/mine\"
  [model]
  init = \"bert-base-uncased\"
  [train]
  epochs = 3
  [[task]]
  name = \"tickets\"
  train = \"tickets-train.tsv\"
  dev = \"tickets-dev.tsv\"
  text_a = \"question\"
  label = \"team\"";

/// Train a model on many tasks at once; with no argument, on the built-in sample tasks.
#[derive(Args, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    run: RunArgs,

    /// Train nothing: run one step of each task on the device and on the CPU (on the CPU: with its plainest instructions),
    /// compare them operation by operation, and stop at the first difference.
    #[arg(long, conflicts_with = "resume")]
    check: bool,

    /// Go on with the run in the output directory from its last checkpoint.
    #[arg(long)]
    resume: bool,
}

/// The flags of every command that trains on tasks.
#[derive(Args, Debug, Default)]
pub(super) struct RunArgs {
    /// A run file (TOML); flags override what it says.
    #[arg(value_name = "RUN.toml")]
    file: Option<PathBuf>,

    /// A folder with GLUE's tasks in their official layout, in place of the run file's tasks.
    #[arg(long, value_name = "GLUE_DIR")]
    data: Option<PathBuf>,

    /// A task-definition file of MT-DNN's own code (YAML) that says what the tasks are; --data is then the folder of its
    /// canonical TSV files or of its token ids.
    #[arg(long, value_name = "FILE.yml", requires = "data")]
    task_def: Option<PathBuf>,

    /// The tasks to train on: of --data (all that are there if not said), else of the run file.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    tasks: Option<Vec<String>>,

    /// Tasks whose head is to be a stochastic answer network, for the classification of pairs: head = "san" in a run file.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    san: Option<Vec<String>>,

    /// A pretrained model to start from: a directory with config.json, model.safetensors and vocab.txt.
    #[arg(long, value_name = "DIR")]
    pub(super) init: Option<PathBuf>,

    /// Draw every task's head anew, even where --init brings one of the same task.
    #[arg(long)]
    new_heads: bool,

    /// The directory of what comes of it: of a run configuration, log, checkpoints, the last and the best model, by
    /// default runs/mtdnn; of an experiment its runs and tables.
    #[arg(long, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,

    /// The key of every random draw. [default: 2018]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    #[command(flatten)]
    pub(super) train: TrainFlags,
}

/// A flag for each key of the run file's `[train]`.
#[derive(Args, Debug, Default)]
pub(super) struct TrainFlags {
    /// Passes over all tasks' examples. [default: 5]
    #[arg(long, value_name = "N")]
    pub(super) epochs: Option<u32>,

    /// Stop after this many updates; 0 for no such limit. [default: 0]
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,

    /// Examples in a batch at most; 0 for no limit but that of --batch-tokens. [default: 32]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,

    /// Tokens in a batch at most, unless one example has more; 0 for no such limit. [default: 0]
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,

    /// Sort so many of a task's shuffled examples by length, so that a batch is of like length; 0 to sort none.
    /// [default: 0]
    #[arg(long, value_name = "N")]
    bucket: Option<usize>,

    /// Batches whose gradients are summed before an update. [default: 1]
    #[arg(long, value_name = "N")]
    accumulation: Option<u32>,

    /// The peak of the learning rate. [default: 5e-5]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(super) learning_rate: Option<f64>,

    /// The update rule: adamax, adamax-mtdnn (MT-DNN's own), adamax-w, adam-w, adam-bert (BERT's own), lamb or sgd.
    /// [default: adamax]
    #[arg(long, value_name = "NAME", value_parser = named::<Rule>)]
    optimizer: Option<Rule>,

    /// Decay of weight matrices. [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f32>,

    /// The course of the learning rate: linear, cosine, constant or warmup_linear. [default: linear]
    #[arg(long, value_name = "NAME", value_parser = named::<ScheduleKind>)]
    schedule: Option<ScheduleKind>,

    /// The share of all updates in which the learning rate rises. [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    warmup: Option<f64>,

    /// The gradient norm above which gradients are scaled down; 0 for no limit. [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip: Option<f32>,

    /// The longest sequence in tokens; longer text is cut. [default: 512]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,

    /// The encoder's dropout, in place of what its configuration says.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    dropout: Option<f64>,

    /// What a step does to the heads of other tasks: skip, or zero-gradient as the reference does. [default: skip]
    #[arg(long, value_name = "NAME", value_parser = named::<OtherHeads>)]
    other_heads: Option<OtherHeads>,

    /// When the dev sets are measured: epoch, never, end (once, and no checkpoint after each epoch either), or every so
    /// many steps. [default: epoch]
    #[arg(long, value_name = "epoch|never|end|STEPS")]
    eval: Option<EvalEvery>,

    /// Stop after this many evaluations without a better mean; 0 to train to the end. [default: 0]
    #[arg(long, value_name = "N")]
    patience: Option<u32>,

    /// Updates between two checkpoints; 0 for one after each epoch alone. [default: 0]
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<u64>,

    #[command(flatten)]
    mix: MixFlags,
}

/// The name of the run directory's copy of the settings.
pub(super) const SAVED: &str = "config.toml";

/// What a command line asks for.
pub(super) struct Request {
    pub(super) config: RunConfig,
    pub(super) resume: bool,
    pub(super) check: bool,
    pub(super) device: DeviceArgs,
}

impl TrainArgs {
    /// The settings that the run file (or what a run to be resumed has saved) and the flags make.
    pub(super) fn request(&self) -> anyhow::Result<Request> {
        self.run.device.check()?;
        let config = self.run.complete(self.base()?)?;
        let Self { resume, check, .. } = *self;
        Ok(Request { config, resume, check, device: self.run.device.clone() })
    }

    /// What the flags override.
    fn base(&self) -> anyhow::Result<RunConfig> {
        let run = &self.run;
        if self.resume && run.file.is_none() {
            let usage = "--resume: say which run to go on with: --output DIR, or its run file";
            let output = run.output.as_ref().ok_or_else(|| Usage(usage.into()))?;
            let saved = output.join(SAVED);
            if saved.is_file() {
                return config_file::read(&saved);
            }
            if run.data.is_none() {
                return Err(Usage(format!(
                    "--resume: {} holds no run (no {SAVED}); check --output, or start without --resume",
                    output.display()
                ))
                .into());
            }
        }
        if let Some(config) = run.named()? {
            return Ok(config);
        }
        let mut config = super::train::sample_config();
        config.output = fresh(Path::new("runs/sample"));
        Ok(config)
    }
}

impl RunArgs {
    /// What the run file says, or nothing but that the tasks are those of `--data`; `None` for the built-in sample tasks.
    pub(super) fn named(&self) -> anyhow::Result<Option<RunConfig>> {
        if let Some(file) = &self.file {
            let config = config_file::read(file)?;
            if config.tasks.is_empty() && self.data.is_none() {
                return Err(Usage(format!(
                    "{}: no [[task]] in it, so there is nothing to train; name tasks, or give --data GLUE_DIR \
                     (without a run file, mtdnn-raw train takes the built-in sample tasks)",
                    file.display()
                ))
                .into());
            }
            return Ok(Some(config));
        }
        if self.data.is_some() {
            return Ok(Some(RunConfig::default()));
        }
        if self.tasks.is_some() {
            let usage = "--tasks: say where the tasks are: --data GLUE_DIR, or a run file that holds them";
            return Err(Usage(usage.into()).into());
        }
        Ok(None)
    }

    /// `config` with the flags in place of what they override, checked, its paths right from anywhere.
    pub(super) fn complete(&self, mut config: RunConfig) -> anyhow::Result<RunConfig> {
        self.apply(&mut config)?;
        make_absolute(&mut config)?;
        config.train.validate().map_err(|error| Usage(error.to_string()))?;
        Ok(config)
    }

    fn apply(&self, config: &mut RunConfig) -> anyhow::Result<()> {
        match (&self.data, &self.tasks) {
            (Some(data), tasks) => {
                config.tasks = match &self.task_def {
                    Some(definition) => reference::entries(definition, data, tasks.as_deref())?,
                    None => glue_tasks(data, tasks.as_deref())?,
                };
            }
            (None, Some(tasks)) => select_tasks(&mut config.tasks, tasks)?,
            (None, None) => {}
        }
        for name in self.san.iter().flatten().map(|name| name.trim()) {
            let name = glue::find(name).filter(|_| self.data.is_some()).unwrap_or(name);
            let names: Vec<String> = config.tasks.iter().map(|entry| entry.name.clone()).collect();
            let entry = config.tasks.iter_mut().find(|entry| entry.name == name);
            let names = names.iter().map(String::as_str);
            let entry = entry.ok_or_else(|| unknown_task("--san", name, "a task of this run", names))?;
            entry.head = Some(HeadKind::San);
        }
        if let Some(init) = &self.init {
            config.model.init = Some(init.clone());
            config.model.config = None;
            config.model.vocabulary = None;
        }
        config.model.new_heads |= self.new_heads;
        set(&mut config.output, &self.output);
        set(&mut config.seed, &self.seed);
        let (train, flags) = (&mut config.train, &self.train);
        set(&mut train.epochs, &flags.epochs);
        set(&mut train.max_steps, &flags.max_steps);
        set(&mut train.batch_size, &flags.batch_size);
        set(&mut train.accumulation, &flags.accumulation);
        set(&mut train.learning_rate, &flags.learning_rate);
        set(&mut train.optimizer, &flags.optimizer);
        set(&mut train.weight_decay, &flags.weight_decay);
        set(&mut train.schedule, &flags.schedule);
        set(&mut train.warmup, &flags.warmup);
        set(&mut train.clip, &flags.clip);
        set(&mut train.max_length, &flags.max_length);
        set(&mut train.other_heads, &flags.other_heads);
        set(&mut train.eval, &flags.eval);
        set(&mut train.patience, &flags.patience);
        set(&mut train.checkpoint_every, &flags.checkpoint_every);
        set(&mut train.batch_tokens, &flags.batch_tokens);
        set(&mut train.bucket, &flags.bucket);
        set_some(&mut train.dropout, &flags.dropout);
        flags.mix.apply(&mut train.mix)?;
        Ok(())
    }
}

/// Takes a flag's value where it was given.
pub(super) fn set<T: Clone>(value: &mut T, flag: &Option<T>) {
    if let Some(flag) = flag {
        value.clone_from(flag);
    }
}

/// Takes a flag's value, where it was given, for one that may be missing.
fn set_some<T: Clone>(value: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        value.clone_from(flag);
    }
}

/// A value by the name that it has in a run file.
pub(super) fn named<T: DeserializeOwned>(name: &str) -> Result<T, NameError> {
    T::deserialize(StrDeserializer::new(name))
}

/// Entries for tasks known by name in the folder that holds GLUE; all that can be trained if none are named.
fn glue_tasks(data: &Path, names: Option<&[String]>) -> anyhow::Result<Vec<TaskEntry>> {
    if !data.is_dir() {
        let known = glue::names().collect::<Vec<_>>().join(", ");
        let path = data.display();
        anyhow::bail!("--data {path}: no such folder; it should hold the folders of GLUE's tasks ({known})");
    }
    let known = match names {
        Some(names) => known_tasks(names)?,
        None => glue::trainable_in(data),
    };
    if known.is_empty() {
        anyhow::bail!("--data {}: there is no training file of a known task in it", data.display());
    }
    let entry = |name: &str| {
        let spec = glue::task(name, data)?;
        Ok(TaskEntry { name: spec.name, data: Some(data.to_path_buf()), ..TaskEntry::default() })
    };
    known.into_iter().map(entry).collect()
}

/// The known tasks that these names mean.
fn known_tasks(names: &[String]) -> Result<Vec<&'static str>, Usage> {
    let mut tasks = Vec::new();
    for name in names.iter().map(|name| name.trim()) {
        let task = glue::find(name);
        let task = task.ok_or_else(|| unknown_task("--tasks", name, KNOWN_TASK, glue::names()))?;
        if tasks.contains(&task) {
            return Err(named_twice("--tasks", name));
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// Keeps the named ones of the run file's tasks, in the order in which they are named.
fn select_tasks(entries: &mut Vec<TaskEntry>, names: &[String]) -> Result<(), Usage> {
    let known = entries.iter().map(|entry| entry.name.as_str());
    let mut selected: Vec<TaskEntry> = Vec::new();
    for name in names.iter().map(|name| name.trim()) {
        let entry = entries.iter().find(|entry| entry.name == name);
        let entry =
            entry.ok_or_else(|| unknown_task("--tasks", name, "a task of the run file", known.clone()))?;
        if selected.contains(entry) {
            return Err(named_twice("--tasks", name));
        }
        selected.push(entry.clone());
    }
    *entries = selected;
    Ok(())
}

/// Paths that are right from any directory: the run may be resumed from another one.
fn make_absolute(config: &mut RunConfig) -> anyhow::Result<()> {
    let RunConfig { output, model, tasks, .. } = config;
    let of_tasks = tasks.iter_mut().flat_map(|task| {
        let TaskEntry { data, task_def, train, dev, test, soft_labels, .. } = task;
        [data, task_def, train, dev, test, soft_labels]
    });
    let of_model = [&mut model.init, &mut model.vocabulary];
    for path in of_tasks.chain(of_model).flatten() {
        *path = std::path::absolute(&path)?;
    }
    if output.as_os_str().is_empty() {
        return Err(Usage("output: the run directory needs a name".into()).into());
    }
    Ok(())
}

/// `path`, or `path-2`, `path-3`, ...: the first that is not there.
fn fresh(path: &Path) -> PathBuf {
    let numbered = (2..).map(|number| PathBuf::from(format!("{}-{number}", path.display())));
    let mut candidates = std::iter::once(path.to_path_buf()).chain(numbered);
    candidates.find(|path| !path.exists()).unwrap_or_else(|| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;
    use mtdnn_raw::train::config::TrainConfig;
    use mtdnn_raw::train::mix::{MixConfig, MixKind};

    #[test]
    fn every_key_of_train_has_a_flag() {
        let mix = MixConfig {
            main: Some(String::new()),
            ratio: Some(1.0),
            every: Some(1),
            temperature: Some(1.0),
            cap: Some(1),
            batches_per_epoch: Some(1),
            weights: [(String::new(), 1.0)].into(),
            kind: MixKind::Algorithm1,
        };
        let config = TrainConfig { dropout: Some(0.1), mix, ..TrainConfig::default() };
        let mut table = toml::Table::try_from(config).unwrap();
        let mix = table.remove("mix").unwrap();
        let of_mix = mix.as_table().unwrap().keys().map(|key| match key.as_str() {
            "kind" => "mix".to_string(),
            key => format!("mix-{key}"),
        });
        let keys: Vec<String> = table.keys().cloned().chain(of_mix).collect();
        let command = TrainFlags::augment_args(Command::new("train"));
        for key in &keys {
            let flag = key.replace('_', "-");
            assert!(command.get_arguments().any(|a| a.get_long() == Some(&flag)), "no flag --{flag}");
        }
        assert_eq!(command.get_arguments().count(), keys.len(), "a flag without a key");
    }

    #[test]
    fn every_flag_overrides_its_key() {
        let flags = [
            ("epochs", "7"),
            ("max_steps", "8"),
            ("batch_size", "9"),
            ("batch_tokens", "900"),
            ("bucket", "90"),
            ("accumulation", "3"),
            ("learning_rate", "0.25"),
            ("optimizer", "sgd"),
            ("weight_decay", "0.5"),
            ("schedule", "cosine"),
            ("warmup", "0.75"),
            ("clip", "2.5"),
            ("max_length", "77"),
            ("dropout", "0.125"),
            ("other_heads", "zero-gradient"),
            ("eval", "12"),
            ("patience", "4"),
            ("checkpoint_every", "5"),
        ];
        let words =
            flags.iter().flat_map(|(key, value)| [format!("--{}", key.replace('_', "-")), value.to_string()]);
        let config = applied(words, RunConfig::default()).unwrap();
        let table = toml::Table::try_from(config.train).unwrap();
        for (key, value) in flags {
            assert_eq!(table[key].to_string().trim_matches('"'), value, "{key}");
        }
    }

    fn applied(words: impl IntoIterator<Item = String>, mut config: RunConfig) -> anyhow::Result<RunConfig> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: TrainArgs,
        }
        let words = std::iter::once("train".to_string()).chain(words);
        let line = <Line as clap::Parser>::try_parse_from(words)?;
        line.args.run.apply(&mut config)?;
        Ok(config)
    }

    #[test]
    fn flags_of_the_mix_override_its_keys() {
        let saved = MixConfig { kind: MixKind::Ratio, ratio: Some(0.5), ..MixConfig::default() };
        let mix = |line: &str| {
            let train = TrainConfig { mix: saved.clone(), ..TrainConfig::default() };
            let words = line.split(' ').map(str::to_string);
            applied(words, RunConfig { train, ..RunConfig::default() }).map(|config| config.train.mix)
        };
        let main = |main: &str| Some(main.to_string());
        assert_eq!(mix("--mix-main rte").unwrap(), MixConfig { main: main("rte"), ..saved.clone() });
        assert_eq!(mix("--mix-ratio 2").unwrap(), MixConfig { ratio: Some(2.0), ..saved.clone() });
        let kind = |kind| MixConfig { kind, ..MixConfig::default() };
        assert_eq!(mix("--mix uniform").unwrap(), kind(MixKind::Uniform), "the old kind's keys are gone");
        assert_eq!(
            mix("--mix temperature --mix-temperature 5 --mix-cap 9 --mix-batches-per-epoch 7").unwrap(),
            MixConfig {
                temperature: Some(5.0),
                cap: Some(9),
                batches_per_epoch: Some(7),
                ..kind(MixKind::Temperature)
            }
        );
        assert_eq!(
            mix("--mix every --mix-every 10").unwrap(),
            MixConfig { every: Some(10), ..kind(MixKind::Every) }
        );
        let weights = [("rte".to_string(), 0.5), ("cola".to_string(), 2.0)].into();
        assert_eq!(
            mix("--mix weights --mix-weights rte=0.5,cola=2").unwrap(),
            MixConfig { weights, ..kind(MixKind::Weights) }
        );
        for (line, word) in [
            ("--mix weights --mix-weights rte", "TASK=X"),
            ("--mix weights --mix-weights rte=x", "\"x\" is not a number"),
            ("--mix weights --mix-weights rte=1,rte=2", "named twice"),
            ("--mix most", "unknown variant"),
        ] {
            let error = mix(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn a_fresh_directory_has_the_next_number() {
        let directory = tempfile::tempdir().unwrap();
        let first = directory.path().join("sample");
        assert_eq!(fresh(&first), first);
        std::fs::create_dir(&first).unwrap();
        assert_eq!(fresh(&first), directory.path().join("sample-2"));
    }
}
