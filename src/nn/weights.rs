//! Weights in and out of safetensors files.
//!
//! The format: eight bytes with the header's length, a JSON header that gives each tensor its type, shape and bytes,
//! then the tensors. A file comes from outside and is not trusted: nothing is allocated before the header is known to
//! describe the file exactly, byte for byte, and nothing is handed out before every tensor asked for is known to fit.

mod error;
mod header;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

pub use error::WeightsError;
use header::Stored;

/// A tensor that a model asks a weights file for.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its name in Hugging Face's BERT without the prefix `bert.`, as in `encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// Its shape; linear weights are `[outputs, inputs]`.
    pub shape: Vec<usize>,
    /// Whether a file without it is refused. One that may be absent is named in [`Report::missing`].
    pub required: bool,
}

/// What became of the names, the model's and the file's.
///
/// It displays as counts and names, long lists cut short; `{:#}` gives them in full.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Expected and read, in the order they were asked for.
    pub matched: Vec<String>,
    /// Expected, not required, not in the file.
    pub missing: Vec<String>,
    /// In the file under this name, not expected. Index buffers (`position_ids`) are left out.
    pub unexpected: Vec<String>,
}

/// Names of a list that are shown before "and N more".
const SHOWN: usize = 10;
/// Half-precision tensors are widened in pieces of this many elements, each by one thread.
const PIECE: usize = 1 << 16;

// Tensors are little-endian in the file and are read as they lie.
const _: () = assert!(cfg!(target_endian = "little"));

/// Reads the expected tensors of a safetensors file and calls `write(index, values)` once for each that is there.
///
/// A file's names may begin with `module.` and `bert.`, and a LayerNorm may call its weight and bias gamma and beta.
/// F32, F16 and BF16 are read. A file that does not fit is refused before the first call of `write`; only a failing
/// disk or a value that is not finite can end the reading midway.
pub fn load(
    path: &Path,
    expected: &[Expected],
    mut write: impl FnMut(usize, &[f32]),
) -> Result<Report, WeightsError> {
    let mut file = open(path)?;
    let stored = header::read(path, &mut file)?;
    let (found, report) = pair(path, expected, &stored)?;

    let mut reader = TensorReader { path, file, halves: Vec::new(), values: Vec::new() };
    for (index, tensor) in found {
        write(index, reader.read(tensor)?);
    }
    Ok(report)
}

/// The name, as today's Hugging Face BERT has it, and the shape of every tensor in a safetensors file.
pub fn shapes(path: &Path) -> Result<HashMap<String, Vec<usize>>, WeightsError> {
    let stored = header::read(path, &mut open(path)?)?;
    Ok(stored.into_iter().map(|tensor| (canonical(&tensor.name), tensor.shape)).collect())
}

/// Writes tensors (name, shape, row-major values) as F32 in the order given, so that the same tensors make the same bytes.
///
/// To `metadata` is added `format = "pt"`, which `transformers` asks for. On return the file is on disk, not only
/// in the system's cache; an existing file is overwritten in place, so write to a fresh one and rename it.
pub fn save(
    path: &Path,
    tensors: &[(String, Vec<usize>, &[f32])],
    metadata: &[(&str, &str)],
) -> Result<(), WeightsError> {
    let header = header::describe(tensors, metadata);
    let write = || {
        let mut writer = BufWriter::new(File::create(path)?);
        writer.write_all(&header)?;
        for (_, _, values) in tensors {
            writer.write_all(bytemuck::cast_slice(values))?;
        }
        writer.into_inner()?.sync_all()
    };
    write().map_err(|source| WeightsError::Write { path: path.into(), source })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { matched, missing, unexpected } = self;
        write!(
            f,
            "{} tensors read, {} missing, {} not used",
            matched.len(),
            missing.len(),
            unexpected.len()
        )?;
        let most = if f.alternate() { usize::MAX } else { SHOWN };
        for (title, names) in [("missing", missing), ("not used", unexpected)] {
            if !names.is_empty() {
                write!(f, "\n{title}: {}", listed(names, most))?;
            }
        }
        Ok(())
    }
}

/// The number of an expected tensor, and where it lies.
type Found<'a> = (usize, &'a Stored);

fn open(path: &Path) -> Result<File, WeightsError> {
    let read = |source| WeightsError::Open { path: path.into(), source, remedy: error::open_remedy(path) };
    // Asked before opening, because opening a named pipe waits for someone to write to it.
    if !std::fs::metadata(path).map_err(read)?.is_file() {
        return Err(WeightsError::Malformed {
            path: path.into(),
            problem: "it is not a regular file".into(),
        });
    }
    File::open(path).map_err(read)
}

