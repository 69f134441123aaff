//! Floor 0: numbers that look random and are a function of what they are for.
//!
//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a counter and a key to
//! four words. Nothing is carried from one draw to the next but the counter, so the order of an epoch is known
//! without having drawn the epochs before it.

/// Ten rounds of Philox on four 32-bit words.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (even, odd) = (0xD251_1F53_u64 * u64::from(c0), 0xCD9E_8D57_u64 * u64::from(c2));
        (c0, c1, c2, c3) =
            ((odd >> 32) as u32 ^ c1 ^ k0, odd as u32, (even >> 32) as u32 ^ c3 ^ k1, even as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// A stream of draws, named by a seed and two numbers that say what it is for.
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    purpose: [u32; 2],
    block: u64,
    words: [u32; 4],
    used: usize,
}

impl Random {
    /// The stream `purpose` of `seed`, from its start.
    pub fn new(seed: u64, purpose: [u32; 2]) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], purpose, block: 0, words: [0; 4], used: 4 }
    }

    /// Any 32 bits.
    pub fn word(&mut self) -> u32 {
        if self.used == 4 {
            let [purpose, detail] = self.purpose;
            self.words =
                philox4x32_10([self.block as u32, (self.block >> 32) as u32, purpose, detail], self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Any number below `bound`, each as likely as the others (Lemire 2019, arXiv 1805.10941).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        assert!(bound > 0, "no number is below 0");
        let uneven = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.word()) * u64::from(bound);
            if product as u32 >= uneven {
                return (product >> 32) as u32;
            }
        }
    }

    /// Whether something happens whose chance is `probability`, to 32 bits.
    pub fn chance(&mut self, probability: f64) -> bool {
        f64::from(self.word()) < probability * 2_f64.powi(32)
    }

    /// One of `items`.
    ///
    /// # Panics
    /// If there are none.
    pub fn choose<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u32) as usize]
    }

    /// Puts `items` into any order, each as likely as the others (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers() {
        // The vectors published with the Random123 library.
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn bounded_draws_are_even() {
        let mut random = Random::new(7, [0, 0]);
        let mut counts = [0_i32; 6];
        for _ in 0..60_000 {
            counts[random.below(6) as usize] += 1;
        }
        // Five standard deviations of a binomial of 60 000 and 1/6.
        assert!(counts.iter().all(|count| (count - 10_000).abs() < 457), "{counts:?}");
    }

    #[test]
    fn chances_are_kept() {
        let mut random = Random::new(7, [2, 0]);
        for (probability, even) in [(0.0, 0), (0.15, 9_000), (0.5, 30_000), (1.0, 60_000)] {
            let happened = (0..60_000).filter(|_| random.chance(probability)).count() as i32;
            let bound = 5.0 * (60_000.0 * probability * (1.0 - probability)).sqrt();
            assert!(f64::from((happened - even).abs()) <= bound, "{probability}: {happened}");
        }
    }

    #[test]
    fn shuffling_reaches_every_order_equally() {
        let mut random = Random::new(7, [1, 0]);
        let mut counts = std::collections::BTreeMap::<[u8; 3], i32>::new();
        for _ in 0..60_000 {
            let mut items = [0, 1, 2];
            random.shuffle(&mut items);
            *counts.entry(items).or_default() += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (count - 10_000).abs() < 457), "{counts:?}");
    }

    #[test]
    fn streams_differ_by_seed_and_purpose() {
        let first = |seed, purpose| Random::new(seed, purpose).word();
        let words =
            [first(1, [0, 0]), first(2, [0, 0]), first(1 << 32, [0, 0]), first(1, [1, 0]), first(1, [0, 1])];
        for (index, word) in words.iter().enumerate() {
            assert!(!words[..index].contains(word));
        }
    }
}
