//! Text into token ids, BERT's way: clean, lower-case, split at spaces and punctuation, then WordPiece.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{TokenizerBuilder, TokenizerImpl};

use super::error::DataError;

/// The tokens that every vocabulary must have.
const REQUIRED: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
const MASK: &str = "[MASK]";
/// Words with more characters than this become `[UNK]`, as in Hugging Face's tokenizer.
pub(super) const LONGEST_WORD: usize = 100;
/// Larger vocabularies are refused before anything is built from them.
pub(super) const LARGEST_VOCABULARY: usize = 1 << 22;

type Pipeline =
    TokenizerImpl<WordPiece, BertNormalizer, BertPreTokenizer, TemplateProcessing, WordPieceDecoder>;

/// How text is prepared before it is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalization {
    /// Lower-case everything (an "uncased" model).
    pub lowercase: bool,
    /// Drop accents; `None` = as `lowercase`.
    pub strip_accents: Option<bool>,
    /// Make each Chinese character a word.
    pub split_chinese: bool,
}

impl Default for Normalization {
    fn default() -> Self {
        Self { lowercase: true, strip_accents: None, split_chinese: true }
    }
}

impl Normalization {
    pub(super) fn normalizer(self) -> BertNormalizer {
        BertNormalizer::new(true, self.split_chinese, self.strip_accents, self.lowercase)
    }
}

/// The ids of one sequence as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.
    pub ids: Vec<u32>,
    /// Where the second text (type 1) begins; the length where there is none.
    pub second: u32,
    /// Whether anything was cut off.
    pub truncated: bool,
}

/// A vocabulary and the rules that lead from text to it.
pub struct Tokenizer {
    tokens: Vec<String>,
    normalization: Normalization,
    pipeline: Pipeline,
    special: [u32; 4],
    mask: Option<u32>,
}

impl Tokenizer {
    /// The tokenizer of a model directory in Hugging Face layout: its `vocab.txt`, or the vocabulary of its
    /// `tokenizer.json`. Flags come from `tokenizer_config.json`, then `tokenizer.json`, then BERT's defaults
    /// (lower-case). Truncation, padding and templates of `tokenizer.json` are not used.
    pub fn from_directory(directory: &Path) -> Result<Self, DataError> {
        let vocabulary_path = directory.join("vocab.txt");
        let json_path = directory.join("tokenizer.json");
        let config_path = directory.join("tokenizer_config.json");
        let json = if json_path.is_file() { Some(read_json(&json_path)?) } else { None };
        let config = if config_path.is_file() { Some(read_json(&config_path)?) } else { None };

        let normalizer = json.as_ref().map_or(&Value::Null, |json| &json["normalizer"]);
        let config = config.as_ref().unwrap_or(&Value::Null);
        let flag =
            |key: &str, json_key: &str| config[key].as_bool().or_else(|| normalizer[json_key].as_bool());
        let default = Normalization::default();
        let normalization = Normalization {
            lowercase: flag("do_lower_case", "lowercase").unwrap_or(default.lowercase),
            strip_accents: flag("strip_accents", "strip_accents"),
            split_chinese: flag("tokenize_chinese_chars", "handle_chinese_chars")
                .unwrap_or(default.split_chinese),
        };
        if vocabulary_path.is_file() {
            let tokens = read_vocabulary(&vocabulary_path)?;
            Self::build(tokens, normalization, &vocabulary_path)
        } else if let Some(json) = &json {
            Self::build(vocabulary_of(json, &json_path)?, normalization, &json_path)
        } else {
            let reason = "no vocab.txt and no tokenizer.json in it".to_string();
            Err(DataError::Vocabulary { path: directory.to_path_buf(), reason })
        }
    }

