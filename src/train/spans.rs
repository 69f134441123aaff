//! Answers that are parts of a text: how one is chosen, and how it is measured (Rajpurkar et al. 2016 and 2018).

use std::collections::HashMap;

use crate::data::{Dataset, MetricKind, SpanOptions, TaskSpec};

/// What a model answers to a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The answer's bytes in the text, from and to; `None` where the question has no answer.
    pub bytes: Option<[usize; 2]>,
    /// The sum of the logits of the best answer's first and last token, whether it is given or not.
    pub score: f32,
    /// The least over the windows of the same sum of `[CLS]`, where there may be no answer.
    pub no_answer_score: Option<f32>,
}

/// The best answer to an example by the logits of the set's marks, `[marks, 2]`: of all its windows the first and last
/// token whose logits have the largest sum, at most `max_answer_length` tokens apart; none where `[CLS]` scores more by
/// `null_threshold`.
pub fn choose(dataset: &Dataset, example: usize, logits: &[f32], options: &SpanOptions) -> Chosen {
    let may_have_none = options.no_answer == Some(true);
    let mut best: Option<([usize; 2], f32)> = None;
    let mut no_answer_score: Option<f32> = None;
    for sequence in dataset.sequences_of(example) {
        let mut marks = dataset.marks.of(sequence);
        let at = |mark: usize| [logits[2 * mark], logits[2 * mark + 1]];
        if may_have_none && let Some(cls) = marks.next() {
            let score = at(cls)[0] + at(cls)[1];
            no_answer_score = Some(no_answer_score.map_or(score, |least| least.min(score)));
        }
        for first in marks.clone() {
            for last in first..marks.end.min(first + options.max_answer_length) {
                let score = at(first)[0] + at(last)[1];
                if best.is_none_or(|(_, most)| score > most) {
                    best = Some(([first, last], score));
                }
            }
        }
    }
    let Some(([first, last], score)) = best else {
        return Chosen { bytes: None, score: f32::NEG_INFINITY, no_answer_score };
    };
    let places = &dataset.marks.places;
    let bytes = [places[first][0] as usize, places[last][1] as usize];
    let none = no_answer_score.is_some_and(|none| none - score > options.null_threshold);
    Chosen { bytes: (!none).then_some(bytes), score, no_answer_score }
}

/// The figures of the answers that the logits `[marks, 2]` give.
pub fn measure(task: &TaskSpec, dataset: &Dataset, logits: &[f32]) -> Vec<(MetricKind, f64)> {
    let options = task.span.unwrap_or_default();
    let (mut exact, mut f1) = (0.0, 0.0);
    for (example, passage) in dataset.passages.iter().enumerate() {
        let chosen = choose(dataset, example, logits, &options);
        let answer = chosen.bytes.map_or("", |[start, end]| &passage.context[start..end]);
        let (of_exact, of_f1) = against(answer, &passage.answers);
        exact += of_exact;
        f1 += of_f1;
    }
    let count = dataset.passages.len().max(1) as f64;
    let value = |metric: MetricKind| match metric {
        MetricKind::ExactMatch => exact / count,
        MetricKind::SpanF1 => f1 / count,
        other => panic!("{other} does not measure answers"),
    };
    task.metrics.iter().map(|&metric| (metric, value(metric))).collect()
}

/// Exact match and F1 of an answer, each against the gold answer that is most like it; no gold answer wants an empty one.
pub fn against(answer: &str, gold: &[String]) -> (f64, f64) {
    let answer = normalized(answer);
    // As the official script: gold answers that are nothing but articles and punctuation do not count.
    let mut gold: Vec<String> =
        gold.iter().map(|gold| normalized(gold)).filter(|gold| !gold.is_empty()).collect();
    if gold.is_empty() {
        gold.push(String::new());
    }
    let best = |measure: &dyn Fn(&str) -> f64| gold.iter().map(|gold| measure(gold)).fold(0.0, f64::max);
    (best(&|gold| f64::from(u8::from(answer == gold))), best(&|gold| word_f1(&answer, gold)))
}

