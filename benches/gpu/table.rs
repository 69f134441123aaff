//! Rows of kernels: operands, times, and what they are a share of.

use half::bf16;
use mtdnn_raw::backend::BackendError;
use mtdnn_raw::backend::cuda::device::Device;
use mtdnn_raw::backend::cuda::gemm::{Epilogue, Form, product};
use mtdnn_raw::backend::cuda::launch::{Address, Launch, Launches, Operand, RowCount, Step};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{DType, Extents, Rows};

/// Replays that a median is of.
const REPLAYS: usize = 50;
/// Launches in a graph at least, so that its own start counts for little.
const LAUNCHES: usize = 16;
/// Operands, and what belongs to a launch's scratch memory, start at multiples of this.
const ALIGNMENT: usize = 256;
/// The product that stands for what the tensor cores give.
const LARGE: usize = 8192;

/// Dense bf16 TFLOP/s with sums in f32, and TB/s, as NVIDIA publishes them, by a part of the device's name; what tells
/// more is first.
const PUBLISHED: [(&str, f64, f64); 11] = [
    ("H100 PCIe", 756.0, 2.0),
    ("H100 NVL", 835.0, 3.9),
    ("H100", 989.0, 3.35),
    ("H200", 989.0, 4.8),
    ("A100-SXM4-80GB", 312.0, 2.039),
    ("A100 80GB PCIe", 312.0, 1.935),
    ("A100", 312.0, 1.555),
    ("L40S", 362.0, 0.864),
    ("L4", 121.0, 0.3),
    ("RTX 4090", 165.2, 1.008),
    ("RTX 3090", 71.0, 0.936),
];

/// What a kernel's time is divided into.
#[derive(Clone, Copy)]
pub enum Work {
    /// So many floating-point operations.
    Flops(f64),
    /// So many bytes, read and written.
    Bytes(f64),
    /// Every operand once.
    Operands,
}

/// What the device gives at most, and what its maker says that it does.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Operations a second of our own product of two large matrices in bf16.
    pub flops: f64,
    /// Bytes a second, read and written, of the driver's copy of 1 GiB.
    pub bytes: f64,
    /// The published ones, where the device is known here.
    pub published: Option<(f64, f64)>,
}

/// A device, its limits, and random numbers for operands.
pub struct Bench {
    pub device: Device,
    pub limits: Limits,
    asked: Vec<String>,
    cache: usize,
    floats: Vec<f32>,
    halves: Vec<bf16>,
}

/// The operands of a launch: laid one after another.
pub struct Set<'a> {
    bench: &'a Bench,
    /// Where the set lies; nowhere, while only its size is asked for.
    start: Option<Address>,
    bytes: usize,
    /// What kernels are to be told of the batch beside the rows of operands.
    pub sequences: u32,
}

impl Bench {
    /// Measures the limits.
    pub fn new(device: Device, asked: Vec<String>) -> Result<Self, BackendError> {
        let mut random = Random::new(1, [0, 0]);
        // Less than a power of two, so that no two rows of an operand are alike.
        let floats: Vec<f32> =
            (0..(1 << 22) - 77).map(|_| random.word() as f32 / (1u64 << 31) as f32 - 1.0).collect();
        let halves = floats.iter().map(|&x| bf16::from_f32(x)).collect();
        let published = PUBLISHED.iter().find(|(name, ..)| device.name().contains(name));
        let published = published.map(|&(_, flops, bytes)| (flops * 1e12, bytes * 1e12));
        let (limits, cache) = (Limits { flops: 0.0, bytes: 0.0, published }, device.cache()?);
        let mut bench = Self { device, limits, asked, cache, floats, halves };
        bench.limits.bytes = bench.copying()?;
        let (_, seconds, _) = bench.measure(large_product)?;
        bench.limits.flops = large_flops() / seconds;
        Ok(bench)
    }

