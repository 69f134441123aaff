//! Every operation and whole models against f64: the forward pass against the equations, the gradients
//! against central differences of that f64 forward pass, with dropout on.

#[path = "common/cases.rs"]
mod cases;
mod common;

use std::collections::{BTreeSet, HashMap};

use cases::{Case, cases};
use common::{Numbers, forward};
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Sizes, StepScalars};
use mtdnn_raw::data::batch::Marked;
use mtdnn_raw::data::san::{SanAttention, SanMemory};
use mtdnn_raw::data::{Batch, MaskedOptions, MetricKind, Packing, SanSpec, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, HiddenAct, Model, ParameterTable, PretrainingModel, extents};
use mtdnn_raw::tensor::{Extents, Program, Space, Span, TokenIndex, Var};

const SEED: u64 = 0x1234_5678_9ABC;
const STEP: u32 = 3;

#[test]
fn gradients_equal_central_differences() {
    for (name, build) in cases() {
        for scale in [1.0, 0.25] {
            let mut case = Case::new();
            let loss = build(&mut case);
            let Case { tape, parameters, floats, indices, extents, .. } = case;
            // Room for more than the batch: what lies beyond the batch must not matter.
            let capacity = Extents { tokens: 20, sequences: 5, groups: 4, predictions: 6, in_lines: false };
            let program = Program::training(tape, &[loss], scale, false, capacity);
            check(name, &program, &[loss], scale, &parameters, &floats, &indices, extents);
        }
    }
}

/// Runs the program on the CPU backend and compares losses, and the gradients of their sum, with f64.
#[expect(clippy::too_many_arguments, reason = "one call for all that a program runs on")]
fn check(
    name: &str,
    program: &Program,
    losses: &[Var],
    scale: f32,
    parameters: &[f32],
    floats: &HashMap<Var, Vec<f32>>,
    indices: &HashMap<Var, Vec<u32>>,
    extents: Extents,
) {
    let mut backend = CpuBackend::new();
    let sizes = Sizes { parameters: parameters.len(), arena: program.arena_len(), training: true };
    backend.reserve(&sizes).unwrap();
    let whole = |space| Span { space, offset: 0, len: parameters.len() };
    backend.write(whole(Space::Parameters), bytemuck::cast_slice(parameters)).unwrap();
    // Garbage that stores must overwrite, in the arena as well.
    let garbage = vec![f32::NAN; program.arena_len()];
    let arena = Span { space: Space::Arena, offset: 0, len: garbage.len() };
    backend.write(arena, bytemuck::cast_slice(&garbage)).unwrap();
    backend.write(whole(Space::Gradients), bytemuck::cast_slice(&garbage_of(parameters.len()))).unwrap();
    let words = indices.iter().map(|(&var, values)| (var, bytemuck::cast_slice(values)));
    let numbers = floats.iter().map(|(&var, values)| (var, bytemuck::cast_slice(values)));
    for (var, bytes) in words.chain(numbers).filter(|(var, _)| program.uses(*var)) {
        backend.write(program.span(var, &extents), bytes).unwrap();
    }
    backend.run(program, &StepScalars { extents, seed: SEED, step: STEP }).unwrap();
    let computed: Vec<f32> = losses
        .iter()
        .map(|&loss| {
            let mut value = [0.0f32];
            backend.read(program.span(loss, &extents), bytemuck::cast_slice_mut(&mut value)).unwrap();
            value[0]
        })
        .collect();
    let mut gradients = vec![0.0f32; parameters.len()];
    backend.read(whole(Space::Gradients), bytemuck::cast_slice_mut(&mut gradients)).unwrap();

    let mut numbers = Numbers {
        parameters: parameters.iter().map(|&p| f64::from(p)).collect(),
        floats: floats.iter().map(|(&v, x)| (v, x.iter().map(|&x| f64::from(x)).collect())).collect(),
        indices: indices.clone(),
        extents,
        seed: SEED,
        step: STEP,
    };
    let values = forward(program, &numbers);
    for (&loss, computed) in losses.iter().zip(computed) {
        let exact = values[&loss][0];
        let error = (f64::from(computed) - exact).abs();
        assert!(error <= 2e-6 * exact.abs().max(1.0), "{name}: loss {computed} is not {exact}");
    }

    let mut quotients = Vec::new();
    let covered = program.gradient_ranges();
    let checked: Vec<usize> = covered.iter().flat_map(|range| sample(range.clone())).collect();
    for &i in &checked {
        let center = numbers.parameters[i];
        let mut at = |value: f64| {
            numbers.parameters[i] = value;
            let values = forward(program, &numbers);
            losses.iter().map(|loss| values[loss][0]).sum::<f64>()
        };
        let h = 1e-5;
        quotients.push((at(center + h) - at(center - h)) / (2.0 * h) * f64::from(scale));
        numbers.parameters[i] = center;
    }
    let largest = quotients.iter().fold(0.0f64, |most, q| most.max(q.abs()));
    for (&i, &quotient) in checked.iter().zip(&quotients) {
        let error = (f64::from(gradients[i]) - quotient).abs();
        // f32 sums of some hundred terms of the size of the largest gradient.
        assert!(
            error <= 1e-5 * largest.max(1e-3),
            "{name}: gradient {i} is {}, the difference quotient {quotient} (largest {largest})",
            gradients[i]
        );
    }
}

