//! The arrays that a step of pre-training reads.

use super::batch::{Batch, Capacity};
use super::corpus::Corpus;
use super::dataset::{Dataset, Label};
use super::instances::{Instance, Pass};
use super::masking::{Masking, Predictions};
use super::packing::Packing;

/// Label of a pair whose second text follows the first, as in BERT's checkpoints.
pub const IS_NEXT: u32 = 0;
/// Label of a pair whose second text is a random one.
pub const IS_RANDOM: u32 = 1;

/// Sentence pairs with hidden tokens, and what the hidden ones were.
#[derive(Clone, Debug)]
pub struct MaskedBatch {
    /// The pairs, tokens hidden; the labels are [`IS_NEXT`] and [`IS_RANDOM`].
    pub batch: Batch,
    /// The batch's rows that are to be guessed, ascending. [predictions]
    pub rows: Vec<u32>,
    /// `sequence << 16 | position` of each. [predictions]
    pub places: Vec<u32>,
    /// The ids that stood there. [predictions]
    pub labels: Vec<u32>,
    max_length: usize,
    /// From here on, what is used again from batch to batch.
    pairs: Dataset,
    examples: Vec<u32>,
    ids: Vec<u32>,
    predictions: Predictions,
    /// Row, place and id of each prediction.
    found: Vec<[u32; 3]>,
}

impl MaskedBatch {
    /// An empty batch for up to `size` pairs of up to `max_length` tokens, packed in lines of `line` rows (1 packs
    /// tightly). Filling it allocates nothing once it has been filled with that many.
    pub fn with_capacity(size: usize, max_length: usize, line: usize) -> Self {
        let tokens = size * max_length;
        let capacity = Capacity {
            tokens: Packing::new(line).most_rows(tokens, size, max_length),
            sequences: size,
            groups: size,
            predictions: 0,
            soft: 0,
        };
        Self {
            batch: Batch::with_capacity(capacity, line),
            rows: Vec::with_capacity(tokens),
            places: Vec::with_capacity(tokens),
            labels: Vec::with_capacity(tokens),
            max_length,
            pairs: Dataset::with_capacity(tokens, size),
            examples: Vec::with_capacity(size),
            ids: Vec::with_capacity(max_length),
            predictions: Predictions::with_capacity(max_length),
            found: Vec::with_capacity(tokens),
        }
    }

