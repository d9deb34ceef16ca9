use super::*;
use aim_data::spec;
use aim_model::config::{AimConfig, ImageSize};
use aim_model::init;
use aim_tensor::io::npy::{self, NpyData};
use aim_tensor::io::safetensors::SafeTensors;
use std::fs;

/// 4 tokens of 32 dimensions.
fn extractor(layers: &[usize]) -> FeatureExtractor {
    let config = AimConfig {
        img_size: ImageSize { height: 8, width: 8 },
        patch_size: 4,
        embed_dim: 32,
        num_blocks: 3,
        num_heads: 2,
        ..AimConfig::default()
    };
    let mut params = FeatureExtractor::parameters(&config).unwrap();
    init::initialize(&mut params, 5);
    FeatureExtractor::new(&config, params, layers).unwrap()
}

const OPTIONS: ImageOptions = ImageOptions {
    height: 8,
    width: 8,
    mean: [0.5; 3],
    std: [0.25; 3],
    batch_size: 4,
    workers: 1,
    limit: None,
};

/// 30 images in 2 classes, of which some are damaged: a whole batch (8..12) and the last one among them.
const BAD: [u64; 6] = [3, 8, 9, 10, 11, 29];

fn folder(dir: &Path, bad: &[u64]) -> Arc<dyn Source> {
    let stripes = spec::open("synthetic:stripes,n=30,size=8").unwrap();
    for index in 0..30 {
        let aim_data::source::Payload::Pixels(image) = stripes.read(index, 0).unwrap().payload
        else {
            panic!("stripes are pixels");
        };
        let mut bytes = aim_data::pack::encode_png(&image).unwrap();
        if bad.contains(&index) {
            bytes.truncate(40);
        }
        let class = dir.join(if index < 13 { "ant" } else { "bee" });
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{index:03}.png")), bytes).unwrap();
    }
    spec::open(dir.to_str().unwrap()).unwrap()
}

fn request(out: PathBuf, format: Format) -> Request {
    Request {
        out,
        format,
        average: false,
        pool: Pool::Mean,
        dtype: ElementType::Fp32,
        sync_every: Duration::ZERO,
        restart: false,
    }
}

/// Writes; stops when `stop_at` images are done.
fn run(
    layers: &[usize],
    source: &Arc<dyn Source>,
    request: &Request,
    stop_at: u64,
) -> Result<(Outcome, Vec<String>), TrainError> {
    let stop = Stop::detached();
    let mut said = Vec::new();
    let outcome =
        write(&mut extractor(layers), "weights", source, &OPTIONS, request, &stop, &mut |event| {
            match event {
                Event::Progress(done, _) if done >= stop_at => {
                    stop.request(crate::signals::Signal::Interrupt);
                }
                Event::Progress(..) => {}
                other => said.push(format!("{other:?}")),
            }
        })?;
    Ok((outcome, said))
}

fn written(outcome: Outcome) -> Summary {
    match outcome {
        Outcome::Written(summary) => summary,
        Outcome::Stopped(at) => panic!("stopped at {at}"),
    }
}

