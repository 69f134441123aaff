//! `pretrain`: a BERT from raw text.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use mtdnn_raw::backend::Rule;
use mtdnn_raw::nn::BertConfig;
use mtdnn_raw::train::checkpoint;
use mtdnn_raw::train::config::ModelConfig;
use mtdnn_raw::train::pretrain::run::{self, Outcome, PretrainRun};
use mtdnn_raw::train::pretrain::{Evaluation, Phase, PretrainConfig};
use mtdnn_raw::train::schedule::ScheduleKind;
use mtdnn_raw::train::signals::Stop;
use mtdnn_raw::train::trainer::Ending;

use super::console::Console;
use super::device::DeviceArgs;
use super::options::{SAVED, named, set};
use super::table::Table;
use super::{Exit, Usage, config_file, format};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw vocab --text text/train --size 8192 --output vocab
  mtdnn-raw pretrain --text text/train --dev-text text/dev --vocabulary vocab --sizes mini --phases 128:32:10000
      a small BERT from scratch, into runs/pretrain
  mtdnn-raw pretrain --text reports --init bert-base-uncased --learning-rate 2e-5 --output runs/reports
      goes on with a pretrained encoder on text of another kind
  mtdnn-raw pretrain two-stages.toml
      as the [pretrain] table of a run file says
  mtdnn-raw pretrain --resume --output runs/reports
      goes on with a run that was stopped or killed

Text has a sentence a line and a blank line between documents (chapters, articles); --split cuts plain paragraphs.
What comes out is a model directory, runs/pretrain/last: train takes it as --init, fill and transformers load it.";

/// Pre-train a BERT on raw text, by masked words and next sentences; or go on with one on other text.
#[derive(Args, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub(super) struct PretrainArgs {
    /// A run file (TOML) with a [pretrain] table; flags override what it says.
    #[arg(value_name = "RUN.toml")]
    file: Option<PathBuf>,

    /// The key of every random draw. [default: 2018]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Go on with the run in the output directory from its last checkpoint.
    #[arg(long)]
    resume: bool,

    /// A pretrained encoder to go on with, with or without pre-training heads: config.json, model.safetensors, vocab.txt.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["vocabulary", "sizes"])]
    init: Option<PathBuf>,

    /// The vocabulary of a new model: a directory that `vocab` has written, or any with vocab.txt or tokenizer.json.
    #[arg(long, value_name = "DIR")]
    vocabulary: Option<PathBuf>,

    /// The sizes of a new model: tiny (2 layers of 128), mini (4 of 256), small (4 of 512), medium (8 of 512), base
    /// (12 of 768) or large (24 of 1024). A run file can say any others.
    #[arg(long, value_name = "NAME", value_parser = sizes)]
    sizes: Option<BertConfig>,

    #[command(flatten)]
    flags: PretrainFlags,
}

/// A flag for each key of the run file's `[pretrain]` but the model.
#[derive(Args, Debug, Default)]
struct PretrainFlags {
    /// The run directory: configuration, log, token ids, checkpoint, model. [default: runs/pretrain]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Text files, and folders of them.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    text: Option<Vec<PathBuf>>,

    /// Held-out text to measure on.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    dev_text: Option<Vec<PathBuf>>,

    /// The text is plain paragraphs: cut them into sentences.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    split: Option<bool>,

    /// A folder for the text as token ids, which several runs may share. [default: corpus in the run directory]
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,

    /// Tokens a sequence, sentence pairs a batch and updates of each phase. BERT itself: nine tenths of all updates at
    /// 128 tokens, the rest at 512: 128:256:900000,512:256:100000. [default: 128:32:100000]
    #[arg(long, value_delimiter = ',', value_name = "LENGTH:BATCH:STEPS,...")]
    phases: Option<Vec<Phase>>,

    /// Batches whose gradients are summed before an update. [default: 1]
    #[arg(long, value_name = "N")]
    accumulation: Option<u32>,

    /// The peak of the learning rate. [default: 1e-4]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    learning_rate: Option<f64>,

    /// The update rule: adam-bert (BERT's own), lamb (for large batches), adamax, or any other of train's.
    /// [default: adam-bert]
    #[arg(long, value_name = "NAME", value_parser = named::<Rule>)]
    optimizer: Option<Rule>,

