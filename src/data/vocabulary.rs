//! A WordPiece vocabulary from raw text.
//!
//! The tokenizers crate's trainer: characters to begin with, then again and again the pair of neighbouring pieces that
//! occurs most often becomes a piece of its own. The same words give the same vocabulary, whatever the order of the
//! files and the number of threads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::error::DataError;
use super::text::{self, Counts, Layout, Piece};
use super::tokenizer::{LARGEST_VOCABULARY, LONGEST_WORD, Normalization, Tokenizer};

/// `[unused…]` tokens before `[UNK]` in BERT's vocabularies.
const UNUSED_OF_BERT: usize = 99;
/// Bytes of different words, as the text has them, that are kept before they are cut.
const UNCUT: usize = 1 << 26;
/// The trainer counts pairs in 32 bits with a sign, and may count one again after joining it.
const MOST_OF_A_PAIR: u64 = 1 << 30;

/// What a vocabulary is made from and how; a run file's `[vocab]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VocabularyConfig {
    /// Text files, and folders of them.
    pub text: Vec<PathBuf>,
    /// The directory that gets `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    /// Tokens at most, special ones included.
    pub size: usize,
    /// Keep capital letters.
    pub cased: bool,
    /// Drop accents; if not said, where capitals are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strip_accents: Option<bool>,
    /// Make each Chinese character a word.
    pub split_chinese: bool,
    /// Characters and pieces that occur less often are left out.
    pub min_frequency: u64,
    /// `[unused…]` tokens: the first 99 stand between `[PAD]` and `[UNK]`, further ones after `[MASK]`. So 99 put the
    /// special tokens in BERT's places, 0 and 100 to 103, and 0 put them at 0 to 4.
    pub unused: usize,
    /// Whether the text is plain paragraphs, to be cut into sentences; else it has a sentence a line.
    pub split: bool,
}

impl Default for VocabularyConfig {
    fn default() -> Self {
        Self {
            text: Vec::new(),
            output: None,
            size: 8192,
            cased: false,
            strip_accents: None,
            split_chinese: true,
            min_frequency: 2,
            unused: UNUSED_OF_BERT,
            split: false,
        }
    }
}

impl VocabularyConfig {
    /// Checks every number's range, and that there is text.
    pub fn validate(&self) -> Result<(), DataError> {
        if self.text.is_empty() {
            return Err(wrong("text", "name text files, or folders of them".into()));
        }
        if self.size > LARGEST_VOCABULARY {
            return Err(wrong("size", format!("{} tokens; {LARGEST_VOCABULARY} are the most", self.size)));
        }
        if self.min_frequency == 0 {
            return Err(wrong("min_frequency", "give 1 to keep all that occurs".into()));
        }
        if self.special() >= self.size {
            let problem = format!(
                "{}: the {} special tokens leave no room for words; give more, or fewer unused tokens",
                self.size,
                self.special()
            );
            return Err(wrong("size", problem));
        }
        Ok(())
    }

    /// How the vocabulary's tokenizer prepares text.
    pub fn normalization(&self) -> Normalization {
        Normalization {
            lowercase: !self.cased,
            strip_accents: self.strip_accents,
            split_chinese: self.split_chinese,
        }
    }

    fn special(&self) -> usize {
        5usize.saturating_add(self.unused)
    }

    fn special_tokens(&self) -> impl Iterator<Item = String> {
        let unused = |range: std::ops::Range<usize>| range.map(|number| format!("[unused{number}]"));
        let before = self.unused.min(UNUSED_OF_BERT);
        let required = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_string);
        std::iter::once("[PAD]".to_string())
            .chain(unused(0..before))
            .chain(required)
            .chain(unused(before..self.unused))
    }
}

fn wrong(field: &'static str, problem: String) -> DataError {
    DataError::Setting { field, problem }
}

/// The words of a text and how often each occurs, cut as the tokenizer will cut them.
pub struct Words {
    normalizer: BertNormalizer,
    counts: BTreeMap<String, u64>,
    /// Stretches between spaces, not cut yet: most come again and again, and cutting is slow.
    uncut: HashMap<String, u64>,
    uncut_bytes: usize,
}

