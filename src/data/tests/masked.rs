//! A task of masked words: its entry, its sets, and what is hidden of them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::data::custom::TaskEntry;
use crate::data::masked::{MaskedOptions, MaskedText, hiding};
use crate::data::masking::Predictions;
use crate::data::task::{MetricKind, TaskKind, TaskSpec};
use crate::data::text::Layout;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Batch, Batching, Capacity, Dataset, Label};

fn resolve(entry: &str) -> Result<TaskSpec, String> {
    let entry: TaskEntry = toml::from_str(&format!("name = \"words\"\n{entry}")).unwrap();
    entry.resolve().map_err(|error| error.to_string())
}

const MASKED: &str = "kind = \"masked\"\ntext = [\"a\"]\n";

#[test]
fn an_entry_says_text_and_what_is_hidden() {
    let spec = resolve(MASKED).unwrap();
    assert_eq!(spec.kind, TaskKind::Masked);
    use MetricKind::{MaskedAccuracy, NextAccuracy, Perplexity};
    assert_eq!(spec.metrics, [MaskedAccuracy, NextAccuracy, Perplexity]);
    assert_eq!(spec.masked, Some(MaskedOptions { text: vec!["a".into()], ..MaskedOptions::default() }));
    let all = "dev_text = [\"b\", \"c\"]\nnext_sentence = false\nmask_share = 0.3\nsplit = true\nwhole_words = true";
    let spec = resolve(&format!("{MASKED}{all}")).unwrap();
    assert_eq!(spec.metrics, [MaskedAccuracy, Perplexity]);
    let options = spec.masked.unwrap();
    assert_eq!((options.mask_share, options.next_sentence), (0.3, false));
    assert_eq!(options.dev_text, [PathBuf::from("b"), PathBuf::from("c")]);
    assert_eq!((options.layout, options.whole_words), (Layout::Paragraphs, true));
    // A model keeps what the head is made of, and not where the run's text was.
    let kept: MaskedOptions = serde_json::from_str(&serde_json::to_string(&options).unwrap()).unwrap();
    let layout = Layout::Sentences;
    assert_eq!(kept, MaskedOptions { text: Vec::new(), dev_text: Vec::new(), layout, ..options });
}

#[test]
fn what_an_entry_cannot_mean_is_refused() {
    for (entry, words) in [
        ("kind = \"masked\"", "name text, a list of files"),
        ("kind = \"masked\"\ntext = []", "name text, a list of files"),
        ("text = [\"a\"]\ntrain = \"t.tsv\"\ntext_a = 0\nlabel = 1", "text is for tasks of kind masked"),
        (
            "mask_share = 0.2\ntrain = \"t.tsv\"\ntext_a = 0\nlabel = 1",
            "mask_share is for tasks of kind masked",
        ),
        (
            "whole_words = true\ntrain = \"t.tsv\"\ntext_a = 0\nlabel = 1",
            "whole_words is for tasks of kind masked",
        ),
        ("split = true\ntrain = \"t.tsv\"\ntext_a = 0\nlabel = 1", "split is for tasks of kind masked"),
        ("dev_text = []\ntrain = \"t.tsv\"\ntext_a = 0\nlabel = 1", "dev_text is for tasks of kind masked"),
        (
            "next_sentence = true\ntrain = \"t.tsv\"\ntext_a = 0\nlabel = 1",
            "next_sentence is for tasks of kind",
        ),
    ] {
        let error = resolve(entry).unwrap_err();
        assert!(error.contains(words), "{entry}: {error}");
    }
    for (more, words) in [
        ("train = \"t.tsv\"", "train means nothing to masked"),
        ("data = \"folder\"", "data means nothing to masked"),
        ("dev = \"t.tsv\"", "dev means nothing"),
        ("label = 1", "label means nothing"),
        ("labels = [\"a\", \"b\"]", "labels means nothing"),
        ("dropout = 0.2", "dropout means nothing"),
        ("head = \"linear\"", "head means nothing"),
        ("soft_labels = \"s.jsonl\"", "soft labels are for"),
        ("gamma = 2.0", "gamma is for ranking"),
        ("stride = 2", "stride is for tasks of kind span"),
        ("mask_share = 0.0", "mask_share is 0, which is not in (0, 1)"),
        ("mask_share = 1.0", "mask_share is 1, which is not in (0, 1)"),
        ("metrics = [\"perplexity\"]", "name masked-accuracy first"),
        ("metrics = [\"accuracy\"]", "does not measure masked; these do: masked-accuracy"),
        ("metrics = [\"next-accuracy\"]\nnext_sentence = false", "next-accuracy measures next sentences"),
    ] {
        let error = resolve(&format!("{MASKED}{more}")).unwrap_err();
        assert!(error.contains(words), "{more}: {error}");
    }
    let known: TaskEntry = toml::from_str(&format!("name = \"rte\"\n{MASKED}")).unwrap();
    assert!(known.resolve().unwrap_err().to_string().contains("the name of a known task"));
}

