//! Running text cut into sentences.

use unicode_segmentation::UnicodeSegmentation;

/// Words before whose full stop a sentence hardly ever ends.
const ABBREVIATIONS: [&str; 34] = [
    "mr", "mrs", "ms", "messrs", "mme", "mlle", "dr", "prof", "st", "mt", "ft", "rev", "hon", "fr", "capt",
    "col", "gen", "lt", "sgt", "maj", "cmdr", "gov", "sen", "rep", "pres", "mgr", "e.g", "i.e", "cf", "vs",
    "viz", "approx", "ca", "al",
];
/// Words whose full stop belongs to the number after it; without one, "No." is a sentence.
const BEFORE_NUMBERS: [&str; 10] = ["no", "nos", "vol", "fig", "p", "pp", "ch", "sec", "art", "op"];

/// The sentences of a text without line ends, without the blanks around them.
///
/// Cut at the sentence bounds of Unicode (UAX 29), which know closing quotes and brackets, decimals and the full stops
/// of many scripts, but no words; so what it cuts is joined again after an abbreviation of English or an initial, and
/// before a small letter (`"What?" he said`). Not seen: a sentence that ends in such an abbreviation or in a single
/// capital other than I, one that ends in `…` (no bound to Unicode), one that begins with a small letter after `?` or
/// `!`, and the ends of scripts without marks, such as Thai.
pub(super) fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut bounds = text.split_sentence_bound_indices().map(|(start, _)| start).skip(1).chain([text.len()]);
    let mut start = 0;
    std::iter::from_fn(move || {
        let end = bounds.find(|&end| !goes_on(text[start..end].trim_end(), &text[end..]))?;
        let sentence = text[start..end].trim();
        start = end;
        Some(sentence)
    })
    .filter(|sentence| !sentence.is_empty())
}

/// Whether a sentence goes on after `before` with `after`.
fn goes_on(before: &str, after: &str) -> bool {
    let word = before.rsplit(char::is_whitespace).next().unwrap_or_default();
    let word = word.trim_start_matches(|first: char| !first.is_alphanumeric());
    match (word.strip_suffix('.'), after.chars().next()) {
        (_, None) => false,
        (_, Some(next)) if next.is_lowercase() => true,
        (Some(word), Some(next)) => {
            let is_in = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(word));
            is_in(&ABBREVIATIONS) || is_initials(word) || next.is_numeric() && is_in(&BEFORE_NUMBERS)
        }
        (None, Some(_)) => false,
    }
}

/// `J`, `J.R.R` or `U.S`, but not `I`.
fn is_initials(word: &str) -> bool {
    let is_capital = |part: &str| {
        let mut letters = part.chars();
        letters.next().is_some_and(char::is_uppercase) && letters.next().is_none()
    };
    word != "I" && word.split('.').all(is_capital)
}

#[cfg(test)]
mod tests {
    #[track_caller]
    fn cut(text: &str, expected: &[&str]) {
        assert_eq!(super::sentences(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn sentences_end_at_marks_and_the_quotes_and_brackets_that_close_them() {
        cut("One. Two! Three? Four", &["One.", "Two!", "Three?", "Four"]);
        cut("He said: \"Go.\" \"No,\" she said.", &["He said: \"Go.\"", "\"No,\" she said."]);
        cut(
            "(It rained.) \u{201c}Really?!\u{201d} Yes.",
            &["(It rained.)", "\u{201c}Really?!\u{201d}", "Yes."],
        );
        cut(
            "\u{4ed6}\u{6765}\u{3002}\u{5979}\u{8d70}\u{3002}",
            &["\u{4ed6}\u{6765}\u{3002}", "\u{5979}\u{8d70}\u{3002}"],
        );
    }

    #[test]
    fn a_sentence_goes_on_before_a_small_letter() {
        cut("\"What?\" he said. He left.", &["\"What?\" he said.", "He left."]);
        cut("Well... it is so. Well... Perhaps.", &["Well... it is so.", "Well...", "Perhaps."]);
        cut("Oh! how sad! I wept.", &["Oh! how sad!", "I wept."]);
    }

    #[test]
    fn abbreviations_initials_and_numbers_do_not_end_one() {
        cut(
            "Mr. Fox and (Dr. Bell) met Mrs. Hay. They ate.",
            &["Mr. Fox and (Dr. Bell) met Mrs. Hay.", "They ate."],
        );
        cut("Fruit, e.g. Apples, is cheap. Eat.", &["Fruit, e.g. Apples, is cheap.", "Eat."]);
        cut(
            "J. R. R. Tolkien and J.S. Bach of the U.S. Navy.",
            &["J. R. R. Tolkien and J.S. Bach of the U.S. Navy."],
        );
        cut("It costs 3.50 or 1,000.25. Cheap.", &["It costs 3.50 or 1,000.25.", "Cheap."]);
        cut("See No. 5, Vol. 2. No. Never.", &["See No. 5, Vol. 2.", "No.", "Never."]);
        cut("So do I. He does not.", &["So do I.", "He does not."]);
    }

    #[test]
    fn nothing_is_lost_but_blanks() {
        for text in ["", " ", "a", ". . .", "A.B. C", "x.  Y\u{a0}! \t Z", "? ! .", "\u{2026} A. \u{feff}"] {
            let kept: String = super::sentences(text).collect::<String>();
            let is_text = |char: &char| !char.is_whitespace();
            assert!(kept.chars().filter(is_text).eq(text.chars().filter(is_text)), "{text:?}: {kept:?}");
        }
    }
}
