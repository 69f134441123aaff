//! Operations as plain data.

/// One dropout site: which elements it drops is a function of (seed, step, site, element) alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// `round(probability * 65536)`; a 16-bit draw below it drops the element. 0 turns the site off.
    pub threshold: u32,
    /// The number of this site within its program.
    pub site: u32,
}

impl Dropout {
    /// A site that drops with `probability`, rounded to a 65536th.
    pub fn new(probability: f32, site: u32) -> Self {
        assert!((0.0..1.0).contains(&probability), "dropout probability {probability} is not in [0, 1)");
        let threshold = (probability * 65536.0).round() as u32;
        Self { threshold: threshold.min(65535), site }
    }

    /// What kept elements are multiplied by: the inverse of the share that is kept.
    pub fn scale(self) -> f32 {
        65536.0 / (65536 - self.threshold) as f32
    }
}
