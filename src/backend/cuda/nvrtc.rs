//! NVRTC, NVIDIA's compiler as a library: found on the disk, loaded, and told to make a cubin of a kernel's source.
//!
//! The build script includes this file too, so that what is compiled while building and what is compiled at first use
//! are made in the same way. It therefore knows nothing of the rest of the crate. Nothing of CUDA is needed to link.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The architectures that kernels are written and checked for: what stands behind `sm_`.
///
/// Images of `90a` run on compute capability 9.0 alone; the `a` is what lets a kernel use its matrix instructions.
pub const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];

/// The architecture that modules named `hopper_*` are for, and no other.
pub const HOPPER: &str = "90a";

/// Whether a module is one of those.
pub fn is_of_hopper(module: &str) -> bool {
    module.starts_with("hopper_")
}

/// Whether a module is compiled for an architecture.
pub fn is_for(module: &str, arch: &str) -> bool {
    arch == HOPPER || !is_of_hopper(module)
}

/// Threads that compile get stacks as large as a program's first one: the compiler recurses deeply.
const STACK: usize = 8 << 20;

/// One source to be compiled for one architecture.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The name of the module, `softmax` for `kernels/softmax.cu`.
    pub module: &'a str,
    /// The source.
    pub source: &'a str,
    /// What it may include: names and texts.
    pub headers: &'a [(&'a str, &'a str)],
    /// What stands behind `sm_`.
    pub arch: &'a str,
}

impl Job<'_> {
    fn options(&self) -> [String; 3] {
        // No line numbers for profilers: they would make images four times as large. The last option is for the log.
        let arch = format!("--gpu-architecture=sm_{}", self.arch);
        [arch, "--std=c++17".into(), "--ptxas-options=-v".into()]
    }

    /// The headers that the source includes, itself or through another.
    fn included(&self) -> Vec<(&str, &str)> {
        let mut included = Vec::new();
        let mut texts = vec![self.source];
        while let Some(text) = texts.pop() {
            for &(name, header) in self.headers {
                let new = !included.contains(&(name, header));
                if new && text.contains(&format!("#include \"{name}\"")) {
                    included.push((name, header));
                    texts.push(header);
                }
            }
        }
        included
    }

    /// Everything that the image follows from, as text: two jobs with the same key have the same image.
    pub fn key(&self, compiler: (u32, u32)) -> String {
        let mut key = format!("NVRTC {}.{}\n{}\n", compiler.0, compiler.1, self.options().join(" "));
        for (name, text) in self.included().into_iter().chain([(self.module, self.source)]) {
            writeln!(key, "{name} {}\n{text}", text.len()).expect("a string takes what is written");
        }
        key
    }
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The image for the device.
    pub cubin: Vec<u8>,
    /// What the compiler said: warnings, and the registers and memory of each kernel.
    pub log: String,
}

/// There is no compiler, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoCompiler(String);

impl std::fmt::Display for NoCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoCompiler {}

/// Where a toolkit may be installed: the folders in `ours`, and what the environment's variables name.
///
/// `MTDNN_CUDA` is the only one if it is set.
pub fn roots(ours: &[PathBuf], variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = folder("MTDNN_CUDA") {
        return vec![only];
    }
    let mut roots = ours.to_vec();
    roots.extend(["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(folder));
    let path = variable("PATH").unwrap_or_default();
    // A toolkit has `bin/nvcc` beside its libraries; on the search path there is often a link to it.
    let nvcc = std::env::split_paths(&path).find_map(|folder| folder.join("nvcc").canonicalize().ok());
    roots.extend(nvcc.and_then(|nvcc| Some(nvcc.parent()?.parent()?.to_path_buf())));
    roots.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    roots
}

/// The folders of a toolkit, of PyPI's packages and of a virtual environment with them that hold libraries.
fn library_folders(root: &Path) -> Vec<PathBuf> {
    let mut parents = vec![root.to_path_buf()];
    let pythons = fs::read_dir(root.join("lib")).into_iter().flatten().flatten();
    parents.extend(pythons.map(|python| python.path().join("site-packages")).filter(|path| path.is_dir()));
    let layouts = ["", "lib64", "lib", "nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];
    parents.iter().flat_map(|parent| layouts.map(|layout| parent.join(layout))).collect()
}

/// The library of this name in a folder, whatever its version; of several the last by name.
fn library(folder: &Path, name: &str) -> Option<PathBuf> {
    let prefix = format!("{name}.so");
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files
        .filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix)))
        .max()
}