    /// A tokenizer whose vocabulary is the special tokens, then `words` in order.
    pub fn from_words<'a>(
        words: impl IntoIterator<Item = &'a str>,
        normalization: Normalization,
    ) -> Result<Self, DataError> {
        let special = REQUIRED.into_iter().chain([MASK]);
        let tokens = special.chain(words).map(str::to_string).collect();
        Self::build(tokens, normalization, Path::new("(word list)"))
    }

    /// The number of tokens, and so the rows of the word embedding.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The token with this id.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The id of `[PAD]`.
    pub fn pad(&self) -> u32 {
        self.special[0]
    }

    /// The id of `[UNK]`.
    pub fn unknown(&self) -> u32 {
        self.special[1]
    }

    /// The id of `[CLS]`.
    pub fn cls(&self) -> u32 {
        self.special[2]
    }

    /// The id of `[SEP]`.
    pub fn sep(&self) -> u32 {
        self.special[3]
    }

    /// The id of `[MASK]`, if the vocabulary has it.
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// How text is prepared.
    pub fn normalization(&self) -> Normalization {
        self.normalization
    }

    /// 16 hexadecimal digits that change with the vocabulary and with every flag.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let Normalization { lowercase, strip_accents, split_chinese } = self.normalization;
        hasher.update([u8::from(lowercase), strip_accents.map_or(2, u8::from), u8::from(split_chinese)]);
        for token in &self.tokens {
            hasher.update((token.len() as u64).to_le_bytes());
            hasher.update(token);
        }
        hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The ids of a text alone, without `[CLS]` and `[SEP]`. A special token's name in the text is read as text.
    pub fn tokens(&self, text: &str) -> Vec<u32> {
        let encoding = self.pipeline.encode_fast(text, false);
        encoding.expect("a vocabulary with [UNK] encodes any text").get_ids().to_vec()
    }

    /// The ids of a text, and the bytes of it that each stands for, from and to; of a text that has nothing but controls
    /// one `[UNK]` for all.
    pub fn tokens_and_places(&self, text: &str) -> (Vec<u32>, Vec<[u32; 2]>) {
        let encoding = self.pipeline.encode(text, false).expect("a vocabulary with [UNK] encodes any text");
        if encoding.get_ids().is_empty() {
            return (vec![self.unknown()], vec![[0, text.len() as u32]]);
        }
        let places = encoding.get_offsets().iter().map(|&(start, end)| [start as u32, end as u32]);
        (encoding.get_ids().to_vec(), places.collect())
    }

    /// The ids of words, each cut by itself, and which of them is each word's first: a word of nothing but controls is
    /// `[UNK]`.
    pub fn words(&self, words: &[String]) -> (Vec<u32>, Vec<u32>) {
        let (mut ids, mut firsts) = (Vec::new(), Vec::with_capacity(words.len()));
        for word in words {
            firsts.push(ids.len() as u32);
            let tokens = self.tokens(word);
            match tokens.is_empty() {
                true => ids.push(self.unknown()),
                false => ids.extend(tokens),
            }
        }
        (ids, firsts)
    }

    /// One text or a pair as the model reads it, at most `max_length` ids.
    ///
    /// # Panics
    /// If `max_length` is below 4: too short for the special tokens and a word.
    pub fn encode(&self, text_a: &str, text_b: Option<&str>, max_length: usize) -> Sequence {
        let text_b = text_b.map(|text| self.tokens(text));
        self.pack(&self.tokens(text_a), text_b.as_deref(), max_length)
    }

    /// [`Tokenizer::encode`] for texts whose ids are known already. Too long a pair loses tokens from the end of the
    /// longer text, one at a time, the second's where both are of one length.
    ///
    /// # Panics
    /// If `max_length` is below 4.
    pub fn pack(&self, a: &[u32], b: Option<&[u32]>, max_length: usize) -> Sequence {
        assert!(max_length >= 4, "{max_length} tokens do not hold [CLS], two [SEP] and a word");
        let (kept_a, kept_b) = match b {
            None => (a.len().min(max_length - 2), 0),
            Some(b) => longest_first(a.len(), b.len(), max_length - 3),
        };
        let mut ids = Vec::with_capacity(kept_a + kept_b + 3);
        ids.push(self.cls());
        ids.extend_from_slice(&a[..kept_a]);
        ids.push(self.sep());
        let second = ids.len() as u32;
        if let Some(b) = b {
            ids.extend_from_slice(&b[..kept_b]);
            ids.push(self.sep());
        }
        Sequence { ids, second, truncated: kept_a < a.len() || kept_b < b.map_or(0, <[u32]>::len) }
    }

    /// Writes `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`, which `transformers` and
    /// [`Tokenizer::from_directory`] load.
    pub fn save(&self, directory: &Path) -> Result<(), DataError> {
        let write = |name: &str, contents: String| {
            let path = directory.join(name);
            fs::write(&path, contents).map_err(DataError::write(&path))
        };
        let mut lines = self.tokens.join("\n");
        lines.push('\n');
        write("vocab.txt", lines)?;
        write("tokenizer.json", format!("{:#}\n", self.to_json()))?;
        write("tokenizer_config.json", format!("{:#}\n", self.config_json()))
    }

    /// A tokenizer of these tokens in the order of their ids; `path` is where they come from, for errors.
    pub(super) fn build(
        tokens: Vec<String>,
        normalization: Normalization,
        path: &Path,
    ) -> Result<Self, DataError> {
        let wrong = |reason: String| DataError::Vocabulary { path: path.to_path_buf(), reason };
        if tokens.len() > LARGEST_VOCABULARY {
            return Err(wrong(format!("{} tokens, more than {LARGEST_VOCABULARY}", tokens.len())));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if token.contains('\n') {
                return Err(wrong(format!("token {token:?} holds a line end, which vocab.txt cannot")));
            }
            if let Some(before) = ids.insert(token.as_str(), id as u32) {
                return Err(wrong(format!("token {token:?} stands twice, as ids {before} and {id}")));
            }
        }
        let mut special = [0; 4];
        for (slot, name) in special.iter_mut().zip(REQUIRED) {
            let missing = || wrong(format!("the vocabulary has no {name} token, which BERT needs"));
            *slot = *ids.get(name).ok_or_else(missing)?;
        }
        let mask = ids.get(MASK).copied();
        let internal = |error: tokenizers::Error| wrong(error.to_string());
        // The crate's map type is not nameable from here: an empty one is read, then filled.
        let mut vocabulary = WordPiece::read_bytes(&[]).map_err(internal)?;
        vocabulary.extend(tokens.iter().cloned().zip(0..));
        let model = WordPiece::builder().vocab(vocabulary).max_input_chars_per_word(LONGEST_WORD);
        let pipeline = TokenizerBuilder::new()
            .with_model(model.build().map_err(internal)?)
            .with_normalizer(Some(normalization.normalizer()))
            .with_pre_tokenizer(Some(BertPreTokenizer))
            .with_post_processor(None)
            .with_decoder(None)
            .build()
            .map_err(internal)?;
        Ok(Self { tokens, normalization, pipeline, special, mask })
    }

    /// Hugging Face's `tokenizer.json`.
    fn to_json(&self) -> Value {
        let Normalization { lowercase, strip_accents, split_chinese } = self.normalization;
        let special: Vec<(&str, u32)> =
            REQUIRED.into_iter().zip(self.special).chain(self.mask.map(|id| (MASK, id))).collect();
        let added = special.iter().map(|(token, id)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        });
        let piece = |token: &str, kind: u32| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
        let template = |token: &str, id: u32| json!({"id": token, "ids": [id], "tokens": [token]});
        let vocabulary: serde_json::Map<String, Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": split_chinese,
                           "strip_accents": strip_accents, "lowercase": lowercase},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [piece("[CLS]", 0), text("A", 0), piece("[SEP]", 0)],
                "pair": [piece("[CLS]", 0), text("A", 0), piece("[SEP]", 0), text("B", 1), piece("[SEP]", 1)],
                "special_tokens": {"[CLS]": template("[CLS]", self.cls()), "[SEP]": template("[SEP]", self.sep())},
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": LONGEST_WORD, "vocab": vocabulary},
        })
    }

    /// Hugging Face's `tokenizer_config.json`.
    fn config_json(&self) -> Value {
        let Normalization { lowercase, strip_accents, split_chinese } = self.normalization;
        json!({
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lowercase,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": split_chinese,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": self.mask.map(|_| MASK),
        })
    }
}

