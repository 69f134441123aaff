//! A whole pre-training run: from text to a run directory with the model in it.
//!
//! The run directory holds `config.toml`, `metrics.jsonl` (a line for each batch and each measuring), `plan.txt`,
//! `corpus/` (the text as token ids), `last/` (the model directory), `state/` (all that going on exactly needs) and
//! `lock`.

use std::path::Path;
use std::thread;
use std::time::SystemTime;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::config::PretrainConfig;
use super::corpora::{Corpora, OTHER_TEXT};
use super::evaluate::Evaluation;
use super::trainer::{Ending, Observer, PretrainTrainer, Progress, StepReport, check_lengths};
use crate::backend::Backend;
use crate::data::{Masking, Tokenizer};
use crate::nn::{PretrainingModel, directory};
use crate::tensor::{Space, Span};
use crate::train::checkpoint;
use crate::train::keeper::{self, Keeper};
use crate::train::lock::Lock;
use crate::train::monitor::{Event, Monitor};
use crate::train::prepare::{self, Start};
use crate::train::settings::{check_output, save_config, save_plan};
use crate::train::store::{self, LAST, STATE};

/// The settings of a run, as they are saved in its directory and read again as a run file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRun {
    /// The key of every random draw.
    pub seed: u64,
    /// Everything else.
    pub pretrain: PretrainConfig,
}

/// How a run ended and what came of it.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended; `None` if it was stopped before anything was trained.
    pub ending: Option<Ending>,
    /// Where the run stands.
    pub progress: Progress,
    /// The figures of the last evaluation, if there was one.
    pub evaluation: Option<Evaluation>,
    /// Seconds of the whole run, earlier parts of a resumed one included.
    pub seconds: f64,
}

/// Everything but the numbers that going on exactly needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    progress: Progress,
    /// The length of `metrics.jsonl` at this point.
    log_offset: u64,
    /// What the text hashes to: a run does not go on over other text.
    text: Vec<String>,
    /// What the vocabulary hashes to: with another one, every token would have another's vector.
    vocabulary: String,
    /// The last evaluation so far.
    evaluation: Option<Evaluation>,
    /// Seconds of the run so far.
    seconds: f64,
}

