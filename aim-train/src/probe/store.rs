//! [`FeatureStore`]: features of every image of a source, computed once, in memory or in a file.
//!
//! Values lie as `[images, blocks, tokens, dim]`. A file goes into a directory of the caller's beside a small JSON file
//! that says what it is of; it is found again by a later run that asks for exactly the same.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aim_data::loader::Skipped;
use aim_data::source::Source;
use aim_kernels::attention_pool::Tokens;
use aim_kernels::cpu::pool;
use aim_model::features::FeatureExtractor;
use half::bf16;
use half::slice::HalfFloatSliceExt as _;
use serde::{Deserialize, Serialize};

use super::features::{FeatureSet, Features, ImageOptions, for_each_batch, push_labels};
use crate::error::{TrainError, free_bytes};
use crate::signals::Stop;
use crate::{checkpoint, durable};

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

/// Left free on the disk.
const DISK_MARGIN: u64 = 1 << 30;

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

/// The JSON file beside a file of features.
#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    key: String,
    shape: Shape,
    images: usize,
}

const VERSION: u32 = 1;

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
        Ok(View { store: self, blocks: blocks.to_vec(), wide: Vec::new(), narrow: Vec::new() })
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

impl View<'_> {
    /// Index of each image in its source.
    pub fn indices(&self) -> &[u32] {
        &self.store.indices
    }
}

/// The mean of some blocks of a store. A single block in memory is used where it is.
pub struct View<'a> {
    store: &'a FeatureStore,
    blocks: Vec<usize>,
    wide: Vec<f32>,
    narrow: Vec<bf16>,
}

impl Features for View<'_> {
    fn labels(&self) -> &[i32] {
        &self.store.labels
    }

    fn tokens(&self) -> usize {
        self.store.shape.tokens
    }

    fn dim(&self) -> usize {
        self.store.shape.dim
    }

    fn batch(
        &mut self,
        images: &[u32],
        f: &mut dyn FnMut(Tokens<'_>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let (store, stride) = (self.store, self.store.shape.stride());
        if let &[block] = &self.blocks[..] {
            let start = |image: &u32| store.start(*image as usize, block);
            match &store.data {
                Data::Fp32(values) => {
                    let slices: Vec<&[f32]> =
                        images.iter().map(|image| &values[start(image)..][..stride]).collect();
                    return f(Tokens::F32(&slices));
                }
                Data::Bf16(values) => {
                    let slices: Vec<&[bf16]> =
                        images.iter().map(|image| &values[start(image)..][..stride]).collect();
                    return f(Tokens::Bf16(&slices));
                }
                Data::File(file, path) if store.shape.dtype == FeatureDtype::Bf16 => {
                    self.narrow.resize(images.len() * stride, bf16::ZERO);
                    each_image(&mut self.narrow, stride, |i, narrow| {
                        let bytes = bytemuck::cast_slice_mut(narrow);
                        read_at(file, path, bytes, 2 * start(&images[i]) as u64)
                    })?;
                    let slices: Vec<&[bf16]> = self.narrow.chunks_exact(stride).collect();
                    return f(Tokens::Bf16(&slices));
                }
                Data::File(..) => {}
            }
        }
        self.wide.resize(images.len() * stride, 0.0);
        let blocks = &self.blocks;
        each_image(&mut self.wide, stride, |i, mean| {
            let image = images[i] as usize;
            if let &[block] = &blocks[..] {
                return store.read_wide(image, block, mean);
            }
            // The order and the arithmetic of the extractor's own mean: a window of a sweep has the features of a run
            // with these layers.
            let share = 1.0 / blocks.len() as f32;
            let mut one = vec![0.0; stride];
            mean.fill(0.0);
            for &block in blocks {
                store.read_wide(image, block, &mut one)?;
                mean.iter_mut().zip(&one).for_each(|(sum, v)| *sum += share * v);
            }
            Ok(())
        })?;
        let slices: Vec<&[f32]> = self.wide.chunks_exact(stride).collect();
        f(Tokens::F32(&slices))
    }
}

