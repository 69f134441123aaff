//! The text of pre-training as token ids: tokenised once, kept in a file, and read where it lies.

mod build;
mod format;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use self::format::{Head, MAGIC, Parts, VERSION, checksum};
use super::error::DataError;
use super::mapped::Mapped;
use super::tokenizer::Tokenizer;

pub use build::fingerprint;

/// Tokens that one thread counts at a time.
const COUNTED: usize = 1 << 20;

/// What a corpus holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Text files that it was made from.
    pub files: u64,
    /// Documents: at least one sentence each.
    pub documents: u64,
    /// Sentences: at least one token each.
    pub sentences: u64,
    /// Tokens, without `[CLS]` and `[SEP]`.
    pub tokens: u64,
    /// Sentences that were left out because nothing of them is a token: control characters, for example.
    pub dropped: u64,
    /// NUL characters in the text, which were left out too.
    pub nuls: u64,
}

/// Documents of sentences of token ids, special tokens not included, in a file that is mapped into memory.
///
/// Whoever holds one can trust it: every document has a sentence, every sentence a token, every token is in the
/// vocabulary. A sentence's number fits `u32`.
#[derive(Debug)]
pub struct Corpus {
    mapped: Mapped,
    head: Head,
    parts: Parts,
    vocab_size: usize,
}

impl Corpus {
    /// Opens a corpus that [`Corpus::build`] made with this tokenizer, and reads all of it once to check it.
    ///
    /// # Errors
    /// A file that cannot be read, is no corpus, is one of another vocabulary, was cut short or edited.
    pub fn open(path: &Path, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let wrong = |reason: String| DataError::Corpus { path: path.to_path_buf(), reason };
        let mapped = Mapped::open(path).map_err(DataError::read(path))?;
        let bytes = mapped.bytes();
        let length = bytes.len();
        if length < size_of::<Head>() {
            return Err(wrong(format!(
                "{length} bytes are too few for a corpus: it was cut short or is none"
            )));
        }
        let head: Head = bytemuck::pod_read_unaligned(&bytes[..size_of::<Head>()]);
        if head.magic != MAGIC {
            return Err(wrong("it is no corpus".to_string()));
        }
        if head.version != VERSION {
            let reason = format!("a corpus of version {}, this program reads {VERSION}", head.version);
            return Err(wrong(reason));
        }
        if head.vocabulary != *tokenizer.hash().as_bytes() {
            return Err(DataError::OtherVocabulary { path: path.to_path_buf() });
        }
        // The counts are believed only if they add up to the file's size.
        let parts = Parts::of(&head).filter(|parts| parts.checksum.end == bytes.len()).ok_or_else(|| {
            wrong(format!("its head does not fit its {length} bytes: it was cut short or edited"))
        })?;
        if checksum(&bytes[..parts.checksum.start]) != bytes[parts.checksum.clone()] {
            return Err(wrong(
                "its checksum is not that of its contents: it was edited or damaged".to_string(),
            ));
        }
        let corpus = Self { mapped, head, parts, vocab_size: tokenizer.vocab_size() };
        corpus.check().map_err(|reason| wrong(reason.to_string()))?;
        Ok(corpus)
    }

    /// What it holds.
    pub fn counts(&self) -> Counts {
        let Head { files, documents, sentences, tokens, dropped, nuls, .. } = self.head;
        Counts { files, documents, sentences, tokens, dropped, nuls }
    }

    /// What is odd about its text and has to be said before it is trained on; that there is one document only, where next
    /// sentences are told.
    pub fn oddities(&self, tokenizer: &Tokenizer, next_sentence: bool) -> Vec<String> {
        let counts = self.counts();
        let mut odd = Vec::new();
        if counts.dropped > 0 {
            odd.push(format!("{} lines were left out, nothing of them is a token", counts.dropped));
        }
        if counts.nuls > 0 {
            odd.push(format!("{} NUL characters were left out", counts.nuls));
        }
        if counts.documents == 1 && next_sentence {
            odd.push(
                "it is one document, so that sentences that do not follow are drawn from it as well: next sentences can \
                 hardly be learnt. Put a blank line between documents"
                    .into(),
            );
        }
        let unknown = self.id_counts()[tokenizer.unknown() as usize];
        if unknown * 100 > counts.tokens {
            let share = 100.0 * unknown as f64 / counts.tokens as f64;
            odd.push(format!(
                "{share:.1} % of the tokens are [UNK]: is the vocabulary one of this language and casing?"
            ));
        }
        odd
    }

