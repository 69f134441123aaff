//! Masked language modelling: which tokens are to be guessed, and what stands in their place (Devlin et al. 2019,
//! arXiv 1810.04805, section 3.1).

use std::path::Path;

use super::error::DataError;
use super::tokenizer::Tokenizer;
use crate::random::Random;

/// How tokens are hidden. Of the chosen ones 80 % become `[MASK]`, 10 % any token of the vocabulary, special ones
/// included, and 10 % stay what they are; of a whole word each piece has a draw of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Masking {
    share: f64,
    most: usize,
    mask: u32,
    /// `[CLS]` and `[SEP]`.
    specials: [u32; 2],
    vocab_size: u32,
    /// Whether an id goes on with the word of the piece before; empty where words may be cut. [vocab_size]
    continues: Vec<bool>,
}

/// A token to be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prediction {
    /// Its position in the sequence.
    pub position: u32,
    /// What stood there.
    pub id: u32,
}

/// The predictions of a sequence, kept so that their memory is used again.
#[derive(Clone, Debug, Default)]
pub struct Predictions {
    /// By position. At least one.
    pub chosen: Vec<Prediction>,
    /// Where each word starts, and its pieces.
    words: Vec<[u32; 2]>,
}

impl Predictions {
    /// Room for those of any sequence of at most `length` tokens.
    pub fn with_capacity(length: usize) -> Self {
        Self { chosen: Vec::with_capacity(length), words: Vec::with_capacity(length) }
    }
}

impl Masking {
    /// Hides `share` of a sequence's tokens, at most `most` of them, piece by piece or in whole words. `vocabulary` is
    /// what an error names.
    ///
    /// # Errors
    /// If the vocabulary has no `[MASK]`.
    ///
    /// # Panics
    /// If `share` is not within 0 to 1 or `most` is 0.
    pub fn new(
        tokenizer: &Tokenizer,
        vocabulary: &Path,
        share: f64,
        whole_words: bool,
        most: Option<usize>,
    ) -> Result<Self, DataError> {
        let most = most.unwrap_or(usize::MAX);
        assert!((0.0..=1.0).contains(&share) && most > 0, "a share of {share}, at most {most}");
        let missing = || {
            DataError::Vocabulary {
            path: vocabulary.to_path_buf(),
            reason: "the vocabulary has no [MASK] token, which stands for the words to be guessed; give it one in the \
                     place of an unused token, or train a vocabulary with `mtdnn-raw vocab`"
                .to_string(),
        }
        };
        let mask = tokenizer.mask().ok_or_else(missing)?;
        let vocab_size = tokenizer.vocab_size() as u32;
        let goes_on = |id: u32| tokenizer.token(id).is_some_and(|token| token.starts_with("##"));
        let continues = if whole_words { (0..vocab_size).map(goes_on).collect() } else { Vec::new() };
        let specials = [tokenizer.cls(), tokenizer.sep()];
        Ok(Self { share, most, mask, specials, vocab_size, continues })
    }

    /// The ids of `[CLS]` and `[SEP]`.
    pub fn specials(&self) -> [u32; 2] {
        self.specials
    }

    /// The most predictions that a sequence of at most `length` tokens can get.
    pub fn most_of(&self, length: usize) -> usize {
        ((self.share * length as f64).ceil() as usize).min(length.saturating_sub(2)).min(self.most).max(1)
    }

