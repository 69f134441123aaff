//! Pre-training's way as a whole: text in, masked batches out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::data::corpus::tests::{corpus_of, hundred_words, some_documents};
use crate::data::text::{self, Layout, Piece};
use crate::data::tokenizer::Normalization;
use crate::data::{Corpus, Instance, MaskedBatch, Masking, Pass, Tokenizer};

/// Draws epochs until a million tokens have been read, and checks the statistics of issue and paper.
fn check_statistics(corpus: &Corpus, tokenizer: &Tokenizer, max_length: usize) {
    let masking = Masking::new(tokenizer, Path::new("vocab.txt"), 0.15, false, None).unwrap();
    let mut batch = MaskedBatch::with_capacity(32, max_length, 1);
    let (mut tokens, mut chosen, mut hidden, mut kept, mut epoch) = (0, 0, 0, 0, 0);
    while tokens < 1_000_000 {
        let pass = Pass { seed: 12345, phase: 0, epoch };
        let instances = Instance::draw(corpus, pass, max_length, 0.1);
        for (number, chunk) in instances.chunks(32).enumerate() {
            batch.fill(corpus, chunk, &masking, pass, number as u32 * 32);
            tokens += batch.batch.live_tokens();
            chosen += batch.rows.len();
            for (&row, &label) in batch.rows.iter().zip(&batch.labels) {
                let id = batch.batch.ids[row as usize];
                kept += usize::from(id == label);
                hidden += usize::from(Some(id) == tokenizer.mask());
            }
        }
        epoch += 1;
    }
    let percent = |count: usize, of: usize| 100.0 * count as f64 / of as f64;
    let random = chosen - hidden - kept;
    println!(
        "{tokens} tokens, {:.3} % chosen; of these {:.2} % hidden, {:.2} % random, {:.2} % kept",
        percent(chosen, tokens),
        percent(hidden, chosen),
        percent(random, chosen),
        percent(kept, chosen)
    );
    assert!((percent(chosen, tokens) - 15.0).abs() < 0.1);
    for (count, expected) in [(hidden, 80.0), (random, 10.0), (kept, 10.0)] {
        assert!((percent(count, chosen) - expected).abs() < 0.5);
    }
}

#[test]
fn a_million_drawn_tokens_are_masked_as_bert_masks_them() {
    let corpus = corpus_of(&some_documents(400, 1));
    check_statistics(&corpus, &hundred_words(), 128);
}

/// The novels, where they are: `MTDNN_TEXT`, or `../shared/data/text` from the project's root.
fn novels() -> Option<Vec<PathBuf>> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/text");
    let folder = std::env::var_os("MTDNN_TEXT").map_or_else(default, PathBuf::from).join("dev");
    if !folder.is_dir() {
        println!("skipped: no text in {}; MTDNN_TEXT can name another folder", folder.display());
        return None;
    }
    Some(text::files(&[folder]).unwrap())
}

#[test]
fn novels_become_masked_batches() {
    let Some(files) = novels() else { return };
    // The three thousand most frequent words, and letters for the rest.
    let mut counts = BTreeMap::<String, u32>::new();
    for file in &files {
        let count = |piece: Piece<'_>| {
            if let Piece::Sentence(sentence) = piece {
                for word in sentence.split(|c: char| !c.is_alphabetic()).filter(|word| word.len() > 1) {
                    *counts.entry(word.to_lowercase()).or_default() += 1;
                }
            }
        };
        text::read(file, Layout::Sentences, count).unwrap();
    }
    let mut words: Vec<(u32, String)> = counts.into_iter().map(|(word, count)| (count, word)).collect();
    words.sort_by(|a, b| b.cmp(a));
    let mut tokens: Vec<String> = words.into_iter().take(3000).map(|(_, word)| word).collect();
    tokens.extend(('!'..='~').filter(|c| !c.is_ascii_uppercase()).map(String::from));
    tokens.extend(('a'..='z').map(|letter| format!("##{letter}")));
    let tokenizer =
        Tokenizer::from_words(tokens.iter().map(String::as_str), Normalization::default()).unwrap();

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("novels.corpus");
    let mut progress = Vec::new();
    let corpus = Corpus::build(&files, Layout::Sentences, &tokenizer, &path, &mut |done, total| {
        progress.push((done, total));
        true
    });
    let corpus = corpus.unwrap();
    println!("{:?}, unigram entropy {:.3}", corpus.counts(), corpus.unigram_entropy());
    assert!(progress.windows(2).all(|pair| pair[0] <= pair[1]));
    let (done, total) = progress[progress.len() - 1];
    assert!(done > total / 10 * 9, "{done} of {total}");
    check_statistics(&corpus, &tokenizer, 128);
}