/// All files of a directory with their bytes.
fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn rows_keys_and_labels_are_those_of_the_images_that_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let source = folder(&dir.path().join("images"), &BAD);
    let out = dir.path().join("f.safetensors");
    let (outcome, said) =
        run(&[0, 2], &source, &request(out.clone(), Format::Safetensors), u64::MAX).unwrap();
    let summary = written(outcome);
    assert_eq!((summary.images, summary.skipped, summary.shape), (24, 6, vec![24, 32]));
    assert_eq!(summary.columns, ["block_0", "block_2"]);
    assert_eq!(said.iter().filter(|line| line.starts_with("Skipped")).count(), 6);

    let file = SafeTensors::open(&out).unwrap();
    let indices = file.tensor("indices").unwrap().to_i64().unwrap();
    let expected: Vec<i64> = (0..30).filter(|i| !BAD.contains(&(*i as u64))).collect();
    assert_eq!(indices, expected);
    let labels = file.tensor("labels").unwrap().to_i64().unwrap();
    let keys = fs::read_to_string(dir.path().join("f.safetensors.keys.txt")).unwrap();
    let keys: Vec<&str> = keys.lines().collect();
    assert_eq!((keys.len(), labels.len()), (24, 24));
    let mut model = extractor(&[0, 2]);
    for (row, &index) in indices.iter().enumerate() {
        assert_eq!(keys[row], source.key(index as u64));
        assert_eq!(labels[row], i64::from(index >= 13));
        // The image by itself.
        let one: Arc<dyn Source> = Arc::new(Tail::new(source.clone(), index as u64));
        let loading = LoaderOptions::new(1, 8, Transform::eval());
        let mut loader = EvalLoader::new(one, loading, Pass::default()).unwrap();
        let batch = loader.next_batch().unwrap().unwrap();
        let (images, pixels) = pixels_of(&batch, &OPTIONS).unwrap();
        model.run(images, pixels).unwrap();
        for (column, name) in ["block_0", "block_2"].iter().enumerate() {
            let values = file.tensor(name).unwrap().to_f32().unwrap();
            let layer = model.layer(column).unwrap();
            for d in 0..32 {
                let mean = layer.chunks(32).map(|token| token[d]).sum::<f32>() / 4.0;
                let found = values[row * 32 + d];
                assert!((found - mean).abs() < 1e-5, "row {row}: {found} {mean}");
            }
        }
    }
    let named = fs::read_to_string(dir.path().join("f.safetensors.skipped.jsonl")).unwrap();
    let indices: Vec<u64> = named
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["index"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(indices, BAD);
    assert_eq!(file.metadata()["skipped"], "6");
    assert!(!dir.path().join("f.safetensors.partial").exists());
    assert!(!dir.path().join("f.safetensors.partial.jsonl").exists());
}

