//! The text of a run as token ids: corpus files, made once and used again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::config::PretrainConfig;
use crate::data::corpus::{self, Corpus};
use crate::data::{DataError, Tokenizer, text};
use crate::train::monitor::{Event, Monitor};

/// The folder of a run directory that holds the corpus files, unless another is named.
const FOLDER: &str = "corpus";

/// Said of a run to be resumed over text that it did not begin with.
pub(super) const OTHER_TEXT: &str = "--resume: the text is not that which the run began with; put the files back, or \
     start another run with another --output";

/// What a run reads.
#[derive(Debug)]
pub struct Corpora {
    /// Trained on.
    pub train: Corpus,
    /// Measured on.
    pub dev: Option<Corpus>,
}

impl Corpora {
    /// Opens the corpus files of a run, made from its text where there are none of that text; `None` if the monitor
    /// stops that. A run to be resumed goes on over its own text alone.
    ///
    /// # Errors
    /// Text that cannot be read or has fewer than two sentences; a corpus file that is damaged or of another vocabulary.
    pub fn open(
        config: &PretrainConfig,
        tokenizer: &Tokenizer,
        resume: bool,
        monitor: &mut dyn Monitor,
    ) -> anyhow::Result<Option<Self>> {
        let folder = config.corpus.clone().unwrap_or_else(|| config.output.join(FOLDER));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let corpus = |name, texts: &[PathBuf], monitor: &mut dyn Monitor| {
            Source { name, texts, folder: &folder, config, tokenizer, resume }.corpus(monitor)
        };
        let Some(train) = corpus("train", &config.text, monitor)? else { return Ok(None) };
        let dev = match &config.dev_text[..] {
            [] => {
                monitor.tell(Event::Warning(
                    "no held-out text is named (--dev-text), so nothing says how well the model does on new text",
                ));
                None
            }
            texts => match corpus("dev", texts, monitor)? {
                Some(dev) => Some(dev),
                None => return Ok(None),
            },
        };
        Ok(Some(Self { train, dev }))
    }

    /// Hashes of the text: a run does not go on over other text.
    pub fn fingerprints(&self) -> Vec<String> {
        let hexadecimal =
            |corpus: &Corpus| corpus.source()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        std::iter::once(&self.train).chain(&self.dev).map(hexadecimal).collect()
    }
}

/// What a corpus is made from, and where.
struct Source<'a> {
    /// `train` or `dev`.
    name: &'a str,
    texts: &'a [PathBuf],
    folder: &'a Path,
    config: &'a PretrainConfig,
    tokenizer: &'a Tokenizer,
    resume: bool,
}

impl Source<'_> {
    fn corpus(&self, monitor: &mut dyn Monitor) -> anyhow::Result<Option<Corpus>> {
        let Self { name, texts, folder, config, tokenizer, resume } = *self;
        let path = folder.join(format!("{name}.corpus"));
        let files = text::files(texts)?;
        let kept = if path.exists() { Some(Corpus::open(&path, tokenizer)?) } else { None };
        let source = corpus::fingerprint(&files, config.layout())?;
        let corpus = match kept {
            Some(corpus) if corpus.source() == source => corpus,
            Some(_) if resume => bail!(OTHER_TEXT),
            other => {
                if other.is_some() {
                    let said = format!("{}: it was made from other text, and is made anew", path.display());
                    monitor.tell(Event::Note(&said));
                }
                let progress = &mut |done, total| {
                    monitor.tell(Event::Tokenising { path: &path, done, total });
                    !monitor.stop()
                };
                match Corpus::build(&files, config.layout(), tokenizer, &path, progress) {
                    Err(DataError::Stopped) => return Ok(None),
                    built => built?,
                }
            }
        };
        tell_of(name, &corpus, tokenizer, monitor);
        if corpus.sentences() < 2 {
            bail!(
                "{}: the {name} text is a single sentence, and pre-training pairs two; put a sentence on each line, or \
                 let --split cut them",
                texts[0].display()
            );
        }
        Ok(Some(corpus))
    }
}

fn tell_of(name: &str, corpus: &Corpus, tokenizer: &Tokenizer, monitor: &mut dyn Monitor) {
    let counts = corpus.counts();
    monitor.tell(Event::Note(&format!(
        "{name} text: {} tokens in {} sentences, {} documents, {} files",
        counts.tokens, counts.sentences, counts.documents, counts.files
    )));
    for odd in corpus.oddities(tokenizer, true) {
        monitor.tell(Event::Warning(&format!("{name} text: {odd}")));
    }
}
