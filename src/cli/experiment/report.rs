//! A report: printed as plain text, saved as Markdown, JSON and SVG.

use std::io::{Write, stdout};
use std::path::Path;

use mtdnn_raw::train::experiment::replace_file;
use serde_json::Value;

use crate::cli::table::Table;

/// What an experiment found.
pub(in crate::cli) struct Report {
    pub(in crate::cli) title: String,
    pub(in crate::cli) parts: Vec<Part>,
    /// The same for programs.
    pub(in crate::cli) data: Value,
    /// The figure.
    pub(in crate::cli) chart: String,
}

/// A piece of it.
pub(in crate::cli) enum Part {
    /// A paragraph.
    Text(String),
    /// Sentences, one under another.
    List(Vec<String>),
    /// A table under its caption: titles, then rows of as many cells.
    Table { caption: String, titles: Vec<String>, rows: Vec<Vec<String>> },
}

impl Report {
    /// Prints it and saves it as `results.md`, `results.json` and `results.svg`.
    pub(in crate::cli) fn publish(&self, directory: &Path) -> anyhow::Result<()> {
        replace_file(&directory.join("results.md"), &self.markdown())?;
        replace_file(&directory.join("results.json"), &format!("{:#}\n", self.data))?;
        replace_file(&directory.join("results.svg"), &self.chart)?;
        stdout().lock().write_all(self.plain().as_bytes())?;
        let directory = directory.display();
        eprintln!("\nsaved in {directory}: results.md, results.json, results.svg");
        Ok(())
    }

    fn plain(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for part in &self.parts {
            text.push('\n');
            match part {
                Part::Text(paragraph) => text += &format!("{paragraph}\n"),
                Part::List(sentences) => {
                    sentences.iter().for_each(|sentence| text += &format!("{sentence}\n"))
                }
                Part::Table { caption, titles, rows } => {
                    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
                    let mut table = Table::new(&titles);
                    rows.iter().for_each(|row| table.row(row.clone()));
                    text += &format!("{caption}\n{table}");
                }
            }
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = format!("# {}\n", self.title);
        for part in &self.parts {
            text.push('\n');
            match part {
                Part::Text(paragraph) => text += &format!("{paragraph}\n"),
                Part::List(sentences) => {
                    sentences.iter().for_each(|sentence| text += &format!("- {sentence}\n"));
                }
                Part::Table { caption, titles, rows } => {
                    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
                    text += &format!("{caption}\n\n{}", line(titles));
                    text += &line(&vec!["---".to_string(); titles.len()]);
                    rows.iter().for_each(|row| text += &line(row));
                }
            }
        }
        text + "\n![results](results.svg)\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_report_in_two_forms() {
        let cells = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let report = Report {
            title: "Title".into(),
            parts: vec![
                Part::Table {
                    caption: "Caption.".into(),
                    titles: cells(&["task", "f1"]),
                    rows: vec![cells(&["rte", "62.1 ± 1.3"])],
                },
                Part::List(cells(&["One.", "Two."])),
                Part::Text("Paragraph.".into()),
            ],
            data: Value::Null,
            chart: String::new(),
        };
        assert_eq!(
            report.plain(),
            "Title\n\nCaption.\ntask  f1\nrte   62.1 ± 1.3\n\nOne.\nTwo.\n\nParagraph.\n"
        );
        assert_eq!(
            report.markdown(),
            "# Title\n\nCaption.\n\n| task | f1 |\n| --- | --- |\n| rte | 62.1 ± 1.3 |\n\n- One.\n- Two.\n\nParagraph.\n\
             \n![results](results.svg)\n"
        );
    }
}
