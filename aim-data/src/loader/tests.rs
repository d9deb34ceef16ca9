use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::augment::Transform;
use crate::error::Defect;
use crate::source::{
    ImageFolder, Payload, Sample, SampleFormat, Source, SyntheticSource, TensorSource,
};

/// Stripes, with chosen indices that are bad, panic, or are slow.
struct Faulty {
    inner: SyntheticSource,
    bad: fn(u64) -> bool,
    panics_at: Option<u64>,
    reads: AtomicU64,
}

impl Source for Faulty {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn format(&self) -> SampleFormat {
        self.inner.format()
    }
    fn read(&self, index: u64, epoch: u64) -> Result<Sample, Defect> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        assert!(self.panics_at != Some(index), "planted panic at {index}");
        if (self.bad)(index) {
            return Err(self.defect(index, DefectKind::Corrupt, "planted".into()));
        }
        self.inner.read(index, epoch)
    }
    fn key(&self, index: u64) -> String {
        self.inner.key(index)
    }
    fn location(&self, index: u64) -> String {
        format!("faulty {index}")
    }
    fn label(&self, index: u64) -> Option<u32> {
        self.inner.label(index)
    }
    fn num_classes(&self) -> Option<u32> {
        self.inner.num_classes()
    }
    fn fingerprint(&self) -> &str {
        self.inner.fingerprint()
    }
}

fn stripes(n: u64) -> SyntheticSource {
    SyntheticSource::parse(&format!("stripes,n={n},size=12"), (1, 1)).unwrap()
}

fn faulty(n: u64, bad: fn(u64) -> bool) -> Arc<Faulty> {
    Arc::new(Faulty { inner: stripes(n), bad, panics_at: None, reads: AtomicU64::new(0) })
}

fn options(batch_size: usize, workers: usize) -> LoaderOptions {
    LoaderOptions { workers, ..LoaderOptions::new(batch_size, 8, Transform::train()) }
}

fn loader(source: Arc<dyn Source>, options: LoaderOptions) -> Loader {
    Loader::new(Mixture::single(source).unwrap(), options, LoaderState::new(3)).unwrap()
}

#[test]
fn batches_do_not_depend_on_workers_or_queues() {
    let source = faulty(50, |index| index % 17 == 4);
    let mixture = || {
        Mixture::new(vec![(source.clone() as _, 3.0), (Arc::new(stripes(9)) as _, 1.0)]).unwrap()
    };
    let run = |workers, prefetch_batches| {
        let options = LoaderOptions { prefetch_batches, ..options(37, workers) };
        let mut loader = Loader::new(mixture(), options, LoaderState::new(3)).unwrap();
        let batches: Vec<Batch> = (0..6).map(|_| loader.next_batch().unwrap()).collect();
        (batches, loader.take_skipped(), loader.state().clone())
    };
    let reference = run(0, 1);
    assert!(!reference.1.is_empty());
    for (workers, prefetch) in [(1, 1), (2, 3), (5, 0), (8, 9)] {
        assert_eq!(run(workers, prefetch), reference, "{workers} workers");
    }
}

#[test]
fn a_run_resumes_at_every_sample_of_its_epochs() {
    let source = faulty(11, |index| index == 2);
    let one = |state: &LoaderState, workers| {
        let mixture = Mixture::single(source.clone()).unwrap();
        let options = LoaderOptions {
            bad_samples: BadSamplePolicy { min_count: 1000, ..Default::default() },
            ..options(1, workers)
        };
        let mut loader = Loader::new(mixture, options, state.clone()).unwrap();
        let batch = loader.next_batch().unwrap();
        (batch, loader.state().clone())
    };
    let mut whole = loader(
        source.clone(),
        LoaderOptions {
            bad_samples: BadSamplePolicy { min_count: 1000, ..Default::default() },
            ..options(1, 2)
        },
    );
    let mut state = LoaderState::new(3);
    for step in 0..33 {
        let (batch, next) = one(&state, step % 3);
        assert_eq!(batch, whole.next_batch().unwrap(), "sample {step}");
        assert_eq!(&next, whole.state());
        let text = serde_json::to_string(&next).unwrap();
        state = serde_json::from_str(&text).unwrap();
    }
}

