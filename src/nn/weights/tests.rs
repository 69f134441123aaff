use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A folder with a weights file that goes when the test ends.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.safetensors")
    }

    /// Puts together a file from a header and data that need not fit each other.
    fn put(&self, header: &Value, data: &[u8]) {
        let header = header.to_string();
        let parts = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data];
        fs::write(self.path(), parts.concat()).unwrap();
    }

    fn load(&self, expected: &[Expected]) -> Result<(Report, Vec<Vec<f32>>), WeightsError> {
        let mut read = vec![Vec::new(); expected.len()];
        let report = load(&self.path(), expected, |index, values| read[index] = values.to_vec())?;
        Ok((report, read))
    }

    /// The message of a file that is refused, which must name the file and must not have written anything.
    fn refusal(&self, expected: &[Expected]) -> String {
        let message = load(&self.path(), expected, |_, _| panic!("written before it was checked"))
            .expect_err("the file was read")
            .to_string();
        assert!(message.contains("model.safetensors: "), "{message}");
        message
    }
}

fn entry(dtype: &str, shape: &[usize], begin: usize, end: usize) -> Value {
    json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] })
}

fn expect(name: &str, shape: &[usize]) -> Expected {
    Expected { name: name.into(), shape: shape.into(), required: true }
}

fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

#[test]
fn what_is_saved_is_read_back_bit_for_bit() {
    let files = Files::new();
    let weight: Vec<f32> = (0..12).map(|i| (i as f32).sin() * 1e-3).collect();
    let tensors = [
        ("z.weight".to_string(), vec![3, 4], &weight[..]),
        ("a.bias".into(), vec![2], &[f32::MIN_POSITIVE / 4.0, -0.0]),
        ("scalar".into(), vec![], &[7.0]),
    ];
    save(&files.path(), &tensors, &[("step", "12"), ("engine", "0.1.0")]).unwrap();

    let expected = [expect("a.bias", &[2]), expect("z.weight", &[3, 4]), expect("scalar", &[])];
    let (report, read) = files.load(&expected).unwrap();
    assert_eq!(report.matched, ["a.bias", "z.weight", "scalar"]);
    assert_eq!(bytes(&read[0]), bytes(tensors[1].2));
    assert_eq!(bytes(&read[1]), bytes(&weight));
    assert_eq!(read[2], [7.0]);
}

#[test]
fn the_bytes_are_the_same_every_time_and_the_safetensors_crate_agrees() {
    let files = Files::new();
    let tensors = [("second".to_string(), vec![2], &[1.0f32, 2.0][..]), ("first".into(), vec![1, 1], &[3.0])];
    let notes = [("b", "2"), ("a", "1"), ("c", "3")];
    save(&files.path(), &tensors, &notes).unwrap();
    let first = fs::read(files.path()).unwrap();
    save(&files.path(), &tensors, &[notes[2], notes[0], notes[1]]).unwrap();
    assert_eq!(fs::read(files.path()).unwrap(), first);

    let (length, metadata) = safetensors::SafeTensors::read_metadata(&first).unwrap();
    assert_eq!(length % 8, 0);
    assert_eq!(metadata.offset_keys(), ["second", "first"]);
    let notes = metadata.metadata().as_ref().unwrap();
    assert_eq!((notes["format"].as_str(), notes["a"].as_str(), notes.len()), ("pt", "1", 4));
    let parsed = safetensors::SafeTensors::deserialize(&first).unwrap();
    assert_eq!(parsed.tensor("second").unwrap().data(), bytes(&[1.0, 2.0]));
}

#[test]
fn a_file_that_transformers_wrote_is_read_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-bert");
    let config = crate::nn::BertConfig::from_file(&folder.join("config.json")).unwrap();
    let file = fs::read(folder.join("model.safetensors")).unwrap();
    let expected: Vec<Expected> = safetensors::SafeTensors::deserialize(&file)
        .unwrap()
        .iter()
        .map(|(name, tensor)| expect(name.strip_prefix("bert.").unwrap(), tensor.shape()))
        .collect();
    let mut elements = 0;
    let report =
        load(&folder.join("model.safetensors"), &expected, |_, values| elements += values.len() as u64)
            .unwrap();
    assert_eq!((report.matched.len(), report.unexpected.len()), (39, 0));
    assert_eq!(elements, config.parameter_count());
}

