//! The encoder's vectors of texts, batch by batch.

use std::ops::Range;

use anyhow::bail;
use clap::ValueEnum;
use mtdnn_raw::backend::StepScalars;
use mtdnn_raw::data::{Batch, Dataset, Packing};
use mtdnn_raw::nn::{Recorded, extents};
use mtdnn_raw::tensor::{Extents, Var};
use mtdnn_raw::train::evaluate::EVALUATION_TOKENS;
use mtdnn_raw::train::signals::Stop;

use super::console::Counter;
use super::model::Loaded;

/// How a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Pool {
    /// The last layer's vector of [CLS].
    Cls,
    /// The mean of the last layer's vectors of all tokens, [CLS] and [SEP] included, as sentence-transformers has it.
    Mean,
    /// tanh(W h + b) of the last layer's vector of [CLS].
    Pooled,
}

impl Pool {
    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Pool::Cls => "cls",
            Pool::Mean => "mean",
            Pool::Pooled => "pooled",
        }
    }

    /// Refuses what a model cannot give.
    pub(super) fn check(self, loaded: &Loaded) -> anyhow::Result<()> {
        if self == Pool::Pooled && !loaded.initialised.is_empty() {
            bail!("--pool pooled: the model has no pooler; take cls or mean");
        }
        Ok(())
    }
}

/// A batch that has been run.
pub(super) struct Encoded {
    /// The last layer's vectors. `[rows, hidden]`; line `i` has the rows `lines[i]`.
    pub(super) tokens: Vec<f32>,
    /// The rows of each line of the batch.
    pub(super) lines: Vec<Range<usize>>,
    /// tanh(W h + b) of each line's first token. `[lines, hidden]`
    pub(super) pooled: Vec<f32>,
}

/// Runs the encoder over a set, a sequence an example, in the set's order, and hands each batch to `take`.
pub(super) fn each_batch(
    loaded: &mut Loaded,
    dataset: &Dataset,
    stop: &Stop,
    mut take: impl FnMut(Encoded) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let batches = batches(dataset);
    let packing = Packing::new(loaded.backend.line());
    let extents_of = |lines: &Range<usize>| {
        let tokens = (dataset.offsets[lines.end] - dataset.offsets[lines.start]) as usize;
        let tokens = packing.most_rows(tokens, lines.len(), dataset.longest());
        Extents { tokens, sequences: lines.len(), groups: lines.len(), predictions: 0, in_lines: false }
    };
    let capacity = batches.iter().map(extents_of).fold(Extents::default(), |a, b| a.max(&b));
    let recorded = loaded.model.encoding(false, capacity);
    loaded.reserve(&recorded)?;
    let mut batch = Batch::new(loaded.backend.line());
    let mut counter = Counter::new("encoding", "batches", batches.len());
    for lines in batches {
        if stop.requested() {
            bail!("stopped by a signal; nothing was written");
        }
        counter.next();
        batch.fill(dataset, &lines.map(|line| line as u32).collect::<Vec<_>>());
        let extents = extents(&batch);
        recorded.write(&mut *loaded.backend, &batch)?;
        loaded.backend.run(&recorded.program, &StepScalars { extents, seed: 0, step: 0 })?;
        let tokens = read(loaded, &recorded, recorded.hidden_states[0], &extents)?;
        let pooled = recorded.pooled.map(|var| read(loaded, &recorded, var, &extents)).transpose()?;
        let rows = batch.starts.iter().zip(&batch.ends).map(|(&start, &end)| start as usize..end as usize);
        take(Encoded { tokens, lines: rows.collect(), pooled: pooled.unwrap_or_default() })?;
    }
    Ok(())
}

/// One vector for each example of a set. `[examples, hidden]`
pub(super) fn pooled(
    loaded: &mut Loaded,
    dataset: &Dataset,
    pool: Pool,
    stop: &Stop,
) -> anyhow::Result<Vec<f32>> {
    let hidden = loaded.model.config().hidden_size;
    let mut vectors = Vec::with_capacity(dataset.len() * hidden);
    each_batch(loaded, dataset, stop, |batch| {
        match pool {
            Pool::Pooled => vectors.extend_from_slice(&batch.pooled),
            Pool::Cls => {
                let first = |rows: &Range<usize>| &batch.tokens[rows.start * hidden..][..hidden];
                batch.lines.iter().for_each(|rows| vectors.extend_from_slice(first(rows)));
            }
            Pool::Mean => batch.lines.iter().for_each(|rows| {
                let tokens = &batch.tokens[rows.start * hidden..rows.end * hidden];
                vectors.extend(mean(tokens, hidden));
            }),
        }
        Ok(())
    })?;
    Ok(vectors)
}

/// The mean of rows of so many numbers, summed in double precision.
fn mean(rows: &[f32], columns: usize) -> impl Iterator<Item = f32> {
    let count = rows.len() / columns;
    let mut sums = vec![0.0f64; columns];
    for row in rows.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    sums.into_iter().map(move |sum| (sum / count as f64) as f32)
}

/// A value of the batch that was run, as f32.
fn read(loaded: &mut Loaded, recorded: &Recorded, var: Var, extents: &Extents) -> anyhow::Result<Vec<f32>> {
    let program = &recorded.program;
    let span = program.span(var, extents);
    let mut words = vec![0.0f32; span.len];
    loaded.backend.read(span, bytemuck::cast_slice_mut(&mut words))?;
    Ok(program.dtype(var).to_f32(words, program.shape(var).len(extents)))
}

/// Consecutive lines, as many to a batch as fit into its tokens; packed batches have no padding to save by sorting.
fn batches(dataset: &Dataset) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut used = 0;
    for line in 0..dataset.len() {
        let tokens = dataset.tokens_of(line);
        match batches.last_mut() {
            Some(batch) if used + tokens <= EVALUATION_TOKENS => {
                batch.end += 1;
                used += tokens;
            }
            _ => {
                batches.push(line..line + 1);
                used = tokens;
            }
        }
    }
    batches
}
