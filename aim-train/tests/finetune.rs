//! Adapters learn what no classifier on the frozen trunk can, leave the trunk alone, and a run that is interrupted ends
//! as one that is not.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail and may talk")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aim_data::Defect;
use aim_data::image::Image;
use aim_data::source::{Payload, Sample, SampleFormat, Source};
use aim_model::classifier::{Probe, ProbeConfig, ProbeKind};
use aim_model::config::{AimConfig, ImageSize};
use aim_model::features::FeatureExtractor;
use aim_model::finetune::FinetuneModel;
use aim_model::init::initialize;
use aim_model::lora::LoraConfig;
use aim_model::weights::{self, MlAimConfig};
use aim_tensor::io::safetensors::{SafeTensors, write_file};
use aim_tensor::{Device, Philox};
use aim_train::finetune::{AdapterDir, Augment, Base, Event, FinetuneSettings, Finetuner, Open};
use aim_train::finetune::{files, merge};
use aim_train::probe::features::for_each_batch;
use aim_train::probe::{FeatureSet, ProbeTraining};
use aim_train::signals::{Signal, Stop};
use aim_train::trainer::Outcome;

/// Images of four patches of random colours; the class says whether the first and the last are of one colour. No patch
/// tells anything by itself.
struct Differ {
    images: u64,
    seed: u64,
    fingerprint: String,
}

/// Colours that a patch may have.
const COLOURS: [[u8; 3]; 3] = [[200, 40, 40], [40, 200, 40], [40, 40, 200]];

impl Differ {
    fn source(images: u64, seed: u64) -> Arc<dyn Source> {
        Arc::new(Self { images, seed, fingerprint: format!("differ {images} {seed}") })
    }

    fn colour(&self, index: u64, patch: u64) -> u64 {
        let random = Philox::new(self.seed, "patches");
        // Half of the images have the first patch's colour in the last one too.
        let patch = if patch == 3 && random.below(2, index, 9) == 1 { 0 } else { patch };
        random.below(COLOURS.len() as u64, index, patch)
    }
}

impl Source for Differ {
    fn len(&self) -> u64 {
        self.images
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let noise = Philox::new(self.seed, "noise");
        let mut pixels = Vec::new();
        for (y, x) in (0..8).flat_map(|y| (0..8).map(move |x| (y, x))) {
            let colour = COLOURS[self.colour(index, y / 4 * 2 + x / 4) as usize];
            for (channel, level) in colour.into_iter().enumerate() {
                let place = y * 64 + x * 8 + channel as u64;
                pixels.push(level + noise.below(20, index, place) as u8);
            }
        }
        let image = Image::new(8, 8, 3, pixels).unwrap();
        Ok(Sample { payload: Payload::Pixels(image), label: self.label(index) })
    }

    fn key(&self, index: u64) -> String {
        format!("{index}")
    }

    fn location(&self, index: u64) -> String {
        format!("image {index}")
    }

    fn label(&self, index: u64) -> Option<u32> {
        Some(u32::from(self.colour(index, 0) == self.colour(index, 3)))
    }

    fn num_classes(&self) -> Option<u32> {
        Some(2)
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn config() -> AimConfig {
    AimConfig {
        img_size: ImageSize::square(8),
        patch_size: 4,
        embed_dim: 32,
        num_blocks: 2,
        num_heads: 4,
        head_width: 32,
        head_depth: 1,
        ..AimConfig::default()
    }
}

/// A trunk with random weights, on disk.
fn write_base(dir: &Path) {
    let mut params = FeatureExtractor::parameters(&config()).unwrap();
    initialize(&mut params, 4);
    fs::create_dir_all(dir).unwrap();
    let tensors = weights::tensors(&params);
    write_file(dir.join("model.safetensors"), &tensors, &Default::default()).unwrap();
    let json = serde_json::to_vec(&MlAimConfig::of(&config())).unwrap();
    fs::write(dir.join("config.json"), json).unwrap();
}

fn base<'a>(dir: &'a Path, file: &'a SafeTensors, model: &'a AimConfig) -> Base<'a> {
    Base { name: "base", file, dir, model, mean: [0.5; 3], std: [0.25; 3] }
}