type Program = *mut c_void;
/// `NVRTC_SUCCESS`.
const SUCCESS: c_int = 0;

/// The functions of NVRTC that are used, by their names in its header.
#[allow(non_snake_case)]
struct Functions {
    nvrtcVersion: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    nvrtcGetNumSupportedArchs: unsafe extern "C" fn(*mut c_int) -> c_int,
    nvrtcGetSupportedArchs: unsafe extern "C" fn(*mut c_int) -> c_int,
    nvrtcGetErrorString: unsafe extern "C" fn(c_int) -> *const c_char,
    nvrtcCreateProgram: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    nvrtcDestroyProgram: unsafe extern "C" fn(*mut Program) -> c_int,
    nvrtcCompileProgram: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    nvrtcGetCUBINSize: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    nvrtcGetCUBIN: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    nvrtcGetProgramLogSize: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    nvrtcGetProgramLog: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

impl Functions {
    fn of(library: &Library) -> Result<Self, libloading::Error> {
        macro_rules! functions {
            ($($name:ident),*) => {
                // SAFETY: the types are those of nvrtc.h, which have not changed since CUDA 11.2.
                unsafe { Self { $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?),* } }
            };
        }
        Ok(functions!(
            nvrtcVersion,
            nvrtcGetNumSupportedArchs,
            nvrtcGetSupportedArchs,
            nvrtcGetErrorString,
            nvrtcCreateProgram,
            nvrtcDestroyProgram,
            nvrtcCompileProgram,
            nvrtcGetCUBINSize,
            nvrtcGetCUBIN,
            nvrtcGetProgramLogSize,
            nvrtcGetProgramLog
        ))
    }
}

/// A loaded compiler.
pub struct Compiler {
    functions: Functions,
    /// Major and minor, those of the toolkit that it belongs to.
    pub version: (u32, u32),
    /// The library's file, or its name where the system's loader found it.
    pub path: PathBuf,
    supported: Vec<u32>,
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NVRTC {}.{}", self.version.0, self.version.1)
    }
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self} at {}", self.path.display())
    }
}

