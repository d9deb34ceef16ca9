//! The order of samples: the same for all workers, ranks and restarts, exact in its proportions,
//! evenly shuffled, and kind to storage.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use aim_data::augment::Transform;
use aim_data::loader::{BadSamplePolicy, Batch, Loader, LoaderOptions, LoaderState};
use aim_data::sampler::{Draw, Mixture};
use aim_data::source::{Sample, SampleFormat, Source, Subset, SyntheticSource};
use aim_data::{Defect, DefectKind, Error};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Stripes in shards, some of them bad.
struct Sharded {
    inner: SyntheticSource,
    starts: Vec<u64>,
    window: Option<usize>,
    bad: fn(u64) -> Option<DefectKind>,
}

impl Source for Sharded {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn format(&self) -> SampleFormat {
        self.inner.format()
    }
    fn read(&self, index: u64, epoch: u64) -> Result<Sample, Defect> {
        match (self.bad)(index) {
            Some(kind) => Err(self.defect(index, kind, "planted".into())),
            None => self.inner.read(index, epoch),
        }
    }
    fn key(&self, index: u64) -> String {
        self.inner.key(index)
    }
    fn location(&self, index: u64) -> String {
        format!("shard {}, sample {index}", self.shard_of(index))
    }
    fn label(&self, index: u64) -> Option<u32> {
        self.inner.label(index)
    }
    fn num_classes(&self) -> Option<u32> {
        self.inner.num_classes()
    }
    fn shard_starts(&self) -> Option<&[u64]> {
        Some(&self.starts)
    }
    fn shuffle_window(&self) -> Option<usize> {
        self.window
    }
    fn fingerprint(&self) -> &str {
        self.inner.fingerprint()
    }
}

impl Sharded {
    fn new(sizes: &[u64], window: Option<usize>) -> Self {
        let mut total = 0;
        let starts = sizes
            .iter()
            .map(|size| {
                total += size;
                total - size
            })
            .collect();
        let inner = SyntheticSource::parse(&format!("stripes,n={total},size=8"), (1, 1));
        Self { inner: inner.unwrap(), starts, window, bad: |_| None }
    }

    fn shard_of(&self, index: u64) -> usize {
        self.starts.partition_point(|&start| start <= index) - 1
    }
}

fn whole(n: u64) -> Arc<dyn Source> {
    Arc::new(Sharded::new(&[n], None))
}

fn config(cases: u32) -> ProptestConfig {
    let failure_persistence = Some(Box::new(FileFailurePersistence::Off) as _);
    ProptestConfig { failure_persistence, ..ProptestConfig::with_cases(cases) }
}

fn options(global_batch: usize, rank: usize, ranks: usize, workers: usize) -> LoaderOptions {
    let lenient = BadSamplePolicy { max_fraction: 1.0, min_count: 0 };
    let options = LoaderOptions {
        workers,
        prefetch_batches: 1 + workers % 3,
        bad_samples: lenient,
        ..LoaderOptions::new(global_batch, 6, Transform::train())
    };
    options.for_rank(rank, ranks).unwrap()
}

/// Two sources that differ in everything: windows of shards with bad samples, and a whole one.
fn two_sources(sizes: &[u64], window: usize, small: u64, weight: f64) -> Mixture {
    let bad = |index: u64| (index % 7 == 3).then_some(DefectKind::Corrupt);
    let windowed: Arc<dyn Source> = Arc::new(Sharded { bad, ..Sharded::new(sizes, Some(window)) });
    Mixture::new(vec![(windowed, 1.0), (whole(small), weight)]).unwrap()
}

/// Samples in the order of slots, whatever the batches they came in.
#[derive(Debug, Default, PartialEq)]
struct Stream {
    keys: Vec<(u16, u64, u64)>,
    labels: Vec<Option<u32>>,
    pixels: Vec<u8>,
}

impl Stream {
    fn add(&mut self, batch: &Batch) {
        let places = batch.sources.iter().zip(&batch.epochs).zip(&batch.indices);
        self.keys.extend(places.map(|((&source, &epoch), &index)| (source, epoch, index)));
        self.labels.extend_from_slice(&batch.labels);
        self.pixels.extend_from_slice(batch.images.as_u8().unwrap());
    }

