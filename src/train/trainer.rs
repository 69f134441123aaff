//! The training loop: Algorithm 1 of Liu et al. 2019, or another mix of tasks, over planned programs.
//!
//! A step is: pick a task and its examples, write the batch, run the task's program, update the encoder and
//! the task's head. Nothing in a step allocates, and nothing in here reads a clock or a terminal: what
//! happens is told to an observer.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::config::{EvalEvery, OtherHeads, TrainConfig};
use super::coverage::check_every_parameter_is_trained;
use super::error::TrainError;
use super::error::with_what_fits;
use super::evaluate::{Evaluation, Predictor, evaluation_capacity, measure, training_capacity};
use super::groups::{Part, idle};
use super::masked;
use super::mix;
use super::schedule::Schedule;
use crate::backend::{Backend, Group, Optimizer, Sizes, StepScalars, Ticket};
use crate::data::masked::hiding;
use crate::data::masking::Predictions;
use crate::data::sampler::{Epoch, Sampler};
use crate::data::{Batch, Capacity, Dataset, MetricKind};
use crate::nn::{Model, Recorded, extents};
use crate::tensor::{Program, Space, Span};

/// A task's sets as token ids.
#[derive(Clone, Debug)]
pub struct TaskData {
    /// Trained on; empty for a task that is only measured.
    pub train: Dataset,
    /// Measured on: each set's name and examples.
    pub dev: Vec<(String, Dataset)>,
}

/// Where a run stands: with the parameters and moments, all that going on exactly needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The epoch in progress, from 0.
    pub epoch: u32,
    /// The next batch of the epoch.
    pub batch: usize,
    /// Batches run so far in the whole run: the counter of every draw.
    pub step: u32,
    /// Updates made so far: what drives the learning rate.
    pub updates: u64,
    /// Updates of the encoder, of each head, and of the pooler where it is updated by itself: for the bias correction of
    /// their moments.
    pub group_updates: Vec<u64>,
    /// The best mean of the tasks' main metrics.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub evaluations_since_best: u32,
    /// Whether the dev sets are to be measured before the next batch.
    pub evaluation_due: bool,
    /// Whether nothing is left to do.
    pub finished: bool,
}

/// The best evaluation so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The mean of the tasks' main metrics.
    pub mean: f64,
    /// The update after which it was measured.
    pub updates: u64,
}

/// One batch trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The number of the batch in the run, from 0.
    pub step: u32,
    /// The epoch, from 0.
    pub epoch: u32,
    /// The task's number.
    pub task: usize,
    /// The mean loss of the batch.
    pub loss: f32,
    /// The size of the batch.
    pub tokens: usize,
    /// Examples in the batch.
    pub examples: usize,
    /// What the update that ended the step did; none while gradients are being summed.
    pub update: Option<UpdateReport>,
}

/// One update of the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// The number of the update, from 1.
    pub number: u64,
    /// The global gradient norm before clipping.
    pub gradient_norm: f32,
    /// The learning rate of this update.
    pub learning_rate: f32,
}

/// A step that the backend has been given and may not have finished.
struct Queued {
    step: u32,
    epoch: u32,
    task: usize,
    tokens: usize,
    examples: usize,
    loss: Ticket,
    /// The update's number, the gradient's norm and the learning rate.
    update: Option<(u64, Ticket, f32)>,
}