impl Words {
    /// No words yet.
    pub fn new(normalization: Normalization) -> Self {
        let normalizer = normalization.normalizer();
        Self { normalizer, counts: BTreeMap::new(), uncut: HashMap::new(), uncut_bytes: 0 }
    }

    /// Adds the words of a file.
    pub fn add_file(&mut self, path: &Path, layout: Layout) -> Result<Counts, DataError> {
        let counts = text::read(path, layout, |piece| {
            if let Piece::Sentence(sentence) = piece {
                self.add(sentence);
            }
        })?;
        self.cut();
        Ok(counts)
    }

    fn add(&mut self, sentence: &str) {
        // Normalisation looks at one character at a time and keeps spaces, so no word crosses one.
        for stretch in sentence.split(' ') {
            if let Some(count) = self.uncut.get_mut(stretch) {
                *count += 1;
            } else {
                self.uncut.insert(stretch.to_string(), 1);
                self.uncut_bytes += stretch.len();
            }
        }
        if self.uncut_bytes > UNCUT {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.uncut_bytes = 0;
        for (stretch, count) in self.uncut.drain() {
            let mut normalized = NormalizedString::from(stretch);
            self.normalizer.normalize(&mut normalized).expect("any text can be normalised");
            let mut words = PreTokenizedString::from(normalized);
            BertPreTokenizer.pre_tokenize(&mut words).expect("any text can be cut into words");
            for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
                if let Some(sum) = self.counts.get_mut(word) {
                    *sum += count;
                } else {
                    self.counts.insert(word.to_string(), count);
                }
            }
        }
    }

    /// How many different words there are.
    pub fn different(&self) -> usize {
        self.counts.len()
    }
}

/// What a vocabulary makes of the text that it was trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Words, each as often as it occurs.
    pub words: u64,
    /// Those that are one token.
    pub whole: u64,
    /// Those that are `[UNK]`: with a character that is left out, or longer than 100 characters.
    pub unknown: u64,
    /// Tokens of all words.
    pub tokens: u64,
    /// Different characters that are left out, being too rare.
    pub rare_characters: usize,
}

/// Trains a vocabulary on `words`, which were counted with this configuration's normalisation.
///
/// # Errors
/// There are no words, all have characters that are too rare, or the size does not hold their characters.
pub fn train(config: &VocabularyConfig, words: &Words) -> Result<(Tokenizer, Coverage), DataError> {
    config.validate()?;
    let counts = &words.counts;
    if counts.is_empty() {
        return Err(wrong("text", "there are no words in it; name files with text".into()));
    }
    let mut characters: BTreeMap<char, u64> = BTreeMap::new();
    for (word, count) in counts {
        word.chars().for_each(|char| *characters.entry(char).or_default() += count);
    }
    let different = characters.len();
    characters.retain(|_, count| *count >= config.min_frequency);
    let rare_characters = different - characters.len();
    // The trainer would join what stands on both sides of an unknown character; no word with one is a token.
    let known = |word: &str| {
        word.chars().all(|char| characters.contains_key(&char)) && word.chars().nth(LONGEST_WORD).is_none()
    };
    let known: Vec<(&str, u64)> =
        counts.iter().map(|(word, count)| (word.as_str(), *count)).filter(|(word, _)| known(word)).collect();
    if known.is_empty() {
        let problem = format!(
            "{}: every word has a character that occurs less often; give a smaller number, or more text",
            config.min_frequency
        );
        return Err(wrong("min_frequency", problem));
    }
    let following: BTreeSet<char> = known.iter().flat_map(|(word, _)| word.chars().skip(1)).collect();
    check_pairs(&known)?;

    // Without help the trainer numbers "##a" and its like in the order of a hash map, which is another at every run,
    // and prefers the smaller number where two pairs occur equally often. Named beforehand, they have their places.
    let mut tokens: Vec<String> = config.special_tokens().collect();
    tokens.extend(characters.keys().map(char::to_string));
    tokens.extend(following.iter().map(|char| format!("##{char}")));
    if tokens.len() > config.size {
        let problem = format!(
            "{} tokens are too few: {} special ones and {} for the text's {} characters (at a word's start, and within \
             one) make {}; give that or more, raise min_frequency, or look for what is not text",
            config.size,
            config.special(),
            tokens.len() - config.special(),
            characters.len(),
            tokens.len()
        );
        return Err(wrong("size", problem));
    }
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(config.size)
        .min_frequency(config.min_frequency)
        .special_tokens(tokens.into_iter().map(|token| AddedToken::from(token, true)).collect())
        .continuing_subword_prefix("##".into())
        .build();
    let mut model = BPE::default();
    // What the crate's trainer of WordPiece does, but for counting the words itself.
    let counted = known.iter().map(|&(word, count)| (word.into(), count)).collect();
    trainer.do_train(&counted, &mut model).map_err(|error| wrong("text", error.to_string()))?;
    let mut tokens: Vec<(u32, String)> =
        model.get_vocab().into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    let tokens = tokens.into_iter().map(|(_, token)| token).collect();
    let tokenizer = Tokenizer::build(tokens, config.normalization(), Path::new("(trained)"))?;
    let coverage = Coverage { rare_characters, ..coverage(counts, &tokenizer) };
    Ok((tokenizer, coverage))
}