/// Documents of eight sentences of six words, all words unlike.
fn text(documents: usize) -> String {
    let sentence =
        |number: usize| (0..6).map(|word| format!("w{}", (7 * number + word) % 60)).collect::<Vec<_>>();
    let document = |d: usize| (0..8).map(|s| sentence(8 * d + s).join(" ") + "\n").collect::<String>();
    (0..documents).map(|d| document(d) + "\n").collect()
}

fn tokenizer() -> Tokenizer {
    let words: Vec<String> = (0..60).map(|word| format!("w{word}")).collect();
    Tokenizer::from_words(words.iter().map(String::as_str), Default::default()).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Place {
    fn new(train: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), tokenizer: tokenizer() };
        fs::write(place.path("train.txt"), train).unwrap();
        fs::write(place.path("dev.txt"), text(5)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self) -> MaskedOptions {
        let (text, dev_text) = (vec![self.path("train.txt")], vec![self.path("dev.txt")]);
        MaskedOptions { text, dev_text, ..MaskedOptions::default() }
    }

    fn with<T>(&self, options: &MaskedOptions, cache: Option<&Path>, make: impl Fn(MaskedText) -> T) -> T {
        let vocabulary = Path::new("vocab.txt");
        let (task, tokenizer) = ("words", &self.tokenizer);
        make(MaskedText { task, options, tokenizer, vocabulary, max_length: 32, cache })
    }

    fn train(&self, options: &MaskedOptions, seed: u64) -> Result<Dataset, String> {
        let made = self.with(options, None, |text| text.train(seed, &mut |_, _, _| true));
        made.map(|made| made.unwrap().dataset).map_err(|error| error.to_string())
    }

    fn dev(&self, options: &MaskedOptions) -> Dataset {
        self.with(options, None, |text| text.dev(&mut |_, _, _| true)).unwrap().unwrap().dataset
    }
}

#[test]
fn pairs_are_drawn_from_the_seed_and_half_of_them_follow() {
    let place = Place::new(&text(60));
    let set = place.train(&place.options(), 1).unwrap();
    assert!(set.marks.is_empty() && set.longest() <= 32);
    assert!((0..set.len()).all(|e| (set.second[e] as usize) < set.sequence(e).len()), "a single text");
    let random = set.labels.iter().filter(|label| **label == Label::Class(1)).count() as f64;
    assert!((random / set.len() as f64 - 0.5).abs() < 0.15, "{random} of {}", set.len());
    assert_eq!(set, place.train(&place.options(), 1).unwrap());
    assert_ne!(set.ids, place.train(&place.options(), 2).unwrap().ids);
}

#[test]
fn without_next_sentences_every_token_of_a_document_is_read_once() {
    let place = Place::new(&text(10));
    let options = MaskedOptions { next_sentence: false, ..place.options() };
    let set = place.train(&options, 1).unwrap();
    assert!(
        (0..set.len())
            .all(|e| set.second[e] as usize == set.sequence(e).len() && set.labels[e] == Label::None)
    );
    let read: Vec<u32> = set.ids.iter().copied().filter(|&id| id > 4).collect();
    let all = place.tokenizer.tokens(&text(10));
    assert_eq!(read, all);
    // 48 tokens a document, 30 of them to a piece.
    assert_eq!((set.len(), set.longest()), (20, 32));
    let dev = place.dev(&options);
    assert!(
        dev.marks.len() > 20 && dev.second.iter().zip(0..).all(|(&s, e)| s as usize == dev.sequence(e).len())
    );
}

