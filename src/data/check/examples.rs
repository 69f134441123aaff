//! Texts that come again: within a file, between files, and as the builders of QNLI and WNLI made them.

use std::collections::HashMap;

use super::Severity::{Note, Warning};
use super::{Found, Lines, Read, Table};
use crate::data::official::{QNLI_V1, QNLI_V2};

/// What makes two rows the same example.
fn key(row: &Read) -> (&str, Option<&str>) {
    (row.a.trim(), row.b.as_deref().map(str::trim))
}

/// The same texts more than once in a file, with the same label or another.
pub(super) fn within(found: &mut Found, table: &Table) {
    let mut seen: HashMap<_, &Read> = HashMap::new();
    let (mut same, mut other) = (Lines::default(), Lines::default());
    let (mut same_as, mut other_as) = (0, 0);
    for row in &table.rows {
        match seen.get(&key(row)) {
            None => drop(seen.insert(key(row), row)),
            Some(earlier) if earlier.label == row.label => {
                same.add(row.line);
                same_as = if same.count == 1 { earlier.line } else { same_as };
            }
            Some(earlier) => {
                other.add(row.line);
                other_as = if other.count == 1 { earlier.line } else { other_as };
            }
        }
    }
    let label = if table.rows.iter().any(|row| row.label.is_some()) { " and the same label" } else { "" };
    let text = format!("the texts of an earlier row{label}; the first is that of line {same_as}");
    found.lines(Note, "duplicate", &same, &text);
    let text = format!("the texts of an earlier row and another label; the first is that of line {other_as}");
    found.lines(Warning, "conflict", &other, &text);
}

/// Examples of a dev or test file that are in a train file, too.
pub(super) fn between(found: &mut Found, train: &[&Table], other: &Table) {
    let mut seen: HashMap<_, (&Table, u64)> = HashMap::new();
    for table in train {
        for row in &table.rows {
            seen.entry(key(row)).or_insert((table, row.line));
        }
    }
    let mut both = Lines::default();
    let mut first = None;
    for row in &other.rows {
        if let Some(place) = seen.get(&key(row)) {
            both.add(row.line);
            first.get_or_insert(*place);
        }
    }
    if let Some((table, line)) = first {
        let share = 100.0 * both.count as f64 / other.rows.len() as f64;
        let place = table.file.path.display();
        let text =
            format!("{share:.1} % of the rows have the texts of a training row; the first is {place}:{line}");
        found.lines(Warning, "overlap", &both, &text);
    }
}

/// Which QNLI a file is: in the first edition lines 1 and 2, 3 and 4 and so on have the same question, and one of the two
/// is right, which gives the answer away to whoever compares them.
pub(super) fn qnli_edition(found: &mut Found, table: &Table) {
    let (pairs, _) = table.rows.as_chunks::<2>();
    let of_one = |pair: &&[Read; 2]| {
        let labels = [&pair[0].label, &pair[1].label];
        pair[0].a == pair[1].a && (labels[0] != labels[1] || labels[0].is_none())
    };
    let paired = pairs.iter().filter(of_one).count();
    if pairs.is_empty() {
        return;
    }
    let share = 100.0 * paired as f64 / pairs.len() as f64;
    let text = match paired * 10 >= pairs.len() * 9 {
        true => format!(
            "{QNLI_V1}: {share:.1} % of the pairs of lines have one question and one right answer; ranking them is \
             possible, and their scores do not compare with those on {QNLI_V2}"
        ),
        false => format!(
            "{QNLI_V2}, or a sample: {share:.1} % of the pairs of lines have one question and one right answer; they \
             cannot be ranked"
        ),
    };
    found.add(Note, "edition", None, text);
}

/// WNLI's dev set has the sentences of its train set with the opposite answers.
pub(super) fn adversarial(found: &mut Found, train: &[&Table], dev: &Table) {
    let mut labels: HashMap<&str, Vec<&Option<String>>> = HashMap::new();
    for row in train.iter().flat_map(|table| &table.rows) {
        labels.entry(row.a.trim()).or_default().push(&row.label);
    }
    let (mut known, mut opposite) = (Lines::default(), 0);
    for row in &dev.rows {
        if let Some(labels) = labels.get(row.a.trim()) {
            known.add(row.line);
            opposite += u64::from(labels.iter().all(|label| **label != row.label));
        }
    }
    if opposite > 0 {
        let text = format!(
            "a first sentence of the train set, and {opposite} of them the opposite of all its labels there: a model \
             that has learned the train set by heart scores below chance here"
        );
        found.lines(Warning, "adversary", &known, &text);
    }
}
