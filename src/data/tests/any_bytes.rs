//! Properties of reading that hold for whatever a file contains.

use std::path::PathBuf;

use proptest::prelude::*;

use crate::data::dataset::{Example, Label, Text};
use crate::data::error::DataError;
use crate::data::reader;
use crate::data::task::{Column, Columns, Format, Quirks, SourceFile, Split, TaskKind, TaskSpec};

fn read(format: Format, contents: &[u8]) -> Result<Vec<Example>, DataError> {
    let named = format == Format::Jsonl;
    let column = |number: usize, name: &str| {
        if named { Column::Name(name.to_string()) } else { Column::Number(number) }
    };
    let columns = Columns::Row { text_a: column(0, "a"), text_b: Some(column(1, "b")), label: None };
    let spec = TaskSpec {
        labels: vec!["0".to_string(), "1".to_string()],
        ..TaskSpec::new("any", TaskKind::Classification)
    };
    let (split, name, path) = (Split::Test, "test".to_string(), PathBuf::from("any"));
    let file = SourceFile { split, name, path, format, columns, quirks: Quirks::default() };
    Ok(reader::parse(contents, &file, &spec)?.0)
}

fn quoted(field: &str) -> String {
    format!("\"{}\"", field.replace('"', "\"\""))
}

/// A text that is not blank and has no character that a TSV field cannot hold.
fn field() -> impl Strategy<Value = String> {
    "x[^\t\r\n]{0,12}"
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_examples_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for format in [
            Format::Tsv { header: false },
            Format::Tsv { header: true },
            Format::Csv { header: false },
            Format::Jsonl,
        ] {
            if let Err(error) = read(format, &bytes) {
                prop_assert!(error.to_string().starts_with("any:"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read(rows in proptest::collection::vec((field(), field()), 1..9)) {
        let expected: Vec<Example> = rows
            .iter()
            .map(|(a, b)| Example { text: Text::Pair(a.clone(), b.clone()), label: Label::None })
            .collect();
        let tsv: String = rows.iter().map(|(a, b)| format!("{a}\t{b}\n")).collect();
        prop_assert_eq!(&read(Format::Tsv { header: false }, tsv.as_bytes()).unwrap(), &expected);
        let csv: String = rows.iter().map(|(a, b)| format!("{},{}\r\n", quoted(a), quoted(b))).collect();
        prop_assert_eq!(&read(Format::Csv { header: false }, csv.as_bytes()).unwrap(), &expected);
        let json: String = rows.iter().map(|(a, b)| serde_json::json!({"a": a, "b": b}).to_string() + "\n").collect();
        prop_assert_eq!(&read(Format::Jsonl, json.as_bytes()).unwrap(), &expected);
    }
}
