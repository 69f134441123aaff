//! The figures of a distillation: students beside their twins and teachers.

use std::fmt;

use serde::Serialize;

use crate::data::TaskSpec;
use crate::train::evaluate::Evaluation;
use crate::train::trainer::mean_of_main_metrics;

/// The table of an experiment. Figures are the tasks' main dev metrics.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// A row for each task that has a dev set, and then their mean.
    pub rows: Vec<Row>,
    /// How many teachers were averaged.
    pub teachers: usize,
    /// How many students and twins there are.
    pub seeds: usize,
}

/// What one task has come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The task's name, or `mean`.
    pub task: String,
    /// What the figures are; nothing for the mean.
    pub metric: String,
    /// The mean of the teachers, each by itself.
    pub teachers: f64,
    /// The average of their answers; none where the task has no teachers.
    pub ensemble: Option<f64>,
    /// Trained on hard labels alone.
    pub hard: Spread,
    /// Trained on soft labels as well.
    pub soft: Spread,
    /// Students less their twins, seed by seed.
    pub difference: Spread,
}

/// A figure over several seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Its mean.
    pub mean: f64,
    /// Its sample standard deviation; none for one seed.
    pub deviation: Option<f64>,
    /// Each seed's.
    pub values: Vec<f64>,
}

impl Spread {
    /// The mean and deviation of one value or more.
    pub fn new(values: Vec<f64>) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, deviation: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()), values }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.deviation {
            Some(deviation) => write!(f, "{:.4} ± {deviation:.4}", self.mean),
            None => write!(f, "{:.4}", self.mean),
        }
    }
}

impl Results {
    /// From the figures of the teachers that teach, of their average, and of each seed's twin and student.
    pub(super) fn new(
        tasks: &[TaskSpec],
        taught: &[bool],
        teachers: &[Vec<Evaluation>],
        ensemble: &[Evaluation],
        twins: &[Vec<Evaluation>],
        students: &[Vec<Evaluation>],
    ) -> Self {
        let measured = |task: &usize| twins[0].iter().any(|evaluation| evaluation.task == *task);
        let numbers: Vec<usize> = (0..tasks.len()).filter(measured).collect();
        let row = |name: &str, metric: String, of: &dyn Fn(&[Evaluation]) -> f64, ensemble: Option<f64>| {
            let values = |runs: &[Vec<Evaluation>]| runs.iter().map(|run| of(run)).collect::<Vec<f64>>();
            let (hard, soft) = (values(twins), values(students));
            Row {
                task: name.to_string(),
                metric,
                teachers: Spread::new(values(teachers)).mean,
                ensemble,
                difference: Spread::new(soft.iter().zip(&hard).map(|(soft, hard)| soft - hard).collect()),
                hard: Spread::new(hard),
                soft: Spread::new(soft),
            }
        };
        let mut rows = Vec::new();
        for &task in &numbers {
            let of = |run: &[Evaluation]| main_metric(run, task);
            let average = taught[task].then(|| main_metric(ensemble, task));
            rows.push(row(&tasks[task].name, tasks[task].metrics[0].to_string(), &of, average));
        }
        let all_taught = numbers.iter().all(|&task| taught[task]);
        let average = all_taught.then(|| mean_of_main_metrics(ensemble));
        rows.push(row("mean", String::new(), &mean_of_main_metrics, average));
        Self { rows, teachers: teachers.len(), seeds: twins.len() }
    }

    /// Whether the students beat their twins, in a sentence.
    pub fn verdict(&self) -> String {
        let difference = &self.rows[self.rows.len() - 1].difference;
        let seeds = if self.seeds == 1 { "1 seed".into() } else { format!("{} seeds", self.seeds) };
        let better = difference.values.iter().filter(|value| **value > 0.0).count();
        let verdict = match difference.mean {
            mean if mean > 0.0 => "Soft labels beat hard labels on average",
            mean if mean < 0.0 => "Soft labels do not beat hard labels on average",
            _ => "Soft labels and hard labels are even on average",
        };
        let chance = match difference.deviation {
            Some(deviation) if deviation > difference.mean.abs() => {
                "; the seeds differ by more than that, so it may be chance"
            }
            _ => "",
        };
        format!(
            "{verdict}: the mean of the tasks' main dev metrics differs by {:+.4} over {seeds}; in {better} the student \
             is better{chance}.",
            difference.mean
        )
    }
}

