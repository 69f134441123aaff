//! One training step on two backends, operation by operation: where they differ first.
//!
//! After each operation both are given the reference's result, rounded as the other keeps it, so that each operation is
//! measured by itself.

use std::fmt;

use half::bf16;

use crate::backend::{Backend, BackendError, StepScalars};
use crate::data::Batch;
use crate::nn::{Recorded, extents};
use crate::tensor::{Access, DType, Op, Precision, Program, Var};

/// The same step, recorded for a backend.
pub struct Side<'a> {
    /// With its memory reserved and its parameters written.
    pub backend: &'a mut dyn Backend,
    /// Recorded in the backend's precision, from the same model as the other side's.
    pub recorded: &'a Recorded,
}

/// The first result that differs by more than rounding explains.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The number of the operation in the program.
    pub number: usize,
    /// Its name.
    pub op: &'static str,
    /// The result and its shape.
    pub value: String,
    /// Row and column of the element that differs most, or of the first that is not finite.
    pub worst: (usize, usize),
    /// That element as the reference has it, and as the other does.
    pub elements: (f32, f32),
    /// The norm of the difference divided by the norm of the reference's result.
    pub error: f64,
    /// What was allowed.
    pub bound: f64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, op, value, worst: (row, column), elements: (expected, found), error, bound } =
            self;
        write!(
            f,
            "step {number}, {op}: {value} differs by {error:.2e} of its norm, where {bound:.0e} is allowed; most at row \
             {row}, column {column}: {found} instead of {expected}"
        )
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Results that were compared.
    pub compared: usize,
    /// The largest error, and the operation and result that it is of.
    pub largest: Option<(f64, String)>,
    /// The first difference; what comes after it was not looked at.
    pub difference: Option<Difference>,
}

/// How far an operation's result may be off: its own rounding of f32, or of bf16 (a chain of a few).
fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-5,
        Precision::Bf16 => 1e-2,
    }
}

/// Runs the step of `batch` on both sides, and stops at the first difference or the first number that is not finite.
pub fn check(reference: Side, other: Side, batch: &Batch, seed: u64) -> Result<Report, BackendError> {
    reference.recorded.write(reference.backend, batch)?;
    other.recorded.write(other.backend, batch)?;
    let step = StepScalars { extents: extents(batch), seed, step: 0 };
    let programs = [&reference.recorded.program, &other.recorded.program];
    check_programs([reference.backend, other.backend], programs, &step)
}

/// As [`check`], for programs of the same tape whose inputs have been written: the reference's first.
pub fn check_programs(
    backends: [&mut dyn Backend; 2],
    programs: [&Program; 2],
    step: &StepScalars,
) -> Result<Report, BackendError> {
    let [reference, other] = backends;
    let [exact, narrow] = programs;
    let bound = bound(narrow.precision());
    let mut report = Report { compared: 0, largest: None, difference: None };
    for (number, (op, op_of_other)) in exact.ops().iter().zip(narrow.ops()).enumerate() {
        reference.run_one(exact, op, step)?;
        other.run_one(narrow, op_of_other, step)?;
        // In bf16 an operation may work in more memory, and values after it have other numbers.
        for (var, var_of_other) in results(op).zip(results(op_of_other)) {
            let expected = read(reference, exact, var, step)?;
            let found = read(other, narrow, var_of_other, step)?;
            let shape = exact.shape(var);
            let value = format!("{} {shape}", exact.name(var));
            let floor = floor(reference, exact, op, var, step)?;
            let (error, worst) = error(&expected, &found, floor);
            report.compared += 1;
            if report.largest.as_ref().is_none_or(|(largest, _)| error > *largest) {
                report.largest = Some((error, format!("{}, {value}", op.name())));
            }
            if error.is_nan() || error > bound {
                let (worst_place, op) = ((worst / shape.cols, worst % shape.cols), op.name());
                let elements = (expected[worst], found[worst]);
                report.difference =
                    Some(Difference { number, op, value, worst: worst_place, elements, error, bound });
                return Ok(report);
            }
            let kept = match narrow.dtype(var_of_other) {
                DType::Bf16 => expected.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
                DType::F32 | DType::U32 => expected,
            };
            write(reference, exact, var, step, &kept)?;
            write(other, narrow, var_of_other, step, &kept)?;
        }
    }
    Ok(report)
}

