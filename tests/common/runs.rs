//! Data sets made by hand, small models, and the flat buffers of a backend.

#![allow(dead_code, reason = "each test program uses a part of it")]

use mtdnn_raw::backend::Backend;
use mtdnn_raw::data::{Dataset, Label, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, Model};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{Space, Span};
use mtdnn_raw::train::trainer::TaskData;

/// One sequence: its ids, and how many of them belong to the first text.
pub type Sequence = (Vec<u32>, u32);

/// A set of examples, each a list of sequences and a label.
pub fn dataset(examples: impl IntoIterator<Item = (Vec<Sequence>, Label)>) -> Dataset {
    let mut set = Dataset::new();
    for (sequences, label) in examples {
        for (ids, second) in sequences {
            set.ids.extend(ids);
            set.offsets.push(set.ids.len() as u64);
            set.second.push(second);
        }
        set.groups.push(set.second.len() as u32);
        set.labels.push(label);
    }
    set
}

/// A task without dropout, with its kind's own metrics; `classes` counts for classification alone.
pub fn task(name: &str, kind: TaskKind, classes: usize) -> TaskSpec {
    let labels = match kind {
        TaskKind::Classification => (0..classes).map(|class| format!("class {class}")).collect(),
        TaskKind::Labelling => (0..classes).map(|class| format!("label {class}")).collect(),
        TaskKind::Regression | TaskKind::Ranking | TaskKind::Span | TaskKind::Masked => Vec::new(),
    };
    TaskSpec { labels, dropout: 0.0, ..TaskSpec::new(name, kind) }
}

/// Words of [`lesson`]; the first few stand for `[CLS]`, `[SEP]` and the like.
pub const VOCABULARY: usize = 80;
/// The longest sequence that [`lesson`] makes.
pub const LONGEST: usize = 24;

/// `count` examples that a tiny model can learn: the second token is one of six words that stand for the answer,
/// and for ranking the right candidate has the word 4 there.
pub fn lesson(kind: TaskKind, count: usize, seed: u64) -> Dataset {
    let mut random = Random::new(seed, [0, 0]);
    let mut sequence = |second: Option<u32>| -> Sequence {
        let length = 4 + random.below(LONGEST as u32 - 3);
        let mut ids: Vec<u32> = (0..length).map(|_| 11 + random.below(VOCABULARY as u32 - 11)).collect();
        ids[0] = 2;
        ids[1] = second.unwrap_or(5 + random.below(6));
        (ids, 2 + random.below(length - 1))
    };
    dataset((0..count as u32).map(|number| match kind {
        TaskKind::Classification => {
            let sequence = sequence(None);
            let class = sequence.0[1] % 3;
            (vec![sequence], Label::Class(class))
        }
        TaskKind::Regression => {
            let sequence = sequence(None);
            let score = (sequence.0[1] - 5) as f32;
            (vec![sequence], Label::Score(score))
        }
        TaskKind::Ranking => {
            let (candidates, positive) = (2 + number % 3, number % 2);
            let second = |candidate| (candidate == positive).then_some(4);
            ((0..candidates).map(|c| sequence(second(c))).collect(), Label::Positive(positive))
        }
        TaskKind::Labelling | TaskKind::Span | TaskKind::Masked => {
            panic!("{kind} is learnt from text: tests/token_tasks.rs and tests/masked_task.rs")
        }
    }))
}

/// An encoder of `hidden` wide layers for [`lesson`]; `dropout` goes for every site of it.
pub fn small_config(hidden: usize, dropout: f64) -> BertConfig {
    BertConfig {
        vocab_size: VOCABULARY,
        hidden_size: hidden,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 3 * hidden / 2,
        hidden_dropout_prob: dropout,
        attention_probs_dropout_prob: dropout,
        max_position_embeddings: LONGEST,
        // In so narrow a layer the usual 0.02 leaves attention all but even, and learning slow.
        initializer_range: 0.1,
        ..BertConfig::default()
    }
}

/// A task of each kind and as many examples of each; measured on what it is trained on.
pub fn three_tasks(dropout: f32, sizes: [usize; 3]) -> (Vec<TaskSpec>, Vec<TaskData>) {
    use TaskKind::{Classification, Ranking, Regression};
    let kinds = [("classes", Classification), ("scores", Regression), ("ranks", Ranking)];
    let one = |((name, kind), size): ((&str, TaskKind), usize)| {
        let spec = TaskSpec { dropout, ..task(name, kind, 3) };
        let train = lesson(kind, size, size as u64);
        (spec, TaskData { dev: vec![("dev".to_string(), train.clone())], train })
    };
    kinds.into_iter().zip(sizes).map(one).unzip()
}

/// The parameters of a new model, as they lie in the flat buffer.
pub fn new_parameters(model: &Model, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; model.parameters().len()];
    for parameter in model.parameters().parameters() {
        model.parameters().initialise(parameter, seed, &mut values[parameter.range()]);
    }
    values
}

/// Replaces the beginning of a flat buffer.
pub fn write(backend: &mut dyn Backend, space: Space, values: &[f32]) {
    let span = Span { space, offset: 0, len: values.len() };
    backend.write(span, bytemuck::cast_slice(values)).unwrap();
}

/// The beginning of a flat buffer.
pub fn read(backend: &mut dyn Backend, space: Space, len: usize) -> Vec<f32> {
    read_span(backend, Span { space, offset: 0, len })
}

/// A part of a flat buffer.
pub fn read_span(backend: &mut dyn Backend, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    backend.read(span, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// The bits of numbers: equal only if every one is the same, zeros' signs and NaNs' payloads too.
pub fn bits(values: &[f32]) -> &[u32] {
    bytemuck::cast_slice(values)
}
