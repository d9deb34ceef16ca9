//! Opening a run: data, model, run directory, and where to go on from.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aim_data::augment::{
    ColorJitter, HorizontalFlip, RandomResizedCrop, TrainTransform, Transform,
};
use aim_data::loader::{BadSamplePolicy, Batch, Loader, LoaderOptions, LoaderState};
use aim_data::remote::{ByteSize, RemoteOptions};
use aim_data::sampler::Mixture;
use aim_data::source::{SampleFormat, Source, Subset};
use aim_data::spec::{DataSpec, OpenOptions};
use aim_model::init::initialize;
use aim_model::objective::{PrefixRule, PrefixSampler, Selection};
use aim_model::pretrain::{PretrainModel, Target};
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_tensor::{Device, Parameters};

use super::device::{self, Chosen, DeviceChoice, fit_recompute};
use super::events::{Event, Observer};
use super::skipped::{Set, SkippedLog};
use super::state;
use super::validation::ValidationSet;
use super::{Trainer, TrainerState};
use crate::checkpoint;
use crate::config::{self, Resolved, RunConfig};
use crate::durable;
use crate::error::TrainError;
use crate::lock::RunLock;
use crate::metrics::jsonl::{JsonlWriter, truncate_after};
use crate::metrics::tensorboard::EventWriter;
use crate::optimizer::AdamW;

const NOT_HELD_OUT: &str = "no image held out for validation can be used: the validation loss is \
                            that of training images. --val names others";

/// Where a run goes on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint of the run directory that verifies; from the beginning if there is none.
    #[default]
    Auto,
    /// From the beginning; an error if the run directory has checkpoints.
    Never,
    /// This checkpoint.
    From(PathBuf),
}

/// Training and validation sources of a configuration. Without a validation source, every n-th image of the first
/// training source is held out for it.
///
/// # Errors
/// When a source cannot be opened or there is none.
pub fn open_data(config: &RunConfig) -> Result<(Mixture, Arc<dyn Source>), TrainError> {
    let size = config.model.img_size;
    let options = OpenOptions {
        synthetic_size: (size.height as u32, size.width as u32),
        remote: remote_options(config)?,
        ..OpenOptions::default()
    };
    let mut parts = Vec::new();
    for text in &config.data.train {
        let spec: DataSpec = text.parse()?;
        parts.push((spec.open(&options)?, spec.weight));
    }
    let Some((first, _)) = parts.first_mut() else {
        return Err(TrainError::NoData);
    };
    let validation: Arc<dyn Source> = if config.data.val.is_empty() {
        let wanted = (config.validation.num_images as u64).clamp(1, first.len().div_ceil(10));
        if first.len() < 2 {
            // A single image can only be its own validation set.
            first.clone()
        } else {
            let (others, held_out) = Subset::split(first, first.len() / wanted);
            *first = Arc::new(others);
            Arc::new(held_out)
        }
    } else {
        config.data.val.parse::<DataSpec>()?.open(&options)?
    };
    let window = NonZeroUsize::new(config.data.window_shards);
    Ok((Mixture::with_window(parts, window)?, validation))
}

impl Trainer {
    /// Opens data and model, takes the run directory, and goes on from a checkpoint where there is one.
    ///
    /// # Errors
    /// When anything that the configuration names cannot be opened, the run directory is in use or cannot be written,
    /// or the configuration differs from the checkpoint's in a key that matters.
    pub fn open(
        resolved: &Resolved,
        run_dir: &Path,
        resume: &Resume,
        choice: DeviceChoice,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let mut config = resolved.config.clone();
        config.validate()?;
        let Chosen { device, precision, note } = choice.open(config.train.precision)?;
        config.train.precision = precision;
        if config.train.gelu == config::Gelu::Tanh && device == Device::Cpu {
            return Err(TrainError::Unsupported {
                what: "train.gelu = \"tanh\" on the CPU",
                instead: "use train.gelu = \"erf\", which costs nothing more there",
            });
        }
        observer.event(Event::Device { device: &device, note: note.as_deref() });
        aim_kernels::cpu::pool::set_num_threads(match config.train.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            threads => threads,
        });
        let (mixture, validation_source) = open_data(&config)?;
        for source in mixture.sources() {
            source.notes().iter().for_each(|note| observer.event(Event::DataNote(note)));
        }
        let target = match config.objective.target {
            config::Target::NormalizedPixels => Target::NormalizedPixels,
            config::Target::RawPixels => Target::RawPixels,
        };
        let model = PretrainModel::new(&config.model, target)?;
        let images = image_batch(&config, &mixture)?;
        let options = loader_options(&config);

