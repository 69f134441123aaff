use super::*;
use crate::data::dataset::Label;
use proptest::prelude::*;

/// `size` examples of some tokens each.
fn examples(size: usize) -> Dataset {
    let mut dataset = Dataset::new();
    for number in 0..size {
        dataset.push_sequence(&vec![1; 1 + number % 7], 1);
        dataset.finish_example(Label::None);
    }
    dataset
}

fn datasets(sizes: &[usize]) -> Vec<Dataset> {
    sizes.iter().map(|&size| examples(size)).collect()
}

/// A sampler over ten epochs of batches of 4.
fn sampler(mix: Mix, length: Option<usize>, datasets: &[Dataset]) -> Sampler<'_> {
    let tasks = datasets.iter().map(|dataset| (dataset, Batching::of(4))).collect();
    Sampler::new(2018, mix, 10, length, tasks)
}

/// The task of each batch.
fn tasks(epoch: &Epoch) -> Vec<usize> {
    epoch.from(0).map(|(task, _)| task).collect()
}

fn counts(order: &[usize]) -> [usize; 3] {
    [0, 1, 2].map(|task| order.iter().filter(|&&other| other == task).count())
}

/// One of each kind, for three tasks.
fn kinds() -> Vec<Mix> {
    vec![
        Mix::Algorithm1,
        Mix::Ratio { main: 1, ratio: 0.5 },
        Mix::MainLast { main: 1 },
        Mix::Power { first: 1.0, last: 0.2, cap: 0 },
        Mix::Weights(vec![1.0, 2.0, 0.5]),
        Mix::Every { main: 1, every: 3 },
    ]
}

#[test]
fn an_epoch_of_algorithm_1_holds_every_example_once() {
    let datasets = datasets(&[10, 3, 8]);
    let sampler = sampler(Mix::Algorithm1, None, &datasets);
    let epoch = sampler.epoch(0);
    assert_eq!((epoch.len(), sampler.batches(0)), (6, 6));
    let mut seen = vec![Vec::new(); 3];
    let mut sizes = vec![Vec::new(); 3];
    for (task, examples) in epoch.from(0) {
        seen[task].extend_from_slice(examples);
        sizes[task].push(examples.len());
    }
    for (task, size) in [10, 3, 8].into_iter().enumerate() {
        seen[task].sort();
        assert_eq!(seen[task], (0..size).collect::<Vec<u32>>());
        sizes[task].sort_by(|a, b| b.cmp(a));
    }
    assert_eq!(sizes, [vec![4, 4, 2], vec![3], vec![4, 4]]);
}

#[test]
fn orders_follow_from_seed_and_epoch_alone() {
    let datasets = datasets(&[100, 60, 30]);
    for mix in kinds() {
        let sampler = sampler(mix.clone(), None, &datasets);
        assert_eq!(sampler.epoch(3), sampler.epoch(3));
        assert_ne!(sampler.epoch(3), sampler.epoch(4), "{mix:?}");
        let other = Sampler { seed: 2019, ..sampler.clone() };
        assert_ne!(sampler.epoch(3), other.epoch(3), "{mix:?}");
        let third = sampler.epoch(3);
        let rest: Vec<_> = third.from(7).collect();
        assert_eq!(rest, (7..third.len()).map(|index| third.batch(index)).collect::<Vec<_>>());
        assert_eq!(third.len(), sampler.batches(3));
    }
    let sampler = sampler(Mix::Algorithm1, None, &datasets);
    let (third, fourth) = (sampler.epoch(3), sampler.epoch(4));
    assert_ne!(third.orders[0], fourth.orders[0], "examples are reshuffled");
    assert_ne!(third.orders[0][..60], third.orders[1], "tasks are shuffled apart");
}

