//! `encode`: the vectors of texts, as a safetensors file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use mtdnn_raw::backend::StepScalars;
use mtdnn_raw::data::{Batch, Dataset, Packing, cache};
use mtdnn_raw::nn::{Recorded, extents};
use mtdnn_raw::tensor::{Extents, Var};
use mtdnn_raw::train::evaluate::EVALUATION_TOKENS;
use mtdnn_raw::train::signals::Stop;
use serde_json::{Map, Value, json};

use super::device::DeviceArgs;
use super::input::{Input, Wanted};
use super::model::Loaded;
use super::{Exit, format};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw encode --model bert-base-uncased texts.txt --output vectors.safetensors
  cut -f2 pairs.tsv | mtdnn-raw encode --model runs/glue/best --output vectors.safetensors

A line of input is a text, two texts with a tab between, or JSON: {\"text_a\": …, \"text_b\": …}.
Lines are JSON if the file is called .jsonl or .ndjson, or if the whole first line is a JSON object; else plain text.
The file holds, in the order of the lines:
  last_hidden_state  F32 [tokens, hidden]  a vector for each token, [CLS] and [SEP] included, all lines one after another
  starts             I64 [lines + 1]       line i has the tokens starts[i] to starts[i + 1]
  pooled             F32 [lines, hidden]   tanh(W h + b) of each line's [CLS], if the model has a pooler";

/// Write the vectors of lines of text, each token's and each line's, to a safetensors file.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct EncodeArgs {
    /// A model directory in Hugging Face layout, or one that `train` has written.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,

    /// Lines of text; - or nothing for standard input.
    #[arg(value_name = "FILE|-")]
    file: Option<PathBuf>,

    /// The file to write.
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
}

pub(super) fn run(args: &EncodeArgs) -> anyhow::Result<Exit> {
    let mut loaded = Loaded::encoder(&args.model, &args.device)?;
    let pooler = loaded.initialised.is_empty();
    if !pooler {
        eprintln!("warning: the model has no pooler, so the file will have no \"pooled\"");
    }
    let examples = Input::open(args.file.as_ref(), Wanted::Texts)?.examples(usize::MAX)?;
    if examples.is_empty() {
        bail!("there is nothing to encode: the input is empty");
    }
    eprintln!("tokenising {} lines", examples.len());
    let dataset = cache::tokenize(&examples, &loaded.tokenizer, loaded.max_length);
    drop(examples);
    if dataset.truncated > 0 {
        let (truncated, most) = (dataset.truncated, loaded.max_length);
        eprintln!("warning: {truncated} lines were cut to {most} tokens, the model's length");
    }
    let hidden = loaded.model.config().hidden_size;
    eprintln!("encoding {} tokens into {}", format::count(dataset.ids.len() as f64), args.output.display());
    let stop = Stop::on_signals()?;
    let partial = partial(&args.output)?;
    let written = write(&mut loaded, &dataset, hidden, pooler, &partial, &stop).and_then(|()| {
        fs::rename(&partial, &args.output).with_context(|| format!("cannot write {}", args.output.display()))
    });
    if written.is_err() {
        // What is half written helps nobody; the first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written?;
    Ok(Exit::Done)
}

/// Beside the file that is to be, so that it appears whole or not at all.
fn partial(output: &Path) -> anyhow::Result<PathBuf> {
    if output.exists() && !output.is_file() {
        bail!("--output {}: is no regular file; name one that may be replaced", output.display());
    }
    let name = output.file_name().with_context(|| format!("--output {}: names no file", output.display()))?;
    Ok(output.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id())))
}

/// Token vectors go to the file batch by batch; memory holds the texts, one batch and the pooled vectors.
fn write(
    loaded: &mut Loaded,
    dataset: &Dataset,
    hidden: usize,
    pooler: bool,
    path: &Path,
    stop: &Stop,
) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).with_context(failed)?);
    out.write_all(&header(dataset, hidden, pooler)?).with_context(failed)?;
    for &offset in &dataset.offsets {
        out.write_all(&(offset as i64).to_le_bytes()).with_context(failed)?;
    }
    let batches = batches(dataset);
    let packing = Packing::new(loaded.backend.line());
    let extents_of = |lines: &std::ops::Range<usize>| {
        let tokens = (dataset.offsets[lines.end] - dataset.offsets[lines.start]) as usize;
        let tokens = packing.most_rows(tokens, lines.len(), dataset.longest());
        Extents { tokens, sequences: lines.len(), groups: lines.len(), predictions: 0 }
    };
    let capacity = batches.iter().map(extents_of).fold(Extents::default(), |a, b| a.max(&b));
    let recorded = loaded.model.encoding(false, capacity);
    loaded.reserve(&recorded)?;
    let mut batch = Batch::new(loaded.backend.line());
    let mut pooled: Vec<f32> = Vec::new();
    for lines in batches {
        if stop.requested() {
            bail!("stopped by a signal; {} was not written", path.display());
        }
        batch.fill(dataset, &lines.map(|line| line as u32).collect::<Vec<_>>());
        let extents = extents(&batch);
        recorded.write(&mut *loaded.backend, &batch)?;
        loaded.backend.run(&recorded.program, &StepScalars { extents, seed: 0, step: 0 })?;
        let vectors = read(loaded, &recorded, recorded.hidden_states[0], &extents)?;
        for (&start, &end) in batch.starts.iter().zip(&batch.ends) {
            let line = &vectors[start as usize * hidden..end as usize * hidden];
            out.write_all(bytemuck::cast_slice(line)).with_context(failed)?;
        }
        if let Some(var) = recorded.pooled.filter(|_| pooler) {
            pooled.extend_from_slice(&read(loaded, &recorded, var, &extents)?);
        }
    }
    out.write_all(bytemuck::cast_slice(&pooled)).with_context(failed)?;
    let file = out.into_inner().map_err(|error| error.into_error()).with_context(failed)?;
    file.sync_all().with_context(failed)
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
fn batches(dataset: &Dataset) -> Vec<std::ops::Range<usize>> {
    let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
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

/// The file's first bytes: the header's length and the header, filled up to a multiple of eight bytes.
fn header(dataset: &Dataset, hidden: usize, pooler: bool) -> anyhow::Result<Vec<u8>> {
    let (tokens, lines) = (dataset.ids.len(), dataset.len());
    let mut tensors =
        vec![("starts", "I64", vec![lines + 1], 8), ("last_hidden_state", "F32", vec![tokens, hidden], 4)];
    if pooler {
        tensors.push(("pooled", "F32", vec![lines, hidden], 4));
    }
    let mut end = 0;
    let mut object = Map::new();
    for (name, dtype, shape, width) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * width;
        object.insert(name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = serde_json::to_vec(&Value::Object(object))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}
