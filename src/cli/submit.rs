//! `submit`: answers to GLUE's test sets, as the zip that its leaderboard takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use mtdnn_raw::data::batching::evaluation_batches;
use mtdnn_raw::data::submission::{PARTS, Part, check_order, score};
use mtdnn_raw::data::{Example, Split, TaskKind, TaskSpec, Text, cache, glue, qnli, reader, zip};
use mtdnn_raw::nn::directory;
use mtdnn_raw::train::evaluate::{EVALUATION_TOKENS, Predictor, argmax, evaluation_capacity};
use mtdnn_raw::train::signals::Stop;
use serde_json::{Value, json};

use super::Exit;
use super::console::Counter;
use super::device::DeviceArgs;
use super::model::Loaded;
use super::output;
use super::table::Table;

const EXAMPLES: &str = "\
Examples:
  mtdnn-raw submit --model runs/glue/best --data glue --output glue.zip
  mtdnn-raw submit --model runs/rte/best --model runs/glue/best --data glue --output glue.zip --wnli-majority
  mtdnn-raw submit --model runs/four/best --data glue --output four.zip --partial --json

Of several models the first that has a task answers it. The zip has CoLA.tsv, SST-2.tsv, MRPC.tsv, STS-B.tsv, QQP.tsv,
MNLI-m.tsv, MNLI-mm.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv and AX.tsv, the last by the head of mnli.";

/// Answer GLUE's test sets and write the zip that its leaderboard takes.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SubmitArgs {
    /// A model directory that `train` has written; several times for tasks that were fine-tuned apart.
    #[arg(long, required = true, value_name = "DIR")]
    model: Vec<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// The folder with GLUE's tasks and their official test files.
    #[arg(long, value_name = "GLUE")]
    data: PathBuf,

    /// The zip to write.
    #[arg(long, value_name = "FILE.zip")]
    output: PathBuf,

    /// Leave out tasks that no model has or whose test file is not there; the zip's comment says which.
    #[arg(long)]
    partial: bool,

    /// Answer WNLI by 0, its more frequent label, without a model.
    #[arg(long)]
    wnli_majority: bool,

    /// Print a JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// A file that can be answered.
struct Answerable {
    part: &'static Part,
    examples: Vec<Example>,
    /// Which edition of its test set it is, where there are several.
    edition: &'static str,
    by: By,
}

/// Who answers.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// The model of this number, with its task of this number.
    Model(usize, usize),
    /// Nobody: 0 throughout.
    Majority,
}

/// A file that is answered.
struct Answered {
    part: &'static Part,
    edition: &'static str,
    by: By,
    answers: Vec<String>,
    clipped: usize,
    truncated: u64,
}

pub(super) fn run(args: &SubmitArgs) -> anyhow::Result<Exit> {
    args.device.check()?;
    output::partial(&args.output)?;
    if !args.data.is_dir() {
        bail!("--data {}: no such folder", args.data.display());
    }
    let mut models: Vec<Vec<TaskSpec>> = Vec::new();
    for path in &args.model {
        models.push(directory::require_description(path)?.tasks);
    }
    let (answerable, missing) = plan(args, &models)?;
    say_unused(args, &models, &answerable);
    let stop = Stop::on_signals()?;
    let mut answered = Vec::new();
    for (number, path) in args.model.iter().enumerate() {
        let of_model = |file: &&Answerable| matches!(file.by, By::Model(model, _) if model == number);
        let files: Vec<&Answerable> = answerable.iter().filter(of_model).collect();
        if files.is_empty() {
            continue;
        }
        let mut loaded = Loaded::with_tasks(path, &args.device)?;
        for file in files {
            answered.push(answer(&mut loaded, file, path, &stop)?);
        }
    }
    answered.extend(answerable.iter().filter(|file| file.by == By::Majority).map(by_majority));
    // The order of the leaderboard's page, whoever answered.
    answered.sort_by_key(|file| PARTS.iter().position(|part| part == file.part));
    write(args, &answered, &missing)?;
    report(args, &answered, &missing)?;
    Ok(Exit::Done)
}