        durable::create_dir(run_dir)?;
        let lock = RunLock::acquire(run_dir)?;
        checkpoint::clean_stale(run_dir)?;
        let found = find_checkpoint(run_dir, resume, observer)?;
        let mut params = Parameters::new(model.layout().clone())?;
        let mut optimizer = AdamW::new(model.layout())?;
        let (done, loader_state) = match &found {
            Some(dir) => {
                let saved = state::read_state(dir)?;
                check_same(&saved, &config, dir)?;
                state::restore(dir, &mut params, &mut optimizer)?;
                observer.event(Event::Resumed { step: saved.step, path: dir.clone() });
                (saved.step, saved.loader)
            }
            None => {
                initialize(&mut params, config.train.seed);
                (0, LoaderState::new(config.train.seed))
            }
        };
        if let Resume::From(_) = resume {
            for path in checkpoint::set_aside(run_dir, done)? {
                observer.event(Event::SetAside { path });
            }
        }
        durable::replace(
            &run_dir.join("config.toml"),
            resolved.to_toml_with_origins()?.as_bytes(),
        )?;
        let params = params.to(&device)?;
        let optimizer = optimizer.to(&params)?;
        device::prepare(&device, true)?;
        if let Some(saved) = found.as_deref().map(state::read_device).transpose()?.flatten() {
            let warnings = saved.apply(&device);
            warnings.iter().for_each(|warning| observer.event(Event::DeviceNote(warning)));
        }
        let metrics = run_dir.join("metrics.jsonl");
        truncate_after(&metrics, done)?;
        // Validation images are looked at once in a run's life, before its first step.
        let (mut skipped, reported) =
            SkippedLog::open(run_dir.join("skipped.jsonl"), found.is_some().then_some(done))?;
        let mut unusable = Vec::new();
        let mut observer = |event: Event<'_>| {
            if let Event::SampleSkipped(skipped) = &event {
                unusable.push((*skipped).clone());
            }
            observer.event(event);
        };
        let observer: &mut dyn Observer = &mut observer;
        let tensorboard = config
            .log
            .tensorboard
            .then(|| EventWriter::create(&run_dir.join("tensorboard"), (done > 0).then_some(done)))
            .transpose()?;
        let validation = (config.validation.num_images > 0)
            .then(|| {
                let num_images = config.validation.num_images as u64;
                let train = &mixture.sources()[0];
                let set = |source, observer: &mut dyn Observer| {
                    ValidationSet::new(&model, images, source, train, num_images, options, observer)
                };
                match set(&validation_source, observer) {
                    // Few images, and those held out happen to be the bad ones: no reason not to train.
                    Err(TrainError::Data(bad @ aim_data::Error::NoUsableSample { .. }))
                        if config.data.val.is_empty() =>
                    {
                        let note = format!("{NOT_HELD_OUT}; {bad}");
                        observer.event(Event::DataNote(&note));
                        set(train, observer)
                    }
                    set => set,
                }
            })
            .transpose()?;
        if found.is_none() {
            skipped.write(0, Set::Validation, &unusable)?;
        }
        let (rule, tokens) = (prefix_rule(&config), config.model.num_patches());
        let prefixes = PrefixSampler::new(rule, tokens, config.train.seed);
        let mut prefix = Vec::new();
        prefixes.draw(done, 0..config.train.batch_size, &mut prefix);
        let rows = Selection::next_patch(&prefix, tokens).rows.len();
        let recompute = fit_recompute(&config.train, &device, &model, images, rows)?;
        let consumed = loader_state.clone();
        let mut loader = Loader::new(mixture, options, loader_state)?;
        loader.remember_skipped(reported);
        Ok(Self {
            prefixes,
            recompute,
            consumed,
            loader,
            skipped,
            selections: vec![Selection::default(); config.train.accumulate],
            metrics: JsonlWriter::append_to(metrics)?,
            tensorboard,
            validation,
            run_dir: run_dir.to_owned(),
            model,
            params,
            optimizer,
            images,
            step: None,
            batch: Batch::default(),
            first: done,
            done,
            saved: found.map(|_| done),
            config,
            _lock: lock,
        })
    }
}