/// Told what happens; decides nothing but when to stop.
pub trait Observer {
    /// After each batch. `progress` may be some batches ahead of the report.
    fn step(&mut self, progress: &Progress, report: &StepReport) -> anyhow::Result<()>;
    /// Before a dev set is measured, which may take a while.
    fn measuring(&mut self, _task: usize, _set: &str, _examples: &Dataset) {}
    /// After each measuring of the dev sets, in the order of the tasks.
    fn evaluated(&mut self, progress: &Progress, evaluations: &[Evaluation], mean: f64)
    -> anyhow::Result<()>;
    /// The parameters are the best so far.
    fn best(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()>;
    /// A checkpoint is due.
    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()>;
    /// Whether to stop now.
    fn stop(&self) -> bool;
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All epochs, or all steps that were asked for, are done.
    Complete,
    /// The dev sets have not improved for as many evaluations as were allowed.
    Patience,
    /// The observer asked for it; the checkpoint that it was given goes on from here.
    Stopped,
}

/// Trains one model on its tasks.
pub struct Trainer<'a> {
    config: TrainConfig,
    optimizer: Optimizer,
    seed: u64,
    model: &'a Model,
    data: &'a [TaskData],
    /// The data of each trained task by its number in the sampler.
    trained: Vec<usize>,
    backend: &'a mut dyn Backend,
    reserved: Sizes,
    steps: Vec<Recorded>,
    evaluations: Vec<Option<Recorded>>,
    sampler: Sampler<'a>,
    schedule: Schedule,
    epoch: Epoch,
    batch: Batch,
    /// For the memory of what is hidden.
    predictions: Predictions,
    parts: Vec<Part>,
    groups: Vec<Group>,
    /// The tasks of the batches whose gradients are being summed.
    window: Vec<usize>,
    /// Steps whose numbers have not been asked for, the oldest first.
    queued: VecDeque<Queued>,
    progress: Progress,
}

impl<'a> Trainer<'a> {
    /// Records and plans every task's programs and reserves the backend's memory.
    ///
    /// The parameters are then to be written to the backend: [`Trainer::backend`].
    pub fn new(
        config: &TrainConfig,
        seed: u64,
        model: &'a Model,
        data: &'a [TaskData],
        backend: &'a mut dyn Backend,
    ) -> Result<Self, TrainError> {
        let positions = model.config().max_position_embeddings;
        for (task, sets) in model.tasks().iter().zip(data) {
            let lengths = sets.dev.iter().map(|(_, set)| set.longest()).chain([sets.train.longest()]);
            let length = lengths.max().unwrap_or(0);
            if length > positions {
                return Err(TrainError::TooLong { task: task.name.clone(), length, positions });
            }
            if sets.train.is_empty() && task.shares.is_none() {
                return Err(TrainError::Empty { task: task.name.clone() });
            }
        }
        let (trained, sampler) = mix::sampler(config, seed, model.tasks(), data)?;
        let scale = 1.0 / config.accumulation as f32;
        let line = backend.line();
        let steps: Vec<Recorded> = trained
            .iter()
            .zip(sampler.sets())
            .map(|(&task, (set, batching))| {
                let capacity = training_capacity(set, batching, line);
                model.training(task, capacity, scale, config.accumulation > 1)
            })
            .collect();
        let evaluations: Vec<Option<Recorded>> = data
            .iter()
            .enumerate()
            .map(|(task, sets)| {
                let capacity = evaluation_capacity(sets.dev.iter().map(|(_, set)| set), line);
                (!sets.dev.is_empty()).then(|| model.evaluation(task, capacity))
            })
            .collect();
        let programs = steps.iter().map(|step| &step.program);
        check_every_parameter_is_trained(model.parameters(), &idle(model), programs)?;
        let arena = steps.iter().chain(evaluations.iter().flatten()).map(|r| r.program.arena_len()).max();
        let parameters = model.parameters().len();
        let reserved = Sizes { parameters, arena: arena.unwrap_or(0), training: true };
        let capacities = sampler.sets().map(|(set, batching)| Capacity::of(set, batching, line));
        let capacity = capacities.reduce(Capacity::max).unwrap_or_default();
        backend.reserve(&reserved).map_err(|error| with_what_fits(error, &reserved, capacity.groups))?;

        let schedule = Schedule {
            kind: config.schedule,
            warmup: config.warmup,
            total: mix::total_updates(config, &sampler),
            peak: config.learning_rate,
        };
        let parts = Part::all(model, config.weight_decay, config.optimizer.per_tensor());
        let most = parts.iter().map(|part| part.number).max().unwrap_or(0).max(data.len());
        Ok(Self {
            optimizer: Optimizer::new(config.optimizer),
            epoch: sampler.epoch(0),
            progress: Progress { group_updates: vec![0; most + 1], ..Progress::default() },
            groups: Vec::with_capacity(parts.iter().map(|part| part.ranges.len()).sum()),
            parts,
            window: Vec::with_capacity(config.accumulation as usize),
            queued: VecDeque::with_capacity(backend.steps_ahead() + 1),
            batch: Batch::with_capacity(capacity, line),
            predictions: Predictions::with_capacity(positions),
            config: config.clone(),
            seed,
            model,
            data,
            trained,
            backend,
            reserved,
            steps,
            evaluations,
            sampler,
            schedule,
        })
    }

