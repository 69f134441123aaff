//! The `[distill]` table of a run file.

use serde::{Deserialize, Serialize};

use crate::train::config::ConfigValueError;

/// How a student is taught: the recipe of Liu et al. 2019 (arXiv 1904.09482), whose teachers are multi-task models of
/// several dropouts, of which the best are averaged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// The tasks that have teachers; all if none is named. The others are trained on hard labels alone.
    pub tasks: Vec<String>,
    /// How many teachers are trained, each from a seed of its own.
    pub teachers: u32,
    /// How many of them teach, the best by the mean dev figure of the tasks with teachers; 0 for all.
    pub top: u32,
    /// The encoder's dropout of each teacher in turn; none leaves it at what `train.dropout` says.
    pub dropouts: Vec<f64>,
    /// What the loss of hard labels counts; that of soft labels counts the rest.
    pub hard_weight: f32,
    /// The temperature of soft labels; scores have none.
    pub temperature: f32,
    /// How many students, and as many twins that are trained on hard labels alone.
    pub seeds: u32,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            teachers: 3,
            top: 0,
            dropouts: Vec::new(),
            hard_weight: 0.5,
            temperature: 1.0,
            seeds: 3,
        }
    }
}

impl DistillConfig {
    /// Checks what a person may have got wrong but for the tasks' names.
    pub fn validate(&self) -> Result<(), ConfigValueError> {
        let fail = |field, problem: String| Err(ConfigValueError::new("distill", field, problem));
        if self.teachers == 0 {
            return fail("teachers", "0 teach nothing; give 1 or more".into());
        }
        if self.top > self.teachers {
            return fail("top", format!("{} of {} teachers; 0 keeps all", self.top, self.teachers));
        }
        if self.seeds == 0 {
            return fail("seeds", "0 students learn nothing; give 1 or more".into());
        }
        if let Some(dropout) = self.dropouts.iter().find(|dropout| !(0.0..1.0).contains(*dropout)) {
            return fail("dropouts", format!("{dropout} is not a probability in [0, 1)"));
        }
        if self.dropouts.len() > self.teachers as usize {
            let problem = format!("{} of them for {} teachers", self.dropouts.len(), self.teachers);
            return fail("dropouts", problem);
        }
        if !(0.0..1.0).contains(&self.hard_weight) {
            return fail("hard_weight", format!("{} is not a share in [0, 1)", self.hard_weight));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return fail("temperature", format!("{} is not a number above 0", self.temperature));
        }
        Ok(())
    }
}
