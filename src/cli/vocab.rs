//! `vocab`: a WordPiece vocabulary from raw text.

use std::fs;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mtdnn_raw::data::text::{self, Layout};
use mtdnn_raw::data::vocabulary::{self, Coverage, Words};
use mtdnn_raw::data::{Tokenizer, VocabularyConfig};

use super::options::set;
use super::{Exit, Usage, config_file, format};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw vocab --text books --output vocabulary
      8192 tokens from all files below the folder books, one sentence a line
  mtdnn-raw vocab --text a.txt b.txt --split --size 30522 --unused 994 --output vocabulary
      as many tokens as bert-base-uncased, its special ones in the same places, from plain paragraphs
  mtdnn-raw vocab both-stages.toml
      as the [vocab] table of a run file says, whose keys are text, output, size, cased, strip_accents, split_chinese,
      min_frequency, unused and split

The special tokens are [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102 and [MASK] 103, where BERT has them, with [unused0] to
[unused98] between. In a small vocabulary those rows are a waste: --unused 0 puts the special tokens at 0 to 4.
The same text gives the same bytes, whatever the order of the files and the number of threads.";

/// Train a WordPiece vocabulary on text files.
#[derive(Args, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub(super) struct VocabArgs {
    /// A run file (TOML) with a [vocab] table; flags override what it says.
    #[arg(value_name = "RUN.toml")]
    file: Option<PathBuf>,

    /// Text files (UTF-8, a sentence a line, blank lines between documents), or folders: all files below that are not
    /// hidden.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    text: Option<Vec<PathBuf>>,

    /// The directory to write: vocab.txt, tokenizer.json and tokenizer_config.json.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Tokens at most, special ones included. [default: 8192]
    #[arg(long, value_name = "N")]
    size: Option<usize>,

    /// Keep capital letters; without this, text is lower-cased.
    #[arg(long)]
    cased: bool,

    /// Drop accents; without this or the next, as in BERT: where text is lower-cased.
    #[arg(long, conflicts_with = "keep_accents")]
    strip_accents: bool,

    /// Keep accents.
    #[arg(long)]
    keep_accents: bool,

    /// Cut Chinese like other text; without this, each Chinese character is a word.
    #[arg(long)]
    no_split_chinese: bool,

    /// Leave out characters and pieces that occur less often. [default: 2]
    #[arg(long, value_name = "N")]
    min_frequency: Option<u64>,

    /// Tokens to keep free: [unused0] to [unused98] before [UNK], further ones after [MASK]. [default: 99]
    #[arg(long, value_name = "N")]
    unused: Option<usize>,

    /// The text is plain paragraphs, which are cut into sentences; two blank lines end a document.
    #[arg(long)]
    split: bool,

    /// Replace another vocabulary that the output directory holds.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &VocabArgs) -> anyhow::Result<Exit> {
    let config = args.config()?;
    config.validate().map_err(|error| Usage(error.to_string()))?;
    let missing = || Usage("say where the vocabulary goes: --output DIR, or output in [vocab]".into());
    let output = config.output.as_ref().ok_or_else(missing)?;
    if output.exists() && !output.is_dir() {
        bail!("--output {}: is no directory; name a new one", output.display());
    }
    let files = text::files(&config.text)?;
    let line = line();
    let trained = train(&config, &files, line.as_ref());
    if let Some(line) = line {
        line.finish_and_clear();
    }
    let (tokenizer, coverage, bytes) = trained?;
    write(&tokenizer, output, args.force)?;
    let found = tokenizer.vocab_size();
    if found < config.size {
        eprintln!(
            "warning: {found} tokens, not {}: no further pair of pieces occurs {} times; give more text, or a smaller \
             --size",
            config.size, config.min_frequency
        );
    }
    print_summary(output, &tokenizer, &coverage, files.len(), bytes)?;
    Ok(Exit::Done)
}

impl VocabArgs {
    /// The settings that the run file and the flags make.
    fn config(&self) -> anyhow::Result<VocabularyConfig> {
        let mut config = match &self.file {
            Some(file) => config_file::read(file)?.vocab,
            None => VocabularyConfig::default(),
        };
        set(&mut config.text, &self.text);
        set(&mut config.size, &self.size);
        set(&mut config.min_frequency, &self.min_frequency);
        set(&mut config.unused, &self.unused);
        config.output = self.output.clone().or(config.output);
        config.cased |= self.cased;
        config.split_chinese &= !self.no_split_chinese;
        if self.strip_accents || self.keep_accents {
            config.strip_accents = Some(self.strip_accents);
        }
        config.split |= self.split;
        Ok(config)
    }
}

