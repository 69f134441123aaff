//! A timer, and the machine's limits by probes in the same run: rate of fused multiply-adds, rate of copying.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::fmt;
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

/// What a bench was called with.
pub struct Arguments {
    /// Parts of names.
    asked: Vec<String>,
    /// Whether rows are to be read by a program.
    pub json: bool,
}

impl Arguments {
    /// Those of this process. Cargo adds `--bench`.
    pub fn new() -> Self {
        let (flags, asked): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|a| a.starts_with('-'));
        Self { asked, json: flags.iter().any(|flag| flag == "--json") }
    }

    /// Whether a row of this name is wanted: all parts that were asked for are in it.
    pub fn ask_for(&self, name: &str) -> bool {
        self.asked.iter().all(|part| name.contains(part.as_str()))
    }
}

/// What this machine can do at most, on the threads of the current pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Floating-point operations a second, of f32 fused multiply-adds that wait for nothing; two operations each.
    pub flops: f64,
    /// The same of multiply-adds of bf16 in pairs; where no instruction does them, that of f32.
    pub narrow_flops: f64,
    /// Bytes read and written a second by a copy or a change in place, the faster of them, that no cache holds.
    pub bytes: f64,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [flops, narrow, bytes] = [self.flops, self.narrow_flops, self.bytes].map(|rate| rate / 1e9);
        write!(f, "{flops:.0} GFLOP/s of fused multiply-adds, {narrow:.0} of bf16, {bytes:.1} GB/s of memory")
    }
}

impl Limits {
    /// Measures them.
    pub fn probe() -> Self {
        const ROUNDS: usize = 1 << 20;
        let rate = |(multiply_adds, work): (usize, fn(usize))| {
            let operations = (ROUNDS * multiply_adds * 2) as f64;
            let seconds = rayon::broadcast(|_| best(40, || work(ROUNDS)));
            seconds.iter().map(|seconds| operations / seconds).sum::<f64>()
        };
        let flops = rate(multiply_adder());
        let narrow_flops = narrow_multiply_adder().map_or(flops, rate);
        let from = vec![1.0f32; 1 << 26];
        let mut to = vec![0.0f32; 1 << 26];
        let copying = best(5, || {
            to.par_chunks_mut(1 << 18).zip(from.par_chunks(1 << 18)).for_each(|(to, from)| {
                to.copy_from_slice(from);
            });
        });
        // A copy also reads what it overwrites; numbers changed where they lie show what memory can do.
        let changing = best(5, || {
            to.par_chunks_mut(1 << 18).for_each(|to| to.iter_mut().for_each(|x| *x *= 1.5));
        });
        Self { flops, narrow_flops, bytes: 2.0 * 4.0 * from.len() as f64 / copying.min(changing) }
    }
}

/// The seconds of the best of several tries after a first one; of short tries one is disturbed by nothing.
fn best(tries: usize, mut work: impl FnMut()) -> f64 {
    work();
    let seconds = (0..tries).map(|_| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

/// Sums that do not wait for one another: a fused multiply-add takes 4 cycles and two start in each, so that 8 are the
/// least, and with factor and addend 14 of AVX2's 16 registers are in use.
const SUMS: usize = 12;
/// What each sum begins with: the compiler must not find out that all are alike.
const START: [f32; SUMS] = [0.5; SUMS];
/// Each multiply-add is `sum * FACTOR + ADDEND`, which goes to 1 and stays a normal number.
const FACTOR: f32 = 0.999;
const ADDEND: f32 = 0.001;

/// How many multiply-adds of single floats a round is, and what does so many rounds, in the widest instruction set that
/// the kernels would use. Registers are named by intrinsics: whether a plain loop gets them is the compiler's mood.
fn multiply_adder() -> (usize, fn(usize)) {
    use mtdnn_raw::backend::cpu::isa::Isa;
    match Isa::detect() {
        // SAFETY: the instruction set was found on this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => (16 * SUMS, |rounds| unsafe { multiply_add_avx512(rounds) }),
        // SAFETY: the instruction set was found on this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (8 * SUMS, |rounds| unsafe { multiply_add_avx2(rounds) }),
        _ => (LANES * SUMS, multiply_add),
    }
}

/// The same for bf16, where there is an instruction for it.
fn narrow_multiply_adder() -> Option<(usize, fn(usize))> {
    use mtdnn_raw::backend::cpu::isa::Isa;
    match Isa::detect() {
        // SAFETY: the instruction set was found on this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => Some((32 * SUMS, |rounds| unsafe { multiply_add_avx512_bf16(rounds) })),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add_avx512_bf16(rounds: usize) {
    let mut sums = black_box(START).map(|start| _mm512_set1_ps(start));
    // SAFETY: any 64 bytes are 32 numbers of bf16.
    let factors: [__m512bh; 2] = black_box([FACTOR, ADDEND])
        .map(|x| unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(x)) });
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, factors[0], factors[1]);
        }
    }
    black_box(sums.into_iter().fold(_mm512_setzero_ps(), |total, sum| _mm512_add_ps(total, sum)));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(rounds: usize) {
    let mut sums = black_box(START).map(|start| _mm512_set1_ps(start));
    let (factor, addend) = (_mm512_set1_ps(FACTOR), _mm512_set1_ps(ADDEND));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, addend);
        }
    }
    black_box(sums.into_iter().fold(addend, |total, sum| _mm512_add_ps(total, sum)));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(rounds: usize) {
    let mut sums = black_box(START).map(|start| _mm256_set1_ps(start));
    let (factor, addend) = (_mm256_set1_ps(FACTOR), _mm256_set1_ps(ADDEND));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, addend);
        }
    }
    black_box(sums.into_iter().fold(addend, |total, sum| _mm256_add_ps(total, sum)));
}

/// Floats in a register of the plain build.
const LANES: usize = 4;

/// As the portable kernels: fused where every machine of the architecture can, elsewhere a product and a sum.
fn multiply_add(rounds: usize) {
    const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
    let mut sums = black_box(START).map(|start| [start; LANES]);
    for _ in 0..rounds {
        for lane in sums.as_flattened_mut() {
            *lane = if FUSED { lane.mul_add(FACTOR, ADDEND) } else { *lane * FACTOR + ADDEND };
        }
    }
    // All of them, side by side: that is why the compiler takes them four at a time.
    black_box(sums);
}