impl Compiler {
    /// Loads the first compiler below the roots, else the one that the system's loader knows.
    ///
    /// # Errors
    /// If there is none that can be loaded.
    pub fn find(roots: &[PathBuf]) -> Result<Self, NoCompiler> {
        let mut failures = Vec::new();
        for folder in roots.iter().flat_map(|root| library_folders(root)) {
            // NVRTC opens its builtins by a bare name, which finds what is loaded already and no folder of ours.
            let Some(main) = library(&folder, "libnvrtc") else { continue };
            let opened = match library(&folder, "libnvrtc-builtins") {
                Some(builtins) => open(&builtins).and_then(|_| Self::load(&main)),
                None => Err(format!("{} has no libnvrtc-builtins beside it", main.display())),
            };
            match opened {
                Ok(compiler) => return Ok(compiler),
                Err(failure) => failures.push(failure),
            }
        }
        for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"] {
            if let Ok(compiler) = Self::load(Path::new(name)) {
                return Ok(compiler);
            }
        }
        let places = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        failures.push(format!("there is no libnvrtc in {places}"));
        Err(NoCompiler(failures.join("; ")))
    }

    fn load(path: &Path) -> Result<Self, String> {
        let functions = Functions::of(open(path)?).map_err(|error| format!("{}: {error}", path.display()))?;
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: each writes one integer, the last one as many as the one before it has said.
        let supported = unsafe {
            (functions.nvrtcVersion)(&mut major, &mut minor);
            (functions.nvrtcGetNumSupportedArchs)(&mut count);
            let mut supported: Vec<c_int> = vec![0; count.max(0) as usize];
            (functions.nvrtcGetSupportedArchs)(supported.as_mut_ptr());
            supported.into_iter().map(|arch| arch as u32).collect()
        };
        let (path, version) = (path.to_path_buf(), (major as u32, minor as u32));
        Ok(Self { functions, version, path, supported })
    }

    /// Whether it knows an architecture.
    pub fn supports(&self, arch: &str) -> bool {
        let number = arch.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        number.parse().is_ok_and(|number| self.supported.contains(&number))
    }

    /// Does all jobs, so many at a time; the results in the order of the jobs.
    pub fn compile_all(&self, jobs: &[Job<'_>], threads: usize) -> Vec<Result<Compiled, String>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let taken = std::iter::from_fn(|| {
                let index = next.fetch_add(1, Ordering::Relaxed);
                jobs.get(index).map(|job| (index, self.compile(job)))
            });
            taken.collect::<Vec<_>>()
        };
        let mut results = std::thread::scope(|scope| {
            let start = |_| {
                let thread = std::thread::Builder::new().stack_size(STACK);
                thread.spawn_scoped(scope, work).expect("a thread can be started")
            };
            let threads: Vec<_> = (0..threads.min(jobs.len())).map(start).collect();
            let results =
                threads.into_iter().map(|thread| thread.join().expect("the compiler does not panic"));
            results.flatten().collect::<Vec<_>>()
        });
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Does one job.
    ///
    /// # Errors
    /// What the compiler says of a source that it does not accept.
    pub fn compile(&self, job: &Job<'_>) -> Result<Compiled, String> {
        let text =
            |text: &str| CString::new(text).map_err(|_| format!("{}: a zero byte in {text}", job.module));
        let texts = |texts: Vec<&str>| texts.into_iter().map(text).collect::<Result<Vec<CString>, String>>();
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (source, name) = (text(job.source)?, text(&format!("kernels/{}.cu", job.module))?);
        let (names, headers): (Vec<&str>, Vec<&str>) = job.included().into_iter().unzip();
        let (names, headers) = (texts(names)?, texts(headers)?);
        let options = job.options();
        let options = texts(options.iter().map(String::as_str).collect())?;

        let functions = &self.functions;
        let mut program = Destroyed { program: std::ptr::null_mut(), functions };
        let (count, headers, names) = (headers.len() as c_int, pointers(&headers), pointers(&names));
        // SAFETY: every pointer is to a text that ends with a zero byte and lives until the end of this function.
        let created = unsafe {
            (functions.nvrtcCreateProgram)(
                &mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                count,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check(created, job)?;
        let pointers = pointers(&options);
        // SAFETY: the program was created above; the options live as the source does.
        let status = unsafe {
            (functions.nvrtcCompileProgram)(program.program, pointers.len() as c_int, pointers.as_ptr())
        };
        let log = self.read(&program, functions.nvrtcGetProgramLogSize, functions.nvrtcGetProgramLog, job)?;
        let log = String::from_utf8_lossy(&log);
        // The same source gives the same bytes, but not in the same time.
        let lines = log.trim_end_matches('\0').lines().filter(|line| !line.contains("Compile time"));
        let log = lines.map(|line| line.to_string() + "\n").collect::<String>();
        if let Err(error) = self.check(status, job) {
            return Err(format!("{error}\n{log}"));
        }
        let cubin = self.read(&program, functions.nvrtcGetCUBINSize, functions.nvrtcGetCUBIN, job)?;
        Ok(Compiled { cubin, log })
    }

    fn check(&self, status: c_int, job: &Job<'_>) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: NVRTC has a constant text for every number.
        let reason =
            unsafe { CStr::from_ptr((self.functions.nvrtcGetErrorString)(status)) }.to_string_lossy();
        Err(format!("kernels/{}.cu for sm_{}: {self} says {reason}", job.module, job.arch))
    }

    /// Asks for the length of something that the program holds, then for its bytes.
    fn read(
        &self,
        program: &Destroyed<'_>,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
        job: &Job<'_>,
    ) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the program exists as long as its guard, and the length is written to a local.
        self.check(unsafe { size(program.program, &mut len) }, job)?;
        let mut bytes = vec![0; len];
        // SAFETY: as many bytes are written as NVRTC has said.
        self.check(unsafe { get(program.program, bytes.as_mut_ptr().cast()) }, job)?;
        Ok(bytes)
    }
}

/// A program that is destroyed with this guard.
struct Destroyed<'a> {
    program: Program,
    functions: &'a Functions,
}

impl Drop for Destroyed<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: nobody else has this program.
            unsafe { (self.functions.nvrtcDestroyProgram)(&mut self.program) };
        }
    }
}

/// Opens a library for good: the functions that are taken from it are valid as long as the process.
fn open(path: &Path) -> Result<&'static Library, String> {
    // SAFETY: what runs when NVRTC is loaded is NVIDIA's, and asks nothing of its callers. Its symbols are seen by all,
    // or else it would not find its builtins.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| format!("{} cannot be loaded: {error}", path.display()))?;
    Ok(Box::leak(Box::new(library)))
}
