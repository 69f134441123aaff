//! `submit` in a directory of its own: the zip for GLUE's leaderboard, and what is refused.

#[path = "common/glue.rs"]
mod glue;
#[path = "common/place.rs"]
mod place;

use std::collections::BTreeMap;
use std::fs;

use mtdnn_raw::data::{TaskKind, TaskSpec};
use place::Place;
use serde_json::Value;

/// A place with GLUE's test files and a model `all` of its nine tasks.
fn with_files() -> Place {
    let place = Place::new();
    glue::test_files(&place.path("glue"));
    glue::model(&place.path("all"), &glue::tasks(), 6);
    place
}

fn submit<'a>(models: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["submit", "--data", "glue", "--output", "out.zip"];
    models.iter().for_each(|model| arguments.extend(["--model", model]));
    arguments.extend(more);
    arguments
}

/// The zip's files in their order, by its directory, and its comment. They are stored as they are.
fn unzip(place: &Place) -> (Vec<(String, String)>, String) {
    let bytes = fs::read(place.path("out.zip")).unwrap();
    let two = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()) as usize;
    let four = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let text = |at: usize, size: usize| String::from_utf8(bytes[at..at + size].to_vec()).unwrap();
    let end = (0..=bytes.len() - 22).rev().find(|&at| bytes[at..].starts_with(b"PK\x05\x06")).unwrap();
    let mut entry = four(end + 16);
    let files = (0..two(end + 10)).map(|_| {
        let (size, name, file) = (four(entry + 24), two(entry + 28), four(entry + 42));
        assert!(bytes[entry..].starts_with(b"PK\x01\x02") && bytes[file..].starts_with(b"PK\x03\x04"));
        let found = (text(entry + 46, name), text(file + 30 + name, size));
        entry += 46 + name;
        found
    });
    (files.collect(), text(end + 22, two(end + 20)))
}

fn answers(text: &str) -> Vec<&str> {
    text.lines().skip(1).map(|line| line.split('\t').nth(1).unwrap()).collect()
}

/// What `predict` says of the rows of a test file, whose texts are in the columns from `from` on.
fn predicted(place: &Place, model: &str, task: &str, file: &str, from: usize) -> Vec<Value> {
    let text = fs::read_to_string(place.path("glue").join(file)).unwrap();
    let lines =
        text.lines().skip(1).map(|line| line.split('\t').skip(from).collect::<Vec<_>>().join("\t") + "\n");
    place.write("lines.tsv", lines.collect::<String>());
    let ended = place.ok(&["predict", "--model", model, "--task", task, "--json", "lines.tsv"]);
    ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()[task].take()).collect()
}

#[test]
fn the_zip_holds_what_the_heads_predict_and_says_what_it_lacks() {
    let place = with_files();
    let ended = place.ok(&submit(&["all"], &["--partial"]));
    let (files, comment) = unzip(&place);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let expected =
        "CoLA.tsv SST-2.tsv MRPC.tsv STS-B.tsv MNLI-m.tsv MNLI-mm.tsv QNLI.tsv RTE.tsv WNLI.tsv AX.tsv";
    assert_eq!(names.join(" "), expected);
    assert!(comment.contains("QQP.tsv: no test of qqp in glue"), "{comment}");
    assert!(ended.stdout.contains("missing: QQP.tsv"), "{}", ended.stdout);
    assert!(ended.stdout.contains("QNLI v2"), "{}", ended.stdout);
    assert!(ended.stdout.contains("10 of 11 files"), "{}", ended.stdout);
    let files: BTreeMap<String, String> = files.into_iter().collect();
    for (name, task, file, from) in [
        ("RTE.tsv", "rte", "RTE/test.tsv", 1),
        ("AX.tsv", "mnli", "diagnostic/diagnostic.tsv", 1),
        ("MRPC.tsv", "mrpc", "MRPC/test.tsv", 3),
        ("CoLA.tsv", "cola", "CoLA/test.tsv", 1),
    ] {
        let expected = predicted(&place, "all", task, file, from);
        let expected: Vec<&str> = expected.iter().map(|answer| answer["label"].as_str().unwrap()).collect();
        assert!(expected.iter().any(|word| *word != expected[0]), "{task} says the same of all");
        assert_eq!(answers(&files[name]), expected, "{name}");
    }
    let scores = predicted(&place, "all", "stsb", "STS-B/test.tsv", 1);
    let mut clipped = 0;
    for (answer, score) in answers(&files["STS-B.tsv"]).into_iter().zip(scores) {
        let score = score["score"].as_f64().unwrap();
        clipped += usize::from(!(0.0..=5.0).contains(&score));
        assert!((answer.parse::<f64>().unwrap() - score.clamp(0.0, 5.0)).abs() < 5.1e-4, "{answer} {score}");
    }
    assert!(clipped > 0 && clipped < 1379, "{clipped} were clipped");
    assert!(ended.stdout.contains(&format!("scores, {clipped} clipped to [0, 5]")), "{}", ended.stdout);
}

