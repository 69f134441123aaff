//! Models and batches of the usual comparisons: 32 sequences of 128 tokens, and GLUE-like ones.

use mtdnn_raw::data::{Batch, Dataset, Label, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, Model};
use mtdnn_raw::random::Random;

/// MiniLM-L6 and BERT-base, by the names that pick them.
pub fn configs() -> [(&'static str, BertConfig); 2] {
    let minilm = BertConfig {
        hidden_size: 384,
        num_hidden_layers: 6,
        num_attention_heads: 12,
        intermediate_size: 1536,
        ..BertConfig::default()
    };
    [("minilm", minilm), ("base", BertConfig::default())]
}

/// A model with a head of three classes, and its numbers.
pub fn model(config: &BertConfig) -> (Model, Vec<f32>) {
    let task = TaskSpec {
        labels: ["a", "b", "c"].map(str::to_string).to_vec(),
        ..TaskSpec::new("bench", TaskKind::Classification)
    };
    let model = Model::new(config, &[task]);
    let mut parameters = vec![0.0f32; model.parameters().len()];
    for parameter in model.parameters().parameters() {
        model.parameters().initialise(parameter, 0, &mut parameters[parameter.range()]);
    }
    (model, parameters)
}

/// Lengths around 40 tokens, at most 128, as GLUE's are.
pub fn glue_like(seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed, [0, 0]);
    (0..32).map(|_| ((normal(&mut random) * 0.5).exp() * 40.0).round().clamp(6.0, 128.0) as usize).collect()
}

fn normal(random: &mut Random) -> f64 {
    let mut uniform = || (f64::from(random.word()) + 0.5) / 4_294_967_296.0;
    (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}

/// Sequences of these lengths, in lines of so many rows.
pub fn random_batch(lengths: &[usize], line: usize) -> Batch {
    let mut random = Random::new(2, [0, 0]);
    let mut dataset = Dataset::new();
    for (sequence, &length) in (1..).zip(lengths) {
        dataset.ids.extend((0..length).map(|_| 1000 + random.below(29_000)));
        dataset.offsets.push(dataset.ids.len() as u64);
        dataset.second.push(length as u32 / 2 + 1);
        dataset.groups.push(sequence);
        dataset.labels.push(Label::Class(random.below(3)));
    }
    let mut batch = Batch::new(line);
    batch.fill(&dataset, &(0..lengths.len() as u32).collect::<Vec<_>>());
    batch
}

/// The arithmetic of the matrix products of a forward pass.
pub fn forward_flops(config: &BertConfig, batch: &Batch) -> f64 {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let (attended, transformed) = (3 * hidden * hidden, hidden * hidden + 2 * hidden * wide);
    let layers = config.num_hidden_layers;
    // The last layer transforms first tokens alone.
    let rows = (layers - 1) * batch.live_tokens() + batch.sequences();
    2.0 * (layers * batch.live_tokens() * attended + rows * transformed) as f64
}
