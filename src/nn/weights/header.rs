//! The header of a safetensors file: read with distrust, written in a fixed order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde_json::{Value, json};

use super::WeightsError;

/// A tensor as it lies in a file.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its first byte, counted from the beginning of the file.
    pub(super) offset: u64,
}

/// BERT-large's header is 50 kB; a longer one than this is not read.
const MOST_HEADER_BYTES: u64 = 16 << 20;
const METADATA: &str = "__metadata__";

/// Reads the header and checks that its tensors tile the rest of the file exactly. In the file's order.
pub(super) fn read(path: &Path, file: &mut File) -> Result<Vec<Stored>, WeightsError> {
    let failed = |source| WeightsError::Read { path: path.into(), source };
    let malformed = |problem| WeightsError::Malformed { path: path.into(), problem };

    let file_bytes = file.metadata().map_err(failed)?.len();
    if file_bytes < 8 {
        return Err(malformed(format!("it has {file_bytes} bytes, and 8 are needed to begin with")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > (file_bytes - 8).min(MOST_HEADER_BYTES) {
        return Err(malformed(format!(
            "it announces a header of {header_bytes} bytes, and has {} bytes after that (the most that is read is {MOST_HEADER_BYTES})",
            file_bytes - 8
        )));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(failed)?;
    let mut tensors = parse(&header).map_err(malformed)?;
    tensors.sort_by(|(first, a), (second, b)| (a.data_offsets, first).cmp(&(b.data_offsets, second)));
    place(tensors, 8 + header_bytes, file_bytes).map_err(malformed)
}

/// The header of a file of F32 tensors, its length in front, padded with blanks so that the tensors lie aligned.
pub(super) fn describe(tensors: &[(String, Vec<usize>, &[f32])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut notes: BTreeMap<&str, &str> = metadata.iter().copied().collect();
    notes.insert("format", "pt");
    let mut entries = vec![format!("{}:{}", json!(METADATA), json!(notes))];
    let mut names = BTreeSet::new();
    let mut begin = 0;
    for (name, shape, values) in tensors {
        let elements: usize = shape.iter().product();
        assert_eq!(elements, values.len(), "{name}: shape {shape:?} and {} values", values.len());
        assert!(name != METADATA && names.insert(name), "two tensors share the name {name}");
        let end = begin + size_of_val(*values);
        let info = TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (begin, end) };
        entries.push(format!("{}:{}", json!(name), json!(info)));
        begin = end;
    }
    let mut text = format!("{{{}}}", entries.join(","));
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn parse(header: &[u8]) -> Result<Vec<(String, TensorInfo)>, String> {
    let mut entries: BTreeMap<String, Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header does not parse: {error}"))?;
    entries.remove(METADATA);
    let info = |(name, value): (String, Value)| match TensorInfo::deserialize(&value) {
        Ok(info) => Ok((name, info)),
        Err(error) => Err(format!("its header's entry for tensor {name} does not parse: {error}")),
    };
    entries.into_iter().map(info).collect()
}

/// Gives each tensor its place in the file. `tensors` are in the order of their offsets.
fn place(
    tensors: Vec<(String, TensorInfo)>,
    data_begin: u64,
    file_bytes: u64,
) -> Result<Vec<Stored>, String> {
    let data_bytes = file_bytes - data_begin;
    let mut reached = 0;
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, TensorInfo { dtype, shape, data_offsets: (begin, end) }) in tensors {
        let (begin, end) = (begin as u64, end as u64);
        if begin != reached || end < begin {
            return Err(format!(
                "tensor {name} lies at bytes {begin} to {end}, and should begin at {reached}"
            ));
        }
        if end > data_bytes {
            return Err(format!("tensor {name} ends at byte {end} of {data_bytes}: the file is cut short"));
        }
        let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &size| bits.checked_mul(size));
        if bits.is_none_or(|bits| bits as u64 != 8 * (end - begin)) {
            return Err(format!("tensor {name}, {dtype} of shape {shape:?}, lies in {} bytes", end - begin));
        }
        reached = end;
        stored.push(Stored { name, dtype, shape, offset: data_begin + begin });
    }
    match data_bytes - reached {
        0 => Ok(stored),
        more => Err(format!("{more} bytes after the last tensor belong to none")),
    }
}
