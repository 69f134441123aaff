//! Kernels from source to image, which needs the compiler but no GPU. Where there is no compiler, that is said and most
//! is skipped; with `MTDNN_REQUIRE_NVRTC=1` it is a failure. `scripts/install-nvrtc.sh` brings it.
#![cfg(feature = "cuda")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mtdnn_raw::backend::cuda::arch::Arch;
use mtdnn_raw::backend::cuda::images::{self, Image, ImageError, Images, Module, Origin, Tools};
use mtdnn_raw::backend::cuda::launch::Kernels;
use mtdnn_raw::backend::cuda::nvrtc::roots;
use serde_json::Value;
use tempfile::TempDir;

const HEADERS: &[(&str, &str)] = &[("factor.cuh", "#define FACTOR 2.0f\n")];
const SOURCE: &str = r#"
#include "factor.cuh"
extern "C" __global__ void second(float* to) { to[threadIdx.x] *= FACTOR; }
extern "C" __global__ void first(float* to) {
    __shared__ float swapped[64];
    swapped[threadIdx.x ^ 1] = to[threadIdx.x];
    __syncthreads();
    to[threadIdx.x] = swapped[threadIdx.x];
}
"#;
const MODULE: Module<'static> = Module { name: "small", source: SOURCE, headers: HEADERS, embedded: &[] };