/// Figures of runs that were made before there were other kinds hold on: the order of Algorithm 1 has not changed.
#[test]
fn algorithm_1_draws_what_it_drew_at_first() {
    let datasets = datasets(&[10, 3, 8]);
    let epoch = sampler(Mix::Algorithm1, None, &datasets).epoch(1);
    let drawn: Vec<(usize, &[u32])> = epoch.from(0).collect();
    let expected: [(usize, &[u32]); 6] = [
        (0, &[7, 5, 0, 3]),
        (2, &[2, 4, 1, 5]),
        (1, &[1, 2, 0]),
        (0, &[2, 6]),
        (0, &[8, 4, 9, 1]),
        (2, &[7, 6, 3, 0]),
    ];
    assert_eq!(drawn, expected);
}

#[test]
fn tasks_are_interleaved() {
    // 50 batches each; the expected number of changes of task along the epoch is 50, standard deviation 5.
    let datasets = datasets(&[200, 200]);
    let order = tasks(&sampler(Mix::Algorithm1, None, &datasets).epoch(0));
    let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((25..=75).contains(&changes), "{changes} changes of task in 100 batches");
}

#[test]
fn the_main_task_comes_last() {
    let datasets = datasets(&[100, 60, 41]);
    let epoch = sampler(Mix::MainLast { main: 1 }, None, &datasets).epoch(0);
    let order = tasks(&epoch);
    assert_eq!(counts(&order), [25, 15, 11]);
    assert!(order[36..].iter().all(|&task| task == 1), "{order:?}");
    let changes = order[..36].windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes > 5, "the others are shuffled: {order:?}");
}

#[test]
fn a_ratio_adds_so_many_batches_of_other_tasks() {
    let datasets = datasets(&[100, 60, 41]);
    let drawn = |main, ratio| {
        let sampler = sampler(Mix::Ratio { main, ratio }, None, &datasets);
        let order = tasks(&sampler.epoch(0));
        assert_eq!(order.len(), sampler.batches(0));
        order
    };
    for (ratio, others) in [(0.0, 0), (0.5, 7), (1.0, 15), (2.0, 30), (9.0, 36)] {
        let [first, main, third] = counts(&drawn(1, ratio));
        assert_eq!((main, first + third), (15, others), "ratio {ratio}");
    }
    assert_eq!(counts(&drawn(0, 0.0)), [25, 0, 0], "another main task");
    // From the pool of all batches of others: 25 of the one, 11 of the other.
    let [first, main, third] = counts(&drawn(1, 9.0));
    assert_eq!([first, main, third], [25, 15, 11]);
    let order = drawn(1, 2.0);
    assert!(order[..30].contains(&1) && order[15..].contains(&1), "all are shuffled together: {order:?}");
    // 0.29 * 100 is 28.999...
    let datasets = [examples(400), examples(400)];
    assert_eq!(sampler(Mix::Ratio { main: 0, ratio: 0.29 }, None, &datasets).batches(0), 129);
}

#[test]
fn every_so_many_batches_are_the_main_tasks() {
    let datasets = datasets(&[100, 60, 40]);
    let sampler = sampler(Mix::Every { main: 1, every: 7 }, Some(25), &datasets);
    let order: Vec<usize> = (0..10).flat_map(|epoch| tasks(&sampler.epoch(epoch))).collect();
    assert_eq!(order.len(), 250);
    for (index, &task) in order.iter().enumerate() {
        assert_eq!(task == 1, (index + 1) % 7 == 0, "batch {index} of the run");
    }
    // The other 215 are drawn evenly: standard deviation 7.3.
    let [first, _, third] = counts(&order);
    assert!(first.abs_diff(third) < 60, "{first} and {third}");
}

/// Draws `epochs` epochs of `length` and holds the counts against chances, within four standard deviations.
fn assert_drawn(mix: Mix, sizes: &[usize; 3], epochs: std::ops::Range<u32>, chances: [f64; 3]) {
    let datasets = datasets(sizes);
    let length = 4000;
    let sampler = sampler(mix.clone(), Some(length), &datasets);
    for epoch in epochs {
        let found = counts(&tasks(&sampler.epoch(epoch)));
        let told = sampler.chances(epoch).unwrap();
        for task in 0..3 {
            let chance = chances[task] / chances.iter().sum::<f64>();
            assert!((told[task] - chance).abs() < 1e-12, "{mix:?}: {told:?}");
            let bound = 4.0 * (length as f64 * chance * (1.0 - chance)).sqrt();
            let error = (found[task] as f64 - length as f64 * chance).abs();
            assert!(error <= bound, "{mix:?}, epoch {epoch}: {found:?}, chance {chance} of task {task}");
        }
    }
}

