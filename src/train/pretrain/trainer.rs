//! The pre-training loop: draw sentence pairs, hide tokens, step; phase after phase.
//!
//! What a step reads is a function of the seed, the phase, the pass over the text and the pair's number in it, so that
//! a run goes on exactly from where it was saved. Nothing in here reads a clock or a terminal.

use std::collections::VecDeque;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::config::{Phase, PretrainConfig};
use super::corpora::Corpora;
use super::evaluate::{Evaluation, HeldOut, capacity};
use crate::backend::{Backend, Group, Optimizer, Sizes, StepScalars, Ticket};
use crate::data::instances::{Instance, Pass};
use crate::data::{MaskedBatch, Masking};
use crate::nn::{PretrainingModel, RecordedPretraining, masked_extents};
use crate::tensor::{Program, Space, Span};
use crate::train::coverage::check_every_parameter_is_trained;
use crate::train::error::{TrainError, with_what_fits};
use crate::train::groups;
use crate::train::schedule::Schedule;

/// Where a run stands: with the parameters and moments, all that going on exactly needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The phase in progress, from 0.
    pub phase: usize,
    /// Updates of this phase.
    pub phase_updates: u64,
    /// The pass over the text within the phase, from 0.
    pub epoch: u32,
    /// The next pair of the pass.
    pub pair: usize,
    /// Batches run so far in the whole run: the counter of every dropout draw.
    pub step: u32,
    /// Updates made so far.
    pub updates: u64,
    /// The update after which the held-out text was last measured in this phase.
    pub measured: Option<u64>,
}

/// One batch trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The number of the batch in the run, from 0.
    pub step: u32,
    /// The phase, from 0.
    pub phase: usize,
    /// The pass over the text, from 0.
    pub epoch: u32,
    /// The mean loss of the batch's masked words.
    pub masked_loss: f32,
    /// The mean loss of its next sentences.
    pub next_loss: f32,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Masked words of the batch.
    pub predictions: usize,
    /// What the update that ended the step did; none while gradients are being summed.
    pub update: Option<UpdateReport>,
}

/// One update of the parameters.
pub use crate::train::trainer::{Ending, UpdateReport};

/// Told what happens; decides nothing but when to stop.
pub trait Observer {
    /// After each batch.
    fn step(&mut self, report: &StepReport);
    /// Before the held-out text is measured: so many pairs and tokens.
    fn measuring(&mut self, pairs: usize, tokens: usize);
    /// After it.
    fn measured(&mut self, evaluation: &Evaluation);
    /// A checkpoint is due.
    fn checkpoint(&mut self, trainer: &mut PretrainTrainer<'_>) -> anyhow::Result<()>;
    /// Whether to stop now.
    fn stop(&self) -> bool;
}

/// A step that the backend has been given and may not have finished.
struct Queued {
    report: StepReport,
    masked_loss: Ticket,
    next_loss: Ticket,
    /// The update's number, the gradient's norm and the learning rate.
    update: Option<(u64, Ticket, f32)>,
}

/// What one phase runs.
struct PhasePrograms<'a> {
    phase: Phase,
    recorded: RecordedPretraining,
    held_out: Option<HeldOut<'a>>,
}

/// Pre-trains one model on one corpus.
pub struct PretrainTrainer<'a> {
    config: &'a PretrainConfig,
    seed: u64,
    model: &'a PretrainingModel,
    corpora: &'a Corpora,
    masking: &'a Masking,
    backend: &'a mut dyn Backend,
    reserved: Sizes,
    phases: Vec<PhasePrograms<'a>>,
    schedule: Schedule,
    optimizer: Optimizer,
    /// Ranges of the flat buffers and whether weight decay applies to them.
    ranges: Vec<(Range<usize>, bool)>,
    groups: Vec<Group>,
    /// The pairs of the pass in progress.
    instances: Vec<Instance>,
    batch: MaskedBatch,
    /// Batches whose gradients are being summed.
    summed: u32,
    /// Steps whose numbers have not been asked for, the oldest first.
    queued: VecDeque<Queued>,
    progress: Progress,
}

