//! Which instruction set the kernels use.

use std::sync::OnceLock;

/// An instruction set that every kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler target guarantees; on x86-64 that is SSE2.
    Portable,
    /// AVX2 and FMA (x86-64-v3: Haswell, Zen).
    Avx2,
    /// AVX-512 F, BW, DQ and VL (x86-64-v4: Skylake-X, Zen 4).
    Avx512,
    /// AVX-512 with BF16, for products of bf16 (Cooper Lake, Sapphire Rapids, Zen 4).
    Avx512Bf16,
}

impl Isa {
    /// The best instruction set of this machine, or the one that the environment variable `MTDNN_ISA`
    /// (`portable`, `avx2`, `avx512` or `avx512bf16`) asks for.
    ///
    /// # Panics
    /// If that is an error of [`Isa::asked`].
    pub fn detect() -> Isa {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let best = Isa::available()[Isa::available().len() - 1];
            Isa::asked().unwrap_or_else(|reason| panic!("{reason}")).unwrap_or(best)
        })
    }

    /// The instruction set that `MTDNN_ISA` asks for, if it is set.
    ///
    /// # Errors
    /// If this machine does not have it, or there is none of that name.
    pub fn asked() -> Result<Option<Isa>, String> {
        let Some(wish) = std::env::var_os("MTDNN_ISA") else { return Ok(None) };
        match Isa::available().iter().find(|isa| wish == isa.name()) {
            Some(&isa) => Ok(Some(isa)),
            None => {
                let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
                let (wish, names) = (wish.to_string_lossy(), names.join(", "));
                Err(format!("MTDNN_ISA={wish}: this machine offers {names}; take one of those, or unset it"))
            }
        }
    }

    /// All instruction sets that this machine can run, the plainest first.
    pub fn available() -> &'static [Isa] {
        const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
            &ALL[..1 + usize::from(avx2) + usize::from(avx512) + usize::from(bf16)]
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            &ALL[..1]
        }
    }

    /// Panics if this machine cannot run the instruction set: what makes calling its kernels sound.
    pub fn assert_available(self) {
        assert!(Isa::available().contains(&self), "this machine cannot run {} kernels", self.name());
    }

    /// The name that `MTDNN_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_detected_can_run() {
        assert_eq!(Isa::available()[0], Isa::Portable);
        Isa::detect().assert_available();
        assert!(Isa::available().is_sorted());
    }
}
