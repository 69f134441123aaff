//! Data sets made by hand, and the flat buffers of a backend.

use mtdnn_raw::backend::Backend;
use mtdnn_raw::data::{Dataset, Label, TaskKind, TaskSpec};
use mtdnn_raw::nn::Model;
use mtdnn_raw::tensor::{Space, Span};

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
        TaskKind::Regression | TaskKind::Ranking => Vec::new(),
    };
    TaskSpec {
        name: name.to_string(),
        kind,
        labels,
        metrics: kind.default_metrics(),
        dropout: 0.0,
        head: None,
        files: Vec::new(),
    }
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
