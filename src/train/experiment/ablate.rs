//! BERT, ST-DNN, and MT-DNN without and with fine-tuning: what the heads are worth, and what the other tasks are (Liu et
//! al. 2019, tables 2 and 3, and section 5.4).

use std::path::Path;

use super::config::Variant;
use super::{RunResult, SubRun, finetune, merge, model_of, plain, sub_run};
use crate::data::TaskEntry;
use crate::train::config::RunConfig;

/// The runs of the ablation, and which of them make which row.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which they must be done: a multi-task run before the runs that start from it.
    pub runs: Vec<SubRun>,
    /// The rows, in the table's order.
    pub rows: Vec<Row>,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is called.
    pub title: String,
    /// Which variant it is.
    pub variant: Variant,
    /// For each seed the runs (numbers in the plan) that its figures come from: one a task, or one for all.
    pub runs: Vec<Vec<usize>>,
}

/// The tasks of the table.
fn targets(config: &RunConfig) -> impl Iterator<Item = &TaskEntry> {
    let named = config.ablate.targets.as_ref();
    config.tasks.iter().filter(move |entry| named.is_none_or(|named| named.contains(&entry.name)))
}

/// Whether BERT's heads and the run file's are the same, so that two rows would be.
pub fn bert_is_st_dnn(config: &RunConfig) -> bool {
    targets(config).all(|entry| plain(entry) == *entry)
}

/// Plans the ablation; all runs of one seed come before those of the next.
///
/// # Errors
/// As [`check`](super::check); or if the working directory is gone.
pub fn plan(config: &RunConfig, output: &Path, seeds: &[u64]) -> anyhow::Result<Plan> {
    super::check(config, "ablate")?;
    let wanted = |variant: Variant| config.ablate.variants.contains(&variant);
    let same = bert_is_st_dnn(config) && wanted(Variant::Bert) && wanted(Variant::StDnn);
    let mut runs: Vec<SubRun> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    for variant in Variant::ALL.into_iter().filter(|&variant| wanted(variant)) {
        if !(same && variant == Variant::StDnn) {
            let title = if same && variant == Variant::Bert { "BERT, ST-DNN" } else { variant.title() };
            rows.push(Row { title: title.into(), variant, runs: Vec::new() });
        }
    }
    // What an encoder was trained on before is no part of an ablation but its encoder.
    let new_heads = config.model.init.is_some();
    for &seed in seeds {
        let multi = (wanted(Variant::MtDnn) || wanted(Variant::MtDnnNoFt)).then(|| {
            let name = format!("mt-dnn-seed{seed}");
            let mut run =
                sub_run(config, output, name, "all tasks, MT-DNN".into(), seed, config.tasks.clone());
            run.config.model.new_heads = new_heads;
            run.needed = wanted(Variant::MtDnn);
            runs.push(run);
            runs.len() - 1
        });
        for row in &mut rows {
            let mut of_seed = Vec::new();
            match (row.variant, multi) {
                (Variant::MtDnnNoFt, Some(multi)) => of_seed.push(multi),
                (Variant::MtDnn, Some(multi)) => {
                    let model = model_of(&runs[multi].config.output);
                    for entry in targets(config) {
                        of_seed.push(runs.len());
                        runs.push(finetune::one(config, output, seed, entry, &model)?);
                    }
                }
                (variant, _) => {
                    for entry in targets(config) {
                        let (short, entry) = match variant {
                            Variant::Bert => ("bert", plain(entry)),
                            _ => ("st-dnn", entry.clone()),
                        };
                        let (name, kind) = (
                            format!("{short}-{}-seed{seed}", entry.name),
                            format!("{}, {}", entry.name, row.title),
                        );
                        let mut run = sub_run(config, output, name, kind, seed, vec![entry]);
                        run.config.model.new_heads = new_heads;
                        of_seed.push(runs.len());
                        runs.push(run);
                    }
                }
            }
            row.runs.push(of_seed);
        }
    }
    Ok(Plan { runs, rows })
}

impl Plan {
    /// A row's figures: for each seed those of the table's tasks, as one result.
    pub fn results_of(&self, row: &Row, config: &RunConfig, results: &[RunResult]) -> Vec<RunResult> {
        let of_seed = |runs: &Vec<usize>| {
            let mut merged = merge(&runs.iter().map(|&run| &results[run]).collect::<Vec<_>>());
            let sets = std::mem::take(&mut merged.sets);
            merged.sets = targets(config)
                .flat_map(|entry| sets.iter().filter(|set| set.task == entry.name).cloned())
                .collect();
            merged
        };
        row.runs.iter().map(of_seed).collect()
    }
}
