//! What a person sees of a training run: one rewritten line on a terminal, one plain line every 30 s elsewhere.

mod pretraining;

use std::fmt::Write;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mtdnn_raw::data::TaskSpec;
use mtdnn_raw::train::evaluate::Evaluation;
use mtdnn_raw::train::monitor::{Event, Monitor};
use mtdnn_raw::train::signals::Stop;
use mtdnn_raw::train::trainer::{Progress, StepReport};

use super::format;

/// Between two plain lines.
const PLAIN: Duration = Duration::from_secs(30);
/// Between two rewritings of the line on a terminal.
const REWRITE: Duration = Duration::from_millis(100);
/// What is left of a smoothed loss after one more of the same task.
const SMOOTHING: f64 = 0.9;

/// The program's clock, terminal and stop flag.
pub(super) struct Console {
    started: Instant,
    stop: Stop,
    /// The rewritten line; none where standard error is no terminal.
    line: Option<ProgressBar>,
    shown: Instant,
    /// Epochs of a run on tasks.
    epochs: u32,
    updates: u64,
    /// What has a loss: the tasks, or the two of pre-training.
    tasks: Vec<String>,
    /// The smoothed loss of each that has been trained on.
    losses: Vec<Option<f64>>,
    /// When the first step of this process began, and what was done since then.
    training: Option<Training>,
}

#[derive(Clone, Copy)]
struct Training {
    began: Instant,
    updates: u64,
    tokens: usize,
    /// Seconds of measuring and saving, which are no part of the speed.
    pauses: f64,
    step_ended: Instant,
}

impl Console {
    /// A console for a run of so many epochs.
    pub(super) fn new(epochs: u32, stop: Stop) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            stop,
            line: line(),
            shown: now,
            epochs,
            updates: 0,
            tasks: Vec::new(),
            losses: Vec::new(),
            training: None,
        }
    }

    /// Takes the rewritten line away.
    pub(super) fn clear(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }

    /// Prints a line that stays.
    fn print(&self, text: &str) {
        match &self.line {
            Some(line) => line.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Shows what is being done now: in the rewritten line, or a line of its own.
    fn status(&self, text: String) {
        match &self.line {
            Some(line) => line.set_message(text),
            None => eprintln!("{text}"),
        }
    }

    fn data(&mut self, task: &TaskSpec, train: usize, dev: usize, tokens: usize) {
        if self.training.take().is_some() {
            // Another run of the same experiment begins.
            (self.tasks, self.losses) = (Vec::new(), Vec::new());
        }
        let kind = match task.kind {
            mtdnn_raw::data::TaskKind::Classification => format!("{} classes", task.labels.len()),
            mtdnn_raw::data::TaskKind::Labelling => format!("{} labels of words", task.labels.len()),
            kind => kind.to_string(),
        };
        let tokens = format::count(tokens as f64);
        self.print(&format!(
            "task {}: {kind}, {train} to train on, {dev} to measure on, {tokens} tokens",
            task.name
        ));
        self.tasks.push(task.name.clone());
        self.losses.push(None);
    }

    fn planned(&mut self, sizes: &mtdnn_raw::backend::Sizes, updates: u64, extent: &str) {
        self.updates = updates;
        let bytes = |elements: usize| format::bytes(elements as u64 * 4);
        // Parameters, gradients and two moments, and the arena of the largest program.
        let total = sizes.parameters * 4 + sizes.arena;
        // Of parameters and moments, which are written while training goes on.
        let copies = sizes.parameters * 3;
        self.print(&format!(
            "plan: {updates} updates, {extent}; memory {}: parameters {}, gradients {}, moments {}, \
             arena {}; {} more while saving",
            bytes(total),
            bytes(sizes.parameters),
            bytes(sizes.parameters),
            bytes(sizes.parameters * 2),
            bytes(sizes.arena),
            bytes(copies),
        ));
        if let Some(free) = super::doctor::available_memory()
            && (total + copies) as u64 * 4 > free
        {
            let free = format::bytes(free);
            self.print(&format!(
                "warning: only {free} of memory are free; smaller batches or shorter sequences need less"
            ));
        }
    }

    fn step(&mut self, progress: &Progress, report: &StepReport) {
        self.smooth(report.task, report.loss);
        if self.advance(progress.updates, report.tokens) {
            let text = format!("epoch {}/{}", progress.epoch + 1, self.epochs);
            self.status(self.describe(text, progress.updates));
        }
    }

    fn smooth(&mut self, task: usize, loss: f32) {
        let smoothed = &mut self.losses[task];
        *smoothed = Some(
            smoothed
                .map_or(f64::from(loss), |before| SMOOTHING * before + (1.0 - SMOOTHING) * f64::from(loss)),
        );
    }

    /// Counts a step; whether it is time to say how things stand.
    fn advance(&mut self, updates: u64, tokens: usize) -> bool {
        let now = Instant::now();
        // The first step ends when this process begins to know its speed.
        let Some(training) = &mut self.training else {
            self.training = Some(Training { began: now, updates, tokens: 0, pauses: 0.0, step_ended: now });
            return false;
        };
        training.tokens += tokens;
        training.step_ended = now;
        let interval = if self.line.is_some() { REWRITE } else { PLAIN };
        let due = now.duration_since(self.shown) >= interval;
        if due {
            self.shown = now;
        }
        due
    }

    /// Tokens a second in training steps of this process; infinite before there are any.
    fn speed(&self) -> f64 {
        let Some(training) = self.training.as_ref().filter(|training| training.tokens > 0) else {
            return f64::INFINITY;
        };
        let seconds = training.step_ended.duration_since(training.began).as_secs_f64() - training.pauses;
        training.tokens as f64 / seconds.max(1e-9)
    }

    /// `epoch 2/5  update 120/560  loss rte 0.693, cola 0.514  12.3k tokens/s  3 min 20 s left`
    fn describe(&self, mut text: String, updates: u64) -> String {
        let training = self.training.expect("training has begun");
        write!(text, "  update {updates}/{}  loss", self.updates).expect("a string takes what is written");
        let known = self.tasks.iter().zip(&self.losses).filter_map(|(task, loss)| Some((task, (*loss)?)));
        for (index, (task, loss)) in known.enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(text, "{comma} {task} {loss:.3}").expect("a string takes what is written");
        }
        let seconds = training.step_ended.duration_since(training.began).as_secs_f64();
        let done = updates - training.updates;
        let left = self.updates.saturating_sub(updates) as f64 * seconds / done.max(1) as f64;
        let (speed, left) = (format::count(self.speed()), format::duration(left));
        write!(text, "  {speed} tokens/s  {left} left").expect("a string takes what is written");
        text
    }

    /// Says what is being measured: so many examples, of so many tokens.
    fn measuring(&self, what: &str, examples: usize, tokens: usize) {
        // A forward pass takes a third of a training step. What is over in seconds is not worth a line that stays.
        let seconds = tokens as f64 / (3.0 * self.speed());
        if self.line.is_some() || seconds > 5.0 {
            self.status(format!(
                "measuring {what}: {examples} examples, {} or so",
                format::duration(seconds)
            ));
        }
    }

    fn evaluated(&mut self, progress: &Progress, evaluations: &[Evaluation], mean: f64) {
        let mut text = format!("epoch {}  update {}  dev", progress.epoch + 1, progress.updates);
        for Evaluation { task, split, metrics, .. } in evaluations {
            let (metric, value) = metrics[0];
            let split = split.strip_prefix("dev").unwrap_or(split);
            write!(text, "  {}{split} {metric} {value:.3}", self.tasks[*task])
                .expect("a string takes what is written");
        }
        let better = progress.best.as_ref().is_none_or(|best| mean > best.mean);
        let mark = if better { ", the best so far" } else { "" };
        self.print(&format!("{text}  mean {mean:.3}{mark}"));
        self.pause();
    }

    /// Leaves what has passed since the last step out of the speed.
    fn pause(&mut self) {
        if let Some(training) = &mut self.training {
            let now = Instant::now();
            training.pauses += now.duration_since(training.step_ended).as_secs_f64();
            training.step_ended = now;
        }
    }
}