/// Fills each image's values on the kernels' threads; the first error of the lowest image.
fn each_image<T: Send>(
    values: &mut [T],
    stride: usize,
    fill: impl Fn(usize, &mut [T]) -> Result<(), TrainError> + Sync,
) -> Result<(), TrainError> {
    let failed: Mutex<Option<(usize, TrainError)>> = Mutex::new(None);
    pool::for_each_chunk(values, stride, |image, values| {
        if let Err(error) = fill(image, values) {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.as_ref().is_none_or(|(first, _)| image < *first) {
                *failed = Some((image, error));
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

enum Opened {
    Found(FeatureStore),
    New(Writer),
}

enum Sink {
    Fp32(Vec<f32>),
    Bf16(Vec<bf16>),
    File(BufWriter<File>, PathBuf),
}

/// A store that is being filled.
struct Writer {
    shape: Shape,
    sink: Sink,
    narrow: Vec<bf16>,
}

impl Place {
    fn file(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.name))
    }
}

impl Writer {
    fn open(shape: Shape, images: u64, place: &Place) -> Result<Opened, TrainError> {
        let values = images.saturating_mul((shape.blocks * shape.stride()) as u64);
        let bytes = values.saturating_mul(shape.dtype.bytes());
        let new = |sink| Ok(Opened::New(Self { shape, sink, narrow: Vec::new() }));
        if bytes <= place.memory_bytes
            && let Ok(len) = usize::try_from(values)
        {
            let (mut wide, mut narrow) = (Vec::new(), Vec::new());
            let reserved = match shape.dtype {
                FeatureDtype::Fp32 => wide.try_reserve_exact(len),
                FeatureDtype::Bf16 => narrow.try_reserve_exact(len),
            };
            if reserved.is_ok() {
                return new(match shape.dtype {
                    FeatureDtype::Fp32 => Sink::Fp32(wide),
                    FeatureDtype::Bf16 => Sink::Bf16(narrow),
                });
            }
        }
        if let Some(store) = find(shape, place) {
            return Ok(Opened::Found(store));
        }
        durable::create_dir(&place.dir)?;
        let unfinished = place.file("unfinished");
        // What an interrupted run or one on other data left would take the room of this one.
        for old in [&unfinished, &place.file("features"), &place.file("json")] {
            match fs::remove_file(old) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(TrainError::io("remove", old, error));
                }
                _ => {}
            }
        }
        let free = free_bytes(&place.dir).map(|free| free.saturating_sub(DISK_MARGIN));
        let available = free.unwrap_or(u64::MAX).min(place.disk_bytes);
        if bytes > available {
            return Err(TrainError::NoRoom {
                what: "features that are computed once",
                path: place.dir.clone(),
                needed_bytes: bytes,
                available_bytes: available,
                instead: "take bf16 features, fewer images or layers, a larger --cache-bytes or --cache-disk-bytes, \
                          or another --out",
            });
        }
        let file = File::options().write(true).read(true).create_new(true).open(&unfinished);
        let file = file.map_err(|source| TrainError::io("create", &unfinished, source))?;
        new(Sink::File(BufWriter::with_capacity(1 << 20, file), unfinished))
    }

    fn push(&mut self, values: &[f32]) -> Result<(), TrainError> {
        match &mut self.sink {
            Sink::Fp32(all) => all.extend_from_slice(values),
            Sink::Bf16(all) => {
                let start = all.len();
                all.resize(start + values.len(), bf16::ZERO);
                all[start..].convert_from_f32_slice(values);
            }
            Sink::File(file, path) => {
                let bytes: &[u8] = match self.shape.dtype {
                    FeatureDtype::Fp32 => bytemuck::cast_slice(values),
                    FeatureDtype::Bf16 => {
                        self.narrow.resize(values.len(), bf16::ZERO);
                        self.narrow.convert_from_f32_slice(values);
                        bytemuck::cast_slice(&self.narrow)
                    }
                };
                file.write_all(bytes).map_err(|source| TrainError::io("write", path, source))?;
            }
        }
        Ok(())
    }

    fn finish(
        self,
        labels: Vec<i32>,
        indices: Vec<u32>,
        place: &Place,
    ) -> Result<FeatureStore, TrainError> {
        let Self { shape, sink, .. } = self;
        let data = match sink {
            Sink::Fp32(values) => Data::Fp32(values),
            Sink::Bf16(values) => Data::Bf16(values),
            Sink::File(mut file, unfinished) => {
                let io = |op: &'static str| {
                    let unfinished = unfinished.clone();
                    move |source| TrainError::io(op, &unfinished, source)
                };
                let ends = file
                    .write_all(bytemuck::cast_slice(&labels))
                    .and_then(|()| file.write_all(bytemuck::cast_slice(&indices)));
                ends.map_err(io("write"))?;
                let file = file.into_inner().map_err(|error| io("write")(error.into_error()))?;
                file.sync_all().map_err(io("sync"))?;
                let path = place.file("features");
                durable::rename(&unfinished, &path)?;
                let description = Description {
                    version: VERSION,
                    key: place.key.clone(),
                    shape,
                    images: labels.len(),
                };
                let text = serde_json::to_vec(&description).map_err(|error| TrainError::Json {
                    path: place.file("json"),
                    reason: error.to_string(),
                })?;
                durable::replace(&place.file("json"), &text)?;
                Data::File(file, path)
            }
        };
        Ok(FeatureStore { shape, labels, indices, data })
    }

    fn abandon(self) {
        if let Sink::File(_, path) = self.sink {
            // Best effort: the error that led here is the one to report, and the next run removes it too.
            let _ = fs::remove_file(path);
        }
    }
}

/// A finished file of exactly these features.
fn find(shape: Shape, place: &Place) -> Option<FeatureStore> {
    let name = format!("{}.json", place.name);
    let found: Description = checkpoint::read_json(&place.dir, &name).ok()?;
    let same = found.version == VERSION && found.key == place.key && found.shape == shape;
    let path = place.file("features");
    let file = File::open(&path).ok()?;
    let bytes = (found.images as u64)
        .checked_mul((shape.blocks * shape.stride()) as u64)?
        .checked_mul(shape.dtype.bytes())?;
    if !same || Some(file.metadata().ok()?.len()) != bytes.checked_add(8 * found.images as u64) {
        return None;
    }
    let mut ends = vec![0; 2 * found.images];
    read_at(&file, &path, bytemuck::cast_slice_mut(&mut ends), bytes).ok()?;
    let (labels, indices) = ends.split_at(found.images);
    let indices = indices.iter().map(|&index: &i32| index as u32).collect();
    Some(FeatureStore { shape, labels: labels.to_vec(), indices, data: Data::File(file, path) })
}

#[cfg(test)]
mod tests {
    use super::*;

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