/// A task's main metric in a run, the mean over its dev sets.
fn main_metric(run: &[Evaluation], task: usize) -> f64 {
    let own: Vec<Evaluation> = run.iter().filter(|evaluation| evaluation.task == task).cloned().collect();
    mean_of_main_metrics(&own)
}

/// As Markdown.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let teachers =
            if self.teachers == 1 { "1 teacher".into() } else { format!("{} teachers", self.teachers) };
        writeln!(
            f,
            "| task | metric | {teachers}, mean | their average | hard labels | soft labels | difference |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for Row { task, metric, teachers, ensemble, hard, soft, difference } in &self.rows {
            let ensemble = ensemble.map_or("-".into(), |ensemble| format!("{ensemble:.4}"));
            let sign = if difference.mean >= 0.0 { "+" } else { "" };
            writeln!(
                f,
                "| {task} | {metric} | {teachers:.4} | {ensemble} | {hard} | {soft} | {sign}{difference} |"
            )?;
        }
        writeln!(f, "\n{}", self.verdict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{MetricKind, TaskKind};

    fn run(figures: [f64; 2]) -> Vec<Evaluation> {
        let one = |(task, value): (usize, f64)| Evaluation {
            task,
            split: "dev".into(),
            examples: 10,
            metrics: vec![(MetricKind::Accuracy, value)],
            steps: Vec::new(),
        };
        figures.into_iter().enumerate().map(one).collect()
    }

    fn results(twins: &[[f64; 2]], students: &[[f64; 2]]) -> Results {
        let tasks = ["a", "b"].map(|name| TaskSpec::new(name, TaskKind::Classification));
        let runs = |figures: &[[f64; 2]]| figures.iter().map(|&figures| run(figures)).collect::<Vec<_>>();
        let teachers = runs(&[[0.5, 0.25], [0.75, 0.25]]);
        let ensemble = &run([0.8, 0.0])[..1];
        Results::new(&tasks, &[true, false], &teachers, ensemble, &runs(twins), &runs(students))
    }

    #[test]
    fn figures_are_means_over_seeds() {
        let results = results(&[[0.5, 0.5], [0.7, 0.5]], &[[0.7, 0.5], [0.8, 0.25]]);
        let [a, b, mean] = &results.rows[..] else { panic!("{results:?}") };
        assert_eq!((a.teachers, a.ensemble, b.ensemble, mean.ensemble), (0.625, Some(0.8), None, None));
        assert!((a.hard.mean - 0.6).abs() < 1e-12 && (a.soft.mean - 0.75).abs() < 1e-12);
        // Two values a tenth from their mean each.
        assert!((a.hard.deviation.unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
        assert!((b.difference.mean + 0.125).abs() < 1e-12);
        assert!((mean.difference.mean - 0.0125).abs() < 1e-12);
        let text = results.to_string();
        assert!(
            text.contains("| a | accuracy | 0.6250 | 0.8000 | 0.6000 ± 0.1414 | 0.7500 ± 0.0707 | +0.1500"),
            "{text}"
        );
        assert!(text.contains("Soft labels beat hard labels on average"), "{text}");
        // The one student gains 0.1, the other loses 0.075.
        let said = "+0.0125 over 2 seeds; in 1 the student is better; the seeds differ by more than that, so it may be chance";
        assert!(text.contains(said), "{text}");
    }

    #[test]
    fn a_student_that_is_not_better_is_said_to_be_so() {
        let worse = results(&[[0.5, 0.5]], &[[0.25, 0.5]]).to_string();
        assert!(worse.contains("Soft labels do not beat hard labels on average"), "{worse}");
        assert!(worse.contains("-0.1250 over 1 seed; in 0 the student is better"), "{worse}");
        let alike = results(&[[0.5, 0.5], [0.5, 0.5]], &[[0.75, 0.5], [0.75, 0.5]]).verdict();
        assert!(alike.ends_with("in 2 the student is better."), "{alike}");
        assert!(results(&[[0.5, 0.5]], &[[0.5, 0.5]]).verdict().contains("are even"));
    }
}
