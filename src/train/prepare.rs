//! From a configuration to what training needs: tasks, token ids, a model.

use std::path::Path;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::config::{ModelConfig, RunConfig};
use super::monitor::{Event, Monitor};
use super::trainer::TaskData;
use crate::data::marks::Marks;
use crate::data::soft::{self, SoftLabels, SoftSource};
use crate::data::{
    Dataset, Example, MaskedOptions, MaskedText, Passage, Split, TaskEntry, TaskSpec, Tokenizer, cache,
    reader, sample,
};
use crate::nn::directory::{self, DirectoryError, Loaded};
use crate::nn::{BertConfig, ParameterTable};
use crate::random::Random;

/// The built-in sample tasks are the same in every run, so that runs can be compared.
const SAMPLE_SEED: u64 = 2018;
/// What the draw of a part of a training set is for: keeps its stream of [`Random`] apart.
const PARTS: u32 = 0x5052_0000;

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
        if spec.masked.is_some()
            && let Some(other) = tasks.iter().find(|task| task.masked.is_some())
        {
            let (one, two) = (&other.name, &spec.name);
            bail!(
                "tasks {one:?} and {two:?} are both of masked words, and a model has one head for them; leave one out, or \
                 give one of them the text of both"
            );
        }
        let trains = match &spec.masked {
            Some(masked) => !masked.text.is_empty(),
            None => spec.shares.is_some() || spec.files_of(Split::Train).next().is_some(),
        };
        if !trains {
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
    let ModelConfig { init, new_heads, vocabulary, config: sizes } = model;
    if *new_heads && init.is_none() {
        bail!("model.new_heads: a new model's heads are all new; leave it out, or give init");
    }
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

/// The train set of a built-in sample task.
pub fn sample_train(name: &str) -> Option<Vec<Example>> {
    sample::tasks(SAMPLE_SEED).into_iter().find(|task| task.spec.name == name).map(|task| task.train)
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
            let sets = match &task.masked {
                Some(options) => masked_data(config, task, options, tokenizer, cache, monitor)?,
                None => task_data(task, tokenizer, max_length, cache, monitor)?,
            };
            match sets {
                Some(sets) => data.push(sets),
                None => return Ok(None),
            }
        }
    }
    for (index, (task, sets)) in tasks.iter().zip(&mut data).enumerate() {
        tell_of_truncation(task, sets, max_length, monitor);
        if let Some(entry) = config.tasks.get(index) {
            take_part(entry, config.seed, &mut sets.train, monitor);
        }
        tell_of(task, sets, monitor);
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
    task.notes.iter().for_each(|note| monitor.tell(Event::Warning(note)));
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
            Split::Train => {
                let mut train = prepared.dataset;
                if task.soft_columns().is_some() {
                    train.soft = reader::read_soft(file, task)?;
                }
                sets.train.append(&train);
            }
            _ => sets.dev.push((file.name.clone(), prepared.dataset)),
        }
    }
    if let Some(SoftLabels { source: SoftSource::File(path), .. }) = &task.soft {
        monitor.tell(Event::Reading { path });
        sets.train.soft = soft::file::read(path, task, &train_examples(task)?)?;
    }
    if let Some(SoftLabels { source: SoftSource::TokenLines, hard_weight, temperature }) = task.soft {
        monitor.tell(Event::Note(&format!(
            "task {}: trained on the softlabel of its lines beside their labels (hard_weight = {hard_weight}, \
             temperature = {temperature})",
            task.name
        )));
    }
    temper(task, &mut sets.train);
    Ok(Some(sets))
}