#[test]
fn dev_sets_hide_the_same_tokens_in_every_run_and_say_what_they_were() {
    let place = Place::new(&text(10));
    let dev = place.dev(&place.options());
    assert_eq!(dev, place.dev(&place.options()));
    let share = |set: &Dataset| set.marks.len() as f64 / set.ids.len() as f64;
    assert!((share(&dev) - 0.15).abs() < 0.03, "{}", share(&dev));
    let third = place.dev(&MaskedOptions { mask_share: 0.3, ..place.options() });
    assert!((share(&third) - 0.3).abs() < 0.04, "{}", share(&third));
    let mask = place.tokenizer.mask().unwrap();
    let masked = (0..dev.len()).flat_map(|e| dev.marks.of(e).map(move |mark| (e, mark)));
    let hidden = masked.filter(|&(e, mark)| dev.sequence(e)[dev.marks.positions[mark] as usize] == mask);
    assert!(hidden.count() * 10 > 6 * dev.marks.len(), "eight of ten become [MASK]");
    assert!(dev.marks.classes.iter().all(|&class| class > mask));
}

#[test]
fn whole_words_are_hidden_together_in_dev_sets_and_in_batches() {
    let folder = Place::new(&"wx wx wx wx wx wx\n\n".repeat(20));
    let place =
        Place { tokenizer: Tokenizer::from_words(["w", "##x"], Default::default()).unwrap(), ..folder };
    fs::copy(place.path("train.txt"), place.path("dev.txt")).unwrap();
    for whole_words in [false, true] {
        let options = MaskedOptions { whole_words, next_sentence: false, mask_share: 0.4, ..place.options() };
        let dev = place.dev(&options);
        // [CLS] w ##x w ##x …: the pieces of a word are at 1 and 2, 3 and 4, and so on.
        let together = |positions: &[u32]| {
            positions.chunks(2).all(|two| two.len() == 2 && two[0] % 2 == 1 && two[1] == two[0] + 1)
        };
        let all = (0..dev.len()).all(|e| together(&dev.marks.positions[dev.marks.of(e)]));
        assert_eq!(all, whole_words);
        let train = place.train(&options, 1).unwrap();
        let mut batch = Batch::new(1);
        batch.fill(&train, &[0, 1, 2, 3]);
        batch.hide(train.masking.as_ref().unwrap(), &mut hiding(1, 0), &mut Predictions::default());
        let positions: Vec<u32> = batch.marked.places.iter().map(|place| place & 0xffff).collect();
        assert_eq!(together(&positions), whole_words);
    }
}

#[test]
fn paragraphs_are_split_and_one_document_is_warned_of() {
    let place = Place::new("W1 w2. W3 w4.\n");
    let split = MaskedOptions { layout: Layout::Paragraphs, ..place.options() };
    let prepared = |options: &MaskedOptions| {
        place.with(options, None, |text| text.train(1, &mut |_, _, _| true)).unwrap().unwrap()
    };
    let error = place.train(&place.options(), 1).unwrap_err();
    assert!(error.contains("is a single sentence") && error.contains("split = true"), "{error}");
    let cut = prepared(&split);
    let said = "train text of task words: it is one document";
    assert!(cut.notes.iter().any(|note| note.starts_with(said)), "{:?}", cut.notes);
    let alone = prepared(&MaskedOptions { next_sentence: false, ..split.clone() });
    assert!(!alone.notes.iter().any(|note| note.contains("one document")), "{:?}", alone.notes);
    fs::write(place.path("train.txt"), "W1 w2. W3 w4.\n\n\nW5 w6.\n").unwrap();
    assert!(!prepared(&split).notes.iter().any(|note| note.contains("one document")));
}

