//! How a run mixes its tasks: `[train.mix]` of the run file, and the sampler that it asks for.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::config::{ConfigValueError, TrainConfig};
use super::trainer::TaskData;
use crate::data::{Batching, Mix, Sampler, TaskSpec};

/// How the batches of a run's tasks are mixed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixConfig {
    /// By which rule.
    pub kind: MixKind,
    /// The main task; the first that is trained if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main: Option<String>,
    /// `ratio`: batches of other tasks for each of the main task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// `every`: of how many batches one is the main task's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u32>,
    /// `temperature`: the higher, the more evenly tasks are drawn; 1 is `proportional`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// `temperature`: examples of a task that count at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<usize>,
    /// Batches of an epoch of the kinds that draw tasks; as many as one pass over all tasks has if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batches_per_epoch: Option<usize>,
    /// `weights`: a number for each task that is trained.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
}

/// The rules by which tasks are mixed; [`Mix`] says what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MixKind {
    /// All batches of all tasks, shuffled together (Liu et al. 2019).
    #[default]
    #[serde(rename = "algorithm-1")]
    Algorithm1,
    /// Drawn in proportion to the number of examples.
    Proportional,
    /// Drawn in proportion to its square root.
    SquareRoot,
    /// Drawn in proportion to `min(examples, cap) ^ (1 / temperature)`.
    Temperature,
    /// Drawn in proportion to `examples ^ alpha`, where alpha goes from 1 in the first epoch to 0.2 in the last
    /// (Stickland and Murray 2019, arXiv 1902.02671).
    Annealed,
    /// Drawn one as likely as the other.
    Uniform,
    /// Drawn in proportion to a weight of its own.
    Weights,
    /// All batches of the main task, and of others so many for each (Xu et al. 2019, arXiv 1809.06963).
    Ratio,
    /// All batches, the main task's last.
    MainLast,
    /// The main task's every so-many-th, the others one as likely as the other (Subramanian et al. 2018).
    Every,
}

/// The last exponent of `annealed`.
const LAST_ALPHA: f64 = 0.2;

impl MixKind {
    const ALL: [MixKind; 10] = [
        MixKind::Algorithm1,
        MixKind::Proportional,
        MixKind::SquareRoot,
        MixKind::Temperature,
        MixKind::Annealed,
        MixKind::Uniform,
        MixKind::Weights,
        MixKind::Ratio,
        MixKind::MainLast,
        MixKind::Every,
    ];

    /// Its name in run files.
    pub fn name(self) -> &'static str {
        match self {
            MixKind::Algorithm1 => "algorithm-1",
            MixKind::Proportional => "proportional",
            MixKind::SquareRoot => "square-root",
            MixKind::Temperature => "temperature",
            MixKind::Annealed => "annealed",
            MixKind::Uniform => "uniform",
            MixKind::Weights => "weights",
            MixKind::Ratio => "ratio",
            MixKind::MainLast => "main-last",
            MixKind::Every => "every",
        }
    }

    /// The keys that say more of it: those it cannot do without, and the others.
    fn keys(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            MixKind::Algorithm1 => (&[], &[]),
            MixKind::Proportional | MixKind::SquareRoot | MixKind::Annealed | MixKind::Uniform => {
                (&[], &["batches_per_epoch"])
            }
            MixKind::Temperature => (&["temperature"], &["cap", "batches_per_epoch"]),
            MixKind::Weights => (&["weights"], &["batches_per_epoch"]),
            MixKind::Ratio => (&["ratio"], &["main"]),
            MixKind::MainLast => (&[], &["main"]),
            MixKind::Every => (&["every"], &["main", "batches_per_epoch"]),
        }
    }

    fn uses(self, key: &str) -> bool {
        let (needed, taken) = self.keys();
        needed.contains(&key) || taken.contains(&key)
    }
}

const TABLE: &str = "train.mix";

fn wrong<T>(key: &'static str, problem: String) -> Result<T, ConfigValueError> {
    Err(ConfigValueError::new(TABLE, key, problem))
}