    /// Replaces the contents by `instances`, which stand from number `first` on in the order of `pass`.
    ///
    /// Cuts and masks are drawn by the pass and the instance's number alone: not by the batch's size, nor by what was
    /// drawn before. To measure a model again and again on the same masks, fill with the same instances, `pass` and
    /// `first` each time.
    ///
    /// # Panics
    /// If an instance is not of this corpus.
    pub fn fill(
        &mut self,
        corpus: &Corpus,
        instances: &[Instance],
        masking: &Masking,
        pass: Pass,
        first: u32,
    ) {
        self.pairs.clear();
        self.found.clear();
        for (sequence, instance) in (0u32..).zip(instances) {
            let mut random = pass.masks(first + sequence);
            self.ids.clear();
            let specials = masking.specials();
            let second = instance.write(corpus, &mut random, self.max_length, specials, &mut self.ids);
            masking.hide(&mut random, &mut self.ids, second, &mut self.predictions);
            self.pairs.push_sequence(&self.ids, second);
            self.pairs.finish_example(Label::Class(if instance.is_next { IS_NEXT } else { IS_RANDOM }));
            let chosen = self.predictions.chosen.iter();
            self.found
                .extend(chosen.map(|prediction| [0, sequence << 16 | prediction.position, prediction.id]));
        }
        self.examples.clear();
        self.examples.extend(0..instances.len() as u32);
        self.batch.fill(&self.pairs, &self.examples);
        for [row, place, _] in &mut self.found {
            *row = self.batch.starts[(*place >> 16) as usize] + (*place & 0xffff);
        }
        self.found.sort_unstable();
        self.rows.clear();
        self.places.clear();
        self.labels.clear();
        self.rows.extend(self.found.iter().map(|found| found[0]));
        self.places.extend(self.found.iter().map(|found| found[1]));
        self.labels.extend(self.found.iter().map(|found| found[2]));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::corpus::tests::{corpus_of, hundred_words, some_documents};

    const LENGTH: usize = 48;
    const PASS: Pass = Pass { seed: 3, phase: 1, epoch: 2 };

    fn masking() -> Masking {
        Masking::new(&hundred_words(), Path::new("vocab.txt"), 0.15, false, None).unwrap()
    }

    /// The ids and predictions (position and id) of each sequence.
    fn sequences(batch: &MaskedBatch) -> Vec<(Vec<u32>, Vec<[u32; 2]>)> {
        let of = |sequence: usize| {
            let rows = batch.batch.starts[sequence]..batch.batch.ends[sequence];
            let both = batch.places.iter().zip(&batch.labels);
            let own = both.filter(|(place, _)| (**place >> 16) as usize == sequence);
            let predictions = own.map(|(&place, &label)| [place & 0xffff, label]).collect();
            (batch.batch.ids[rows.start as usize..rows.end as usize].to_vec(), predictions)
        };
        (0..batch.batch.sequences()).map(of).collect()
    }

    #[test]
    fn rows_places_and_labels_are_those_of_the_hidden_tokens() {
        let corpus = corpus_of(&some_documents(40, 1));
        let (masking, instances) = (masking(), Instance::draw(&corpus, PASS, LENGTH, 0.1));
        for line in [1, 128] {
            let mut batch = MaskedBatch::with_capacity(16, LENGTH, line);
            for (number, chunk) in instances.chunks(16).enumerate() {
                let first = number as u32 * 16;
                batch.fill(&corpus, chunk, &masking, PASS, first);
                assert!(batch.rows.windows(2).all(|pair| pair[0] < pair[1]));
                for (row, place) in batch.rows.iter().zip(&batch.places) {
                    assert_eq!(batch.batch.places[*row as usize], *place);
                }
                for ((instance, sequence), (mut ids, predictions)) in
                    chunk.iter().zip(0..).zip(sequences(&batch))
                {
                    let mut plain = Vec::new();
                    let mut random = PASS.masks(first + sequence);
                    let second = instance.write(&corpus, &mut random, LENGTH, [2, 3], &mut plain);
                    assert!(!predictions.is_empty());
                    predictions.iter().for_each(|&[position, id]| ids[position as usize] = id);
                    assert_eq!(ids, plain);
                    let start = batch.batch.starts[sequence as usize];
                    assert_eq!(batch.batch.types[(start + second - 1) as usize..][..2], [0, 1]);
                    assert_eq!(batch.batch.labels[sequence as usize], 1 - u32::from(instance.is_next));
                }
            }
        }
    }

    #[test]
    fn draws_do_not_depend_on_where_a_run_goes_on_or_how_batches_are_cut() {
        let corpus = corpus_of(&some_documents(40, 2));
        let (masking, instances) = (masking(), Instance::draw(&corpus, PASS, LENGTH, 0.1));
        let from = |start: usize, size: usize, pass| {
            let mut batch = MaskedBatch::with_capacity(size, LENGTH, 1);
            let mut all = Vec::new();
            for first in (start..instances.len()).step_by(size) {
                let end = instances.len().min(first + size);
                batch.fill(&corpus, &instances[first..end], &masking, pass, first as u32);
                all.extend(sequences(&batch));
            }
            all
        };
        let whole = from(0, 16, PASS);
        assert_eq!(whole.len(), instances.len());
        assert!(from(0, 5, PASS) == whole, "the batch size changes the draws");
        assert!(from(37, 16, PASS) == whole[37..], "going on from the middle changes the draws");
        // Another pass hides other tokens, a fixed one the same: that is how a model is measured.
        let other = from(0, 16, Pass { epoch: 3, ..PASS });
        let alike = whole.iter().zip(&other).filter(|(one, other)| one == other).count();
        assert!(alike < whole.len() / 20, "{alike} of {}", whole.len());
    }

    #[test]
    fn filling_again_moves_nothing() {
        let corpus = corpus_of(&some_documents(40, 3));
        let (masking, instances) = (masking(), Instance::draw(&corpus, PASS, LENGTH, 0.1));
        let mut batch = MaskedBatch::with_capacity(16, LENGTH, 1);
        let places = |batch: &MaskedBatch| {
            let words =
                [&batch.rows, &batch.places, &batch.labels, &batch.ids, &batch.batch.ids, &batch.pairs.ids];
            (words.map(|words| words.as_ptr()), batch.found.as_ptr(), batch.pairs.offsets.as_ptr())
        };
        let before = places(&batch);
        for chunk in instances.chunks(16) {
            batch.fill(&corpus, chunk, &masking, PASS, 0);
            assert_eq!(places(&batch), before, "a buffer moved");
        }
    }
}
