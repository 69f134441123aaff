//! `finetune`: each task by itself, from the encoder of an MT-DNN model.

use std::path::PathBuf;

use clap::Args;
use mtdnn_raw::train::experiment::measure::measure;
use mtdnn_raw::train::experiment::seeds::{self, Difference, Spread};
use mtdnn_raw::train::experiment::{RunResult, finetune, merge};
use serde_json::json;

use super::experiment::chart::dots;
use super::experiment::report::{Part, Report};
use super::experiment::{
    ExperimentFlags, Setting, column, interval, named_tasks, points, spread, task_names, verdict,
};
use super::options::RunArgs;
use super::seeds::dots_of;
use super::{Exit, Usage, cache_directory, unknown_task};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw finetune glue.toml --model runs/four/best
  mtdnn-raw finetune glue.toml --model runs/four/best --tasks rte --seeds 5 --new-heads

A task's head is taken from the model where that has the task, or drawn anew (--new-heads). A run file may say more:
  [finetune]
  epochs = 2
  [finetune.tasks.rte]
  learning_rate = 2e-5

Run the same command again to go on after a kill or Ctrl-C: finished runs are not done again.";

/// Fine-tune an MT-DNN model on each task by itself, and say what that gained.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct FinetuneArgs {
    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    experiment: ExperimentFlags,

    /// The MT-DNN model to start from (best or last in a run directory).
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

pub(super) fn run(args: &FinetuneArgs) -> anyhow::Result<Exit> {
    let mut config = named_tasks(&args.run, "finetune")?;
    if args.model.is_some() {
        config.finetune.model.clone_from(&args.model);
    }
    // A flag wins over the run file, wherever that says it.
    let train = &args.run.train;
    for recipe in config.finetune.tasks.values_mut() {
        recipe.epochs = recipe.epochs.filter(|_| train.epochs.is_none());
        recipe.learning_rate = recipe.learning_rate.filter(|_| train.learning_rate.is_none());
    }
    config.finetune.epochs = config.finetune.epochs.filter(|_| train.epochs.is_none());
    config.finetune.learning_rate = config.finetune.learning_rate.filter(|_| train.learning_rate.is_none());
    let Some(model) = config.finetune.model.clone() else {
        return Err(Usage("finetune: say which model to start from: --model DIR".into()).into());
    };
    if args.run.init.is_some() {
        return Err(Usage("--init: fine-tuning starts from --model; leave one of them out".into()).into());
    }
    let known: Vec<String> = task_names(&config).map(str::to_string).collect();
    let setting = args.experiment.setting(&args.run, "finetune", 1, config)?;
    check_recipes(&setting, &known)?;

    let config = &setting.config;
    let mut backend = setting.device().backend()?;
    let mut console = setting.console(1);
    let before = measure(config, &model, cache_directory().as_deref(), &mut *backend, &mut console);
    console.clear();
    drop(backend);
    let Some(before) = before? else { return Ok(Exit::Stopped) };
    let before = [RunResult::of_model(config, before)];
    let plan = finetune::plan(config, &setting.output, &setting.seeds, &model)?;
    let Some(results) = setting.perform(&plan)? else { return Ok(Exit::Stopped) };
    let of_seed = |runs: &[RunResult]| merge(&runs.iter().collect::<Vec<_>>());
    let after: Vec<RunResult> = results.chunks(config.tasks.len()).map(of_seed).collect();
    report(&setting, &before, &after)?.publish(&setting.output)?;
    Ok(Exit::Done)
}

/// Refuses recipes of tasks that there are not.
pub(super) fn check_recipes(setting: &Setting, known: &[String]) -> Result<(), Usage> {
    // Those of the run file, and those that flags have put in their place.
    let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
    known.extend(task_names(&setting.config));
    known.sort_unstable();
    known.dedup();
    let unknown = setting.config.finetune.tasks.keys().find(|name| !known.contains(&name.as_str()));
    unknown.map_or(Ok(()), |name| {
        Err(unknown_task("finetune.tasks", name, "a task of the run", known.iter().copied()))
    })
}

fn report(setting: &Setting, before: &[RunResult], after: &[RunResult]) -> anyhow::Result<Report> {
    let level = setting.level();
    let (old, new) = (seeds::spreads(before, &setting.bootstrap), seeds::spreads(after, &setting.bootstrap));
    let differences = seeds::differences(after, before, &setting.bootstrap)?;
    let name = |spread: &Spread| column(&spread.task, &spread.set, spread.metric);
    let of_difference = |one: &Difference| column(&one.task, &one.set, one.metric);
    let rows = new.iter().map(|now| {
        let was = old.iter().find(|was| name(was) == name(now));
        let gain = differences.iter().find(|gain| of_difference(gain) == name(now));
        vec![
            name(now),
            was.map_or("-".into(), |was| points(was.mean)),
            spread(now.mean, now.deviation),
            gain.map_or("-".into(), |gain| format!("{:+.1}", 100.0 * gain.difference)),
            gain.map_or("-".into(), |gain| interval(gain.over_examples)),
        ]
    });
    let titles = ["dev figure", "before", "after", "gain"].map(String::from).into_iter();
    let titles = titles.chain([format!("{level} over examples")]).collect();
    let caption = format!("Each task fine-tuned by itself, in points; {} seeds.", after.len());
    let said = differences.iter().map(|one| verdict("fine-tuning", "the model before", one, after.len()));
    let parts = vec![
        Part::Table { caption, titles, rows: rows.collect() },
        Part::List(said.collect()),
        Part::Text(setting.explain_intervals()),
    ];
    let panels: Vec<_> = new
        .iter()
        .map(|now| {
            let was = old.iter().find(|was| name(was) == name(now));
            let rows = was.map(|was| dots_of("before".into(), was)).into_iter();
            (name(now), rows.chain([dots_of("after".into(), now)]).collect())
        })
        .collect();
    let title = "An MT-DNN model before and after fine-tuning on each task".to_string();
    Ok(Report {
        data: json!({
            "experiment": "finetune",
            "seeds": setting.seeds,
            "before": old,
            "after": new,
            "differences": differences,
        }),
        chart: dots(&title, &panels),
        title,
        parts,
    })
}