#[test]
fn every_epoch_holds_every_sample_once() {
    // Fewer images than a batch: epochs run on inside it.
    let mut loader = loader(Arc::new(stripes(5)), options(12, 2));
    let batches: Vec<Batch> = (0..5).map(|_| loader.next_batch().unwrap()).collect();
    let all: Vec<(u64, u64)> = batches
        .iter()
        .flat_map(|batch| batch.epochs.iter().copied().zip(batch.indices.iter().copied()))
        .collect();
    for (epoch, five) in all.chunks(5).enumerate() {
        let mut indices: Vec<u64> = five.iter().map(|&(_, index)| index).collect();
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2, 3, 4]);
        assert!(five.iter().all(|&(found, _)| found == epoch as u64));
    }
    assert_eq!(batches[1].first_sample, 12);
    assert_eq!(batches[0].labels[0], Some(batches[0].indices[0] as u32 % 10));
    // The same image in two epochs is cropped anew.
    let image =
        |batch: &Batch, slot: usize| batch.images.as_u8().unwrap()[slot * 192..][..192].to_vec();
    let first = batches[0].indices[0];
    let again = (5..10).find(|&slot| batches[0].indices[slot] == first).unwrap();
    assert_ne!(image(&batches[0], 0), image(&batches[0], again));
}

#[test]
fn one_image_fills_a_batch() {
    let batch = loader(Arc::new(stripes(1)), options(4, 0)).next_batch().unwrap();
    assert_eq!((batch.indices, batch.epochs), (vec![0; 4], vec![0, 1, 2, 3]));
}

#[test]
fn small_batches_and_ranks_put_together_are_the_large_batch() {
    let source: Arc<dyn Source> = Arc::new(stripes(100));
    let mut large = loader(source.clone(), options(48, 2));
    let mut small = loader(source.clone(), options(12, 1));
    let mut ranks: Vec<Loader> = (0..3)
        .map(|rank| {
            loader(source.clone(), LoaderOptions { rank, world_size: 3, ..options(16, rank) })
        })
        .collect();
    for _ in 0..4 {
        let reference = large.next_batch().unwrap();
        let join = |parts: Vec<Batch>| {
            let mut whole = Batch::default();
            whole.reset(small_layout());
            whole.first_sample = parts[0].first_sample;
            parts.iter().for_each(|part| whole.append(part));
            whole
        };
        let micro = join((0..4).map(|_| small.next_batch().unwrap()).collect());
        assert_eq!(micro, reference);
        let sliced = join(ranks.iter_mut().map(|rank| rank.next_batch().unwrap()).collect());
        assert_eq!(sliced, reference);
    }
    assert!(ranks.iter().all(|rank| rank.state() == large.state()));
}

fn small_layout() -> batch::Layout {
    batch::Layout { float: false, height: 8, width: 8 }
}

#[test]
fn bad_samples_are_replaced_and_reported_once() {
    let mut loader = loader(faulty(40, |index| index == 7 || index == 8), options(20, 2));
    let mut replaced = 0;
    for _ in 0..8 {
        let batch = loader.next_batch().unwrap();
        assert_eq!(batch.len(), 20);
        assert!(batch.indices.iter().all(|&index| index != 7 && index != 8));
        replaced += 1;
    }
    assert_eq!(replaced, 8);
    let mut reported: Vec<u64> =
        loader.take_skipped().iter().map(|skipped| skipped.defect.index).collect();
    reported.sort_unstable();
    assert_eq!(reported, [7, 8]);
    assert!(loader.take_skipped().is_empty());
    // Two in each of four epochs, counted again where one stood in for the other.
    assert!(loader.skipped_counts()[&DefectKind::Corrupt] >= 8);
    assert_eq!(loader.state().bad_samples, loader.skipped_counts()[&DefectKind::Corrupt]);
}

#[test]
fn too_many_bad_samples_are_an_error_that_names_them() {
    for workers in [0, 3] {
        let mut loader = loader(faulty(100, |index| index % 5 == 0), options(16, workers));
        let error = (0..100).find_map(|_| loader.next_batch().err()).unwrap();
        let text = error.to_string();
        assert!(matches!(error, Error::TooManyBad { bad: 11.., .. }), "{text}");
        assert!(text.contains("faulty ") && text.contains("planted"), "{text}");
        assert!(matches!(loader.next_batch(), Err(Error::Stopped { .. })));
    }
    let mut all_bad = loader(faulty(30, |_| true), options(4, 2));
    assert!(matches!(all_bad.next_batch(), Err(Error::NoUsableSample { tried: 30, .. })));
    assert!(matches!(all_bad.next_batch(), Err(Error::Stopped { .. })));
}

