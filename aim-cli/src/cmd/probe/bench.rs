//! The images of a probe and their features.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aim_data::loader::Skipped;
use aim_data::source::Source;
use aim_model::features::FeatureExtractor;
use aim_tensor::Device;
use aim_train::TrainError;
use aim_train::probe::features::ImageOptions;
use aim_train::probe::store::{Kept, Place};
use aim_train::probe::{FeatureDtype, FeatureStore, pixels};
use aim_train::signals::Stop;
use anyhow::{Result, bail};

use super::row::{Results, Row};
use crate::progress::{Pace, Progress, warn};
use crate::weights::Weights;

/// Images in one forward pass of the trunk.
const TRUNK_BATCH: usize = 64;

/// Labelled images to measure features on.
pub(crate) struct Bench {
    pub(super) train: Arc<dyn Source>,
    val: Arc<dyn Source>,
    specs: [String; 2],
    pub(super) classes: usize,
    pub(super) heads: usize,
    /// Where features are computed; classifiers train on the CPU.
    device: Device,
    pub(super) options: ImageOptions,
    pub(super) stop: Stop,
    quiet: bool,
}

/// Which of the two sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Train,
    Val,
}

/// What features may still take.
pub(super) struct Memory {
    pub(super) bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) dir: PathBuf,
}

/// Training and validation features, in memory.
pub(crate) struct Sets {
    pub(super) train: FeatureStore,
    pub(super) val: FeatureStore,
}

impl Bench {
    /// Opens both sources.
    pub(crate) fn open(
        train: &str,
        val: &str,
        weights: &Weights,
        device: Device,
        stop: Stop,
        quiet: bool,
    ) -> Result<Self> {
        let specs = [train.to_owned(), val.to_owned()];
        let (train, val) = (aim_data::spec::open(train)?, aim_data::spec::open(val)?);
        let (Some(classes), Some(_)) = (train.num_classes(), val.num_classes()) else {
            bail!("a probe needs labels: class folders, .cls members or an IDX label file");
        };
        if let (Some(trained), Some(measured)) = (train.class_names(), val.class_names())
            && trained != measured
        {
            warn(&format!(
                "the classes of {} and {} have other names or another order: labels are compared by number",
                specs[0], specs[1]
            ));
        }
        Ok(Self {
            train,
            val,
            specs,
            classes: classes as usize,
            heads: weights.config.num_heads,
            device,
            options: weights.image_options(TRUNK_BATCH),
            stop,
            quiet,
        })
    }

    pub(super) fn source(&self, which: Which) -> &dyn Source {
        match which {
            Which::Train => &*self.train,
            Which::Val => &*self.val,
        }
    }

    pub(super) fn options(&self) -> &ImageOptions {
        &self.options
    }

    pub(super) fn train_images(&self) -> usize {
        self.train.len() as usize
    }

    /// Features of one source; what they take of the memory is taken off.
    pub(super) fn extract(
        &self,
        extractor: &mut FeatureExtractor,
        which: Which,
        kept: Kept,
        memory: &mut Memory,
        name: &str,
        key: String,
    ) -> Result<FeatureStore> {
        let (source, part) = match which {
            Which::Train => (&self.train, "train"),
            Which::Val => (&self.val, "val"),
        };
        let place = Place {
            memory_bytes: memory.bytes,
            disk_bytes: memory.disk_bytes,
            dir: memory.dir.clone(),
            name: format!("{name}-{part}"),
            key,
        };
        let label = format!("features of {part}, {name}");
        let store = self.with_progress(&label, source.len(), |progress| {
            let (options, stop) = (&self.options, &self.stop);
            FeatureStore::extract(
                extractor,
                source,
                options,
                kept,
                &place,
                stop,
                progress,
                &mut report_skipped,
            )
        })?;
        memory.bytes = memory.bytes.saturating_sub(store.memory_bytes());
        Ok(store)
    }

    /// Features of both sources in memory, from the trunk as it is or from one with random weights.
    pub(crate) fn features(
        &self,
        weights: &Weights,
        layers: &[usize],
        untrained: Option<u64>,
        name: &str,
    ) -> Result<Sets> {
        let mut extractor = weights.extractor(layers, untrained, &self.device)?;
        let kept = Kept { every_layer: false, pooled: false, dtype: FeatureDtype::Fp32 };
        let mut of = |which| {
            let mut memory = Memory { bytes: u64::MAX, disk_bytes: 0, dir: PathBuf::new() };
            self.extract(&mut extractor, which, kept, &mut memory, name, String::new())
        };
        Ok(Sets { train: of(Which::Train)?, val: of(Which::Val)? })
    }

    /// The pixels themselves as features.
    pub(crate) fn pixels(&self) -> Result<Sets> {
        let of = |source: &Arc<dyn Source>| {
            self.with_progress("pixels", source.len(), |progress| {
                pixels(source, &self.options, progress)
            })
        };
        Ok(Sets { train: of(&self.train)?.into(), val: of(&self.val)?.into() })
    }

    /// Runs `work` with a line of progress towards `total`.
    pub(super) fn with_progress<T>(
        &self,
        label: &str,
        total: u64,
        work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T, TrainError>,
    ) -> Result<T> {
        let mut progress =
            Progress::new(self.quiet, label, total, Pace::Every(Duration::from_secs(10)));
        let result = work(&mut |done, _| progress.update(done, String::new));
        progress.finish();
        Ok(result?)
    }

    /// Everything that was measured.
    pub(crate) fn results(&self, weights: &Weights, results: Vec<Row>) -> Results {
        Results {
            checkpoint: weights.dir.display().to_string(),
            train: self.specs[0].clone(),
            val: self.specs[1].clone(),
            train_images: self.train.len() as usize,
            val_images: self.val.len() as usize,
            num_classes: self.classes,
            classes: self.train.class_names().map(<[String]>::to_vec),
            results,
            depth: Vec::new(),
            blocks: weights.config.num_blocks,
        }
    }
}

pub(super) fn report_skipped(skipped: &Skipped) {
    warn(&format!("skipped {}", skipped.defect));
}