    /// Decay of weight matrices. [default: 0.01]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f32>,

    /// The course of the learning rate: linear, cosine, constant or warmup_linear. [default: linear]
    #[arg(long, value_name = "NAME", value_parser = named::<ScheduleKind>)]
    schedule: Option<ScheduleKind>,

    /// The share of all updates in which the learning rate rises. [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    warmup: Option<f64>,

    /// The gradient norm above which gradients are scaled down; 0 for no limit. [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip: Option<f32>,

    /// The encoder's dropout, in place of what its configuration says.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    dropout: Option<f64>,

    /// The share of tokens that are to be predicted. [default: 0.15]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    mask_share: Option<f64>,

    /// The most predictions a sequence; 0 for no limit. [default: 0]
    #[arg(long, value_name = "N")]
    max_predictions: Option<usize>,

    /// Mask whole words, not pieces of them.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    whole_words: Option<bool>,

    /// The share of documents whose sequences are shorter than they could be. [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    short_sequences: Option<f64>,

    /// Updates between two evaluations, beside those at each phase's beginning and end; 0 for those alone.
    /// [default: 1000]
    #[arg(long, value_name = "STEPS")]
    eval_every: Option<u64>,

    /// Sentence pairs of the held-out text that are measured; 0 for all. [default: 1000]
    #[arg(long, value_name = "N")]
    eval_pairs: Option<usize>,

    /// Updates between two checkpoints; 0 for one after each phase. [default: 1000]
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<u64>,
}

pub(super) fn run(args: &PretrainArgs) -> anyhow::Result<Exit> {
    let run = args.request()?;
    let output = &run.pretrain.output;
    let begun = args.resume.then(|| checkpoint::recorded_precision(output)).flatten();
    let mut backend = args.device.going_on(begun)?.backend()?;
    eprintln!("run directory: {}", output.display());
    let mut console = Console::new(0, Stop::on_signals()?);
    let outcome = run::run(&run, args.resume, SystemTime::now(), &mut *backend, &mut console);
    console.clear();
    let outcome = outcome?;
    match outcome.ending {
        None => {
            eprintln!("stopped before training began; run it again to begin anew");
            return Ok(Exit::Stopped);
        }
        Some(Ending::Stopped) => {
            let output = output.display();
            eprintln!("stopped and saved; to go on: mtdnn-raw pretrain --resume --output {output}");
            return Ok(Exit::Stopped);
        }
        Some(Ending::Complete | Ending::Patience) => {}
    }
    print_results(&outcome)?;
    hint(output);
    Ok(Exit::Done)
}

impl PretrainArgs {
    /// The settings that the run file (or what a run to be resumed has saved) and the flags make.
    fn request(&self) -> anyhow::Result<PretrainRun> {
        self.device.check()?;
        let mut run = self.base()?;
        self.apply(&mut run);
        make_absolute(&mut run.pretrain)?;
        if run.pretrain.model.new_heads {
            let usage = "pretrain.model.new_heads: heads of tasks are for train; leave it out";
            return Err(Usage(usage.into()).into());
        }
        run.pretrain.validate().map_err(|error| Usage(error.to_string()))?;
        let ModelConfig { init, vocabulary, config, .. } = &run.pretrain.model;
        if init.is_none() && (vocabulary.is_none() || config.is_none()) {
            let usage = "say which model: --init DIR, one to go on with, or --vocabulary DIR and --sizes NAME for a new one";
            return Err(Usage(usage.into()).into());
        }
        Ok(run)
    }

    /// What the flags override.
    fn base(&self) -> anyhow::Result<PretrainRun> {
        let of_file = |path: &Path| {
            let config = config_file::read(path)?;
            let missing =
                || Usage(format!("{}: no [pretrain] in it; add it, or give flags alone", path.display()));
            anyhow::Ok(PretrainRun { seed: config.seed, pretrain: config.pretrain.ok_or_else(missing)? })
        };
        if let Some(file) = &self.file {
            return of_file(file);
        }
        if self.resume {
            let usage = "--resume: say which run to go on with: --output DIR, or its run file";
            let output = self.flags.output.as_ref().ok_or_else(|| Usage(usage.into()))?;
            let saved = output.join(SAVED);
            if saved.is_file() {
                return of_file(&saved);
            }
            if self.flags.text.is_none() {
                return Err(Usage(format!(
                    "--resume: {} holds no run (no {SAVED}); check --output, or start without --resume",
                    output.display()
                ))
                .into());
            }
        }
        Ok(PretrainRun {
            seed: mtdnn_raw::train::config::RunConfig::default().seed,
            pretrain: PretrainConfig::default(),
        })
    }