#[test]
fn without_partial_everything_that_is_missing_is_said_at_once() {
    let place = with_files();
    let tasks: Vec<_> =
        glue::tasks().into_iter().filter(|task| !["mnli", "wnli"].contains(&&*task.name)).collect();
    glue::model(&place.path("some"), &tasks, 1);
    place.refused(
        &submit(&["some"], &[]),
        &[
            "5 of 11 files are missing; --partial writes the others",
            "QQP.tsv: no test of qqp in glue",
            "MNLI-m.tsv: no model has the task mnli",
            "MNLI-mm.tsv: no model has the task mnli",
            "WNLI.tsv: no model has the task wnli (--wnli-majority needs none)",
            "AX.tsv: no model has the task mnli",
        ],
    );
    assert!(!place.path("out.zip").exists());
}

#[test]
fn the_first_model_that_has_a_task_answers_it() {
    let place = with_files();
    let only = |name: &str| glue::tasks().into_iter().filter(|task| task.name == name).collect::<Vec<_>>();
    glue::model(&place.path("fine"), &only("rte"), 2);
    glue::model(&place.path("late"), &only("cola"), 3);
    let ended = place.ok(&submit(&["fine", "all", "late"], &["--partial", "--json"]));
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(summary["complete"], false);
    let by = |file: &str| {
        let files = summary["files"].as_array().unwrap();
        files.iter().find(|found| found["file"] == file).unwrap()["answered_by"].as_str().unwrap().to_string()
    };
    assert_eq!((by("RTE.tsv").as_str(), by("CoLA.tsv").as_str()), ("fine", "all"));
    assert!(ended.stderr.contains("RTE.tsv: 3000 rows") && ended.stderr.contains("answered by fine"));
    assert!(
        ended.stderr.contains("warning: --model late: nothing is left for it to answer"),
        "{}",
        ended.stderr
    );
    let (files, _) = unzip(&place);
    let (_, text) = files.iter().find(|(name, _)| name == "RTE.tsv").unwrap();
    let label = |answer: &Value| answer["label"].as_str().unwrap().to_string();
    let of = |model| predicted(&place, model, "rte", "RTE/test.tsv", 1).iter().map(label).collect::<Vec<_>>();
    assert_eq!(answers(text), of("fine"));
    assert_ne!(answers(text), of("all"));
}

#[test]
fn the_majority_of_wnli_needs_no_model_and_is_zero() {
    let place = with_files();
    let wnli = |place: &Place| {
        let (files, _) = unzip(place);
        files.into_iter().find(|(name, _)| name == "WNLI.tsv").unwrap().1
    };
    place.ok(&submit(&["all"], &["--partial"]));
    assert!(answers(&wnli(&place)).contains(&"1"), "the model says 0 of all, too");
    let ended = place.ok(&submit(&["all"], &["--partial", "--wnli-majority"]));
    assert_eq!(answers(&wnli(&place)), vec!["0"; 146]);
    assert!(ended.stdout.contains("majority"), "{}", ended.stdout);
    fs::remove_dir_all(place.path("glue/WNLI")).unwrap();
    let ended = place.ok(&submit(&["all"], &["--partial", "--wnli-majority"]));
    assert!(ended.stderr.contains("warning: --wnli-majority"), "{}", ended.stderr);
}