    /// Hides tokens of `[CLS] A [SEP] B [SEP]`, where B begins at `second`, or of `[CLS] A [SEP]`, where `second` is its
    /// length, and writes down what they were.
    ///
    /// The number of predictions is the share of all tokens, special ones included, rounded up or down by a draw so that
    /// its mean is exact; BERT rounds to the nearest, which makes 14.84 % of 128 tokens. It is at least 1. Whole words
    /// are taken in random order while they fit into the number; if none does, as many pieces of the first as do.
    pub fn hide(&self, random: &mut Random, ids: &mut [u32], second: u32, predictions: &mut Predictions) {
        let Predictions { chosen, words } = predictions;
        chosen.clear();
        words.clear();
        let end = ids.len() as u32 - 1;
        for text in [1..second - 1, second..end] {
            let start = text.start;
            for position in text {
                let goes_on = self.continues.get(ids[position as usize] as usize).copied().unwrap_or(false);
                match words.last_mut() {
                    Some([_, pieces]) if goes_on && position > start => *pieces += 1,
                    _ => words.push([position, 1]),
                }
            }
        }
        let exact = self.share * ids.len() as f64;
        let drawn = exact as usize + usize::from(random.chance(exact.fract()));
        let wanted = drawn.clamp(1, self.most);
        let mut first = None;
        for word in 0..words.len() {
            if chosen.len() == wanted {
                break;
            }
            let other = word + random.below((words.len() - word) as u32) as usize;
            words.swap(word, other);
            let [start, pieces] = words[word];
            first.get_or_insert(start);
            if chosen.len() + pieces as usize <= wanted {
                chosen.extend((start..start + pieces).map(|position| Prediction { position, id: 0 }));
            }
        }
        if let (true, Some(start)) = (chosen.is_empty(), first) {
            chosen.extend((start..start + wanted as u32).map(|position| Prediction { position, id: 0 }));
        }
        chosen.sort_unstable();
        for prediction in chosen {
            let id = &mut ids[prediction.position as usize];
            prediction.id = *id;
            match random.below(10) {
                0 => {}
                1 => *id = random.below(self.vocab_size),
                _ => *id = self.mask,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::corpus::tests::hundred_words;
    use crate::data::instances::Pass;
    use crate::data::tokenizer::Normalization;

    const MASK: u32 = 4;

    fn masking(share: f64, whole_words: bool, most: Option<usize>) -> Masking {
        Masking::new(&hundred_words(), Path::new("vocab.txt"), share, whole_words, most).unwrap()
    }

    /// `[CLS] A [SEP] B [SEP]` of any words, and where B begins.
    fn pair(random: &mut Random, a: usize, b: usize) -> (Vec<u32>, u32) {
        let mut words = |count| (0..count).map(|_| 5 + random.below(95)).collect::<Vec<u32>>();
        let (a, b) = (words(a), words(b));
        ([&[2][..], &a, &[3], &b, &[3]].concat(), a.len() as u32 + 2)
    }

    #[test]
    fn fifteen_of_a_hundred_tokens_are_chosen_and_eight_of_ten_of_them_hidden() {
        for whole_words in [false, true] {
            let masking = masking(0.15, whole_words, None);
            let mut predictions = Predictions::default();
            let (mut tokens, mut chosen, mut hidden, mut kept) = (0, 0, 0, 0);
            let mut other = vec![0; 100];
            for number in 0.. {
                let mut random = Pass { seed: 5, phase: 0, epoch: 0 }.masks(number);
                let length = 30 + random.below(96) as usize;
                let (before, second) = pair(&mut random, length / 3, length - length / 3);
                let mut ids = before.clone();
                masking.hide(&mut random, &mut ids, second, &mut predictions);
                assert!(predictions.chosen.len() <= masking.most_of(ids.len()));
                tokens += ids.len();
                chosen += predictions.chosen.len();
                for prediction in &predictions.chosen {
                    let now = ids[prediction.position as usize];
                    match now {
                        _ if now == prediction.id => kept += 1,
                        MASK => hidden += 1,
                        _ => other[now as usize] += 1,
                    }
                }
                if tokens > 1_000_000 {
                    break;
                }
            }
            let share = |count: usize, of: usize| 100.0 * count as f64 / of as f64;
            let share_of_chosen = share(chosen, tokens);
            assert!((share_of_chosen - 15.0).abs() < 0.1, "whole words {whole_words}: {share_of_chosen}");
            let changed: usize = other.iter().sum();
            // One random word in a hundred is the word that stood there, one is [MASK].
            for (count, expected) in [(hidden, 80.1), (kept, 10.1), (changed, 9.8)] {
                let found = share(count, chosen);
                assert!((found - expected).abs() < 0.5, "{found}, not {expected}");
            }
            // Random words are from the whole vocabulary, special ones too; five standard deviations.
            let even = changed as f64 / 99.0;
            for (id, &count) in other.iter().enumerate().filter(|&(id, _)| id as u32 != MASK) {
                assert!((count as f64 - even).abs() < 5.0 * even.sqrt(), "{count} of {id}");
            }
        }
    }

    #[test]
    fn predictions_name_what_stood_there_and_nothing_else_changes() {
        let masking = masking(0.3, false, Some(10));
        let mut predictions = Predictions::default();
        for number in 0..500 {
            let mut random = Pass { seed: 6, phase: 0, epoch: 0 }.masks(number);
            let (a, b) = (1 + random.below(40) as usize, 1 + random.below(40) as usize);
            let (before, second) = pair(&mut random, a, b);
            let mut ids = before.clone();
            masking.hide(&mut random, &mut ids, second, &mut predictions);
            let chosen = &predictions.chosen;
            assert!(!chosen.is_empty() && chosen.len() <= 10.min(masking.most_of(ids.len())));
            assert!(chosen.windows(2).all(|pair| pair[0].position < pair[1].position));
            for prediction in chosen {
                assert_eq!(prediction.id, before[prediction.position as usize]);
                assert!(prediction.id > MASK, "a special token is to be guessed");
                ids[prediction.position as usize] = prediction.id;
            }
            assert_eq!(ids, before);
        }
    }

    #[test]
    fn every_position_is_as_likely_as_the_others() {
        let masking = masking(0.15, false, None);
        let (mut predictions, mut counts) = (Predictions::default(), [0_i32; 23]);
        let (ids, second) = pair(&mut Random::new(1, [0, 0]), 10, 10);
        for number in 0..40_000 {
            let mut random = Pass { seed: 7, phase: 0, epoch: 0 }.masks(number);
            masking.hide(&mut random, &mut ids.clone(), second, &mut predictions);
            predictions.chosen.iter().for_each(|prediction| counts[prediction.position as usize] += 1);
        }
        // 3.45 of 20 on average.
        assert_eq!([counts[0], counts[11], counts[22]], [0; 3]);
        let off = |&&count: &&i32| count != 0 && (count - 6900).abs() > 5 * 76;
        assert_eq!(counts.iter().find(off), None, "{counts:?}");
        assert!((counts.iter().sum::<i32>() - 138_000).abs() < 500, "{counts:?}");
    }

    #[test]
    fn whole_words_are_taken_or_left() {
        let masking = masking(0.4, true, None);
        let mut predictions = Predictions::default();
        // Odd ids go on: three pieces, one, two; and a text that begins within a word.
        let before = [2, 6, 7, 9, 8, 10, 11, 3, 13, 15, 12, 3];
        let words: [&[u32]; 5] = [&[1, 2, 3], &[4], &[5, 6], &[8, 9], &[10]];
        let mut taken = [0; 5];
        for number in 0..1000 {
            let mut random = Pass { seed: 8, phase: 0, epoch: 0 }.masks(number);
            masking.hide(&mut random, &mut before.clone(), 8, &mut predictions);
            let positions: Vec<u32> = predictions.chosen.iter().map(|chosen| chosen.position).collect();
            assert!((4..=5).contains(&positions.len()), "{positions:?}");
            for (word, taken) in words.iter().zip(&mut taken) {
                let pieces = word.iter().filter(|piece| positions.contains(piece)).count();
                assert!(pieces == 0 || pieces == word.len(), "a part of {word:?} in {positions:?}");
                *taken += usize::from(pieces > 0);
            }
        }
        assert!(taken.iter().all(|&count| count > 200), "{taken:?}");
        // Where no word fits, one is cut: a sequence without a prediction would teach nothing.
        let long = [2, 6, 7, 9, 11, 3, 8, 13, 15, 3];
        masking_one(&long, 6);
    }

    fn masking_one(ids: &[u32], second: u32) {
        let mut predictions = Predictions::default();
        let mut random = Pass { seed: 9, phase: 0, epoch: 0 }.masks(0);
        masking(0.15, true, Some(1)).hide(&mut random, &mut ids.to_vec(), second, &mut predictions);
        let [Prediction { position: 1, id: 6 } | Prediction { position: 6, id: 8 }] = predictions.chosen[..]
        else {
            panic!("{predictions:?}")
        };
    }

    #[test]
    fn a_vocabulary_without_a_mask_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n").unwrap();
        let without = Tokenizer::from_directory(directory.path()).unwrap();
        let error = Masking::new(&without, Path::new("model/vocab.txt"), 0.15, false, None).unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with("model/vocab.txt: ") && said.contains("no [MASK]"), "{said}");
        let with = Tokenizer::from_words(["a"], Normalization::default()).unwrap();
        assert!(Masking::new(&with, Path::new(""), 0.15, false, None).is_ok());
    }
}
