//! What an update takes together: the encoder or a head, and in it the ranges of the flat buffers that are updated alike.

use std::ops::Range;

use crate::nn::{Model, ParameterTable};

/// The encoder or a head: what is updated together.
pub(super) struct Part {
    /// The head's task; none for the encoder.
    pub task: Option<usize>,
    /// Ranges of the flat buffers and whether weight decay applies to them.
    pub ranges: Vec<(Range<usize>, bool)>,
}

impl Part {
    /// The part's place in [`Progress::group_updates`](super::trainer::Progress::group_updates).
    pub fn number(&self) -> usize {
        self.task.map_or(0, |task| task + 1)
    }

    /// The encoder and every head that has parameters; the rest as in [`ranges`].
    pub fn all(model: &Model, weight_decay: f32, per_tensor: bool) -> Vec<Part> {
        let heads = (0..model.tasks().len())
            .filter_map(|task| model.head_range(task).map(|range| (Some(task), range)));
        std::iter::once((None, model.encoder_range()))
            .chain(heads)
            .map(|(task, range)| Part {
                task,
                ranges: ranges(model.parameters(), range, weight_decay, per_tensor),
            })
            .collect()
    }
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
