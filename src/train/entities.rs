//! Labels of words, measured: entities as `conlleval` and `seqeval` count them, and the words themselves.

use crate::data::batch::NO_LABEL;
use crate::data::task::entity_tag;
use crate::data::{Dataset, MetricKind, TaskSpec};

/// The figures of predicted classes over a set's words, one a mark; what is no class (a word that was cut off) is wrong,
/// and part of no entity.
pub fn measure(task: &TaskSpec, dataset: &Dataset, predicted: &[u32]) -> Vec<(MetricKind, f64)> {
    let gold = &dataset.marks.classes;
    assert_eq!(predicted.len(), gold.len(), "a class for each word");
    let mut counts = Counts::default();
    for sequence in 0..dataset.sequences() {
        let words = dataset.marks.of(sequence);
        let found = entities(&task.labels, &predicted[words.clone()]);
        let wanted = entities(&task.labels, &gold[words]);
        counts.right += found.iter().filter(|entity| wanted.contains(entity)).count();
        counts.found += found.len();
        counts.wanted += wanted.len();
    }
    let right = predicted.iter().zip(gold).filter(|(p, g)| p == g).count();
    let value = |metric: MetricKind| match metric {
        MetricKind::Precision => share(counts.right, counts.found),
        MetricKind::Recall => share(counts.right, counts.wanted),
        MetricKind::EntityF1 => share(2 * counts.right, counts.found + counts.wanted),
        MetricKind::TokenAccuracy => share(right, gold.len()),
        other => panic!("{other} does not measure labels of words"),
    };
    task.metrics.iter().map(|&metric| (metric, value(metric))).collect()
}

/// Entities of a whole set: an entity is right if its words and its type are.
#[derive(Default)]
struct Counts {
    right: usize,
    found: usize,
    wanted: usize,
}

/// `part / all`, 0 of nothing.
fn share(part: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

/// An entity of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entity<'a> {
    /// Its first word.
    pub start: usize,
    /// The word after its last.
    pub end: usize,
    /// Its type.
    pub kind: &'a str,
}

/// The entities of a sentence's classes, by the rules of `conlleval`.
///
/// `B-` and `S-` begin one; so does `I-` or `E-` after `O`, after another type, and after an `E-` or `S-`. So both IOB1,
/// which begins with `I-` unless two of a type touch, and IOB2 are read, and whatever order a model predicts.
pub fn entities<'a>(labels: &'a [String], classes: &[u32]) -> Vec<Entity<'a>> {
    let mut found: Vec<Entity> = Vec::new();
    // The entity that the word before belongs to may go on.
    let mut open = false;
    for (word, &class) in classes.iter().enumerate() {
        let label = if class == NO_LABEL { None } else { labels.get(class as usize) };
        let Some((place, kind)) = label.and_then(|label| entity_tag(label)) else {
            open = false;
            continue;
        };
        match found.last_mut() {
            Some(last) if open && matches!(place, 'I' | 'E') && last.kind == kind => last.end = word + 1,
            _ => found.push(Entity { start: word, end: word + 1, kind }),
        }
        open = matches!(place, 'B' | 'I');
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Label, TaskKind};

    fn labels() -> Vec<String> {
        ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-PER", "S-LOC"].map(String::from).to_vec()
    }

    fn found(tags: &str) -> Vec<(usize, usize, String)> {
        let labels = labels();
        let class = |tag: &str| labels.iter().position(|label| label == tag).unwrap() as u32;
        let classes: Vec<u32> = tags.split(' ').map(class).collect();
        let owned = |entity: Entity| (entity.start, entity.end, entity.kind.to_string());
        entities(&labels, &classes).into_iter().map(owned).collect()
    }

    /// What `seqeval.metrics.sequence_labeling.get_entities` (version 1.2.2, its default mode) makes of them.
    #[test]
    fn entities_are_those_of_conlleval() {
        let of = |entities: &[(usize, usize, &str)]| -> Vec<(usize, usize, String)> {
            entities.iter().map(|&(start, end, kind)| (start, end, kind.to_string())).collect()
        };
        for (tags, expected) in [
            ("O O", &[][..]),
            ("B-PER I-PER O B-LOC", &[(0, 2, "PER"), (3, 4, "LOC")]),
            // IOB2: two that touch.
            ("B-PER B-PER I-PER", &[(0, 1, "PER"), (1, 3, "PER")]),
            // IOB1: I- begins one, B- only where two of a type touch.
            ("I-PER I-PER B-PER O I-LOC", &[(0, 2, "PER"), (2, 3, "PER"), (4, 5, "LOC")]),
            // Another type, whatever the place.
            ("B-PER I-LOC I-LOC", &[(0, 1, "PER"), (1, 3, "LOC")]),
            ("I-LOC I-PER", &[(0, 1, "LOC"), (1, 2, "PER")]),
            // The finer scheme.
            ("B-PER I-PER E-PER S-LOC S-LOC", &[(0, 3, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]),
            ("E-PER E-PER", &[(0, 1, "PER"), (1, 2, "PER")]),
        ] {
            assert_eq!(found(tags), of(expected), "{tags}");
        }
    }

    fn set(sentences: &[&[u32]]) -> Dataset {
        let mut set = Dataset::new();
        for tags in sentences {
            set.push_sequence(&vec![2; tags.len() + 2], tags.len() as u32 + 2);
            let firsts: Vec<u32> = (1..=tags.len() as u32).collect();
            set.marks.push_words(&firsts, tags.len() as u32 + 1, tags);
            set.finish_example(Label::Tags);
        }
        set
    }

    #[test]
    fn figures_by_hand() {
        let spec = TaskSpec { labels: labels(), ..TaskSpec::new("names", TaskKind::Labelling) };
        let gold = set(&[&[1, 2, 0, 3], &[0, 1]]);
        let figures = |predicted: &[u32]| -> Vec<(&str, f64)> {
            measure(&spec, &gold, predicted)
                .into_iter()
                .map(|(metric, value)| (metric.name(), value))
                .collect()
        };
        let named = |values: [f64; 4]| -> Vec<(&str, f64)> {
            ["entity-f1", "precision", "recall", "token-accuracy"].into_iter().zip(values).collect()
        };
        assert_eq!(figures(&[1, 2, 0, 3, 0, 1]), named([1.0; 4]));
        // The first is cut short, the second has another type, the third is right and one too many is found: one right
        // of four found and three wanted; three words of six.
        assert_eq!(figures(&[1, 0, 0, 1, 3, 1]), named([2.0 / 7.0, 0.25, 1.0 / 3.0, 0.5]));
        // Nothing found; and an entity does not go on from one sentence into the next.
        assert_eq!(figures(&[0; 6]), named([0.0, 0.0, 0.0, 1.0 / 3.0]));
        assert_eq!(figures(&[0, 0, 0, 1, 2, 1]), named([2.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 2.0 / 6.0]));
        // A word that was cut off is wrong, and ends an entity.
        assert_eq!(figures(&[1, NO_LABEL, 0, 3, 0, 1])[3].1, 5.0 / 6.0);
        assert_eq!(figures(&[NO_LABEL; 6]), named([0.0; 4]));
    }
}
