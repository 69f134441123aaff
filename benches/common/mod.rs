//! A timer, and the machine's limits by probes in the same run: rate of fused multiply-adds, rate of copying.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// The median time of `work`: after a warm-up, repeated for about two seconds, five times at least.
pub fn median(mut work: impl FnMut()) -> Duration {
    work();
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 5 || (start.elapsed() < Duration::from_secs(2) && times.len() < 200) {
        let begin = Instant::now();
        work();
        times.push(begin.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// What this machine can do at most, on the threads of the current pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Floating-point operations a second, of f32 fused multiply-adds that wait for nothing.
    pub flops: f64,
    /// Bytes read and written a second by a copy that no cache holds.
    pub bytes: f64,
}

impl Limits {
    /// Measures them.
    pub fn probe() -> Self {
        let threads = rayon::current_num_threads();
        const ROUNDS: usize = 1 << 22;
        let best = |work: &mut dyn FnMut()| {
            work();
            (0..5).map(|_| time(work).as_secs_f64()).fold(f64::INFINITY, f64::min)
        };
        let (sums, multiply_add) = multiply_adder();
        let seconds = best(&mut || {
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                black_box(multiply_add(black_box(ROUNDS)));
            });
        });
        let flops = (threads * ROUNDS * sums * LANES * 2) as f64 / seconds;
        let from = vec![1.0f32; 1 << 26];
        let mut to = vec![0.0f32; 1 << 26];
        let seconds = best(&mut || {
            to.par_chunks_mut(1 << 18).zip(from.par_chunks(1 << 18)).for_each(|(to, from)| {
                to.copy_from_slice(from);
            });
        });
        Self { flops, bytes: 2.0 * 4.0 * from.len() as f64 / seconds }
    }
}

fn time(work: &mut dyn FnMut()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

const LANES: usize = 16;
/// Sums of sixteen lanes that keep the multipliers busy, more than latency times throughput, and fit the registers.
const SUMS_AVX512: usize = 12;
const SUMS_AVX2: usize = 6;

/// How many sums a round adds to, and what does it, in the widest instruction set that the kernels would use.
fn multiply_adder() -> (usize, fn(usize) -> f32) {
    use mtdnn_raw::backend::cpu::isa::Isa;
    match Isa::detect() {
        // SAFETY: the instruction set was found on this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (SUMS_AVX512, |rounds| unsafe { multiply_add_avx512(rounds) }),
        // SAFETY: the instruction set was found on this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (SUMS_AVX2, |rounds| unsafe { multiply_add_avx2(rounds) }),
        _ => (SUMS_AVX2, multiply_add::<SUMS_AVX2>),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(rounds: usize) -> f32 {
    multiply_add::<SUMS_AVX512>(rounds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(rounds: usize) -> f32 {
    multiply_add::<SUMS_AVX2>(rounds)
}

#[inline(always)]
fn multiply_add<const SUMS: usize>(rounds: usize) -> f32 {
    let mut sums = [[0.5f32; LANES]; SUMS];
    let (factor, addend) = ([0.999f32; LANES], [0.001f32; LANES]);
    for _ in 0..rounds {
        for sum in &mut sums {
            for lane in 0..LANES {
                sum[lane] = sum[lane].mul_add(factor[lane], addend[lane]);
            }
        }
    }
    sums.iter().flatten().sum()
}
