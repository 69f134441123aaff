//! What an update takes together: the encoder, a head, or the pooler where some heads do without it; and in it the ranges
//! of the flat buffers that are updated alike.

use std::ops::Range;

use crate::nn::{Model, ParameterTable};

/// What is updated together.
pub(super) struct Part {
    /// Its place in [`Progress::group_updates`](super::trainer::Progress::group_updates): the encoder's, each head's, and
    /// last the pooler's.
    pub number: usize,
    /// The tasks whose batches train it; none for the encoder, which all train.
    tasks: Option<Vec<usize>>,
    /// Ranges of the flat buffers and whether weight decay applies to them.
    pub ranges: Vec<(Range<usize>, bool)>,
}

impl Part {
    /// The encoder and every head that has parameters; the rest as in [`ranges`]. The pooler is part of the encoder where
    /// all heads read it, in no part where none does ([`idle`]), else a part of its own.
    pub fn all(model: &Model, weight_decay: f32, per_tensor: bool) -> Vec<Part> {
        let tasks = 0..model.tasks().len();
        let part = |number, tasks, range| {
            let ranges = ranges(model.parameters(), range, weight_decay, per_tensor);
            Part { number, tasks, ranges }
        };
        let (encoder, pooler) = (model.encoder_range(), model.pooler_range());
        let pooled: Vec<usize> = tasks.clone().filter(|&task| model.pools(task)).collect();
        let apart = pooled.len() < tasks.len();
        let end = if apart { pooler.start } else { encoder.end };
        let mut parts = vec![part(0, None, encoder.start..end)];
        for task in tasks.clone() {
            if let Some(range) = model.head_range(task) {
                parts.push(part(task + 1, Some(vec![task]), range));
            }
        }
        if apart && !pooled.is_empty() {
            parts.push(part(tasks.end + 1, Some(pooled), pooler));
        }
        parts
    }

    /// Whether batches of `tasks` train it.
    pub fn is_trained_by(&self, tasks: &[usize]) -> bool {
        self.tasks.as_ref().is_none_or(|own| own.iter().any(|task| tasks.contains(task)))
    }
}

/// The elements of the flat buffers that no task trains: the pooler's, where every head reads all tokens.
pub(super) fn idle(model: &Model) -> Range<usize> {
    let pooler = model.pooler_range();
    let read = (0..model.tasks().len()).any(|task| model.pools(task));
    if read { pooler.end..pooler.end } else { pooler }
}

/// The ranges of the parameters that begin in `range`, and whether weight decay applies to each: one a parameter, in
/// the table's order, or, if not `per_tensor`, neighbours in one where they are alike. Gaps of the table are in none.
pub(super) fn ranges(
    parameters: &ParameterTable,
    range: Range<usize>,
    weight_decay: f32,
    per_tensor: bool,
) -> Vec<(Range<usize>, bool)> {
    let mut ranges: Vec<(Range<usize>, bool)> = Vec::new();
    for parameter in parameters.parameters() {
        if !range.contains(&parameter.offset) {
            continue;
        }
        let decays = parameter.decays() && weight_decay > 0.0;
        match ranges.last_mut() {
            Some((last, same)) if !per_tensor && *same == decays && last.end == parameter.offset => {
                last.end = parameter.range().end;
            }
            _ => ranges.push((parameter.range(), decays)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Init;

    /// Query, key and value of a layer, a norm, and behind a gap a head's weight.
    fn table() -> ParameterTable {
        let mut table = ParameterTable::default();
        for name in ["query.weight", "key.weight", "value.weight"] {
            table.add(name, &[2, 2], Init::Zeros);
        }
        table.add("norm.weight", &[2], Init::Ones);
        table.align();
        table.add("head.weight", &[3, 2], Init::Zeros);
        table
    }

    #[test]
    fn neighbours_are_joined_where_they_are_alike() {
        let table = table();
        assert_eq!(ranges(&table, 0..22, 0.1, false), [(0..12, true), (12..14, false), (16..22, true)]);
        assert_eq!(ranges(&table, 0..22, 0.0, false), [(0..14, false), (16..22, false)]);
        assert_eq!(ranges(&table, 12..16, 0.1, false), [(12..14, false)]);
    }

    #[test]
    fn each_tensor_has_a_range_of_its_own_where_that_is_asked_for() {
        let table = table();
        let offsets: Vec<_> = table.parameters().iter().map(|parameter| parameter.range()).collect();
        for weight_decay in [0.0, 0.1] {
            let (found, decays): (Vec<_>, Vec<_>) =
                ranges(&table, 0..22, weight_decay, true).into_iter().unzip();
            assert_eq!(found, offsets);
            assert_eq!(decays, [true, true, true, false, true].map(|matrix| matrix && weight_decay > 0.0));
        }
    }
}
