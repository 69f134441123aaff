//! Embeds the CUDA kernels: compiled, where there is a compiler, and as sources for the first use in any case.
//!
//! `MTDNN_ARCHS` says for which architectures: `90a,80`, or `none` for sources alone. If it is not set, a release build
//! holds images for all that the compiler knows of ours, and a development build none, so that it is made quickly.
//! A machine without CUDA is nothing to speak of, so nothing is said of it.

#[cfg(feature = "cuda")]
#[path = "src/backend/cuda/nvrtc.rs"]
// The library uses the rest of it.
#[allow(dead_code)]
mod nvrtc;

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    #[cfg(feature = "cuda")]
    if let Err(error) = kernels::embed() {
        // A message of several lines needs a prefix on each.
        error.lines().for_each(|line| println!("cargo::error={line}"));
    }
}

#[cfg(feature = "cuda")]
mod kernels {
    use std::env;
    use std::fmt::Write;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::nvrtc::{ARCHITECTURES, Compiled, Compiler, Job, is_for, roots};

    /// Writes `kernels.rs`, which the library includes: what is embedded.
    pub fn embed() -> Result<(), String> {
        for variable in ["MTDNN_ARCHS", "MTDNN_CUDA", "CUDA_HOME", "CUDA_PATH"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let place =
            PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the package's folder"));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names a folder for what is made"));
        let sources = read(&place.join("kernels"), "cu")?;
        let headers = read(&place.join("kernels"), "cuh")?;

        let wanted = wanted(env::var("MTDNN_ARCHS").ok().as_deref())?;
        let compiler = match wanted.is_empty() {
            true => None,
            false => Compiler::find(&roots(&[place.join(".cuda")], |name| env::var_os(name))).ok(),
        };
        let archs: Vec<&str> = wanted
            .into_iter()
            .filter(|arch| compiler.as_ref().is_some_and(|compiler| compiler.supports(arch)))
            .collect();

        let headers: Vec<(&str, &str)> =
            headers.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
        if let Some(compiler) = &compiler {
            compile(compiler, &sources, &headers, &archs, &out)?;
        }
        write_if_new(&out.join("kernels.rs"), &describe(&sources, &headers, &archs, &place, &out))
    }

    /// A source or a header.
    struct File {
        /// The module's name, or the name by which a header is included.
        name: String,
        text: String,
    }

    fn read(folder: &Path, extension: &str) -> Result<Vec<File>, String> {
        let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut files = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|of_path| of_path == extension) {
                let name = if extension == "cu" { path.file_stem() } else { path.file_name() };
                let name = name.unwrap_or_default().to_string_lossy().into_owned();
                let text =
                    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                files.push(File { name, text });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// The architectures that `MTDNN_ARCHS` asks for.
    fn wanted(names: Option<&str>) -> Result<Vec<&'static str>, String> {
        let Some(names) = names else {
            let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
            return Ok(if release { ARCHITECTURES.to_vec() } else { Vec::new() });
        };
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "none");
        let known = |name: &str| {
            let arch = ARCHITECTURES.into_iter().find(|arch| *arch == name.trim_start_matches("sm_"));
            arch.ok_or_else(|| format!("MTDNN_ARCHS: {name} is none of {}", ARCHITECTURES.join(", ")))
        };
        names.map(known).collect()
    }

    /// Compiles what has changed since the last time.
    fn compile(
        compiler: &Compiler,
        sources: &[File],
        headers: &[(&str, &str)],
        archs: &[&str],
        out: &Path,
    ) -> Result<(), String> {
        let jobs: Vec<Job<'_>> = archs
            .iter()
            .flat_map(|arch| {
                sources.iter().map(|file| Job { module: &file.name, source: &file.text, headers, arch })
            })
            .filter(|job| is_for(job.module, job.arch))
            .filter(|job| {
                let made = fs::read_to_string(path(out, job.module, job.arch, "key"));
                made.ok() != Some(job.key(compiler.version))
            })
            .collect();
        let threads = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        for (job, result) in jobs.iter().zip(compiler.compile_all(&jobs, threads)) {
            let Compiled { cubin, log } = result?;
            let write = |extension, bytes: &[u8]| {
                let path = path(out, job.module, job.arch, extension);
                fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))
            };
            write("cubin", &cubin)?;
            write("log", log.as_bytes())?;
            // The last: without it the others are made anew.
            write("key", job.key(compiler.version).as_bytes())?;
        }
        Ok(())
    }

    fn path(out: &Path, module: &str, arch: &str, extension: &str) -> PathBuf {
        out.join(format!("{module}.sm_{arch}.{extension}"))
    }

    /// The text of `kernels.rs`: two constants of types that the library has.
    fn describe(
        sources: &[File],
        headers: &[(&str, &str)],
        archs: &[&str],
        place: &Path,
        out: &Path,
    ) -> String {
        let kernels = place.join("kernels");
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            writeln!(text, "{arguments}").expect("a string takes what is written");
        };
        line(format_args!("const HEADERS: &[(&str, &str)] = &["));
        for (name, _) in headers {
            line(format_args!("    ({name:?}, include_str!({:?})),", kernels.join(name)));
        }
        line(format_args!("];\nconst MODULES: &[Module<'static>] = &["));
        for File { name, .. } in sources {
            let source = kernels.join(format!("{name}.cu"));
            line(format_args!(
                "    Module {{ name: {name:?}, source: include_str!({source:?}), headers: HEADERS,"
            ));
            line(format_args!("        embedded: &["));
            for arch in archs.iter().filter(|arch| is_for(name, arch)) {
                let [cubin, log] = ["cubin", "log"].map(|extension| path(out, name, arch, extension));
                line(format_args!(
                    "            Embedded {{ arch: {arch:?}, cubin: include_bytes!({cubin:?}),"
                ));
                line(format_args!("                log: include_str!({log:?}) }},"));
            }
            line(format_args!("        ] }},"));
        }
        line(format_args!("];"));
        text
    }

    /// Leaves a file as it is where it says the same already, so that nothing is built anew for it.
    fn write_if_new(path: &Path, text: &str) -> Result<(), String> {
        if fs::read_to_string(path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}