/// What the configuration says about the cache of remote shards, over the environment; `None` where
/// it says nothing.
fn remote_options(config: &RunConfig) -> Result<Option<RemoteOptions>, TrainError> {
    let (dir, bytes) = (&config.data.cache_dir, config.data.cache_bytes);
    if dir.as_os_str().is_empty() && bytes == ByteSize::default() {
        return Ok(None);
    }
    Ok(Some(RemoteOptions::from_env()?.configured(dir, bytes)?))
}

fn image_batch(config: &RunConfig, mixture: &Mixture) -> Result<ImageBatch, TrainError> {
    let tensors =
        mixture.sources().iter().any(|s| matches!(s.format(), SampleFormat::Tensor { .. }));
    let narrow = |values: [f64; 3]| values.map(|v| v as f32);
    let format = if tensors {
        PixelFormat::F32
    } else {
        PixelFormat::U8 { mean: narrow(config.data.mean), std: narrow(config.data.std) }
    };
    let size = config.model.img_size;
    Ok(ImageBatch {
        batch: config.train.batch_size,
        height: size.height,
        width: size.width,
        format,
    })
}

/// How the configuration wants images loaded.
fn loader_options(config: &RunConfig) -> LoaderOptions {
    let data = &config.data;
    let crop = RandomResizedCrop { scale: data.scale.into(), ratio: data.ratio.into() };
    let [brightness, contrast, saturation, hue] = data.color_jitter;
    let color_jitter = ColorJitter { brightness, contrast, saturation, hue };
    let size = config.model.img_size;
    LoaderOptions {
        height: size.height as u32,
        width: size.width as u32,
        workers: match data.workers {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            workers => workers,
        },
        bad_samples: BadSamplePolicy {
            max_fraction: data.max_bad_fraction,
            ..BadSamplePolicy::default()
        },
        ..LoaderOptions::new(
            config.train.batch_size,
            size.height as u32,
            Transform::Train(TrainTransform {
                crop,
                flip: HorizontalFlip { p: data.flip },
                color_jitter,
                ..TrainTransform::default()
            }),
        )
    }
}

fn prefix_rule(config: &RunConfig) -> PrefixRule {
    match (config.objective.attention, config.objective.prefix) {
        // With a prefix of one patch the prefix mask is the causal one, and every patch but the first is scored.
        (config::Attention::Causal, _) => PrefixRule::Fixed(1),
        (config::Attention::Prefix, config::Prefix::Uniform) => PrefixRule::Uniform,
        (config::Attention::Prefix, config::Prefix::Fixed(patches)) => PrefixRule::Fixed(patches),
    }
}

fn find_checkpoint(
    run_dir: &Path,
    resume: &Resume,
    observer: &mut dyn Observer,
) -> Result<Option<PathBuf>, TrainError> {
    match resume {
        Resume::Auto => {
            let found = checkpoint::newest_valid(run_dir, |path, error| {
                observer.event(Event::CheckpointSkipped {
                    path: path.to_owned(),
                    reason: error.to_string(),
                });
            })?;
            if found.is_none() && !checkpoint::list(run_dir)?.is_empty() {
                // Starting over would cut the log of a run that may only need its disk back.
                return Err(TrainError::NoGoodCheckpoint { path: run_dir.to_owned() });
            }
            Ok(found.map(|found| found.path))
        }
        Resume::Never => match checkpoint::list(run_dir)?.first() {
            Some(entry) => Err(TrainError::RunExists { path: entry.path.clone() }),
            None => Ok(None),
        },
        Resume::From(dir) => {
            checkpoint::verify(dir)?;
            Ok(Some(dir.clone()))
        }
    }
}

fn check_same(saved: &TrainerState, config: &RunConfig, dir: &Path) -> Result<(), TrainError> {
    let mut differences = config::differences(&saved.config, config)?;
    differences.retain(|difference| !config::free_on_resume(&difference.key));
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainError::ResumeMismatch { checkpoint: dir.to_owned(), differences })
}