/// Tools that keep images in a directory, or not; none where there is no compiler.
fn tools(cache: Option<&Path>) -> Option<Tools> {
    let ours = [Path::new(env!("CARGO_MANIFEST_DIR")).join(".cuda")];
    let tools = Tools::new(roots(&ours, |name| std::env::var_os(name)), cache.map(Path::to_path_buf));
    match tools.compiler() {
        Ok(compiler) => eprintln!("{compiler:?}"),
        Err(reason) => {
            let required = std::env::var("MTDNN_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
            assert!(!required, "{reason}");
            eprintln!("skipped: {reason}");
            return None;
        }
    }
    Some(tools)
}

fn arch(name: &str) -> Arch {
    name.parse().unwrap()
}

/// One module's image, and what was noted.
fn make(tools: &Tools, module: Module<'_>) -> (Image, Vec<String>) {
    let mut notes = Vec::new();
    let mut made = tools.make(&[(module, arch("90a"))], &mut notes);
    (made.remove(0).unwrap(), notes)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The file that an image is kept in.
fn path(image: &Image) -> PathBuf {
    match &image.origin {
        Origin::Kept { path } | Origin::Compiled { path: Some(path), .. } => path.clone(),
        other => panic!("it is not kept: {other}"),
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("mtdnn-raw"));
    command.arg("kernels").args(arguments);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn every_kernel_compiles_for_every_architecture_and_none_spills() {
    if tools(None).is_none() {
        return;
    }
    // Kept from one run of the tests to the next, as everything that is built.
    let mut check = program(&["check", "--json"]);
    let Output { status, stdout, stderr } =
        check.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).output().unwrap();
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    eprintln!("{stderr}");
    let mut names = BTreeSet::new();
    let mut compiled = BTreeSet::new();
    for line in stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| line[name].as_str().unwrap().to_string();
        eprintln!(
            "{:8} {:12} {:44} {:>3} registers, {} bytes of stack",
            field("arch"),
            field("module"),
            field("kernel"),
            line["registers"],
            line["stack"],
        );
        assert!(line["registers"].as_u64().unwrap() > 0, "{line}");
        // All of it is dynamic: the launches say how much.
        assert_eq!(line["shared"], 0, "{line}");
        assert!(names.insert((field("arch"), field("kernel"))), "two kernels have one name: {line}");
        compiled.insert((field("arch"), field("module")));
    }
    let archs = Arch::all();
    let wanted = archs.iter().flat_map(|arch| {
        images::modules_for(arch).map(move |module| (arch.to_string(), module.name.to_string()))
    });
    assert!(status.success() && !stderr.contains("warning"), "{stderr}");
    assert_eq!(compiled, wanted.collect(), "a module without kernels");
}

#[test]
fn modules_for_hopper_are_for_no_other_architecture() {
    let hopper = |name: &str| {
        images::modules_for(&arch(name)).filter(|module| module.name.starts_with("hopper_")).count()
    };
    assert_eq!(images::modules_for(&arch("90a")).count(), images::modules().len());
    for name in ["80", "86", "89", "90", "100", "120"] {
        assert_eq!(hopper(name), 0, "sm_{name}");
        assert!(images::modules_for(&arch(name)).count() > 10, "sm_{name}");
    }
}

#[test]
fn a_kernel_is_compiled_once_and_kept() {
    let directory = TempDir::new().unwrap();
    let cache = directory.path().join("below/cache");
    let Some(tools) = tools(Some(&cache)) else { return };
    assert!(tools.find(&MODULE, &arch("90a")).is_none());
    let (image, notes) = make(&tools, MODULE);
    assert!(matches!(image.origin, Origin::Compiled { .. }), "{}", image.origin);
    assert_eq!(notes, [""; 0]);
    assert_eq!(files(&cache), [path(&image)]);
    assert!(image.cubin.starts_with(b"\x7fELF"));
    let kernels: Vec<(&str, u32)> =
        image.kernels.iter().map(|figures| (figures.kernel.as_str(), figures.shared)).collect();
    assert_eq!(kernels, [("first", 256), ("second", 0)]);

    let (again, notes) = make(&tools, MODULE);
    assert_eq!(again.origin, Origin::Kept { path: path(&image) });
    assert_eq!((again.cubin, again.kernels, notes), (image.cubin.clone(), image.kernels.clone(), vec![]));
    assert_eq!(files(&cache).len(), 1);

    // Whatever the image follows from is part of its name.
    let header = Module { headers: &[("factor.cuh", "#define FACTOR 3.0f\n")], ..MODULE };
    let source = Module { source: &SOURCE.replace("64", "128"), ..MODULE };
    let mut paths =
        BTreeSet::from([path(&image), path(&make(&tools, header).0), path(&make(&tools, source).0)]);
    let other = tools.make(&[(MODULE, arch("80"))], &mut Vec::new()).remove(0).unwrap();
    paths.insert(path(&other));
    assert_eq!(paths, files(&cache).into_iter().collect());
    let unused = [HEADERS[0], ("unused.cuh", "#define FACTOR 4.0f\n")];
    assert_eq!(path(&make(&tools, Module { headers: &unused, ..MODULE }).0), path(&image));
    assert_eq!(paths.len(), 4);
}

#[test]
fn a_damaged_file_is_compiled_anew_and_that_is_said() {
    let directory = TempDir::new().unwrap();
    let Some(tools) = tools(Some(directory.path())) else { return };
    let (image, _) = make(&tools, MODULE);
    let kept = path(&image);
    let right = fs::read(&kept).unwrap();
    let mut flipped = right.clone();
    flipped[right.len() / 2] ^= 1;
    let other = Module { source: "extern \"C\" __global__ void other() {}", ..MODULE };
    let other = fs::read(path(&make(&tools, other).0)).unwrap();
    for wrong in [&flipped, &right[..right.len() - 1], &right[..40], &[], &other] {
        fs::write(&kept, wrong).unwrap();
        let (anew, notes) = make(&tools, MODULE);
        assert!(matches!(anew.origin, Origin::Compiled { .. }), "{}", anew.origin);
        assert_eq!(anew.cubin, image.cubin);
        assert!(
            notes.len() == 1 && notes[0].contains("is damaged") && notes[0].contains("anew"),
            "{notes:?}"
        );
        assert!(fs::read(&kept).unwrap() == right, "the file is whole again");
    }
    let (image, notes) = make(&tools, MODULE);
    assert!(matches!(image.origin, Origin::Kept { .. }) && notes.is_empty(), "{} {notes:?}", image.origin);
}

#[test]
fn many_may_compile_the_same_at_once_and_leave_one_file() {
    let directory = TempDir::new().unwrap();
    if tools(None).is_none() {
        return;
    }
    std::thread::scope(|scope| {
        let work = || make(&tools(Some(directory.path())).unwrap(), MODULE);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (image, notes) = thread.join().unwrap();
            assert!(notes.is_empty() && !image.cubin.is_empty(), "{notes:?}");
        }
    });
    let files = files(directory.path());
    assert!(files.len() == 1 && files[0].extension().unwrap() == "image", "{files:?}");
}

