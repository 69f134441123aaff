//! The shape of a BERT encoder, as a Hugging Face `config.json` or our run file's `[model.config]` says it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::tensor::Activation;

/// A BERT encoder's sizes and rates. The default is BERT-base, uncased (Devlin et al. 2019, section 3).
///
/// Field names are those of Hugging Face. Through serde (the run file) an unknown key is an error;
/// [`BertConfig::from_file`] passes over the many keys of a foreign `config.json` that say nothing about the encoder.
/// Either way, call [`BertConfig::validate`] before the sizes are used; `from_file` has done so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BertConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads of a layer; they share `hidden_size` evenly.
    pub num_attention_heads: usize,
    /// Width of the feed-forward network's inner vector.
    pub intermediate_size: usize,
    /// The feed-forward network's activation.
    pub hidden_act: HiddenAct,
    /// Dropout after the embeddings, the attention output and the feed-forward output.
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention probabilities.
    pub attention_probs_dropout_prob: f64,
    /// Rows of the position embedding: the longest sequence.
    pub max_position_embeddings: usize,
    /// Rows of the segment embedding.
    pub type_vocab_size: usize,
    /// Standard deviation of a new weight.
    pub initializer_range: f64,
    /// Added to the variance inside layer normalisation.
    pub layer_norm_eps: f64,
}

/// The activation of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HiddenAct {
    /// `x / 2 * (1 + erf(x / sqrt(2)))`, what published BERT checkpoints use.
    #[serde(rename = "gelu")]
    Gelu,
    /// The tanh approximation (Hendrycks and Gimpel 2016); `gelu_pytorch_tanh` is another name for it.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
}

impl HiddenAct {
    /// What a linear map is recorded with.
    pub(super) fn activation(self) -> Activation {
        match self {
            HiddenAct::Gelu => Activation::Gelu,
            HiddenAct::GeluNew => Activation::GeluTanh,
            HiddenAct::Relu => Activation::Relu,
        }
    }
}

/// A configuration file that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read: {source}; a model directory in Hugging Face layout holds a config.json", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what a `config.json` is.
    #[error("{}: not a model configuration: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A field holds what cannot be used.
    #[error("{}: {error}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        error: FieldError,
    },
    /// The file could not be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A field that cannot be used. Whoever read the field knows the file and adds its name.
#[derive(Debug, Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct FieldError {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// No encoder beyond this is built: four billion parameters are 64 GB with gradients and moments.
const MOST_PARAMETERS: u64 = 4_000_000_000;
/// A `config.json` is about a kilobyte; a longer one is not read.
const MOST_BYTES: u64 = 1 << 20;

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: HiddenAct::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
        }
    }
}

