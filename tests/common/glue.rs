//! GLUE's folders, made by hand, and models with its tasks that have learned nothing.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::path::Path;

use mtdnn_raw::data::{TaskKind, TaskSpec, Texts, Tokenizer};
use mtdnn_raw::nn::{BertConfig, Model, directory};

pub const WORDS: [&str; 14] =
    ["good", "bad", "fine", "poor", "film", "song", "the", "a", "was", "is", "who", "no", ".", "##s"];

/// A sentence of its own for each number.
pub fn sentence(number: usize) -> String {
    let word = |place: usize| WORDS[number / 12usize.pow(place as u32) % 12];
    format!("the {} was {} {} {} .", word(0), word(1), word(2), word(3))
}

/// A test file of so many rows, numbered from 0.
pub fn test_file(columns: &[&str], rows: usize) -> String {
    let mut text = columns.join("\t") + "\n";
    for row in 0..rows {
        let cell = |(place, _): (usize, _)| match place {
            0 => row.to_string(),
            _ => sentence(row + 31 * place),
        };
        text += &(columns.iter().enumerate().map(cell).collect::<Vec<_>>().join("\t") + "\n");
    }
    text
}

/// The official test files of all tasks but QQP, whose 390965 rows would take long.
pub fn test_files(glue: &Path) {
    let pair = ["index", "sentence1", "sentence2"];
    for (file, columns, rows) in [
        ("CoLA/test.tsv", &["index", "sentence"][..], 1063),
        ("SST-2/test.tsv", &["index", "sentence"], 1821),
        ("MRPC/test.tsv", &["index", "#1 ID", "#2 ID", "#1 String", "#2 String"], 1725),
        ("STS-B/test.tsv", &pair, 1379),
        ("MNLI/test_matched.tsv", &pair, 9796),
        ("MNLI/test_mismatched.tsv", &pair, 9847),
        ("QNLI/test.tsv", &["index", "question", "sentence"], 5463),
        ("RTE/test.tsv", &pair, 3000),
        ("WNLI/test.tsv", &pair, 146),
        ("diagnostic/diagnostic.tsv", &pair, 1104),
    ] {
        let path = glue.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, test_file(columns, rows)).unwrap();
    }
}

fn classification(name: &str, texts: Texts, labels: &[&str]) -> TaskSpec {
    let labels = labels.iter().map(|label| label.to_string()).collect();
    TaskSpec { labels, texts: Some(texts), ..TaskSpec::new(name, TaskKind::Classification) }
}

/// GLUE's nine tasks under its own names, with MNLI's labels in another order than ours.
pub fn tasks() -> Vec<TaskSpec> {
    use Texts::{Pair, Single};
    vec![
        classification("cola", Single, &["0", "1"]),
        classification("sst2", Single, &["0", "1"]),
        classification("mrpc", Pair, &["0", "1"]),
        TaskSpec { texts: Some(Pair), ..TaskSpec::new("stsb", TaskKind::Regression) },
        classification("qqp", Pair, &["0", "1"]),
        classification("mnli", Pair, &["entailment", "neutral", "contradiction"]),
        classification("qnli", Pair, &["not_entailment", "entailment"]),
        classification("rte", Pair, &["not_entailment", "entailment"]),
        classification("wnli", Pair, &["0", "1"]),
    ]
}

/// A directory with a very small model of these tasks, its parameters drawn by `seed` and large enough that its answers
/// differ.
pub fn model(path: &Path, tasks: &[TaskSpec], seed: u64) {
    let tokenizer = Tokenizer::from_words(WORDS, Default::default()).unwrap();
    let config = BertConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 32,
        max_position_embeddings: 32,
        initializer_range: 0.5,
        ..BertConfig::default()
    };
    let model = Model::new(&config, tasks);
    let mut values = vec![0.0; model.parameters().len()];
    for parameter in model.parameters().parameters() {
        model.parameters().initialise(parameter, seed, &mut values[parameter.range()]);
    }
    fs::create_dir_all(path).unwrap();
    directory::save(path, &model, &tokenizer, 32, &values).unwrap();
}