#[test]
fn a_cache_that_cannot_be_written_does_no_harm() {
    let directory = TempDir::new().unwrap();
    let cache = directory.path().join("cache");
    fs::write(&cache, "a file where the directory should be").unwrap();
    let Some(tools) = tools(Some(&cache)) else { return };
    let (image, notes) = make(&tools, MODULE);
    assert!(matches!(image.origin, Origin::Compiled { path: None, .. }), "{}", image.origin);
    assert!(notes.iter().any(|note| note.contains("cannot keep")), "{notes:?}");
}

#[test]
fn what_cannot_be_compiled_is_refused_in_the_compilers_words() {
    let Some(tools) = tools(None) else { return };
    let broken = Module { source: "\nextern \"C\" __global__ void kernel() { nothing; }", ..MODULE };
    let wanted = [(broken, arch("80")), (MODULE, arch("99")), (MODULE, arch("80"))];
    let results = tools.make(&wanted, &mut Vec::new());
    let errors: Vec<String> =
        results.iter().filter_map(|result| result.as_ref().err()).map(ToString::to_string).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    for word in ["kernels/small.cu for sm_80", "kernels/small.cu(2)", "nothing"] {
        assert!(errors[0].contains(word), "{word} is not in {}", errors[0]);
    }
    assert!(errors[1].contains("knows no sm_99") && errors[1].contains("pip install"), "{}", errors[1]);
    assert_eq!(results[2].as_ref().unwrap().kernels.len(), 2);
}

#[test]
fn images_in_the_program_need_no_compiler() {
    let nowhere = Tools::new(vec![PathBuf::from("/nowhere")], None);
    for arch in images::embedded() {
        let all = images::modules_for(&arch).count();
        let portable = Images::new(arch.clone(), Kernels::Portable, &nowhere).unwrap().list;
        assert!(portable.iter().all(|image| !image.module.starts_with("hopper_")));
        assert_eq!(all - portable.len(), if arch.is_hopper() { 2 } else { 0 });
        let images = Images::new(arch.clone(), Kernels::Hopper, &nowhere).unwrap();
        assert_eq!(images.list.len(), all);
        for image in images.list {
            assert_eq!(image.origin, Origin::Embedded { arch: arch.clone() });
            assert!(image.cubin.starts_with(b"\x7fELF") && !image.kernels.is_empty(), "{}", image.module);
        }
    }
}

#[test]
fn without_a_compiler_one_learns_how_to_have_one() {
    let nowhere = Tools::new(vec![PathBuf::from("/nowhere")], None);
    if nowhere.compiler().is_ok() {
        eprintln!("skipped: the system's loader knows a compiler");
        return;
    }
    let mut made = nowhere.make(&[(MODULE, arch("75"))], &mut Vec::new());
    let error = made.remove(0).unwrap_err();
    assert!(matches!(error, ImageError::NoCompiler { .. }), "{error}");
    for word in ["sm_75", "/nowhere", "pip install", "MTDNN_CUDA", "--device cpu"] {
        assert!(error.to_string().contains(word), "{word} is not in {error}");
    }

    let check = program(&["check", "--arch", "75"]).env("MTDNN_CUDA", "/nowhere").output().unwrap();
    assert_eq!(check.status.code(), Some(1));
    assert!(
        text(&check.stderr).contains("pip install") && check.stdout.is_empty(),
        "{}",
        text(&check.stderr)
    );
    let list = program(&["list", "--json"]).env("MTDNN_CUDA", "/nowhere").output().unwrap();
    assert_eq!(list.status.code(), Some(0));
    for line in text(&list.stdout).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(
            line["image"].as_str().unwrap().contains("in the program")
                || line["image"].as_str().unwrap().contains("none")
        );
    }
}

#[test]
fn an_architecture_that_is_none_is_wrong_usage() {
    let ended = program(&["list", "--arch", "80,hopper"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        text(&ended.stderr).contains("--arch") && text(&ended.stderr).contains("90a"),
        "{}",
        text(&ended.stderr)
    );
}
