//! From a configuration to what training needs: tasks, token ids, a model.

use std::path::Path;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::config::{ModelConfig, RunConfig};
use super::monitor::{Event, Monitor};
use super::trainer::TaskData;
use crate::data::{Dataset, Example, Label, Split, TaskSpec, Tokenizer, cache, reader, sample};
use crate::nn::directory::{self, DirectoryError, Loaded};
use crate::nn::{BertConfig, ParameterTable};

/// The built-in sample tasks are the same in every run, so that runs can be compared.
const SAMPLE_SEED: u64 = 2018;

/// The tasks of a run and their examples as token ids, in the order of their heads.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The tasks; labels are known.
    pub tasks: Vec<TaskSpec>,
    /// Their examples.
    pub data: Vec<TaskData>,
}

/// The tasks that a configuration names; the built-in sample tasks if it names none.
///
/// # Errors
/// A task that cannot be meant, or two of one name.
pub fn tasks(config: &RunConfig) -> anyhow::Result<Vec<TaskSpec>> {
    let mut tasks: Vec<TaskSpec> = Vec::new();
    for entry in &config.tasks {
        let spec = entry.resolve()?;
        if tasks.iter().any(|task| task.name == spec.name) {
            bail!("task {:?} is named twice; give each [[task]] a name of its own", spec.name);
        }
        if spec.shares.is_none() && spec.files_of(Split::Train).next().is_none() {
            match &entry.data {
                Some(folder) => bail!(
                    "task {:?}: there is no file to train on in {}; put it there, or leave the task out",
                    spec.name,
                    folder.display()
                ),
                None => {
                    bail!(
                        "task {:?}: there is no file to train on; name train, or leave the task out",
                        spec.name
                    )
                }
            }
        }
        tasks.push(spec);
    }
    if config.tasks.is_empty() {
        return Ok(sample::tasks(SAMPLE_SEED).into_iter().map(|task| task.spec).collect());
    }
    for task in &tasks {
        if let Some(head) = &task.shares
            && !tasks.iter().any(|other| other.name == *head)
        {
            bail!("task {:?} is answered by the head of {head}; add {head} to the tasks", task.name);
        }
    }
    Ok(tasks)
}

/// The encoder's sizes and vocabulary; with `sample`, a new model may have that of the built-in sample tasks.
///
/// # Errors
/// A directory that cannot be read, sizes that cannot be built, a vocabulary larger than the embedding.
pub fn encoder(
    model: &ModelConfig,
    dropout: Option<f64>,
    sample: bool,
) -> anyhow::Result<(BertConfig, Tokenizer)> {
    let ModelConfig { init, vocabulary, config: sizes } = model;
    let (mut sizes, tokenizer) = match (init, sizes, vocabulary) {
        (Some(init), None, None) => directory::read_encoder(init)?,
        (Some(_), ..) => {
            bail!("model: init brings sizes and vocabulary; leave out config and vocabulary, or init")
        }
        (None, Some(sizes), Some(vocabulary)) => {
            let tokenizer = Tokenizer::from_directory(vocabulary)?;
            let mut sizes = sizes.clone();
            if sizes.vocab_size == BertConfig::default().vocab_size {
                // Not said: the embedding has a row a token, not BERT's 30522.
                sizes.vocab_size = tokenizer.vocab_size();
            }
            (sizes, tokenizer)
        }
        (None, Some(sizes), None) if sample => {
            let tokenizer = sample_tokenizer()?;
            (BertConfig { vocab_size: tokenizer.vocab_size(), ..sizes.clone() }, tokenizer)
        }
        (None, Some(_), None) => {
            bail!(
                "model.vocabulary: a new model needs one; name a directory with vocab.txt or tokenizer.json"
            )
        }
        (None, None, _) => bail!(
            "model: nothing says which; give --init DIR, a pretrained encoder, or [model.config] with the sizes of a \
             new one"
        ),
    };
    if let Some(dropout) = dropout {
        sizes.hidden_dropout_prob = dropout;
        sizes.attention_probs_dropout_prob = dropout;
    }
    sizes.validate().context("model.config")?;
    let (tokens, rows) = (tokenizer.vocab_size(), sizes.vocab_size);
    if tokens > rows {
        bail!(
            "model.config.vocab_size: {rows}, but the vocabulary has {tokens} tokens; give {tokens} or more"
        );
    }
    Ok((sizes, tokenizer))
}