impl BertConfig {
    /// Reads and validates a Hugging Face `config.json`, or Google's `bert_config.json`.
    ///
    /// The five sizes without which no two encoders are alike must be there; what else is absent takes BERT's default.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        let malformed = |problem| ConfigError::Malformed { path: path.into(), problem };
        let facts = fs::metadata(path).map_err(read)?;
        if !facts.is_file() || facts.len() > MOST_BYTES {
            return Err(malformed(format!("not a file of at most {MOST_BYTES} bytes")));
        }
        let text = fs::read_to_string(path).map_err(read)?;
        let object: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        Self::from_object(&object).map_err(|error| ConfigError::Field { path: path.into(), error })
    }

    /// Writes the `config.json` that [`BertConfig::from_file`] and `transformers` read; `architecture` is the class of
    /// `transformers` that the weights beside it are for.
    pub fn save(&self, path: &Path, architecture: &str) -> Result<(), ConfigError> {
        let mut object = json!(self);
        object["architectures"] = json!([architecture]);
        object["model_type"] = json!("bert");
        object["pad_token_id"] = json!(0);
        object["position_embedding_type"] = json!("absolute");
        fs::write(path, format!("{object:#}\n"))
            .map_err(|source| ConfigError::Write { path: path.into(), source })
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Parameters of the encoder, pooler included and task heads not. The sizes must have been validated.
    pub fn parameter_count(&self) -> u64 {
        self.checked_parameter_count().expect("validated sizes do not overflow")
    }

    /// Says whether an encoder of this shape can be built, and if not, which field is in the way.
    pub fn validate(&self) -> Result<(), FieldError> {
        // Places hold a position in 16 bits, and a dropout draw's counter holds the head in 8 and the site in 24.
        check_size("vocab_size", self.vocab_size, u32::MAX as usize)?;
        check_size("hidden_size", self.hidden_size, 1 << 20)?;
        check_size("num_hidden_layers", self.num_hidden_layers, 1 << 10)?;
        check_size("num_attention_heads", self.num_attention_heads, 1 << 8)?;
        check_size("intermediate_size", self.intermediate_size, 1 << 24)?;
        check_size("max_position_embeddings", self.max_position_embeddings, 1 << 16)?;
        check_size("type_vocab_size", self.type_vocab_size, 1 << 16)?;
        let Self { hidden_size, num_attention_heads, .. } = *self;
        if hidden_size % num_attention_heads != 0 {
            return Err(FieldError {
                field: "hidden_size",
                problem: format!(
                    "{hidden_size} is not a multiple of num_attention_heads = {num_attention_heads}"
                ),
                remedy: "the heads share the hidden size evenly: change one of the two".into(),
            });
        }
        if self.checked_parameter_count().is_none_or(|count| count > MOST_PARAMETERS) {
            return Err(FieldError {
                field: "vocab_size, hidden_size, num_hidden_layers, intermediate_size",
                problem: format!("together they ask for more than {MOST_PARAMETERS} parameters"),
                remedy: "choose a smaller encoder (BERT-large has 335 million parameters)".into(),
            });
        }
        check_rate("hidden_dropout_prob", self.hidden_dropout_prob)?;
        check_rate("attention_probs_dropout_prob", self.attention_probs_dropout_prob)?;
        check_small("initializer_range", self.initializer_range, "0.02 is usual")?;
        check_small("layer_norm_eps", self.layer_norm_eps, "1e-12 is usual")
    }

    fn from_object(object: &Map<String, Value>) -> Result<Self, FieldError> {
        const ENCODER: &str = "this program runs BERT encoders with absolute positions: choose such a model";
        must_be(object, "model_type", &json!("bert"), ENCODER)?;
        must_be(object, "position_embedding_type", &json!("absolute"), ENCODER)?;
        must_be(object, "is_decoder", &json!(false), ENCODER)?;
        let default = Self::default();
        let config = Self {
            vocab_size: required(object, "vocab_size")?,
            hidden_size: required(object, "hidden_size")?,
            num_hidden_layers: required(object, "num_hidden_layers")?,
            num_attention_heads: required(object, "num_attention_heads")?,
            intermediate_size: required(object, "intermediate_size")?,
            hidden_act: hidden_act(object)?,
            hidden_dropout_prob: optional(object, "hidden_dropout_prob", default.hidden_dropout_prob)?,
            attention_probs_dropout_prob: optional(
                object,
                "attention_probs_dropout_prob",
                default.attention_probs_dropout_prob,
            )?,
            max_position_embeddings: optional(
                object,
                "max_position_embeddings",
                default.max_position_embeddings,
            )?,
            type_vocab_size: optional(object, "type_vocab_size", default.type_vocab_size)?,
            initializer_range: optional(object, "initializer_range", default.initializer_range)?,
            layer_norm_eps: optional(object, "layer_norm_eps", default.layer_norm_eps)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// The parameter count, or `None` where it does not fit 64 bits.
    fn checked_parameter_count(&self) -> Option<u64> {
        let hidden = self.hidden_size as u64;
        let inner = self.intermediate_size as u64;
        let linear = |inputs: u64, outputs: u64| inputs.checked_mul(outputs)?.checked_add(outputs);
        let sum = |terms: &[u64]| terms.iter().try_fold(0u64, |total, &term| total.checked_add(term));

        let norm = hidden.checked_mul(2)?;
        let rows =
            sum(&[self.vocab_size as u64, self.max_position_embeddings as u64, self.type_vocab_size as u64])?;
        let embeddings = rows.checked_mul(hidden)?.checked_add(norm)?;
        let attention = linear(hidden, hidden)?.checked_mul(4)?;
        let layer = sum(&[attention, norm, linear(hidden, inner)?, linear(inner, hidden)?, norm])?;
        let layers = layer.checked_mul(self.num_hidden_layers as u64)?;
        sum(&[embeddings, layers, linear(hidden, hidden)?])
    }
}

/// Refuses a foreign model whose `field` says, if it says anything, that it computes something else.
fn must_be(
    object: &Map<String, Value>,
    field: &'static str,
    supported: &Value,
    remedy: &str,
) -> Result<(), FieldError> {
    match object.get(field) {
        Some(found) if found != supported => Err(FieldError {
            field,
            problem: format!("{found} is not supported, {supported} is"),
            remedy: remedy.into(),
        }),
        _ => Ok(()),
    }
}

fn required<T: DeserializeOwned>(object: &Map<String, Value>, field: &'static str) -> Result<T, FieldError> {
    let value = object.get(field).ok_or_else(|| FieldError {
        field,
        problem: "is missing".into(),
        remedy: "is this the config.json of a BERT model?".into(),
    })?;
    T::deserialize(value).map_err(|error| FieldError {
        field,
        problem: error.to_string(),
        remedy: "correct the value".into(),
    })
}

fn optional<T: DeserializeOwned>(
    object: &Map<String, Value>,
    field: &'static str,
    default: T,
) -> Result<T, FieldError> {
    if object.contains_key(field) { required(object, field) } else { Ok(default) }
}

fn hidden_act(object: &Map<String, Value>) -> Result<HiddenAct, FieldError> {
    optional(object, "hidden_act", HiddenAct::Gelu).map_err(|error| FieldError {
        remedy: "supported are \"gelu\", \"gelu_new\" (also called \"gelu_pytorch_tanh\") and \"relu\""
            .into(),
        ..error
    })
}

fn check_size(field: &'static str, size: usize, most: usize) -> Result<(), FieldError> {
    if (1..=most).contains(&size) {
        return Ok(());
    }
    let problem = format!("{size} is not a size this program can build");
    Err(FieldError { field, problem, remedy: format!("choose from 1 to {most}") })
}

fn check_rate(field: &'static str, rate: f64) -> Result<(), FieldError> {
    // A rate that rounds to 1 as a 65536th would drop everything: see `Dropout`.
    if (0.0..1.0 - 1.0 / 65536.0).contains(&rate) {
        return Ok(());
    }
    let problem = format!("{rate} is not a dropout probability");
    Err(FieldError { field, problem, remedy: "choose from 0 (off) to less than 1; 0.1 is usual".into() })
}

fn check_small(field: &'static str, value: f64, usual: &str) -> Result<(), FieldError> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    let problem = format!("{value} is not between 0 and 1");
    Err(FieldError { field, problem, remedy: format!("choose a small positive number; {usual}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BertConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, text).unwrap();
        BertConfig::from_file(&path)
    }

    /// The message for BERT-base with one field changed.
    fn message(field: &str, value: Value) -> String {
        let mut object = json!(BertConfig::default());
        object[field] = value;
        read(&object.to_string()).unwrap_err().to_string()
    }

    fn shape(layers: usize, hidden: usize) -> BertConfig {
        BertConfig {
            num_hidden_layers: layers,
            hidden_size: hidden,
            num_attention_heads: hidden / 64,
            intermediate_size: 4 * hidden,
            ..BertConfig::default()
        }
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        assert_eq!(BertConfig::default().parameter_count(), 109_482_240);
        assert_eq!(shape(24, 1024).parameter_count(), 335_141_888);
        assert_eq!(shape(2, 128).parameter_count(), 4_385_920);
        assert_eq!(shape(4, 256).parameter_count(), 11_170_560);
    }

    #[test]
    fn what_is_saved_is_read_back_and_names_the_architecture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let config = BertConfig { hidden_act: HiddenAct::GeluNew, layer_norm_eps: 1e-5, ..shape(3, 192) };
        config.save(&path, "BertModel").unwrap();
        assert_eq!(BertConfig::from_file(&path).unwrap(), config);
        let written: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(written["architectures"], json!(["BertModel"]));
        assert_eq!(written["model_type"], "bert");
        assert_eq!(written["hidden_act"], "gelu_new");
        assert_eq!(written["layer_norm_eps"], 1e-5);
    }

    #[test]
    fn google_file_with_pooler_fields_and_without_model_type_is_read() {
        let config = read(
            r#"{"attention_probs_dropout_prob": 0.2, "directionality": "bidi", "hidden_act": "gelu",
                "hidden_dropout_prob": 0, "hidden_size": 768, "initializer_range": 0.02,
                "intermediate_size": 3072, "max_position_embeddings": 512, "num_attention_heads": 12,
                "num_hidden_layers": 12, "pooler_fc_size": 768, "pooler_type": "first_token_transform",
                "type_vocab_size": 2, "vocab_size": 119547}"#,
        )
        .unwrap();
        let expected = BertConfig {
            vocab_size: 119_547,
            attention_probs_dropout_prob: 0.2,
            hidden_dropout_prob: 0.0,
            ..BertConfig::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn every_field_is_read_under_its_own_name() {
        let config = BertConfig {
            vocab_size: 101,
            hidden_size: 36,
            num_hidden_layers: 5,
            num_attention_heads: 6,
            intermediate_size: 77,
            hidden_act: HiddenAct::Relu,
            hidden_dropout_prob: 0.25,
            attention_probs_dropout_prob: 0.5,
            max_position_embeddings: 99,
            type_vocab_size: 3,
            initializer_range: 0.03,
            layer_norm_eps: 1e-7,
        };
        assert_eq!(read(&json!(config).to_string()).unwrap(), config);
        let table = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<BertConfig>(&table).unwrap(), config);
    }

    #[test]
    fn a_table_of_the_run_file_is_strict_about_its_keys_and_lenient_about_absent_ones() {
        let config: BertConfig = toml::from_str("hidden_size = 384\nhidden_dropout_prob = 0").unwrap();
        let expected = BertConfig { hidden_size: 384, hidden_dropout_prob: 0.0, ..BertConfig::default() };
        assert_eq!(config, expected);
        let error = toml::from_str::<BertConfig>("hiden_size = 384").unwrap_err().to_string();
        assert!(error.contains("unknown field `hiden_size`"), "{error}");
    }

    #[test]
    fn both_names_of_the_tanh_form_are_known() {
        for name in ["gelu_new", "gelu_pytorch_tanh"] {
            let config: BertConfig = toml::from_str(&format!("hidden_act = '{name}'")).unwrap();
            assert_eq!(config.hidden_act, HiddenAct::GeluNew);
        }
    }

    #[test]
    fn errors_name_file_field_and_remedy() {
        let cases = [
            ("hidden_size", json!(770), "770 is not a multiple of num_attention_heads = 12"),
            ("num_hidden_layers", json!(0), "choose from 1 to 1024"),
            ("num_attention_heads", json!(384), "choose from 1 to 256"),
            ("max_position_embeddings", json!(65_537), "choose from 1 to 65536"),
            ("vocab_size", json!(-1), "invalid value: integer `-1`"),
            ("vocab_size", json!("many"), "invalid type: string \"many\""),
            ("vocab_size", json!(1e30), "invalid type: floating point"),
            ("vocab_size", json!(4_294_967_295_u32), "more than 4000000000 parameters"),
            ("intermediate_size", json!(null), "invalid type: null"),
            ("hidden_dropout_prob", json!(1.0), "choose from 0 (off) to less than 1"),
            ("attention_probs_dropout_prob", json!(-0.1), "choose from 0 (off) to less than 1"),
            ("attention_probs_dropout_prob", json!(0.999_999), "choose from 0 (off) to less than 1"),
            ("initializer_range", json!(0), "small positive number"),
            ("layer_norm_eps", json!(-1e-12), "small positive number"),
            ("hidden_act", json!("swish"), "supported are \"gelu\", \"gelu_new\""),
            ("position_embedding_type", json!("relative_key"), "absolute positions"),
            ("model_type", json!("roberta"), "\"roberta\" is not supported, \"bert\" is"),
            ("is_decoder", json!(true), "this program runs BERT encoders"),
        ];
        for (field, value, expected) in cases {
            let message = message(field, value);
            assert!(message.contains(expected), "{field}: {message}");
            assert!(message.contains("config.json: ") && message.contains(field), "{field}: {message}");
        }
    }

    #[test]
    fn files_that_are_no_configuration_are_refused() {
        let not_json = read("{\"vocab_size\": ").unwrap_err().to_string();
        assert!(not_json.contains("EOF while parsing") && not_json.contains("line 1"), "{not_json}");
        let no_object = read("[]").unwrap_err().to_string();
        assert!(no_object.contains("not a model configuration"), "{no_object}");
        let no_size = read(r#"{"model_type": "bert"}"#).unwrap_err().to_string();
        assert!(no_size.contains("vocab_size: is missing"), "{no_size}");
        let long = read(&" ".repeat(MOST_BYTES as usize + 1)).unwrap_err().to_string();
        assert!(long.contains("at most 1048576 bytes"), "{long}");
        let absent = BertConfig::from_file(Path::new("no/such/config.json")).unwrap_err().to_string();
        assert!(absent.contains("no/such/config.json: cannot be read"), "{absent}");
    }

    #[test]
    fn sizes_that_overflow_are_refused_not_computed() {
        let config = BertConfig { vocab_size: usize::MAX, hidden_size: usize::MAX, ..BertConfig::default() };
        assert_eq!(config.checked_parameter_count(), None);
        assert!(config.validate().is_err());
    }
}
