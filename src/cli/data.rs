//! `data`: what is odd about a task's files.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, ValueEnum};
use mtdnn_raw::data::check::{Finding, Lengths, Report, Severity, check};
use mtdnn_raw::data::{TaskSpec, Tokenizer, glue};
use mtdnn_raw::train::prepare;
use serde_json::{Value, json};

use super::{Exit, KNOWN_TASK, Usage, config_file, named_twice, unknown_task};

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw data check glue                                       every known task that is there
  mtdnn-raw data check glue --tasks rte,wnli --model bert         lengths in tokens of that model
  mtdnn-raw data check run.toml --max-length 128 --json           the tasks of a run file

A line says how bad it is (ok, note, warning, error), what was looked for, where, and what there is. Exit code 1 if there
is an error.";

/// Check the files of tasks: rows, columns, labels, characters, duplicates, overlaps, lengths.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DataArgs {
    /// What to do.
    #[arg(value_enum)]
    action: Action,

    /// A folder with known tasks, or a run file that names the tasks' files.
    #[arg(value_name = "DIR|RUN.toml")]
    place: PathBuf,

    /// The tasks to look at; all that are there if not said.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    tasks: Option<Vec<String>>,

    /// A model directory whose vocabulary counts the tokens; without it lengths are in words.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// The length that examples would be cut to.
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_length: usize,

    /// Print a JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Report what is odd.
    Check,
}

pub(super) fn run(args: &DataArgs) -> anyhow::Result<Exit> {
    let Action::Check = args.action;
    if args.max_length == 0 {
        return Err(Usage("--max-length 0: nothing is that short".into()).into());
    }
    let tokenizer = args.model.as_deref().map(Tokenizer::from_directory).transpose()?;
    let specs = tasks(args)?;
    let mut reports = Vec::new();
    for spec in &specs {
        eprintln!("looking at {}", spec.name);
        reports.push(check(spec, tokenizer.as_ref(), args.max_length));
    }
    let others =
        if args.place.is_dir() && args.tasks.is_none() { others(&args.place, &specs) } else { vec![] };
    match args.json {
        true => writeln!(stdout().lock(), "{:#}", to_json(&reports, &others))?,
        false => print(&reports, &others)?,
    }
    Ok(if count(&reports, Severity::Error) > 0 { Exit::Unwell } else { Exit::Done })
}

fn tasks(args: &DataArgs) -> anyhow::Result<Vec<TaskSpec>> {
    if args.place.is_dir() {
        let mut names = Vec::new();
        for name in args.tasks.iter().flatten().map(|name| name.trim()) {
            let known =
                glue::find(name).ok_or_else(|| unknown_task("--tasks", name, KNOWN_TASK, glue::names()))?;
            if names.contains(&known) {
                return Err(named_twice("--tasks", name).into());
            }
            names.push(known);
        }
        if args.tasks.is_none() {
            names = glue::found_in(&args.place);
        }
        if names.is_empty() {
            bail!(
                "{}: there is no file of a known task; of your own ones name a run file",
                args.place.display()
            );
        }
        return Ok(names.into_iter().map(|name| glue::task(name, &args.place)).collect::<Result<_, _>>()?);
    }
    if !args.place.is_file() {
        bail!("{}: no such folder, and no such run file", args.place.display());
    }
    let config = config_file::read(&args.place)?;
    if config.tasks.is_empty() {
        bail!("{}: it names no task", args.place.display());
    }
    let mut specs = prepare::tasks(&config)?;
    for task in specs.extract_if(.., |task| task.masked.is_some()) {
        eprintln!("task {}: it has raw text and no examples, and is not checked", task.name);
    }
    if let Some(names) = &args.tasks {
        let mut wanted = Vec::new();
        for name in names.iter().map(|name| name.trim()) {
            let known = specs.iter().map(|spec| spec.name.as_str());
            let spec = specs.iter().find(|spec| spec.name == name);
            let spec = spec.ok_or_else(|| unknown_task("--tasks", name, "a task of the run file", known))?;
            if wanted.contains(spec) {
                return Err(named_twice("--tasks", name).into());
            }
            wanted.push(spec.clone());
        }
        specs = wanted;
    }
    Ok(specs)
}

/// Files of text below a folder that no known task reads.
fn others(folder: &Path, specs: &[TaskSpec]) -> Vec<PathBuf> {
    let known: BTreeSet<&Path> =
        specs.iter().flat_map(|spec| &spec.files).map(|file| file.path.as_path()).collect();
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        // What cannot be listed has no file of a task in it either.
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let extension = path.extension().and_then(|extension| extension.to_str());
            if path.is_dir() && depth < 2 {
                folders.push((path, depth + 1));
            } else if matches!(extension, Some("tsv" | "csv" | "jsonl" | "txt"))
                && !known.contains(path.as_path())
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn count(reports: &[Report], severity: Severity) -> usize {
    reports.iter().flat_map(|report| &report.findings).filter(|finding| finding.severity == severity).count()
}

fn print(reports: &[Report], others: &[PathBuf]) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    for report in reports {
        writeln!(out, "{}", report.task)?;
        for finding in &report.findings {
            writeln!(out, "  {finding}")?;
        }
        for (path, lengths) in &report.lengths {
            writeln!(out, "  lengths of {}", path.display())?;
            for line in lengths.to_string().lines() {
                writeln!(out, "    {line}")?;
            }
        }
    }
    for path in others {
        writeln!(out, "not looked at: {}: no known task reads it", path.display())?;
    }
    let so_many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let of = |severity, what| so_many(count(reports, severity), what);
    let (errors, warnings) = (of(Severity::Error, "error"), of(Severity::Warning, "warning"));
    writeln!(
        out,
        "{}: {errors}, {warnings}, {}",
        so_many(reports.len(), "task"),
        of(Severity::Note, "note")
    )?;
    Ok(())
}

fn to_json(reports: &[Report], others: &[PathBuf]) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "severity": finding.severity.to_string(),
            "check": finding.check,
            "file": finding.path,
            "line": finding.line,
            "text": finding.text,
        })
    };
    let lengths = |(path, lengths): &(PathBuf, Lengths)| {
        let bars = lengths
            .bars
            .iter()
            .map(|&(end, count)| json!({"up_to": (end != usize::MAX).then_some(end), "examples": count}));
        json!({
            "file": path,
            "unit": lengths.unit,
            "mean": lengths.mean,
            "median": lengths.median,
            "percentile_99": lengths.most,
            "longest": lengths.longest,
            "max_length": lengths.max_length,
            "cut": lengths.cut,
            "histogram": bars.collect::<Vec<_>>(),
        })
    };
    let tasks = reports.iter().map(|report| {
        json!({
            "task": report.task,
            "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
            "lengths": report.lengths.iter().map(lengths).collect::<Vec<_>>(),
        })
    });
    let of = |severity| count(reports, severity);
    json!({
        "tasks": tasks.collect::<Vec<_>>(),
        "not_looked_at": others,
        "errors": of(Severity::Error),
        "warnings": of(Severity::Warning),
        "notes": of(Severity::Note),
    })
}