impl Monitor for Console {
    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn stop(&self) -> bool {
        self.stop.requested()
    }

    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Note(text) => self.print(text),
            Event::Warning(text) => self.print(&format!("warning: {text}")),
            Event::Reading { path } => {
                if let Some(line) = &self.line {
                    line.set_message(format!("reading and tokenising {}", path.display()));
                } else if path.metadata().is_ok_and(|file| file.len() > 4 << 20) {
                    // Smaller files take less than a second.
                    eprintln!("reading and tokenising {}", path.display());
                }
            }
            Event::Data { task, train, dev, tokens } => self.data(task, train, dev, tokens),
            Event::Planned { sizes, updates, extent } => self.planned(&sizes, updates, extent),
            Event::Step { progress, report } => self.step(progress, report),
            Event::Measuring { task, set, examples, tokens } => {
                self.measuring(&format!("{task} {set}"), examples, tokens);
            }
            Event::Tokenising { path, done, total } => self.tokenising(path, done, total),
            Event::Pretrained { report } => self.pretrained(report),
            Event::MeasuringText { pairs, tokens } => self.measuring("the held-out text", pairs, tokens),
            Event::TextMeasured { evaluation } => self.text_measured(evaluation),
            Event::Evaluated { progress, evaluations, mean } => self.evaluated(progress, evaluations, mean),
            Event::Saving { path } => {
                self.pause();
                if let Some(line) = &self.line {
                    line.set_message(format!("saving {}", path.display()));
                }
            }
        }
    }
}

/// A line that is rewritten, if standard error is a terminal.
fn line() -> Option<ProgressBar> {
    if !stderr().is_terminal() {
        return None;
    }
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    line.set_style(ProgressStyle::with_template("{wide_msg}").expect("a template without fields of its own"));
    Some(line)
}

/// Work whose pieces are counted: one rewritten line on a terminal, a plain line every 30 s elsewhere.
pub(super) struct Counter {
    line: Option<ProgressBar>,
    shown: Instant,
    what: String,
    unit: &'static str,
    done: usize,
    of: usize,
}

impl Counter {
    /// For so many pieces of `what`, each a `unit`.
    pub(super) fn new(what: &str, unit: &'static str, of: usize) -> Self {
        Self { line: line(), shown: Instant::now(), what: what.to_string(), unit, done: 0, of }
    }

    /// To be called before each piece.
    pub(super) fn next(&mut self) {
        let interval = if self.line.is_some() { REWRITE } else { PLAIN };
        if self.shown.elapsed() >= interval {
            self.shown = Instant::now();
            let text = format!("{}: {} of {} {} done", self.what, self.done, self.of, self.unit);
            match &self.line {
                Some(line) => line.set_message(text),
                None => eprintln!("{text}"),
            }
        }
        self.done += 1;
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}