    fn copying(&mut self) -> Result<f64, BackendError> {
        const BYTES: usize = 1 << 30;
        let [from, to] = [self.device.allocate(BYTES)?, self.device.allocate(BYTES)?];
        self.fill(DType::F32, from.start, BYTES / 4);
        let seconds = median(|| self.device.milliseconds(|device| device.copy(from.start, to.start, BYTES)))?;
        Ok(2.0 * BYTES as f64 / seconds)
    }

    /// The device and its limits, and the head of the table of kernels.
    pub fn heading(&self) -> Result<(), BackendError> {
        let (device, limits) = (&self.device, &self.limits);
        println!(
            "{}, {}, {} multiprocessors, {:.0} MB of second-level cache, mtdnn-raw {}\n",
            device.name(),
            device.images().arch,
            device.processors(),
            self.cache as f64 / 1e6,
            env!("CARGO_PKG_VERSION")
        );
        println!(
            "Limits in this run: copying 1 GiB {:.0} GB/s; our own bf16 product of {LARGE}^3 {:.0} TFLOP/s.",
            limits.bytes / 1e9,
            limits.flops / 1e12
        );
        match limits.published {
            Some((flops, bytes)) => {
                println!("Published: {:.0} GB/s, {:.0} TFLOP/s.\n", bytes / 1e9, flops / 1e12);
            }
            None => println!("What is published of this device is not known here.\n"),
        }
        println!("| kernels | cold, ms | warm, ms | rate, cold | of the limit | of what is published |");
        println!("|---|---|---|---|---|---|");
        Ok(())
    }

    /// Whether a row is to be measured.
    pub fn is_asked(&self, name: &str) -> bool {
        self.asked.is_empty() || self.asked.iter().any(|part| name.contains(part.as_str()))
    }

    /// Measures launches, and prints a row.
    pub fn row(
        &mut self,
        name: &str,
        work: Work,
        make: impl Fn(&mut Set, &mut Launches),
    ) -> Result<(), BackendError> {
        if !self.is_asked(name) {
            return Ok(());
        }
        let (bytes, cold, warm) = self.measure(make)?;
        let Limits { flops, bytes: bandwidth, published } = self.limits;
        let (rate, unit, limit, published) = match work {
            Work::Flops(done) => (done / cold, "TFLOP/s", flops, published.map(|peak| peak.0)),
            Work::Bytes(moved) => (moved / cold, "GB/s", bandwidth, published.map(|peak| peak.1)),
            Work::Operands => (bytes as f64 / cold, "GB/s", bandwidth, published.map(|peak| peak.1)),
        };
        let scale = if unit == "GB/s" { 1e9 } else { 1e12 };
        let of_published = published.map_or("-".into(), |peak| format!("{:.0} %", 100.0 * rate / peak));
        println!(
            "| {name} | {:.4} | {:.4} | {:.0} {unit} | {:.0} % | {of_published} |",
            1e3 * cold,
            1e3 * warm,
            rate / scale,
            100.0 * rate / limit
        );
        Ok(())
    }

    /// The bytes of a set of operands, and the seconds of its launches, cold and warm.
    fn measure(&mut self, make: impl Fn(&mut Set, &mut Launches)) -> Result<(usize, f64, f64), BackendError> {
        let made = |bench: &Self, start: Option<Address>, step: Address, scratch: Address| {
            let mut launches = Launches::new(step, Extents::default(), scratch);
            (launches.processors, launches.kernels) = (bench.device.processors(), bench.device.kernels());
            let mut set = Set { bench, start, bytes: 0, sequences: 0 };
            make(&mut set, &mut launches);
            (set.bytes, set.sequences, launches)
        };
        let (bytes, sequences, launches) = made(self, None, 0, 0);
        let sets = 3 * self.cache / bytes + 1;
        let memory = self.device.allocate(sets * bytes)?;
        let scratch = self.device.allocate(launches.scratch_bytes())?;
        let step = self.device.allocate(size_of::<Step>())?;
        let twin = Step { sequences, step: 1, seed: [1, 2], ..Step::default() };
        self.device.write(step.start, bytemuck::bytes_of(&twin))?;
        let starts = (0..sets).map(|set| memory.start + (set * bytes) as Address);
        let lists: Vec<Vec<Launch>> =
            starts.map(|start| made(self, Some(start), step.start, scratch.start).2.list).collect();
        let cold = self.time(&lists)?;
        let warm = if sets > 1 { self.time(&lists[..1])? } else { cold };
        Ok((bytes, cold, warm))
    }

