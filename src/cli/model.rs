//! A model directory, read and ready to run.

use std::path::Path;

use anyhow::bail;
use mtdnn_raw::backend::{Backend, Sizes};
use mtdnn_raw::data::Tokenizer;
use mtdnn_raw::nn::{Model, Recorded, directory};
use mtdnn_raw::tensor::{Space, Span};

use super::device::DeviceArgs;
use super::{Usage, named_twice, unknown_task};

/// A model with its parameters on a backend.
pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    /// The longest sequence it is fed with.
    pub(super) max_length: usize,
    /// Parameters that the directory does not have.
    pub(super) initialised: Vec<String>,
    pub(super) backend: Box<dyn Backend>,
}

impl Loaded {
    /// A model with its tasks, all of whose parameters must be there.
    pub(super) fn with_tasks(path: &Path, device: &DeviceArgs) -> anyhow::Result<Self> {
        let description = directory::require_description(path)?;
        let (config, tokenizer) = directory::read_encoder(path)?;
        let model = Model::new(&config, &description.tasks);
        Self::read(path, device, model, tokenizer, description.max_length, true)
    }

    /// An encoder, with or without tasks; it may lack a pooler.
    pub(super) fn encoder(path: &Path, device: &DeviceArgs) -> anyhow::Result<Self> {
        let (config, tokenizer) = directory::read_encoder(path)?;
        let model = Model::new(&config, &[]);
        Self::read(path, device, model, tokenizer, config.max_position_embeddings, false)
    }

    fn read(
        path: &Path,
        device: &DeviceArgs,
        model: Model,
        tokenizer: Tokenizer,
        max_length: usize,
        all: bool,
    ) -> anyhow::Result<Self> {
        let (parameters, tokens) = (model.parameters().count(), tokenizer.vocab_size());
        let rows = model.config().vocab_size;
        eprintln!("reading {}: {parameters} parameters, {tokens} tokens in {rows} rows", path.display());
        if let Some(doubt) = directory::doubtful_vocabulary(model.config(), &tokenizer) {
            eprintln!("warning: {doubt}");
        }
        let mut values = vec![0.0f32; model.parameters().len()];
        let loaded = directory::load_parameters(path, &model, 0, all, &mut values)?;
        let unexpected =
            loaded.report.unexpected.iter().filter(|name| all || !name.starts_with("heads.")).count();
        if unexpected > 0 {
            eprintln!("{}", loaded.report);
        }
        let mut backend = device.backend()?;
        let model = model.with_precision(backend.precision());
        backend.reserve(&Sizes { parameters: values.len(), arena: 0, training: false })?;
        let span = Span { space: Space::Parameters, offset: 0, len: values.len() };
        backend.write(span, bytemuck::cast_slice(&values))?;
        let max_length = max_length.min(model.config().max_position_embeddings);
        if max_length < 4 {
            bail!("{}: sequences of {max_length} tokens hold no text; 4 is the least", path.display());
        }
        Ok(Self { model, tokenizer, max_length, initialised: loaded.initialised, backend })
    }

    /// Makes room for a program.
    pub(super) fn reserve(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        let (parameters, arena) = (self.model.parameters().len(), recorded.program.arena_len());
        Ok(self.backend.reserve(&Sizes { parameters, arena, training: false })?)
    }

    /// The numbers of the tasks that a flag names.
    pub(super) fn find(&self, flag: &str, names: &[String]) -> Result<Vec<usize>, Usage> {
        let known = self.model.tasks().iter().map(|task| task.name.as_str());
        let mut found = Vec::new();
        for name in names.iter().map(|name| name.trim()) {
            let task = known.clone().position(|known| known == name);
            let task = task.ok_or_else(|| unknown_task(flag, name, "a task of the model", known.clone()))?;
            if found.contains(&task) {
                return Err(named_twice(flag, name));
            }
            found.push(task);
        }
        Ok(found)
    }
}
