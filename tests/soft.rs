//! Soft labels: the loss beside its equation, and the binary from teachers to students.

#[path = "common/place.rs"]
mod place;
#[path = "common/runs.rs"]
mod runs;

use std::fs;

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Sizes, StepScalars};
use mtdnn_raw::data::soft::{SoftLabels, SoftSource, temper};
use mtdnn_raw::data::{Batch, Dataset, Label, TaskKind, TaskSpec};
use mtdnn_raw::nn::{Model, extents};
use mtdnn_raw::tensor::Space;
use place::{Place, RUN, json_lines};
use runs::{lesson, new_parameters, read, read_span, small_config, task, write};
use serde_json::Value;

const KINDS: [TaskKind; 3] = [TaskKind::Classification, TaskKind::Regression, TaskKind::Ranking];

/// A small model of one task, and what it is trained on.
struct Lesson {
    spec: TaskSpec,
    set: Dataset,
}

impl Lesson {
    /// Soft labels of `hard_weight` and `temperature`; their numbers are to be written into the set.
    fn new(kind: TaskKind, hard_weight: f32, temperature: f32) -> Self {
        let soft = SoftLabels { source: SoftSource::File("soft.jsonl".into()), hard_weight, temperature };
        let gamma = if kind == TaskKind::Ranking { 1.5 } else { 1.0 };
        Self { spec: TaskSpec { soft: Some(soft), gamma, ..task("task", kind, 3) }, set: lesson(kind, 7, 5) }
    }

    /// The choices that a softmax is taken over: elements of the logits.
    fn choices(&self) -> Vec<std::ops::Range<usize>> {
        let width = self.spec.outputs();
        let of = |example| self.set.sequences_of(example);
        (0..self.set.len()).map(|example| of(example).start * width..of(example).end * width).collect()
    }

    /// The logits of a batch of all, the loss of a training step, and the gradient of every parameter.
    fn step(&self) -> (Vec<f32>, f32, Vec<f32>) {
        let model = Model::new(&small_config(16, 0.0), std::slice::from_ref(&self.spec));
        let mut batch = Batch::default();
        batch.fill(&self.set, &(0..self.set.len() as u32).collect::<Vec<_>>());
        let (extents, parameters) = (extents(&batch), new_parameters(&model, 3));
        let run = |training: bool| {
            let recorded = match training {
                true => model.training(0, extents, 1.0, false),
                false => model.inference(&[0], extents),
            };
            let mut backend = CpuBackend::new();
            let arena = recorded.program.arena_len();
            backend.reserve(&Sizes { parameters: parameters.len(), arena, training }).unwrap();
            write(&mut backend, Space::Parameters, &parameters);
            recorded.write(&mut backend, &batch).unwrap();
            backend.run(&recorded.program, &StepScalars { extents, seed: 1, step: 0 }).unwrap();
            let output = read_span(&mut backend, recorded.program.span(recorded.outputs[0], &extents));
            let gradients = if training {
                let all = read(&mut backend, Space::Gradients, parameters.len());
                recorded.program.gradient_ranges().into_iter().flat_map(|range| all[range].to_vec()).collect()
            } else {
                Vec::new()
            };
            (output, gradients)
        };
        let (logits, _) = run(false);
        let (loss, gradients) = run(true);
        (logits, loss[0], gradients)
    }

    /// Each choice's softmax at a temperature; scores as they are.
    fn answers(&self, logits: &[f32], temperature: f64) -> Vec<f64> {
        let mut answers: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        if self.spec.kind != TaskKind::Regression {
            for choice in self.choices() {
                let factor = f64::from(self.spec.gamma) / temperature;
                let powers: Vec<f64> = answers[choice.clone()].iter().map(|l| (l * factor).exp()).collect();
                let sum: f64 = powers.iter().sum();
                answers[choice].iter_mut().zip(powers).for_each(|(answer, power)| *answer = power / sum);
            }
        }
        answers
    }

    /// Soft labels that are nobody's answers.
    fn make_up_soft_labels(&mut self) {
        let width = self.spec.outputs();
        self.set.soft =
            (0..self.set.sequences() * width).map(|i| 0.2 + (i as f32 * 0.7).sin().abs()).collect();
        if self.spec.kind != TaskKind::Regression {
            for choice in self.choices() {
                let sum: f32 = self.set.soft[choice.clone()].iter().sum();
                self.set.soft[choice].iter_mut().for_each(|p| *p /= sum);
            }
        }
    }
}