/// The vocabulary, how it fits, and how many bytes were read.
fn train(
    config: &VocabularyConfig,
    files: &[PathBuf],
    line: Option<&ProgressBar>,
) -> anyhow::Result<(Tokenizer, Coverage, u64)> {
    let total: u64 = files.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
    let mut words = Words::new(config.normalization());
    let mut bytes = 0;
    if line.is_none() {
        eprintln!("reading {} files, {}", files.len(), format::bytes(total));
    }
    for file in files {
        if let Some(line) = line {
            let (read, total) = (format::bytes(bytes), format::bytes(total));
            line.set_message(format!("reading {}, {read} of {total} done", file.display()));
        }
        let counts = words.add_file(file, Layout::of(config.split))?;
        bytes += counts.bytes;
        if counts.nuls > 0 {
            let note = || eprintln!("warning: {}: dropped {} NUL characters", file.display(), counts.nuls);
            line.map_or_else(note, |line| line.suspend(note));
        }
    }
    let status = format!("joining pieces of {} different words", words.different());
    match line {
        Some(line) => line.set_message(status),
        None => eprintln!("{status}"),
    }
    let (tokenizer, coverage) = vocabulary::train(config, &words)?;
    Ok((tokenizer, coverage, bytes))
}

/// Writes the vocabulary's files whole or not at all, and no other vocabulary's away unless `force` says so.
fn write(tokenizer: &Tokenizer, output: &Path, force: bool) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", output.display());
    fs::create_dir_all(output).with_context(failed)?;
    let partial = output.join(format!(".{}.partial", std::process::id()));
    fs::create_dir(&partial).with_context(failed)?;
    let written = tokenizer.save(&partial).map_err(anyhow::Error::from).and_then(|()| {
        let names = ["vocab.txt", "tokenizer.json", "tokenizer_config.json"];
        for path in names.map(|name| output.join(name)) {
            let name = path.file_name().context("a file without a name")?;
            match fs::read(&path) {
                Ok(bytes) if !force && bytes != fs::read(partial.join(name))? => bail!(
                    "{} holds another vocabulary; choose another --output, or replace it with --force (nothing was \
                     changed)",
                    output.display()
                ),
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot read {}", path.display()));
                }
                _ => {}
            }
        }
        names.into_iter().try_for_each(|name| {
            fs::rename(partial.join(name), output.join(name)).with_context(failed)
        })
    });
    // What is left in it helps nobody; the first error is the one to report.
    let removed = fs::remove_dir_all(&partial);
    written?;
    removed.with_context(|| format!("cannot remove {}", partial.display()))
}

fn print_summary(
    output: &Path,
    tokenizer: &Tokenizer,
    coverage: &Coverage,
    files: usize,
    bytes: u64,
) -> anyhow::Result<()> {
    let share = |part: u64| 100.0 * part as f64 / coverage.words as f64;
    let mut text = format!(
        "{}: {} tokens from {} in {files} files, {} words: {:.1} % stay whole, {:.3} tokens a word",
        output.display(),
        tokenizer.vocab_size(),
        format::bytes(bytes),
        format::count(coverage.words as f64),
        share(coverage.whole),
        coverage.tokens as f64 / coverage.words as f64,
    );
    if coverage.unknown > 0 {
        let (words, rare) = (coverage.unknown, coverage.rare_characters);
        text += &format!(", {:.4} % unknown ({words}; {rare} characters are too rare)", share(words));
    }
    writeln!(stdout(), "{text}")?;
    Ok(())
}

/// A line that is rewritten, if standard error is a terminal.
fn line() -> Option<ProgressBar> {
    if !stderr().is_terminal() {
        return None;
    }
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    line.set_style(ProgressStyle::with_template("{elapsed} {wide_msg}").expect("a template of known fields"));
    line.enable_steady_tick(Duration::from_millis(100));
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: VocabArgs,
    }

    fn config(words: &str) -> VocabularyConfig {
        let words = std::iter::once("vocab").chain(words.split_whitespace());
        <Line as clap::Parser>::parse_from(words).args.config().unwrap()
    }

    #[test]
    fn every_flag_overrides_its_key() {
        let none = VocabularyConfig::default();
        assert_eq!(config(""), none);
        let cases = [
            ("--text a b", VocabularyConfig { text: vec!["a".into(), "b".into()], ..none.clone() }),
            ("--output o", VocabularyConfig { output: Some("o".into()), ..none.clone() }),
            ("--size 99", VocabularyConfig { size: 99, ..none.clone() }),
            ("--cased", VocabularyConfig { cased: true, ..none.clone() }),
            ("--strip-accents", VocabularyConfig { strip_accents: Some(true), ..none.clone() }),
            ("--keep-accents", VocabularyConfig { strip_accents: Some(false), ..none.clone() }),
            ("--no-split-chinese", VocabularyConfig { split_chinese: false, ..none.clone() }),
            ("--min-frequency 7", VocabularyConfig { min_frequency: 7, ..none.clone() }),
            ("--unused 0", VocabularyConfig { unused: 0, ..none.clone() }),
            ("--split", VocabularyConfig { split: true, ..none.clone() }),
        ];
        for (flags, expected) in cases {
            assert_eq!(config(flags), expected, "{flags}");
            assert_ne!(expected, none);
        }
    }
}