#[test]
fn tasks_are_drawn_as_often_as_the_formula_says() {
    let sizes = [800, 200, 50];
    let power = |exponent, cap| Mix::Power { first: exponent, last: exponent, cap };
    assert_drawn(power(1.0, 0), &sizes, 0..3, [800.0, 200.0, 50.0]);
    assert_drawn(power(0.5, 0), &sizes, 0..3, [4.0, 2.0, 1.0]);
    assert_drawn(power(0.0, 0), &sizes, 0..3, [1.0, 1.0, 1.0]);
    assert_drawn(power(0.5, 200), &sizes, 0..3, [2.0, 2.0, 1.0]);
    assert_drawn(power(1.0, 100), &sizes, 0..3, [2.0, 2.0, 1.0]);
    assert_drawn(Mix::Weights(vec![3.0, 0.0, 1.5]), &sizes, 0..3, [2.0, 0.0, 1.0]);
    // Ten epochs: the exponent falls from 1 to 0.2 in nine steps.
    let annealed = || Mix::Power { first: 1.0, last: 0.2, cap: 0 };
    for (epoch, exponent) in [(0, 1.0), (3, 1.0 - 0.8 / 3.0), (9, 0.2)] {
        let chances = sizes.map(|size| (size as f64).powf(exponent));
        assert_drawn(annealed(), &sizes, epoch..epoch + 1, chances);
    }
}

#[test]
fn a_single_epoch_is_the_first_of_the_annealing() {
    let datasets = datasets(&[30, 10]);
    let tasks = datasets.iter().map(|dataset| (dataset, Batching::of(4))).collect();
    let sampler = Sampler::new(1, Mix::Power { first: 1.0, last: 0.2, cap: 0 }, 1, None, tasks);
    assert_eq!(sampler.chances(0).unwrap(), [0.75, 0.25]);
}

#[test]
fn an_epoch_is_as_long_as_one_pass_over_all_or_as_is_said() {
    let datasets = datasets(&[100, 60, 41]);
    let mix = Mix::Power { first: 0.0, last: 0.0, cap: 0 };
    assert_eq!(sampler(mix.clone(), None, &datasets).epoch(2).len(), 25 + 15 + 11);
    assert_eq!(sampler(mix, Some(77), &datasets).epoch(2).len(), 77);
}

proptest! {
    /// The examples of a task, in the order in which a run draws them, are whole passes one after another.
    #[test]
    fn no_example_is_drawn_twice_before_all_are_drawn_once(
        kind in 0_usize..6,
        sizes in prop::array::uniform3(1_usize..40),
        tokens in prop::sample::select(vec![0_usize, 9, 20]),
        bucket in prop::sample::select(vec![0_usize, 10]),
        length in prop::option::of(1_usize..60),
    ) {
        let datasets = datasets(&sizes);
        let batching = Batching { examples: 4, tokens, bucket };
        let tasks = datasets.iter().map(|dataset| (dataset, batching)).collect();
        let sampler = Sampler::new(5, kinds()[kind].clone(), 4, length, tasks);
        let mut drawn = vec![Vec::new(); 3];
        for epoch in 0..4 {
            let drawn_now = sampler.epoch(epoch);
            let mut counts = [0; 3];
            for (task, examples) in drawn_now.from(0) {
                drawn[task].extend_from_slice(examples);
                counts[task] += 1;
            }
            prop_assert_eq!(drawn_now.len(), sampler.batches(epoch));
            prop_assert_eq!(&counts[..], &sampler.batches_of_each(epoch)[..]);
        }
        for (drawn, &size) in drawn.iter().zip(&sizes) {
            for pass in drawn.chunks(size) {
                let mut pass = pass.to_vec();
                let count = pass.len();
                pass.sort_unstable();
                pass.dedup();
                prop_assert_eq!(pass.len(), count);
            }
        }
    }
}
