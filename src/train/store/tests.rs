use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::{TempDir, tempdir};

use super::*;

const STAGES: [Stage; 4] = [Stage::Write, Stage::Seal, Stage::SetAside, Stage::MoveIn];

/// Two files that tell their step.
fn files_of(step: u64) -> impl FnOnce(&Path) -> Result<(), BoxError> {
    move |directory| {
        fs::write(directory.join("config.json"), format!("{{\"step\": {step}}}"))?;
        fs::write(directory.join("model.safetensors"), vec![step as u8; 100_000])?;
        Ok(())
    }
}

fn saved(steps: &[u64]) -> TempDir {
    let run = tempdir().unwrap();
    for &step in steps {
        save(run.path(), LAST, step, 100_000, files_of(step)).unwrap();
    }
    run
}

/// The step of the newest directory; its files are of the same step.
fn newest_step(run: &Path) -> Option<u64> {
    let (path, manifest) = newest(run, &[LAST]).found?;
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    assert_eq!(config, format!("{{\"step\": {}}}", manifest.step));
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), vec![manifest.step as u8; 100_000]);
    Some(manifest.step)
}

fn names(run: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Saves step 2 and dies after `stage`, as far as the file system can tell.
fn die_after(run: &Path, stage: Stage) {
    let die = |passed| if passed == stage { panic!("the test dies here") } else { Ok(()) };
    let died = catch_unwind(AssertUnwindSafe(|| save_watched(run, LAST, 2, 0, files_of(2), die)));
    assert!(died.is_err(), "no stage {stage:?}");
}

#[test]
fn what_is_saved_verifies_and_is_alone() {
    let run = saved(&[1, 2]);
    assert_eq!(names(run.path()), [LAST]);
    let manifest = verify(&run.path().join(LAST)).unwrap();
    assert_eq!(manifest.step, 2);
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors"]);
    assert_eq!(manifest.files["model.safetensors"].bytes, 100_000);
    // printf '{"step": 2}' | sha256sum
    let of_config = "cf5954a197a5343c1abbb381be623183dce46a7f9281dcde7d045f894e63555b";
    assert_eq!(manifest.files["config.json"].sha256, of_config);
    assert_eq!(newest_step(run.path()), Some(2));
}

#[test]
fn a_change_of_any_byte_is_detected() {
    for name in ["config.json", "model.safetensors", MANIFEST] {
        let run = saved(&[1]);
        let path = run.path().join(LAST).join(name);
        let whole = fs::read(&path).unwrap();
        let stride = if whole.len() > 10_000 { 9_973 } else { 1 };
        for position in (0..whole.len()).step_by(stride) {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            fs::write(&path, &damaged).unwrap();
            let error = verify(&run.path().join(LAST)).unwrap_err();
            assert!(matches!(error, StoreError::NotWhole { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        fs::write(&path, &whole).unwrap();
        verify(&run.path().join(LAST)).unwrap();
    }
}

#[test]
fn a_missing_short_or_foreign_file_is_detected() {
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let shorten = |path: &Path| fs::write(path, vec![1; 99_999]).unwrap();
    let link = |path: &Path| {
        fs::rename(path, path.with_extension("elsewhere")).unwrap();
        std::os::unix::fs::symlink(path.with_extension("elsewhere"), path).unwrap();
    };
    let expected = ["cannot be read", "has 99999 bytes, and 100000 were saved", "not a regular file"];
    for (damage, expected) in [&remove as &dyn Fn(&Path), &shorten, &link].into_iter().zip(expected) {
        let run = saved(&[1]);
        damage(&run.path().join(LAST).join("model.safetensors"));
        let error = verify(&run.path().join(LAST)).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_beside_the_saved_ones_does_no_harm() {
    let run = saved(&[1]);
    fs::write(run.path().join(LAST).join("README.md"), "# A model").unwrap();
    verify(&run.path().join(LAST)).unwrap();
}

#[test]
fn a_crash_after_any_stage_leaves_the_old_or_the_new() {
    for (stage, expected) in STAGES.into_iter().zip([1, 2, 2, 2]) {
        let run = saved(&[1]);
        die_after(run.path(), stage);
        assert_eq!(newest_step(run.path()), Some(expected), "{stage:?}");

        let said = recover(run.path(), &[LAST]).unwrap();
        assert!(!said.is_empty(), "{stage:?}");
        assert_eq!(names(run.path()), [LAST], "{stage:?}");
        assert_eq!(newest_step(run.path()), Some(expected), "{stage:?}");
        assert!(recover(run.path(), &[LAST]).unwrap().is_empty(), "{stage:?}");
    }
}

#[test]
fn a_crash_of_the_first_save_leaves_nothing_or_the_new() {
    for (stage, expected) in STAGES.into_iter().zip([None, Some(2), Some(2), Some(2)]) {
        let run = tempdir().unwrap();
        die_after(run.path(), stage);
        assert_eq!(newest_step(run.path()), expected, "{stage:?}");
        recover(run.path(), &[LAST]).unwrap();
        assert_eq!(newest_step(run.path()), expected, "{stage:?}");
        assert_eq!(names(run.path()).len(), expected.iter().len(), "{stage:?}");
    }
}

#[test]
fn the_next_save_clears_what_a_crash_left() {
    for stage in STAGES {
        let run = saved(&[1]);
        die_after(run.path(), stage);
        save(run.path(), LAST, 3, 100_000, files_of(3)).unwrap();
        assert_eq!(newest_step(run.path()), Some(3), "{stage:?}");
        assert_eq!(names(run.path()), [LAST], "{stage:?}");
    }
}

#[test]
fn a_set_aside_directory_comes_back_when_its_successor_is_damaged() {
    let run = saved(&[1]);
    die_after(run.path(), Stage::SetAside);
    fs::write(run.path().join(".last.new/model.safetensors"), vec![9; 100_000]).unwrap();
    let search = newest(run.path(), &[LAST]);
    assert_eq!(search.found.unwrap().1.step, 1);
    assert!(
        search.passed_over[0].to_string().contains("model.safetensors is damaged"),
        "{:?}",
        search.passed_over
    );

    let said = recover(run.path(), &[LAST]).unwrap().join("\n");
    assert!(said.contains("put") && said.contains("back"), "{said}");
    assert_eq!(names(run.path()), [LAST]);
    assert_eq!(newest_step(run.path()), Some(1));

    // The same, the successor having been moved in.
    die_after(run.path(), Stage::MoveIn);
    fs::write(run.path().join("last/model.safetensors"), vec![9; 100_000]).unwrap();
    recover(run.path(), &[LAST]).unwrap();
    assert_eq!(names(run.path()), [LAST]);
    assert_eq!(newest_step(run.path()), Some(1));
}

#[test]
fn a_failure_at_any_stage_is_undone() {
    for earlier in [&[1][..], &[]] {
        for stage in STAGES {
            let run = saved(earlier);
            let fail = |passed| if passed == stage { Err("the disk is on fire".into()) } else { Ok(()) };
            let error =
                save_watched(run.path(), LAST, 2, 7_000_000, files_of(2), fail).unwrap_err().to_string();
            for part in ["/last", "7.0 MB", "are free", "the disk is on fire", "Make room"] {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
            assert_eq!(newest_step(run.path()), earlier.first().copied(), "{stage:?}");
            assert_eq!(names(run.path()).len(), earlier.len(), "{stage:?}");
        }
    }
}

#[test]
fn a_failing_write_leaves_the_earlier_directory() {
    let run = saved(&[1]);
    let error = save(run.path(), LAST, 2, 0, |directory| {
        fs::write(directory.join("config.json"), "{")?;
        Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into())
    });
    assert!(matches!(error.unwrap_err(), StoreError::Save { .. }));
    assert_eq!(newest_step(run.path()), Some(1));
    assert_eq!(names(run.path()), [LAST]);
}

#[test]
fn without_room_nothing_is_begun() {
    let run = saved(&[1]);
    let error = save(run.path(), LAST, 2, u64::MAX, |_| panic!("begun")).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    let text = error.to_string();
    for part in ["/last", "18446744073709.6 MB", "are free", "Make room"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(names(run.path()), [LAST]);
    assert_eq!(newest_step(run.path()), Some(1));
}

#[test]
fn a_directory_of_someone_else_is_not_replaced() {
    let run = tempdir().unwrap();
    fs::create_dir(run.path().join(LAST)).unwrap();
    fs::write(run.path().join("last/thesis.tex"), "ten years").unwrap();
    let error = save(run.path(), LAST, 1, 0, files_of(1)).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert_eq!(fs::read_to_string(run.path().join("last/thesis.tex")).unwrap(), "ten years");
}

#[test]
fn only_plain_files_are_saved() {
    let run = tempdir().unwrap();
    let kinds: [fn(&Path) -> std::io::Result<()>; 3] = [
        |directory| fs::create_dir(directory.join("odd")),
        |directory| std::os::unix::fs::symlink("/etc/hostname", directory.join("odd")),
        |directory| fs::write(directory.join(MANIFEST), "{}"),
    ];
    for kind in kinds {
        let error = save(run.path(), LAST, 1, 0, |directory| Ok(kind(directory)?)).unwrap_err().to_string();
        assert!(error.contains("plain files"), "{error}");
        assert!(names(run.path()).is_empty());
    }
}

#[test]
fn a_hostile_manifest_is_refused() {
    let run = saved(&[1]);
    let last = run.path().join(LAST);
    let whole = verify(&last).unwrap();
    let refused = |text: &str| {
        fs::write(last.join(MANIFEST), text).unwrap();
        verify(&last).unwrap_err().to_string()
    };
    for name in ["../state/optimizer", "/etc/hostname", "a/b", "..", ".", "", "config.json/"] {
        let mut manifest = whole.clone();
        let entry = manifest.files.remove("config.json").unwrap();
        manifest.files.insert(name.to_owned(), entry);
        manifest.sha256 = manifest.own_hash();
        assert!(
            refused(&serde_json::to_string(&manifest).unwrap()).contains("not a plain file name"),
            "{name}"
        );
    }
    assert!(refused(&" ".repeat(2 << 20)).contains("larger than"));
    assert!(refused("{\"format\": 2, \"news\": []}").contains("has format 2"));
    assert!(refused("").contains("cannot be read"));
    assert!(refused(&"[".repeat(100_000)).contains("cannot be read"));
}

#[test]
fn the_newest_that_verifies_is_found_and_the_rest_is_said() {
    let run = tempdir().unwrap();
    for (name, step) in [("one", 1), ("two", 2), ("three", 3), ("second", 2)] {
        save(run.path(), name, step, 0, files_of(step)).unwrap();
    }
    let all = ["one", "two", "three", "second", "missing"];
    let found = |search: &Search| search.found.as_ref().map(|(path, _)| path.file_name().unwrap().to_owned());

    let search = newest(run.path(), &all);
    assert_eq!(found(&search).unwrap(), "three");
    assert!(search.passed_over.is_empty());

    fs::remove_file(run.path().join("three/config.json")).unwrap();
    let search = newest(run.path(), &all);
    assert_eq!(found(&search).unwrap(), "two");
    assert_eq!(search.passed_over.len(), 1);

    fs::remove_file(run.path().join("two").join(MANIFEST)).unwrap();
    let search = newest(run.path(), &all);
    assert_eq!(found(&search).unwrap(), "second");
    assert_eq!(search.passed_over.len(), 2);

    assert!(newest(run.path(), &["missing"]).found.is_none());
}

/// A process of its own saves without end and is killed, again and again, at whatever instant it is then in.
#[test]
fn a_killed_process_leaves_a_whole_directory() {
    const RUN: &str = "MTDNN_TEST_STORE";
    if let Some(run) = std::env::var_os(RUN) {
        let run = Path::new(&run);
        let first = newest_step(run).expect("the parent saves the first") + 1;
        for step in first.. {
            save(run, LAST, step, 0, files_of(step)).unwrap();
            println!("saved {step}");
        }
    }
    let run = saved(&[0]);
    for round in 0..40 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "train::store::tests::a_killed_process_leaves_a_whole_directory",
            ])
            .env(RUN, run.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut saves = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .filter_map(|line| line.unwrap().strip_prefix("saved ")?.parse::<u64>().ok());
        let first = saves.next().expect("the child has saved nothing");
        thread::sleep(Duration::from_micros(70 * round)); // a save takes about two milliseconds
        child.kill().unwrap();
        child.wait().unwrap();
        let claimed = saves.last().unwrap_or(first);

        let left = newest_step(run.path()).expect("none verifies");
        assert!(left >= claimed, "step {claimed} was saved, {left} is left");
        recover(run.path(), &[LAST]).unwrap();
        assert_eq!(names(run.path()), [LAST]);
        assert_eq!(newest_step(run.path()), Some(left));
    }
}