    /// Steps of all ranks from a state on; returns the state of the first rank after each step.
    fn run(
        &mut self,
        mixture: &Mixture,
        state: &LoaderState,
        (global_batch, ranks, workers): (usize, usize, usize),
        steps: usize,
    ) -> Vec<LoaderState> {
        let start = |rank| {
            let options = options(global_batch, rank, ranks, workers);
            Loader::new(mixture.clone(), options, state.clone()).unwrap()
        };
        let mut loaders: Vec<Loader> = (0..ranks).map(start).collect();
        let mut states = Vec::new();
        for _ in 0..steps {
            for loader in &mut loaders {
                self.add(&loader.next_batch().unwrap());
            }
            states.push(loaders[0].state().clone());
        }
        states
    }
}

proptest! {
    #![proptest_config(config(6))]
    #[test]
    fn order_and_bytes_are_the_same_for_all_ranks_and_workers(
        sizes in prop::collection::vec(0u64..9, 3..7).prop_filter("samples", |sizes| {
            sizes.iter().sum::<u64>() > 4
        }),
        window in 1usize..4,
        small in 1u64..5,
        weight in prop::sample::select(vec![0.25, 1.0, 0.7]),
        seed: u64,
    ) {
        let mixture = two_sources(&sizes, window, small, weight);
        let state = LoaderState::new(seed);
        let mut reference = Stream::default();
        reference.run(&mixture, &state, (24, 1, 0), 3);
        prop_assert_eq!(reference.keys.len(), 72);
        for ranks in [1, 2, 3, 8] {
            for workers in 1..=8 {
                let mut stream = Stream::default();
                stream.run(&mixture, &state, (24, ranks, workers), 3);
                prop_assert!(stream == reference, "{ranks} ranks, {workers} workers");
            }
        }
    }

    #[test]
    fn a_run_goes_on_anywhere_with_any_number_of_ranks(
        sizes in prop::collection::vec(1u64..8, 3..6),
        window in 1usize..4,
        seed: u64,
    ) {
        // Two epochs of the larger source, in batches of 6.
        let mixture = two_sources(&sizes, window, 3, 0.5);
        let steps = (2 * sizes.iter().sum::<u64>() * 3 / 2).div_ceil(6) as usize;
        let mut reference = Stream::default();
        let states = reference.run(&mixture, &LoaderState::new(seed), (6, 1, 2), steps);
        for (step, state) in states.iter().enumerate() {
            // As a checkpoint keeps it.
            let text = serde_json::to_string(state).unwrap();
            let state: LoaderState = serde_json::from_str(&text).unwrap();
            let done = (step + 1) * 6;
            let ranks = [1, 2, 3, 6][step % 4];
            let mut tail = Stream::default();
            tail.run(&mixture, &state, (6, ranks, step % 3), steps - step - 1);
            prop_assert_eq!(&tail.keys[..], &reference.keys[done..]);
            prop_assert!(tail.pixels == reference.pixels[done * 6 * 6 * 3..], "step {step}");
        }
    }
}

proptest! {
    #![proptest_config(config(100))]
    #[test]
    fn proportions_hold_within_the_bound_at_every_sample(
        parts in prop::collection::vec((1u64..400, 1u32..=10_000), 2..7),
        seed: u64,
    ) {
        let total: f64 = parts.iter().map(|&(_, weight)| f64::from(weight)).sum();
        let sources = parts.iter().map(|&(len, weight)| (whole(len), f64::from(weight) * 0.01));
        let mixture = Mixture::new(sources.collect()).unwrap();
        let bound = 1.0 - 1.0 / (2.0 * parts.len() as f64 - 2.0) + 1e-9;
        let mut drawn = vec![0u64; parts.len()];
        for n in 1..=3000u64 {
            let draw = mixture.draw(seed, n - 1);
            let source = usize::from(draw.source);
            // Its own epochs, each complete before the next.
            let len = parts[source].0;
            prop_assert_eq!((draw.epoch, draw.position), (drawn[source] / len, drawn[source] % len));
            drawn[source] += 1;
            for (&drawn, &(_, weight)) in drawn.iter().zip(&parts) {
                let share = n as f64 * f64::from(weight) / total;
                prop_assert!((drawn as f64 - share).abs() <= bound, "{drawn} of {n}, {share}");
            }
        }
    }

    #[test]
    fn each_epoch_has_every_sample_once_and_each_shard_in_one_span(
        sizes in prop::collection::vec(0u64..30, 1..25).prop_filter("samples", |sizes| {
            sizes.iter().sum::<u64>() > 0
        }),
        window in 1usize..9,
        seed: u64,
    ) {
        let source = Arc::new(Sharded::new(&sizes, Some(window)));
        let len = source.len();
        let mixture = Mixture::single(source.clone()).unwrap();
        let mut orders = HashSet::new();
        for epoch in 0..2 {
            let indices: Vec<u64> =
                (0..len).map(|at| mixture.draw(seed, epoch * len + at).index).collect();
            prop_assert_eq!(indices.iter().collect::<HashSet<_>>().len() as u64, len);
            if window < sizes.len() {
                check_spans(&source, &indices, window)?;
            }
            // Whatever stands in for a bad sample lies in a shard that is at hand.
            let draw: Draw = mixture.draw(seed, epoch * len + seed % len);
            let stand_ins: HashSet<u64> =
                (0..len).map(|attempt| mixture.substitute(seed, &draw, attempt).index).collect();
            prop_assert!(stand_ins.len() as u64 <= len && stand_ins.contains(&draw.index));
            orders.insert(indices);
        }
        prop_assert!(orders.len() == 2 || len < 6);
    }
}

