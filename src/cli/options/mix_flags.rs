//! The flags of `[train.mix]`.

use clap::Args;
use mtdnn_raw::train::mix::{MixConfig, MixKind};

use super::super::{Usage, named_twice};
use super::{named, set_some};

/// `--mix` for the kind in the run file's `[train.mix]`, and a flag for each other key of it.
#[derive(Args, Debug, Default)]
pub(super) struct MixFlags {
    /// How the tasks are mixed: algorithm-1, proportional, square-root, temperature, annealed, uniform, weights, ratio,
    /// main-last or every; in place of all that the run file says of it. [default: algorithm-1]
    #[arg(long = "mix", value_name = "KIND", value_parser = named::<MixKind>)]
    kind: Option<MixKind>,

    /// The main task of ratio, main-last and every. [default: the first]
    #[arg(long = "mix-main", value_name = "TASK")]
    main: Option<String>,

    /// Batches of other tasks for each of the main task, with --mix ratio.
    #[arg(long = "mix-ratio", value_name = "X", allow_negative_numbers = true)]
    ratio: Option<f64>,

    /// Of how many batches one is the main task's, with --mix every.
    #[arg(long = "mix-every", value_name = "N")]
    every: Option<u32>,

    /// How evenly tasks are drawn, with --mix temperature: 1 is proportional.
    #[arg(long = "mix-temperature", value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,

    /// Examples of a task that count at most, with --mix temperature.
    #[arg(long = "mix-cap", value_name = "N")]
    cap: Option<usize>,

    /// Batches of an epoch of the kinds that draw tasks. [default: as many as one pass over all tasks has]
    #[arg(long = "mix-batches-per-epoch", value_name = "N")]
    batches_per_epoch: Option<usize>,

    /// How often each task is drawn, with --mix weights.
    #[arg(long = "mix-weights", value_delimiter = ',', value_name = "TASK=X,...", value_parser = weight)]
    weights: Option<Vec<(String, f64)>>,
}

impl MixFlags {
    pub(super) fn apply(&self, mix: &mut MixConfig) -> Result<(), Usage> {
        if let Some(kind) = self.kind {
            *mix = MixConfig { kind, ..MixConfig::default() };
        }
        let Self { main, ratio, every, temperature, cap, batches_per_epoch, weights, .. } = self;
        set_some(&mut mix.main, main);
        set_some(&mut mix.ratio, ratio);
        set_some(&mut mix.every, every);
        set_some(&mut mix.temperature, temperature);
        set_some(&mut mix.cap, cap);
        set_some(&mut mix.batches_per_epoch, batches_per_epoch);
        if let Some(weights) = weights {
            mix.weights.clear();
            for (task, weight) in weights {
                if mix.weights.insert(task.clone(), *weight).is_some() {
                    return Err(named_twice("--mix-weights", task));
                }
            }
        }
        Ok(())
    }
}

/// `rte=0.5`.
fn weight(text: &str) -> Result<(String, f64), String> {
    let (task, weight) = text.split_once('=').ok_or("not TASK=X, a task and its weight")?;
    let weight = weight.trim().parse().map_err(|_| format!("{weight:?} is not a number"))?;
    Ok((task.trim().to_string(), weight))
}