/// Where training starts: a model directory, or a seed.
pub(super) struct Start<'a> {
    /// The directory, if there is one.
    pub init: Option<&'a Path>,
    /// What new parameters are drawn from.
    pub seed: u64,
    /// All parameters.
    pub table: &'a ParameterTable,
}

impl Start<'_> {
    /// The parameters, read by `load` where there is a directory, and a word on where they come from.
    pub fn parameters(
        &self,
        tokenizer: &Tokenizer,
        rows: usize,
        monitor: &mut dyn Monitor,
        load: impl FnOnce(&Path, &mut [f32]) -> Result<Loaded, DirectoryError>,
    ) -> anyhow::Result<Vec<f32>> {
        let (count, seed) = (self.table.count(), self.seed);
        let vocabulary = format!("{} tokens in {rows} rows", tokenizer.vocab_size());
        let mut values = vec![0.0f32; self.table.len()];
        let Some(init) = self.init else {
            for parameter in self.table.parameters() {
                self.table.initialise(parameter, seed, &mut values[parameter.range()]);
            }
            let said = format!("model: new, {count} parameters, {vocabulary}, drawn from seed {seed}");
            monitor.tell(Event::Note(&said));
            return Ok(values);
        };
        let loaded = load(init, &mut values)?;
        monitor.tell(Event::Note(&format!(
            "model: {count} parameters, {vocabulary}, from {}: {}",
            init.display(),
            loaded.report
        )));
        if !loaded.initialised.is_empty() {
            let names = loaded.initialised.join(", ");
            monitor.tell(Event::Note(&format!("drawn from seed {seed}: {names}")));
        }
        Ok(values)
    }
}

/// The vocabulary of the built-in sample tasks.
pub fn sample_tokenizer() -> anyhow::Result<Tokenizer> {
    Ok(Tokenizer::from_words(sample::words(), Default::default())?)
}

/// The dev set of a built-in sample task.
pub fn sample_dev(name: &str) -> Option<Vec<Example>> {
    sample::tasks(SAMPLE_SEED).into_iter().find(|task| task.spec.name == name).map(|task| task.dev)
}