/// What an operation stores or adds to.
fn results(op: &Op) -> impl Iterator<Item = Var> {
    let operands = op.operands().into_iter();
    operands.filter(|(access, _)| matches!(access, Access::Write | Access::Add)).map(|(_, var)| var)
}

/// The norm that a result's error is measured against at least. A bias's gradient is the sum of its rows' gradients, and
/// where these cancel, as those of a query's candidates do, all that is left of it is their rounding.
fn floor(
    backend: &mut dyn Backend,
    program: &Program,
    op: &Op,
    var: Var,
    step: &StepScalars,
) -> Result<f64, BackendError> {
    match op {
        Op::LinearWeightGrad { d_out, d_bias, .. } if d_bias.var == var => {
            let terms = read(backend, program, *d_out, step)?;
            Ok(terms.iter().map(|&term| f64::from(term).powi(2)).sum::<f64>().sqrt() / 32.0)
        }
        _ => Ok(1e-10),
    }
}

/// The norm of the difference divided by the reference's, which is no less than `floor`, and where it is largest; NaN
/// where a number is not finite.
fn error(expected: &[f32], found: &[f32], floor: f64) -> (f64, usize) {
    if let Some(worst) = (0..found.len()).find(|&i| !found[i].is_finite() || !expected[i].is_finite()) {
        return (f64::NAN, worst);
    }
    let (mut difference, mut norm, mut worst) = (0.0, 0.0, (0.0, 0));
    for (i, (&expected, &found)) in expected.iter().zip(found).enumerate() {
        let off = (f64::from(found) - f64::from(expected)).abs();
        difference += off * off;
        norm += f64::from(expected) * f64::from(expected);
        if off > worst.0 {
            worst = (off, i);
        }
    }
    (difference.sqrt() / norm.sqrt().max(floor), worst.1)
}

fn read(
    backend: &mut dyn Backend,
    program: &Program,
    var: Var,
    step: &StepScalars,
) -> Result<Vec<f32>, BackendError> {
    let span = program.span(var, &step.extents);
    let mut words = vec![0.0f32; span.len];
    backend.read(span, bytemuck::cast_slice_mut(&mut words))?;
    Ok(program.dtype(var).to_f32(words, program.shape(var).len(&step.extents)))
}

fn write(
    backend: &mut dyn Backend,
    program: &Program,
    var: Var,
    step: &StepScalars,
    values: &[f32],
) -> Result<(), BackendError> {
    let span = program.span(var, &step.extents);
    match program.dtype(var) {
        DType::Bf16 => {
            let mut halves: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            halves.resize(2 * span.len, bf16::ZERO);
            backend.write(span, bytemuck::cast_slice(&halves))
        }
        DType::F32 | DType::U32 => backend.write(span, bytemuck::cast_slice(values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_and_say_where() {
        assert_eq!(error(&[3.0, 4.0], &[3.0, 4.5], 1e-10), (0.1, 1));
        assert_eq!(error(&[0.0; 2], &[0.0, 0.5], 2.0), (0.25, 1));
        assert_eq!(error(&[0.0; 2], &[0.0; 2], 1e-10).0, 0.0);
        let (found, worst) = error(&[1.0, 2.0, 3.0], &[1.0, f32::NAN, 9.0], 1e-10);
        assert!(found.is_nan() && worst == 1);
        assert!(error(&[f32::INFINITY], &[f32::INFINITY], 1e-10).0.is_nan());
    }
}