fn settings(epochs: u32) -> FinetuneSettings {
    FinetuneSettings {
        epochs,
        batch_size: 50,
        lr: 1e-2,
        weight_decay: 0.0,
        mixup: 0.0,
        label_smoothing: 0.0,
        augment: Augment::None,
        workers: 2,
        ..FinetuneSettings::default()
    }
}

fn open(
    dir: &Path,
    run: &Path,
    images: u64,
    settings: FinetuneSettings,
) -> Result<Finetuner, aim_train::TrainError> {
    let (file, model) = (SafeTensors::open(dir).unwrap(), config());
    let open = Open {
        base: base(dir, &file, &model),
        train: Differ::source(images, 1),
        val: Differ::source(200, 2),
        lora: LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::new(2) },
        layers: vec![0, 1],
        head: None,
        settings,
        device: Device::Cpu,
    };
    Finetuner::open(open, run, &mut |_: Event<'_>| {})
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn adapters_learn_what_a_frozen_probe_cannot_and_the_trunk_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (base_dir, run) = (dir.path().join("base"), dir.path().join("run"));
    write_base(&base_dir);
    let file = SafeTensors::open(&base_dir).unwrap();

    // The same classifier on the frozen trunk, with as many passes.
    let mut params = FeatureExtractor::parameters(&config()).unwrap();
    weights::load(&mut params, &file, &base_dir).unwrap();
    let frozen_bits = bits(params.values());
    let mut trunk = FeatureExtractor::new(&config(), params, &[0, 1]).unwrap();
    let model = config();
    let options = base(&base_dir, &file, &model).image_options(1);
    let mut features = |source: Arc<dyn Source>| {
        let mut set = FeatureSet { tokens: 4, dim: 32, ..FeatureSet::default() };
        let mut average = Vec::new();
        for_each_batch(&source, &options, &mut |_, _| {}, &mut |_| {}, |batch, kind, pixels| {
            trunk.run(kind, pixels)?;
            trunk.average(&mut average)?;
            set.values.extend_from_slice(&average);
            set.labels.extend(batch.labels.iter().map(|label| label.unwrap() as i32));
            Ok(())
        })
        .unwrap();
        set
    };
    let (mut train, mut val) =
        (features(Differ::source(1000, 1)), features(Differ::source(200, 2)));
    let probe =
        Probe::new(ProbeConfig { kind: ProbeKind::Attentive, dim: 32, heads: 4, classes: 2 })
            .unwrap();
    let training = ProbeTraining {
        epochs: 40,
        batch_size: 50,
        lrs: vec![1e-2],
        weight_decays: vec![0.0],
        ..ProbeTraining::default()
    };
    let (stop, all) = (Stop::detached(), |n: usize| (0..n as u32).collect::<Vec<_>>());
    let images = all(train.len());
    let heads =
        aim_train::probe::train(&probe, &mut train, &images, &training, &stop, &mut |_, _| {})
            .unwrap();
    let images = all(val.len());
    let frozen =
        aim_train::probe::evaluate(&probe, &[&heads[0].params], &mut val, &images, &stop).unwrap();
    let frozen = frozen[0].accuracy();

    let mut trainer = open(&base_dir, &run, 1000, settings(40)).unwrap();
    let mut events = |_: Event<'_>| {};
    assert_eq!(trainer.run(&Stop::detached(), &mut events).unwrap(), Outcome::Finished);
    let adapted = trainer.evaluation().unwrap();
    println!("frozen {:.3}, adapted {:.3}", frozen.top1, adapted.accuracy.top1);
    assert!(adapted.accuracy.top1 > 0.95, "{adapted:?}");
    assert!(frozen.top1 < 0.85, "{frozen:?}");

    // Not a bit of the trunk moved, and everything else did.
    let (model, params) = trainer.model();
    let layout = params.layout();
    let mut trunk = FeatureExtractor::parameters(&config()).unwrap();
    for (param, values) in params.iter() {
        let name = &param.spec.name;
        if FinetuneModel::is_adapter(name) || FinetuneModel::is_head(name) {
            assert!(values.iter().any(|&v| v != 0.0), "{name}");
        } else {
            let id = trunk.layout().id(name).unwrap();
            trunk.value_mut(id).copy_from_slice(values);
        }
    }
    assert_eq!(bits(trunk.values()), frozen_bits);
    let adapters = layout.iter().filter(|p| FinetuneModel::is_adapter(&p.spec.name));
    let count: usize = adapters.map(|p| p.range.len()).sum();
    assert_eq!(count, 6 * 4 * 32 * model.config().model.num_blocks);
    // Neither gradients nor moments of the trunk exist: what trains is adapters and classifier.
    let head = 2 * 32 * 32 + 32 + 2 * 32;
    assert_eq!(params.grads().len(), layout.trainable_len());
    assert!(layout.trainable_len() < count + head + 16 * 16);

    // The files say the same.
    let adapter = AdapterDir::open(&run).unwrap();
    let info = adapter.info.clone().unwrap();
    assert_eq!((info.num_classes, &info.layers[..]), (2, &[0, 1][..]));
    let model = config();
    let (again, read) = merge::load(&base(&base_dir, &file, &model), &adapter, None, None).unwrap();
    for (param, values) in params.iter() {
        let id = again.layout().id(&param.spec.name).unwrap();
        assert_eq!(bits(read.value(id)), bits(values), "{}", param.spec.name);
    }
    assert_eq!(files::trunk_hash(&read), info.base_blake3);
}

