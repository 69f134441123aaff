//! The texts that `predict` and `encode` read: a line each, from a file or standard input.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, IsTerminal, Read, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mtdnn_raw::data::{Example, Label, Text, Texts};
use serde_json::{Map, Value};

/// Lines of text as examples without answers.
pub(super) struct Input {
    reader: Box<dyn BufRead>,
    name: String,
    line: u64,
    wanted: Wanted,
    json: bool,
}

/// What a line has to hold.
pub(super) enum Wanted {
    /// One text or two.
    Texts,
    /// As many as the task of this name was trained on.
    TextsOf(String, Texts),
    /// A query and its candidates.
    Candidates,
    /// The words of a sentence.
    Words,
    /// A question and the text that answers it.
    Question,
}

impl Input {
    /// Opens a file; standard input if there is none or it is `-`. Its lines are JSON if its name ends in `.jsonl` or
    /// `.ndjson`, or if the whole first line is a JSON object.
    pub(super) fn open(path: Option<&PathBuf>, wanted: Wanted) -> anyhow::Result<Self> {
        let (mut reader, name): (Box<dyn BufRead>, String) = match path.filter(|path| path.as_os_str() != "-")
        {
            Some(path) => {
                let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
                (Box::new(BufReader::with_capacity(1 << 16, file)), path.display().to_string())
            }
            None => {
                if stdin().is_terminal() {
                    eprintln!("reading lines from the terminal; end them with Ctrl-D");
                }
                (Box::new(stdin().lock()), "standard input".into())
            }
        };
        let extension = path.and_then(|path| Path::new(path).extension()?.to_str());
        let mut json = matches!(extension, Some("jsonl" | "ndjson"));
        if !json {
            let mut first = Vec::new();
            reader.read_until(b'\n', &mut first).with_context(|| format!("cannot read {name}"))?;
            let line = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&first);
            json = serde_json::from_slice::<Map<String, Value>>(line).is_ok();
            if !json && line.starts_with(b"{") {
                eprintln!(
                    "warning: {name}: the first line is no JSON object, so all are read as plain text; for JSON mend \
                     it, or give a file called .jsonl"
                );
            }
            reader = Box::new(Cursor::new(first).chain(reader));
        }
        Ok(Self { reader, name, line: 0, wanted, json })
    }

    /// The next examples, at most `most`; none at the end.
    pub(super) fn examples(&mut self, most: usize) -> anyhow::Result<Vec<Example>> {
        let mut examples = Vec::new();
        let mut bytes = Vec::new();
        while examples.len() < most {
            bytes.clear();
            let read = self.reader.read_until(b'\n', &mut bytes);
            if read.with_context(|| format!("cannot read {}", self.name))? == 0 {
                break;
            }
            self.line += 1;
            let text = self.parse(&bytes).with_context(|| format!("{}:{}", self.name, self.line))?;
            examples.push(Example { text, label: Label::None });
        }
        Ok(examples)
    }

    fn parse(&self, bytes: &[u8]) -> anyhow::Result<Text> {
        let text = std::str::from_utf8(bytes).map_err(|_| {
            anyhow::anyhow!("the text is not UTF-8; convert the file, for example with iconv")
        })?;
        let text = if self.line == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.trim().is_empty() {
            bail!("the line is empty, and every line gets an answer; remove it");
        }
        match self.wanted {
            Wanted::Words => return self.parse_words(text),
            Wanted::Question => return self.parse_question(text),
            Wanted::Texts | Wanted::TextsOf(..) | Wanted::Candidates => {}
        }
        let parsed = if self.json { parse_json(text)? } else { self.parse_columns(text)? };
        match (parsed.texts(), &self.wanted) {
            (None, Wanted::Texts | Wanted::TextsOf(..)) => {
                bail!("candidates are for ranking tasks; give text_a and text_b")
            }
            (Some(_), Wanted::Candidates) => {
                bail!(
                    "a ranking task needs a query and two candidates or more: query<TAB>one<TAB>other, or JSON with query and candidates"
                )
            }
            (Some(Texts::Pair), Wanted::TextsOf(task, Texts::Single)) => {
                bail!(
                    "task {task} reads one text, and here are two; leave one out, or give JSON with text_a alone"
                )
            }
            (Some(Texts::Single), Wanted::TextsOf(task, Texts::Pair)) => {
                bail!(
                    "task {task} reads two texts, and here is one; put the second after a tab, or give JSON with text_a and text_b"
                )
            }
            _ => {}
        }
        let texts: Vec<&String> = match &parsed {
            Text::Single(text) => vec![text],
            Text::Pair(a, b) => vec![a, b],
            Text::Candidates { query, candidates } => [query].into_iter().chain(candidates).collect(),
            Text::Words { .. } | Text::Question { .. } => Vec::new(),
        };
        if texts.iter().any(|text| text.trim().is_empty()) {
            bail!("one of its texts is empty");
        }
        Ok(parsed)
    }

    /// Words with blanks between, or `{"tokens": […]}`.
    fn parse_words(&self, line: &str) -> anyhow::Result<Text> {
        let words: Vec<String> = if self.json {
            let value: Value = serde_json::from_str(line).context("not a line of JSON")?;
            let words = value.get("tokens").and_then(Value::as_array).map(|words| {
                words.iter().map(|word| word.as_str().map(str::to_string)).collect::<Option<Vec<_>>>()
            });
            words.flatten().context("an object with tokens, a list of words, is needed")?
        } else {
            line.split_whitespace().map(str::to_string).collect()
        };
        if words.is_empty() {
            bail!("\"tokens\" is empty; a sentence has one word or more");
        }
        Ok(Text::Words { words, tags: Vec::new() })
    }

    /// `question<TAB>context`, or `{"question": …, "context": …}`.
    fn parse_question(&self, line: &str) -> anyhow::Result<Text> {
        let (question, context) = if self.json {
            let value: Value = serde_json::from_str(line).context("not a line of JSON")?;
            let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_string);
            text("question").zip(text("context"))
        } else {
            line.split_once('\t').map(|(question, context)| (question.to_string(), context.to_string()))
        }
        .context(
            "a question and a text are needed: question<TAB>context, or JSON with question and context",
        )?;
        if question.trim().is_empty() || context.trim().is_empty() {
            bail!("the question or its text is empty");
        }
        Ok(Text::Question { question, context, answers: Vec::new() })
    }

    fn parse_columns(&self, line: &str) -> anyhow::Result<Text> {
        let columns: Vec<&str> = line.split('\t').collect();
        Ok(match (columns.as_slice(), &self.wanted) {
            ([query, candidates @ ..], Wanted::Candidates) if candidates.len() >= 2 => Text::Candidates {
                query: query.to_string(),
                candidates: candidates.iter().map(|text| text.to_string()).collect(),
            },
            ([a], _) => Text::Single(a.to_string()),
            ([a, b], _) => Text::Pair(a.to_string(), b.to_string()),
            _ => bail!("{} columns; a line is a text, or two with a tab between", columns.len()),
        })
    }
}