/// `w hard + (1 - w) T^2 soft`, from the logits in f64: each key moves the loss as it should.
#[test]
fn the_loss_is_its_equation_at_every_weight_and_temperature() {
    for kind in KINDS {
        for (weight, temperature) in [(0.5, 1.0), (0.0, 1.0), (0.25, 1.0), (0.5, 3.0), (0.0, 0.5)] {
            if kind == TaskKind::Regression && temperature != 1.0 {
                continue;
            }
            let mut lesson = Lesson::new(kind, weight, temperature);
            lesson.make_up_soft_labels();
            let (logits, loss, _) = lesson.step();
            let (mut hard, mut soft) = (0.0, 0.0);
            let (plain, warm) =
                (lesson.answers(&logits, 1.0), lesson.answers(&logits, f64::from(temperature)));
            for (choice, label) in lesson.choices().into_iter().zip(&lesson.set.labels) {
                let targets = lesson.set.soft[choice.clone()].iter().copied().map(f64::from);
                match *label {
                    Label::Class(index) | Label::Positive(index) => {
                        hard -= plain[choice.start + index as usize].ln();
                        soft -= targets.zip(&warm[choice]).map(|(t, p)| t * p.ln()).sum::<f64>();
                    }
                    Label::Score(score) => {
                        hard += (plain[choice.start] - f64::from(score)).powi(2);
                        soft += targets.map(|t| (plain[choice.start] - t).powi(2)).sum::<f64>();
                    }
                    other => panic!("{other:?}"),
                }
            }
            let (w, t, count) = (f64::from(weight), f64::from(temperature), lesson.set.len() as f64);
            let exact = (w * hard + (1.0 - w) * t * t * soft) / count;
            let error = (f64::from(loss) - exact).abs();
            assert!(
                error < 1e-5 * exact.max(1.0),
                "{kind}, weight {w}, temperature {t}: {loss} is not {exact}"
            );
        }
    }
}

/// What a model says itself is where the soft loss is least, at any temperature.
#[test]
fn a_model_learns_nothing_from_itself() {
    for kind in KINDS {
        for temperature in [1.0, 2.0] {
            let mut lesson = Lesson::new(kind, 0.0, temperature);
            lesson.make_up_soft_labels();
            let (logits, _, others) = lesson.step();
            lesson.set.soft = lesson.answers(&logits, 1.0).into_iter().map(|answer| answer as f32).collect();
            if kind != TaskKind::Regression {
                for choice in lesson.choices() {
                    temper(&mut lesson.set.soft[choice], temperature);
                }
            }
            let (_, _, own) = lesson.step();
            let largest = |gradients: &[f32]| gradients.iter().fold(0.0f32, |most, g| most.max(g.abs()));
            assert!(largest(&others) > 1e-3, "{kind}: others teach nothing");
            assert!(largest(&own) < 1e-5 * largest(&others), "{kind} at {temperature}: {}", largest(&own));
        }
    }
}

/// What is written after `soft` in a file of soft labels.
fn numbers(place: &Place, file: &str) -> Vec<Vec<f64>> {
    let number = |value: &Value| value.as_f64().unwrap();
    let list = |line: &Value| match &line["soft"] {
        Value::Array(numbers) => numbers.iter().map(number).collect(),
        score => vec![number(score)],
    };
    json_lines(place.path(file))[1..].iter().map(list).collect()
}

/// The training loss of each step of a run.
fn losses(place: &Place, run: &str) -> Vec<(String, f64)> {
    let lines = json_lines(place.path(run).join("metrics.jsonl"));
    let steps = lines.iter().filter(|line| line["event"] == "step");
    steps.map(|line| (line["task"].as_str().unwrap().to_string(), line["loss"].as_f64().unwrap())).collect()
}