#[test]
fn each_step_hides_other_tokens_and_the_same_step_the_same() {
    let place = Place::new(&text(30));
    let set = place.train(&place.options(), 1).unwrap();
    let examples: Vec<u32> = (0..16).collect();
    for line in [1, 128] {
        let mut plain = Batch::new(line);
        plain.fill(&set, &examples);
        let hide = |seed, step| {
            let mut batch = Batch::new(line);
            batch.fill(&set, &examples);
            let masking = set.masking.as_ref().unwrap();
            batch.hide(masking, &mut hiding(seed, step), &mut Predictions::default());
            batch
        };
        let batch = hide(1, 0);
        let again = hide(1, 0);
        assert_eq!((&batch.ids, &batch.order, &batch.marked), (&again.ids, &again.order, &again.marked));
        assert_ne!(batch.marked.rows, hide(1, 1).marked.rows);
        assert_ne!(batch.marked.rows, hide(2, 0).marked.rows);
        // With what stood there put back it is the batch as it was; places and groups are those of the tokens.
        let mut ids = batch.ids.clone();
        let marked = &batch.marked;
        for ((&row, &place), &class) in marked.rows.iter().zip(&marked.places).zip(&marked.classes) {
            assert_eq!(batch.places[row as usize], place);
            ids[row as usize] = class;
        }
        assert_eq!(ids, plain.ids);
        assert!(batch.order.windows(2).all(|two| {
            let key = |row: u32| (batch.ids[row as usize], row);
            key(two[0]) < key(two[1])
        }));
        let of_groups = marked.groups.windows(2).map(|two| two[1] - two[0]);
        let counted = (0..16)
            .map(|sequence| marked.places.iter().filter(|&&place| place >> 16 == sequence).count() as u32);
        assert!(of_groups.eq(counted) && marked.rows.len() > 30);
        let room = Capacity::of(&set, &Batching::of(16), line);
        assert!(marked.rows.len() <= room.predictions && room.predictions < room.tokens / 3, "{room:?}");
    }
    // A part of the set hides as the whole does.
    assert_eq!(set.select(&[3, 5]).masking, set.masking);
}

#[test]
fn token_ids_are_kept_and_made_anew_where_the_text_changes() {
    let place = Place::new(&text(10));
    let (options, cache) = (place.options(), place.path("cache"));
    let told = std::cell::Cell::new(0);
    let make = |text: MaskedText| {
        let mut progress = |_: &Path, _, _| {
            told.set(told.get() + 1);
            true
        };
        text.train(1, &mut progress).unwrap().unwrap().dataset
    };
    let first = place.with(&options, Some(&cache), make);
    let tokenised = told.get();
    assert!(tokenised > 0);
    assert_eq!(first, place.with(&options, Some(&cache), make));
    assert_eq!(told.get(), tokenised, "tokenised again");
    assert_eq!(first, place.train(&options, 1).unwrap());
    fs::write(place.path("train.txt"), text(11)).unwrap();
    assert_ne!(first.ids, place.with(&options, Some(&cache), make).ids);
    let stopped = place.with(&options, None, |text| text.train(1, &mut |_, _, _| false));
    assert!(stopped.unwrap().is_none());
}

#[test]
fn text_that_teaches_nothing_is_named() {
    let empty = Place::new("\n\n");
    let error = empty.train(&empty.options(), 1).unwrap_err();
    assert!(error.contains("train.txt") && error.contains("no sentence"), "{error}");
    let single = Place::new("w1 w2 w3\n");
    let error = single.train(&single.options(), 1).unwrap_err();
    assert!(error.contains("words") && error.contains("next_sentence = false"), "{error}");
    let alone = MaskedOptions { next_sentence: false, ..single.options() };
    assert_eq!(single.train(&alone, 1).unwrap().len(), 1);
    let missing = MaskedOptions { text: vec![single.path("none.txt")], ..single.options() };
    assert!(single.train(&missing, 1).unwrap_err().contains("none.txt"));
}
