//! A run for each task from the encoder of an MT-DNN model: the second half of the paper's recipe (Liu et al. 2019,
//! section 5.2: "MT-DNN" is fine-tuned on each task, "MT-DNN no fine-tuning" is not).

use std::path::Path;

use super::config::FinetuneConfig;
use super::{SubRun, start_from, sub_run};
use crate::data::TaskEntry;
use crate::train::config::RunConfig;

/// A run on each of the tasks of `config` at each seed, from `model`; the seeds come last, so that all tasks of one seed
/// are done first.
///
/// # Errors
/// If the working directory is gone, which a path in it would need.
pub fn plan(config: &RunConfig, output: &Path, seeds: &[u64], model: &Path) -> anyhow::Result<Vec<SubRun>> {
    let mut plan = Vec::new();
    for &seed in seeds {
        for entry in &config.tasks {
            plan.push(one(config, output, seed, entry, model)?);
        }
    }
    Ok(plan)
}

/// The fine-tuning of one task at one seed.
pub(super) fn one(
    config: &RunConfig,
    output: &Path,
    seed: u64,
    entry: &TaskEntry,
    model: &Path,
) -> anyhow::Result<SubRun> {
    let FinetuneConfig { epochs, learning_rate, tasks, .. } = &config.finetune;
    let (name, kind) = (format!("finetune-{}-seed{seed}", entry.name), format!("{}, fine-tuned", entry.name));
    let mut run = sub_run(config, output, name, kind, seed, vec![entry.clone()]);
    let train = &mut run.config.train;
    let own = tasks.get(&entry.name).cloned().unwrap_or_default();
    train.epochs = own.epochs.or(*epochs).unwrap_or(train.epochs);
    train.learning_rate = own.learning_rate.or(*learning_rate).unwrap_or(train.learning_rate);
    start_from(&mut run, model, config.model.new_heads)?;
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::experiment::config::TaskRecipe;

    #[test]
    fn a_task_has_its_own_recipe_then_the_table_s_then_train_s() {
        let entry = |name: &str| TaskEntry { name: name.into(), ..TaskEntry::default() };
        let mut config = RunConfig { tasks: vec![entry("rte"), entry("cola")], ..RunConfig::default() };
        config.train.epochs = 9;
        config.train.learning_rate = 1e-4;
        let recipe = |config: &RunConfig| {
            let plan = plan(config, Path::new("out"), &[3, 4], Path::new("model")).unwrap();
            let names: Vec<&str> = plan.iter().map(|run| run.name.as_str()).collect();
            assert_eq!(
                names,
                ["finetune-rte-seed3", "finetune-cola-seed3", "finetune-rte-seed4", "finetune-cola-seed4"]
            );
            assert!(plan.iter().all(|run| run.config.model.init.as_ref().unwrap().ends_with("model")));
            [0, 1].map(|run| (plan[run].config.train.epochs, plan[run].config.train.learning_rate))
        };
        assert_eq!(recipe(&config), [(9, 1e-4), (9, 1e-4)]);
        config.finetune.epochs = Some(2);
        config.finetune.learning_rate = Some(5e-5);
        assert_eq!(recipe(&config), [(2, 5e-5), (2, 5e-5)]);
        let own = TaskRecipe { epochs: Some(7), learning_rate: Some(1e-5) };
        config.finetune.tasks.insert("rte".into(), own);
        assert_eq!(recipe(&config), [(7, 1e-5), (2, 5e-5)]);
    }
}
