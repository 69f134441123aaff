//! BERT's training instances, drawn anew in each epoch: pairs of texts of which the second follows the first or is
//! a random one (Devlin et al. 2019, arXiv 1810.04805, and `create_pretraining_data.py` of its code).
//!
//! BERT wrote its instances to files, ten passes over the text with other draws each. Here an epoch is one such pass,
//! held as numbers of sentences. As there, the length that a document's instances aim at is drawn once for a document
//! and pass, not for each instance.

use std::ops::Range;

use rayon::prelude::*;

use super::corpus::Corpus;
use crate::random::Random;

/// What draws are for: keeps the streams of [`Random`] apart. A phase's number stands in the low half.
const DOCUMENTS: u32 = 0x5349_0000;
const ORDER: u32 = 0x534f_0000;
const MASKS: u32 = 0x534d_0000;
/// How often another document is drawn for until it is not the same one.
const DRAWS: usize = 10;

/// One pass over a corpus. Everything that is drawn in it is a function of these numbers and of what it is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The run's seed.
    pub seed: u64,
    /// The number of the phase, below 65 536: sequences of 128 tokens are one, those of 512 another.
    pub phase: u32,
    /// The number of the pass within its phase.
    pub epoch: u32,
}

impl Pass {
    /// The draws of the masks and cuts of an instance, which is named by its place in the epoch's order.
    pub fn masks(self, instance: u32) -> Random {
        self.part(MASKS, instance)
    }

    /// The stream for item `number` of `purpose`: three numbers name it beside the seed, and a stream has room for two,
    /// so that the first two make a seed of their own.
    fn part(self, purpose: u32, number: u32) -> Random {
        let mut seeds = self.whole(purpose);
        let seed = u64::from(seeds.word()) << 32 | u64::from(seeds.word());
        Random::new(seed, [number, purpose])
    }

    fn whole(self, purpose: u32) -> Random {
        assert!(self.phase <= 0xffff, "phase {} of a run", self.phase);
        Random::new(self.seed, [self.epoch, purpose | self.phase])
    }
}

/// Two texts, each some sentences of a corpus that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The sentences of the first text, at least one.
    pub first: Range<u32>,
    /// The sentences of the second, at least one.
    pub second: Range<u32>,
    /// Whether the second text follows the first. Else it is from another document, or from any place of the same one
    /// if no other was found in ten draws.
    pub is_next: bool,
}

impl Instance {
    /// All instances of a pass over `corpus`, in the order in which they are to be read; the same at any number of
    /// threads. `max_length` counts tokens, `[CLS]` and both `[SEP]` included; with `short_probability` a document's
    /// instances are shorter, as long as it falls.
    ///
    /// If the corpus has one document only, every second text is from it: next sentences cannot be learnt from that,
    /// and the caller should say so.
    ///
    /// # Panics
    /// If `max_length` is below 5: too short for the special tokens and a token of each text.
    pub fn draw(corpus: &Corpus, pass: Pass, max_length: usize, short_probability: f64) -> Vec<Self> {
        assert!(max_length >= 5, "{max_length} tokens do not hold [CLS], two [SEP] and two texts");
        let of_document = |document: usize| {
            let mut random = pass.part(DOCUMENTS, document as u32);
            let most = max_length - 3;
            let short = random.chance(short_probability);
            let target = if short { 2 + random.below(most as u32 - 1) as usize } else { most };
            Instances { corpus, document, target, random, next: corpus.sentences_of(document).start }
        };
        let documents = (0..corpus.documents()).into_par_iter();
        let mut instances: Vec<Self> = documents.flat_map_iter(of_document).collect();
        pass.whole(ORDER).shuffle(&mut instances);
        instances
    }

