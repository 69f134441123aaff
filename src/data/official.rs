//! How many rows the official files of the known tasks have, so that a sample or a cut file is not taken for the whole.
//!
//! From the files themselves, and Wang et al. 2019 (arXiv 1804.07461), table 1; a header is not counted.

/// The numbers of rows that the official file of a set has, each with what it tells; none where it is not known.
///
/// `task` and `set` are the names of [`glue`](super::glue): `"mnli"` and `"dev_matched"`. Several numbers are several
/// editions, the usual one first.
pub fn rows(task: &str, set: &str) -> &'static [(usize, &'static str)] {
    let found = ROWS.iter().find(|(known, of, _)| *known == task && *of == set);
    found.map_or(&[], |(_, _, rows)| rows)
}

/// GLUE had a first QNLI, whose lines come in pairs of one question, until January 2019.
pub const QNLI_V1: &str = "QNLI v1";
/// The QNLI of today.
pub const QNLI_V2: &str = "QNLI v2";

/// A task, a set, and the numbers of rows that it may have.
type Known = (&'static str, &'static str, &'static [(usize, &'static str)]);

const ROWS: &[Known] = &[
    ("cola", "train", &[(8_551, "")]),
    ("cola", "dev", &[(1_043, ""), (527, "the in-domain half")]),
    ("cola", "test", &[(1_063, "")]),
    ("sst2", "train", &[(67_349, "")]),
    ("sst2", "dev", &[(872, "")]),
    ("sst2", "test", &[(1_821, "")]),
    ("mrpc", "train", &[(3_668, "")]),
    ("mrpc", "dev", &[(408, "")]),
    ("mrpc", "test", &[(1_725, "")]),
    ("stsb", "train", &[(5_749, "")]),
    ("stsb", "dev", &[(1_500, "")]),
    ("stsb", "test", &[(1_379, "")]),
    ("qqp", "train", &[(363_846, "")]),
    ("qqp", "dev", &[(40_430, "")]),
    ("qqp", "test", &[(390_965, "")]),
    ("mnli", "train", &[(392_702, "")]),
    ("mnli", "dev_matched", &[(9_815, "")]),
    ("mnli", "dev_mismatched", &[(9_832, "")]),
    ("mnli", "test_matched", &[(9_796, "")]),
    ("mnli", "test_mismatched", &[(9_847, "")]),
    ("qnli", "train", &[(104_743, QNLI_V2)]),
    ("qnli", "dev", &[(5_463, QNLI_V2)]),
    ("qnli", "test", &[(5_463, QNLI_V2), (5_740, QNLI_V1)]),
    ("rte", "train", &[(2_490, "")]),
    ("rte", "dev", &[(277, "")]),
    ("rte", "test", &[(3_000, "")]),
    ("wnli", "train", &[(635, "")]),
    ("wnli", "dev", &[(71, "")]),
    ("wnli", "test", &[(146, "")]),
    ("ax", "test", &[(1_104, "")]),
    ("snli", "train", &[(549_367, "")]),
    ("snli", "dev", &[(9_842, "")]),
    ("snli", "test", &[(9_824, "")]),
    ("scitail", "train", &[(23_596, "")]),
    ("scitail", "dev", &[(1_304, "")]),
    ("scitail", "test", &[(2_126, "")]),
    ("sick-r", "train", &[(4_500, "")]),
    ("sick-r", "dev", &[(500, "")]),
    ("sick-e", "train", &[(4_500, "")]),
    ("sick-e", "dev", &[(500, "")]),
];