/// Two models' soft labels are the mean of each one's, for every kind of task, and a run learns from them.
#[test]
fn soft_labels_of_several_models_are_their_mean_and_are_learned_from() {
    let place = Place::new();
    place.ok(&["train", "run.toml"]);
    place.ok(&["train", "run.toml", "--seed", "8", "--output", "other"]);
    let soft = |models: &[&str], task: &str, output: &str| {
        let mut arguments =
            vec!["predict", "--soft", "--task", task, "--data", "run.toml", "--output", output];
        models.iter().for_each(|model| arguments.extend(["--model", model]));
        place.ok(&arguments);
        numbers(&place, output)
    };
    for (task, width) in [("mood", 2), ("likeness", 1), ("answer", 3)] {
        let file = format!("{task}.soft");
        let one = soft(&["run/best"], task, "one.soft");
        let two = soft(&["other/best"], task, "two.soft");
        let both = soft(&["run/best", "other/best"], task, &file);
        assert_eq!((both.len(), both[0].len()), (48, width));
        assert_ne!(one, two);
        for ((one, two), both) in one.iter().zip(&two).zip(&both) {
            for ((one, two), both) in one.iter().zip(two).zip(both) {
                assert!(((one + two) / 2.0 - both).abs() < 1e-6, "{task}: {one}, {two}, {both}");
            }
        }
    }
    // One model's labels are what `predict` says.
    place.write("first.txt", "the film was good");
    let said = place.ok(&["predict", "--model", "run/best", "--task", "mood", "--json", "first.txt"]).stdout;
    let said: Value = serde_json::from_str(&said).unwrap();
    let own = soft(&["run/best"], "mood", "one.soft");
    assert!((said["mood"]["probabilities"]["down"].as_f64().unwrap() - own[0][0]).abs() < 1e-6);

    // Both runs draw the same batches, so that their first losses differ by the labels alone.
    let keys = |task: &str, keys: &str| format!("name = \"{task}\"\nsoft_labels = \"{task}.soft\"\n{keys}");
    let mut text = RUN.to_string();
    for (task, more) in
        [("mood", "temperature = 2.0\n"), ("likeness", "hard_weight = 0.25\n"), ("answer", "")]
    {
        text = text.replace(&format!("name = \"{task}\"\n"), &keys(task, more));
    }
    place.write("soft.toml", &text);
    place.ok(&["train", "soft.toml", "--output", "student"]);
    let (hard, soft) = (losses(&place, "run"), losses(&place, "student"));
    assert_eq!(hard.len(), soft.len());
    for task in ["mood", "likeness", "answer"] {
        let first = |losses: &[(String, f64)]| losses.iter().find(|(name, _)| name == task).unwrap().1;
        assert_ne!(first(&hard), first(&soft), "{task} has not read its soft labels");
    }
    // Other soft labels are other data: a run does not go on over them.
    fs::copy(place.path("one.soft"), place.path("mood.soft")).unwrap();
    let changed = place.run(&["train", "--resume", "--output", "student"]);
    assert_eq!(changed.code, Some(1));
    assert!(changed.stderr.contains("the examples of task \"mood\" are not those"), "{}", changed.stderr);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let place = Place::new();
    let soft = ["predict", "--soft", "--task", "mood", "--data", "run.toml"];
    place.refused(&[&soft[..], &["--model", "run"]].concat(), &["--output"]);
    place.refused(
        &["predict", "--model", "a", "--model", "b", "--task", "mood"],
        &["averaged with --soft alone"],
    );
    place.refused(
        &[&soft[..2], &["--task", "mood,answer", "--data", "x", "--output", "y", "--model", "run"]].concat(),
        &["soft labels are of one task"],
    );
    for (keys, words) in [
        ("hard_weight = 0.5", &["hard_weight is of soft labels, and there are none"][..]),
        ("temperature = 2.0", &["temperature is of soft labels"]),
        ("soft_labels = \"a\"\nvotes = [\"mood\"]", &["three sources of one thing"]),
        ("soft_labels = \"absent\"", &["cannot read", "absent"]),
        ("votes = []", &["votes names no column"]),
        ("soft_labels = \"a\"\nhard_weight = 1.0", &["hard_weight is 1", "leave the soft labels out"]),
        ("soft_labels = \"a\"\ntemperature = -1.0", &["temperature is -1"]),
        ("soft = [\"mood\", \"text\", \"mood\"]", &["soft names 3 columns, and the task has 2 labels"]),
        ("soft = [\"mood\", \"text\"]", &["mood-train.tsv:2: field \"mood\" is \"up\", not a number"]),
        (
            "votes = [\"text\"]",
            &["mood-train.tsv:2: field \"text\" is \"the film was good\"; the labels are down, up"],
        ),
    ] {
        place.run_file("name = \"mood\"\n", &format!("name = \"mood\"\n{keys}\n"));
        place.refused(&["train", "run.toml"], words);
    }
    place.run_file("kind = \"regression\"\n", "kind = \"regression\"\nsoft = [3]\n");
    place.refused(&["train", "run.toml"], &["soft and votes are for classification"]);
}