/// Finds for every expected tensor the one stored for it, in the file's order, and checks its type and shape.
fn pair<'a>(
    path: &Path,
    expected: &[Expected],
    stored: &'a [Stored],
) -> Result<(Vec<Found<'a>>, Report), WeightsError> {
    let wanted: HashMap<&str, usize> =
        expected.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    assert_eq!(wanted.len(), expected.len(), "two expected tensors share a name");

    let mut source: Vec<Option<&Stored>> = vec![None; expected.len()];
    let mut found = Vec::new();
    let mut report = Report::default();
    for tensor in stored {
        let name = canonical(&tensor.name);
        let Some(&index) = wanted.get(name.as_str()) else {
            if !is_index_buffer(&name, tensor.dtype) {
                report.unexpected.push(tensor.name.clone());
            }
            continue;
        };
        if let Some(first) = source[index] {
            return Err(WeightsError::Duplicate {
                path: path.into(),
                tensor: name,
                first: first.name.clone(),
                second: tensor.name.clone(),
            });
        }
        check(path, &expected[index], tensor)?;
        source[index] = Some(tensor);
        found.push((index, tensor));
    }

    let mut lacking = Vec::new();
    for (tensor, source) in expected.iter().zip(&source) {
        let list = match (source, tensor.required) {
            (Some(_), _) => &mut report.matched,
            (None, false) => &mut report.missing,
            (None, true) => &mut lacking,
        };
        list.push(tensor.name.clone());
    }
    if !lacking.is_empty() {
        return Err(WeightsError::Missing { path: path.into(), missing: lacking, of: expected.len() });
    }
    Ok((found, report))
}

fn check(path: &Path, expected: &Expected, found: &Stored) -> Result<(), WeightsError> {
    if !matches!(found.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(WeightsError::Dtype {
            path: path.into(),
            tensor: found.name.clone(),
            found: found.dtype.to_string(),
        });
    }
    if found.shape != expected.shape {
        return Err(WeightsError::Shape {
            path: path.into(),
            tensor: found.name.clone(),
            expected: expected.shape.clone(),
            found: found.shape.clone(),
            remedy: error::shape_remedy(&expected.name),
        });
    }
    Ok(())
}

/// A file's name for a tensor as today's Hugging Face BERT has it, without the wrappers' prefixes.
fn canonical(name: &str) -> String {
    let name = name.strip_prefix("module.").unwrap_or(name);
    let name = name.strip_prefix("bert.").unwrap_or(name);
    if let Some(norm) = name.strip_suffix("LayerNorm.gamma") {
        return format!("{norm}LayerNorm.weight");
    }
    if let Some(norm) = name.strip_suffix("LayerNorm.beta") {
        return format!("{norm}LayerNorm.bias");
    }
    name.into()
}

/// PyTorch's BERT may store `0, 1, 2, ...`; it is no weight and its absence from a model is no news.
fn is_index_buffer(name: &str, dtype: Dtype) -> bool {
    dtype == Dtype::I64 && name == "embeddings.position_ids"
}

/// Reads one tensor after another into buffers that are used again: the peak is one tensor, not the file.
struct TensorReader<'a> {
    path: &'a Path,
    file: File,
    halves: Vec<u16>,
    values: Vec<f32>,
}

impl TensorReader<'_> {
    fn read(&mut self, tensor: &Stored) -> Result<&[f32], WeightsError> {
        let read = |source| WeightsError::Read { path: self.path.into(), source };
        self.file.seek(SeekFrom::Start(tensor.offset)).map_err(read)?;
        self.values.resize(tensor.shape.iter().product(), 0.0);
        match tensor.dtype {
            Dtype::F32 => self.file.read_exact(bytemuck::cast_slice_mut(&mut self.values)).map_err(read)?,
            half => {
                self.halves.resize(self.values.len(), 0);
                self.file.read_exact(bytemuck::cast_slice_mut(&mut self.halves)).map_err(read)?;
                widen(half, &self.halves, &mut self.values);
            }
        }
        match first_not_finite(&self.values) {
            None => Ok(&self.values),
            Some(element) => Err(WeightsError::NotFinite {
                path: self.path.into(),
                tensor: tensor.name.clone(),
                element,
                value: self.values[element],
            }),
        }
    }
}

/// Converts F16 or BF16, given as bits, to F32.
fn widen(dtype: Dtype, halves: &[u16], values: &mut [f32]) {
    values.par_chunks_mut(PIECE).zip(halves.par_chunks(PIECE)).for_each(|(values, halves)| match dtype {
        Dtype::F16 => bytemuck::cast_slice::<u16, f16>(halves).convert_to_f32_slice(values),
        Dtype::BF16 => bytemuck::cast_slice::<u16, bf16>(halves).convert_to_f32_slice(values),
        other => unreachable!("{other} was refused when the names were paired"),
    });
}

/// Where the first number is that is NaN or infinite.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    // Without an early way out the test of a piece is vectorised.
    let finite = |piece: &[f32]| piece.iter().fold(true, |finite, value| finite & value.is_finite());
    let piece = values.par_chunks(PIECE).position_first(|piece| !finite(piece))?;
    values[piece * PIECE..].iter().position(|value| !value.is_finite()).map(|at| piece * PIECE + at)
}

/// The first `most` names, and how many more there are.
fn listed(names: &[String], most: usize) -> String {
    let shown = names[..most.min(names.len())].join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