#[test]
fn interrupted_anywhere_the_files_are_the_same_in_bits() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    let source = folder(&images, &BAD);
    let one = folder(&dir.path().join("whole"), &[]);
    type Case<'a> = (&'a str, Format, &'a [usize], &'a Arc<dyn Source>);
    let cases: [Case<'_>; 4] = [
        ("two.safetensors", Format::Safetensors, &[0, 1], &source),
        ("whole.safetensors", Format::Safetensors, &[0, 1], &one),
        ("one.safetensors", Format::Safetensors, &[1], &source),
        ("one.npy", Format::Npy, &[1], &source),
    ];
    for (name, format, layers, source) in cases {
        let whole = dir.path().join(format!("{name}-reference"));
        let reference = request(whole.join(name), format);
        written(run(layers, source, &reference, u64::MAX).unwrap().0);
        let expected = content(&whole);
        // Stops behind every batch but the last, and rows that no line counts.
        let parts = dir.path().join(format!("{name}-parts"));
        let asked = request(parts.join(name), format);
        let (mut stops, mut lines) = (0, 0);
        loop {
            let (outcome, said) = run(layers, source, &asked, stops * 4 + 1).unwrap();
            let Outcome::Stopped(done) = outcome else { break };
            assert!(done < 30 && done.is_multiple_of(4), "{done}");
            assert_eq!(said.iter().any(|line| line.starts_with("Resumed")), lines > 0, "{said:?}");
            stops = done / 4 + 1;
            let journal = parts.join(format!("{name}.partial.jsonl"));
            let mut text = fs::read(&journal).unwrap();
            lines = text.iter().filter(|&&byte| byte == b'\n').count() - 1;
            // Torn in the middle of its last line: that batch is computed again.
            if stops % 2 == 0 {
                text.truncate(text.len() - 5);
                lines -= 1;
            } else {
                text.extend(b"{\"next\":28,\"rows\":99,\"skipped\":[],\"defects\":[]}\n{\"ne");
            }
            fs::write(&journal, text).unwrap();
        }
        assert!(stops > 3, "{stops} stops");
        let found = content(&parts);
        for ((file, found), (expected_file, expected)) in found.iter().zip(&expected) {
            assert_eq!(file, expected_file, "{name}");
            assert!(found == expected, "{name}: {file} differs");
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn arrays_of_every_type_hold_the_same_values() {
    let dir = tempfile::tempdir().unwrap();
    let source = folder(&dir.path().join("images"), &[]);
    let asked = |name: &str, format, dtype, pool| Request {
        dtype,
        pool,
        average: true,
        ..request(dir.path().join(name), format)
    };
    let fp32 = asked("a.npy", Format::Npy, ElementType::Fp32, Pool::None);
    let summary = written(run(&[0, 1, 2], &source, &fp32, u64::MAX).unwrap().0);
    assert_eq!((summary.shape, summary.files.len()), (vec![30, 4, 32], 3));
    let array = npy::read(dir.path().join("a.npy")).unwrap();
    assert_eq!(array.shape, [30, 4, 32]);
    let NpyData::F32(exact) = array.data else { panic!("floats") };
    let labels = npy::read(dir.path().join("a.npy.labels.npy")).unwrap();
    assert_eq!(labels.data, NpyData::I64((0..30).map(|i| i64::from(i >= 13)).collect()));

    let fp16 = asked("b.npy", Format::Npy, ElementType::Fp16, Pool::None);
    run(&[0, 1, 2], &source, &fp16, u64::MAX).unwrap();
    let NpyData::F32(half) = npy::read(dir.path().join("b.npy")).unwrap().data else {
        panic!("floats")
    };
    assert!(exact.iter().zip(&half).all(|(e, h)| f16::from_f32(*e).to_f32() == *h));
    let bf = asked("c.safetensors", Format::Safetensors, ElementType::Bf16, Pool::None);
    run(&[0, 1, 2], &source, &bf, u64::MAX).unwrap();
    let file = SafeTensors::open(dir.path().join("c.safetensors")).unwrap();
    let tensor = file.tensor("average").unwrap();
    assert_eq!(tensor.shape, [30, 4, 32]);
    let bf16s = tensor.to_f32().unwrap();
    assert!(exact.iter().zip(&bf16s).all(|(e, h)| bf16::from_f32(*e).to_f32() == *h));

    let wrong = asked("d.npy", Format::Npy, ElementType::Bf16, Pool::Mean);
    assert!(run(&[0], &source, &wrong, u64::MAX).unwrap_err().to_string().contains("bf16"));
    let several = Request { average: false, ..fp32 };
    assert!(run(&[0, 1], &source, &several, u64::MAX).is_err());
}

#[test]
fn too_large_for_fp16_is_said_once() {
    let mut rows = Rows::default();
    let dir = PathBuf::new();
    let asked = Request { dtype: ElementType::Fp16, ..request(dir, Format::Npy) };
    let bytes = rows.convert(&[1.0, 1e6, 3.0, 1e6], 1, 2, &asked).to_vec();
    assert_eq!(bytes[2..4], f16::INFINITY.to_le_bytes());
    assert_eq!(rows.overflow.take(), Some(1e6));
    rows.convert(&[1e6, 1e6], 1, 2, &asked);
    assert_eq!(rows.overflow, None);
}

#[test]
fn another_job_is_refused_until_told_to_begin_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = folder(&dir.path().join("images"), &[]);
    let asked = request(dir.path().join("out/f.safetensors"), Format::Safetensors);
    let (outcome, _) = run(&[1], &source, &asked, 8).unwrap();
    assert_eq!(outcome, Outcome::Stopped(8));
    let other = Request { dtype: ElementType::Fp16, ..asked.clone() };
    let error = run(&[2], &source, &other, u64::MAX).unwrap_err().to_string();
    for part in ["dtype: \"fp32\" there, \"fp16\" now", "layers: [1] there", "--restart"] {
        assert!(error.contains(part), "{error}");
    }
    // Another process that holds the file.
    let partial = dir.path().join("out/f.safetensors.partial");
    let held = fs::File::open(&partial).unwrap();
    held.try_lock().unwrap();
    let error = run(&[1], &source, &asked, u64::MAX).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(held);
    let again = Request { restart: true, ..other };
    assert_eq!(written(run(&[2], &source, &again, u64::MAX).unwrap().0).images, 30);
    assert!(!partial.exists());
}

#[test]
fn a_finished_file_is_not_made_twice_when_only_its_journal_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let source = folder(&dir.path().join("images"), &BAD);
    let asked = request(dir.path().join("f.npy"), Format::Npy);
    let (journal, partial) =
        (dir.path().join("f.npy.partial.jsonl"), dir.path().join("f.npy.partial"));
    assert_eq!(run(&[1], &source, &asked, 28).unwrap().0, Outcome::Stopped(28));
    let mut lines = fs::read(&journal).unwrap();
    assert!(matches!(run(&[1], &source, &asked, u64::MAX).unwrap().0, Outcome::Written(_)));
    assert!(!journal.exists());
    // As if the process had ended between giving the name and removing the journal.
    lines.extend(b"{\"next\":30,\"rows\":24,\"skipped\":[29],\"defects\":[]}\n");
    fs::write(&journal, lines).unwrap();
    let finished = fs::read(&asked.out).unwrap();
    let mut images = 0;
    let outcome = write(
        &mut extractor(&[1]),
        "weights",
        &source,
        &OPTIONS,
        &asked,
        &Stop::detached(),
        &mut |event| images += u32::from(matches!(event, Event::Progress(..))),
    );
    assert_eq!((written(outcome.unwrap()).images, images), (24, 0));
    assert!(!journal.exists() && !partial.exists());
    assert!(fs::read(&asked.out).unwrap() == finished);
    let stopped = run(&[1], &source, &asked, 8).unwrap().0;
    assert_eq!(stopped, Outcome::Stopped(8));
    fs::remove_file(dir.path().join("f.npy.partial")).unwrap();
    // The rows are gone: everything is computed again.
    let before = fs::read(dir.path().join("f.npy")).unwrap();
    let (outcome, said) = run(&[1], &source, &asked, u64::MAX).unwrap();
    assert!(!said.iter().any(|line| line.starts_with("Resumed")), "{said:?}");
    assert_eq!(written(outcome).images, 24);
    assert_eq!(fs::read(dir.path().join("f.npy")).unwrap(), before);
}

