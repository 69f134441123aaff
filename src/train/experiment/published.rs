//! Rows of published tables, to be read beside ours and not against them: other encoders, whole sets, other seeds.

/// A published row: its source, its name, and a text for each task.
pub struct Row {
    /// Where it stands.
    pub source: &'static str,
    /// What it is called there.
    pub name: &'static str,
    /// Tasks by their names here, and their figures.
    pub figures: &'static [(&'static str, &'static str)],
}

const TABLE_3: &str = "Liu et al. 2019, table 3: dev, BERT-large";
const CLAF: &str = "claf's reports: dev, BERT-base";

/// Dev sets of GLUE. MNLI: matched / mismatched; QQP: accuracy / F1; MRPC: F1 / accuracy in the paper's table, accuracy
/// / F1 in claf's; STS-B: Pearson / Spearman; QNLI: v1 / v2.
pub const GLUE: [Row; 5] = [
    Row {
        source: TABLE_3,
        name: "BERT-large",
        figures: &[
            ("mnli", "86.3 / 86.2"),
            ("qqp", "91.1 / 88.0"),
            ("rte", "71.1"),
            ("qnli", "90.5 / 92.4"),
            ("mrpc", "89.5 / 85.8"),
            ("cola", "61.8"),
            ("sst2", "93.5"),
            ("stsb", "89.6 / 89.3"),
        ],
    },
    Row {
        source: TABLE_3,
        name: "ST-DNN",
        figures: &[
            ("mnli", "86.6 / 86.3"),
            ("qqp", "91.3 / 88.4"),
            ("rte", "72.0"),
            ("qnli", "96.1 / -"),
            ("mrpc", "89.7 / 86.4"),
        ],
    },
    Row {
        source: TABLE_3,
        name: "MT-DNN",
        figures: &[
            ("mnli", "87.1 / 86.7"),
            ("qqp", "91.9 / 89.2"),
            ("rte", "83.4"),
            ("qnli", "97.4 / 92.9"),
            ("mrpc", "91.0 / 87.5"),
            ("cola", "63.5"),
            ("sst2", "94.3"),
            ("stsb", "90.7 / 90.6"),
        ],
    },
    Row {
        source: CLAF,
        name: "BERT-base, one task",
        figures: &[
            ("cola", "59.4"),
            ("sst2", "92.6"),
            ("mrpc", "87.5 / 91.3"),
            ("stsb", "88.1 / 87.9"),
            ("qqp", "90.4 / 87.2"),
            ("mnli", "83.9 / 84.3"),
            ("qnli", "88.5"),
            ("rte", "69.3"),
            ("wnli", "56.3"),
        ],
    },
    Row {
        source: CLAF,
        name: "MT-DNN-base, fine-tuned",
        figures: &[
            ("cola", "54.7"),
            ("sst2", "93.0"),
            ("mrpc", "87.5 / 91.0"),
            ("stsb", "88.4 / 88.8"),
            ("qqp", "91.3 / 88.2"),
            ("mnli", "84.5 / 84.2"),
            ("rte", "79.4"),
            ("wnli", "57.8"),
        ],
    },
];

/// A row of [`TABLE_4`].
pub struct Adaptation {
    /// The task.
    pub task: &'static str,
    /// The encoder.
    pub encoder: &'static str,
    /// For each of the [`SHARES`] the number of examples and the accuracy.
    pub figures: [(usize, f64); 4],
}

/// Liu et al. 2019, table 4: dev accuracy of BERT-base and MT-DNN, the mean of five random samples.
pub const TABLE_4: [Adaptation; 4] = [
    Adaptation {
        task: "snli",
        encoder: "BERT",
        figures: [(549, 52.5), (5_493, 78.1), (54_936, 86.7), (549_367, 91.0)],
    },
    Adaptation {
        task: "snli",
        encoder: "MT-DNN",
        figures: [(549, 82.1), (5_493, 85.2), (54_936, 88.4), (549_367, 91.5)],
    },
    Adaptation {
        task: "scitail",
        encoder: "BERT",
        figures: [(23, 51.2), (235, 82.2), (2_359, 90.5), (23_596, 94.3)],
    },
    Adaptation {
        task: "scitail",
        encoder: "MT-DNN",
        figures: [(23, 81.9), (235, 88.3), (2_359, 91.1), (23_596, 95.7)],
    },
];

/// The shares of [`TABLE_4`].
pub const SHARES: [f64; 4] = [0.001, 0.01, 0.1, 1.0];
