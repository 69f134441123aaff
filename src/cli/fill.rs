//! `fill`: what the model would put for masked words.

use std::io::{BufRead, BufWriter, IsTerminal, Write, stdin, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use mtdnn_raw::backend::{Backend, Sizes, StepScalars};
use mtdnn_raw::data::{Batch, Dataset, Label, Tokenizer};
use mtdnn_raw::nn::{PretrainingModel, directory, extents};
use mtdnn_raw::tensor::{Extents, Space, Span};
use serde_json::{Value, json};

use super::device::DeviceArgs;
use super::{Exit, Usage};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw fill --model runs/pretrain/last 'The [MASK] sat on the mat.'
  mtdnn-raw fill --model bert-base-uncased --top 3 --json < sentences.txt

A line of output for each [MASK]: the most probable words, each with its probability, with tabs between.";

/// Predict the masked words of a text: each [MASK] gets the most probable words.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct FillArgs {
    /// A model directory with pre-training heads, that `pretrain` has written or in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,

    /// Words for each [MASK].
    #[arg(long, default_value_t = 5, value_name = "N")]
    top: usize,

    /// Print a JSON object for each text.
    #[arg(long)]
    json: bool,

    /// Texts with one [MASK] or more; if none is given, a text a line from standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
}

/// How the word to be predicted is written.
const MASK: &str = "[MASK]";

pub(super) fn run(args: &FillArgs) -> anyhow::Result<Exit> {
    if args.top == 0 {
        return Err(Usage("--top 0: give 1 or more".into()).into());
    }
    let mut filler = Filler::read(&args.model, &args.device)?;
    let mut out = BufWriter::new(stdout().lock());
    let mut answer = |text: &str, line: &str| -> anyhow::Result<()> {
        let masks = filler.fill(text, args.top).with_context(|| line.to_string())?;
        if args.json {
            let word =
                |(word, probability): &(String, f64)| json!({"word": word, "probability": probability});
            let masks: Vec<Value> = masks.iter().map(|words| words.iter().map(word).collect()).collect();
            writeln!(out, "{}", json!({"text": text, "masks": masks}))?;
        } else {
            for words in masks {
                let words: Vec<String> = words.iter().map(|(word, p)| format!("{word} {p:.4}")).collect();
                writeln!(out, "{}", words.join("\t"))?;
            }
        }
        Ok(())
    };
    for (number, text) in args.texts.iter().enumerate() {
        answer(text, &format!("text {}", number + 1))?;
    }
    if args.texts.is_empty() {
        if stdin().is_terminal() {
            eprintln!("reading texts from the terminal, one a line; end them with Ctrl-D");
        }
        for (number, line) in stdin().lock().lines().enumerate() {
            let name = format!("standard input:{}", number + 1);
            let line = line.with_context(|| format!("{name}: the text is not UTF-8, or cannot be read"))?;
            if !line.trim().is_empty() {
                answer(&line, &name)?;
            }
        }
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// A model that predicts masked words.
struct Filler {
    model: PretrainingModel,
    tokenizer: Tokenizer,
    mask: u32,
    backend: Box<dyn Backend>,
}

impl Filler {
    fn read(path: &Path, device: &DeviceArgs) -> anyhow::Result<Self> {
        let (config, tokenizer) = directory::read_encoder(path)?;
        let Some(mask) = tokenizer.mask() else {
            bail!("{}: the vocabulary has no {MASK}, so nothing can be filled in", path.display());
        };
        let model = PretrainingModel::new(&config);
        let mut values = vec![0.0f32; model.parameters().len()];
        let loaded = directory::load_pretraining(path, &model, 0, false, &mut values)?;
        if let Some(name) = loaded.initialised.iter().find(|name| name.starts_with("cls.predictions.")) {
            bail!(
                "{}: the model has no head for masked words ({name} is missing); pre-train it on some text first: \
                 mtdnn-raw pretrain --init {} --text TEXT",
                path.display(),
                path.display()
            );
        }
        if loaded.report.unexpected.iter().any(|name| !name.starts_with("heads.")) {
            eprintln!("{}", loaded.report);
        }
        let mut backend = device.backend()?;
        let model = model.with_precision(backend.precision());
        backend.reserve(&Sizes { parameters: values.len(), arena: 0, training: false })?;
        let span = Span { space: Space::Parameters, offset: 0, len: values.len() };
        backend.write(span, bytemuck::cast_slice(&values))?;
        Ok(Self { model, tokenizer, mask, backend })
    }

    /// For each [MASK] of a text the most probable words, the best first.
    fn fill(&mut self, text: &str, top: usize) -> anyhow::Result<Vec<Vec<(String, f64)>>> {
        let mut ids = Vec::new();
        for (number, part) in text.split(MASK).enumerate() {
            if number > 0 {
                ids.push(self.mask);
            }
            ids.extend(self.tokenizer.tokens(part));
        }
        let positions = self.model.config().max_position_embeddings;
        if ids.len() + 2 > positions {
            bail!("{} tokens, and the model reads {positions}; give a shorter text", ids.len() + 2);
        }
        let sequence = self.tokenizer.pack(&ids, None, positions);
        let mut dataset = Dataset::new();
        dataset.push_sequence(&sequence.ids, sequence.second);
        dataset.finish_example(Label::None);
        let mut batch = Batch::new(self.backend.line());
        batch.fill(&dataset, &[0]);
        let masked = (0u32..).zip(&sequence.ids).filter(|(_, id)| **id == self.mask);
        let places: Vec<u32> = masked.map(|(position, _)| position).collect();
        if places.is_empty() {
            bail!("there is no {MASK} in the text; write one in the place of each word to be predicted");
        }
        let rows: Vec<u32> = places.iter().map(|place| batch.starts[0] + place).collect();
        let extents = Extents { predictions: rows.len(), ..extents(&batch) };
        let recorded = self.model.filling(extents);
        let (parameters, arena) = (self.model.parameters().len(), recorded.program.arena_len());
        self.backend.reserve(&Sizes { parameters, arena, training: false })?;
        recorded.write(&mut *self.backend, &batch, &rows, &places)?;
        self.backend.run(&recorded.program, &StepScalars { extents, seed: 0, step: 0 })?;
        let words = self.model.config().vocab_size;
        let mut logits = vec![0.0f32; rows.len() * words];
        let span = recorded.program.span(recorded.logits, &extents);
        self.backend.read(span, bytemuck::cast_slice_mut(&mut logits))?;
        Ok(logits.chunks_exact(words).map(|logits| self.best(logits, top)).collect())
    }

    /// The words of the largest logits and their probabilities.
    fn best(&self, logits: &[f32], top: usize) -> Vec<(String, f64)> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| f64::from(logit - largest).exp();
        let sum: f64 = logits.iter().map(|logit| weight(*logit)).sum();
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        // Rows that pad the embedding are no words.
        let words = order.iter().filter_map(|&id| Some((self.tokenizer.token(id)?, logits[id as usize])));
        words.take(top).map(|(word, logit)| (word.to_string(), weight(logit) / sum)).collect()
    }
}
