//! The parameter table: every parameter's name, shape and place in one flat buffer.
//!
//! Clipping, update and checkpoint are one call over the buffer each; a layer only remembers offsets.

use std::ops::Range;

use crate::random::philox4x32_10;

/// How a new parameter is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros: biases, and the norms' beta.
    Zeros,
    /// All ones: the norms' gamma.
    Ones,
    /// Normal with this standard deviation, cut at two of them (Devlin et al. 2018).
    TruncatedNormal(f32),
    /// Even in [-bound, bound]: PyTorch's recurrent units, with one over the root of the state's size.
    Uniform(f32),
}

/// One tensor of the model under its name in the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The Hugging Face name without the `bert.` prefix, or `heads.<task>.…`.
    pub name: String,
    /// The shape in the checkpoint.
    pub shape: Vec<usize>,
    /// The first element in the flat buffers.
    pub offset: usize,
    /// How it is filled when it is new.
    pub init: Init,
}

impl Parameter {
    /// The elements in the flat buffers.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape.iter().product::<usize>()
    }

    /// Whether weight decay applies: to matrices, not to biases and norms (Devlin et al. 2018).
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// All parameters of a model: first the encoder, then each head, each a contiguous range.
#[derive(Clone, Debug, Default)]
pub struct ParameterTable {
    parameters: Vec<Parameter>,
    len: usize,
}

impl ParameterTable {
    /// Appends a parameter and returns its offset. Parameters added one after another lie side by side,
    /// so that query, key and value form one matrix.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> usize {
        let parameter = Parameter { name: name.into(), shape: shape.to_vec(), offset: self.len, init };
        self.len = parameter.range().end;
        let offset = parameter.offset;
        self.parameters.push(parameter);
        offset
    }

    /// Moves on to the next cache line: parts that are updated separately do not share one.
    pub fn align(&mut self) {
        self.len = self.len.next_multiple_of(16);
    }

    /// The parameters in the order of their offsets.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The length of the flat buffers in elements, gaps of [`ParameterTable::align`] included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// The number of trained numbers, without gaps.
    pub fn count(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.range().len()).sum()
    }

    /// The parameter that an element of the flat buffers belongs to.
    pub fn at(&self, element: usize) -> Option<&Parameter> {
        let after = self.parameters.partition_point(|parameter| parameter.offset <= element);
        self.parameters[..after].last().filter(|parameter| parameter.range().contains(&element))
    }

    /// Fills one new parameter. The draw depends on the seed and the parameter's name alone, so a head is
    /// initialised the same whatever other tasks there are.
    pub fn initialise(&self, parameter: &Parameter, seed: u64, values: &mut [f32]) {
        assert_eq!(values.len(), parameter.range().len(), "{} does not fit", parameter.name);
        match parameter.init {
            Init::Zeros => values.fill(0.0),
            Init::Ones => values.fill(1.0),
            Init::TruncatedNormal(deviation) => {
                let stream = name_hash(&parameter.name);
                for (index, value) in values.iter_mut().enumerate() {
                    *value = truncated_normal(index as u64, stream, seed) * deviation;
                }
            }
            Init::Uniform(bound) => {
                let stream = name_hash(&parameter.name);
                let key = [seed as u32, (seed >> 32) as u32];
                for (index, value) in (0u64..).zip(values) {
                    let [word, ..] = philox4x32_10([index as u32, (index >> 32) as u32, stream, 0], key);
                    *value = ((f64::from(word) + 0.5) / 2_147_483_648.0 - 1.0) as f32 * bound;
                }
            }
        }
    }
}

/// A standard normal number cut at two deviations, by Box and Muller's transform and rejection.
fn truncated_normal(index: u64, stream: u32, seed: u64) -> f32 {
    let key = [seed as u32, (seed >> 32) as u32];
    for attempt in 0.. {
        let [a, b, ..] = philox4x32_10([index as u32, (index >> 32) as u32, stream, attempt], key);
        let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * uniform(a).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * uniform(b)).cos();
        if normal.abs() <= 2.0 {
            return normal as f32;
        }
    }
    unreachable!("one draw in twenty is rejected")
}

/// FNV-1a: tells the streams of two parameters apart.
fn name_hash(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_weights_are_normal_cut_at_two_deviations() {
        let mut table = ParameterTable::default();
        table.add("weight", &[200, 500], Init::TruncatedNormal(0.02));
        let mut values = vec![0.0; 100_000];
        table.initialise(&table.parameters()[0], 7, &mut values);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 1e5 - mean * mean;
        // A normal cut at two deviations has the standard deviation 0.8796.
        assert!(mean.abs() < 0.02 * 0.88 * 4.0 / 1e5f64.sqrt(), "mean {mean}");
        assert!((variance.sqrt() / 0.02 - 0.8796).abs() < 0.01, "deviation {}", variance.sqrt());
        assert!(values.iter().all(|v| v.abs() <= 0.04));
    }

    #[test]
    fn even_weights_fill_their_range() {
        let mut table = ParameterTable::default();
        table.add("weight", &[100, 1000], Init::Uniform(0.25));
        let mut values = vec![0.0; 100_000];
        table.initialise(&table.parameters()[0], 7, &mut values);
        assert!(values.iter().all(|v| v.abs() <= 0.25));
        for tenth in 0..10 {
            let range = 0.05 * tenth as f32 - 0.25..0.05 * (tenth + 1) as f32 - 0.25;
            let inside = values.iter().filter(|v| range.contains(v)).count();
            // Binomial: deviation 95.
            assert!((9600..10_400).contains(&inside), "{inside} in {range:?}");
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_name_alone() {
        let fill = |before: usize, name: &str, seed| {
            let mut table = ParameterTable::default();
            table.add("other", &[before, 3], Init::Zeros);
            table.add(name, &[4, 4], Init::TruncatedNormal(1.0));
            let mut values = vec![0.0; 16];
            table.initialise(&table.parameters()[1], seed, &mut values);
            values
        };
        assert_eq!(fill(1, "a", 1), fill(9, "a", 1));
        assert_ne!(fill(1, "a", 1), fill(1, "b", 1));
        assert_ne!(fill(1, "a", 1), fill(1, "a", 2));
    }

    #[test]
    fn finds_the_parameter_of_an_element() {
        let mut table = ParameterTable::default();
        table.add("a", &[3], Init::Zeros);
        table.align();
        table.add("b", &[2, 2], Init::Zeros);
        assert_eq!(table.at(2).unwrap().name, "a");
        assert!(table.at(3).is_none(), "the gap belongs to nobody");
        assert_eq!(table.at(16).unwrap().name, "b");
        assert_eq!((table.len(), table.count()), (20, 7));
    }
}
