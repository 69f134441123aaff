//! The kernels as libraries: compiled once for their text, loaded, and run by name.

use std::ffi::{CStr, c_char, c_void};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
use mtdnn_raw::backend::cuda::launch::{Launch, TensorMap};
use sha2::{Digest, Sha256};

use super::memory::Memory;

/// Undefined behaviour ends the launch: the host would let a misaligned access pass, or an index beyond an array.
const KERNEL_FLAGS: [&str; 5] = [
    "-O1",
    // Calls leave where they came from, for messages.
    "-fno-optimize-sibling-calls",
    "-fvisibility=hidden",
    "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero,signed-integer-overflow",
    "-fsanitize-undefined-trap-on-error",
];
const MACHINE_FLAGS: [&str; 1] = ["-O3"];
/// No contraction: the same bits on every kind of host.
const FLAGS: [&str; 10] = [
    "-std=c++17",
    "-g",
    "-fPIC",
    "-shared",
    "-pthread",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-DMTDNN_HOST",
    "-xc++",
];

/// The order in which threads run between barriers, and blocks of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first one first.
    Ascending,
    /// The last one first.
    Descending,
    /// As a seed has it.
    Random(u32),
}

impl Order {
    /// The orders in which a kernel must give the same bits.
    pub const ALL: [Order; 4] = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)];

    fn number(self) -> u32 {
        match self {
            Order::Ascending => 0,
            Order::Descending => 1,
            Order::Random(seed) => seed.checked_add(2).expect("a small seed"),
        }
    }
}

/// What a kernel is called with: the twin of `Launch` in `emulation.h`.
#[repr(C)]
struct RawLaunch {
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    order: u32,
    arguments: *const c_void,
    argument_bytes: u64,
    message: *mut c_char,
    message_bytes: u64,
    address: u64,
}

/// The twin of `TensorMap` in `hopper_emulation.h`.
fn encode(map: &TensorMap) -> [u64; 16] {
    const MARK: u32 = 0x3a9d_f00d;
    let TensorMap { address, columns, rows, stride, box_rows } = *map;
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let mut words = [0; 16];
    words[..4].copy_from_slice(&[address, 2 * u64::from(stride), pair(columns, rows), pair(box_rows, MARK)]);
    words
}

type Kernel = unsafe extern "C" fn(*mut RawLaunch) -> i32;

/// The kernels, ready to run.
pub struct Emulation {
    libraries: Vec<Library>,
}

impl Emulation {
    /// The emulation of all kernels, compiled at the first call. Nothing, after a word about it, where there is no
    /// C++ compiler.
    ///
    /// # Panics
    /// If a kernel does not compile, or if there is no compiler and `MTDNN_REQUIRE_EMULATION` is 1.
    pub fn get() -> Option<&'static Emulation> {
        static EMULATION: OnceLock<Option<Emulation>> = OnceLock::new();
        let emulation = EMULATION.get_or_init(|| compiler().map(|compiler| Emulation::build(&compiler)));
        if emulation.is_none() {
            let required = std::env::var("MTDNN_REQUIRE_EMULATION").is_ok_and(|value| value == "1");
            assert!(!required, "no C++ compiler for the emulation of kernels");
            eprintln!("skipped: no C++ compiler for the emulation of kernels");
        }
        emulation.as_ref()
    }

    /// Runs launches one after another in every order; the memory must hold the same bits after each.
    pub fn run(&self, memory: &Memory, launches: &[Launch]) -> Result<(), String> {
        let before = memory.save();
        self.run_in(Order::Ascending, memory, launches)?;
        let first = memory.save();
        for order in &Order::ALL[1..] {
            memory.restore(&before);
            self.run_in(*order, memory, launches)?;
            if let Some(place) = memory.difference(&first, &memory.save()) {
                let kernels: Vec<_> = launches.iter().map(|launch| launch.kernel).collect();
                let kernels = kernels.join(", ");
                return Err(format!("{kernels}: {place} depends on the order of threads: {order:?}"));
            }
        }
        Ok(())
    }

    /// Runs launches one after another in one order.
    pub fn run_in(&self, order: Order, memory: &Memory, launches: &[Launch]) -> Result<(), String> {
        launches.iter().try_for_each(|launch| self.launch(order, memory, launch))
    }

    fn launch(&self, order: Order, memory: &Memory, launch: &Launch) -> Result<(), String> {
        let kernel = self.kernel(launch.kernel)?;
        let argument = launch.argument(|map| Ok::<_, String>(encode(map)))?;
        let mut message = [0; 4096];
        let mut raw = RawLaunch {
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            order: order.number(),
            arguments: argument.as_ptr().cast(),
            argument_bytes: argument.len() as u64,
            message: message.as_mut_ptr(),
            message_bytes: message.len() as u64,
            address: 0,
        };
        // SAFETY: the twin of what the kernel takes. What it does with its arguments' addresses is what is being
        // tested: it faults beyond the memory's buffers, which the emulation catches.
        let failed = unsafe { kernel(&raw mut raw) } != 0;
        if failed {
            // SAFETY: a failure leaves a message that ends with a zero.
            let text = unsafe { CStr::from_ptr(message.as_ptr()) };
            let near = memory.describe(raw.address).filter(|_| raw.address != 0);
            let near = near.map(|near| format!(" ({near})")).unwrap_or_default();
            return Err(with_lines(&text.to_string_lossy()) + &near);
        }
        match memory.damaged() {
            Some(name) => Err(format!("kernel {}: something beside {name} was written", launch.kernel)),
            None => Ok(()),
        }
    }

    fn kernel(&self, name: &str) -> Result<Kernel, String> {
        // SAFETY: what a library exports are kernels, which have this type.
        let find = |library: &Library| unsafe { library.get::<Kernel>(name).ok().map(|symbol| *symbol) };
        let found: Vec<Kernel> = self.libraries.iter().filter_map(find).collect();
        match found[..] {
            [kernel] => Ok(kernel),
            [] => Err(format!("there is no kernel {name}")),
            _ => Err(format!("there are {} kernels {name}", found.len())),
        }
    }

    /// Compiles what was not compiled before, and loads it.
    fn build(compiler: &Compiler) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let own = root.join("tests/emulation");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation");
        fs::create_dir_all(&folder).unwrap();
        // Other test processes wait until everything is there.
        let lock = File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();

        let mut headers = files(&root.join("kernels"), "cuh");
        headers.extend(files(&own, "h"));
        let compile = |sources: &[PathBuf], flags: &[&str]| {
            let mut key = Sha256::new();
            key.update(&compiler.version);
            key.update([&FLAGS, flags].concat().concat());
            headers.iter().chain(sources).for_each(|path| key.update(fs::read(path).unwrap()));
            compiler.compile(sources, flags, &folder, &format!("{:x}", key.finalize())[..16])
        };
        let machine = compile(&files(&own, "cpp"), &MACHINE_FLAGS);
        let mut sources = files(&root.join("kernels"), "cu");
        sources.extend(files(&own, "cu"));
        // Two at a time or more, since each takes seconds.
        let next = Mutex::new(sources.iter().enumerate());
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((index, source)) = { next.lock().unwrap().next() } {
                        let library = compile(std::slice::from_ref(source), &KERNEL_FLAGS);
                        done.lock().unwrap().push((index, library));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap();
        done.sort();

        // SAFETY: our own libraries, whose initialization does nothing. The kernels' use the machine's symbols.
        let open = |path: &Path, flags| unsafe { Library::open(Some(path), RTLD_NOW | flags).unwrap() };
        let mut libraries = vec![open(&machine, RTLD_GLOBAL)];
        libraries.extend(done.iter().map(|(_, path)| open(path, RTLD_LOCAL)));
        Self { libraries }
    }
}

