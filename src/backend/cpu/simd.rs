//! One kernel, written once as a plain loop, compiled for each instruction set.

/// Whether the plain build of this architecture has fused multiply-add.
pub(super) const PORTABLE_FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// Compiles the function below it once for every [`Isa`](super::isa::Isa) and puts the choice in front as the first
/// argument. The const parameter, named by the author of the kernel, says whether the build has fused
/// multiply-add; the functions of [`math`](super::math) take it. Everything the body calls must be
/// `#[inline(always)]`, or it is compiled for the plain instruction set.
macro_rules! multiversion {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<$fma:ident>($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    ) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name(isa: $crate::backend::cpu::isa::Isa, $($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const $fma: bool>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($argument: $type),*) $(-> $result)? {
                body::<true>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($argument: $type),*) $(-> $result)? {
                body::<true>($($argument),*)
            }

            isa.assert_available();
            match isa {
                // SAFETY: the machine was just found to have it.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::Isa::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::Isa::Avx512 | $crate::backend::cpu::isa::Isa::Avx512Bf16 => unsafe {
                    avx512($($argument),*)
                },
                _ => body::<{ $crate::backend::cpu::simd::PORTABLE_FMA }>($($argument),*),
            }
        }
    };
}
pub(super) use multiversion;