/// Reads and tokenises every task's examples, from `cache` where that was done before. `None` if the monitor stops it.
///
/// # Errors
/// Text that is missing or wrong: file and line are named.
pub fn data(
    config: &RunConfig,
    mut tasks: Vec<TaskSpec>,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<Prepared>> {
    let max_length = config.train.max_length;
    let mut data = Vec::new();
    if config.tasks.is_empty() {
        for sample in sample::tasks(SAMPLE_SEED) {
            let set = |examples| cache::tokenize(examples, tokenizer, max_length);
            let dev = vec![("dev".to_string(), set(&sample.dev))];
            data.push(TaskData { train: set(&sample.train), dev });
        }
    } else {
        for task in &mut tasks {
            match task_data(task, tokenizer, max_length, cache, monitor)? {
                Some(sets) => data.push(sets),
                None => return Ok(None),
            }
        }
    }
    for (task, sets) in tasks.iter().zip(&data) {
        tell_of(task, sets, max_length, monitor);
    }
    Ok(Some(Prepared { tasks, data }))
}

fn task_data(
    task: &mut TaskSpec,
    tokenizer: &Tokenizer,
    max_length: usize,
    cache: Option<&Path>,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<TaskData>> {
    reader::learn_labels(task)?;
    let mut sets = TaskData { train: Dataset::new(), dev: Vec::new() };
    for file in &task.files {
        if monitor.stop() {
            return Ok(None);
        }
        if file.split == Split::Test {
            continue;
        }
        monitor.tell(Event::Reading { path: &file.path });
        let prepared = cache::prepare(file, task, tokenizer, max_length, cache)?;
        if prepared.skipped.count > 0 {
            monitor.tell(Event::Warning(&format!("task {}: {}", task.name, prepared.skipped)));
        }
        for note in &prepared.notes {
            monitor.tell(Event::Warning(note));
        }
        match file.split {
            Split::Train => sets.train.append(&prepared.dataset),
            _ => sets.dev.push((file.name.clone(), prepared.dataset)),
        }
    }
    Ok(Some(sets))
}

fn tell_of(task: &TaskSpec, sets: &TaskData, max_length: usize, monitor: &mut dyn Monitor) {
    let dev: usize = sets.dev.iter().map(|(_, set)| set.len()).sum();
    let all = || sets.dev.iter().map(|(_, set)| set).chain([&sets.train]);
    let tokens: usize = all().map(|set| set.ids.len()).sum();
    monitor.tell(Event::Data { task, train: sets.train.len(), dev, tokens });
    let truncated: u64 = all().map(|set| set.truncated).sum();
    if truncated > 0 {
        let sequences: usize = all().map(Dataset::sequences).sum();
        monitor.tell(Event::Warning(&format!(
            "task {}: {truncated} of {sequences} sequences were cut to {max_length} tokens (--max-length)",
            task.name
        )));
    }
    if sets.dev.is_empty() {
        monitor.tell(Event::Warning(&format!(
            "task {}: no dev set, so it is trained and never measured",
            task.name
        )));
    }
}

/// A hash of each task's examples: a run does not go on over other data.
pub fn fingerprints(data: &[TaskData]) -> Vec<String> {
    data.iter()
        .map(|sets| {
            let mut hasher = Sha256::new();
            hash(&mut hasher, "train", &sets.train);
            sets.dev.iter().for_each(|(name, set)| hash(&mut hasher, name, set));
            hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
        })
        .collect()
}

fn hash(hasher: &mut Sha256, name: &str, set: &Dataset) {
    hasher.update((name.len() as u64).to_le_bytes());
    hasher.update(name);
    for length in [set.ids.len(), set.sequences(), set.len()] {
        hasher.update((length as u64).to_le_bytes());
    }
    hasher.update(bytemuck::cast_slice(&set.ids));
    hasher.update(bytemuck::cast_slice(&set.offsets));
    hasher.update(bytemuck::cast_slice(&set.second));
    hasher.update(bytemuck::cast_slice(&set.groups));
    for &label in &set.labels {
        let bits: [u32; 2] = match label {
            Label::None => [0, 0],
            Label::Class(class) => [1, class],
            Label::Score(score) => [2, score.to_bits()],
            Label::Positive(index) => [3, index],
        };
        hasher.update(bytemuck::cast_slice(&bits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TaskEntry;

    fn set(labels: &[Label], candidates: usize) -> Dataset {
        let mut set = Dataset::new();
        for &label in labels {
            (0..candidates).for_each(|_| set.push_sequence(&[2, 3], 2));
            set.finish_example(label);
        }
        set
    }

    #[test]
    fn other_examples_have_another_fingerprint() {
        let data = |labels: &[Label]| [TaskData { train: set(labels, 1), dev: Vec::new() }];
        let one = fingerprints(&data(&[Label::Class(0), Label::Class(1)]));
        assert_eq!(one, fingerprints(&data(&[Label::Class(0), Label::Class(1)])));
        assert_ne!(one, fingerprints(&data(&[Label::Class(1), Label::Class(0)])));
        assert_ne!(one, fingerprints(&data(&[Label::Class(0)])));
    }

    #[test]
    fn a_new_model_needs_sizes_and_a_vocabulary() {
        let mut config = RunConfig { tasks: vec![TaskEntry::default()], ..RunConfig::default() };
        let error = |config: &RunConfig| {
            encoder(&config.model, None, config.tasks.is_empty())
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default()
        };
        assert!(error(&config).contains("--init"));
        config.model.config = Some(BertConfig::default());
        assert!(error(&config).contains("model.vocabulary"));
        config.tasks.clear();
        assert_eq!(error(&config), "");
        config.model.config = Some(BertConfig { hidden_size: 100, ..BertConfig::default() });
        assert!(error(&config).contains("hidden_size"), "{}", error(&config));
    }
}