    /// The [`fingerprint`] of the text that it was made from: another one means that the text has changed.
    pub fn source(&self) -> [u8; 32] {
        self.head.source
    }

    /// The number of documents, at least 1.
    pub fn documents(&self) -> usize {
        self.document_starts().len() - 1
    }

    /// The number of sentences, at least 1.
    pub fn sentences(&self) -> usize {
        self.sentence_starts().len() - 1
    }

    /// All token ids in order. [tokens]
    pub fn tokens(&self) -> &[u32] {
        bytemuck::cast_slice(&self.mapped.bytes()[self.parts.tokens.clone()])
    }

    /// The numbers of a document's sentences.
    pub fn sentences_of(&self, document: usize) -> Range<usize> {
        let starts = self.document_starts();
        starts[document] as usize..starts[document + 1] as usize
    }

    /// The token ids of a sentence.
    pub fn sentence(&self, sentence: usize) -> &[u32] {
        self.tokens_of(sentence..sentence + 1)
    }

    /// The token ids of sentences that follow one another.
    pub fn tokens_of(&self, sentences: Range<usize>) -> &[u32] {
        let starts = self.sentence_starts();
        &self.tokens()[starts[sentences.start] as usize..starts[sentences.end] as usize]
    }

    /// The number of tokens of sentences that follow one another.
    pub fn length_of(&self, sentences: Range<usize>) -> usize {
        let starts = self.sentence_starts();
        (starts[sentences.end] - starts[sentences.start]) as usize
    }

    /// How often each id of the vocabulary occurs. [vocab_size]
    pub fn id_counts(&self) -> Vec<u64> {
        let none = || vec![0_u64; self.vocab_size];
        let add = |mut sums: Vec<u64>, counts: Vec<u64>| {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            sums
        };
        let chunks = self.tokens().par_chunks(COUNTED);
        let counted = chunks.fold(none, |mut counts, chunk| {
            chunk.iter().for_each(|&id| counts[id as usize] += 1);
            counts
        });
        counted.reduce(none, add)
    }

    /// The entropy of a token drawn from the corpus, in nats: -sum p ln p. A model that knows how often each token
    /// occurs, and nothing of what stands around it, has this masked-word loss at best.
    pub fn unigram_entropy(&self) -> f64 {
        let total = self.head.tokens as f64;
        let share = |&count: &u64| count as f64 / total;
        -self.id_counts().iter().map(share).filter(|&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
    }

    /// Where each sentence starts among the tokens. [sentences + 1]
    fn sentence_starts(&self) -> &[u64] {
        bytemuck::cast_slice(&self.mapped.bytes()[self.parts.sentences.clone()])
    }

    /// Where each document starts among the sentences. [documents + 1]
    fn document_starts(&self) -> &[u64] {
        bytemuck::cast_slice(&self.mapped.bytes()[self.parts.documents.clone()])
    }

    /// Whether the parts fit together, so that no later index can be out of range: a checksum can be forged.
    fn check(&self) -> Result<(), &'static str> {
        let cover = |starts: &[u64], count: u64| {
            starts[0] == 0
                && starts[starts.len() - 1] == count
                && starts.par_windows(2).all(|pair| pair[0] < pair[1])
        };
        let Head { documents, sentences, tokens, .. } = self.head;
        if documents == 0 || sentences > u64::from(u32::MAX) {
            return Err("it has no document, or more sentences than can be numbered");
        }
        if !cover(self.sentence_starts(), tokens) {
            return Err("its sentences do not cover its tokens");
        }
        if !cover(self.document_starts(), sentences) {
            return Err("its documents do not cover its sentences");
        }
        if !self.tokens().par_iter().all(|&id| (id as usize) < self.vocab_size) {
            return Err("a token is not in the vocabulary");
        }
        Ok(())
    }
}
