//! Text that a tiny model can learn: every document has words of its own.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use mtdnn_raw::data::Tokenizer;
use mtdnn_raw::nn::BertConfig;
use mtdnn_raw::random::Random;

/// Kinds of documents, and the words that those of a kind are made of.
pub const KINDS: u32 = 6;
pub const WORDS_OF_A_KIND: u32 = 4;

/// All words: `w0`, `w1` and so on.
pub fn words() -> Vec<String> {
    (0..KINDS * WORDS_OF_A_KIND).map(|word| format!("w{word}")).collect()
}

/// Documents of 3 to 8 sentences of 2 to 7 words, a sentence a line, a blank line between documents.
pub fn documents(count: usize, seed: u64) -> String {
    let mut random = Random::new(seed, [0, 0]);
    let mut text = String::new();
    for _ in 0..count {
        let kind = random.below(KINDS);
        for _ in 0..3 + random.below(6) {
            let length = 2 + random.below(6);
            let mut word = || format!("w{}", WORDS_OF_A_KIND * kind + random.below(WORDS_OF_A_KIND));
            let sentence: Vec<String> = (0..length).map(|_| word()).collect();
            text += &format!("{}.\n", sentence.join(" "));
        }
        text += "\n";
    }
    text
}

/// A tokenizer of the words and the full stop.
pub fn tokenizer() -> Tokenizer {
    let words = words();
    Tokenizer::from_words(words.iter().map(String::as_str).chain(["."]), Default::default()).unwrap()
}

/// Files in a folder: text to train on and to measure on, and a vocabulary.
pub struct Files {
    pub train: PathBuf,
    pub dev: PathBuf,
    pub vocabulary: PathBuf,
}

impl Files {
    pub fn new(folder: &Path) -> Self {
        let path = |name: &str| folder.join(name);
        let files = Self { train: path("train.txt"), dev: path("dev.txt"), vocabulary: path("vocabulary") };
        fs::write(&files.train, documents(120, 1)).unwrap();
        fs::write(&files.dev, documents(30, 2)).unwrap();
        fs::create_dir(&files.vocabulary).unwrap();
        tokenizer().save(&files.vocabulary).unwrap();
        files
    }
}

/// An encoder of so many narrow layers for that text.
pub fn encoder(hidden: usize, layers: usize) -> BertConfig {
    BertConfig {
        vocab_size: tokenizer().vocab_size(),
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: 2,
        intermediate_size: 2 * hidden,
        max_position_embeddings: 64,
        ..BertConfig::default()
    }
}