impl<'a> PretrainTrainer<'a> {
    /// Records and plans every phase's programs and reserves the backend's memory.
    ///
    /// The parameters are then to be written to the backend: [`PretrainTrainer::backend`].
    pub fn new(
        config: &'a PretrainConfig,
        seed: u64,
        model: &'a PretrainingModel,
        corpora: &'a Corpora,
        masking: &'a Masking,
        backend: &'a mut dyn Backend,
    ) -> Result<Self, TrainError> {
        check_lengths(config, model)?;
        let (scale, line) = (1.0 / config.accumulation as f32, backend.line());
        let phases: Vec<PhasePrograms> = config
            .phases
            .iter()
            .map(|&phase| {
                let Phase { max_length, batch_size, .. } = phase;
                let room = capacity(batch_size, max_length, masking, line);
                let held_out = corpora
                    .dev
                    .as_ref()
                    .map(|corpus| HeldOut::new(model, corpus, masking, max_length, config.eval_pairs, line));
                let recorded = model.training(room, scale, config.accumulation > 1);
                PhasePrograms { phase, recorded, held_out }
            })
            .collect();
        check_every_parameter_is_trained(
            model.parameters(),
            &(0..0),
            phases.iter().map(|phase| &phase.recorded.program),
        )?;
        let training = phases.iter().map(|phase| phase.recorded.program.arena_len());
        let measuring = phases.iter().flat_map(|phase| &phase.held_out).map(HeldOut::arena_len);
        let arena = training.chain(measuring).max().unwrap_or(0);
        let parameters = model.parameters().len();
        let reserved = Sizes { parameters, arena, training: true };
        let largest = config.phases.iter().map(|phase| phase.batch_size).max().unwrap_or(0);
        backend.reserve(&reserved).map_err(|error| with_what_fits(error, &reserved, largest))?;

        let schedule = Schedule {
            kind: config.schedule,
            warmup: config.warmup,
            total: config.total_updates(),
            peak: config.learning_rate,
        };
        let per_tensor = config.optimizer.per_tensor();
        let ranges = groups::ranges(model.parameters(), 0..parameters, config.weight_decay, per_tensor);
        let steps_ahead = backend.steps_ahead();
        let mut trainer = Self {
            config,
            seed,
            model,
            corpora,
            masking,
            backend,
            reserved,
            schedule,
            optimizer: Optimizer::new(config.optimizer),
            groups: Vec::with_capacity(ranges.len()),
            ranges,
            instances: Vec::new(),
            batch: MaskedBatch::with_capacity(0, 0, line),
            phases,
            summed: 0,
            queued: VecDeque::with_capacity(steps_ahead + 1),
            progress: Progress::default(),
        };
        trainer.resume(Progress::default());
        Ok(trainer)
    }

    /// Where the run stands.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Goes on from a saved place; the parameters and moments are to be written to the backend as well.
    pub fn resume(&mut self, progress: Progress) {
        self.progress = progress;
        self.begin_phase();
        self.begin_pass();
    }

    /// The backend, to write and read parameters and moments.
    pub fn backend(&mut self) -> &mut dyn Backend {
        self.backend
    }

