//! [`FeatureStore`]: features of every image of a source, computed once, in memory or in a file.
//!
//! Values lie as `[images, blocks, tokens, dim]`. A file goes into a directory of the caller's beside a small JSON file
//! that says what it is of; it is found again by a later run that asks for exactly the same.

mod view;
mod writer;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aim_data::loader::Skipped;
use aim_data::source::Source;
use aim_model::features::FeatureExtractor;
use half::bf16;
use half::slice::HalfFloatSliceExt as _;
use serde::{Deserialize, Serialize};

use self::writer::{Opened, Writer};
use super::features::{FeatureSet, ImageOptions, for_each_batch, push_labels};
use crate::error::TrainError;
use crate::signals::Stop;

pub use view::View;

/// Type that features are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureDtype {
    /// As the trunk gives them.
    Fp32,
    /// Rounded to bf16: half the room.
    Bf16,
}

impl FeatureDtype {
    /// Bytes of a value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What is kept of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Each of the extractor's layers; else their mean alone.
    pub every_layer: bool,
    /// The mean over the tokens; else every token.
    pub pooled: bool,
    /// Type of the values.
    pub dtype: FeatureDtype,
}

/// Where features may go.
#[derive(Clone, Debug)]
pub struct Place {
    /// Bytes of memory; what does not fit goes to the disk.
    pub memory_bytes: u64,
    /// Bytes of files.
    pub disk_bytes: u64,
    /// Directory of the files, created when it is needed.
    pub dir: PathBuf,
    /// Name of the files, without an extension.
    pub name: String,
    /// What they are features of: weights, data, everything that decides a value. A file with the same key is used
    /// again.
    pub key: String,
}

/// Sizes of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    blocks: usize,
    tokens: usize,
    dim: usize,
    dtype: FeatureDtype,
}

impl Shape {
    /// Values of one block of an image.
    fn stride(self) -> usize {
        self.tokens * self.dim
    }
}

enum Data {
    Fp32(Vec<f32>),
    Bf16(Vec<bf16>),
    File(File, PathBuf),
}

/// Features of labelled images, in the order of their source.
pub struct FeatureStore {
    shape: Shape,
    labels: Vec<i32>,
    indices: Vec<u32>,
    data: Data,
}