/// The shards of an order come in groups of at most `window` that do not overlap.
fn check_spans(source: &Sharded, indices: &[u64], window: usize) -> Result<(), TestCaseError> {
    let mut spans: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (at, &index) in indices.iter().enumerate() {
        spans.entry(source.shard_of(index)).or_insert((at, at)).1 = at;
    }
    // A shard is at hand from its first sample to its last: never more than a window of them.
    for at in 0..indices.len() {
        let at_hand = spans.values().filter(|&&(first, last)| first <= at && at <= last).count();
        prop_assert!(at_hand <= window, "{at_hand} shards at place {at}");
    }
    // And no window begins before the one before it is over.
    let mut by_first: Vec<(usize, usize)> = spans.into_values().collect();
    by_first.sort_unstable();
    let mut group_end = by_first[0].1;
    let mut in_group = 0;
    for (first, last) in by_first {
        if first > group_end {
            in_group = 0;
        }
        in_group += 1;
        prop_assert!(in_group <= window, "{in_group} shards overlap");
        group_end = group_end.max(last);
    }
    Ok(())
}

/// How often each shard, or each place, comes first, against an even share: chi-square.
fn chi_square(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum()
}

#[test]
fn shuffles_are_even() {
    // 12 shards of 5 in windows of 4, 6,000 epochs: where a shard's window comes, which of its
    // samples comes first in it, which shard comes next to another.
    let source = Arc::new(Sharded::new(&[5; 12], Some(4)));
    let mixture = Mixture::single(source.clone()).unwrap();
    let mut window_of_shard = vec![0; 3];
    let mut first_sample = vec![0; 60];
    let mut pair = vec![0; 11];
    let mut place_of_first = vec![0; 20];
    for epoch in 0..6000 {
        let order: Vec<u64> = (0..60).map(|at| mixture.draw(9, epoch * 60 + at).index).collect();
        first_sample[order[0] as usize] += 1;
        let place = order.iter().position(|&index| index == 7).unwrap();
        window_of_shard[place / 20] += 1;
        place_of_first[place % 20] += 1;
        let mut mates: Vec<usize> =
            order[place / 20 * 20..][..20].iter().map(|&index| source.shard_of(index)).collect();
        mates.sort_unstable();
        mates.dedup();
        for mate in mates.into_iter().filter(|&mate| mate != 1) {
            pair[mate - usize::from(mate > 1)] += 1;
        }
    }
    // Each with a mean of (cells - 1) and a standard deviation of sqrt(2 (cells - 1)).
    for counts in [window_of_shard, first_sample, pair, place_of_first] {
        let freedom = counts.len() as f64 - 1.0;
        let found = chi_square(&counts);
        assert!(found < freedom + 4.0 * (2.0 * freedom).sqrt(), "{found}: {counts:?}");
    }
}

#[test]
fn dfn_2b_plus_is_four_of_five_in_every_batch() {
    let mixture = Mixture::new(vec![(whole(5000), 0.8), (whole(11), 0.2)]).unwrap();
    assert_eq!(mixture.proportions(), [4, 1]);
    for batch in 0..20u64 {
        let small = (0..40).filter(|slot| mixture.draw(1, batch * 40 + slot).source == 1);
        assert_eq!(small.count(), 8);
    }
    // The small one is in its 15th epoch by then; the large one in its first.
    assert_eq!((mixture.draw(1, 797).source, mixture.draw(1, 797).epoch), (1, 14));
    assert_eq!((mixture.draw(1, 798).source, mixture.draw(1, 798).epoch), (0, 0));
}

