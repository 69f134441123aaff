//! `vocab` end to end: the files that it writes, what each option changes, and what it refuses.

#[path = "common/place.rs"]
mod place;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use mtdnn_raw::data::Tokenizer;
use place::Place;

const FILES: [&str; 3] = ["vocab.txt", "tokenizer.json", "tokenizer_config.json"];
const SMALL: [&str; 7] = ["vocab", "--text", "text", "--size", "60", "--unused", "0"];

/// A place with a folder of text: capitals, accents, Chinese and a rare character.
fn with_text() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("text")).unwrap();
    let first =
        "The caf\u{e9} was open.\nThe Caf\u{e9} was closed.\n\nWas the caf\u{e9} open?\nMr. Bell\nlaughed.\n";
    let second = "\u{4e2d}\u{6587} \u{4e2d}\u{6587} \u{e6}\nThe open caf\u{e9}s closed, the closed caf\u{e9}s opened.\n";
    place.write("text/first.txt", first.repeat(3));
    place.write("text/second.txt", second);
    place
}

/// The arguments with these added.
fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

fn bytes(place: &Place, directory: &str) -> Vec<Vec<u8>> {
    FILES.iter().map(|name| fs::read(place.path(directory).join(name)).unwrap()).collect()
}

#[test]
fn a_vocabulary_is_written_and_loads() {
    let place = with_text();
    let ended = place.ok(&with(&SMALL, &["--output", "made/here"]));
    assert!(ended.stdout.starts_with("made/here: 60 tokens from "), "{}", ended.stdout);
    // The comma and one letter occur once.
    assert!(ended.stdout.contains("in 2 files") && ended.stdout.contains("2 characters are too rare"));
    let tokenizer = Tokenizer::from_directory(&place.path("made/here")).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.pad(), tokenizer.mask()), (60, 0, Some(4)));
    let text = "The caf\u{e9} was closed \u{4e2d}.";
    assert!(!tokenizer.tokens(text).contains(&tokenizer.unknown()), "{:?}", tokenizer.tokens(text));
    assert!(tokenizer.tokens("\u{e6}").contains(&tokenizer.unknown()));
    assert_eq!(
        fs::read_dir(place.path("made/here")).unwrap().count(),
        FILES.len(),
        "something else was left"
    );
}

#[test]
fn the_same_bytes_at_any_thread_count_and_order_of_files() {
    let place = with_text();
    place.ok(&with(&SMALL, &["--output", "a"]));
    let other_order =
        ["vocab", "--text", "text/second.txt", "text/first.txt", "--size", "60", "--unused", "0"];
    for (output, threads) in [("b", "1"), ("c", "2"), ("d", "3")] {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("mtdnn-raw"));
        command.args(other_order).args(["--output", output, "--threads", threads]);
        assert!(command.current_dir(place.directory.path()).status().unwrap().success());
        assert_eq!(bytes(&place, output), bytes(&place, "a"));
    }
    // The same again into the same place is no other vocabulary.
    place.ok(&with(&SMALL, &["--output", "a"]));
}

#[test]
fn every_option_changes_what_is_made() {
    let place = with_text();
    let mut seen = BTreeSet::new();
    let options: [&[&str]; 8] = [
        &[],
        &["--cased"],
        &["--keep-accents"],
        &["--cased", "--strip-accents"],
        &["--no-split-chinese"],
        &["--min-frequency", "4"],
        &["--size", "61"],
        &["--unused", "3"],
    ];
    for (number, options) in options.iter().enumerate() {
        let output = format!("made-{number}");
        let mut arguments = with(&SMALL[..3], &["--output", &output]);
        arguments.extend_from_slice(options);
        for (flag, value) in [("--size", "60"), ("--unused", "0")] {
            if !options.contains(&flag) {
                arguments.extend([flag, value]);
            }
        }
        place.ok(&arguments);
        assert!(seen.insert(bytes(&place, &output)), "{options:?} changes nothing");
    }
}

/// No word crosses a sentence's end, so `--split` changes no vocabulary, but which files can be read.
#[test]
fn paragraphs_hold_the_same_words() {
    let place = with_text();
    place.ok(&with(&SMALL, &["--output", "lines"]));
    place.ok(&with(&SMALL, &["--output", "paragraphs", "--split"]));
    assert_eq!(bytes(&place, "lines"), bytes(&place, "paragraphs"));
    place.write("text/long.txt", "word. ".repeat(200_000));
    place.refused(&with(&SMALL, &["--output", "run"]), &["long.txt: line 1: no line end within", "--split"]);
    place.write("text/long.txt", "Word. Word.\n".repeat(100_000));
    place.ok(&with(&SMALL, &["--output", "long", "--split"]));
}

