//! Opening a run: data, model, run directory, and where to go on from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aim_data::loader::{Batch, Loader, LoaderOptions, LoaderState};
use aim_data::sampler::Mixture;
use aim_data::source::{SampleFormat, Source};
use aim_model::config::AimConfig;
use aim_model::finetune::{FinetuneConfig, FinetuneModel};
use aim_model::lora::LoraConfig;
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_model::weights;
use aim_tensor::io::TensorSource;
use aim_tensor::{Device, Parameters, PlanOptions};

use super::events::{Event, Observer};
use super::files::{self, AdapterInfo};
use super::mixup::Mixup;
use super::settings::FinetuneSettings;
use super::{Finetuner, state};
use crate::checkpoint;
use crate::durable;
use crate::error::TrainError;
use crate::lock::RunLock;
use crate::metrics::jsonl::{JsonlWriter, truncate_after};
use crate::optimizer::AdamW;
use crate::probe::features::ImageOptions;
use crate::trainer::device;
use crate::trainer::skipped::SkippedLog;

/// Images in a batch of an evaluation, as many as `probe` takes.
const EVALUATION_BATCH: usize = 64;

/// A frozen trunk.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// What the user called it.
    pub name: &'a str,
    /// Its weights.
    pub file: &'a dyn TensorSource,
    /// Where they lie, for messages.
    pub dir: &'a Path,
    /// Its sizes.
    pub model: &'a AimConfig,
    /// Mean of each channel that images are normalised with.
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
}

impl Base<'_> {
    /// Parameters of a model with this trunk's values; adapters and classifier are zero.
    ///
    /// # Errors
    /// When memory is short or the weights do not fit.
    pub fn parameters(&self, model: &FinetuneModel) -> Result<Parameters, TrainError> {
        let mut params = Parameters::new(model.layout().clone())?;
        weights::load_some(&mut params, self.file, self.dir, |name| {
            !FinetuneModel::is_adapted(name)
        })?;
        Ok(params)
    }

    /// How validation images are brought to the model.
    pub fn image_options(&self, workers: usize) -> ImageOptions {
        let narrow = |values: [f64; 3]| values.map(|v| v as f32);
        ImageOptions {
            height: self.model.img_size.height,
            width: self.model.img_size.width,
            mean: narrow(self.mean),
            std: narrow(self.std),
            batch_size: EVALUATION_BATCH,
            workers,
            limit: None,
        }
    }
}

/// What to open a run with.
pub struct Open<'a> {
    /// The trunk.
    pub base: Base<'a>,
    /// Labelled images to train on.
    pub train: Arc<dyn Source>,
    /// Labelled images to measure on.
    pub val: Arc<dyn Source>,
    /// The adapters.
    pub lora: LoraConfig,
    /// Blocks whose outputs the classifier sees the mean of.
    pub layers: Vec<usize>,
    /// A classifier to start from, as `probe` writes it.
    pub head: Option<PathBuf>,
    /// How to train.
    pub settings: FinetuneSettings,
    /// Where to compute.
    pub device: Device,
}