    fn apply(&self, run: &mut PretrainRun) {
        set(&mut run.seed, &self.seed);
        let (config, flags) = (&mut run.pretrain, &self.flags);
        let model = &mut config.model;
        if let Some(init) = &self.init {
            (model.init, model.config, model.vocabulary) = (Some(init.clone()), None, None);
        }
        if let Some(vocabulary) = &self.vocabulary {
            (model.vocabulary, model.init) = (Some(vocabulary.clone()), None);
        }
        if let Some(sizes) = &self.sizes {
            (model.config, model.init) = (Some(sizes.clone()), None);
        }
        set(&mut config.output, &flags.output);
        set(&mut config.text, &flags.text);
        set(&mut config.dev_text, &flags.dev_text);
        set(&mut config.split, &flags.split);
        config.corpus = flags.corpus.clone().or(config.corpus.take());
        set(&mut config.phases, &flags.phases);
        set(&mut config.accumulation, &flags.accumulation);
        set(&mut config.learning_rate, &flags.learning_rate);
        set(&mut config.optimizer, &flags.optimizer);
        set(&mut config.weight_decay, &flags.weight_decay);
        set(&mut config.schedule, &flags.schedule);
        set(&mut config.warmup, &flags.warmup);
        set(&mut config.clip, &flags.clip);
        config.dropout = flags.dropout.or(config.dropout);
        set(&mut config.mask_share, &flags.mask_share);
        set(&mut config.max_predictions, &flags.max_predictions);
        set(&mut config.whole_words, &flags.whole_words);
        set(&mut config.short_sequences, &flags.short_sequences);
        set(&mut config.eval_every, &flags.eval_every);
        set(&mut config.eval_pairs, &flags.eval_pairs);
        set(&mut config.checkpoint_every, &flags.checkpoint_every);
    }
}

/// The sizes of the encoders that BERT's authors published (Devlin et al. 2018; Turc et al. 2019).
fn sizes(name: &str) -> Result<BertConfig, String> {
    let (layers, hidden) = match name {
        "tiny" => (2, 128),
        "mini" => (4, 256),
        "small" => (4, 512),
        "medium" => (8, 512),
        "base" => (12, 768),
        "large" => (24, 1024),
        _ => return Err("the sizes are tiny, mini, small, medium, base and large".into()),
    };
    Ok(BertConfig {
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: hidden / 64,
        intermediate_size: 4 * hidden,
        ..BertConfig::default()
    })
}

/// Paths that are right from any directory: the run may be resumed from another one.
fn make_absolute(config: &mut PretrainConfig) -> anyhow::Result<()> {
    let PretrainConfig { output, text, dev_text, corpus, model, .. } = config;
    if output.as_os_str().is_empty() {
        return Err(Usage("output: the run directory needs a name".into()).into());
    }
    let of_model = [&mut model.init, &mut model.vocabulary, corpus].into_iter().flatten();
    for path in of_model.chain(text).chain(dev_text) {
        *path = std::path::absolute(&path)?;
    }
    Ok(())
}

fn print_results(outcome: &Outcome) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if let Some(evaluation) = &outcome.evaluation {
        write!(out, "{}", results_table(evaluation))?;
    }
    let (updates, time) = (outcome.progress.updates, format::duration(outcome.seconds));
    writeln!(out, "{updates} updates; {time}")?;
    Ok(())
}