/// Annotators' votes, weights in columns, a list and an object: the same distribution, and its most probable class where
/// no column has the label.
#[test]
fn distributions_of_the_data_file_are_learned_from() {
    let place = Place::new();
    let (mut votes, mut weights, mut lists, mut objects) =
        ("text\tone\ttwo\tthree\n".to_string(), "text\tdown\tup\n".to_string(), String::new(), String::new());
    for number in 0..48 {
        let text = format!("the film was {}", place::WORDS[number % 4]);
        let (up, down) = if number % 2 == 0 { (2, 1) } else { (0, 2) };
        let all = if number % 2 == 0 { "up\tdown\tup" } else { "down\t\tdown" };
        votes += &format!("{text}\t{all}\n");
        weights += &format!("{text}\t{down}\t{up}\n");
        lists += &format!("{}\n", serde_json::json!({"text": text, "soft": [down, up]}));
        objects += &format!("{}\n", serde_json::json!({"text": text, "soft": {"up": up, "down": down}}));
    }
    let forms = [
        ("votes.tsv", &votes, "votes = [\"one\", \"two\", \"three\"]"),
        ("weights.tsv", &weights, "soft = [\"down\", \"up\"]"),
        ("lists.jsonl", &lists, "soft = \"soft\"\nlabels = [\"down\", \"up\"]"),
        ("objects.jsonl", &objects, "soft = \"soft\"\nlabels = [\"down\", \"up\"]"),
    ];
    let head = RUN.split("[[task]]").next().unwrap();
    let mut all = Vec::new();
    for (file, text, keys) in forms {
        place.write(file, text);
        let task = format!(
            "[[task]]\nname = \"mood\"\ntrain = \"{file}\"\ndev = \"{file}\"\ntext_a = \"text\"\n{keys}\n"
        );
        place.write("run.toml", format!("{head}{task}"));
        let ended = place.ok(&["train", "run.toml", "--output", file.split('.').next().unwrap()]);
        assert!(ended.stderr.contains("task mood: 2 classes, 48 to train on"), "{}", ended.stderr);
        all.push((losses(&place, file.split('.').next().unwrap()), ended.stdout));
    }
    for (losses, table) in &all[1..] {
        assert_eq!((losses, table.lines().nth(1)), (&all[0].0, all[0].1.lines().nth(1)));
    }
    // A mixture of thirds and certainties cannot be learned to nothing: its entropy is left.
    let last = all[0].0.last().unwrap().1;
    assert!(last > 0.2, "the loss of soft labels is {last}");
    // The label column counts where hard_weight says so.
    place.write(
        "run.toml",
        format!(
            "{head}[[task]]\nname = \"mood\"\ntrain = \"votes.tsv\"\ndev = \"votes.tsv\"\n\
        text_a = \"text\"\nlabel = \"one\"\nvotes = [\"one\", \"two\", \"three\"]\nhard_weight = 0.9\n"
        ),
    );
    place.ok(&["train", "run.toml", "--output", "hard"]);
    assert_ne!(losses(&place, "hard"), all[0].0);
    for (row, words) in [
        ("the film was good\t\t-\t\n", "votes.tsv:50: field \"one\" and its like hold nothing"),
        ("the film was good\tup\tdwn\tup\n", "votes.tsv:50: field \"two\" is \"dwn\"; the labels are"),
    ] {
        place.write("votes.tsv", votes.clone() + row);
        let text = format!(
            "{head}[[task]]\nname = \"mood\"\nlabels = [\"down\", \"up\"]\ntrain = \"votes.tsv\"\n\
            dev = \"votes.tsv\"\ntext_a = \"text\"\nvotes = [\"one\", \"two\", \"three\"]\n"
        );
        place.write("run.toml", text);
        place.refused(&["train", "run.toml"], &[words]);
    }
}

