//! `ablate`: BERT, ST-DNN, and MT-DNN without and with fine-tuning.

use clap::Args;
use mtdnn_raw::train::config::EvalEvery;
use mtdnn_raw::train::experiment::ablate::{self, Row, bert_is_st_dnn};
use mtdnn_raw::train::experiment::config::Variant;
use mtdnn_raw::train::experiment::seeds::{self, Spread};
use mtdnn_raw::train::experiment::statistics::{deviation, mean};
use mtdnn_raw::train::experiment::{RunResult, published};
use serde_json::{Value, json};

use super::experiment::chart::dots;
use super::experiment::report::{Part, Report};
use super::experiment::{
    ExperimentFlags, Setting, check_names, column, named_tasks, spread, task_names, verdict,
};
use super::finetune::check_recipes;
use super::options::{RunArgs, named, set};
use super::seeds::dots_of;
use super::{Exit, Usage};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw ablate examples/ablate.toml
  mtdnn-raw ablate glue.toml --targets rte,mrpc --variants st-dnn,mt-dnn --seeds 3

Variants: bert (linear heads, one task at a time), st-dnn (the run file's heads, one task at a time), mt-dnn-no-ft (all
tasks together), mt-dnn (its encoder fine-tuned on each task, by the run file's [finetune]).
Run the same command again to go on after a kill or Ctrl-C: finished runs are not done again.";

/// Make the paper's ablation table: what the heads are worth, and what training on many tasks is.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AblateArgs {
    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    experiment: ExperimentFlags,

    /// The rows: some of bert, st-dnn, mt-dnn-no-ft and mt-dnn. [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...", value_parser = named::<Variant>)]
    variants: Option<Vec<Variant>>,

    /// The tasks of the table; the others are trained in the multi-task runs alone. [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    targets: Option<Vec<String>>,
}

pub(super) fn run(args: &AblateArgs) -> anyhow::Result<Exit> {
    let mut config = named_tasks(&args.run, "ablate")?;
    set(&mut config.ablate.variants, &args.variants);
    config.ablate.targets = args.targets.clone().or(config.ablate.targets);
    let known: Vec<String> = task_names(&config).map(str::to_string).collect();
    let setting = args.experiment.setting(&args.run, "ablate", 5, config)?;
    check_recipes(&setting, &known)?;
    let config = &setting.config;
    if let Some(targets) = &config.ablate.targets {
        check_names("--targets", targets, task_names(config))?;
    }
    if config.ablate.variants.is_empty() {
        return Err(Usage("--variants: no row, so there is nothing to do".into()).into());
    }
    let plan = ablate::plan(config, &setting.output, &setting.seeds)?;
    let Some(results) = setting.perform(&plan.runs)? else { return Ok(Exit::Stopped) };
    let lines = plan.rows.iter().map(|row| {
        let results = plan.results_of(row, config, &results);
        let spreads = seeds::spreads(&results, &setting.bootstrap);
        let means = results.iter().map(mean_of_tasks).collect();
        Line { row, results, spreads, means }
    });
    let lines: Vec<Line> = lines.collect();
    report(&setting, &lines)?.publish(&setting.output)?;
    Ok(Exit::Done)
}

/// A row with its figures.
struct Line<'a> {
    row: &'a Row,
    /// One a seed.
    results: Vec<RunResult>,
    spreads: Vec<Spread>,
    /// The mean of the tasks' main metrics, one a seed.
    means: Vec<f64>,
}

impl Line<'_> {
    fn spread(&self, name: &str) -> Option<&Spread> {
        self.spreads.iter().find(|spread| name_of(spread) == name)
    }
}

fn name_of(spread: &Spread) -> String {
    column(&spread.task, &spread.set, spread.metric)
}