/// At most 60 elements of a range, ends included.
fn sample(range: std::ops::Range<usize>) -> impl Iterator<Item = usize> {
    let step = range.len().div_ceil(60).max(1);
    range.clone().step_by(step).chain(range.end.checked_sub(1))
}

fn garbage_of(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

fn tiny_config(act: HiddenAct) -> BertConfig {
    BertConfig {
        vocab_size: 7,
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 12,
        hidden_act: act,
        hidden_dropout_prob: 0.2,
        attention_probs_dropout_prob: 0.3,
        max_position_embeddings: 9,
        initializer_range: 0.5,
        ..BertConfig::default()
    }
}

fn task(name: &str, kind: TaskKind, labels: &[&str], metric: MetricKind) -> TaskSpec {
    TaskSpec {
        labels: labels.iter().map(|label| label.to_string()).collect(),
        metrics: vec![metric],
        dropout: 0.25,
        ..TaskSpec::new(name, kind)
    }
}

/// Sequences of 5, 1 and 9 tokens; the first two are one example.
fn three_sequences() -> Batch {
    Batch {
        packing: Packing::default(),
        task: 0,
        ids: vec![3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 1, 4, 1, 5, 0],
        types: vec![0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        places: (0u32..3).flat_map(|s| (0..[5, 1, 9][s as usize]).map(move |p| s << 16 | p)).collect(),
        starts: vec![0, 5, 6],
        ends: vec![5, 6, 15],
        first_places: vec![0, 1 << 16, 2 << 16],
        sequence_keys: (0u32..3).flat_map(|s| [s << 16; 9].into_iter().take([5, 1, 9][s as usize])).collect(),
        order: vec![14, 1, 3, 10, 12, 5, 0, 8, 2, 11, 4, 7, 9, 13, 6],
        groups: vec![0, 2, 3],
        labels: vec![1, 0],
        targets: vec![2.5, -1.0],
        // Four tokens with a class each; of those of the first example the second begins a span and the third ends it.
        marked: Marked {
            rows: vec![4, 1, 5, 12],
            places: vec![4, 1, 1 << 16, 2 << 16 | 6],
            classes: vec![2, 0, 1, 0],
            groups: vec![0, 3, 4],
            spans: vec![1, 2, 0, 0],
        },
        soft: Vec::new(),
    }
}

/// New parameters, biases and norms off their zeros and ones.
fn parameters_of(table: &ParameterTable) -> Vec<f32> {
    let mut values = vec![0.0; table.len()];
    for (number, parameter) in table.parameters().iter().enumerate() {
        let values = &mut values[parameter.range()];
        table.initialise(parameter, 5, values);
        values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.1 * ((i * 7 + number) as f32).sin());
    }
    values
}

/// What each token of a batch is.
fn tokens_of(index: TokenIndex, batch: &Batch) -> HashMap<Var, Vec<u32>> {
    HashMap::from([
        (index.ids, batch.ids.clone()),
        (index.types, batch.types.clone()),
        (index.places, batch.places.clone()),
        (index.order, batch.order.clone()),
        (index.starts, batch.starts.clone()),
        (index.ends, batch.ends.clone()),
        (index.first_places, batch.first_places.clone()),
    ])
}

#[test]
fn a_model_with_each_head_has_the_right_gradients() {
    let tasks = [
        task("classes", TaskKind::Classification, &["a", "b", "c"], MetricKind::Accuracy),
        task("score", TaskKind::Regression, &[], MetricKind::Pearson),
        task("rank", TaskKind::Ranking, &[], MetricKind::Mrr),
        task("words", TaskKind::Labelling, &["a", "b", "c"], MetricKind::TokenAccuracy),
        task("spans", TaskKind::Span, &[], MetricKind::SpanF1),
    ];
    let batch = three_sequences();
    for act in [HiddenAct::Gelu, HiddenAct::GeluNew] {
        let model = Model::new(&tiny_config(act), &tasks);
        let parameters = parameters_of(model.parameters());
        for (number, task) in tasks.iter().enumerate() {
            // The first two heads answer each sequence by itself.
            let batch = match task.kind {
                TaskKind::Ranking | TaskKind::Labelling | TaskKind::Span | TaskKind::Masked => batch.clone(),
                _ => Batch {
                    groups: vec![0, 1, 2, 3],
                    labels: vec![1, 0, 2],
                    targets: vec![2.5, -1.0, 0.5],
                    ..batch.clone()
                },
            };
            check_model(&model, number, &parameters, &batch);
        }
    }
}

#[test]
fn a_model_of_masked_words_has_the_right_gradients_with_and_without_next_sentences() {
    let batch = Batch { groups: vec![0, 1, 2, 3], labels: vec![1, 0, 1], ..three_sequences() };
    for next_sentence in [true, false] {
        let masked = Some(MaskedOptions { next_sentence, ..MaskedOptions::default() });
        let task = TaskSpec { masked, ..TaskSpec::new("masked", TaskKind::Masked) };
        let model = Model::new(&tiny_config(HiddenAct::Gelu), &[task]);
        let named = |name: &str| model.parameters().parameters().iter().any(|one| one.name == name);
        assert!(named("cls.predictions.transform.dense.weight") && named("cls.predictions.bias"));
        assert_eq!(named("cls.seq_relationship.weight"), next_sentence);
        assert_eq!(model.pools(0), next_sentence);
        check_model(&model, 0, &parameters_of(model.parameters()), &batch);
    }
}

/// Runs one task's step of a model on a batch and compares the loss and its gradients with f64.
fn check_model(model: &Model, task: usize, parameters: &[f32], batch: &Batch) {
    let capacity = Extents { tokens: 32, sequences: 4, groups: 4, predictions: 5, in_lines: false };
    let recorded = model.training(task, capacity, 1.0, false);
    let answers = recorded.answers().expect("a training program has answers");
    let floats = HashMap::from([(answers.targets, batch.targets.clone())]);
    let mut indices = tokens_of(recorded.index(), batch);
    indices.insert(answers.labels, batch.labels.clone());
    indices.insert(answers.groups, batch.groups.clone());
    indices.insert(answers.positives, batch.labels.clone());
    let keys = recorded.sequence_keys().expect("a training program has them");
    indices.insert(keys, batch.sequence_keys.clone());
    let marks = recorded.marks().expect("a training program has marks");
    let Marked { rows, places, classes, groups, spans } = &batch.marked;
    for (var, values) in [
        (marks.rows, rows),
        (marks.places, places),
        (answers.classes, classes),
        (answers.token_groups, groups),
        (answers.spans, spans),
    ] {
        indices.insert(var, values.clone());
    }
    let (name, losses) = (&model.tasks()[task].name, &recorded.outputs[..1]);
    check(name, &recorded.program, losses, 1.0, parameters, &floats, &indices, extents(batch));
}

/// With dropout on vectors, tokens and steps; one of the sequences has no second text.
#[test]
fn a_stochastic_answer_network_has_the_right_gradients() {
    let usual = || SanSpec { prediction_dropout: Some(0.4), ..SanSpec::default() };
    let options = [
        usual(),
        SanSpec { steps: 1, prediction_dropout: None, ..usual() },
        SanSpec { attention: SanAttention::Simple, variational: false, steps: 3, ..usual() },
        SanSpec { memory: SanMemory::Last, prediction_dropout: None, steps: 2, ..usual() },
    ];
    let batch =
        Batch { groups: vec![0, 1, 2, 3], labels: vec![1, 0, 2], targets: vec![0.0; 3], ..three_sequences() };
    for san in options {
        let pair = task("pair", TaskKind::Classification, &["a", "b", "c"], MetricKind::Accuracy);
        let tasks = [TaskSpec { san: Some(san), ..pair }];
        let model = Model::new(&tiny_config(HiddenAct::Gelu), &tasks);
        check_model(&model, 0, &parameters_of(model.parameters()), &batch);
    }
}

/// Both losses together: the word embedding's gradient is that of its rows and of the decoder, and the first tokens and
/// the masked ones share what comes before them.
#[test]
fn a_model_with_pretraining_heads_has_the_right_gradients() {
    let batch = three_sequences();
    let rows = [1, 4, 6, 7, 12];
    for act in [HiddenAct::Gelu, HiddenAct::GeluNew] {
        let model = PretrainingModel::new(&tiny_config(act));
        let parameters = parameters_of(model.parameters());
        for scale in [1.0, 0.25] {
            let capacity = Extents { tokens: 32, sequences: 4, groups: 4, predictions: 7, in_lines: false };
            let recorded = model.training(capacity, scale, false);
            let inputs = recorded.inputs();
            let mut indices = tokens_of(inputs.index, &batch);
            indices.insert(inputs.masked.rows, rows.to_vec());
            indices.insert(inputs.masked.places, rows.map(|row| batch.places[row as usize]).to_vec());
            indices.insert(inputs.words, vec![6, 0, 3, 3, 2]);
            indices.insert(inputs.next, vec![1, 0, 1]);
            let (losses, floats) = ([recorded.masked_loss, recorded.next_loss], HashMap::new());
            let extents = Extents { predictions: rows.len(), ..extents(&batch) };
            let program = &recorded.program;
            check("pre-training", program, &losses, scale, &parameters, &floats, &indices, extents);
        }
    }
}

/// Every operation is met by the list above, the backward ones too.
#[test]
fn no_operation_goes_unchecked() {
    let mut met = BTreeSet::new();
    for (_, build) in cases() {
        let mut case = Case::new();
        let loss = build(&mut case);
        let program = Program::training(case.tape, &[loss], 1.0, false, case.extents);
        met.extend(program.ops().iter().map(|op| op.name()));
    }
    // A new operation fails to compile in `common::forward`, whose match has no wildcard, and belongs here too.
    let all = [
        "embedding",
        "linear",
        "attention",
        "add_norm",
        "dropout",
        "gather",
        "attend",
        "gru",
        "merge",
        "step_average",
        "cross_entropy",
        "vocabulary_loss",
        "squared_error",
        "ranking",
        "soft_cross_entropy",
        "weighted_sum",
        "fill",
        "accumulate",
        "embedding_grad",
        "activation_grad",
        "linear_input_grad",
        "linear_weight_grad",
        "attention_grad",
        "add_norm_grad",
        "gather_grad",
        "attend_grad",
        "gru_grad",
        "merge_grad",
        "step_average_grad",
        "cross_entropy_grad",
        "vocabulary_loss_grad",
        "squared_error_grad",
        "ranking_grad",
        "soft_cross_entropy_grad",
        "weighted_sum_grad",
    ];
    assert_eq!(met, BTreeSet::from(all));
}