/// F1 of the words that two normalised answers have in common; where one is empty, whether both are.
fn word_f1(answer: &str, gold: &str) -> f64 {
    let words = |text: &str| text.split(' ').filter(|word| !word.is_empty()).count();
    let (of_answer, of_gold) = (words(answer), words(gold));
    if of_answer == 0 || of_gold == 0 {
        return f64::from(u8::from(of_answer == of_gold));
    }
    let mut counts: HashMap<&str, usize> = HashMap::new();
    gold.split(' ').for_each(|word| *counts.entry(word).or_default() += 1);
    let mut common = 0;
    for word in answer.split(' ') {
        if let Some(count) = counts.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    2.0 * f64::from(common) / (of_answer + of_gold) as f64
}

/// Lower case, without punctuation (ASCII's) and articles, single blanks: as the official script compares answers.
fn normalized(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let plain: String = lower.chars().filter(|char| !char.is_ascii_punctuation()).collect();
    // The script drops articles at word boundaries, where a word is made of letters, digits and underscores.
    let mut kept = String::with_capacity(plain.len());
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let mut rest = plain.as_str();
    while let Some(first) = rest.chars().next() {
        let length = match is_word(first) {
            true => rest.find(|char| !is_word(char)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let (part, after) = rest.split_at(length);
        kept.push_str(if matches!(part, "a" | "an" | "the") { " " } else { part });
        rest = after;
    }
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Label, Passage, TaskKind};

    fn gold(answers: &[&str]) -> Vec<String> {
        answers.iter().map(|answer| answer.to_string()).collect()
    }

    #[test]
    fn answers_are_normalised_as_by_the_official_script() {
        for (answer, expected) in [
            ("The  Cat's-eye, a THE gem.", "catseye gem"),
            ("An\tapple\u{a0}tree", "apple tree"),
            ("theatre an_a a", "theatre ana"), // _ is punctuation
            ("l\u{2019}a \u{e9}t\u{c9} the\u{2019}s", "l\u{2019} \u{e9}t\u{e9} \u{2019}s"),
            ("A.", ""),
        ] {
            assert_eq!(normalized(answer), expected, "{answer}");
        }
    }

    #[test]
    fn exact_match_and_f1_by_hand() {
        assert_eq!(against("the Normans", &gold(&["Normans", "Vikings"])), (1.0, 1.0));
        // Two of three words in common with two: 2 * 2 / (3 + 2).
        assert_eq!(against("in the 10th century", &gold(&["10th century"])), (0.0, 0.8));
        // A word counts as often as it is there.
        assert_eq!(against("ha ha ha", &gold(&["ha"])), (0.0, 0.5));
        // The best of each, not of one and the same.
        assert_eq!(against("a b c", &gold(&["x y", "b", "c b d"])), (0.0, 0.8));
        assert_eq!(against("", &gold(&[])), (1.0, 1.0));
        assert_eq!(against("something", &gold(&[])), (0.0, 0.0));
        assert_eq!(against("", &gold(&["something"])), (0.0, 0.0));
        assert_eq!(against("the", &gold(&["a"])), (1.0, 1.0), "both are nothing");
    }

    /// A question with two windows of `[CLS]` and three tokens each over "ab cd ef", the second one token further.
    fn set() -> Dataset {
        let mut set = Dataset::new();
        let places = [[0, 2], [3, 5], [6, 8], [9, 11]];
        for window in 0..2 {
            set.push_sequence(&[2, 9, 3, 7, 7, 7, 3], 3);
            let tokens = (3..).zip(places[window..window + 3].iter().copied());
            let all = [(0, [0, 0])].into_iter().chain(tokens);
            set.marks.push_candidates(all.map(|(position, place)| (position, Some(place))));
        }
        set.finish_example(Label::Answers);
        set.passages.push(Passage { context: "ab cd ef gh".into(), answers: gold(&["gh"]) });
        set
    }

    fn options(max_answer_length: usize, null_threshold: f32) -> SpanOptions {
        SpanOptions { no_answer: Some(true), max_answer_length, null_threshold, ..SpanOptions::default() }
    }

    #[test]
    fn the_best_answer_of_all_windows_is_chosen() {
        let set = set();
        // Start and end of [CLS] and the three tokens of each window.
        let mut logits = vec![1.0, 1.0, 4.0, 0.0, 0.0, 1.0, 0.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 2.5];
        let chosen = |logits: &[f32], options: &SpanOptions| choose(&set, 0, logits, options);
        let best = chosen(&logits, &options(30, 0.0));
        // Tokens 0 to 2 of the first window score 4 + 2, the last of the second 3 + 2.5; [CLS] 2 and 3.
        assert_eq!(best, Chosen { bytes: Some([0, 8]), score: 6.0, no_answer_score: Some(2.0) });
        // Two tokens at most: 4 + 1; then the last token of the second window alone.
        assert_eq!(chosen(&logits, &options(2, 0.0)).bytes, Some([9, 11]));
        logits[15] = 0.5;
        assert_eq!(chosen(&logits, &options(2, 0.0)).bytes, Some([0, 5]));
        assert_eq!(chosen(&logits, &options(1, 0.0)).bytes, Some([0, 2]));
        // An answer does not end before it starts.
        logits[3] = 9.0;
        logits[2] = -9.0;
        assert_eq!(chosen(&logits, &options(30, 0.0)).bytes, Some([9, 11]));
    }

    #[test]
    fn no_answer_is_given_where_its_score_is_larger_by_the_threshold() {
        let set = set();
        let mut logits = vec![0.0; 16];
        logits[..2].fill(3.0); // [CLS] scores 6 in the first window
        logits[8..10].fill(2.0); // and 4 in the second: the least counts.
        logits[4] = 1.0; // The best answer scores 1.
        let bytes = |threshold| choose(&set, 0, &logits, &options(30, threshold)).bytes;
        assert_eq!(bytes(0.0), None);
        assert_eq!(bytes(2.9), None);
        assert_eq!(bytes(3.1), Some([3, 5]));
        let spec = TaskSpec { span: Some(options(30, 0.0)), ..TaskSpec::new("q", TaskKind::Span) };
        assert_eq!(measure(&spec, &set, &logits), [(MetricKind::SpanF1, 0.0), (MetricKind::ExactMatch, 0.0)]);
        logits[15] = 9.0;
        logits[14] = 9.0;
        assert_eq!(measure(&spec, &set, &logits), [(MetricKind::SpanF1, 1.0), (MetricKind::ExactMatch, 1.0)]);
    }
}