#[test]
fn one_window_for_all_gives_one_order_wherever_the_shards_lie() {
    let sizes = [9, 3, 14, 1, 8, 8];
    let order = |source: Sharded, window: Option<usize>| {
        let window = window.and_then(NonZeroUsize::new);
        let mixture = Mixture::with_window(vec![(Arc::new(source) as _, 1.0)], window).unwrap();
        (0..86).map(|i| mixture.draw(4, i).index).collect::<Vec<_>>()
    };
    let (local, remote) = (Sharded::new(&sizes, None), Sharded::new(&sizes, Some(2)));
    let remote_by_itself = order(remote, None);
    assert_eq!(order(local, Some(2)), remote_by_itself);
    // As many shards as there are: the order of a source without shards.
    let plain = order(Sharded::new(&[43], None), None);
    assert_eq!(order(Sharded::new(&sizes, Some(6)), None), plain);
    assert_eq!(order(Sharded::new(&sizes, None), None), plain);
    assert_ne!(remote_by_itself, plain);
}

#[test]
fn parts_of_a_source_keep_its_shards() {
    let source: Arc<dyn Source> = Arc::new(Sharded::new(&[5, 0, 7, 4], Some(2)));
    let (others, held_out) = Subset::split(&source, 3);
    // Held out are 0, 3, 6, 9, 12, 15.
    assert_eq!(others.shard_starts(), Some(&[0, 3, 3, 8][..]));
    assert_eq!(held_out.shard_starts(), Some(&[0, 2, 2, 4][..]));
    assert_eq!(others.shuffle_window(), Some(2));
}

#[test]
fn a_state_of_other_data_is_refused_with_what_changed() {
    let options = options(4, 0, 1, 0);
    let state = |parts| {
        let mut loader =
            Loader::new(Mixture::new(parts).unwrap(), options, LoaderState::new(1)).unwrap();
        loader.next_batch().unwrap();
        loader.state().clone()
    };
    let refused = |state: LoaderState, parts| {
        let error = Loader::new(Mixture::new(parts).unwrap(), options, state).err().unwrap();
        assert!(matches!(error, Error::StateMismatch { .. }));
        error.to_string()
    };
    let before = state(vec![(whole(10), 0.8), (whole(6), 0.2)]);
    let text = refused(before.clone(), vec![(whole(10), 0.8), (whole(5), 0.2)]);
    assert!(text.contains("source 1") && text.contains("6 samples then, 5 now"), "{text}");
    assert!(!text.contains("source 0"), "{text}");
    let text = refused(before.clone(), vec![(whole(10), 0.5), (whole(6), 0.5)]);
    assert!(text.contains("weight 4 of 5 then, 1 of 2 now"), "{text}");
    let text = refused(before.clone(), vec![(whole(10), 0.8)]);
    assert!(text.contains("2 sources then, 1 now"), "{text}");
    let other = SyntheticSource::parse("stripes,n=10,size=9", (1, 1)).unwrap();
    let text = refused(before.clone(), vec![(Arc::new(other), 0.8), (whole(6), 0.2)]);
    assert!(text.contains("source 0") && text.contains("other keys, sizes or order"), "{text}");
    let sharded = |sizes: &[u64]| vec![(Arc::new(Sharded::new(sizes, Some(1))) as _, 1.0)];
    let text = refused(state(sharded(&[5, 5])), sharded(&[4, 6]));
    assert!(text.contains("divided into shards in another way"), "{text}");
    let newer = LoaderState { order: 99, ..LoaderState::new(1) };
    let error = Loader::new(Mixture::single(whole(3)).unwrap(), options, newer).err().unwrap();
    assert!(error.to_string().contains("version 99"), "{error}");
}

#[test]
fn a_run_keeps_its_windows_when_its_shards_move() {
    let mixture = |window| {
        let source: Arc<dyn Source> = Arc::new(Sharded::new(&[5, 9, 2, 7], window));
        Mixture::single(source).unwrap()
    };
    for (begun, moved) in [(Some(2), None), (None, Some(2)), (Some(1), Some(3))] {
        let mut reference = Stream::default();
        let states = reference.run(&mixture(begun), &LoaderState::new(8), (4, 1, 0), 9);
        let mut tail = Stream::default();
        tail.run(&mixture(moved), &states[2], (4, 2, 1), 6);
        assert_eq!(tail.keys[..], reference.keys[12..]);
    }
}

