//! The house rules that a program can check, read off the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of `src`, tests within it included. Raised knowingly: a better program is not a longer one.
const LINES_OF_SRC: usize = 56_000;
/// Lines of one file: one idea.
const LINES_OF_A_FILE: usize = 600;
/// Files that may be longer, and why.
const LONGER: [(&str, &str); 0] = [];

/// The one file below the backends with unsafe code: a file mapped into memory.
const MAPPED_FILE: &str = "src/data/mapped.rs";

/// The library's floors from the ground up; a module imports from lower floors and from itself.
const FLOORS: [(&str, usize); 6] =
    [("random", 0), ("tensor", 1), ("data", 1), ("backend", 2), ("nn", 3), ("train", 4)];

/// One source file: its path from the repository's root and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The module of `src` that the file belongs to: `nn` for `src/nn/bert.rs`.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or("");
        inside.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// Numbered lines without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, without_comment(line)))
    }
}

/// The part of a line before `//`; quotes are not looked at, which only a `"//"` in code would notice.
fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every Rust file below a folder.
fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source { text: fs::read_to_string(&path).unwrap(), path: name });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

/// Whether `word` stands in a line by itself and not within a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// Fails with all that was found, a line each.
fn assert_none(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn imports_point_down() {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources("src") {
        let module = source.module();
        let Some(&(_, floor)) = FLOORS.iter().find(|(name, _)| *name == module) else {
            assert!(matches!(module, "cli" | "main" | "lib"), "{} is on no floor", source.path);
            continue;
        };
        seen.insert(module.to_string());
        for (number, line) in source.code() {
            for (other, below) in FLOORS.iter().filter(|(other, _)| *other != module) {
                let named = has_word(line, &format!("crate::{other}"))
                    || has_word(line, &format!("super::{other}")) && source.path.ends_with("/mod.rs");
                if named && *below >= floor {
                    found.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
            // Several modules in one import would hide from the check above.
            if line.contains("crate::{") || line.contains("mtdnn_raw::") {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_eq!(seen.len(), FLOORS.len(), "a floor without files: {seen:?}");
    assert!(!read("src/lib.rs").contains("mod cli"), "the command line belongs to the program alone");
    assert_none("imports that do not point down", found);
}

#[test]
fn models_and_training_know_no_device() {
    let mut found = Vec::new();
    for source in sources("src").iter().filter(|source| matches!(source.module(), "nn" | "train")) {
        for (number, line) in source.code() {
            if ["cpu", "cuda", "CpuBackend", "Isa"].iter().any(|name| has_word(line, name)) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("device types above the backends", found);
}

#[test]
fn unsafe_code_stays_in_the_backends_and_says_why_it_is_sound() {
    let mut found = Vec::new();
    let mut blocks = 0;
    for source in sources("src") {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.code().filter(|(_, line)| has_word(line, "unsafe")) {
            let place = format!("{}:{number}: {}", source.path, line.trim());
            if source.module() != "backend" && source.path != MAPPED_FILE {
                found.push(place);
                continue;
            }
            // What an unsafe function asks of its callers stands in its documentation or its type's.
            if line.contains("unsafe {") || line.contains("unsafe impl") {
                blocks += 1;
                let above = &lines[number.saturating_sub(5)..number];
                if !above.iter().any(|line| line.contains("SAFETY:")) {
                    found.push(place);
                }
            }
        }
    }
    assert!(blocks > 10, "the kernels have {blocks} places of unsafe code");
    assert_none("unsafe code outside of the backends or without a reason", found);
}

#[test]
fn the_clock_the_environment_and_the_terminal_belong_to_the_command_line() {
    let names = ["Instant::now", "SystemTime::now", "env::var", "env::var_os", "env::args", "is_terminal"];
    let mut found = Vec::new();
    for source in sources("src").iter().filter(|source| source.module() != "cli") {
        // MTDNN_ISA forces an instruction set, in tests and benches too.
        if source.path == "src/backend/cpu/isa.rs" || source.path.contains("/tests") {
            continue;
        }
        let tested = source.text.lines().position(|line| line.contains("#[cfg(test)]")).unwrap_or(usize::MAX);
        for (number, line) in source.code().take_while(|(number, _)| *number <= tested) {
            if names.iter().any(|name| has_word(line, name)) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("what a library should be given", found);
}

#[test]
fn nothing_is_left_to_be_done() {
    // Written apart, so that they do not find themselves.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|parts| parts.concat());
    let calls = [["to", "do!"], ["unimpl", "emented!"], ["db", "g!"]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for source in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        for (number, line) in source.text.lines().enumerate() {
            let called = calls.iter().any(|call| line.contains(call));
            if called || marks.iter().any(|mark| has_word(line, mark) || has_word(line, &mark.to_lowercase()))
            {
                found.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    assert_none("unfinished work", found);
}

#[test]
fn the_sources_stay_within_their_budget() {
    let mut total = 0;
    let mut found = Vec::new();
    for source in sources("src") {
        let lines = source.text.lines().count();
        total += lines;
        if lines > LINES_OF_A_FILE && !LONGER.iter().any(|(path, _)| *path == source.path) {
            found.push(format!("{}: {lines}", source.path));
        }
    }
    assert_none("files of more than one idea", found);
    assert!(total <= LINES_OF_SRC, "src has {total} lines, the budget is {LINES_OF_SRC}");
    // A budget with slack holds nobody to anything.
    assert!(total + 2_000 > LINES_OF_SRC, "src has only {total} lines: lower the budget");
}

/// Every `--flag` in a text.
fn flags(text: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_ascii_lowercase() || c == '-';
    let words = text.split("--").skip(1).filter_map(|rest| {
        let flag: String = rest.chars().take_while(|&c| part(c)).collect();
        let flag = flag.trim_end_matches('-');
        (flag.len() > 1).then(|| format!("--{flag}"))
    });
    words.collect()
}

/// What a user reads: `README.md` and the pages of `docs`.
fn documents() -> impl Iterator<Item = String> {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let pages = pages.map(|name| format!("docs/{}", name.into_string().unwrap()));
    let pages = pages.filter(|name| name.ends_with(".md")); // beside them are figures
    pages.chain(["README.md".to_string()])
}

fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mtdnn-raw")).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?} --help fails");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_flag_is_in_the_documents_and_every_flag_of_the_documents_is_one() {
    let overview = help(&[]);
    let listed = overview.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    // Further lines of a description stand further in.
    let name = |line: &str| {
        line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?.split(' ').next().map(str::to_string)
    };
    let mut commands: Vec<String> = listed.take_while(|line| !line.is_empty()).filter_map(name).collect();
    assert_eq!(commands.pop().as_deref(), Some("help"));
    assert!(commands.len() >= 5, "{commands:?}");

    let mut known = flags(&overview);
    for command in &commands {
        known.extend(flags(&help(&[command])));
    }
    let all: String = documents().map(|name| read(&name)).collect();
    let documented = flags(&all);
    let everywhere = ["--help", "--version"].map(String::from);
    let missing: Vec<_> = known.difference(&documented).filter(|flag| !everywhere.contains(flag)).collect();
    assert!(missing.is_empty(), "no document says anything of {missing:?}");
    let of_cargo = ["--release", "--path", "--open"].map(String::from);
    let unknown: Vec<_> = documented.difference(&known).filter(|flag| !of_cargo.contains(flag)).collect();
    assert!(unknown.is_empty(), "a document speaks of {unknown:?}, which are no flags");
    for command in commands {
        assert!(all.contains(&format!("mtdnn-raw {command}")), "no document shows {command}");
    }
}

#[test]
fn the_changelog_knows_the_version_and_the_links_lead_somewhere() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(read("CHANGELOG.md").contains(&format!("## [{version}]")), "CHANGELOG.md has no {version}");
    for name in documents().chain(["ARCHITECTURE.md".to_string()]) {
        let text = read(&name);
        let folder = Path::new(&name).parent().unwrap();
        let links: Vec<&str> = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        for link in links.iter().filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap();
            assert!(root().join(folder).join(file).exists(), "{name} links to {link}, which is not there");
        }
    }
}