#[test]
fn too_many_bad_images_end_it_and_what_was_done_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let bad: Vec<u64> = (16..28).collect();
    let source = folder(&dir.path().join("images"), &bad);
    let asked = request(dir.path().join("f.npy"), Format::Npy);
    for _ in 0..2 {
        let error = run(&[1], &source, &asked, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("12 of 30 samples could not be used"), "{error}");
    }
    assert!(!dir.path().join("f.npy").exists());
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_has_keys_labels_and_lists() {
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow_array::cast::AsArray as _;
    use arrow_array::types::{Float16Type, Float32Type, Int64Type};

    let dir = tempfile::tempdir().unwrap();
    let source = folder(&dir.path().join("images"), &BAD);
    let tensors = request(dir.path().join("f.safetensors"), Format::Safetensors);
    run(&[0, 1], &source, &tensors, u64::MAX).unwrap();
    let tensors = SafeTensors::open(&tensors.out).unwrap();
    for dtype in [ElementType::Fp32, ElementType::Fp16] {
        let name = format!("{dtype:?}.parquet");
        let asked = Request { dtype, ..request(dir.path().join("a").join(&name), Format::Parquet) };
        run(&[0, 1], &source, &asked, u64::MAX).unwrap();
        let parts = Request { out: dir.path().join("b").join(&name), ..asked.clone() };
        assert_eq!(run(&[0, 1], &source, &parts, 14).unwrap().0, Outcome::Stopped(16));
        run(&[0, 1], &source, &parts, u64::MAX).unwrap();
        assert!(fs::read(&asked.out).unwrap() == fs::read(&parts.out).unwrap(), "{name}");

        let file = fs::File::open(&asked.out).unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let pairs = builder.metadata().file_metadata().key_value_metadata().unwrap();
        assert!(pairs.iter().any(|p| p.key == "row_shape" && p.value.as_deref() == Some("[32]")));
        let batches: Vec<_> = builder.build().unwrap().map(Result::unwrap).collect();
        let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
        assert_eq!(batch.num_rows(), 24);
        let keys = batch["key"].as_string::<i32>();
        let index = batch["index"].as_primitive::<Int64Type>();
        let label = batch["label"].as_primitive::<Int64Type>();
        for column in ["block_0", "block_1"] {
            let expected = tensors.tensor(column).unwrap().to_f32().unwrap();
            let lists = batch[column].as_fixed_size_list();
            for row in 0..24 {
                assert_eq!(keys.value(row), source.key(index.value(row) as u64));
                assert_eq!(label.value(row), i64::from(index.value(row) >= 13));
                let list = lists.value(row);
                let expected = &expected[row * 32..(row + 1) * 32];
                if dtype == ElementType::Fp32 {
                    assert_eq!(list.as_primitive::<Float32Type>().values()[..], *expected);
                } else {
                    let half: Vec<f16> = expected.iter().map(|&v| f16::from_f32(v)).collect();
                    assert_eq!(list.as_primitive::<Float16Type>().values()[..], half[..]);
                }
            }
        }
    }
}