/// How many tokens of two texts stay when `budget` is dealt out by dropping from the longer, ties from the second.
fn longest_first(a: usize, b: usize, budget: usize) -> (usize, usize) {
    if a + b <= budget {
        return (a, b);
    }
    // Once level, both lose in turn, the second first: the first keeps the odd token.
    let (half_up, half_down) = (budget.div_ceil(2), budget / 2);
    if b <= half_down {
        (budget - b, b)
    } else if a <= half_up {
        (a, budget - a)
    } else {
        (half_up, half_down)
    }
}

/// One token a line; the id is the line's number from 0.
fn read_vocabulary(path: &Path) -> Result<Vec<String>, DataError> {
    let bytes = fs::read(path).map_err(DataError::read(path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        DataError::NotUtf8 {
            path: path.to_path_buf(),
            line: 1 + good.iter().filter(|&&b| b == b'\n').count() as u64,
        }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).to_string()).collect())
}

fn read_json(path: &Path) -> Result<Value, DataError> {
    let bytes = fs::read(path).map_err(DataError::read(path))?;
    serde_json::from_slice(&bytes).map_err(|error| DataError::Json {
        path: path.to_path_buf(),
        line: error.line() as u64,
        reason: error.to_string(),
    })
}

/// The vocabulary inside a `tokenizer.json`, which is checked here instead of being trusted to the crate.
fn vocabulary_of(json: &Value, path: &Path) -> Result<Vec<String>, DataError> {
    let wrong = |reason: String| DataError::Vocabulary { path: path.to_path_buf(), reason };
    let model = &json["model"];
    // Files written by early versions name no type; the vocabulary's shape tells them apart.
    if let Some(kind) = model["type"].as_str().filter(|&kind| kind != "WordPiece") {
        return Err(wrong(format!("its model is {kind}, BERT's is WordPiece")));
    }
    if let Some(prefix) = model["continuing_subword_prefix"].as_str().filter(|&prefix| prefix != "##") {
        return Err(wrong(format!("its continuing_subword_prefix is {prefix:?}, BERT's is \"##\"")));
    }
    let vocabulary = model["vocab"].as_object();
    let vocabulary =
        vocabulary.ok_or_else(|| wrong("model.vocab is not a map from tokens to ids".to_string()))?;
    let mut tokens = vec![None; vocabulary.len()];
    for (token, id) in vocabulary {
        let slot = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        let out_of_range =
            || wrong(format!("token {token:?} has id {id}; ids must be 0 to {}", vocabulary.len() - 1));
        if let Some(other) = slot.ok_or_else(out_of_range)?.replace(token.clone()) {
            return Err(wrong(format!("tokens {other:?} and {token:?} both have id {id}")));
        }
    }
    // As many ids as slots, none out of range, none twice: every slot is filled.
    Ok(tokens.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[PAD] [UNK] [CLS] [SEP] [MASK]` are 0 to 4.
    fn small() -> Tokenizer {
        let words = ["un", "##want", "##ed", "runn", "##ing", ",", "i", "\u{4e2d}", "e", "[", "sep", "]"];
        Tokenizer::from_words(words, Normalization::default()).unwrap()
    }

    #[test]
    fn words_are_cut_longest_match_first() {
        let small = small();
        assert_eq!(small.tokens("UNwanted,running"), [5, 6, 7, 10, 8, 9]);
        assert_eq!(small.tokens("unwantedX running"), [1, 8, 9], "a word with any unknown piece is unknown");
        assert_eq!(small.tokens(&"un".repeat(51)), [1], "more than 100 characters");
        assert_eq!(small.tokens(""), [0_u32; 0]);
        assert_eq!(small.tokens(" \t\u{a0}\r\u{85} "), [0_u32; 0]);
    }

    #[test]
    fn text_is_cleaned_as_bert_does() {
        let small = small();
        assert_eq!(
            small.tokens("\u{c9} e\u{301} \u{2028}\u{200d}\0\u{fffd}I"),
            [13, 13, 11],
            "accents, controls"
        );
        assert_eq!(small.tokens("i\u{4e2d}i"), [11, 12, 11], "a Chinese character is a word");
        assert_eq!(small.tokens("[SEP]"), [14, 15, 16], "text cannot smuggle in special tokens");
        let cased = Normalization { lowercase: false, ..Normalization::default() };
        let cased = Tokenizer::from_words(["e", "E", "\u{c9}"], cased).unwrap();
        assert_eq!(cased.tokens("\u{c9} e E"), [7, 5, 6]);
    }

    #[test]
    fn sequences_are_packed_for_bert() {
        let small = small();
        let single = small.encode("i i", None, 16);
        assert_eq!(single, Sequence { ids: vec![2, 11, 11, 3], second: 4, truncated: false });
        let pair = small.encode("i", Some(", i"), 16);
        assert_eq!(pair, Sequence { ids: vec![2, 11, 3, 10, 11, 3], second: 3, truncated: false });
        let cut = small.encode("i , e i", None, 4);
        assert_eq!(cut, Sequence { ids: vec![2, 11, 10, 3], second: 4, truncated: true });
        let exact = small.encode("i ,", None, 4);
        assert!(!exact.truncated);
        let cut = small.encode("i i i i i", Some(", ,"), 8);
        assert_eq!(cut, Sequence { ids: vec![2, 11, 11, 11, 3, 10, 10, 3], second: 5, truncated: true });
    }

    #[test]
    fn pairs_lose_from_the_longer_ties_from_the_second() {
        for a in 0..12 {
            for b in 0..12 {
                for budget in 0..24 {
                    let (mut left, mut right) = (a, b);
                    while left + right > budget {
                        if left > right { left -= 1 } else { right -= 1 }
                    }
                    assert_eq!(longest_first(a, b, budget), (left, right), "{a} and {b} in {budget}");
                }
            }
        }
    }

    #[test]
    fn the_hash_follows_vocabulary_and_flags() {
        let hash =
            |words: &[&str], flags| Tokenizer::from_words(words.iter().copied(), flags).unwrap().hash();
        let plain = Normalization::default();
        let hashes = [
            hash(&["a", "b"], plain),
            hash(&["b", "a"], plain),
            hash(&["ab"], plain),
            hash(&["a", "b"], Normalization { lowercase: false, ..plain }),
            hash(&["a", "b"], Normalization { strip_accents: Some(false), ..plain }),
            hash(&["a", "b"], Normalization { split_chinese: false, ..plain }),
        ];
        assert_eq!(hashes[0].len(), 16);
        assert_eq!(hashes[0], hash(&["a", "b"], plain));
        for (index, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..index].contains(hash));
        }
    }

    #[test]
    fn what_is_saved_loads_the_same() {
        for lowercase in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let flags = Normalization { lowercase, strip_accents: Some(false), split_chinese: true };
            let saved = Tokenizer::from_words(["x", "##y", "\u{e9}", "\""], flags).unwrap();
            saved.save(directory.path()).unwrap();
            let loaded = Tokenizer::from_directory(directory.path()).unwrap();
            assert_eq!((loaded.hash(), loaded.normalization()), (saved.hash(), flags));
            // The crate's own reading of the file gives the same ids.
            let theirs = tokenizers::Tokenizer::from_file(directory.path().join("tokenizer.json")).unwrap();
            let text = ("X xyy \u{e9} \u{c9} \"", "xy");
            let ours = loaded.encode(text.0, Some(text.1), 99);
            let theirs = theirs.encode(text, true).unwrap();
            assert_eq!(theirs.get_ids(), ours.ids);
            let second = theirs.get_type_ids().iter().position(|&kind| kind == 1);
            assert_eq!(second, Some(ours.second as usize));
            // Without vocab.txt and the flags, tokenizer.json alone says everything.
            fs::remove_file(directory.path().join("vocab.txt")).unwrap();
            fs::remove_file(directory.path().join("tokenizer_config.json")).unwrap();
            assert_eq!(Tokenizer::from_directory(directory.path()).unwrap().hash(), saved.hash());
        }
    }

    fn error_of(files: &[(&str, &str)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            fs::write(directory.path().join(name), contents).unwrap();
        }
        Tokenizer::from_directory(directory.path()).err().expect("it loaded").to_string()
    }

    #[test]
    fn bad_vocabularies_are_errors_that_name_the_file() {
        let special = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n";
        for (name, contents, said) in [
            ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\na\n", "no [SEP] token"),
            ("vocab.txt", "", "no [PAD] token"),
            ("vocab.txt", &format!("{special}a\na\n"), "\"a\" stands twice, as ids 4 and 5"),
            ("tokenizer.json", "{", "not a line of JSON"),
            ("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {}}}"#, "its model is BPE"),
            ("tokenizer.json", r#"{"model": {"vocab": []}}"#, "not a map"),
            ("tokenizer.json", r#"{"model": {"vocab": {"a": 0, "b": 0}}}"#, "both have id 0"),
            ("tokenizer.json", r#"{"model": {"vocab": {"a": 4000000000}}}"#, "ids must be 0 to 0"),
            ("tokenizer.json", r#"{"model": {"vocab": {"a": -1}}}"#, "has id -1"),
            ("tokenizer.json", r#"{"model": {"vocab": {"a": 0}}}"#, "no [PAD] token"),
        ] {
            let error = error_of(&[(name, contents)]);
            assert!(error.contains(said) && error.contains(name), "{said}: {error}");
        }
        assert!(error_of(&[]).contains("no vocab.txt and no tokenizer.json"));
    }

    #[test]
    fn a_vocabulary_may_have_line_ends_of_windows_and_none_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("vocab.txt"), "[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nA").unwrap();
        let flags = r#"{"do_lower_case": false}"#;
        fs::write(directory.path().join("tokenizer_config.json"), flags).unwrap();
        let tokenizer = Tokenizer::from_directory(directory.path()).unwrap();
        assert_eq!(tokenizer.encode("A a", None, 9).ids, [2, 4, 1, 3]);
        assert_eq!((tokenizer.vocab_size(), tokenizer.mask(), tokenizer.token(4)), (5, None, Some("A")));
    }

    /// Ids from the reference implementation's own tests (bert-base-uncased); the vocabulary is found through the
    /// environment, for it is not part of this project.
    #[test]
    fn golden_ids_of_bert_base_uncased() {
        let Ok(directory) = std::env::var("MTDNN_MODEL") else {
            println!("skipped: MTDNN_MODEL names no directory with BERT's uncased vocabulary");
            return;
        };
        let bert = Tokenizer::from_directory(Path::new(&directory)).unwrap();
        assert_eq!(bert.vocab_size(), 30522);
        let golden: [(&str, &[u32]); 4] = [
            (
                "Our friends won't buy this analysis, let alone the next one we propose.",
                &[
                    101, 2256, 2814, 2180, 1005, 1056, 4965, 2023, 4106, 1010, 2292, 2894, 1996, 2279, 2028,
                    2057, 16599, 1012, 102,
                ],
            ),
            (
                "One more pseudo generalization and I'm giving up.",
                &[101, 2028, 2062, 18404, 2236, 3989, 1998, 1045, 1005, 1049, 3228, 2039, 1012, 102],
            ),
            (
                "The more we study verbs, the crazier they get.",
                &[101, 1996, 2062, 2057, 2817, 16025, 1010, 1996, 13675, 16103, 2121, 2027, 2131, 1012, 102],
            ),
            (
                "Day by day the facts are getting murkier.",
                &[101, 2154, 2011, 2154, 1996, 8866, 2024, 2893, 14163, 8024, 3771, 1012, 102],
            ),
        ];
        for (text, ids) in golden {
            assert_eq!(bert.encode(text, None, 128).ids, ids, "{text}");
        }
        let pair = bert.encode("A plane is taking off.", Some("An air plane is taking off."), 128);
        let ids =
            [101, 1037, 4946, 2003, 2635, 2125, 1012, 102, 2019, 2250, 4946, 2003, 2635, 2125, 1012, 102];
        assert_eq!((pair.ids.as_slice(), pair.second), (ids.as_slice(), 8));
    }
}
