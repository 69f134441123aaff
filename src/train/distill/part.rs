//! One run of an experiment: trained once, gone on with where it was stopped, and not trained again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::train::config::RunConfig;
use crate::train::evaluate::Evaluation;
use crate::train::monitor::{Event, Monitor};
use crate::train::run;
use crate::train::settings::{CONFIG, check_output, replace_file};
use crate::train::store::{BEST, LAST};
use crate::train::trainer::Ending;

/// What says that a run is finished, in its directory.
const RESULT: &str = "result.json";

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    /// The figures of its best evaluation.
    pub evaluations: Vec<Evaluation>,
    /// The model that they are of: `best`, or `last` where nothing was measured.
    model: String,
}

impl Finished {
    /// The model's directory.
    pub fn model(&self, run: &Path) -> PathBuf {
        run.join(&self.model)
    }
}

/// Trains what `config` says into `config.output`, unless that was done before; `None` if the monitor stopped it.
///
/// # Errors
/// As [`run::run`]; and a directory whose run has other settings.
pub(super) fn train(
    title: &str,
    config: &RunConfig,
    cache: Option<&Path>,
    now: SystemTime,
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<Finished>> {
    let directory = &config.output;
    let result = directory.join(RESULT);
    if let Ok(text) = fs::read_to_string(&result) {
        check_output(directory, config, true)?;
        let finished = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged; delete it, and the run is measured again", result.display())
        })?;
        monitor.tell(Event::Note(&format!("{title}: {} is finished", directory.display())));
        return Ok(Some(finished));
    }
    monitor.tell(Event::Note(&format!("{title}: {}", directory.display())));
    let resume = directory.join(CONFIG).exists();
    let outcome = run::run(config, resume, cache, now, backend, monitor)?;
    if matches!(outcome.ending, None | Some(Ending::Stopped)) {
        return Ok(None);
    }
    let model = if outcome.best().is_some() { BEST } else { LAST }.to_string();
    let evaluations = outcome.results.into_iter().map(|result| result.evaluation).collect();
    let finished = Finished { evaluations, model };
    replace_file(&result, &format!("{}\n", serde_json::to_string_pretty(&finished)?))?;
    Ok(Some(finished))
}