/// Refuses more text than the trainer can count.
fn check_pairs(words: &[(&str, u64)]) -> Result<(), DataError> {
    let mut pairs: HashMap<(char, char), u64> = HashMap::new();
    for (word, count) in words {
        for pair in word.chars().zip(word.chars().skip(1)) {
            *pairs.entry(pair).or_default() += count;
        }
    }
    match pairs.into_iter().max_by_key(|&(pair, count)| (count, pair)) {
        Some(((first, second), count)) if count > MOST_OF_A_PAIR => {
            let problem = format!(
                "\"{first}{second}\" occurs {count} times, and the trainer counts to {MOST_OF_A_PAIR}; give it a part \
                 of the text, which makes as good a vocabulary"
            );
            Err(wrong("text", problem))
        }
        _ => Ok(()),
    }
}

fn coverage(counts: &BTreeMap<String, u64>, tokenizer: &Tokenizer) -> Coverage {
    let mut coverage = Coverage::default();
    for (word, count) in counts {
        let tokens = tokenizer.tokens(word);
        coverage.words += count;
        coverage.tokens += count * tokens.len() as u64;
        if tokens.contains(&tokenizer.unknown()) {
            coverage.unknown += count;
        } else if tokens.len() == 1 {
            coverage.whole += count;
        }
    }
    coverage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(sentences: &[&str], config: &VocabularyConfig) -> Words {
        let mut words = Words::new(config.normalization());
        sentences.iter().for_each(|sentence| words.add(sentence));
        words.cut();
        words
    }

    fn small() -> VocabularyConfig {
        VocabularyConfig { text: vec!["a.txt".into()], size: 40, unused: 0, ..VocabularyConfig::default() }
    }

    fn tokens(sentences: &[&str], config: &VocabularyConfig) -> Vec<String> {
        let (tokenizer, _) = train(config, &words(sentences, config)).unwrap();
        (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token(id).unwrap().to_string()).collect()
    }

    /// By hand: ab is the most frequent pair (5), then ab + ##c (4); "##c" + "##d" would be 1.
    #[test]
    fn the_most_frequent_pair_is_joined_first() {
        let found = tokens(&["abc Abc abc", "abcd ab", "ba"], &small());
        let expected =
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a", "##b", "##c", "ab", "abc"];
        assert_eq!(found, expected);
    }

    #[test]
    fn special_tokens_stand_in_berts_places() {
        let config = VocabularyConfig { size: 200, unused: 101, ..small() };
        let found = tokens(&["ab ab"], &config);
        for (id, token) in [
            (0, "[PAD]"),
            (1, "[unused0]"),
            (99, "[unused98]"),
            (100, "[UNK]"),
            (103, "[MASK]"),
            (104, "[unused99]"),
            (105, "[unused100]"),
            (106, "a"),
        ] {
            assert_eq!(found[id], token);
        }
        assert_eq!(VocabularyConfig::default().special_tokens().count(), 104);
    }

    /// Cutting at spaces first must not change a word: accents, final sigma, marks alone, wide blanks, ideographs.
    #[test]
    fn words_are_cut_as_the_tokenizer_cuts_them() {
        let text = "\u{39f}\u{394}\u{39f}\u{3a3} \u{301}e \u{301} e\u{301}\u{327} x\u{a0}y\u{3000}z\tw \
                    a\u{4e2d}\u{6587}b \u{200b} don't-stop\u{2019}s \u{1e9e} \u{130}I \u{ac00} [SEP] \u{fffd}\0q";
        for (cased, strip_accents, split_chinese) in
            [(false, None, true), (true, None, true), (false, Some(false), false), (true, Some(true), true)]
        {
            let config = VocabularyConfig { cased, strip_accents, split_chinese, ..small() };
            let counted = words(&[text, text], &config).counts;
            let mut whole = NormalizedString::from(text);
            config.normalization().normalizer().normalize(&mut whole).unwrap();
            let mut pieces = PreTokenizedString::from(whole);
            BertPreTokenizer.pre_tokenize(&mut pieces).unwrap();
            let mut expected: BTreeMap<String, u64> = BTreeMap::new();
            for (word, _, _) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
                *expected.entry(word.to_string()).or_default() += 2;
            }
            assert_eq!(counted, expected);
        }
    }

    /// Few letters and few different counts: nearly every choice is a tie.
    #[test]
    fn ties_are_broken_the_same_way_at_every_run_thread_count_and_order() {
        let draw = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *state >> 33
        };
        let mut state = 7;
        let mut sentences: Vec<String> = (0..2000)
            .map(|_| {
                (0..2 + draw(&mut state) % 12)
                    .map(|_| char::from(b'a' + (draw(&mut state) % 4) as u8))
                    .collect()
            })
            .collect();
        let config = VocabularyConfig { size: 600, ..small() };
        let mut seen = BTreeSet::new();
        for threads in [1, 2, 3, 4, 1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let given: Vec<&str> = sentences.iter().map(String::as_str).collect();
            seen.insert(pool.install(|| tokens(&given, &config)));
            sentences.reverse();
        }
        assert_eq!(seen.len(), 1);
        assert_eq!(seen.first().unwrap().len(), 600);
    }

    #[test]
    fn rare_characters_are_left_out_and_their_words_teach_nothing() {
        let config = small();
        let text = words(&["aa aa \u{e6}bbbb", &"c".repeat(101)], &config);
        let (tokenizer, coverage) = train(&config, &text).unwrap();
        assert_eq!(coverage, Coverage { words: 4, whole: 2, unknown: 2, tokens: 4, rare_characters: 1 });
        let all: Vec<_> = (5..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token(id)).collect();
        assert_eq!(all, ["a", "b", "c", "##a", "aa"]);
        let config = VocabularyConfig { min_frequency: 1, ..small() };
        let (_, coverage) = train(&config, &text).unwrap();
        assert_eq!((coverage.rare_characters, coverage.unknown, coverage.whole), (0, 1, 3));
    }

    #[test]
    fn what_cannot_be_trained_is_an_error_with_a_remedy() {
        let error = |config: &VocabularyConfig, sentences: &[&str]| {
            train(config, &words(sentences, config)).err().expect("it trained").to_string()
        };
        let tight = VocabularyConfig { size: 9, ..small() };
        let said = error(&tight, &["abc abc ccc"]);
        assert!(said.contains("vocab.size: 9 tokens are too few") && said.contains("make 10"), "{said}");
        let said = error(&small(), &["", "\u{200b} "]);
        assert!(said.contains("vocab.text: there are no words in it"), "{said}");
        let special = VocabularyConfig { size: 104, unused: 99, ..small() };
        assert!(error(&special, &["a"]).contains("vocab.size: 104: the 104 special tokens"));
        assert!(error(&VocabularyConfig { size: 1 << 30, ..small() }, &["a"]).contains("are the most"));
        assert!(error(&VocabularyConfig { unused: usize::MAX, ..small() }, &["a"]).contains("no room"));
        assert!(
            error(&VocabularyConfig { min_frequency: 0, ..small() }, &["a"])
                .contains("min_frequency: give 1")
        );
        assert!(error(&VocabularyConfig { text: vec![], ..small() }, &["a"]).contains("vocab.text: name"));
        assert!(check_pairs(&[("aab", MOST_OF_A_PAIR), ("b", u64::MAX)]).is_ok());
        let said = check_pairs(&[("aab", MOST_OF_A_PAIR), ("ab", 1)]).unwrap_err().to_string();
        assert!(said.contains("\"ab\" occurs 1073741825 times"), "{said}");
    }
}