#[test]
fn prefixes_and_old_names_of_layer_norm_are_understood() {
    let files = Files::new();
    files.put(
        &json!({
            "module.bert.embeddings.LayerNorm.gamma": entry("F32", &[2], 0, 8),
            "bert.embeddings.LayerNorm.beta": entry("F32", &[2], 8, 16),
            "embeddings.position_ids": entry("I64", &[1, 2], 16, 32),
            "bert.embeddings.word_embeddings.weight": entry("F32", &[1, 2], 32, 40),
            "cls.seq_relationship.bias": entry("F32", &[2], 40, 48),
            "__metadata__": { "format": "pt" },
        }),
        bytes(&[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0]),
    );
    let mut expected = [
        expect("embeddings.LayerNorm.weight", &[2]),
        expect("embeddings.LayerNorm.bias", &[2]),
        expect("embeddings.word_embeddings.weight", &[1, 2]),
        expect("pooler.dense.bias", &[2]),
    ];
    expected[3].required = false;
    let (report, read) = files.load(&expected).unwrap();
    assert_eq!(read, [vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0, 6.0], vec![]]);
    assert_eq!(report.missing, ["pooler.dense.bias"]);
    assert_eq!(report.unexpected, ["cls.seq_relationship.bias"]);
    assert_eq!(
        report.to_string(),
        "3 tensors read, 1 missing, 1 not used\nmissing: pooler.dense.bias\nnot used: cls.seq_relationship.bias"
    );
}

#[test]
fn half_precision_is_widened_exactly() {
    widens("F16", f16_value);
    widens("BF16", |bits| f32::from_bits(u32::from(bits) << 16));
}

/// Every pattern of 16 bits that is finite is read as its `value`, in more than one piece.
fn widens(dtype: &str, value: fn(u16) -> f32) {
    let finite = (0..=u16::MAX).filter(|&bits| value(bits).is_finite());
    let bits: Vec<u16> = finite.cycle().take(PIECE + 77).collect();
    let files = Files::new();
    let header = json!({ "x": entry(dtype, &[bits.len()], 0, 2 * bits.len()) });
    files.put(&header, bytemuck::cast_slice(&bits));
    let (_, read) = files.load(&[expect("x", &[bits.len()])]).unwrap();
    let expected: Vec<f32> = bits.into_iter().map(value).collect();
    assert_eq!(bytes(&read[0]), bytes(&expected), "{dtype}");
}

/// A half by its definition: sign, five bits of exponent, ten of mantissa.
fn f16_value(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        31 => f32::NAN,
        _ => sign * (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    }
}