    /// Appends `[CLS] A [SEP] B [SEP]` to `ids`, at most `max_length` of them, and returns the position where B starts.
    /// Too long a pair loses tokens one at a time, each from the longer text, from its front or its end by a coin.
    ///
    /// # Panics
    /// If `max_length` is below 5, or the instance is not of this corpus.
    pub fn write(
        &self,
        corpus: &Corpus,
        random: &mut Random,
        max_length: usize,
        [cls, sep]: [u32; 2],
        ids: &mut Vec<u32>,
    ) -> u32 {
        assert!(max_length >= 5, "{max_length} tokens do not hold [CLS], two [SEP] and two texts");
        let mut first = corpus.tokens_of(self.first.start as usize..self.first.end as usize);
        let mut second = corpus.tokens_of(self.second.start as usize..self.second.end as usize);
        while first.len() + second.len() > max_length - 3 {
            let longer = if first.len() > second.len() { &mut first } else { &mut second };
            *longer = if random.below(2) == 0 { &longer[1..] } else { &longer[..longer.len() - 1] };
        }
        let start = ids.len();
        ids.push(cls);
        ids.extend_from_slice(first);
        ids.push(sep);
        let place = (ids.len() - start) as u32;
        ids.extend_from_slice(second);
        ids.push(sep);
        place
    }
}

/// The instances of a document, one after another.
struct Instances<'a> {
    corpus: &'a Corpus,
    document: usize,
    /// Tokens that an instance aims at.
    target: usize,
    random: Random,
    /// The first sentence that no text has taken yet.
    next: usize,
}

impl Iterator for Instances<'_> {
    type Item = Instance;

    fn next(&mut self) -> Option<Instance> {
        let end = self.corpus.sentences_of(self.document).end;
        if self.next == end {
            return None;
        }
        let chunk = self.gather(self.next..end, self.target);
        let below = |random: &mut Random, count: usize| random.below(count as u32) as usize;
        let taken = if chunk.len() == 1 { 1 } else { 1 + below(&mut self.random, chunk.len() - 1) };
        let first = chunk.start..chunk.start + taken;
        let is_next = chunk.len() > 1 && self.random.below(2) == 1;
        let second = if is_next {
            self.next = chunk.end;
            first.end..chunk.end
        } else {
            // The rest of the chunk is put back.
            self.next = first.end;
            let documents = self.corpus.documents();
            let mut draws = (0..DRAWS).map(|_| below(&mut self.random, documents));
            let other = draws.find(|&document| document != self.document).unwrap_or(self.document);
            let sentences = self.corpus.sentences_of(other);
            let start = sentences.start + below(&mut self.random, sentences.len());
            let target = self.target.saturating_sub(self.corpus.length_of(first.clone()));
            self.gather(start..sentences.end, target)
        };
        let numbers = |range: Range<usize>| range.start as u32..range.end as u32;
        Some(Instance { first: numbers(first), second: numbers(second), is_next })
    }
}

