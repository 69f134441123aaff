//! From text files to a corpus file.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Corpus;
use super::format::{Head, Writer};
use crate::data::error::DataError;
use crate::data::text::{self, Layout, Piece};
use crate::data::tokenizer::Tokenizer;

/// Bytes of text that are tokenised at a time, by all threads together.
const BATCH: usize = 1 << 20;

/// A hash of how text is read and of all the files' bytes in order; not of their names.
///
/// # Errors
/// A file that cannot be read.
pub fn fingerprint(texts: &[PathBuf], layout: Layout) -> Result<[u8; 32], DataError> {
    let digest = |path: &PathBuf| -> Result<[u8; 32], DataError> {
        let mut file = File::open(path).map_err(DataError::read(path))?;
        let mut hasher = Sha256::new();
        io::copy(&mut file, &mut hasher).map_err(DataError::read(path))?;
        Ok(hasher.finalize().into())
    };
    let digests: Vec<[u8; 32]> = texts.par_iter().map(digest).collect::<Result<_, _>>()?;
    let mut hasher = Sha256::new();
    hasher.update(format!("{layout:?} "));
    hasher.update(digests.as_flattened());
    Ok(hasher.finalize().into())
}

impl Corpus {
    /// Reads text files, tokenises them with all threads, writes the corpus to `path`, and opens it. The bytes do not
    /// depend on the number of threads. Memory holds some megabytes of text and the offsets of the sentences.
    ///
    /// `progress` is told how many bytes of text are done, and of how many, and says whether to go on.
    ///
    /// # Errors
    /// Text that cannot be read, is not UTF-8, or has no sentence; a disk that fills; [`DataError::Stopped`] where
    /// `progress` says so. An earlier file is then as it was, and nothing else is left.
    pub fn build(
        texts: &[PathBuf],
        layout: Layout,
        tokenizer: &Tokenizer,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Self, DataError> {
        // Hashed before it is read: text that changes in between gives a corpus that is out of date, and is seen to be.
        let source = fingerprint(texts, layout)?;
        let mut total = 0;
        for text in texts {
            total += fs::metadata(text).map_err(DataError::read(text))?.len();
        }
        let writer = Writer::new(path).map_err(DataError::write(path))?;
        let (text, pieces, dropped, done) = (String::new(), Vec::new(), 0, 0);
        let mut builder = Builder { tokenizer, path, writer, text, pieces, dropped, done, total, progress };
        let mut nuls = 0;
        for file in texts {
            // The reader goes on to the end of its file; what failed before it gets there is kept.
            let mut result = Ok(());
            let read = text::read(file, layout, |piece| {
                if result.is_ok() {
                    result = builder.add(piece, file);
                }
            });
            result?;
            nuls += read?.nuls;
        }
        builder.flush(texts.last().map_or(path, PathBuf::as_path))?;
        if builder.writer.sentences() == 0 {
            let path = texts.first().map_or(path, PathBuf::as_path).to_path_buf();
            let others = match texts.len() {
                1 => String::new(),
                count => format!(" nor in the other {} text files", count - 1),
            };
            let reason = format!(
                "no sentence in it{others}; write one sentence a line and a blank line between documents, or have \
                 paragraphs cut with --split (split = true in a run file)"
            );
            return Err(DataError::RawText { path, reason });
        }
        let mut vocabulary = [0; 16];
        vocabulary.copy_from_slice(tokenizer.hash().as_bytes());
        let head = Head {
            vocabulary,
            source,
            files: texts.len() as u64,
            dropped: builder.dropped,
            nuls,
            ..bytemuck::Zeroable::zeroed()
        };
        let needed = builder.writer.bytes();
        let cannot_write = |source| DataError::CorpusWrite { path: path.to_path_buf(), source, needed };
        builder.writer.finish(head).map_err(cannot_write)?;
        let corpus = Self::open(path, tokenizer)?;
        if corpus.source() != source {
            let reason = "another process has put the corpus of other text in its place";
            return Err(DataError::Corpus { path: path.to_path_buf(), reason: reason.into() });
        }
        Ok(corpus)
    }
}

/// A corpus that is being written.
struct Builder<'a> {
    tokenizer: &'a Tokenizer,
    path: &'a Path,
    writer: Writer,
    /// Text that is to be tokenised, and the sentences in it; `None` ends a document.
    text: String,
    pieces: Vec<Option<Range<usize>>>,
    /// Sentences without a token.
    dropped: u64,
    /// Bytes of text that are done, and that there are.
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
}

impl Builder<'_> {
    fn add(&mut self, piece: Piece<'_>, file: &Path) -> Result<(), DataError> {
        match piece {
            Piece::Sentence(sentence) => {
                let start = self.text.len();
                self.text.push_str(sentence);
                self.pieces.push(Some(start..self.text.len()));
            }
            Piece::DocumentEnd => self.pieces.push(None),
        }
        if self.text.len() < BATCH { Ok(()) } else { self.flush(file) }
    }

    /// Tokenises and writes what has been gathered, the last of it from `file`.
    fn flush(&mut self, file: &Path) -> Result<(), DataError> {
        let Self { tokenizer, text, pieces, .. } = self;
        let ids = |piece: &Option<Range<usize>>| {
            piece.as_ref().map(|sentence| tokenizer.tokens(&text[sentence.clone()]))
        };
        let tokenised: Vec<Option<Vec<u32>>> = pieces.par_iter().map(ids).collect();
        for (ids, piece) in tokenised.into_iter().zip(&self.pieces) {
            match ids {
                None => self.writer.end_document(),
                Some(ids) if ids.is_empty() => self.dropped += 1,
                Some(ids) => self.writer.sentence(&ids).map_err(|source| self.cannot_write(source))?,
            }
            // With its line end, so that the sum comes out near the files' size.
            let bytes = piece.as_ref().map_or(0, |sentence| sentence.len() + 1);
            self.done = self.total.min(self.done + bytes as u64);
        }
        if self.writer.sentences() > u64::from(u32::MAX) {
            let reason =
                format!("more than {} sentences by here; cut the text into several corpora", u32::MAX);
            return Err(DataError::RawText { path: file.to_path_buf(), reason });
        }
        self.text.clear();
        self.pieces.clear();
        if (self.progress)(self.done, self.total) { Ok(()) } else { Err(DataError::Stopped) }
    }

    /// The bytes needed are worked out from the text that is still to come.
    fn cannot_write(&self, source: io::Error) -> DataError {
        let needed = (self.writer.bytes() as f64 * self.total as f64 / self.done.max(1) as f64) as u64;
        DataError::CorpusWrite { path: self.path.to_path_buf(), source, needed }
    }
}