impl FeatureStore {
    /// Runs the trunk over every labelled image, or finds a file where that was done.
    ///
    /// # Errors
    /// When an image has no label, the data are too bad, there is no room, or a stop is requested; files begun are
    /// removed.
    pub fn extract(
        extractor: &mut FeatureExtractor,
        source: &Arc<dyn Source>,
        options: &ImageOptions,
        kept: Kept,
        place: &Place,
        stop: &Stop,
        progress: &mut dyn FnMut(u64, u64),
        skipped: &mut dyn FnMut(&Skipped),
    ) -> Result<Self, TrainError> {
        let patch = extractor.config().patch_size;
        let grid = options.height / patch * (options.width / patch);
        let shape = Shape {
            blocks: if kept.every_layer { extractor.layers().len() } else { 1 },
            tokens: if kept.pooled { 1 } else { grid },
            dim: extractor.config().embed_dim,
            dtype: kept.dtype,
        };
        let images = options.limit.unwrap_or(u64::MAX).min(source.len());
        let mut writer = match Writer::open(shape, images, place)? {
            Opened::Found(store) => return Ok(store),
            Opened::New(writer) => writer,
        };
        let (mut labels, mut indices) = (Vec::new(), Vec::new());
        let mut average = Vec::new();
        let mut pooled = Vec::new();
        let written = for_each_batch(source, options, progress, skipped, |batch, kind, pixels| {
            stop.check()?;
            extractor.run(kind, pixels)?;
            push_labels(&mut labels, batch, source.as_ref())?;
            indices.extend(batch.indices.iter().map(|&index| index as u32));
            if !kept.every_layer {
                extractor.average(&mut average)?;
            }
            for image in 0..batch.len() {
                for block in 0..shape.blocks {
                    let layer = if kept.every_layer { Some(extractor.layer(block)?) } else { None };
                    let all = layer.as_deref().unwrap_or(&average);
                    let len = grid * shape.dim;
                    let values = &all[image * len..][..len];
                    if kept.pooled {
                        mean_over_tokens(values, shape.dim, &mut pooled);
                        writer.push(&pooled)?;
                    } else {
                        writer.push(values)?;
                    }
                }
            }
            Ok(())
        });
        match written {
            Ok(()) => writer.finish(labels, indices, place),
            Err(error) => {
                writer.abandon();
                Err(error)
            }
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Index of each image in its source: an image that could not be used is missing.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Blocks that are kept apart.
    pub fn blocks(&self) -> usize {
        self.shape.blocks
    }

    /// Bytes of memory that the features take.
    pub fn memory_bytes(&self) -> u64 {
        match &self.data {
            Data::Fp32(values) => 4 * values.len() as u64,
            Data::Bf16(values) => 2 * values.len() as u64,
            Data::File(..) => 0,
        }
    }

    /// The file, if the features are in one.
    pub fn file(&self) -> Option<&Path> {
        match &self.data {
            Data::File(_, path) => Some(path),
            _ => None,
        }
    }

    /// The mean of some of the blocks as features.
    ///
    /// # Errors
    /// When there is no such block, or none is asked for.
    pub fn view(&self, blocks: &[usize]) -> Result<View<'_>, TrainError> {
        if blocks.is_empty() || blocks.iter().any(|&block| block >= self.shape.blocks) {
            return Err(TrainError::Internal("a view of blocks that are not kept"));
        }
        Ok(View::new(self, blocks.to_vec()))
    }

    /// First value of a block of an image.
    fn start(&self, image: usize, block: usize) -> usize {
        (image * self.shape.blocks + block) * self.shape.stride()
    }

    /// One block of an image, in f32, from wherever it is.
    fn read_wide(&self, image: usize, block: usize, to: &mut [f32]) -> Result<(), TrainError> {
        let start = self.start(image, block);
        match &self.data {
            Data::Fp32(values) => to.copy_from_slice(&values[start..][..to.len()]),
            Data::Bf16(values) => values[start..][..to.len()].convert_to_f32_slice(to),
            Data::File(file, path) => match self.shape.dtype {
                FeatureDtype::Fp32 => {
                    read_at(file, path, bytemuck::cast_slice_mut(to), 4 * start as u64)?;
                }
                FeatureDtype::Bf16 => {
                    let mut narrow = vec![bf16::ZERO; to.len()];
                    let bytes = bytemuck::cast_slice_mut(&mut narrow);
                    read_at(file, path, bytes, 2 * start as u64)?;
                    narrow.convert_to_f32_slice(to);
                }
            },
        }
        Ok(())
    }
}

fn read_at(file: &File, path: &Path, to: &mut [u8], offset: u64) -> Result<(), TrainError> {
    file.read_exact_at(to, offset).map_err(|source| TrainError::io("read", path, source))
}

/// As [`super::FeatureSet::mean_pooled`] computes it.
pub(super) fn mean_over_tokens(values: &[f32], dim: usize, pooled: &mut Vec<f32>) {
    let tokens = (values.len() / dim) as f32;
    pooled.clear();
    pooled.resize(dim, 0.0);
    for token in values.chunks_exact(dim) {
        pooled.iter_mut().zip(token).for_each(|(sum, v)| *sum += v / tokens);
    }
}

impl From<FeatureSet> for FeatureStore {
    fn from(set: FeatureSet) -> Self {
        let FeatureSet { values, labels, tokens, dim } = set;
        let shape = Shape { blocks: 1, tokens, dim, dtype: FeatureDtype::Fp32 };
        let indices = (0..labels.len() as u32).collect();
        Self { shape, labels, indices, data: Data::Fp32(values) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::features::Features as _;

    fn place(dir: &Path, memory_bytes: u64, key: &str) -> Place {
        let (name, key) = ("train".to_owned(), key.to_owned());
        Place { memory_bytes, disk_bytes: 1 << 20, dir: dir.join("cache"), name, key }
    }

    fn filled(shape: Shape, place: &Place) -> Result<(FeatureStore, bool), TrainError> {
        let images = 5;
        let mut writer = match Writer::open(shape, images, place)? {
            Opened::Found(store) => return Ok((store, true)),
            Opened::New(writer) => writer,
        };
        for image in 0..images as usize {
            for block in 0..shape.blocks {
                let value = |i| (image * 100 + block * 10 + i) as f32 / 7.0;
                writer.push(&(0..shape.stride()).map(value).collect::<Vec<_>>())?;
            }
        }
        Ok((writer.finish(vec![3; 5], vec![0, 1, 2, 4, 5], place)?, false))
    }

    fn read(store: &FeatureStore, blocks: &[usize]) -> Vec<f32> {
        let mut values = Vec::new();
        let mut view = store.view(blocks).unwrap();
        view.batch(&[4, 0, 2], &mut |x| {
            (0..3).for_each(|i| x.with_image(i, |x| values.extend_from_slice(x)));
            Ok(())
        })
        .unwrap();
        values
    }

    #[test]
    fn memory_and_disk_give_the_same_and_a_finished_file_is_found_again() {
        for dtype in [FeatureDtype::Fp32, FeatureDtype::Bf16] {
            let dir = tempfile::tempdir().unwrap();
            let shape = Shape { blocks: 3, tokens: 2, dim: 4, dtype };
            let (memory, _) = filled(shape, &place(dir.path(), 1 << 20, "a")).unwrap();
            assert!(memory.file().is_none() && !dir.path().join("cache").exists());
            let on_disk = place(dir.path(), 10, "a");
            let (disk, found) = filled(shape, &on_disk).unwrap();
            assert!(disk.file().is_some() && !found && disk.memory_bytes() == 0);
            for blocks in [&[1][..], &[0, 1, 2], &[0, 2]] {
                assert_eq!(read(&memory, blocks), read(&disk, blocks), "{dtype:?} {blocks:?}");
            }
            let (again, found) = filled(shape, &on_disk).unwrap();
            assert!(found && read(&again, &[2]) == read(&memory, &[2]));
            assert_eq!((&again.labels, again.indices()), (&memory.labels, memory.indices()));
            // Other weights or data: computed again.
            assert!(!filled(shape, &place(dir.path(), 10, "b")).unwrap().1);
            // A file that lost its end is no file.
            let file = dir.path().join("cache/train.features");
            File::options().write(true).open(&file).unwrap().set_len(100).unwrap();
            assert!(!filled(shape, &place(dir.path(), 10, "b")).unwrap().1);
            assert!(memory.view(&[3]).is_err() && memory.view(&[]).is_err());
            let full = Place { disk_bytes: 10, ..place(dir.path(), 10, "c") };
            let error = filled(shape, &full).err().unwrap().to_string();
            assert!(error.contains("10 may be used"), "{error}");
        }
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { blocks: 2, tokens: 2, dim: 4, dtype: FeatureDtype::Fp32 };
        let (store, _) = filled(shape, &place(dir.path(), 0, "a")).unwrap();
        File::options().write(true).open(store.file().unwrap()).unwrap().set_len(64).unwrap();
        for blocks in [&[1][..], &[0, 1]] {
            let mut view = store.view(blocks).unwrap();
            let error = view.batch(&[0, 4], &mut |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains("cannot read") && error.contains("train.features"), "{error}");
        }
    }
}
