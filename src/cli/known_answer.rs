//! One training step whose outcome is known: it tells a broken kernel, processor or compiler from a sound one.

use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::{Batch, Dataset, Label, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, Model, extents};
use mtdnn_raw::tensor::{Precision, Space, Span};

/// The loss and the gradient norm of [`step`], computed by PyTorch 2 and transformers in double precision.
const KNOWN: (f64, f64) = (1.091_353_195, 3.272_277_478);

/// How far a sound backend may be off, relatively: single precision comes to within 1e-6.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-5,
        Precision::Bf16 => 2e-2,
    }
}

/// The largest relative error, of loss and gradient norm; an error says what was computed.
pub(super) fn check(backend: &mut dyn Backend) -> anyhow::Result<f64> {
    let (loss, norm) = step(backend)?;
    let error = (loss / KNOWN.0 - 1.0).abs().max((norm / KNOWN.1 - 1.0).abs());
    // Not `error > tolerance`: a NaN is wrong too.
    if error <= tolerance(backend.precision()) {
        return Ok(error);
    }
    anyhow::bail!("loss {loss} and gradient norm {norm} instead of {} and {}", KNOWN.0, KNOWN.1)
}

/// Loss and gradient norm of a small BERT with a head of three classes, on three sequences of 5, 17 and 9 tokens.
///
/// Element `k` of a parameter is `0.2 sin(1.3 k + length of its name)`, and 1 more in a norm's weight; token `n` of
/// the batch is `(7 n + 3) mod 50`.
fn step(backend: &mut dyn Backend) -> anyhow::Result<(f64, f64)> {
    let config = BertConfig {
        vocab_size: 50,
        hidden_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 80,
        max_position_embeddings: 24,
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        ..BertConfig::default()
    };
    let task = TaskSpec {
        labels: ["a", "b", "c"].map(String::from).to_vec(),
        dropout: 0.0,
        ..TaskSpec::new("check", TaskKind::Classification)
    };
    let model = Model::new(&config, &[task]).with_precision(backend.precision());
    let mut values = vec![0.0f32; model.parameters().len()];
    for parameter in model.parameters().parameters() {
        let base = if parameter.name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        for (k, value) in values[parameter.range()].iter_mut().enumerate() {
            *value = (base + 0.2 * (1.3 * k as f64 + parameter.name.len() as f64).sin()) as f32;
        }
    }
    let dataset = Dataset {
        ids: (0..31).map(|n| (7 * n + 3) % 50).collect(),
        offsets: vec![0, 5, 22, 31],
        second: vec![5, 8, 4],
        groups: vec![0, 1, 2, 3],
        labels: vec![Label::Class(2), Label::Class(0), Label::Class(1)],
        ..Dataset::new()
    };
    let mut batch = Batch::new(backend.line());
    batch.fill(&dataset, &[0, 1, 2]);
    let extents = extents(&batch);
    let recorded = model.training(0, extents, 1.0, false);

    let parameters = values.len();
    backend.reserve(&Sizes { parameters, arena: recorded.program.arena_len(), training: true })?;
    let span = Span { space: Space::Parameters, offset: 0, len: parameters };
    backend.write(span, bytemuck::cast_slice(&values))?;
    recorded.write(backend, &batch)?;
    backend.run(&recorded.program, &StepScalars { extents, seed: 0, step: 0 })?;
    let mut loss = [0.0f32];
    backend
        .read(recorded.program.span(recorded.outputs[0], &extents), bytemuck::cast_slice_mut(&mut loss))?;
    let group = Group {
        range: 0..parameters,
        learning_rate: 0.0,
        weight_decay: 0.0,
        update: 1,
        zero_gradient: false,
    };
    let norm = backend.update(&Optimizer::new(Rule::Sgd), 0.0, &[group])?;
    let norm = backend.number(norm)?;
    Ok((f64::from(loss[0]), f64::from(norm)))
}

#[cfg(test)]
mod tests {
    use mtdnn_raw::backend::cpu::CpuBackend;

    #[test]
    fn the_engine_comes_close_to_the_known_answer() {
        let error = super::check(&mut CpuBackend::new()).unwrap();
        assert!(error < 2e-6, "relative error {error}");
    }
}
