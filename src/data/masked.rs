//! A task of masked words: from raw text to texts of which tokens are to be guessed, beside the other tasks of a run.
//!
//! The texts are drawn once and are a [`Dataset`] like any other. What is hidden in those that are trained on is drawn
//! anew in each batch, from the run's seed and the batch's number; in those that are measured it is always the same.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cache::Prepared;
use super::corpus::{self, Corpus};
use super::dataset::{Dataset, Label};
use super::error::DataError;
use super::instances::{Instance, Pass};
use super::masked_batch::{IS_NEXT, IS_RANDOM};
use super::masking::{Masking, Predictions};
use super::reader::Skipped;
use super::text::{self, Layout};
use super::tokenizer::Tokenizer;
use crate::random::Random;

/// What is hidden in dev sets is the same in every run, so that figures compare.
const DEV_SEED: u64 = 2018;
/// What the draws of hidden tokens are for: keeps their stream of [`Random`] apart.
const HIDDEN: u32 = 0x4d48_0000;
/// How often a document's pairs are shorter than there is room for, as in BERT's training (Devlin et al. 2018, appendix
/// A.2: 10 %).
const SHORT: f64 = 0.1;

/// How a [`TaskKind::Masked`](super::TaskKind::Masked) task reads its text; the defaults are BERT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MaskedOptions {
    /// The share of a text's tokens that is to be guessed.
    pub mask_share: f64,
    /// Whether texts are pairs, and whether the second follows the first is to be told as well.
    pub next_sentence: bool,
    /// Whether the pieces of a word are hidden together.
    pub whole_words: bool,
    /// Files and folders to train on.
    #[serde(skip)]
    pub text: Vec<PathBuf>,
    /// Files and folders to measure on.
    #[serde(skip)]
    pub dev_text: Vec<PathBuf>,
    /// How their lines make sentences and documents.
    #[serde(skip)]
    pub layout: Layout,
}

impl Default for MaskedOptions {
    fn default() -> Self {
        Self {
            mask_share: 0.15,
            next_sentence: true,
            whole_words: false,
            text: Vec::new(),
            dev_text: Vec::new(),
            layout: Layout::Sentences,
        }
    }
}

impl MaskedOptions {
    pub(super) fn problem(&self) -> Option<String> {
        let share = self.mask_share;
        (!(share > 0.0 && share < 1.0)).then(|| format!("mask_share is {share}, which is not in (0, 1)"))
    }
}

/// What hides the tokens of a batch: a function of the run's seed and of the batch's number in the run.
pub fn hiding(seed: u64, step: u32) -> Random {
    Random::new(seed, [step, HIDDEN])
}

/// Makes the sets of a task.
#[derive(Clone, Copy)]
pub struct MaskedText<'a> {
    /// The task's name, for errors.
    pub task: &'a str,
    /// How it reads its text.
    pub options: &'a MaskedOptions,
    /// What makes tokens of it.
    pub tokenizer: &'a Tokenizer,
    /// Where the vocabulary is from, for errors.
    pub vocabulary: &'a Path,
    /// Tokens of a text or a pair, special ones included.
    pub max_length: usize,
    /// Where token ids are kept between runs.
    pub cache: Option<&'a Path>,
}