/// The figures of the held-out text, each beside that of no reading at all.
fn results_table(evaluation: &Evaluation) -> Table {
    let Evaluation { pairs, predictions, masked_loss, masked_accuracy, next_loss, next_accuracy, .. } =
        *evaluation;
    let mut table = Table::new(&["held-out text", "examples", "metric", "value", "baseline"]);
    let mut row = |what: &str, examples: String, metric: &str, value: f64, baseline: Option<f64>| {
        let baseline = baseline.map_or("-".into(), |baseline| format!("{baseline:.4}"));
        table.row(vec![what.into(), examples, metric.into(), format!("{value:.4}"), baseline]);
    };
    let entropy = evaluation.unigram_entropy;
    row("masked words", predictions.to_string(), "loss", masked_loss, Some(entropy));
    row("", String::new(), "perplexity", evaluation.perplexity(), Some(entropy.exp()));
    row("", String::new(), "accuracy", masked_accuracy, None);
    row("next sentence", pairs.to_string(), "loss", next_loss, Some(std::f64::consts::LN_2));
    row("", String::new(), "accuracy", next_accuracy, Some(evaluation.next_baseline));
    table
}

/// Where the model lies and what to do with it.
fn hint(output: &Path) {
    let model = output.join("last");
    let model = model.display();
    eprintln!("\nthe model is in {model}; what next:");
    eprintln!("  mtdnn-raw fill --model {model} 'The [MASK] sat on the mat.'");
    eprintln!("  mtdnn-raw train --init {model} --data GLUE_DIR --tasks cola,rte");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: PretrainArgs,
    }

    #[test]
    fn every_key_of_pretrain_has_a_flag() {
        let config =
            PretrainConfig { dropout: Some(0.1), corpus: Some("corpus".into()), ..PretrainConfig::default() };
        let mut table = toml::Table::try_from(config).unwrap();
        table.remove("model").unwrap(); // --init, --vocabulary and --sizes.
        let command = PretrainFlags::augment_args(Command::new("pretrain"));
        for key in table.keys() {
            let flag = key.replace('_', "-");
            assert!(command.get_arguments().any(|a| a.get_long() == Some(&flag)), "no flag --{flag}");
        }
        assert_eq!(command.get_arguments().count(), table.len(), "a flag without a key");
    }

    #[test]
    fn every_flag_overrides_its_key() {
        let flags = [
            ("output", "\"a\""),
            ("corpus", "\"b\""),
            ("split", "true"),
            ("accumulation", "3"),
            ("learning_rate", "0.25"),
            ("optimizer", "\"sgd\""),
            ("weight_decay", "0.5"),
            ("schedule", "\"cosine\""),
            ("warmup", "0.75"),
            ("clip", "2.5"),
            ("dropout", "0.125"),
            ("mask_share", "0.25"),
            ("max_predictions", "7"),
            ("whole_words", "true"),
            ("short_sequences", "0.5"),
            ("eval_every", "12"),
            ("eval_pairs", "13"),
            ("checkpoint_every", "5"),
        ];
        let words = flags.iter().flat_map(|(key, value)| {
            [format!("--{}", key.replace('_', "-")), value.trim_matches('"').to_string()]
        });
        let more = ["--text", "c", "d", "--dev-text", "e", "--phases", "64:8:9,128:4:3"].map(String::from);
        let line = <Line as clap::Parser>::parse_from(
            std::iter::once("pretrain".to_string()).chain(words).chain(more),
        );
        let mut run = PretrainRun { seed: 0, pretrain: PretrainConfig::default() };
        line.args.apply(&mut run);
        let phases: Vec<String> = run.pretrain.phases.iter().map(ToString::to_string).collect();
        assert_eq!(phases, ["64:8:9", "128:4:3"]);
        assert_eq!(run.pretrain.text, [PathBuf::from("c"), PathBuf::from("d")]);
        assert_eq!(run.pretrain.dev_text, [PathBuf::from("e")]);
        let table = toml::Table::try_from(run.pretrain).unwrap();
        for (key, value) in flags {
            assert_eq!(table[key].to_string(), value, "{key}");
        }
    }

    #[test]
    fn published_sizes_are_valid() {
        for name in ["tiny", "mini", "small", "medium", "base", "large"] {
            sizes(name).unwrap().validate().unwrap();
        }
        assert_eq!(sizes("base").unwrap(), BertConfig::default());
        assert!(sizes("huge").is_err());
    }
}