/// `{"text_a": …}`, `{"text_a": …, "text_b": …}` or `{"query": …, "candidates": […]}`; other keys do not matter.
fn parse_json(line: &str) -> anyhow::Result<Text> {
    let value: Value = serde_json::from_str(line).context("not a line of JSON")?;
    let text = |key: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        _ => bail!("{key:?} is not a text"),
    };
    let of = |key: &str| value.get(key).map(|value| text(key, value)).transpose();
    match (of("text_a")?, of("text_b")?, of("query")?, value.get("candidates")) {
        (Some(a), None, None, None) => Ok(Text::Single(a)),
        (Some(a), Some(b), None, None) => Ok(Text::Pair(a, b)),
        (None, None, Some(query), Some(Value::Array(candidates))) => {
            let candidates: Vec<String> =
                candidates.iter().map(|value| text("candidates", value)).collect::<Result<_, _>>()?;
            if candidates.len() < 2 {
                bail!("\"candidates\" has {} texts; two or more are needed", candidates.len());
            }
            Ok(Text::Candidates { query, candidates })
        }
        _ => bail!(
            "an object with text_a, with text_a and text_b, or with query and candidates (a list) is needed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], wanted: Wanted) -> anyhow::Result<Vec<Text>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("in.txt");
        std::fs::write(&path, text)?;
        let examples = Input::open(Some(&path), wanted)?.examples(100)?;
        Ok(examples.into_iter().map(|example| example.text).collect())
    }

    fn error(text: &[u8], wanted: Wanted) -> String {
        let error = format!("{:#}", read(text, wanted).unwrap_err());
        error.split_once("in.txt:").unwrap().1.to_string()
    }

    #[test]
    fn marks_line_ends_and_a_missing_last_one_do_not_matter() {
        let texts = read(b"\xef\xbb\xbfone\r\ntwo\tthree\r\nfour \"five", Wanted::Texts).unwrap();
        let pair = Text::Pair("two".into(), "three".into());
        assert_eq!(texts, [Text::Single("one".into()), pair, Text::Single("four \"five".into())]);
    }

    #[test]
    fn reads_json_and_candidates() {
        let texts = read(b"{\"text_a\": \"a\\tb\", \"label\": 3}\n", Wanted::Texts).unwrap();
        assert_eq!(texts, [Text::Single("a\tb".into())]);
        let expected = Text::Candidates { query: "q".into(), candidates: vec!["a".into(), "b".into()] };
        let json = b"{\"query\": \"q\", \"candidates\": [\"a\", \"b\"]}\n";
        assert_eq!(read(json, Wanted::Candidates).unwrap(), std::slice::from_ref(&expected));
        assert_eq!(read(b"q\ta\tb\n", Wanted::Candidates).unwrap(), [expected]);
    }

    #[test]
    fn words_and_questions() {
        let words = |words: &[&str]| Text::Words {
            words: words.iter().map(|word| word.to_string()).collect(),
            tags: Vec::new(),
        };
        assert_eq!(read(b"New  York\tis \n", Wanted::Words).unwrap(), [words(&["New", "York", "is"])]);
        let json = b"{\"tokens\": [\"New York\", \"is\"]}\n";
        assert_eq!(read(json, Wanted::Words).unwrap(), [words(&["New York", "is"])]);
        let question = Text::Question { question: "q?".into(), context: "a\tb".into(), answers: Vec::new() };
        assert_eq!(read(b"q?\ta\tb\n", Wanted::Question).unwrap(), std::slice::from_ref(&question));
        let json = b"{\"question\": \"q?\", \"context\": \"a\\tb\", \"id\": 3}\n";
        assert_eq!(read(json, Wanted::Question).unwrap(), [question]);
        assert!(error(b"{\"tokens\": [1]}\n", Wanted::Words).starts_with("1: an object with tokens"));
        assert!(error(b"{\"tokens\": []}\n", Wanted::Words).starts_with("1: \"tokens\" is empty"));
        assert!(error(b"no tab\n", Wanted::Question).starts_with("1: a question and a text are needed"));
        assert!(error(b"{\"question\": \"q\"}\n", Wanted::Question).starts_with("1: a question and a text"));
        assert!(error(b"q\t \n", Wanted::Question).starts_with("1: the question or its text is empty"));
    }

    #[test]
    fn faults_are_named_with_their_line() {
        assert!(error(b"one\n\ntwo\n", Wanted::Texts).starts_with("2: the line is empty"));
        assert!(error(b"a\tb\tc\n", Wanted::Texts).starts_with("1: 3 columns"));
        assert!(error(b"a\nb\xff\n", Wanted::Texts).starts_with("2: the text is not UTF-8"));
        assert!(error(b"a\t \n", Wanted::Texts).starts_with("1: one of its texts is empty"));
        assert!(error(b"a\tb\n", Wanted::Candidates).starts_with("1: a ranking task needs"));
        assert!(error(b"{\"text_a\": 3}\n", Wanted::Texts).starts_with("1: \"text_a\" is not a text"));
        assert!(error(b"{\"text\": \"x\"}\n", Wanted::Texts).starts_with("1: an object with text_a"));
        assert!(error(b"{\"text_a\": \"x\"}\nplain\n", Wanted::Texts).starts_with("2: not a line of JSON"));
    }

    #[test]
    fn a_task_gets_as_many_texts_as_it_was_trained_on() {
        let of = |texts| Wanted::TextsOf("rte".into(), texts);
        assert_eq!(read(b"a\nb\n", of(Texts::Single)).unwrap().len(), 2);
        assert_eq!(read(b"a\tb\n", of(Texts::Pair)).unwrap().len(), 1);
        assert!(error(b"a\nb\tc\n", of(Texts::Single)).starts_with("2: task rte reads one text"));
        assert!(error(b"a\tb\nc\n", of(Texts::Pair)).starts_with("2: task rte reads two texts"));
        // In JSON a text may hold a tab.
        assert_eq!(read(b"{\"text_a\": \"a\\tb\"}\n", of(Texts::Single)).unwrap().len(), 1);
    }
}