#[test]
fn a_run_file_holds_the_same_keys_and_flags_override_it() {
    let place = with_text();
    let table =
        "[vocab]\ntext = [\"text\"]\noutput = \"file\"\nsize = 60\ncased = true\nunused = 0\nsplit = false\n";
    place.write("vocab.toml", table);
    place.ok(&["vocab", "vocab.toml"]);
    place.ok(&with(&SMALL, &["--output", "flags", "--cased"]));
    assert_eq!(bytes(&place, "file"), bytes(&place, "flags"));
    place.ok(&["vocab", "vocab.toml", "--size", "55", "--output", "fewer"]);
    assert_eq!(Tokenizer::from_directory(&place.path("fewer")).unwrap().vocab_size(), 55);
    place.write("vocab.toml", "[vocab]\nsise = 60\n");
    place.refused(&["vocab", "vocab.toml"], &["vocab.toml:2: unknown key \"sise\"; did you mean \"size\"?"]);
    // A run takes no notice of the table, and its saved settings do not hold it.
    let run = fs::read_to_string(place.path("run.toml")).unwrap();
    place.write("both.toml", run.replace("[train]", "[vocab]\ntext = [\"text\"]\n[train]\nmax_steps = 1"));
    place.ok(&["train", "both.toml"]);
    assert!(!fs::read_to_string(place.path("run/config.toml")).unwrap().contains("vocab]"));
}

#[test]
fn little_text_gives_fewer_tokens_and_says_so() {
    let place = with_text();
    let ended = place.ok(&["vocab", "--text", "text", "--output", "made"]);
    let tokens = Tokenizer::from_directory(&place.path("made")).unwrap();
    assert!(
        ended.stderr.contains(&format!("warning: {} tokens, not 8192", tokens.vocab_size())),
        "{}",
        ended.stderr
    );
    assert_eq!((tokens.unknown(), tokens.cls(), tokens.sep(), tokens.mask()), (100, 101, 102, Some(103)));
    assert_eq!(tokens.token(99), Some("[unused98]"));
}

#[test]
fn another_vocabulary_is_replaced_by_force_alone() {
    let place = with_text();
    let before = fs::read(place.path("vocabulary/vocab.txt")).unwrap();
    let into = with(&SMALL, &["--output", "vocabulary"]);
    place.refused(&into, &["vocabulary holds another vocabulary", "--force", "nothing was changed"]);
    assert_eq!(fs::read(place.path("vocabulary/vocab.txt")).unwrap(), before);
    assert_eq!(fs::read_dir(place.path("vocabulary")).unwrap().count(), 1, "a part was left");
    place.ok(&with(&into, &["--force"]));
    assert_ne!(fs::read(place.path("vocabulary/vocab.txt")).unwrap(), before);
}

#[test]
fn what_is_wrong_is_said_with_its_remedy() {
    let place = with_text();
    fs::create_dir(place.path("empty")).unwrap();
    place.write("blank.txt", "\n \n");
    place.write("latin.txt", b"fine\ncaf\xe9\n");
    let text = |path| ["vocab", "--text", path, "--output", "run"];
    place.refused(&["vocab", "--output", "run"], &["vocab.text: name text files"]);
    place.refused(&["vocab", "--text", "text"], &["--output DIR"]);
    place.refused(&text("absent"), &["absent: no such file or folder"]);
    place.refused(&text("empty"), &["empty: no files in this folder"]);
    place.refused(&text("blank.txt"), &["vocab.text: there are no words in it"]);
    place.refused(&text("latin.txt"), &["latin.txt:2: the text is not UTF-8", "iconv -f latin1 -t utf-8"]);
    place.refused(
        &with(&text("text"), &["--min-frequency", "1000"]),
        &["vocab.min_frequency: 1000: every word has a character that occurs less often"],
    );
    place.refused(
        &with(&text("text"), &["--size", "110"]),
        &["vocab.size: 110 tokens are too few", "give that or more"],
    );
    place.refused(&with(&text("text"), &["--size", "104"]), &["vocab.size: 104", "no room"]);
    place.refused(&with(&text("text"), &["--strip-accents", "--keep-accents"]), &["cannot be used with"]);
    place.refused(&["vocab", "--text", "text", "--output", "blank.txt"], &["blank.txt: is no directory"]);
    place.write("nul.txt", b"one\0 one\n\0two two\n");
    let ended = place.ok(&["vocab", "--text", "nul.txt", "--output", "nul"]);
    assert!(ended.stderr.contains("nul.txt: dropped 2 NUL characters"), "{}", ended.stderr);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let place = with_text();
    let ended = place.with_file_limit(1, &with(&SMALL, &["--output", "made"]));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("cannot write") && ended.stderr.contains("made"), "{}", ended.stderr);
    assert_eq!(fs::read_dir(place.path("made")).unwrap().count(), 0, "a part was left");
}
