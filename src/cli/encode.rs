//! `encode`: the vectors of texts, as a safetensors file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use mtdnn_raw::data::{Dataset, cache};
use mtdnn_raw::train::signals::Stop;
use serde_json::{Map, Value, json};

use super::device::DeviceArgs;
use super::input::{Input, Wanted};
use super::model::Loaded;
use super::vectors::{self, Pool};
use super::{Exit, format, output};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw encode --model bert-base-uncased texts.txt --output vectors.safetensors
  cut -f2 pairs.tsv | mtdnn-raw encode --model runs/glue/best --output vectors.safetensors
  mtdnn-raw encode --model all-MiniLM-L6-v2 texts.txt --pool mean --output vectors.safetensors

A line of input is a text, two texts with a tab between, or JSON: {\"text_a\": …, \"text_b\": …}.
Lines are JSON if the file is called .jsonl or .ndjson, or if the whole first line is a JSON object; else plain text.
The file holds, in the order of the lines:
  last_hidden_state  F32 [tokens, hidden]  a vector for each token, [CLS] and [SEP] included, all lines one after another
  starts             I64 [lines + 1]       line i has the tokens starts[i] to starts[i + 1]
  pooled             F32 [lines, hidden]   tanh(W h + b) of each line's [CLS], if the model has a pooler
With --pool it holds one vector a line instead:
  vectors            F32 [lines, hidden]   cls: the last layer's [CLS]; mean: the mean over the last layer's tokens, [CLS]
                                           and [SEP] included; pooled: tanh(W h + b) of [CLS]";

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

    /// Write one vector a line, made in this way, instead of each token's.
    #[arg(long, value_enum)]
    pool: Option<Pool>,
}

pub(super) fn run(args: &EncodeArgs) -> anyhow::Result<Exit> {
    let mut loaded = Loaded::encoder(&args.model, &args.device)?;
    let pooler = loaded.initialised.is_empty();
    if let Some(pool) = args.pool {
        pool.check(&loaded)?;
    } else if !pooler {
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
    output::whole(&args.output, |path| match args.pool {
        None => write(&mut loaded, &dataset, hidden, pooler, path, &stop),
        Some(pool) => write_pooled(&mut loaded, &dataset, hidden, pool, path, &stop),
    })?;
    Ok(Exit::Done)
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
    let (tokens, lines) = (dataset.ids.len(), dataset.len());
    let mut tensors =
        vec![("starts", "I64", vec![lines + 1], 8), ("last_hidden_state", "F32", vec![tokens, hidden], 4)];
    if pooler {
        tensors.push(("pooled", "F32", vec![lines, hidden], 4));
    }
    out.write_all(&header(tensors)?).with_context(failed)?;
    for &offset in &dataset.offsets {
        out.write_all(&(offset as i64).to_le_bytes()).with_context(failed)?;
    }
    let mut pooled: Vec<f32> = Vec::new();
    vectors::each_batch(loaded, dataset, stop, |batch| {
        for rows in &batch.lines {
            let line = &batch.tokens[rows.start * hidden..rows.end * hidden];
            out.write_all(bytemuck::cast_slice(line)).with_context(failed)?;
        }
        if pooler {
            pooled.extend_from_slice(&batch.pooled);
        }
        Ok(())
    })?;
    out.write_all(bytemuck::cast_slice(&pooled)).with_context(failed)?;
    let file = out.into_inner().map_err(|error| error.into_error()).with_context(failed)?;
    file.sync_all().with_context(failed)
}

/// One vector a line.
fn write_pooled(
    loaded: &mut Loaded,
    dataset: &Dataset,
    hidden: usize,
    pool: Pool,
    path: &Path,
    stop: &Stop,
) -> anyhow::Result<()> {
    let vectors = vectors::pooled(loaded, dataset, pool, stop)?;
    let failed = || format!("cannot write {}", path.display());
    let mut file = File::create(path).with_context(failed)?;
    let header = header(vec![("vectors", "F32", vec![dataset.len(), hidden], 4)])?;
    file.write_all(&header).with_context(failed)?;
    file.write_all(bytemuck::cast_slice(&vectors)).with_context(failed)?;
    file.sync_all().with_context(failed)
}

/// The file's first bytes for tensors of such a name, type, shape and bytes an element: the header's length and the header,
/// filled up to a multiple of eight bytes.
fn header(tensors: Vec<(&str, &str, Vec<usize>, usize)>) -> anyhow::Result<Vec<u8>> {
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