#[test]
fn files_that_are_not_whole_are_refused() {
    let files = Files::new();
    let x = [expect("x", &[2, 3])];
    let whole = json!({ "x": entry("F32", &[2, 3], 0, 24) });

    fs::write(files.path(), b"1234567").unwrap();
    assert!(files.refusal(&x).contains("it has 7 bytes, and 8 are needed"));

    fs::write(files.path(), [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    assert!(files.refusal(&x).contains("announces a header of 18446744073709551615 bytes, and has 2"));

    fs::write(files.path(), [&3u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    assert!(files.refusal(&x).contains("announces a header of 3 bytes, and has 2"));

    fs::write(files.path(), [&4u64.to_le_bytes()[..], b"{\"x\""].concat()).unwrap();
    assert!(files.refusal(&x).contains("its header does not parse: EOF"));

    fs::write(files.path(), [&4u64.to_le_bytes()[..], b"\xff\xff\xff\xff"].concat()).unwrap();
    assert!(files.refusal(&x).contains("its header does not parse"));

    files.put(&whole, &[0; 23]);
    assert!(files.refusal(&x).contains("tensor x ends at byte 24 of 23: the file is cut short"));

    files.put(&whole, &[0; 25]);
    assert!(files.refusal(&x).contains("1 bytes after the last tensor belong to none"));
}

#[test]
fn headers_longer_than_any_model_has_are_not_read() {
    let files = Files::new();
    let length = (16 << 20) + 1;
    let file = File::create(files.path()).unwrap();
    (&file).write_all(&u64::to_le_bytes(length)).unwrap();
    file.set_len(8 + length).unwrap();
    assert!(files.refusal(&[]).contains("the most that is read is 16777216"));
}

#[test]
fn tensors_that_do_not_tile_the_file_are_refused() {
    let x = [expect("x", &[2])];
    let cases = [
        (
            "overlap",
            json!({ "x": entry("F32", &[2], 0, 8), "y": entry("F32", &[2], 4, 12) }),
            "tensor y lies at bytes 4 to 12, and should begin at 8",
        ),
        (
            "gap",
            json!({ "x": entry("F32", &[2], 0, 8), "y": entry("F32", &[2], 12, 20) }),
            "tensor y lies at bytes 12 to 20, and should begin at 8",
        ),
        (
            "backwards",
            json!({ "x": entry("F32", &[2], 0, 8), "y": entry("F32", &[0], 8, 4) }),
            "tensor y lies at bytes 8 to 4",
        ),
        ("does not begin at 0", json!({ "x": entry("F32", &[2], 8, 16) }), "tensor x lies at bytes 8 to 16"),
        ("size", json!({ "x": entry("F32", &[2], 0, 4) }), "tensor x, F32 of shape [2], lies in 4 bytes"),
        (
            "overflow",
            json!({ "x": entry("F32", &[usize::MAX, 8], 0, 8) }),
            "tensor x, F32 of shape [18446744073709551615, 8]",
        ),
        ("beyond", json!({ "x": entry("F32", &[2], 0, usize::MAX) }), "the file is cut short"),
        (
            "unknown type",
            json!({ "x": entry("F99", &[2], 0, 8) }),
            "entry for tensor x does not parse: unknown variant `F99`",
        ),
        (
            "negative shape",
            json!({ "x": { "dtype": "F32", "shape": [-2], "data_offsets": [0, 8] } }),
            "tensor x does not parse",
        ),
        ("no entry", json!({ "x": [1, 2] }), "entry for tensor x does not parse"),
        ("no object", json!([]), "its header does not parse"),
    ];
    for (case, header, expected) in cases {
        let files = Files::new();
        files.put(&header, &[0; 20]);
        let message = files.refusal(&x);
        assert!(message.contains(expected), "{case}: {message}");
    }
}

#[test]
fn tensors_of_another_type_or_shape_are_refused() {
    let files = Files::new();
    files.put(&json!({ "bert.x": entry("F64", &[2], 0, 16) }), &[0; 16]);
    let message = files.refusal(&[expect("x", &[2])]);
    assert!(message.contains("tensor bert.x is of type F64, expected F32, F16 or BF16"), "{message}");

    let name = "embeddings.word_embeddings.weight";
    files.put(&json!({ name: entry("F32", &[2, 3], 0, 24) }), &[0; 24]);
    let message = files.refusal(&[expect(name, &[3, 2])]);
    assert!(
        message.contains("has shape [2, 3], expected [3, 2]; the vocabulary and the weights"),
        "{message}"
    );

    files.put(&json!({ "embeddings.position_ids": entry("F32", &[2], 0, 8) }), &[0; 8]);
    assert_eq!(files.load(&[]).unwrap().0.unexpected, ["embeddings.position_ids"]);
}

#[test]
fn two_names_for_one_tensor_are_refused() {
    let files = Files::new();
    files.put(
        &json!({ "bert.LayerNorm.gamma": entry("F32", &[1], 0, 4), "LayerNorm.weight": entry("F32", &[1], 4, 8) }),
        &[0; 8],
    );
    let message = files.refusal(&[expect("LayerNorm.weight", &[1])]);
    assert!(
        message.contains("bert.LayerNorm.gamma and LayerNorm.weight both are LayerNorm.weight"),
        "{message}"
    );
}

#[test]
fn missing_tensors_are_listed_up_to_ten() {
    let files = Files::new();
    files.put(&json!({ "t0": entry("F32", &[1], 0, 4) }), &[0; 4]);
    let expected: Vec<Expected> = (0..13).map(|i| expect(&format!("t{i}"), &[1])).collect();
    let message = files.refusal(&expected);
    assert!(message.contains("12 of 13 tensors are missing: t1, t2, t3"), "{message}");
    assert!(message.contains("t9, t10 and 2 more;") && !message.contains("t11"), "{message}");
}

#[test]
fn a_report_shows_ten_names_or_all() {
    let names = |count: usize| (0..count).map(|i| format!("n{i}")).collect();
    let report = Report { matched: names(3), missing: names(10), unexpected: names(12) };
    let short = report.to_string();
    assert!(short.starts_with("3 tensors read, 10 missing, 12 not used\n"), "{short}");
    assert!(short.contains("n8, n9\n") && short.ends_with("n9 and 2 more"), "{short}");
    assert!(format!("{report:#}").ends_with("n9, n10, n11"));
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let files = Files::new();
    let mut values = vec![1.0; PIECE + 9];
    values[PIECE + 5] = f32::NEG_INFINITY;
    values[PIECE + 7] = f32::NAN;
    save(&files.path(), &[("x".into(), vec![values.len()], &values)], &[]).unwrap();
    let message = files.refusal(&[expect("x", &[values.len()])]);
    assert!(message.contains("tensor x holds -inf at element 65541"), "{message}");
}

#[test]
fn a_file_that_is_not_there_comes_with_advice() {
    let files = Files::new();
    assert!(
        files.refusal(&[]).contains("a model directory in Hugging Face layout holds a model.safetensors")
    );
    fs::write(files.path().with_file_name("pytorch_model.bin"), "").unwrap();
    assert!(files.refusal(&[]).contains("beside it is a pytorch_model.bin"));
    fs::write(files.path().with_file_name("model.safetensors.index.json"), "").unwrap();
    assert!(files.refusal(&[]).contains("several files (shards)"));
    fs::create_dir(files.path()).unwrap();
    assert!(files.refusal(&[]).contains("not a regular file"));
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let error = save(Path::new("no/such/folder/model.safetensors"), &[], &[]).unwrap_err().to_string();
    assert!(error.contains("no/such/folder/model.safetensors: cannot be written"), "{error}");
}
