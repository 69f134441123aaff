//! What a run saves of itself, and what it goes on from.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Sizes};
use mtdnn_raw::tensor::{Precision, Space};
use mtdnn_raw::train::checkpoint::{self, Snapshot};
use mtdnn_raw::train::store;
use tempfile::TempDir;

#[test]
fn a_run_is_loaded_in_its_own_precision_alone() {
    let run = TempDir::new().unwrap();
    let backend = |precision| {
        let mut backend = CpuBackend::new().with_precision(precision);
        backend.reserve(&Sizes { parameters: 3, arena: 0, training: true }).unwrap();
        backend
    };
    assert_eq!(checkpoint::recorded_precision(run.path()), None);
    let parameters = Arc::new(vec![1.0, 2.0, 3.0]);
    let mut narrow = backend(Precision::Bf16);
    Snapshot::take(7, &BTreeMap::from([("updates", 7)]), parameters, &mut narrow)
        .unwrap()
        .save(run.path())
        .unwrap();
    assert_eq!(checkpoint::recorded_precision(run.path()), Some(Precision::Bf16));

    let state = run.path().join(store::STATE);
    let load = |backend: &mut CpuBackend| checkpoint::load_state::<BTreeMap<String, u64>>(&state, 3, backend);
    assert_eq!(load(&mut narrow).unwrap()["updates"], 7);
    assert_eq!(checkpoint::read(Space::Parameters, 3, &mut narrow).unwrap(), [1.0, 2.0, 3.0]);
    let error = load(&mut backend(Precision::F32)).unwrap_err().to_string();
    assert!(error.contains("computes in bf16, and it would go on in f32"), "{error}");

    // As it was before precisions were recorded.
    fs::write(state.join("progress.json"), r#"{"updates": 7}"#).unwrap();
    assert_eq!(checkpoint::recorded_precision(run.path()), None);
    assert!(load(&mut backend(Precision::F32)).is_ok());
}