/// A C++ compiler that runs.
struct Compiler {
    command: String,
    version: String,
}

fn compiler() -> Option<Compiler> {
    let chosen = std::env::var("CXX").ok().filter(|name| !name.is_empty());
    let known = ["c++", "g++", "clang++"].map(String::from);
    chosen.into_iter().chain(known).find_map(|command| {
        let output = Command::new(&command).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(Compiler { command, version })
    })
}

impl Compiler {
    /// The library of some sources, with the name of the first; made unless it is there.
    fn compile(&self, sources: &[PathBuf], flags: &[&str], folder: &Path, key: &str) -> PathBuf {
        let stem = sources[0].file_stem().unwrap().to_string_lossy();
        let library = folder.join(format!("{stem}-{key}.so"));
        if library.exists() {
            return library;
        }
        remove_old(folder, &format!("{stem}-"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let unfinished = folder.join(format!("{stem}-{key}.{}", std::process::id()));
        let mut command = Command::new(&self.command);
        command.args(FLAGS).args(flags).arg("-I").arg(root.join("kernels"));
        command.arg("-I").arg(root.join("tests/emulation")).args(sources).arg("-o").arg(&unfinished);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stem} does not compile for the host:\n{errors}");
        fs::rename(&unfinished, &library).unwrap();
        library
    }
}

/// Removes what was compiled from earlier texts, unless a test that started before may be about to load it.
fn remove_old(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
        let old = matches!(age, Ok(Ok(age)) if age > Duration::from_secs(3600));
        if old && entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// The files of a folder with an extension, by name.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|other| other == extension)).collect();
    found.sort();
    found
}

/// Puts lines of source where a message names instructions as ` [library+0x12]`, as far as `addr2line` knows them.
fn with_lines(message: &str) -> String {
    let mut parts = message.split(" [");
    let mut text = parts.next().unwrap().to_string();
    for part in parts {
        let (place, rest) = part.split_once(']').unwrap_or((part, ""));
        match place.rsplit_once('+').and_then(|(library, offset)| line(library, offset)) {
            Some(line) => text += &format!(" at {line}{rest}"),
            None => text += &format!(" [{place}]{rest}"),
        }
    }
    text
}

/// The kernel's line of an instruction, innermost first where functions were merged into one another.
fn line(library: &str, offset: &str) -> Option<String> {
    let output = Command::new("addr2line").args(["-i", "-e", library, offset]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let lines = text.lines().filter(|line| !line.contains("emulation.h:") && !line.starts_with('?'));
    let lines: Vec<&str> = lines.filter_map(|line| line.split(' ').next()?.rsplit('/').next()).collect();
    (output.status.success() && !lines.is_empty()).then(|| lines.join(", called at "))
}