impl MixConfig {
    /// Checks that the keys are those of the kind, and their ranges.
    pub fn validate(&self) -> Result<(), ConfigValueError> {
        let kind = self.kind;
        for (key, given) in [
            ("main", self.main.is_some()),
            ("ratio", self.ratio.is_some()),
            ("every", self.every.is_some()),
            ("temperature", self.temperature.is_some()),
            ("cap", self.cap.is_some()),
            ("batches_per_epoch", self.batches_per_epoch.is_some()),
            ("weights", !self.weights.is_empty()),
        ] {
            if given && !kind.uses(key) {
                let users = MixKind::ALL.into_iter().filter(|kind| kind.uses(key)).map(MixKind::name);
                let users = users.collect::<Vec<_>>().join(", ");
                return wrong(key, format!("it means nothing to the mix {}, but to {users}", kind.name()));
            }
            if !given && kind.keys().0.contains(&key) {
                return wrong(key, format!("the mix {} needs it", kind.name()));
            }
        }
        if let Some(ratio) = self.ratio
            && !(ratio.is_finite() && ratio >= 0.0)
        {
            return wrong("ratio", format!("{ratio} is not a number of at least 0; 0.5 is usual"));
        }
        if let Some(every @ (0 | 1)) = self.every {
            return wrong("every", format!("{every} leaves no batch to the other tasks; give 2 or more"));
        }
        if let Some(temperature) = self.temperature
            && !(temperature.is_finite() && temperature > 0.0)
        {
            return wrong("temperature", format!("{temperature} is not a number above 0; 2 to 5 are usual"));
        }
        for (key, value) in [("cap", self.cap), ("batches_per_epoch", self.batches_per_epoch)] {
            if value == Some(0) {
                return wrong(key, "give 1 or more, or leave it out".into());
            }
        }
        if let Some((task, weight)) = self.weights.iter().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
            return wrong("weights", format!("{task} = {weight} is not a number of at least 0"));
        }
        if kind == MixKind::Weights && self.weights.values().all(|&weight| weight == 0.0) {
            return wrong("weights", "all are 0, so there is nothing to draw".into());
        }
        Ok(())
    }

    /// The same with the numbers of the `trained` tasks for their names.
    fn resolve(&self, trained: &[&str]) -> Result<Mix, ConfigValueError> {
        self.validate()?;
        let find = |key, name: &str| match trained.iter().position(|task| *task == name) {
            Some(task) => Ok(task),
            None => wrong(
                key,
                format!("{name:?} is not a task that is trained; these are: {}", trained.join(", ")),
            ),
        };
        let main = || self.main.as_ref().map_or(Ok(0), |name| find("main", name));
        let power = |exponent| Mix::Power { first: exponent, last: exponent, cap: self.cap.unwrap_or(0) };
        Ok(match self.kind {
            MixKind::Algorithm1 => Mix::Algorithm1,
            MixKind::Proportional => power(1.0),
            MixKind::SquareRoot => power(0.5),
            MixKind::Uniform => power(0.0),
            MixKind::Temperature => power(1.0 / self.temperature.expect("validated")),
            MixKind::Annealed => Mix::Power { first: 1.0, last: LAST_ALPHA, cap: 0 },
            MixKind::Weights => {
                for name in self.weights.keys() {
                    find("weights", name)?;
                }
                let weight = |task: &&str| match self.weights.get(*task) {
                    Some(&weight) => Ok(weight),
                    None => wrong("weights", format!("there is none for {task}; 0 leaves a task out")),
                };
                Mix::Weights(trained.iter().map(weight).collect::<Result<_, _>>()?)
            }
            MixKind::Ratio => Mix::Ratio { main: main()?, ratio: self.ratio.expect("validated") },
            MixKind::MainLast => Mix::MainLast { main: main()? },
            MixKind::Every if trained.len() == 1 => {
                return wrong("every", format!("{} is the only task, and needs no mixing", trained[0]));
            }
            MixKind::Every => Mix::Every { main: main()?, every: self.every.expect("validated") },
        })
    }
}