impl Finetuner {
    /// Opens data and model, takes the run directory, and goes on from its newest good checkpoint if there is one.
    ///
    /// # Errors
    /// When data have no labels, weights or classifier do not fit, the run directory is in use or cannot be written, or
    /// the run in it was made with other settings, classes or weights.
    pub fn open(
        open: Open<'_>,
        run_dir: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let Open { base, train, val, lora, layers, head, settings, device } = open;
        settings.validate()?;
        for source in [&train, &val] {
            source.notes().iter().for_each(|note| observer.event(Event::DataNote(note)));
        }
        let classes = classes(&train, &val)?;
        let config = FinetuneConfig { model: base.model.clone(), lora, layers, classes };
        let model = FinetuneModel::new(config)?;
        check_widths(&model, &device)?;
        let mut params = base.parameters(&model)?;
        let info = AdapterInfo {
            format_version: AdapterInfo::version(),
            model: base.model.clone(),
            base: base.name.to_owned(),
            base_blake3: files::trunk_hash(&params),
            lora: model.config().lora.clone(),
            layers: model.config().layers.clone(),
            num_classes: classes,
            class_names: train.class_names().map(<[String]>::to_vec).unwrap_or_default(),
            mean: base.mean,
            std: base.std,
        };
        model.initialize(&mut params, settings.seed);
        if let Some(path) = &head {
            let found = files::head_classes(path)?;
            if found != classes {
                return Err(TrainError::BadSetting {
                    key: "head",
                    value: path.display().to_string(),
                    expected: format!(
                        "a classifier of {classes} classes, as the data have, not of {found}"
                    ),
                });
            }
            files::load_head(&mut params, path)?;
        }

        durable::create_dir(run_dir)?;
        let lock = RunLock::acquire(run_dir)?;
        checkpoint::clean_stale(run_dir)?;
        let mut optimizer = AdamW::new(model.layout())?;
        let found = checkpoint::newest_valid(run_dir, |path, error| {
            let (path, reason) = (path.to_owned(), error.to_string());
            observer.event(Event::CheckpointSkipped { path, reason });
        })?;
        if found.is_none() && !checkpoint::list(run_dir)?.is_empty() {
            return Err(TrainError::NoGoodCheckpoint { path: run_dir.to_owned() });
        }
        let (done, loader_state) = match &found {
            Some(found) => {
                let saved =
                    state::restore(&found.path, &info, &settings, &mut params, &mut optimizer)?;
                observer.event(Event::Resumed { step: saved.step, path: found.path.clone() });
                (saved.step, saved.loader)
            }
            None => (0, LoaderState::new(settings.seed)),
        };
        let metrics = run_dir.join("metrics.jsonl");
        truncate_after(&metrics, done)?;
        let (skipped, reported) =
            SkippedLog::open(run_dir.join("skipped.jsonl"), found.is_some().then_some(done))?;
        let workers = match settings.workers {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            workers => workers,
        };
        let images = image_batch(&base, train.as_ref(), settings.batch_size);
        let options = LoaderOptions {
            height: images.height as u32,
            width: images.width as u32,
            workers,
            ..LoaderOptions::new(
                settings.batch_size,
                images.height as u32,
                settings.augment.transform(base.mean),
            )
        };
        // The library's own choice of algorithms, without measuring: a resumed run makes the same.
        device::prepare(&device, false)?;
        let params = params.to(&device)?;
        let optimizer = optimizer.to(&params)?;
        let recompute = match settings.recomputation() {
            Some(recompute) => recompute,
            None => {
                let (tape, _) = model.record(images, true)?;
                device::least_recompute(&device, &tape, PlanOptions::default())?
            }
        };
        let images_per_epoch = train.len();
        let mut loader = Loader::new(Mixture::single(train)?, options, loader_state)?;
        loader.remember_skipped(reported);
        Ok(Self {
            mixup: Mixup::new(settings.mixup, settings.label_smoothing, classes, settings.seed)?,
            evaluation: base.image_options(workers),
            consumed: loader.state().clone(),
            loader,
            images_per_epoch,
            images,
            recompute,
            step: None,
            batch: Batch::default(),
            targets: Vec::new(),
            val,
            saved: found.map(|_| done),
            done,
            last: None,
            metrics: JsonlWriter::append_to(metrics)?,
            skipped,
            run_dir: run_dir.to_owned(),
            model,
            params,
            optimizer,
            info,
            settings,
            _lock: lock,
        })
    }
}

/// A GPU's products read rows of 16 bytes: adapters of other widths are refused under the name that the user knows.
fn check_widths(model: &FinetuneModel, device: &Device) -> Result<(), TrainError> {
    let odd = model.layout().iter().find(|p| {
        p.spec.name.ends_with(".lora_A.weight") && !p.spec.shape.rows().is_multiple_of(8)
    });
    match odd {
        Some(param) if device.gpu().is_some() => Err(TrainError::BadSetting {
            key: "lora-rank",
            value: model.config().lora.rank.to_string(),
            expected: format!(
                "a multiple of 8 on a GPU, or --device cpu: {} has {} rows",
                param.spec.name,
                param.spec.shape.rows()
            ),
        }),
        _ => Ok(()),
    }
}

/// Classes of the data: those of the training images, if the validation images have no others.
fn classes(train: &Arc<dyn Source>, val: &Arc<dyn Source>) -> Result<usize, TrainError> {
    let of = |source: &Arc<dyn Source>| {
        source.num_classes().filter(|&n| n > 0).ok_or_else(|| {
            let location =
                if source.is_empty() { "the data".to_owned() } else { source.location(0) };
            TrainError::NoLabel { location }
        })
    };
    let (classes, others) = (of(train)?, of(val)?);
    if others > classes {
        return Err(TrainError::BadLabel { found: Some(others - 1), classes: classes as usize });
    }
    if let (Some(train), Some(val)) = (train.class_names(), val.class_names())
        && let Some(i) = val.iter().zip(train).position(|(val, train)| val != train)
    {
        return Err(TrainError::BadSetting {
            key: "val",
            value: format!("class {i} {:?}", val[i]),
            expected: format!("the training images' classes in their order, {:?} here", train[i]),
        });
    }
    Ok(classes as usize)
}

fn image_batch(base: &Base<'_>, source: &dyn Source, batch: usize) -> ImageBatch {
    let ImageOptions { height, width, mean, std, .. } = base.image_options(1);
    let format = match source.format() {
        SampleFormat::Tensor { .. } => PixelFormat::F32,
        _ => PixelFormat::U8 { mean, std },
    };
    ImageBatch { batch, height, width, format }
}