/// Pre-trains as `run` says, or goes on with the run that is in its output directory.
///
/// `now` is told to who finds the directory locked.
///
/// # Errors
/// Wrong settings or text; a directory that holds a run, unless `resume`; training that has diverged; a final save that
/// failed.
pub fn run(
    run: &PretrainRun,
    resume: bool,
    now: SystemTime,
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Outcome> {
    let PretrainRun { seed, pretrain: config } = run;
    config.validate()?;
    let output = &config.output;
    check_output(output, run, resume)?;
    let (sizes, tokenizer) = prepare::encoder(&config.model, config.dropout, false)?;
    if let Some(doubt) = directory::doubtful_vocabulary(&sizes, &tokenizer) {
        monitor.tell(Event::Warning(&doubt));
    }
    let vocabulary = config.model.init.as_ref().or(config.model.vocabulary.as_ref());
    let vocabulary = vocabulary.expect("an encoder has a vocabulary from somewhere");
    let most = (config.max_predictions > 0).then_some(config.max_predictions);
    let masking = Masking::new(&tokenizer, vocabulary, config.mask_share, config.whole_words, most)?;
    let model = PretrainingModel::new(&sizes).with_precision(backend.precision());
    check_lengths(config, &model)?;
    let initial = |monitor: &mut dyn Monitor| initial_parameters(run, &model, &tokenizer, monitor);
    let start = if resume { None } else { Some(initial(monitor)?) };

    // Whatever is wrong with settings or weights has been said: from here on the directory is written.
    let _lock = Lock::acquire(output, now)?;
    check_output(output, run, resume)?; // Another process may have been faster.
    for sentence in store::recover(output, &[STATE, LAST])? {
        monitor.tell(Event::Warning(&sentence));
    }
    let Some(corpora) = Corpora::open(config, &tokenizer, resume, monitor)? else {
        return Ok(Outcome::nothing(monitor.seconds()));
    };
    let mut trainer = PretrainTrainer::new(config, *seed, &model, &corpora, &masking, backend)?;
    let phases: Vec<String> = config.phases.iter().map(ToString::to_string).collect();
    let extent = format!("phases {} (tokens:pairs:updates)", phases.join(", "));
    let (sizes, updates) = (trainer.sizes(), config.total_updates());
    monitor.tell(Event::Planned { sizes, updates, extent: &extent });
    save_config(output, run)?;
    let programs = trainer.programs().map(|(phase, program)| (format!("phase {phase}"), program));
    if let Err(error) = save_plan(output, programs) {
        monitor.tell(Event::Warning(&format!("{error:#}"))); // For readers; nothing depends on it.
    }
    let text = corpora.fingerprints();
    let saved = if resume { load(output, &text, &tokenizer, &mut trainer, monitor)? } else { None };
    if saved.is_none() {
        let start = start.map_or_else(|| initial(monitor), Ok)?;
        let span = Span { space: Space::Parameters, offset: 0, len: start.len() };
        trainer.backend().write(span, bytemuck::cast_slice(&start))?;
    }
    let (offset, seconds, evaluation) =
        saved.map_or((0, 0.0, None), |state| (state.log_offset, state.seconds, state.evaluation));
    thread::scope(|scope| {
        let keeper = Keeper::new(output, resume, offset, seconds, scope, monitor)?;
        let mut recorder = Recorder { keeper, model: &model, tokenizer: &tokenizer, text, evaluation };
        let ending = trainer.run(&mut recorder);
        // What was saved before a failure is waited for as well.
        let kept = recorder.keeper.finish();
        let ending = Some(ending?);
        kept?;
        let Recorder { keeper, evaluation, .. } = recorder;
        Ok(Outcome { ending, evaluation, seconds: keeper.seconds(), progress: *trainer.progress() })
    })
}

impl Outcome {
    fn nothing(seconds: f64) -> Self {
        Self { ending: None, progress: Progress::default(), evaluation: None, seconds }
    }
}

/// The parameters that training begins with: those of `model.init`, new ones where it has none.
fn initial_parameters(
    run: &PretrainRun,
    model: &PretrainingModel,
    tokenizer: &Tokenizer,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Vec<f32>> {
    let init = run.pretrain.model.init.as_deref();
    let start = Start { init, seed: run.seed, table: model.parameters() };
    start.parameters(tokenizer, model.config().vocab_size, monitor, |init, values| {
        directory::load_pretraining(init, model, run.seed, false, values)
    })
}

/// Takes the trainer to where the run was saved; `None` if it never was.
fn load(
    output: &Path,
    text: &[String],
    tokenizer: &Tokenizer,
    trainer: &mut PretrainTrainer<'_>,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<State>> {
    let Some(path) = keeper::newest_state(output, monitor)? else { return Ok(None) };
    let parameters = trainer.model().parameters().len();
    let state: State = checkpoint::load_state(&path, parameters, trainer.backend())?;
    if state.vocabulary != tokenizer.hash() {
        bail!(
            "--resume: the vocabulary is not that which the run began with (its own is in {}); put its files back, or \
             start another run with another --output",
            output.join(LAST).display()
        );
    }
    if state.text != text {
        bail!(OTHER_TEXT);
    }
    let Progress { updates, phase, epoch, .. } = state.progress;
    let said = format!("going on after update {updates}, in phase {}, pass {}", phase + 1, epoch + 1);
    monitor.tell(Event::Note(&said));
    trainer.resume(state.progress);
    Ok(Some(state))
}

/// Writes down and saves what the trainer does.
struct Recorder<'a> {
    keeper: Keeper<'a>,
    model: &'a PretrainingModel,
    tokenizer: &'a Tokenizer,
    text: Vec<String>,
    evaluation: Option<Evaluation>,
}

#[derive(Serialize)]
struct StepLine {
    event: &'static str,
    step: u32,
    phase: usize,
    epoch: u32,
    masked_loss: f32,
    next_loss: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    update: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_norm: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f32>,
    tokens: usize,
    predictions: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct EvaluationLine<'a> {
    event: &'static str,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    perplexity: f64,
    seconds: f64,
}

impl Observer for Recorder<'_> {
    fn step(&mut self, report: &StepReport) {
        let line = StepLine {
            event: "step",
            step: report.step,
            phase: report.phase,
            epoch: report.epoch,
            masked_loss: report.masked_loss,
            next_loss: report.next_loss,
            update: report.update.map(|update| update.number),
            gradient_norm: report.update.map(|update| update.gradient_norm),
            learning_rate: report.update.map(|update| update.learning_rate),
            tokens: report.tokens,
            predictions: report.predictions,
            seconds: self.keeper.seconds(),
        };
        self.keeper.append(&line);
        self.keeper.monitor.tell(Event::Pretrained { report });
    }

    fn measuring(&mut self, pairs: usize, tokens: usize) {
        self.keeper.monitor.tell(Event::MeasuringText { pairs, tokens });
    }

    fn measured(&mut self, evaluation: &Evaluation) {
        let (perplexity, seconds) = (evaluation.perplexity(), self.keeper.seconds());
        self.keeper.append(&EvaluationLine { event: "evaluation", evaluation, perplexity, seconds });
        self.keeper.monitor.tell(Event::TextMeasured { evaluation });
        self.evaluation = Some(*evaluation);
    }

    fn checkpoint(&mut self, trainer: &mut PretrainTrainer<'_>) -> anyhow::Result<()> {
        let Self { model, tokenizer, .. } = *self;
        let (updates, table) = (trainer.progress().updates, model.parameters());
        let state = State {
            progress: *trainer.progress(),
            log_offset: self.keeper.sync_log(updates),
            text: self.text.clone(),
            vocabulary: tokenizer.hash(),
            evaluation: self.evaluation,
            seconds: self.keeper.seconds(),
        };
        self.keeper.save_state(updates, &state, table.len(), trainer.backend());
        let write =
            move |path: &Path, values: &[f32]| directory::save_pretraining(path, model, tokenizer, values);
        self.keeper.save_model(LAST, updates, table, tokenizer, trainer.backend(), write);
        Ok(())
    }

    fn stop(&self) -> bool {
        self.keeper.monitor.stop()
    }
}