/// Which files can be answered and by whom, and why the others cannot. Everything that is wrong is said at once, before
/// anything is computed.
fn plan(args: &SubmitArgs, models: &[Vec<TaskSpec>]) -> anyhow::Result<(Vec<Answerable>, Vec<String>)> {
    let (mut answerable, mut missing, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for part in &PARTS {
        let by = match part.data {
            "wnli" if args.wnli_majority => Some(By::Majority),
            _ => find(models, part.head),
        };
        let kind = match by {
            Some(By::Model(model, task)) => Some(models[model][task].kind),
            _ => None,
        };
        let data = kind.and_then(|kind| glue::cast(part.data, kind)).unwrap_or(part.data);
        let files = glue::task(data, &args.data).map(|spec| {
            let file = spec.files_of(Split::Test).find(|file| file.name == part.set).cloned();
            (spec, file)
        });
        let mut lacks = Vec::new();
        match by {
            None => lacks.push(match part.data {
                "wnli" => "no model has the task wnli (--wnli-majority needs none)".to_string(),
                _ => format!("no model has the task {}", part.head),
            }),
            Some(By::Model(model, task)) => {
                if let Err(reason) = part.check_task(&models[model][task]) {
                    wrong.push(format!(
                        "{}: task {} of {}: {reason}",
                        part.file,
                        models[model][task].name,
                        args.model[model].display()
                    ));
                }
            }
            Some(By::Majority) => {}
        }
        match files {
            Ok((spec, Some(file))) => {
                let read = reader::read(&file, &spec).and_then(|(examples, _)| {
                    check_order(&file)?;
                    Ok(examples)
                });
                match read {
                    Err(error) => wrong.push(format!("{}: {error}", part.file)),
                    Ok(examples) => match (part.check_rows(examples.iter().map(rows_of).sum()), by) {
                        (Err(reason), _) => {
                            wrong.push(format!("{}: {}: {reason}", part.file, file.path.display()));
                        }
                        (Ok(edition), Some(by)) => {
                            answerable.push(Answerable { part, examples, edition, by });
                        }
                        (Ok(_), None) => {}
                    },
                }
            }
            Ok((_, None)) | Err(_) => {
                lacks.push(format!("no {} of {} in {}", part.set, part.data, args.data.display()));
            }
        }
        if !lacks.is_empty() {
            missing.push(format!("{}: {}", part.file, lacks.join("; ")));
        }
    }
    if !wrong.is_empty() {
        bail!("this cannot be handed in:\n  {}", wrong.join("\n  "));
    }
    if answerable.is_empty() {
        bail!("there is nothing to answer:\n  {}", missing.join("\n  "));
    }
    if !missing.is_empty() && !args.partial {
        let (count, list) = (missing.len(), missing.join("\n  "));
        bail!("{count} of {} files are missing; --partial writes the others:\n  {list}", PARTS.len());
    }
    Ok((answerable, missing))
}

/// Rows of the file that an example was made of: one, or one a candidate.
fn rows_of(example: &Example) -> usize {
    match &example.text {
        Text::Candidates { candidates, .. } => candidates.len(),
        _ => 1,
    }
}

/// The first model that has a known task, however it writes its name, or the same cast as another kind.
fn find(models: &[Vec<TaskSpec>], task: &str) -> Option<By> {
    let is_it = |spec: &TaskSpec| {
        let known = glue::find(&spec.name);
        known.is_some() && (known == Some(task) || known == glue::cast(task, spec.kind))
    };
    models.iter().enumerate().find_map(|(model, tasks)| {
        let task = tasks.iter().position(is_it)?;
        Some(By::Model(model, task))
    })
}

/// Says which models and options have no part in the zip.
fn say_unused(args: &SubmitArgs, models: &[Vec<TaskSpec>], answerable: &[Answerable]) {
    for (number, path) in args.model.iter().enumerate() {
        if !answerable.iter().any(|file| matches!(file.by, By::Model(model, _) if model == number)) {
            let tasks: Vec<&str> = models[number].iter().map(|spec| spec.name.as_str()).collect();
            let (path, tasks) = (path.display(), tasks.join(", "));
            eprintln!("warning: --model {path}: nothing is left for it to answer; its tasks are {tasks}");
        }
    }
    if args.wnli_majority && !answerable.iter().any(|file| file.by == By::Majority) {
        eprintln!("warning: --wnli-majority: there is no test file of wnli to answer");
    }
}

fn answer(loaded: &mut Loaded, file: &Answerable, path: &Path, stop: &Stop) -> anyhow::Result<Answered> {
    let By::Model(_, task) = file.by else { unreachable!("a model answers its own files") };
    let part = file.part;
    let dataset = cache::tokenize(&file.examples, &loaded.tokenizer, loaded.max_length);
    let (rows, tokens) = (dataset.sequences(), dataset.ids.len());
    eprintln!("{}: {rows} rows, {tokens} tokens, answered by {}", part.file, path.display());
    if dataset.truncated > 0 {
        let (truncated, most) = (dataset.truncated, loaded.max_length);
        eprintln!("warning: {}: {truncated} examples were cut to {most} tokens", part.file);
    }
    let recorded = loaded.model.inference(&[task], evaluation_capacity([&dataset], loaded.backend.line()));
    loaded.reserve(&recorded)?;
    let batches = evaluation_batches(&dataset, EVALUATION_TOKENS).len();
    let counter = RefCell::new(Counter::new(part.file, "batches", batches));
    let mut predictor = Predictor::new(&loaded.model, &[task], &recorded, &mut *loaded.backend);
    let logits = predictor.logits(&dataset, &|| {
        counter.borrow_mut().next();
        stop.requested()
    })?;
    drop(counter);
    let logits = logits.context("stopped by a signal; the zip was not written")?.remove(0);
    let spec = &loaded.model.tasks()[task];
    if logits.iter().any(|logit| !logit.is_finite()) {
        bail!("{}: the model in {} answers with what is no number", part.file, path.display());
    }
    let mut clipped = 0;
    let mut clip = |logit: &f32| {
        let (text, outside) = score(*logit);
        clipped += usize::from(outside);
        text
    };
    let answers: Vec<String> = match spec.kind {
        TaskKind::Ranking => qnli::row_labels(&logits).into_iter().map(str::to_string).collect(),
        TaskKind::Regression => logits.iter().map(&mut clip).collect(),
        _ => {
            logits.chunks_exact(spec.outputs()).map(|row| spec.labels[argmax(row) as usize].clone()).collect()
        }
    };
    Ok(Answered { part, edition: file.edition, by: file.by, answers, clipped, truncated: dataset.truncated })
}

fn by_majority(file: &Answerable) -> Answered {
    eprintln!("{}: {} rows, answered by 0", file.part.file, file.examples.len());
    Answered {
        part: file.part,
        edition: file.edition,
        by: file.by,
        answers: vec!["0".to_string(); file.examples.len()],
        clipped: 0,
        truncated: 0,
    }
}

fn write(args: &SubmitArgs, answered: &[Answered], missing: &[String]) -> anyhow::Result<()> {
    let files: Vec<(&str, String)> =
        answered.iter().map(|file| (file.part.file, file.part.text(&file.answers))).collect();
    let comment = match missing.is_empty() {
        true => String::new(),
        false => format!("incomplete; missing are\n{}\n", missing.join("\n")),
    };
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let bytes = zip::stored(&files, &comment);
    output::whole(&args.output, |path| {
        let failed = || format!("cannot write {}", path.display());
        let mut file = File::create(path).with_context(failed)?;
        file.write_all(&bytes).with_context(failed)?;
        file.sync_all().with_context(failed)
    })
}

fn report(args: &SubmitArgs, answered: &[Answered], missing: &[String]) -> anyhow::Result<()> {
    let by = |file: &Answered| match file.by {
        By::Model(model, _) => args.model[model].display().to_string(),
        By::Majority => "majority".to_string(),
    };
    let mut out = stdout().lock();
    if args.json {
        let files = answered.iter().map(|file| {
            let counts = (!file.part.words.is_empty()).then(|| counts(file));
            json!({
                "file": file.part.file,
                "rows": file.answers.len(),
                "edition": (!file.edition.is_empty()).then_some(file.edition),
                "task": file.part.head,
                "answered_by": by(file),
                "answers": counts,
                "clipped": file.clipped,
                "truncated": file.truncated,
            })
        });
        let files: Vec<Value> = files.collect();
        let complete = missing.is_empty();
        let output = args.output.display().to_string();
        writeln!(
            out,
            "{:#}",
            json!({"output": output, "complete": complete, "files": files, "missing": missing})
        )?;
        return Ok(());
    }
    let mut table = Table::new(&["file", "rows", "answered by", "answers"]);
    for file in answered {
        let mut answers = match file.part.words.is_empty() {
            true => format!("scores, {} clipped to [0, 5]", file.clipped),
            false => counts(file)
                .iter()
                .map(|(word, count)| format!("{count} {word}"))
                .collect::<Vec<_>>()
                .join(", "),
        };
        if !file.edition.is_empty() {
            answers += &format!("; {}", file.edition);
        }
        table.row(vec![file.part.file.into(), file.answers.len().to_string(), by(file), answers]);
    }
    write!(out, "{table}")?;
    for line in missing {
        writeln!(out, "missing: {line}")?;
    }
    writeln!(out, "{} with {} of {} files", args.output.display(), answered.len(), PARTS.len())?;
    Ok(())
}

/// How often each word of the file was the answer.
fn counts(file: &Answered) -> BTreeMap<&'static str, usize> {
    let count = |word: &str| file.answers.iter().filter(|answer| answer.as_str() == word).count();
    file.part.words.iter().map(|&word| (word, count(word))).collect()
}
