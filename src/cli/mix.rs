//! `mix`: what a run's epochs will draw of each task.

use std::io::{Write, stdout};

use clap::Args;
use mtdnn_raw::data::{Sampler, TaskSpec};
use mtdnn_raw::train::forecast::{Drawn, forecast, remarks};
use mtdnn_raw::train::mix::{sampler, total_updates};
use mtdnn_raw::train::prepare::{self, Prepared};
use mtdnn_raw::train::signals::Stop;
use serde_json::{Value, json};

use super::console::Console;
use super::options::RunArgs;
use super::table::Table;
use super::{Exit, cache_directory, format};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw mix glue.toml
      what each epoch of that run draws
  mtdnn-raw mix glue.toml --mix temperature --mix-temperature 5
      the same tasks, mixed otherwise
  mtdnn-raw mix --data glue --init bert-base-uncased --batch-size 0 --batch-tokens 4096 --bucket 1600 --json";

/// Say what each epoch of a run will draw of each task, and train nothing; flags of how steps are computed do nothing here.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct MixArgs {
    #[command(flatten)]
    run: RunArgs,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Epochs, from the first to the last of a row, that draw the same of each task.
struct Stretch {
    first: u32,
    last: u32,
    tasks: Vec<Drawn>,
}

pub(super) fn run(args: &MixArgs) -> anyhow::Result<Exit> {
    let named = args.run.named()?.unwrap_or_else(super::train::sample_config);
    let config = args.run.complete(named)?;
    let cache = cache_directory();
    let mut console = Console::new(config.train.epochs, Stop::on_signals()?);
    let tasks = prepare::tasks(&config)?;
    let (_, tokenizer) = prepare::encoder(&config.model, None, config.tasks.is_empty())?;
    let prepared = prepare::data(&config, tasks, &tokenizer, cache.as_deref(), &mut console)?;
    console.clear();
    let Some(Prepared { tasks, data }) = prepared else { return Ok(Exit::Stopped) };
    let (trained, sampler) = sampler(&config.train, config.seed, &tasks, &data)?;
    let tasks: Vec<&TaskSpec> = trained.iter().map(|&task| &tasks[task]).collect();
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    for remark in remarks(&sampler, &names) {
        eprintln!("warning: {remark}");
    }
    let forecast = forecast(&config.train, &sampler);
    for (task, name) in names.iter().enumerate() {
        if !sampler.leaves_out(task) && forecast.iter().all(|tasks| tasks[task].batches == 0) {
            eprintln!(
                "warning: task {name}: none of its batches comes up in these epochs, so its head is not trained"
            );
        }
    }
    let mut stretches: Vec<Stretch> = Vec::new();
    for (epoch, tasks) in (0..).zip(forecast) {
        match stretches.last_mut() {
            Some(before) if before.tasks == tasks => before.last = epoch,
            _ => stretches.push(Stretch { first: epoch, last: epoch, tasks }),
        }
    }
    let updates = total_updates(&config.train, &sampler);
    let mut out = stdout().lock();
    if args.json {
        let mix = config.train.mix.to_string();
        writeln!(out, "{:#}", to_json(&mix, updates, &names, &sampler, &stretches))?;
        return Ok(Exit::Done);
    }
    writeln!(out, "mix {}; {updates} updates", config.train.mix)?;
    write!(out, "{}", table(&names, &sampler, &stretches))?;
    Ok(Exit::Done)
}

impl Stretch {
    fn epochs(&self) -> u32 {
        self.last - self.first + 1
    }
}

/// What all epochs draw of each task together.
fn totals(stretches: &[Stretch], tasks: usize) -> Vec<Drawn> {
    let of_task = |task: usize| {
        stretches.iter().flat_map(move |s| std::iter::repeat_n(s.tasks[task], s.epochs() as usize))
    };
    (0..tasks).map(|task| Drawn::sum(of_task(task))).collect()
}

fn table(names: &[&str], sampler: &Sampler, stretches: &[Stretch]) -> Table {
    let titles = [
        "epochs",
        "task",
        "examples",
        "batches",
        "share",
        "examples a batch",
        "passes",
        "tokens",
        "tokens a batch",
    ];
    let mut table = Table::new(&titles);
    let mut rows = |epochs: &str, tasks: &[Drawn]| {
        let all = Drawn::sum(tasks.iter().copied());
        let sizes: Vec<usize> = sampler.sets().map(|(set, _)| set.len()).collect();
        let every_task = names.iter().copied().zip(tasks.iter().copied().zip(sizes.iter().copied()));
        let sum = (names.len() > 1).then(|| ("all", (all, sizes.iter().sum())));
        for (row, (name, (drawn, size))) in every_task.chain(sum).enumerate() {
            let ratio = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
            table.row(vec![
                if row == 0 { epochs.to_string() } else { String::new() },
                name.to_string(),
                size.to_string(),
                drawn.batches.to_string(),
                format!("{:.3}", ratio(drawn.batches, all.batches)),
                format!("{:.1}", ratio(drawn.examples, drawn.batches)),
                format!("{:.3}", ratio(drawn.examples, size)),
                format::count(drawn.tokens as f64),
                format!("{:.0}", ratio(drawn.tokens, drawn.batches)),
            ]);
        }
    };
    for stretch in stretches {
        let (first, last) = (stretch.first + 1, stretch.last + 1);
        let epochs = if first == last { first.to_string() } else { format!("each of {first} to {last}") };
        rows(&epochs, &stretch.tasks);
    }
    if stretches.iter().map(Stretch::epochs).sum::<u32>() > 1 {
        rows("together", &totals(stretches, names.len()));
    }
    table
}

fn to_json(mix: &str, updates: u64, names: &[&str], sampler: &Sampler, stretches: &[Stretch]) -> Value {
    let sizes: Vec<usize> = sampler.sets().map(|(set, _)| set.len()).collect();
    let tasks = |tasks: &[Drawn], chances: Option<Vec<f64>>| -> Vec<Value> {
        let batches = Drawn::sum(tasks.iter().copied()).batches;
        let value = |task: usize| {
            let drawn = tasks[task];
            json!({
                "task": names[task],
                "examples": sizes[task],
                "batches": drawn.batches,
                "share": drawn.batches as f64 / batches.max(1) as f64,
                "chance": chances.as_ref().map(|chances| chances[task]),
                "examples_drawn": drawn.examples,
                "passes": drawn.examples as f64 / sizes[task] as f64,
                "tokens": drawn.tokens,
                "largest_batch": drawn.largest,
            })
        };
        (0..tasks.len()).map(value).collect()
    };
    let epochs: Vec<Value> = stretches
        .iter()
        .map(|stretch| {
            let chances = sampler.chances(stretch.first);
            json!({"first": stretch.first + 1, "last": stretch.last + 1, "tasks": tasks(&stretch.tasks, chances)})
        })
        .collect();
    let together = tasks(&totals(stretches, names.len()), None);
    json!({"mix": mix, "updates": updates, "epochs": epochs, "together": together})
}
