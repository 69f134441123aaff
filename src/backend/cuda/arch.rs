//! Which kind of code a device runs.

use std::fmt;
use std::str::FromStr;

use super::nvrtc::{ARCHITECTURES, HOPPER};

/// An architecture of NVIDIA's devices: `sm_90a`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arch(String);

impl Arch {
    /// The architecture of a device of this compute capability.
    pub fn of_capability(major: u32, minor: u32) -> Self {
        // Only with the `a` does the compiler take Hopper's matrix instructions, and no other device has them.
        let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
        Self(format!("{major}{minor}{suffix}"))
    }

    /// Those that kernels are written and checked for.
    pub fn all() -> Vec<Self> {
        ARCHITECTURES.map(Self::of_name).to_vec()
    }

    /// The one whose name behind `sm_` this is.
    pub(super) fn of_name(name: &str) -> Self {
        Self(name.into())
    }

    /// What stands behind `sm_`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether devices of it have Hopper's matrix instructions: compute capability 9.0.
    pub fn is_hopper(&self) -> bool {
        self.0 == HOPPER
    }

    /// Whether a device of this architecture runs what was compiled for `other`: the same major number and no later
    /// minor one. What was compiled with a letter runs on its own device alone.
    pub(super) fn runs(&self, other: &str) -> bool {
        let number = |name: &str| name.parse::<u32>().ok();
        match (number(self.0.trim_end_matches('a')), number(other)) {
            (Some(own), Some(other)) => own / 10 == other / 10 && own >= other,
            _ => self.0 == other,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.trim_start_matches("sm_");
        let number = name.strip_suffix(['a', 'f']).unwrap_or(name);
        match number.len() {
            2..=3 if number.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Self(name.into())),
            _ => Err(format!("{text} is no architecture; they go by {}", ARCHITECTURES.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_runs_its_own_code_and_that_of_earlier_ones_of_its_generation() {
        let runs =
            |capability: (u32, u32), other| Arch::of_capability(capability.0, capability.1).runs(other);
        assert_eq!(Arch::of_capability(9, 0).to_string(), "sm_90a");
        assert_eq!(Arch::of_capability(12, 1).to_string(), "sm_121");
        assert!(runs((9, 0), "90a") && runs((8, 9), "86") && runs((10, 3), "100") && runs((12, 1), "120"));
        assert!(!runs((8, 0), "86") && !runs((9, 0), "80") && !runs((12, 0), "100") && !runs((9, 1), "90a"));
    }

    #[test]
    fn names_are_taken_with_and_without_their_prefix() {
        assert_eq!("sm_90a".parse::<Arch>().unwrap(), "90a".parse().unwrap());
        for wrong in ["", "9", "90b", "a", "compute_90", "1000", "sm_"] {
            assert!(wrong.parse::<Arch>().unwrap_err().contains("90a"), "{wrong}");
        }
    }

    #[test]
    fn compute_capability_9_0_alone_is_hopper() {
        let hopper = |major, minor| Arch::of_capability(major, minor).is_hopper();
        assert!(hopper(9, 0));
        for (major, minor) in [(8, 0), (8, 9), (9, 1), (10, 0), (12, 0)] {
            assert!(!hopper(major, minor), "{major}.{minor}");
        }
    }
}