    /// The model.
    pub fn model(&self) -> &'a PretrainingModel {
        self.model
    }

    /// Each phase and its training program, to print.
    pub fn programs(&self) -> impl Iterator<Item = (Phase, &Program)> {
        self.phases.iter().map(|programs| (programs.phase, &programs.recorded.program))
    }

    /// The memory that was reserved.
    pub fn sizes(&self) -> Sizes {
        self.reserved
    }

    /// Trains to the end, or until the observer stops it.
    pub fn run(&mut self, observer: &mut dyn Observer) -> anyhow::Result<Ending> {
        loop {
            let stop = observer.stop();
            let complete = self.progress.updates == self.schedule.total;
            if stop || complete || self.is_evaluation_due() || self.is_checkpoint_due() {
                self.settle(0, observer)?;
            }
            if self.is_evaluation_due() && !self.evaluate(observer)? {
                observer.checkpoint(self)?;
                return Ok(Ending::Stopped);
            }
            if stop || complete {
                observer.checkpoint(self)?;
                return Ok(if complete { Ending::Complete } else { Ending::Stopped });
            }
            if self.is_checkpoint_due() {
                observer.checkpoint(self)?;
            }
            if self.phases[self.progress.phase].phase.steps == self.progress.phase_updates {
                self.progress = Progress {
                    phase: self.progress.phase + 1,
                    phase_updates: 0,
                    epoch: 0,
                    pair: 0,
                    measured: None,
                    ..self.progress
                };
                self.begin_phase();
                self.begin_pass();
                continue; // Its pairs are of another length, and are measured before its first update.
            }
            for _ in 0..self.config.accumulation {
                let queued = self.queue()?;
                self.queued.push_back(queued);
                self.settle(self.backend.steps_ahead(), observer)?;
            }
        }
    }

    /// Trains on the next batch, and waits until it is done.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let queued = self.queue()?;
        self.report(queued)
    }

    /// Asks for the numbers of the oldest steps until no more than `most` are under way.
    fn settle(&mut self, most: usize, observer: &mut dyn Observer) -> anyhow::Result<()> {
        while self.queued.len() > most {
            let queued = self.queued.pop_front().expect("a step");
            let report = self.report(queued)?;
            observer.step(&report);
        }
        Ok(())
    }

    /// Waits for a step's numbers.
    fn report(&mut self, queued: Queued) -> Result<StepReport, TrainError> {
        let Queued { mut report, masked_loss, next_loss, update } = queued;
        report.masked_loss = self.backend.number(masked_loss)?;
        report.next_loss = self.backend.number(next_loss)?;
        self.check_finite(&report)?;
        if let Some((number, norm, learning_rate)) = update {
            let gradient_norm = self.backend.number(norm)?;
            if !gradient_norm.is_finite() {
                return Err(not_finite("gradient norm", report.step, gradient_norm));
            }
            report.update = Some(UpdateReport { number, gradient_norm, learning_rate });
        }
        Ok(report)
    }

    fn check_finite(&self, report: &StepReport) -> Result<(), TrainError> {
        let losses =
            [("loss of masked words", report.masked_loss), ("loss of next sentences", report.next_loss)];
        match losses.into_iter().find(|(_, loss)| !loss.is_finite()) {
            Some((what, loss)) => Err(not_finite(what, report.step, loss)),
            None => Ok(()),
        }
    }

    /// Gives the next batch to the backend.
    fn queue(&mut self) -> Result<Queued, TrainError> {
        if self.progress.pair == self.instances.len() {
            self.progress.epoch += 1;
            self.progress.pair = 0;
            self.begin_pass();
        }
        if self.config.accumulation > 1 && self.summed == 0 {
            let len = self.model.parameters().len();
            self.backend.clear(Span { space: Space::Gradients, offset: 0, len })?;
        }
        let Progress { phase, epoch, pair, step, .. } = self.progress;
        let PhasePrograms { phase: Phase { batch_size, .. }, recorded, .. } = &self.phases[phase];
        let pairs = pair..self.instances.len().min(pair + batch_size);
        let pass = self.pass();
        self.batch.fill(&self.corpora.train, &self.instances[pairs.clone()], self.masking, pass, pair as u32);
        let extents = masked_extents(&self.batch);
        recorded.write(self.backend, &self.batch)?;
        self.backend.run(&recorded.program, &StepScalars { extents, seed: self.seed, step })?;
        let masked_loss = self.backend.keep(recorded.program.span(recorded.masked_loss, &extents))?;
        let next_loss = self.backend.keep(recorded.program.span(recorded.next_loss, &extents))?;
        let mut report = StepReport {
            step,
            phase,
            epoch,
            masked_loss: f32::NAN,
            next_loss: f32::NAN,
            tokens: self.batch.batch.live_tokens(),
            predictions: extents.predictions,
            update: None,
        };
        if self.backend.steps_ahead() == 0 {
            // They are known already, and finite gradients may belong to a loss that is not.
            report.masked_loss = self.backend.number(masked_loss)?;
            report.next_loss = self.backend.number(next_loss)?;
            self.check_finite(&report)?;
        }
        self.progress.step += 1;
        self.progress.pair = pairs.end;
        self.summed += 1;
        let update = if self.summed == self.config.accumulation { Some(self.update()?) } else { None };
        Ok(Queued { report, masked_loss, next_loss, update })
    }

    /// Gives the update to the backend.
    fn update(&mut self) -> Result<(u64, Ticket, f32), TrainError> {
        let learning_rate = self.schedule.learning_rate(self.progress.updates);
        let update = self.progress.updates + 1;
        self.groups.clear();
        self.groups.extend(self.ranges.iter().map(|(range, decays)| Group {
            range: range.clone(),
            learning_rate,
            weight_decay: if *decays { self.config.weight_decay } else { 0.0 },
            update,
            zero_gradient: false,
        }));
        let norm = self.backend.update(&self.optimizer, self.config.clip, &self.groups)?;
        self.summed = 0;
        self.progress.updates = update;
        self.progress.phase_updates += 1;
        Ok((update, norm, learning_rate))
    }

    /// Measures the held-out text; `false` if the observer stopped it midway.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> anyhow::Result<bool> {
        let Some(held_out) = &self.phases[self.progress.phase].held_out else { return Ok(true) };
        observer.measuring(held_out.pairs(), held_out.tokens());
        let updates = self.progress.updates;
        let Some(evaluation) = held_out.measure(updates, self.backend, &|| observer.stop())? else {
            return Ok(false);
        };
        for loss in [evaluation.masked_loss, evaluation.next_loss] {
            if !loss.is_finite() {
                return Err(not_finite("loss of the held-out text", self.progress.step, loss as f32).into());
            }
        }
        self.progress.measured = Some(updates);
        observer.measured(&evaluation);
        Ok(true)
    }

    fn is_evaluation_due(&self) -> bool {
        let Progress { phase, phase_updates, updates, measured, .. } = self.progress;
        let PhasePrograms { phase: Phase { steps, .. }, held_out, .. } = &self.phases[phase];
        let every = self.config.eval_every;
        let due =
            phase_updates == 0 || phase_updates == *steps || (every > 0 && updates.is_multiple_of(every));
        held_out.is_some() && due && measured != Some(updates)
    }

    fn is_checkpoint_due(&self) -> bool {
        let Progress { phase, phase_updates, updates, .. } = self.progress;
        let every = self.config.checkpoint_every;
        let ends = phase_updates == self.phases[phase].phase.steps;
        phase_updates > 0 && (ends || (every > 0 && updates.is_multiple_of(every)))
    }

    fn begin_phase(&mut self) {
        let Phase { max_length, batch_size, .. } = self.phases[self.progress.phase].phase;
        self.batch = MaskedBatch::with_capacity(batch_size, max_length, self.backend.line());
    }

    /// Draws the pairs of the pass in progress.
    fn begin_pass(&mut self) {
        let max_length = self.phases[self.progress.phase].phase.max_length;
        let short = self.config.short_sequences;
        self.instances = Instance::draw(&self.corpora.train, self.pass(), max_length, short);
    }

    fn pass(&self) -> Pass {
        Pass { seed: self.seed, phase: self.progress.phase as u32, epoch: self.progress.epoch }
    }
}

/// Refuses sequences that are longer than the model's position table.
pub(super) fn check_lengths(config: &PretrainConfig, model: &PretrainingModel) -> Result<(), TrainError> {
    let positions = model.config().max_position_embeddings;
    match config.phases.iter().find(|phase| phase.max_length > positions) {
        Some(phase) => Err(TrainError::PhaseTooLong { length: phase.max_length, positions }),
        None => Ok(()),
    }
}

fn not_finite(what: &'static str, step: u32, value: f32) -> TrainError {
    TrainError::NotFinite { what, task: "pre-training".into(), step, value }
}