#[test]
fn states_of_the_first_version_go_on_in_their_order() {
    // Three sources: the order of the first version differs from today's.
    let parts = || vec![(whole(30), 5.0), (whole(20), 1.0), (whole(10), 1.0)];
    let old = |next: u64| -> LoaderState {
        let text =
            format!("{{\"seed\":7,\"next_sample\":{next},\"bad_samples\":0,\"fingerprint\":\"\"}}");
        serde_json::from_str(&text).unwrap()
    };
    let run = |state: LoaderState| {
        let mixture = Mixture::new(parts()).unwrap();
        let mut loader = Loader::new(mixture, options(7, 0, 1, 0), state).unwrap();
        let batch = loader.next_batch().unwrap();
        (batch.sources, loader.state().clone())
    };
    let (sources, state) = run(old(0));
    // By hand: shares 5, 1, 1 of 7; whoever is furthest behind comes next.
    assert_eq!(sources, [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(state.order, 0);
    // The state is of the old order for good.
    assert_eq!(run(state).0, sources);
}

#[test]
fn ranks_must_split_a_batch_evenly() {
    let whole = LoaderOptions::new(10, 8, Transform::train());
    let half = whole.for_rank(1, 2).unwrap();
    assert_eq!((half.batch_size, half.rank, half.world_size), (5, 1, 2));
    let text = whole.for_rank(0, 4).unwrap_err().to_string();
    for part in ["10 samples", "4 ranks", "8 or 12"] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    assert!(whole.for_rank(2, 2).is_err() && whole.for_rank(0, 0).is_err());
    assert!(whole.for_rank(0, 16).unwrap_err().to_string().contains("take 16,"));
}

#[test]
fn storage_out_of_reach_ends_the_run_and_skips_nothing() {
    let bad = |index: u64| (index == 11).then_some(DefectKind::Unavailable);
    let source = Arc::new(Sharded { bad, ..Sharded::new(&[10, 10], None) });
    for workers in [0, 2] {
        let mixture = Mixture::single(source.clone()).unwrap();
        let mut loader =
            Loader::new(mixture, options(4, 0, 1, workers), LoaderState::new(0)).unwrap();
        let error = (0..5).find_map(|_| loader.next_batch().err()).unwrap();
        assert!(matches!(error, Error::Unavailable { .. }));
        assert!(error.to_string().starts_with("shard 1, sample 11: planted"), "{error}");
        assert!(loader.take_skipped().is_empty());
    }
}

#[test]
fn a_window_without_a_good_sample_is_passed_over() {
    // Shard 1 is bad throughout; the next window stands in for it.
    let bad = |index: u64| (3..6).contains(&index).then_some(DefectKind::Corrupt);
    let source = Arc::new(Sharded { bad, ..Sharded::new(&[3, 3, 3], Some(1)) });
    let mut stream = Stream::default();
    stream.run(&Mixture::single(source).unwrap(), &LoaderState::new(5), (9, 1, 1), 2);
    assert!(stream.keys.iter().all(|&(_, _, index)| !(3..6).contains(&index)));
    assert_eq!(stream.keys.len(), 18);
}

#[test]
fn bad_samples_are_counted_for_all_ranks() {
    let bad = |index: u64| index.is_multiple_of(5).then_some(DefectKind::Truncated);
    let source: Arc<dyn Source> = Arc::new(Sharded { bad, ..Sharded::new(&[1000], None) });
    let strict = BadSamplePolicy { max_fraction: 0.5, min_count: 3 };
    let step = |ranks: usize, state: &LoaderState| {
        let options = LoaderOptions { bad_samples: strict, ..options(120, 0, ranks, 1) };
        let mixture = Mixture::single(source.clone()).unwrap();
        let mut loader = Loader::new(mixture, options, state.clone()).unwrap();
        loader.next_batch().unwrap();
        loader.state().clone()
    };
    // A fifth stays about a fifth through every change of ranks.
    let mut state = LoaderState::new(2);
    for ranks in [1, 8, 2, 3, 1, 8, 1] {
        state = step(ranks, &state);
    }
    let share = state.bad_samples as f64 / (state.next_sample + state.bad_samples) as f64;
    assert!((0.1..0.3).contains(&share), "{share}");
}