fn report(setting: &Setting, lines: &[Line]) -> anyhow::Result<Report> {
    let seeds = setting.seeds.len();
    // A task that is ranking in one row and classification in another has a column of each.
    let mut columns: Vec<String> = Vec::new();
    for name in lines.iter().flat_map(|line| &line.spreads).map(name_of) {
        if !columns.contains(&name) {
            columns.push(name);
        }
    }
    let row = |line: &Line| {
        let cell =
            |name: &String| line.spread(name).map_or("-".into(), |found| spread(found.mean, found.deviation));
        let last = spread(mean(&line.means), deviation(&line.means));
        std::iter::once(line.row.title.clone()).chain(columns.iter().map(cell)).chain([last]).collect()
    };
    let titles =
        std::iter::once("dev".to_string()).chain(columns.clone()).chain(["mean of tasks".to_string()]);
    let listed: Vec<String> = setting.seeds.iter().map(u64::to_string).collect();
    let chosen = match setting.config.train.eval {
        EvalEvery::End => "last model",
        _ => "best evaluation on the dev sets",
    };
    let caption = format!(
        "Mean and sample deviation over seeds {}, in points; every run by its {chosen}.",
        listed.join(", ")
    );
    let table = lines.iter().map(row).collect();
    let mut parts = vec![Part::Table { caption, titles: titles.collect(), rows: table }];
    if bert_is_st_dnn(&setting.config) {
        let text = "The run file's heads are BERT's own, so that BERT and ST-DNN are one and the same run.";
        parts.push(Part::Text(text.into()));
    }
    let (sentences, differences) = comparisons(setting, lines, seeds)?;
    if !sentences.is_empty() {
        parts.push(Part::List(sentences));
        parts.push(Part::Text(setting.explain_intervals()));
    }
    parts.extend(published_rows(lines));
    let panels = columns.iter().map(|name| {
        let dots = lines.iter().filter_map(|line| Some(dots_of(line.row.title.clone(), line.spread(name)?)));
        (name.clone(), dots.collect())
    });
    let title = format!("Ablation, {seeds} {}", if seeds == 1 { "seed" } else { "seeds" });
    let data = lines.iter().map(|line| {
        let Line { row, spreads, means, .. } = line;
        json!({ "variant": row.variant, "title": row.title, "figures": spreads, "means_of_tasks": means })
    });
    Ok(Report {
        data: json!({
            "experiment": "ablate",
            "seeds": setting.seeds,
            "rows": data.collect::<Vec<Value>>(),
            "differences": differences,
        }),
        chart: dots(&title, &panels.collect::<Vec<_>>()),
        title,
        parts,
    })
}

/// The mean over the tasks of a seed's main metrics.
fn mean_of_tasks(result: &RunResult) -> f64 {
    let mut names: Vec<&str> = result.sets.iter().map(|set| set.task.as_str()).collect();
    names.dedup();
    let of_task = |name: &&str| {
        let main = result.sets.iter().filter(|set| set.task == **name).map(|set| set.metrics[0].1);
        mean(&main.collect::<Vec<f64>>())
    };
    mean(&names.iter().map(of_task).collect::<Vec<f64>>())
}

/// What each multi-task row gains on the single-task row above it, as sentences and as data.
fn comparisons(setting: &Setting, lines: &[Line], seeds: usize) -> anyhow::Result<(Vec<String>, Vec<Value>)> {
    let is_single = |line: &&Line| matches!(line.row.variant, Variant::Bert | Variant::StDnn);
    let (mut sentences, mut data) = (Vec::new(), Vec::new());
    let Some(base) = lines.iter().rfind(is_single) else { return Ok((sentences, data)) };
    for line in lines.iter().filter(|line| !is_single(line)) {
        let (title, base_title) = (&line.row.title, &base.row.title);
        let against = format!("single-task training ({base_title})");
        let differences = seeds::differences(&line.results, &base.results, &setting.bootstrap)?;
        sentences.extend(differences.iter().map(|one| verdict(title, &against, one, seeds)));
        data.push(json!({ "of": title, "less": base_title, "differences": differences }));
    }
    Ok((sentences, data))
}

/// The published rows of the tasks that the table has, if there are any.
fn published_rows(lines: &[Line]) -> Option<Part> {
    let mut tasks: Vec<&str> = lines.first()?.spreads.iter().map(|spread| spread.task.as_str()).collect();
    tasks.dedup();
    tasks.retain(|task| published::GLUE.iter().any(|row| row.figures.iter().any(|(known, _)| known == task)));
    if tasks.is_empty() {
        return None;
    }
    let titles = ["published", "where"].into_iter().chain(tasks.iter().copied()).map(String::from).collect();
    let row = |row: &published::Row| {
        let figure = |task: &&str| {
            let found = row.figures.iter().find(|(known, _)| known == task);
            found.map_or("-".to_string(), |(_, figure)| figure.to_string())
        };
        let names = [row.name, row.source].map(String::from).into_iter();
        names.chain(tasks.iter().map(figure)).collect()
    };
    let caption = "Published, for the shape of it and not to be compared: whole training sets and encoders of 110 and 340 \
                   million parameters. MRPC is F1 / accuracy in the paper and accuracy / F1 in claf's reports, MNLI \
                   matched / mismatched, QNLI v1 (ranking) / v2.";
    Some(Part::Table { caption: caption.into(), titles, rows: published::GLUE.iter().map(row).collect() })
}
