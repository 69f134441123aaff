//! Images: the kernels as the device takes them. Embedded while building, kept from an earlier run, or compiled now.
//!
//! The sources lie in `kernels/`, one module a file. Which images the program holds was decided by `build.rs`; whatever
//! it does not hold is compiled by [NVRTC](super::nvrtc) at the first use and kept in a directory.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::arch::Arch;
use super::figures::{self, Figures};
use super::image_file::ImageFile;
use super::launch::Kernels;
use super::nvrtc::{self, Compiled, Compiler, Job, NoCompiler};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// How one comes by a compiler.
pub const HOW_TO_INSTALL: &str = "pip install --no-deps --target .cuda nvidia-cuda-nvrtc==13.0.88 \
                                  (scripts/install-nvrtc.sh does it), and where .cuda is not beside the program, \
                                  MTDNN_CUDA=DIR says where it is";

/// One source file of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// `softmax` for `kernels/softmax.cu`.
    pub name: &'a str,
    /// Its text.
    pub source: &'a str,
    /// What it may include: names and texts.
    pub headers: &'a [(&'a str, &'a str)],
    /// The images in the program.
    pub embedded: &'a [Embedded],
}

/// An image in the program.
#[derive(Clone, Copy)]
pub struct Embedded {
    arch: &'static str,
    cubin: &'static [u8],
    log: &'static str,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}: {} bytes", self.arch, self.cubin.len())
    }
}

/// The modules of the program, by name.
pub fn modules() -> &'static [Module<'static>] {
    MODULES
}

/// Those that a device of an architecture runs.
pub fn modules_for(arch: &Arch) -> impl Iterator<Item = Module<'static>> {
    MODULES.iter().copied().filter(|module| nvrtc::is_for(module.name, arch.name()))
}

/// The architectures that the program holds an image of every module for.
pub fn embedded() -> Vec<Arch> {
    // The build script embeds all modules for the same ones, but for those that are for one alone.
    let first = MODULES.first().map_or(&[][..], |module| module.embedded);
    first.iter().map(|image| Arch::of_name(image.arch)).collect()
}

/// Where an image came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The program holds it.
    Embedded {
        /// What it was compiled for: the device's own architecture, or an earlier one that it runs too.
        arch: Arch,
    },
    /// It was compiled in an earlier run.
    Kept {
        /// The file.
        path: PathBuf,
    },
    /// It was compiled now.
    Compiled {
        /// By whom.
        compiler: String,
        /// The file that it is now kept in, if it is.
        path: Option<PathBuf>,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { arch } => write!(f, "in the program, for {arch}"),
            Self::Kept { path } => write!(f, "{}", path.display()),
            Self::Compiled { compiler, path: None } => write!(f, "compiled now by {compiler}"),
            Self::Compiled { compiler, path: Some(path) } => {
                write!(f, "compiled now by {compiler}, kept in {}", path.display())
            }
        }
    }
}

/// One module for one architecture.
#[derive(Clone, Debug)]
pub struct Image {
    /// The module's name.
    pub module: String,
    /// Where it came from.
    pub origin: Origin,
    /// What the device loads (`cuModuleLoadData`).
    pub cubin: Cow<'static, [u8]>,
    /// The kernels in it, by name.
    pub kernels: Vec<Figures>,
    /// What the compiler had against the source.
    pub warnings: Vec<String>,
}

impl Image {
    fn new(module: &str, origin: Origin, cubin: Cow<'static, [u8]>, log: &str) -> Self {
        let warnings = figures::warnings(log).map(str::to_string).collect();
        Self { module: module.into(), origin, cubin, kernels: figures::of_log(log), warnings }
    }
}

/// A module that there is no image of.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImageError {
    /// It would have to be compiled.
    #[error(
        "the program holds no kernels for {arch} and there is no compiler ({reason}): install one with \
         {HOW_TO_INSTALL}; or build the program where there is one; or take --device cpu"
    )]
    NoCompiler {
        /// The device's architecture.
        arch: Arch,
        /// Why there is none.
        reason: NoCompiler,
    },
    /// The compiler is older than the architecture.
    #[error("{compiler} knows no {arch}: install a newer one with {HOW_TO_INSTALL}; or take --device cpu")]
    UnknownArch {
        /// The device's architecture.
        arch: Arch,
        /// The compiler's name and version.
        compiler: String,
    },
    /// The compiler does not accept it.
    #[error("{0}")]
    Refused(String),
}

/// What makes images and keeps them.
pub struct Tools {
    roots: Vec<PathBuf>,
    cache: Option<PathBuf>,
    compiler: OnceLock<Result<Compiler, NoCompiler>>,
}

impl Tools {
    /// Tools that look for a compiler below `roots` (see [`nvrtc::roots`](super::nvrtc::roots)) when they need one,
    /// and keep what it makes in the directory `cache`, if there is to be one.
    pub fn new(roots: Vec<PathBuf>, cache: Option<PathBuf>) -> Self {
        Self { roots, cache, compiler: OnceLock::new() }
    }

    /// The compiler, loaded when first asked for.
    ///
    /// # Errors
    /// If there is none.
    pub fn compiler(&self) -> Result<&Compiler, NoCompiler> {
        self.compiler.get_or_init(|| Compiler::find(&self.roots)).as_ref().map_err(Clone::clone)
    }

    /// The image of a module that the program holds or that was kept; nothing is compiled.
    pub fn find(&self, module: &Module<'_>, arch: &Arch) -> Option<Image> {
        self.look(module, arch, &mut Vec::new())
    }