/// Other rows than the official ones, another order, labels of one's own: all is said at once, and `--partial` does not
/// make them right.
#[test]
fn what_does_not_match_is_refused_with_its_reason() {
    let place = with_files();
    let pair = ["index", "sentence1", "sentence2"];
    place.write("glue/RTE/test.tsv", glue::test_file(&pair, 2999));
    let text = fs::read_to_string(place.path("glue/WNLI/test.tsv")).unwrap();
    place.write("glue/WNLI/test.tsv", text.replacen("\n0\t", "\n7\t", 1));
    let mut tasks = glue::tasks();
    tasks[0].labels = vec!["bad".into(), "good".into()];
    tasks[6] = TaskSpec::new("qnli", TaskKind::Ranking);
    tasks[7] = TaskSpec::new("rte", TaskKind::Ranking);
    glue::model(&place.path("odd"), &tasks, 1);
    place.refused(
        &submit(&["odd"], &["--partial"]),
        &[
            "RTE.tsv: glue/RTE/test.tsv: it has 2999 rows, and the leaderboard counts 3000",
            "glue/WNLI/test.tsv:2: field \"index\" is \"7\" where 0 follows",
            "CoLA.tsv: task cola of odd: its labels in the model are bad, good, and the leaderboard wants 0, 1",
            "RTE.tsv: task rte of odd: it is ranking in the model, and the leaderboard wants classification",
            "QNLI.tsv: glue/QNLI/test.tsv:3: ",
            "This is not QNLI v1",
        ],
    );
    place.refused(&submit(&["all"], &["--output", "glue"]), &["cannot be used multiple times"]);
    place.refused(
        &["submit", "--model", "all", "--data", "absent", "--output", "out.zip"],
        &["--data absent: no such folder"],
    );
    place.refused(
        &["submit", "--model", "all", "--data", "glue", "--output", "glue"],
        &["--output glue: is no regular file"],
    );
    fs::create_dir(place.path("empty")).unwrap();
    place.refused(
        &["submit", "--model", "all", "--data", "empty", "--output", "out.zip", "--partial"],
        &["there is nothing to answer", "AX.tsv: no test of ax in empty"],
    );
    assert!(!place.path("out.zip").exists());
}

/// The first edition of QNLI may be ranked: of two rows with one question the better one is the answer.
#[test]
fn a_ranking_task_answers_the_pairs_of_the_first_qnli() {
    let place = Place::new();
    glue::model(&place.path("ranker"), &[TaskSpec::new("qnli", TaskKind::Ranking)], 1);
    fs::create_dir_all(place.path("glue/QNLI")).unwrap();
    let mut text = "index\tquestion\tsentence\n".to_string();
    let mut queries = String::new();
    for pair in 0..2870 {
        let (question, one, other) =
            (glue::sentence(pair), glue::sentence(7 * pair + 1), glue::sentence(5 * pair + 2));
        text += &format!("{}\t{question}\t{one}\n{}\t{question}\t{other}\n", 2 * pair, 2 * pair + 1);
        queries += &format!("{question}\t{one}\t{other}\n");
    }
    place.write("glue/QNLI/test.tsv", text);
    place.write("queries.tsv", queries);
    let ended = place.ok(&submit(&["ranker"], &["--partial"]));
    assert!(ended.stdout.contains("QNLI v1"), "{}", ended.stdout);
    let (files, _) = unzip(&place);
    assert_eq!((files.len(), files[0].0.as_str()), (1, "QNLI.tsv"));
    let words = answers(&files[0].1);
    assert_eq!(words.len(), 5740);
    let predicted = place.ok(&["predict", "--model", "ranker", "--task", "qnli", "--json", "queries.tsv"]);
    let mut seconds = 0;
    for (pair, line) in words.chunks(2).zip(predicted.stdout.lines()) {
        let answer: Value = serde_json::from_str(line).unwrap();
        let best = answer["qnli"]["ranking"][0]["index"].as_u64().unwrap() as usize;
        assert_eq!((pair[best], pair[1 - best]), ("entailment", "not_entailment"));
        seconds += best;
    }
    assert!(seconds > 0 && seconds < 2870, "{seconds} of the second rows are the answers");
}
