//! Which parameters no program trains.

use std::ops::Range;

use super::error::TrainError;
use crate::nn::{Parameter, ParameterTable};
use crate::tensor::Program;

/// Refuses a parameter that no program's backward pass stores a gradient for, but for those in `idle`.
pub(super) fn check_every_parameter_is_trained<'a>(
    parameters: &ParameterTable,
    idle: &Range<usize>,
    programs: impl Iterator<Item = &'a Program>,
) -> Result<(), TrainError> {
    let mut ranges: Vec<Range<usize>> = programs.flat_map(Program::gradient_ranges).collect();
    ranges.sort_by_key(|range| range.start);
    let covered = |parameter: &Parameter| {
        let mut reached = parameter.offset;
        for range in &ranges {
            if range.start <= reached {
                reached = reached.max(range.end);
            }
        }
        reached >= parameter.range().end
    };
    let untrained: Vec<&str> = parameters
        .parameters()
        .iter()
        .filter(|parameter| !covered(parameter) && !idle.contains(&parameter.offset))
        .map(|parameter| parameter.name.as_str())
        .collect();
    if untrained.is_empty() {
        return Ok(());
    }
    let mut names = untrained[..untrained.len().min(5)].join(", ");
    if untrained.len() > 5 {
        names += &format!(" and {} more", untrained.len() - 5);
    }
    Err(TrainError::Untrained { names })
}