/// `temperature 5, cap 2000`.
impl fmt::Display for MixConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match (self.kind, &self.main) {
            (MixKind::Temperature, _) => write!(f, " {}", self.temperature.unwrap_or_default())?,
            (MixKind::Ratio, _) => write!(f, " {}", self.ratio.unwrap_or_default())?,
            (MixKind::Every, _) => write!(f, " {}", self.every.unwrap_or_default())?,
            _ => {}
        }
        if let Some(main) = &self.main {
            write!(f, ", main task {main}")?;
        }
        if let Some(cap) = self.cap {
            write!(f, ", cap {cap}")?;
        }
        for (number, (task, weight)) in self.weights.iter().enumerate() {
            write!(f, "{} {task} {weight}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The tasks that have examples to train on, by their numbers in the model, and the sampler that draws from them.
///
/// # Errors
/// A mix that names a task that is not trained, or a bucket that holds no more than a batch.
pub fn sampler<'a>(
    config: &TrainConfig,
    seed: u64,
    tasks: &[TaskSpec],
    data: &'a [TaskData],
) -> Result<(Vec<usize>, Sampler<'a>), ConfigValueError> {
    let trained: Vec<usize> = (0..data.len()).filter(|&task| !data[task].train.is_empty()).collect();
    let names: Vec<&str> = trained.iter().map(|&task| tasks[task].name.as_str()).collect();
    let mix = config.mix.resolve(&names)?;
    let sets = trained.iter().map(|&task| Ok((&data[task].train, config.batching(&tasks[task])?)));
    let sets = sets.collect::<Result<_, _>>()?;
    Ok((trained, Sampler::new(seed, mix, config.epochs, config.mix.batches_per_epoch, sets)))
}

/// Updates of a whole run: each epoch ends with one, of fewer batches if need be.
pub fn total_updates(config: &TrainConfig, sampler: &Sampler) -> u64 {
    let most = if config.max_steps > 0 { config.max_steps } else { u64::MAX };
    let mut total = 0;
    for epoch in 0..config.epochs {
        total += sampler.batches(epoch).div_ceil(config.accumulation as usize) as u64;
        if total >= most {
            return most;
        }
    }
    total
}

impl TrainConfig {
    /// How a task's examples are cut into batches.
    ///
    /// # Errors
    /// A bucket that holds no more than a batch: it would have no effect.
    pub fn batching(&self, task: &TaskSpec) -> Result<Batching, ConfigValueError> {
        let examples = task.batch_size.unwrap_or(self.batch_size);
        if self.bucket > 0 && self.bucket <= examples {
            let problem = format!(
                "{} examples are no more than a batch of task {} has; give some fifty times its batch_size",
                self.bucket, task.name
            );
            return Err(ConfigValueError::new("train", "bucket", problem));
        }
        Ok(Batching { examples, tokens: self.batch_tokens, bucket: self.bucket })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(text: &str) -> MixConfig {
        toml::from_str(text).unwrap()
    }

    fn resolved(text: &str) -> Mix {
        mix(text).resolve(&["rte", "cola", "mnli"]).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_kind_becomes_its_mix() {
        let power = |first, last, cap| Mix::Power { first, last, cap };
        assert_eq!(resolved(""), Mix::Algorithm1);
        assert_eq!(resolved("kind = \"algorithm-1\""), Mix::Algorithm1);
        assert_eq!(resolved("kind = \"proportional\""), power(1.0, 1.0, 0));
        assert_eq!(resolved("kind = \"square-root\""), power(0.5, 0.5, 0));
        assert_eq!(resolved("kind = \"uniform\""), power(0.0, 0.0, 0));
        assert_eq!(resolved("kind = \"annealed\""), power(1.0, 0.2, 0));
        assert_eq!(resolved("kind = \"temperature\"\ntemperature = 5"), power(0.2, 0.2, 0));
        assert_eq!(resolved("kind = \"temperature\"\ntemperature = 2.0\ncap = 90"), power(0.5, 0.5, 90));
        assert_eq!(
            resolved("kind = \"weights\"\nweights = { mnli = 0, rte = 1.5, cola = 2 }"),
            Mix::Weights(vec![1.5, 2.0, 0.0])
        );
        assert_eq!(resolved("kind = \"ratio\"\nratio = 0.5"), Mix::Ratio { main: 0, ratio: 0.5 });
        assert_eq!(
            resolved("kind = \"ratio\"\nratio = 1\nmain = \"mnli\""),
            Mix::Ratio { main: 2, ratio: 1.0 }
        );
        assert_eq!(resolved("kind = \"main-last\"\nmain = \"cola\""), Mix::MainLast { main: 1 });
        assert_eq!(
            resolved("kind = \"every\"\nevery = 10\nmain = \"mnli\""),
            Mix::Every { main: 2, every: 10 }
        );
        for kind in MixKind::ALL {
            let table = toml::Table::try_from(MixConfig { kind, ..MixConfig::default() }).unwrap();
            assert_eq!(table["kind"].as_str(), Some(kind.name()));
        }
    }

    #[test]
    fn what_a_mix_cannot_mean_is_refused() {
        for (text, words) in [
            ("cap = 9", "train.mix.cap: it means nothing to the mix algorithm-1, but to temperature"),
            (
                "kind = \"uniform\"\nmain = \"rte\"",
                "main: it means nothing to the mix uniform, but to ratio, main-last, every",
            ),
            ("kind = \"ratio\"\nratio = 1\nbatches_per_epoch = 9", "batches_per_epoch: it means nothing"),
            ("kind = \"annealed\"\ntemperature = 2", "temperature: it means nothing"),
            ("kind = \"main-last\"\nratio = 2", "ratio: it means nothing"),
            ("kind = \"main-last\"\nevery = 2", "every: it means nothing"),
            ("weights = { rte = 1 }", "weights: it means nothing to the mix algorithm-1, but to weights"),
            ("kind = \"ratio\"", "ratio: the mix ratio needs it"),
            ("kind = \"every\"", "every: the mix every needs it"),
            ("kind = \"temperature\"", "temperature: the mix temperature needs it"),
            ("kind = \"weights\"", "weights: the mix weights needs it"),
            ("kind = \"ratio\"\nratio = -0.5", "ratio: -0.5 is not a number of at least 0"),
            ("kind = \"ratio\"\nratio = nan", "ratio: NaN is not a number"),
            ("kind = \"every\"\nevery = 1", "every: 1 leaves no batch to the other tasks"),
            ("kind = \"temperature\"\ntemperature = 0", "temperature: 0 is not a number above 0"),
            ("kind = \"temperature\"\ntemperature = -1", "temperature: -1 is not a number above 0"),
            ("kind = \"temperature\"\ntemperature = 1\ncap = 0", "cap: give 1 or more"),
            ("kind = \"uniform\"\nbatches_per_epoch = 0", "batches_per_epoch: give 1 or more"),
            (
                "kind = \"weights\"\nweights = { rte = -1, cola = 1, mnli = 1 }",
                "rte = -1 is not a number of at least 0",
            ),
            ("kind = \"weights\"\nweights = { rte = 0, cola = 0 }", "all are 0"),
            (
                "kind = \"weights\"\nweights = { rte = 1, cola = 1 }",
                "there is none for mnli; 0 leaves a task out",
            ),
            (
                "kind = \"weights\"\nweights = { qqp = 1 }",
                "\"qqp\" is not a task that is trained; these are: rte, cola, mnli",
            ),
            ("kind = \"main-last\"\nmain = \"ax\"", "main: \"ax\" is not a task that is trained"),
        ] {
            let error = mix(text).resolve(&["rte", "cola", "mnli"]).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = mix("kind = \"every\"\nevery = 2").resolve(&["rte"]).unwrap_err().to_string();
        assert!(error.contains("rte is the only task"), "{error}");
    }

    #[test]
    fn a_bucket_holds_more_than_a_batch() {
        let task = TaskSpec::new("rte", crate::data::TaskKind::Classification);
        let config = TrainConfig { bucket: 64, batch_tokens: 900, ..TrainConfig::default() };
        let expected = Batching { examples: 32, tokens: 900, bucket: 64 };
        assert_eq!(config.batching(&task).unwrap(), expected);
        let small = TaskSpec { batch_size: Some(8), ..task.clone() };
        assert_eq!(config.batching(&small).unwrap(), Batching { examples: 8, ..expected });
        let large = TaskSpec { batch_size: Some(64), ..task };
        let error = config.batching(&large).unwrap_err().to_string();
        assert!(error.contains("64 examples are no more than a batch of task rte"), "{error}");
    }
}
