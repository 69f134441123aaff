//! How long the examples of a file are, and how many a limit would cut.

use std::fmt;

use rayon::prelude::*;

use super::Severity::{Note, Ok as Fine, Warning};
use super::{Found, Read};
use crate::data::tokenizer::Tokenizer;

/// The upper ends of the bars; what is longer than the last has one of its own.
const ENDS: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, usize::MAX];
/// Characters of the longest bar.
const WIDTH: usize = 40;
/// From this share of cut examples on it is a warning.
const MUCH: f64 = 0.01;

/// The lengths of a file's examples, in tokens with `[CLS]` and `[SEP]`, or in words.
#[derive(Clone, Debug, PartialEq)]
pub struct Lengths {
    /// `tokens` or `words`.
    pub unit: &'static str,
    /// The mean.
    pub mean: f64,
    /// Half of the examples are no longer.
    pub median: usize,
    /// 99 of 100 are no longer.
    pub most: usize,
    /// The longest.
    pub longest: usize,
    /// For each bar its upper end and how many examples have a length above the bar before and up to that end.
    pub bars: Vec<(usize, usize)>,
    /// The limit.
    pub max_length: usize,
    /// How many are longer than the limit.
    pub cut: usize,
    /// The line of the longest.
    longest_line: u64,
}

impl Lengths {
    /// Of rows, at least one.
    pub(super) fn of(rows: &[Read], tokenizer: Option<&Tokenizer>, max_length: usize) -> Self {
        let length = |row: &Read| {
            let texts = [Some(row.a.as_str()), row.b.as_deref()];
            let texts = texts.iter().flatten();
            match tokenizer {
                Some(tokenizer) => 1 + texts.map(|text| tokenizer.tokens(text).len() + 1).sum::<usize>(),
                None => texts.map(|text| text.split_whitespace().count()).sum(),
            }
        };
        let mut lengths: Vec<(usize, u64)> = rows.par_iter().map(|row| (length(row), row.line)).collect();
        lengths.sort_unstable();
        let count = lengths.len();
        let from = |least: usize| count - lengths.partition_point(|&(length, _)| length < least);
        let mut before = 0;
        let bars = ENDS.map(|end| {
            let up_to = lengths.partition_point(|&(length, _)| length <= end);
            let bar = (end, up_to - before);
            before = up_to;
            bar
        });
        let (longest, longest_line) = lengths[count - 1];
        Self {
            unit: if tokenizer.is_some() { "tokens" } else { "words" },
            mean: lengths.iter().map(|&(length, _)| length as f64).sum::<f64>() / count as f64,
            median: lengths[(count - 1) / 2].0,
            most: lengths[(count - 1) * 99 / 100].0,
            longest,
            bars: bars.to_vec(),
            max_length,
            cut: from(max_length + 1),
            longest_line,
        }
    }

    /// The share that the limit would cut.
    pub fn share(&self) -> f64 {
        let count: usize = self.bars.iter().map(|(_, count)| count).sum();
        self.cut as f64 / count as f64
    }

    pub(super) fn say(&self, found: &mut Found) {
        let Lengths { unit, mean, median, most, longest, max_length, cut, .. } = self;
        let text = format!(
            "{mean:.1} {unit} on average, median {median}, 99 % have at most {most}, longest {longest}"
        );
        found.add(Fine, "length", Some(self.longest_line), text);
        if *cut > 0 {
            let severity = if self.share() >= MUCH { Warning } else { Note };
            let share = 100.0 * self.share();
            let words = if *unit == "words" { "; tokens are more than words" } else { "" };
            let text = format!(
                "{cut} examples ({share:.2} %) are longer than {max_length} {unit} and would be cut{words}"
            );
            found.add(severity, "cut", None, text);
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let highest = self.bars.iter().map(|&(_, count)| count).max().unwrap_or(0).max(1);
        let last = self.bars.iter().rposition(|&(_, count)| count > 0).unwrap_or(0);
        for &(end, count) in &self.bars[..=last] {
            let name = if end == usize::MAX { "  more".to_string() } else { format!("to {end:3}") };
            // What is there is seen: the shortest bar has one character.
            let width = (count * WIDTH).div_ceil(highest);
            writeln!(f, "{}", format!("{name} {} {count:7} {}", self.unit, "#".repeat(width)).trim_end())?;
        }
        Ok(())
    }
}