    fn look(&self, module: &Module<'_>, arch: &Arch, notes: &mut Vec<String>) -> Option<Image> {
        let exact = module.embedded.iter().find(|image| image.arch == arch.name());
        if let Some(image) = exact {
            return Some(of_program(module, image));
        }
        let file = self.file(&job(module, arch))?;
        match file.load() {
            Ok(kept) => {
                let Compiled { cubin, log } = kept?;
                Some(Image::new(module.name, Origin::Kept { path: file.path }, cubin.into(), &log))
            }
            Err(error) => {
                notes.push(format!("{} is damaged ({error}): compiled anew", file.path.display()));
                None
            }
        }
    }

    fn file(&self, job: &Job<'_>) -> Option<ImageFile> {
        Some(ImageFile::new(self.cache.as_ref()?, job, self.compiler().ok()?.version))
    }

    /// The images of modules for architectures: held, kept, or compiled now by all cores and kept.
    ///
    /// In the order of what is asked for. Where an image can be neither found nor compiled, the program's image for an
    /// earlier architecture serves if the device runs it. What goes wrong with kept images is noted; it does no harm.
    pub fn make(
        &self,
        wanted: &[(Module<'_>, Arch)],
        notes: &mut Vec<String>,
    ) -> Vec<Result<Image, ImageError>> {
        let found: Vec<Option<Image>> =
            wanted.iter().map(|(module, arch)| self.look(module, arch, notes)).collect();
        let missing = |index: &usize| found[*index].is_none();
        let missing: Vec<_> = (0..wanted.len()).filter(missing).map(|index| wanted[index].clone()).collect();
        let mut compiled = self.compile_all(&missing).into_iter();
        let image = |(found, (module, arch)): (Option<Image>, &(Module<'_>, Arch))| match found {
            Some(image) => Ok(image),
            None => match compiled.next().expect("what was not found was compiled") {
                Ok(compiled) => Ok(self.keep(module, arch, compiled, notes)),
                Err(error @ ImageError::Refused(_)) => Err(error),
                Err(error) => earlier(module, arch).ok_or(error),
            },
        };
        found.into_iter().zip(wanted).map(image).collect()
    }

    fn compile_all(&self, wanted: &[(Module<'_>, Arch)]) -> Vec<Result<Compiled, ImageError>> {
        let compiler = match self.compiler() {
            Ok(compiler) => compiler,
            Err(reason) => {
                let error =
                    |arch: &Arch| ImageError::NoCompiler { arch: arch.clone(), reason: reason.clone() };
                return wanted.iter().map(|(_, arch)| Err(error(arch))).collect();
            }
        };
        let known = |(_, arch): &&(Module<'_>, Arch)| compiler.supports(arch.name());
        let jobs: Vec<Job<'_>> =
            wanted.iter().filter(known).map(|(module, arch)| job(module, arch)).collect();
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut results = compiler.compile_all(&jobs, threads).into_iter();
        let result = |wanted: &(Module<'_>, Arch)| match known(&wanted) {
            true => results.next().expect("a result for each job").map_err(ImageError::Refused),
            false => Err(ImageError::UnknownArch { arch: wanted.1.clone(), compiler: self.name() }),
        };
        wanted.iter().map(result).collect()
    }

    fn keep(&self, module: &Module<'_>, arch: &Arch, compiled: Compiled, notes: &mut Vec<String>) -> Image {
        let mut path = None;
        if let Some(file) = self.file(&job(module, arch)) {
            match file.store(&compiled) {
                Ok(()) => path = Some(file.path),
                Err(error) => notes.push(format!("cannot keep {}: {error}", file.path.display())),
            }
        }
        let origin = Origin::Compiled { compiler: self.name(), path };
        Image::new(module.name, origin, compiled.cubin.into(), &compiled.log)
    }

    fn name(&self) -> String {
        self.compiler().map_or_else(|reason| reason.to_string(), ToString::to_string)
    }
}

/// The image of every module that one device needs.
#[derive(Debug)]
pub struct Images {
    /// What they are for.
    pub arch: Arch,
    /// By the modules' names.
    pub list: Vec<Image>,
    /// What went wrong with kept images, if anything did; the images are right all the same.
    pub notes: Vec<String>,
}

impl Images {
    /// The images of the modules of the program that a device needs for these kernels.
    ///
    /// # Errors
    /// If one of them can be neither found nor compiled.
    pub fn new(arch: Arch, kernels: Kernels, tools: &Tools) -> Result<Self, ImageError> {
        let is_wanted = |module: &Module| kernels == Kernels::Hopper || !nvrtc::is_of_hopper(module.name);
        let wanted: Vec<_> =
            modules_for(&arch).filter(is_wanted).map(|module| (module, arch.clone())).collect();
        let mut notes = Vec::new();
        let list = tools.make(&wanted, &mut notes).into_iter().collect::<Result<_, _>>()?;
        Ok(Self { arch, list, notes })
    }
}

fn job<'a>(module: &Module<'a>, arch: &'a Arch) -> Job<'a> {
    Job { module: module.name, source: module.source, headers: module.headers, arch: arch.name() }
}

/// The program's image for the latest architecture before `arch` whose code the device runs, too.
pub fn earlier(module: &Module<'_>, arch: &Arch) -> Option<Image> {
    let latest = module.embedded.iter().rev().find(|image| arch.runs(image.arch));
    latest.map(|image| of_program(module, image))
}

fn of_program(module: &Module<'_>, image: &Embedded) -> Image {
    let origin = Origin::Embedded { arch: Arch::of_name(image.arch) };
    Image::new(module.name, origin, image.cubin.into(), image.log)
}