/// The sets of a task of masked words.
fn masked_data(
    config: &RunConfig,
    task: &TaskSpec,
    options: &MaskedOptions,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<TaskData>> {
    let max_length = config.train.max_length;
    if max_length < 5 {
        bail!("--max-length {max_length}: too short for the texts of task {}; give 5 or more", task.name);
    }
    task.notes.iter().for_each(|note| monitor.tell(Event::Warning(note)));
    let vocabulary = config.model.init.as_deref().or(config.model.vocabulary.as_deref());
    let vocabulary = vocabulary.unwrap_or(Path::new("vocab.txt"));
    let text = MaskedText { task: &task.name, options, tokenizer, vocabulary, max_length, cache };
    let mut progress = |path: &Path, done, total| {
        monitor.tell(Event::Tokenising { path, done, total });
        !monitor.stop()
    };
    let Some(train) = text.train(config.seed, &mut progress)? else { return Ok(None) };
    let dev = match options.dev_text.is_empty() {
        true => None,
        false => match text.dev(&mut progress)? {
            None => return Ok(None),
            dev => dev,
        },
    };
    let notes = train.notes.iter().chain(dev.iter().flat_map(|dev| &dev.notes));
    notes.for_each(|note| monitor.tell(Event::Warning(note)));
    let dev = dev.map(|dev| ("dev".to_string(), dev.dataset)).into_iter().collect();
    Ok(Some(TaskData { train: train.dataset, dev }))
}

/// Leaves of a training set the part that its task is to be trained on, drawn from `seed`.
///
/// The draw depends on the seed and the set's size alone, and a smaller part is within a larger one: of two runs of one
/// seed on a thousandth and on a hundredth, the second has the first one's examples and more.
fn take_part(entry: &TaskEntry, seed: u64, train: &mut Dataset, monitor: &mut dyn Monitor) {
    let all = train.len();
    let wanted = match (entry.share, entry.examples) {
        (Some(share), _) => ((all as f64 * share) as usize).max(1),
        (None, Some(examples)) => examples,
        (None, None) => return,
    };
    if wanted < all {
        let mut order: Vec<u32> = (0..all as u32).collect();
        Random::new(seed, [0, PARTS]).shuffle(&mut order);
        order.truncate(wanted);
        order.sort_unstable();
        *train = train.select(&order);
    }
    let name = &entry.name;
    monitor.tell(Event::Note(&format!(
        "task {name}: trained on {} of its {all} examples, drawn from seed {seed}",
        train.len()
    )));
}

/// The examples of a task's train files as text, in the order of its token ids.
///
/// # Errors
/// Text that is missing or wrong.
pub fn train_examples(task: &TaskSpec) -> anyhow::Result<Vec<Example>> {
    let mut examples = Vec::new();
    for file in task.files_of(Split::Train) {
        examples.extend(reader::read(file, task)?.0);
    }
    Ok(examples)
}

/// Takes a set's soft labels to the temperature at which they are learned.
fn temper(task: &TaskSpec, set: &mut Dataset) {
    let Some(SoftLabels { temperature, .. }) = task.soft else { return };
    let width = set.soft_width();
    for example in 0..set.len() {
        let sequences = set.sequences_of(example);
        soft::temper(&mut set.soft[sequences.start * width..sequences.end * width], temperature);
    }
}

fn tell_of_truncation(task: &TaskSpec, sets: &TaskData, max_length: usize, monitor: &mut dyn Monitor) {
    let all = || sets.dev.iter().map(|(_, set)| set).chain([&sets.train]);
    let truncated: u64 = all().map(|set| set.truncated).sum();
    if truncated > 0 {
        let sequences: usize = all().map(Dataset::sequences).sum();
        let cut = match task.span {
            Some(span) => {
                format!("have a question cut to {} tokens (max_query_length)", span.max_query_length)
            }
            None => format!("were cut to {max_length} tokens (--max-length)"),
        };
        monitor
            .tell(Event::Warning(&format!("task {}: {truncated} of {sequences} sequences {cut}", task.name)));
    }
    let dropped: u64 = all().map(|set| set.dropped).sum();
    if dropped > 0 {
        monitor.tell(Event::Warning(&format!(
            "task {}: {dropped} windows of long texts do not hold the answer to their question and are not trained on",
            task.name
        )));
    }
}

fn tell_of(task: &TaskSpec, sets: &TaskData, monitor: &mut dyn Monitor) {
    let dev: usize = sets.dev.iter().map(|(_, set)| set.len()).sum();
    let sequences = sets.dev.iter().map(|(_, set)| set).chain([&sets.train]);
    let tokens: usize = sequences.map(|set| set.ids.len()).sum();
    monitor.tell(Event::Data { task, train: sets.train.len(), dev, tokens });
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
    for label in &set.labels {
        hasher.update(bytemuck::cast_slice(&label.to_bits()));
    }
    hasher.update(bytemuck::cast_slice(&set.soft));
    // Sets without marks are hashed as they were before there were any.
    if set.marks.is_empty() {
        return;
    }
    let Marks { offsets, positions, classes, places } = &set.marks;
    for part in [offsets, positions, classes] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(part));
    }
    hasher.update(bytemuck::cast_slice(places));
    for Passage { context, answers } in &set.passages {
        for text in [context].into_iter().chain(answers) {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Label;

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
        let mut soft = data(&[Label::Class(0), Label::Class(1)]);
        soft[0].train.soft = vec![0.5; 4];
        assert_ne!(one, fingerprints(&soft));
    }

    #[test]
    fn a_part_is_drawn_by_the_seed_and_lies_within_a_larger_one() {
        struct Silent;
        impl Monitor for Silent {
            fn seconds(&self) -> f64 {
                0.0
            }
            fn stop(&self) -> bool {
                false
            }
            fn tell(&mut self, _event: Event<'_>) {}
        }
        let labels: Vec<Label> = (0..200).map(Label::Class).collect();
        let part = |share: Option<f64>, examples: Option<usize>, seed| {
            let entry = TaskEntry { share, examples, ..TaskEntry::default() };
            let mut train = set(&labels, 2);
            take_part(&entry, seed, &mut train, &mut Silent);
            assert_eq!(train.sequences(), 2 * train.len());
            train.labels
        };
        let tenth = part(Some(0.1), None, 1);
        assert_eq!(tenth.len(), 20);
        assert_eq!(tenth, part(None, Some(20), 1));
        assert_ne!(tenth, part(Some(0.1), None, 2));
        assert_eq!(part(Some(0.001), None, 1).len(), 1);
        assert!(part(Some(0.05), None, 1).iter().all(|label| tenth.contains(label)));
        for all in [part(Some(1.0), None, 1), part(None, Some(1000), 1), part(None, None, 1)] {
            assert_eq!(all, labels);
        }
        // Every example is as likely as any other: in 400 draws of a tenth one occurs 40 times, give or take 5 deviations.
        let mut counts = [0_i32; 200];
        for seed in 0..400 {
            for label in part(Some(0.1), None, seed) {
                let Label::Class(class) = label else { panic!("{label:?}") };
                counts[class as usize] += 1;
            }
        }
        assert!(counts.iter().all(|count| (count - 40).abs() <= 30), "{counts:?}");
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