impl Instances<'_> {
    /// The first of `sentences` that hold `target` tokens together, at least one, or all of them.
    fn gather(&self, sentences: Range<usize>, target: usize) -> Range<usize> {
        let enough = |&end: &usize| self.corpus.length_of(sentences.start..end) >= target;
        let end = (sentences.start + 1..=sentences.end).find(enough).unwrap_or(sentences.end);
        sentences.start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::corpus::tests::{corpus_of, some_documents};

    const LENGTH: usize = 64;

    fn pass(epoch: u32) -> Pass {
        Pass { seed: 12345, phase: 0, epoch }
    }

    fn document_of(corpus: &Corpus, sentences: &Range<u32>) -> usize {
        assert!(!sentences.is_empty());
        let holds = |&document: &usize| corpus.sentences_of(document).contains(&(sentences.start as usize));
        let document = (0..corpus.documents()).find(holds).unwrap();
        assert!(
            sentences.end as usize <= corpus.sentences_of(document).end,
            "it goes on in the next document"
        );
        document
    }

    #[test]
    fn no_text_crosses_a_document_and_each_document_is_read_in_order_without_gaps() {
        let corpus = corpus_of(&some_documents(60, 1));
        for (epoch, short) in [(0, 0.0), (1, 0.1), (2, 1.0)] {
            let mut instances = Instance::draw(&corpus, pass(epoch), LENGTH, short);
            instances.sort_by_key(|instance| instance.first.start);
            let mut next = 0;
            for Instance { first, second, is_next } in &instances {
                let document = document_of(&corpus, first);
                assert_eq!(first.start, next, "a sentence is lost or read twice");
                next = first.end;
                if *is_next {
                    assert_eq!((document_of(&corpus, second), second.start), (document, first.end));
                    next = second.end;
                } else {
                    assert_ne!(document_of(&corpus, second), document);
                }
            }
            assert_eq!(next as usize, corpus.sentences());
        }
    }

    #[test]
    fn chunks_of_one_sentence_and_half_of_the_others_get_a_random_second() {
        let corpus = corpus_of(&some_documents(2000, 2));
        let target = LENGTH - 3;
        let (mut several, mut next, mut off) = (0_i64, 0, 0.0);
        let mut variance = 0.0;
        for Instance { first, is_next, .. } in Instance::draw(&corpus, pass(0), LENGTH, 0.0) {
            // The chunk that it was cut from: as many sentences as make the target, or the rest of the document.
            let start = first.start as usize;
            let last = corpus.sentences_of(document_of(&corpus, &first)).end;
            let lengths = (start + 1..last).take_while(|&end| corpus.length_of(start..end) < target);
            let sentences = 1 + lengths.count();
            if sentences == 1 {
                assert!(!is_next);
                assert_eq!(first.len(), 1);
            } else {
                assert!(first.len() < sentences);
                several += 1;
                next += i64::from(is_next);
                // A's share of the chunk is even over 1 to sentences - 1.
                off += first.len() as f64 - sentences as f64 / 2.0;
                variance += ((sentences - 1).pow(2) - 1) as f64 / 12.0;
            }
        }
        assert!(several > 10_000);
        let sigma = (several as f64 / 4.0).sqrt();
        assert!((next as f64 - several as f64 / 2.0).abs() < 4.0 * sigma, "{next} of {several}");
        assert!(off.abs() < 4.0 * variance.sqrt(), "{off}, sigma {}", variance.sqrt());
    }

    #[test]
    fn a_random_second_starts_anywhere_in_any_other_document_and_fills_the_target() {
        let documents = vec![vec![vec![5]; 40]; 10];
        let corpus = corpus_of(&documents);
        let (mut starts, mut draws) = (vec![0_i32; 400], 0);
        for epoch in 0..200 {
            for instance in Instance::draw(&corpus, pass(epoch), 13, 0.0) {
                if !instance.is_next {
                    starts[instance.second.start as usize] += 1;
                    draws += 1;
                    let left = (40 - instance.second.start % 40) as usize;
                    assert_eq!(instance.second.len(), left.min(10 - instance.first.len()).max(1));
                }
            }
        }
        // Of 400 counts none is likely to be five standard deviations off.
        let even = f64::from(draws) / 400.0;
        assert!(
            starts.iter().all(|&count| (f64::from(count) - even).abs() < 5.0 * even.sqrt()),
            "{starts:?}"
        );
    }

    #[test]
    fn the_target_is_drawn_once_a_document_and_is_even_where_it_is_short() {
        let corpus = corpus_of(&vec![vec![vec![5]; 60]; 4000]);
        let mut targets = vec![None; 4000];
        for Instance { first, second, is_next } in Instance::draw(&corpus, pass(0), 13, 0.4) {
            let document = document_of_equal(&first, 60);
            if is_next && second.end as usize != (document + 1) * 60 {
                let length = first.len() + second.len();
                assert_eq!(*targets[document].get_or_insert(length), length, "document {document} has two");
            }
        }
        let mut counts = [0_i32; 11];
        targets.iter().flatten().for_each(|&target| counts[target] += 1);
        // 2 to 10 with a chance of 0.4 / 9 each, and 10 with 0.6 more; five standard deviations.
        let known = f64::from(counts.iter().sum::<i32>());
        assert!(known > 3900.0 && counts[..2] == [0, 0], "{counts:?}");
        for (target, &count) in counts.iter().enumerate().skip(2) {
            let chance = 0.4 / 9.0 + if target == 10 { 0.6 } else { 0.0 };
            let sigma = (known * chance * (1.0 - chance)).sqrt();
            assert!((f64::from(count) - known * chance).abs() < 5.0 * sigma, "{target}: {counts:?}");
        }
    }

    fn document_of_equal(sentences: &Range<u32>, length: u32) -> usize {
        (sentences.start / length) as usize
    }

    #[test]
    fn an_epoch_follows_from_its_numbers_alone() {
        let corpus = corpus_of(&some_documents(300, 3));
        let with = |threads, pass| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Instance::draw(&corpus, pass, LENGTH, 0.1))
        };
        let first = with(1, pass(0));
        assert!(first == with(4, pass(0)), "threads change the instances");
        let others = [pass(1), Pass { phase: 1, ..pass(0) }, Pass { seed: 12346, ..pass(0) }];
        let mut seen = vec![first];
        for other in others {
            let instances = with(1, other);
            assert!(!seen.contains(&instances));
            seen.push(instances);
        }
        // Neighbours in the order are no neighbours in the text.
        let follows = seen[0].windows(2).filter(|pair| pair[0].first.start < pair[1].first.start).count();
        let share = follows as f64 / seen[0].len() as f64;
        assert!((share - 0.5).abs() < 0.05, "{share} of the instances follow the one before them");
    }

    #[test]
    fn tiny_corpora_make_pairs_too() {
        let draw = |documents: &[Vec<Vec<u32>>]| Instance::draw(&corpus_of(documents), pass(0), 16, 0.0);
        // One sentence: it follows itself, by chance.
        assert_eq!(draw(&[vec![vec![5]]]), [Instance { first: 0..1, second: 0..1, is_next: false }]);
        let mut two = draw(&[vec![vec![5]], vec![vec![6]]]);
        two.sort_by_key(|instance| instance.first.start);
        let random = |first, second| Instance { first, second, is_next: false };
        assert_eq!(two, [random(0..1, 1..2), random(1..2, 0..1)]);
        // One document: the second text is from the same, at any place.
        let one = corpus_of(&[vec![vec![5]; 500]]);
        let instances = Instance::draw(&one, pass(0), 16, 0.0);
        let (next, random): (Vec<_>, Vec<_>) = instances.iter().partition(|instance| instance.is_next);
        assert!(next.len() > 10 && random.len() > 10);
    }

    #[test]
    fn a_written_instance_is_a_cut_of_each_text_between_special_tokens() {
        let corpus = corpus_of(&some_documents(60, 4));
        let mut cut = 0;
        for max_length in [5, 6, LENGTH] {
            for (number, instance) in (0..).zip(Instance::draw(&corpus, pass(0), max_length, 0.1)) {
                let mut ids = vec![77];
                let mut random = pass(0).masks(number);
                let second = instance.write(&corpus, &mut random, max_length, [2, 3], &mut ids) as usize;
                let ids = &ids[1..];
                let (a, b) = (&ids[1..second - 1], &ids[second..ids.len() - 1]);
                assert_eq!([ids[0], ids[second - 1], ids[ids.len() - 1]], [2, 3, 3]);
                assert!(ids.len() <= max_length && !a.is_empty() && !b.is_empty());
                let whole = |text: &Range<u32>| corpus.tokens_of(text.start as usize..text.end as usize);
                let (whole_a, whole_b) = (whole(&instance.first), whole(&instance.second));
                assert!(whole_a.windows(a.len()).any(|part| part == a));
                assert!(whole_b.windows(b.len()).any(|part| part == b));
                let all = whole_a.len() + whole_b.len();
                assert_eq!(a.len() + b.len(), all.min(max_length - 3), "more was dropped than had to be");
                // Only the longer loses: one that lost ends at most one below the other.
                let lost = [a.len() < whole_a.len(), b.len() < whole_b.len()];
                assert!(!lost[0] || a.len() + 1 >= b.len());
                assert!(!lost[1] || b.len() + 1 >= a.len());
                cut += usize::from(lost[0] || lost[1]);
            }
        }
        assert!(cut > 1000, "only {cut} were cut");
    }

    #[test]
    fn tokens_are_dropped_from_both_ends_alike() {
        let text: Vec<u32> = (5..100).collect();
        let corpus = corpus_of(&[vec![text.clone()], vec![text]]);
        let instance = Instance { first: 0..1, second: 1..2, is_next: false };
        let (mut dropped, mut front) = (0, 0);
        for number in 0..500 {
            let mut ids = Vec::new();
            instance.write(&corpus, &mut pass(0).masks(number), LENGTH, [2, 3], &mut ids);
            dropped += 95 - 31;
            // 61 tokens stay, 31 of the first, since the second loses where both are of one length.
            front += ids[1] - 5;
            assert_eq!((ids[32], ids.len()), (3, LENGTH));
        }
        let sigma = f64::from(dropped as u32).sqrt() / 2.0;
        assert!(
            (f64::from(front) - f64::from(dropped as u32) / 2.0).abs() < 4.0 * sigma,
            "{front} of {dropped}"
        );
    }
}