#[test]
fn distill_trains_teachers_and_students_once() {
    let place = Place::new();
    let distill = "[distill]\ntasks = [\"mood\", \"likeness\"]\nteachers = 3\ntop = 2\ndropouts = [0.1, 0.2]\n\
        temperature = 2.0\nhard_weight = 0.25\nseeds = 2\n[[task]]\nname = \"mood\"\n";
    place.run_file("[[task]]\nname = \"mood\"\n", distill);
    let first = place.ok(&["distill", "run.toml"]);
    assert!(first.stdout.contains("| task | metric | 2 teachers, mean |"), "{}", first.stdout);
    for words in ["| mood | accuracy |", "| answer | accuracy@1 |", "over 2 seeds; in ", "| mean |"] {
        assert!(first.stdout.contains(words), "{words:?} is not in {}", first.stdout);
    }
    assert!(first.stdout.contains("Soft labels"), "{}", first.stdout);
    assert_eq!(fs::read_to_string(place.path("run/results.md")).unwrap(), first.stdout);
    let results: Value = serde_json::from_slice(&fs::read(place.path("run/results.json")).unwrap()).unwrap();
    let row = |number: usize| &results["rows"][number];
    assert!(row(0)["ensemble"].is_f64() && row(2)["ensemble"].is_null());
    assert_eq!(row(3)["difference"]["values"].as_array().unwrap().len(), 2);

    // Teachers differ by seed and dropout, students and twins by their labels alone.
    let settings = |run: &str| {
        let text = fs::read_to_string(place.path("run").join(run).join("config.toml")).unwrap();
        text.parse::<toml::Table>().unwrap()
    };
    let dropout = |run: String| settings(&run)["train"].get("dropout").and_then(toml::Value::as_float);
    assert_eq!([1, 2, 3].map(|n| dropout(format!("teachers/{n}"))), [Some(0.1), Some(0.2), Some(0.1)]);
    let seeds =
        ["teachers/1", "teachers/3", "students/7", "twins/8"].map(|run| settings(run)["seed"].clone());
    assert_eq!(seeds, [9, 11, 7, 8].map(toml::Value::Integer));
    let (student, twin) = (settings("students/7"), settings("twins/7"));
    let task = |run: &toml::Table, number: usize| run["task"][number].as_table().unwrap().clone();
    assert_eq!(task(&student, 0)["hard_weight"].as_float(), Some(0.25));
    assert_eq!(task(&student, 0)["temperature"].as_float(), Some(2.0));
    // A score has no temperature, and a task that is not named no teacher.
    assert!(task(&student, 1).contains_key("soft_labels") && !task(&student, 1).contains_key("temperature"));
    assert_eq!(task(&student, 2), task(&twin, 2));
    assert!(!task(&twin, 0).contains_key("soft_labels"));
    assert_ne!(losses(&place, "run/students/7"), losses(&place, "run/twins/7"));
    let header = &json_lines(place.path("run/soft/mood.jsonl"))[0];
    assert_eq!(header["models"].as_array().unwrap().len(), 2);

    // The same command again trains nothing; another setting is refused.
    let again = place.ok(&["distill", "run.toml"]);
    assert_eq!(again.stdout, first.stdout);
    assert!(!again.stderr.contains("plan:"), "something was trained again: {}", again.stderr);
    let other = place.path("run.toml");
    let text = fs::read_to_string(&other).unwrap();
    fs::write(&other, text.replace("temperature = 2.0", "temperature = 3.0")).unwrap();
    let refused = place.run(&["distill", "run.toml"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("task.mood.temperature was 2"), "{}", refused.stderr);
}

#[test]
fn distill_refuses_what_fits_no_experiment() {
    let place = Place::new();
    let usage = |table: &str, words: &str| {
        place.run_file("[[task]]\nname = \"mood\"\n", &format!("{table}\n[[task]]\nname = \"mood\"\n"));
        let ended = place.run(&["distill", "run.toml"]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(words), "{words:?} is not in {}", ended.stderr);
        assert!(!place.path("run").exists());
    };
    usage("", "there is no [distill] table");
    usage("[distill]\ntasks = [\"mod\"]", "distill.tasks: \"mod\" is no task of the run file");
    usage("[distill]\nteachers = 0", "distill.teachers: 0 teach nothing");
    usage("[distill]\ntop = 9", "distill.top: 9 of 3 teachers");
    usage("[distill]\nseeds = 0", "distill.seeds: 0 students");
    usage("[distill]\ndropouts = [1.0]", "distill.dropouts: 1 is not a probability");
    usage("[distill]\nhard_weight = 1.0", "distill.hard_weight: 1 is not a share");
    usage("[distill]\ntemperature = 0.0", "distill.temperature: 0 is not a number above 0");
    usage("[distill]\nteacher = 2", "unknown key \"teacher\"; did you mean \"teachers\"?");
    place.run_file("label = \"mood\"\n", "label = \"mood\"\nexamples = 5\n[distill]\n");
    let part = place.run(&["distill", "run.toml"]);
    assert_eq!(part.code, Some(2), "{}", part.stderr);
    assert!(part.stderr.contains("mood trains on a part that each seed draws anew"), "{}", part.stderr);
    usage("eval = \"never\"\n[distill]", "train.eval: teachers and students are compared by dev figures");
}
