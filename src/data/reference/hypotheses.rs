//! Rows of `PremiseAndMultiHypothesis`: uid, ruids, label, premise, and two hypotheses or more.

use crate::data::rows::{Place, Row};

/// What is wrong with a row: the field, and how.
type Fault = (&'static str, String);

/// The premise, the hypotheses and the number of the right one.
///
/// The label is that number, or the labels of all hypotheses with commas between, of which the best is the right one:
/// named ones are the better the later they stand in `ranks`.
pub(in crate::data) fn cut(
    row: &Row,
    ranks: &[String],
    labelled: bool,
) -> Result<(String, Vec<String>, Option<u32>), Fault> {
    let text = |index: usize, name: &'static str| {
        row.text(&Place::Index(index)).map(|text| text.into_owned()).map_err(|reason| (name, reason))
    };
    let (ids, label, premise) = (text(1, "ruids")?, text(2, "label")?, text(3, "premise")?);
    let hypotheses: Vec<String> =
        (4..row.len()).map(|index| text(index, "hypotheses")).collect::<Result<_, _>>()?;
    let count = hypotheses.len();
    if count < 2 {
        return Err(("hypotheses", format!("has {count} texts; two or more are needed")));
    }
    let named = ids.split(',').count();
    if named != count {
        return Err(("ruids", format!("has {named} ids for {count} hypotheses")));
    }
    let right = if labelled {
        Some(right_one(label.trim(), ranks, count).map_err(|reason| ("label", reason))?)
    } else {
        None
    };
    Ok((premise, hypotheses, right))
}

fn right_one(label: &str, ranks: &[String], count: usize) -> Result<u32, String> {
    if !label.contains(',') {
        let index = label.parse::<u32>().ok().filter(|&index| (index as usize) < count);
        return index
            .ok_or_else(|| format!("is {label:?}, not the number of a hypothesis, 0 to {}", count - 1));
    }
    let rank = |label: &str| match ranks {
        [] => label.parse::<i64>().map_err(|_| format!("is {label:?}, not a number")),
        _ => {
            let place = ranks.iter().position(|rank| rank == label);
            place
                .map(|place| place as i64)
                .ok_or_else(|| format!("is {label:?}, none of {}", ranks.join(", ")))
        }
    };
    let found: Vec<i64> = label.split(',').map(|label| rank(label.trim())).collect::<Result<_, _>>()?;
    if found.len() != count {
        return Err(format!("has {} labels for {count} hypotheses", found.len()));
    }
    let best = found.iter().copied().max().unwrap_or_default();
    match found.iter().filter(|&&rank| rank == best).count() {
        1 => Ok(found.iter().position(|&rank| rank == best).unwrap_or_default() as u32),
        _ => Err(format!("names no single best hypothesis: {label}")),
    }
}
