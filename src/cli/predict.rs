//! `predict`: the answers of one task or several to lines of text, from one pass of the encoder.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use mtdnn_raw::data::batch::NO_LABEL;
use mtdnn_raw::data::{Dataset, Example, TaskKind, TaskSpec, Text, Texts, Tokenizer, cache};
use mtdnn_raw::train::entities::entities;
use mtdnn_raw::train::evaluate::{Predictor, argmax, evaluation_capacity};
use mtdnn_raw::train::spans::{self, Chosen};
use serde_json::{Map, Value, json};

use super::device::DeviceArgs;
use super::input::{Input, Wanted};
use super::model::Loaded;
use super::{Exit, Usage, soft};

const EXAMPLES: &str = "\
Examples:
  echo 'a charming film' | mtdnn-raw predict --model runs/glue/best --task sst2
  mtdnn-raw predict --model runs/glue/best --task rte,mnli pairs.tsv          a<TAB>b in each line
  mtdnn-raw predict --model runs/sample/best --task answers --json questions.jsonl
  mtdnn-raw predict --soft --model runs/a/best --model runs/b/best --task rte --data glue --output rte-soft.jsonl

A line of input is what the task was trained on: a text, two with a tab between, or JSON: {\"text_a\": …, \"text_b\": …}.
For ranking: query<TAB>candidate<TAB>candidate…, or {\"query\": …, \"candidates\": […]}.
For labelling: words with blanks between, or {\"tokens\": […]}. For span: question<TAB>text, or {\"question\": …, \"context\": …}.
Lines are JSON if the file is called .jsonl or .ndjson, or if the whole first line is a JSON object; else plain text.
A line of output has columns with tabs between: \"label probability\", the most probable first; a score; or for ranking
\"candidate probability\", the best first; for labelling the label of each word, blanks between; for span the answer, the
character at which it starts, and its score, or nothing in the first two where there is no answer. With several tasks, each task's columns follow its name.";

/// Answer lines of text with one or several tasks of a trained model.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PredictArgs {
    /// A model directory that `train` has written (best or last in a run directory); with --soft one or more.
    #[arg(long, required = true, value_name = "DIR")]
    model: Vec<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// The tasks to answer; several share one pass of the encoder.
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME,...")]
    task: Vec<String>,

    /// Lines of text; - or nothing for standard input.
    #[arg(value_name = "FILE|-")]
    file: Option<PathBuf>,

    /// Print a JSON object for each line, with a key for each task.
    #[arg(long)]
    json: bool,

    /// Write soft labels for the task's train file: what the model, or several on average, holds probable.
    #[arg(long, requires = "data", requires = "output", conflicts_with_all = ["json", "file"])]
    soft: bool,

    /// With --soft: a folder with GLUE's tasks, or a run file that names the task's files.
    #[arg(long, requires = "soft", value_name = "DIR")]
    data: Option<PathBuf>,

    /// With --soft: the file of soft labels.
    #[arg(long, requires = "soft", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Lines that are answered before the next are read.
const CHUNK: usize = 8192;

pub(super) fn run(args: &PredictArgs) -> anyhow::Result<Exit> {
    if let (true, Some(data), Some(output)) = (args.soft, &args.data, &args.output) {
        let [task] = &args.task[..] else {
            return Err(Usage("--task: soft labels are of one task; write a file for each".into()).into());
        };
        return soft::run(&args.model, task, data, output, &args.device);
    }
    let [model] = &args.model[..] else {
        return Err(Usage("--model: several are averaged with --soft alone".into()).into());
    };
    let mut loaded = Loaded::with_tasks(model, &args.device)?;
    let tasks = loaded.find("--task", &args.task)?;
    let specs: Vec<TaskSpec> = tasks.iter().map(|&task| loaded.model.tasks()[task].clone()).collect();
    let mut input = Input::open(args.file.as_ref(), wanted(&specs)?)?;
    let mut out = BufWriter::new(stdout().lock());
    let mut truncated = 0;
    let mut lines = 0;
    loop {
        let examples = input.examples(CHUNK)?;
        if examples.is_empty() {
            break;
        }
        lines += examples.len();
        let dataset = tokenize(&specs, &examples, &loaded.tokenizer, loaded.max_length)?;
        truncated += dataset.truncated;
        let logits = answers(&mut loaded, &tasks, &dataset)?;
        for (index, example) in examples.iter().enumerate() {
            let sequences = dataset.sequences_of(index);
            let answers = specs.iter().zip(&logits).map(|(spec, logits)| {
                let width = spec.outputs();
                let answer = match spec.kind {
                    TaskKind::Labelling => Answer::labels(spec, &dataset, index, logits),
                    TaskKind::Span => Answer::span(spec, &dataset, index, logits),
                    _ => Answer::new(spec, example, &logits[sequences.start * width..sequences.end * width]),
                };
                (spec, answer)
            });
            match args.json {
                true => {
                    let object = answers.map(|(spec, answer)| (spec.name.clone(), answer.json()));
                    writeln!(out, "{}", Value::Object(object.collect()))?;
                }
                false => {
                    let name = |spec: &TaskSpec| (tasks.len() > 1).then(|| spec.name.clone());
                    let columns =
                        answers.flat_map(|(spec, answer)| name(spec).into_iter().chain(answer.columns()));
                    writeln!(out, "{}", columns.collect::<Vec<_>>().join("\t"))?;
                }
            }
        }
        out.flush()?;
    }
    if lines == 0 {
        bail!("there is nothing to answer: the input is empty");
    }
    if truncated > 0 {
        match specs[0].span {
            Some(span) => eprintln!(
                "warning: the questions of {truncated} sequences were cut to {} tokens",
                span.max_query_length
            ),
            None => eprintln!(
                "warning: {truncated} sequences were cut to {} tokens, the model's length",
                loaded.max_length
            ),
        }
    }
    Ok(Exit::Done)
}

/// What a line has to hold so that each of the tasks can answer it.
fn wanted(tasks: &[TaskSpec]) -> Result<Wanted, Usage> {
    if let Some(task) = tasks.iter().find(|task| task.kind == TaskKind::Masked) {
        return Err(Usage(format!(
            "--task {}: it is of masked words, which `mtdnn-raw fill` predicts",
            task.name
        )));
    }
    for (kind, wanted, reads) in [
        (TaskKind::Ranking, Wanted::Candidates, "candidates"),
        (TaskKind::Labelling, Wanted::Words, "words"),
        (TaskKind::Span, Wanted::Question, "a question and a text"),
    ] {
        match tasks.iter().filter(|task| task.kind == kind).count() {
            0 => {}
            count if count == tasks.len() => {
                if let Some(other) = tasks.iter().find(|task| task.span != tasks[0].span) {
                    return Err(Usage(format!(
                        "--task: {} and {} cut texts in different ways; predict them one after another",
                        tasks[0].name, other.name
                    )));
                }
                return Ok(wanted);
            }
            _ => {
                return Err(Usage(format!(
                    "--task: {kind} tasks read {reads}, the others something else; predict them one after another"
                )));
            }
        }
    }
    let of = |texts| tasks.iter().find(|task| task.texts == Some(texts)).map(|task| &task.name);
    match (of(Texts::Single), of(Texts::Pair)) {
        (None, None) => Ok(Wanted::Texts),
        (Some(task), None) => Ok(Wanted::TextsOf(task.clone(), Texts::Single)),
        (None, Some(task)) => Ok(Wanted::TextsOf(task.clone(), Texts::Pair)),
        (Some(one), Some(two)) => {
            Err(Usage(format!("--task: {one} reads one text and {two} two; predict them one after another")))
        }
    }
}

/// Token ids of lines, cut as the tasks want it.
fn tokenize(
    tasks: &[TaskSpec],
    examples: &[Example],
    tokenizer: &Tokenizer,
    max_length: usize,
) -> anyhow::Result<Dataset> {
    let Some(options) = tasks[0].span else { return Ok(cache::tokenize(examples, tokenizer, max_length)) };
    let cut = cache::spans(examples, tokenizer, max_length, options, false);
    cut.map_err(|reason| anyhow::anyhow!("task {}: {reason}", tasks[0].name))
}

/// Each task's logits of a set, `[sequences, outputs]` or `[marks, outputs]`.
fn answers(loaded: &mut Loaded, tasks: &[usize], dataset: &Dataset) -> anyhow::Result<Vec<Vec<f32>>> {
    let recorded = loaded.model.inference(tasks, evaluation_capacity([dataset], loaded.backend.line()));
    loaded.reserve(&recorded)?;
    let mut predictor = Predictor::new(&loaded.model, tasks, &recorded, &mut *loaded.backend);
    Ok(predictor.logits(dataset, &|| false)?.expect("nothing stops it"))
}

/// What a task says of an example.
enum Answer {
    Score(f32),
    /// What there is to choose from and its probability, the best first; for ranking the candidates.
    Choice {
        names: Vec<String>,
        order: Vec<usize>,
        probabilities: Vec<f64>,
        ranking: bool,
    },
    /// The label of each word, none for one that was cut off; and the entities among them.
    Labels {
        labels: Vec<Option<String>>,
        entities: Vec<(usize, usize, String)>,
    },
    /// A part of a text and the character at which it starts, or none.
    Span {
        answer: Option<(String, usize)>,
        score: f32,
        no_answer_score: Option<f32>,
    },
}

impl Answer {
    /// From the logits of all marks.
    fn labels(spec: &TaskSpec, dataset: &Dataset, example: usize, logits: &[f32]) -> Self {
        let width = spec.outputs();
        let classes: Vec<u32> = dataset
            .sequences_of(example)
            .flat_map(|sequence| dataset.marks.of(sequence))
            .map(|mark| match dataset.marks.is_read(mark) {
                true => argmax(&logits[mark * width..][..width]),
                false => NO_LABEL,
            })
            .collect();
        let entities = entities(&spec.labels, &classes).into_iter();
        Answer::Labels {
            labels: classes.iter().map(|&class| spec.labels.get(class as usize).cloned()).collect(),
            entities: entities.map(|entity| (entity.start, entity.end, entity.kind.to_string())).collect(),
        }
    }

    /// From the logits of all marks.
    fn span(spec: &TaskSpec, dataset: &Dataset, example: usize, logits: &[f32]) -> Self {
        let Chosen { bytes, score, no_answer_score } =
            spans::choose(dataset, example, logits, &spec.span.unwrap_or_default());
        let context = &dataset.passages[example].context;
        let answer =
            bytes.map(|[start, end]| (context[start..end].to_string(), context[..start].chars().count()));
        Answer::Span { answer, score, no_answer_score }
    }

    /// From the logits of the example's sequences.
    fn new(spec: &TaskSpec, example: &Example, logits: &[f32]) -> Self {
        let names = match (spec.kind, &example.text) {
            (TaskKind::Regression, _) => return Answer::Score(logits[0]),
            (TaskKind::Ranking, Text::Candidates { candidates, .. }) => candidates.clone(),
            _ => spec.labels.clone(),
        };
        // Equation 9; for other kinds gamma is 1.
        let scaled: Vec<f32> = logits.iter().map(|logit| spec.gamma * logit).collect();
        let probabilities = softmax(&scaled);
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        Answer::Choice { names, order, probabilities, ranking: spec.kind == TaskKind::Ranking }
    }

    fn columns(&self) -> Vec<String> {
        match self {
            Answer::Score(score) => vec![format!("{score:.4}")],
            Answer::Choice { names, order, probabilities, .. } => {
                order.iter().map(|&index| format!("{} {:.4}", names[index], probabilities[index])).collect()
            }
            Answer::Labels { labels, .. } => {
                let shown = labels.iter().map(|label| label.as_deref().unwrap_or("-"));
                vec![shown.collect::<Vec<_>>().join(" ")]
            }
            Answer::Span { answer, score, .. } => {
                let (text, start) = answer.clone().map_or_else(Default::default, |(text, start)| {
                    (text.split_whitespace().collect::<Vec<_>>().join(" "), start.to_string())
                });
                vec![text, start, format!("{score:.4}")]
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Answer::Score(score) => json!({ "score": score }),
            Answer::Choice { names, order, probabilities, ranking: true } => {
                let ranked = order.iter().map(|&index| {
                    json!({"index": index, "text": names[index], "probability": probabilities[index]})
                });
                json!({ "ranking": ranked.collect::<Vec<_>>() })
            }
            Answer::Choice { names, order, probabilities, ranking: false } => {
                let named = names.iter().cloned().zip(probabilities.iter().map(|&p| Value::from(p)));
                json!({ "label": names[order[0]], "probabilities": named.collect::<Map<_, _>>() })
            }
            Answer::Labels { labels, entities } => {
                let entities = entities
                    .iter()
                    .map(|(start, end, kind)| json!({"start": start, "end": end, "type": kind}));
                json!({ "tags": labels, "entities": entities.collect::<Vec<_>>() })
            }
            Answer::Span { answer, score, no_answer_score } => {
                let (text, start) = answer.as_ref().map(|(text, start)| (text, start)).unzip();
                let mut object = json!({ "answer": text, "start": start, "score": score });
                if let Some(score) = no_answer_score {
                    object["no_answer_score"] = json!(score);
                }
                object
            }
        }
    }
}

/// Probabilities from logits: `exp(x - max) / sum`.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtdnn_raw::data::Label;

    #[test]
    fn the_best_choice_comes_first() {
        let spec: TaskSpec = serde_json::from_value(json!({
            "name": "t", "kind": "classification", "labels": ["no", "yes"], "metrics": ["accuracy"], "dropout": 0.1
        }))
        .unwrap();
        let example = Example { text: Text::Single("x".into()), label: Label::None };
        let answer = Answer::new(&spec, &example, &[0.0, 3f32.ln()]);
        assert_eq!(answer.columns(), ["yes 0.7500", "no 0.2500"]);
        assert_eq!(answer.json()["label"], "yes");
    }

    #[test]
    fn gamma_sharpens_the_probabilities_of_candidates() {
        let spec = TaskSpec { gamma: 2.0, ..TaskSpec::new("t", TaskKind::Ranking) };
        let candidates = vec!["no".into(), "yes".into()];
        let text = Text::Candidates { query: "x".into(), candidates };
        // e^(2 ln 2) = 4 to 1.
        let answer = Answer::new(&spec, &Example { text, label: Label::None }, &[0.0, 2f32.ln()]);
        assert_eq!(answer.columns(), ["yes 0.8000", "no 0.2000"]);
    }

    #[test]
    fn softmax_does_not_overflow() {
        assert_eq!(softmax(&[1000.0, 1000.0]), [0.5, 0.5]);
        assert_eq!(softmax(&[-1e30, 0.0]), [0.0, 1.0]);
    }
}