#[test]
fn a_panic_in_a_worker_is_an_error() {
    for workers in [0, 1, 4] {
        let mut source = stripes(64);
        source.num_samples = 64;
        let source =
            Faulty { inner: source, bad: |_| false, panics_at: Some(9), reads: AtomicU64::new(0) };
        let mut loader = loader(Arc::new(source), options(16, workers));
        let error = (0..5).find_map(|_| loader.next_batch().err()).unwrap();
        assert!(matches!(&error, Error::WorkerPanic { message } if message.contains("planted")));
        assert!(matches!(loader.next_batch(), Err(Error::Stopped { .. })));
    }
}

#[test]
fn dropping_a_loader_ends_its_threads() {
    let source = faulty(1000, |_| false);
    let loader = loader(source.clone(), options(64, 4));
    drop(loader);
    // Only this handle is left: every thread has given its own back.
    assert_eq!(Arc::strong_count(&source), 1);
}

#[test]
fn evaluation_gives_every_good_sample_once_in_order() {
    for workers in [0, 3] {
        let options = LoaderOptions { transform: Transform::eval(), ..options(20, workers) };
        let source = faulty(45, |index| index == 3 || index >= 40);
        let mut loader = EvalLoader::new(source, options, Pass::default()).unwrap();
        assert_eq!(loader.num_samples(), 45);
        let mut batch = Batch::default();
        let mut indices = Vec::new();
        let mut lens = Vec::new();
        while loader.next_into(&mut batch).unwrap() {
            indices.extend_from_slice(&batch.indices);
            lens.push(batch.len());
            assert_eq!(batch.images.as_u8().unwrap().len(), batch.len() * 8 * 8 * 3);
        }
        // Index 40 to 44 are the whole last batch, which is not delivered.
        assert_eq!(lens, [19, 20]);
        assert_eq!(indices, (0..40).filter(|&index| index != 3).collect::<Vec<_>>());
        assert_eq!(loader.take_skipped().len(), 6);
        assert!(!loader.next_into(&mut batch).unwrap() && batch.is_empty());
    }
}

#[test]
fn evaluation_can_be_limited_and_shuffled() {
    let collect = |pass, workers| {
        let options = LoaderOptions { transform: Transform::eval(), ..options(7, workers) };
        let mut loader = EvalLoader::new(Arc::new(stripes(30)), options, pass).unwrap();
        let mut indices = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            indices.extend_from_slice(&batch.indices);
        }
        indices
    };
    let limited = Pass { limit: Some(10), ..Pass::default() };
    assert_eq!(collect(limited, 2), (0..10).collect::<Vec<_>>());
    let shuffled = Pass { shuffle_seed: Some(1), ..Pass::default() };
    let order = collect(shuffled, 2);
    assert_eq!(order, collect(shuffled, 0));
    assert_eq!(order[..10], collect(Pass { limit: Some(10), ..shuffled }, 1));
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..30).collect::<Vec<_>>());
    assert_ne!(sorted, order);
}

#[test]
fn an_evaluation_without_a_usable_sample_fails() {
    let source = faulty(5, |_| true);
    let mut loader = EvalLoader::new(source, options(2, 1), Pass::default()).unwrap();
    assert!(matches!(loader.next_batch(), Err(Error::NoUsableSample { tried: 5, .. })));
}

#[test]
fn noise_goes_into_the_batch_as_it_is_and_anew_each_epoch() {
    let source = SyntheticSource::parse("noise,n=2,size=8", (1, 1)).unwrap();
    let read = |index, epoch| match source.read(index, epoch).unwrap().payload {
        Payload::Final(image) => image.pixels().to_vec(),
        other => panic!("{other:?}"),
    };
    assert_ne!(read(0, 0), read(0, 1));
    assert_ne!(read(0, 0), read(1, 0));
    let batch = loader(Arc::new(source.clone()), options(6, 1)).next_batch().unwrap();
    let pixels = batch.images.as_u8().unwrap();
    for (slot, image) in pixels.chunks(192).enumerate() {
        assert_eq!(image, read(batch.indices[slot], batch.epochs[slot]));
    }
    let wrong = LoaderOptions::new(4, 16, Transform::train());
    let error = Loader::new(Mixture::single(Arc::new(source)).unwrap(), wrong, LoaderState::new(0));
    let text = error.err().unwrap().to_string();
    assert!(text.contains("8 x 8") && text.contains("16 x 16"), "{text}");
}