/// Lines of `metrics.jsonl` without what depends on time.
fn metrics(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut fields: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).unwrap();
            fields.remove("images_per_s").unwrap();
            fields.remove("data_wait_share").unwrap();
            serde_json::Value::from(fields).to_string()
        })
        .collect()
}

#[test]
fn an_interrupted_run_ends_in_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    write_base(&base_dir);
    // Mixing, crops, accumulation; 130 images are 3.25 updates an epoch.
    let settings = |workers| FinetuneSettings {
        batch_size: 20,
        accumulate: 2,
        mixup: 0.8,
        label_smoothing: 0.1,
        weight_decay: 0.1,
        augment: Augment::Paper,
        checkpoint_steps: 4,
        workers,
        ..settings(4)
    };
    let whole = dir.path().join("whole");
    let mut trainer = open(&base_dir, &whole, 130, settings(0)).unwrap();
    trainer.run(&Stop::detached(), &mut |_: Event<'_>| {}).unwrap();
    let expected = metrics(&whole);
    assert_eq!(expected.len(), 13);
    assert_eq!(expected.iter().filter(|line| line.contains("val_top1")).count(), 4);
    drop(trainer);

    let parts = dir.path().join("parts");
    for (stop_at, workers) in [(2, 1), (3, 2), (7, 3), (12, 0)] {
        let mut trainer = open(&base_dir, &parts, 130, settings(workers)).unwrap();
        let stop = Stop::detached();
        let asked = &stop;
        let outcome = trainer.run(&stop, &mut |event: Event<'_>| {
            if matches!(event, Event::Step(metrics) if metrics.step == stop_at) {
                asked.request(Signal::Terminate);
            }
        });
        assert_eq!(outcome.unwrap(), Outcome::Stopped(Signal::Terminate));
        drop(trainer);
        if stop_at == 7 {
            // As after a kill between two checkpoints: the log is ahead, the newest checkpoint is gone.
            let newest = parts.join("checkpoints/step-00000007");
            assert!(newest.is_dir());
            fs::remove_dir_all(newest).unwrap();
        }
    }
    let mut trainer = open(&base_dir, &parts, 130, settings(2)).unwrap();
    let outcome = trainer.run(&Stop::detached(), &mut |_: Event<'_>| {}).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    for (found, expected) in metrics(&parts).iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(metrics(&parts).len(), expected.len());
    for name in ["adapter_model.safetensors", "head.safetensors", "adapter_config.json"] {
        let (a, b) = (fs::read(whole.join(name)).unwrap(), fs::read(parts.join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
    drop(trainer);

    // What is not the same run is refused: other settings, another trunk.
    let other = FinetuneSettings { lr: 5e-3, ..settings(0) };
    let error = open(&base_dir, &parts, 130, other).err().unwrap().to_string();
    assert!(error.contains("lr: 0.01 in the checkpoint, 0.005 now"), "{error}");
    let mut params = FeatureExtractor::parameters(&config()).unwrap();
    initialize(&mut params, 5);
    let tensors = weights::tensors(&params);
    write_file(base_dir.join("model.safetensors"), &tensors, &Default::default()).unwrap();
    let error = open(&base_dir, &parts, 130, settings(0)).err().unwrap().to_string();
    assert!(error.contains("the trunk: "), "{error}");
}