impl MaskedText<'_> {
    /// The set to train on, its pairs drawn from the run's `seed`; `None` where `progress` says so. It has no marks: its
    /// tokens are hidden in the batch ([`Batch::hide`](super::Batch::hide)).
    ///
    /// # Errors
    /// Text that cannot be read or is too little; a vocabulary without `[MASK]`.
    pub fn train(
        &self,
        seed: u64,
        progress: &mut dyn FnMut(&Path, u64, u64) -> bool,
    ) -> Result<Option<Prepared>, DataError> {
        let masking = self.masking()?;
        let Some(corpus) = self.corpus("train", &self.options.text, progress)? else { return Ok(None) };
        let pass = Pass { seed, phase: 0, epoch: 0 };
        let set = Dataset { masking: Some(masking), ..self.texts(&corpus, pass, SHORT) };
        Ok(Some(self.prepared("train", set, &corpus)))
    }

    /// The set to measure on, hidden tokens and all: they are its marks, and their classes what stood there. `None` where
    /// `progress` says so.
    ///
    /// # Errors
    /// As [`MaskedText::train`].
    pub fn dev(
        &self,
        progress: &mut dyn FnMut(&Path, u64, u64) -> bool,
    ) -> Result<Option<Prepared>, DataError> {
        let masking = self.masking()?;
        let Some(corpus) = self.corpus("dev", &self.options.dev_text, progress)? else { return Ok(None) };
        let pass = Pass { seed: DEV_SEED, phase: 0, epoch: 0 };
        let plain = self.texts(&corpus, pass, 0.0);
        let (mut set, mut ids, mut predictions) = (Dataset::new(), Vec::new(), Predictions::default());
        for example in 0..plain.len() {
            ids.clear();
            ids.extend_from_slice(plain.sequence(example));
            let second = plain.second[example];
            let mut random = hiding(DEV_SEED, example as u32);
            masking.hide(&mut random, &mut ids, second, &mut predictions);
            set.push_sequence(&ids, second);
            set.marks.push_hidden(&predictions.chosen);
            set.finish_example(plain.labels[example]);
        }
        Ok(Some(self.prepared("dev", set, &corpus)))
    }

    fn prepared(&self, name: &str, dataset: Dataset, corpus: &Corpus) -> Prepared {
        let odd = corpus.oddities(self.tokenizer, self.options.next_sentence).into_iter();
        let notes = odd.map(|odd| format!("{name} text of task {}: {odd}", self.task)).collect();
        Prepared { dataset, skipped: Skipped::default(), notes }
    }

    fn masking(&self) -> Result<Masking, DataError> {
        let MaskedOptions { mask_share, whole_words, .. } = *self.options;
        Masking::new(self.tokenizer, self.vocabulary, mask_share, whole_words, None)
    }

    /// The token ids of text; those in the cache, if they are of the same text and vocabulary.
    fn corpus(
        &self,
        name: &str,
        paths: &[PathBuf],
        progress: &mut dyn FnMut(&Path, u64, u64) -> bool,
    ) -> Result<Option<Corpus>, DataError> {
        let files = text::files(paths)?;
        let layout = self.options.layout;
        let source = corpus::fingerprint(&files, layout)?;
        // Without a cache the file is gone when the ids have been read.
        let passing = tempfile::tempdir().map_err(DataError::write(Path::new("a temporary folder")))?;
        let folder = self.cache.unwrap_or(passing.path());
        let short: String = source[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(format!("{name}-{short}-{}.corpus", self.tokenizer.hash()));
        if let Ok(corpus) = Corpus::open(&path, self.tokenizer)
            && corpus.source() == source
        {
            return Ok(Some(corpus));
        }
        let first = files.first().unwrap_or(&path).clone();
        let mut told = |done, total| progress(&first, done, total);
        let corpus = match Corpus::build(&files, layout, self.tokenizer, &path, &mut told) {
            Err(DataError::Stopped) => return Ok(None),
            built => built?,
        };
        if self.options.next_sentence && corpus.sentences() < 2 {
            let reason = format!(
                "the {name} text is a single sentence, and next sentences need two; put a sentence on each line, \
                 have paragraphs cut by split = true, or say next_sentence = false"
            );
            return Err(self.wrong(reason));
        }
        Ok(Some(corpus))
    }

    /// Pairs of texts, or without next sentences the documents, cut into as long pieces as there is room for.
    fn texts(&self, corpus: &Corpus, pass: Pass, short: f64) -> Dataset {
        let (mut set, mut ids) = (Dataset::new(), Vec::new());
        let specials = [self.tokenizer.cls(), self.tokenizer.sep()];
        if !self.options.next_sentence {
            for document in 0..corpus.documents() {
                let tokens = corpus.tokens_of(corpus.sentences_of(document));
                for piece in tokens.chunks(self.max_length - 2) {
                    ids.clear();
                    ids.push(specials[0]);
                    ids.extend_from_slice(piece);
                    ids.push(specials[1]);
                    set.push_sequence(&ids, ids.len() as u32);
                    set.finish_example(Label::None);
                }
            }
            return set;
        }
        let instances = Instance::draw(corpus, pass, self.max_length, short);
        for (number, instance) in (0u32..).zip(&instances) {
            ids.clear();
            let mut random = pass.masks(number);
            let second = instance.write(corpus, &mut random, self.max_length, specials, &mut ids);
            set.push_sequence(&ids, second);
            set.finish_example(Label::Class(if instance.is_next { IS_NEXT } else { IS_RANDOM }));
        }
        set
    }

    fn wrong(&self, reason: String) -> DataError {
        DataError::Task { task: self.task.to_string(), reason }
    }
}