    /// Where the run stands.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Goes on from a saved place; the parameters and moments are to be written to the backend as well.
    pub fn resume(&mut self, progress: Progress) {
        self.epoch = self.sampler.epoch(progress.epoch);
        self.progress = progress;
    }

    /// The backend, to write and read parameters and moments.
    pub fn backend(&mut self) -> &mut dyn Backend {
        self.backend
    }

    /// The model.
    pub fn model(&self) -> &'a Model {
        self.model
    }

    /// The training program of a task, to print.
    pub fn programs(&self) -> impl Iterator<Item = (usize, &Program)> {
        self.trained.iter().zip(&self.steps).map(|(&task, recorded)| (task, &recorded.program))
    }

    /// Whether the pooler stays as it is, because no head reads it.
    pub fn leaves_pooler(&self) -> bool {
        !idle(self.model).is_empty()
    }

    /// The memory that was reserved.
    pub fn sizes(&self) -> Sizes {
        self.reserved
    }

    /// Updates of the whole run.
    pub fn total_updates(&self) -> u64 {
        self.schedule.total
    }

    /// What draws the batches; its tasks are those that are trained.
    pub fn sampler(&self) -> &Sampler<'a> {
        &self.sampler
    }

    /// Trains to the end, or until the observer stops it.
    pub fn run(&mut self, observer: &mut dyn Observer) -> anyhow::Result<Ending> {
        while !self.progress.finished {
            if self.window.is_empty() && observer.stop() {
                self.settle(0, observer)?;
                observer.checkpoint(self)?;
                return Ok(Ending::Stopped);
            }
            if !self.progress.evaluation_due {
                let queued = self.queue()?;
                self.queued.push_back(queued);
                self.settle(self.backend.steps_ahead(), observer)?;
                if !self.window.is_empty() {
                    continue;
                }
                self.progress.evaluation_due = self.is_evaluation_due();
            }
            if self.progress.evaluation_due {
                self.settle(0, observer)?;
            }
            if self.progress.evaluation_due && !self.evaluate(observer)? {
                // The batch is trained; resuming measures again from here.
                observer.checkpoint(self)?;
                return Ok(Ending::Stopped);
            }
            let whole_epoch = self.progress.batch == self.epoch.len();
            if whole_epoch {
                self.progress.epoch += 1;
                self.progress.batch = 0;
                self.epoch = self.sampler.epoch(self.progress.epoch);
            }
            let TrainConfig { patience, checkpoint_every, .. } = self.config;
            let complete = self.progress.updates >= self.schedule.total;
            let impatient = patience > 0 && self.progress.evaluations_since_best >= patience;
            self.progress.finished = complete || impatient;
            let checkpoint_due =
                checkpoint_every > 0 && self.progress.updates.is_multiple_of(checkpoint_every);
            let epoch_due = whole_epoch && self.config.eval != EvalEvery::End;
            if self.progress.finished || epoch_due || checkpoint_due {
                self.settle(0, observer)?;
                observer.checkpoint(self)?;
            }
            if impatient && !complete {
                return Ok(Ending::Patience);
            }
        }
        Ok(Ending::Complete)
    }

    /// Trains on the next batch of the epoch, and waits until it is done.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let queued = self.queue()?;
        self.report(queued)
    }

    /// Asks for the numbers of the oldest steps until no more than `most` are under way.
    fn settle(&mut self, most: usize, observer: &mut dyn Observer) -> anyhow::Result<()> {
        while self.queued.len() > most {
            let queued = self.queued.pop_front().expect("a step");
            let report = self.report(queued)?;
            observer.step(&self.progress, &report)?;
        }
        Ok(())
    }

    /// Waits for a step's numbers.
    fn report(&mut self, queued: Queued) -> Result<StepReport, TrainError> {
        let Queued { step, epoch, task, tokens, examples, loss, update } = queued;
        let loss = self.backend.number(loss)?;
        if !loss.is_finite() {
            self.take_back(&update);
            return Err(self.not_finite("loss", task, step, loss));
        }
        let update = match update {
            None => None,
            Some((number, norm, learning_rate)) => {
                let gradient_norm = self.backend.number(norm)?;
                if !gradient_norm.is_finite() {
                    self.take_back(&update);
                    return Err(self.not_finite("gradient norm", task, step, gradient_norm));
                }
                Some(UpdateReport { number, gradient_norm, learning_rate })
            }
        };
        Ok(StepReport { step, epoch, task, loss, tokens, examples, update })
    }

    /// Counts an update, and those queued after it, as not made: from a gradient that is not finite none is.
    fn take_back(&mut self, update: &Option<(u64, Ticket, f32)>) {
        if let Some((number, ..)) = update {
            self.progress.updates = number - 1;
        }
    }

    /// Gives the next batch of the epoch to the backend.
    fn queue(&mut self) -> Result<Queued, TrainError> {
        let (trained, examples) = self.epoch.batch(self.progress.batch);
        let task = self.trained[trained];
        if self.config.accumulation > 1 && self.window.is_empty() {
            let len = self.model.parameters().len();
            self.backend.clear(Span { space: Space::Gradients, offset: 0, len })?;
        }
        let train = &self.data[task].train;
        self.batch.fill(train, examples);
        if let Some(masking) = &train.masking {
            self.batch.hide(masking, &mut hiding(self.seed, self.progress.step), &mut self.predictions);
        }
        let recorded = &self.steps[trained];
        let extents = extents(&self.batch);
        recorded.write(self.backend, &self.batch)?;
        let scalars = StepScalars { extents, seed: self.seed, step: self.progress.step };
        self.backend.run(&recorded.program, &scalars)?;
        let loss = self.backend.keep(recorded.program.span(recorded.outputs[0], &extents))?;
        if self.backend.steps_ahead() == 0 {
            // It is known already, and finite gradients may belong to a loss that is not.
            let value = self.backend.number(loss)?;
            if !value.is_finite() {
                return Err(self.not_finite("loss", task, self.progress.step, value));
            }
        }
        self.window.push(task);
        let epoch_ends = self.progress.batch + 1 == self.epoch.len();
        let update = match self.window.len() == self.config.accumulation as usize || epoch_ends {
            true => Some(self.update()?),
            false => None,
        };
        let Progress { step, epoch, .. } = self.progress;
        self.progress.step += 1;
        self.progress.batch += 1;
        let tokens = self.batch.live_tokens();
        Ok(Queued { step, epoch, task, tokens, examples: extents.groups, loss, update })
    }

    /// Gives the update of the encoder and the heads of the batches since the last update to the backend.
    fn update(&mut self) -> Result<(u64, Ticket, f32), TrainError> {
        let learning_rate = self.schedule.learning_rate(self.progress.updates);
        self.groups.clear();
        for part in &self.parts {
            let own = part.is_trained_by(&self.window);
            let earlier = self.progress.group_updates[part.number];
            let zero_gradient = match self.config.other_heads {
                _ if own => false,
                OtherHeads::ZeroGradient if earlier > 0 => true,
                OtherHeads::ZeroGradient | OtherHeads::Skip => continue,
            };
            for (range, decays) in &part.ranges {
                self.groups.push(Group {
                    range: range.clone(),
                    learning_rate,
                    weight_decay: if *decays { self.config.weight_decay } else { 0.0 },
                    update: earlier + 1,
                    zero_gradient,
                });
            }
        }
        let norm = self.backend.update(&self.optimizer, self.config.clip, &self.groups)?;
        for part in &self.parts {
            let updates = &mut self.progress.group_updates[part.number];
            let own = part.is_trained_by(&self.window);
            if own || (self.config.other_heads == OtherHeads::ZeroGradient && *updates > 0) {
                *updates += 1;
            }
        }
        self.window.clear();
        self.progress.updates += 1;
        Ok((self.progress.updates, norm, learning_rate))
    }

    /// Measures every dev set; `false` if the observer stopped it midway.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> anyhow::Result<bool> {
        let mut evaluations = Vec::new();
        for (task, sets) in self.data.iter().enumerate() {
            if self.evaluations[task].is_none() {
                continue;
            }
            for (split, dataset) in &sets.dev {
                observer.measuring(task, split, dataset);
                let Some(metrics) = self.figures(task, dataset, &|| observer.stop())? else {
                    return Ok(false);
                };
                let (split, examples) = (split.clone(), dataset.len());
                evaluations.push(Evaluation { task, split, examples, metrics, steps: Vec::new() });
            }
        }
        let mean = mean_of_main_metrics(&evaluations);
        self.progress.evaluation_due = false;
        observer.evaluated(&self.progress, &evaluations, mean)?;
        if self.progress.best.as_ref().is_none_or(|best| mean > best.mean) {
            self.progress.best = Some(Best { mean, updates: self.progress.updates });
            self.progress.evaluations_since_best = 0;
            observer.best(self)?;
        } else {
            self.progress.evaluations_since_best += 1;
        }
        Ok(true)
    }

    /// The metrics of a dev set; `None` where `stop` says so.
    fn figures(
        &mut self,
        task: usize,
        dataset: &Dataset,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<(MetricKind, f64)>>, TrainError> {
        let recorded = self.evaluations[task].as_ref().expect("a task with dev sets");
        let spec = &self.model.tasks()[task];
        let (metrics, odd) = if spec.masked.is_some() {
            let Some(metrics) = masked::measure(spec, dataset, recorded, self.backend, stop)? else {
                return Ok(None);
            };
            let odd = metrics.iter().map(|&(_, value)| value as f32).find(|value| !value.is_finite());
            (metrics, odd)
        } else {
            let mut predictor = Predictor::new(self.model, &[task], recorded, self.backend);
            let Some(logits) = predictor.logits(dataset, stop)? else { return Ok(None) };
            let odd = logits[0].iter().copied().find(|logit| !logit.is_finite());
            (measure(spec, dataset, &logits[0]), odd)
        };
        match odd {
            Some(value) => Err(self.not_finite("answer to a dev example", task, self.progress.step, value)),
            None => Ok(Some(metrics)),
        }
    }

    fn is_evaluation_due(&self) -> bool {
        if self.evaluations.iter().all(Option::is_none) {
            return false;
        }
        let complete = self.progress.updates >= self.schedule.total;
        let ends = self.progress.batch == self.epoch.len() || complete;
        match self.config.eval {
            EvalEvery::Never => false,
            EvalEvery::End => complete,
            EvalEvery::Epoch => ends,
            EvalEvery::Steps(every) => ends || self.progress.updates.is_multiple_of(every),
        }
    }

    fn not_finite(&self, what: &'static str, task: usize, step: u32, value: f32) -> TrainError {
        let task = self.model.tasks()[task].name.clone();
        TrainError::NotFinite { what, task, step, value }
    }
}

/// The mean over tasks of the main metric, itself the mean over the task's dev sets; 0 without dev sets.
pub fn mean_of_main_metrics(evaluations: &[Evaluation]) -> f64 {
    let mut tasks: Vec<(usize, f64, f64)> = Vec::new();
    for evaluation in evaluations {
        let main = evaluation.metrics[0].1;
        match tasks.iter_mut().find(|(task, ..)| *task == evaluation.task) {
            Some((_, sum, count)) => (*sum, *count) = (*sum + main, *count + 1.0),
            None => tasks.push((evaluation.task, main, 1.0)),
        }
    }
    let means: f64 = tasks.iter().map(|(_, sum, count)| sum / count).sum();
    if tasks.is_empty() { 0.0 } else { means / tasks.len() as f64 }
}