    /// The seconds of one list of launches, where each in turn is launched.
    fn time(&mut self, lists: &[Vec<Launch>]) -> Result<f64, BackendError> {
        let count = LAUNCHES.next_multiple_of(lists.len());
        let launches: Vec<Launch> = lists.iter().cycle().take(count).flatten().cloned().collect();
        let graph = self.device.capture(&launches)?;
        Ok(median(|| self.device.milliseconds(|_| graph.launch()))? / count as f64)
    }

    /// Fills memory with random numbers.
    fn fill(&self, dtype: DType, start: Address, count: usize) {
        let numbers: &[u8] = match dtype {
            DType::F32 => bytemuck::cast_slice(&self.floats),
            DType::Bf16 => bytemuck::cast_slice(&self.halves),
            DType::U32 => panic!("random indices"),
        };
        let bytes = count * if dtype == DType::Bf16 { 2 } else { 4 };
        let mut done = bytes.min(numbers.len());
        self.device.write(start, &numbers[..done]).expect("operands");
        // What is there is copied behind itself.
        while done < bytes {
            let more = done.min(bytes - done);
            self.device.copy(start, start + done as Address, more).expect("operands");
            done += more;
        }
    }
}

/// The median of the seconds of replays, after a few that are not counted.
fn median(mut replay: impl FnMut() -> Result<f32, BackendError>) -> Result<f64, BackendError> {
    let mut times = Vec::new();
    for number in 0..REPLAYS + 3 {
        let milliseconds = replay()?;
        if number >= 3 {
            times.push(milliseconds);
        }
    }
    times.sort_by(f32::total_cmp);
    Ok(f64::from(times[times.len() / 2]) / 1e3)
}

/// Our own product of two large matrices.
pub fn large_product(set: &mut Set, launches: &mut Launches) {
    let [a, b, c] = [(); 3].map(|()| set.bf16(LARGE, LARGE));
    product(launches, Form::NT, a, b, c, Epilogue::Store);
}

pub fn large_flops() -> f64 {
    2.0 * (LARGE as f64).powi(3)
}

impl Set<'_> {
    /// A bf16 matrix.
    pub fn bf16(&mut self, rows: usize, cols: usize) -> Operand {
        self.matrix(DType::Bf16, rows, cols)
    }

    /// An f32 matrix.
    pub fn f32(&mut self, rows: usize, cols: usize) -> Operand {
        self.matrix(DType::F32, rows, cols)
    }

    fn matrix(&mut self, dtype: DType, rows: usize, cols: usize) -> Operand {
        let place = self.take(rows * cols * if dtype == DType::Bf16 { 2 } else { 4 });
        if self.start.is_some() {
            self.bench.fill(dtype, place, rows * cols);
        }
        Operand {
            address: place,
            dtype,
            rows: RowCount::new(Rows::Fixed(rows)),
            most_rows: rows as u32,
            cols: cols as u32,
        }
    }

    /// Indices.
    pub fn words(&mut self, words: &[u32]) -> Address {
        let place = self.take(size_of_val(words));
        if self.start.is_some() {
            self.bench.device.write(place, bytemuck::cast_slice(words)).expect("operands");
        }
        place
    }

    fn take(&mut self, bytes: usize) -> Address {
        // An address of 0 would stand for no operand.
        let place = self.start.unwrap_or(ALIGNMENT as Address) + self.bytes as Address;
        self.bytes += bytes.next_multiple_of(ALIGNMENT);
        place
    }
}