fn write_tensors(path: &Path, count: usize) {
    let values: Vec<f32> = (0..count * 3 * 4 * 2).map(|value| value as f32).collect();
    let labels: Vec<i64> = (0..count as i64).collect();
    let view = |dtype, shape, bytes| safetensors::tensor::TensorView::new(dtype, shape, bytes);
    let images = view(safetensors::Dtype::F32, vec![count, 3, 4, 2], bytemuck::cast_slice(&values));
    let labels = view(safetensors::Dtype::I64, vec![count], bytemuck::cast_slice(&labels));
    let tensors = [("pixels", images.unwrap()), ("labels", labels.unwrap())];
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

#[test]
fn tensors_arrive_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_tensors(&path, 3);
    let source = Arc::new(TensorSource::open(&path, None).unwrap());
    let options = LoaderOptions { height: 4, width: 2, ..options(2, 1) };
    let mut loader = EvalLoader::new(source, options, Pass::default()).unwrap();
    let first = loader.next_batch().unwrap().unwrap();
    let second = loader.next_batch().unwrap().unwrap();
    assert_eq!(first.images.as_f32().unwrap(), (0..48).map(|v| v as f32).collect::<Vec<_>>());
    assert_eq!(second.images.as_f32().unwrap()[0], 48.0);
    assert_eq!(second.labels, [Some(2)]);
}

#[test]
fn impossible_combinations_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_tensors(&path, 1);
    let tensors: Arc<dyn Source> = Arc::new(TensorSource::open(&path, None).unwrap());
    let mixed = Mixture::new(vec![(tensors, 1.0), (Arc::new(stripes(3)) as _, 1.0)]).unwrap();
    let good = LoaderOptions { height: 4, width: 2, ..options(2, 1) };
    let refused = |mixture: Mixture, options| {
        let error = Loader::new(mixture, options, LoaderState::new(0)).err().unwrap();
        assert!(matches!(error, Error::Config(_)), "{error}");
    };
    refused(mixed, good);
    let single = || Mixture::single(Arc::new(stripes(3))).unwrap();
    refused(single(), LoaderOptions { batch_size: 0, ..options(1, 0) });
    refused(single(), LoaderOptions { world_size: 0, ..options(1, 0) });
    refused(single(), LoaderOptions { rank: 2, world_size: 2, ..options(1, 0) });
    refused(single(), LoaderOptions { height: 0, ..options(1, 0) });
    refused(single(), LoaderOptions { workers: 1 << 20, ..options(1, 0) });
    let state = LoaderState { fingerprint: "other".into(), ..LoaderState::new(0) };
    let error = Loader::new(single(), options(1, 0), state).err().unwrap();
    assert!(matches!(error, Error::StateMismatch { .. }));
}

#[test]
fn damaged_files_in_a_folder_are_skipped_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let good = crate::pack::encode_png(&stripes_image()).unwrap();
    for number in 0..30 {
        std::fs::write(dir.path().join(format!("{number:02}.png")), &good).unwrap();
    }
    std::fs::write(dir.path().join("a.jpg"), b"").unwrap();
    std::fs::write(dir.path().join("b.jpg"), b"this is text").unwrap();
    std::fs::write(dir.path().join("c.png"), &good[..good.len() / 2]).unwrap();
    // A PNG under another name is no defect.
    std::fs::write(dir.path().join("d.jpg"), &good).unwrap();
    let source = Arc::new(ImageFolder::open(dir.path(), DecodeLimits::default()).unwrap());
    let mut loader = EvalLoader::new(source, options(8, 2), Pass::default()).unwrap();
    let mut count = 0;
    while let Some(batch) = loader.next_batch().unwrap() {
        count += batch.len();
    }
    assert_eq!(count, 31);
    let kinds: Vec<DefectKind> = loader.skipped_counts().keys().copied().collect();
    let expected = [DefectKind::Empty, DefectKind::UnknownFormat, DefectKind::Truncated];
    assert!(expected.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    let skipped = loader.take_skipped();
    assert!(skipped[0].defect.location.ends_with("a.jpg"), "{:?}", skipped[0]);
}

fn stripes_image() -> crate::image::Image {
    match stripes(1).read(0, 0).unwrap().payload {
        Payload::Pixels(image) => image,
        other => panic!("{other:?}"),
    }
}
