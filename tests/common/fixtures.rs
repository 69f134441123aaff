//! Reference values that PyTorch computed, and how far from them something is.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the reference values.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The tensors of a fixture, read by the safetensors crate rather than by the code under test.
pub fn tensors(file: &str) -> HashMap<String, Vec<f32>> {
    let bytes = fs::read(fixtures().join(file)).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    stored.iter().map(|(name, tensor)| (name.to_string(), values(tensor.data()))).collect()
}

/// The largest magnitude.
pub fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// The largest difference of two entries.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // Unlike `f32::max`, this lets a NaN through.
    a.iter().zip(b).fold(0.0, |most, (a, b)| if (a - b).abs() <= most { most } else { (a - b).abs() })
}
