//! [`Pcam`]: PatchCamelyon, images and labels in HDF5 files.
//!
//! `camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`, unpacked from their `.gz`: an array `x` of
//! [n, 96, 96, 3] bytes and an array `y` of [n, 1, 1, 1] numbers. <https://github.com/basveeling/pcam>.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::lists::{bad, file, root};
use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::image::Image;
use crate::source::cache::BlockCache;
use crate::source::hdf5::{Dataset, Problem};
use crate::source::{Fingerprint, Payload, Sample, SampleFormat, Source, open_regular};

/// Most bytes of decompressed chunks kept in memory.
const CACHE_BYTES: u64 = 512 << 20;
/// Most images of a split.
const MAX_IMAGES: u64 = 1 << 26;
/// Most classes.
const MAX_CLASSES: i64 = 1 << 16;

/// The images of PatchCamelyon's splits, read from HDF5 files where they lie.
///
/// Chunks are decompressed for whole runs of images and kept in a cache of 512 MiB.
#[derive(Debug)]
pub struct Pcam {
    parts: Vec<Part>,
    /// First image of each block of rows, over all parts.
    starts: Vec<u64>,
    labels: Vec<u32>,
    class_names: Vec<String>,
    fingerprint: String,
    cache: BlockCache<Vec<u8>>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    images: Dataset,
    first: u64,
}

fn names(split: &str, array: &str) -> String {
    let split = if split == "val" { "valid" } else { split };
    format!("camelyonpatch_level_2_split_{split}_{array}.h5")
}

/// Whether a folder holds the images of some split.
pub(super) fn is_folder(folder: &Path) -> bool {
    ["train", "val", "test"].iter().any(|split| folder.join(names(split, "x")).is_file())
}

impl Pcam {
    /// Opens splits.
    ///
    /// # Errors
    /// As [`open_benchmark`](super::open_benchmark).
    pub(super) fn open(path: &Path, splits: &[&str], limits: DecodeLimits) -> Result<Self> {
        let root = root(path, &["pcam", "PCAM"], &[&names(splits[0], "x")])?;
        let mut this = Self {
            parts: Vec::new(),
            starts: Vec::new(),
            labels: Vec::new(),
            class_names: Vec::new(),
            fingerprint: String::new(),
            cache: BlockCache::new(CACHE_BYTES),
        };
        let mut fingerprint = Fingerprint::new("pcam");
        for split in splits {
            let path = file(&root, &[&names(split, "x")])?;
            let (images, file_x, length) = open_array(&path, "x")?;
            let (&[count, height, width, channels @ (1 | 3)], 1) =
                (&images.dims[..], images.element.bytes)
            else {
                let reason = format!(
                    "`x` has the sizes {:?} with {} bytes each: expected [images, height, width, 1 \
                     or 3] of one byte",
                    images.dims, images.element.bytes
                );
                return Err(bad(&path)(reason));
            };
            let pixels = height.saturating_mul(width);
            if pixels > limits.max_pixels
                || count > MAX_IMAGES
                || u32::try_from(height.max(width)).is_err()
            {
                return Err(bad(&path)(format!(
                    "{count} images of {height} x {width}: at most {MAX_IMAGES} of {} pixels are \
                     accepted",
                    limits.max_pixels
                )));
            }
            let labels = this.read_labels(&file(&root, &[&names(split, "y")])?, count)?;
            let first = this.labels.len() as u64;
            fingerprint.add(names(split, "x").as_bytes(), count);
            fingerprint.add(&[channels as u8], pixels);
            for label in labels {
                fingerprint.add(b"", u64::from(label));
                this.labels.push(label);
            }
            let rows = images.block_rows();
            this.starts.extend((0..count.div_ceil(rows)).map(|block| first + block * rows));
            this.parts.push(Part { path, file: file_x, length, images, first });
        }
        let largest = this.labels.iter().max().map_or(0, |largest| *largest as usize);
        this.class_names = match largest {
            0 | 1 => vec!["normal".into(), "tumor".into()],
            _ => (0..=largest).map(|class| class.to_string()).collect(),
        };
        this.fingerprint = fingerprint.finish();
        Ok(this)
    }

    fn read_labels(&self, path: &Path, count: u64) -> Result<Vec<u32>> {
        let (array, file, length) = open_array(path, "y")?;
        if array.dims.iter().product::<u64>() != count {
            let reason =
                format!("`y` has the sizes {:?}, but there are {count} images", array.dims);
            return Err(bad(path)(reason));
        }
        let values = array.read_all(&file, length, MAX_IMAGES).map_err(|p| wrong(path, p))?;
        let label = |value: i64| match value {
            0..MAX_CLASSES => Ok(value as u32),
            _ => Err(bad(path)(format!("`y` holds {value}, expected class numbers"))),
        };
        values.into_iter().map(label).collect()
    }

    fn part(&self, index: u64) -> Option<(usize, &Part, u64)> {
        if index >= self.labels.len() as u64 {
            return None;
        }
        let at = self.parts.partition_point(|part| part.first <= index).checked_sub(1)?;
        let part = &self.parts[at];
        Some((at, part, index - part.first))
    }
}

fn wrong(path: &Path, problem: Problem) -> Error {
    Error::Format { path: path.to_owned(), offset: problem.offset, reason: problem.reason }
}

fn open_array(path: &Path, name: &str) -> Result<(Dataset, File, u64)> {
    let (file, length) = open_regular(path)?;
    let array = Dataset::open(&file, length, name).map_err(|problem| wrong(path, problem))?;
    Ok((array, file, length))
}

impl Source for Pcam {
    fn len(&self) -> u64 {
        self.labels.len() as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let Some((at, part, row)) = self.part(index) else {
            return Err(self.out_of_range(index));
        };
        let (rows, size) = (part.images.block_rows(), part.images.row_bytes());
        let block = row / rows;
        let corrupt = |reason| self.defect(index, DefectKind::Corrupt, reason);
        let load = || part.images.read_block(&part.file, part.length, block);
        // At most 2^26 images, checked when the file was opened.
        let bytes = self.cache.get((at as u32, block as u32), rows * size, load);
        let bytes = bytes
            .map_err(|problem| corrupt(format!("byte {}: {}", problem.offset, problem.reason)))?;
        let start = ((row - block * rows) * size) as usize;
        let pixels = bytes.get(start..start + size as usize).map(<[u8]>::to_vec);
        let [_, height, width, channels] = part.images.dims[..] else {
            return Err(corrupt("no image".into()));
        };
        let image = pixels
            .and_then(|pixels| Image::new(width as u32, height as u32, channels as u8, pixels))
            .ok_or_else(|| corrupt("an image without pixels".into()))?;
        Ok(Sample { payload: Payload::Pixels(image), label: self.label(index) })
    }

    /// `camelyonpatch_level_2_split_train_x-000042`
    fn key(&self, index: u64) -> String {
        self.part(index).map_or_else(String::new, |(_, part, row)| {
            format!("{}-{row:06}", part.path.file_stem().unwrap_or_default().to_string_lossy())
        })
    }

    fn location(&self, index: u64) -> String {
        self.part(index).map_or_else(
            || format!("image {index}"),
            |(_, part, row)| format!("{}, x[{row}]", part.path.display()),
        )
    }

    fn label(&self, index: u64) -> Option<u32> {
        self.labels.get(usize::try_from(index).ok()?).copied()
    }

    fn num_classes(&self) -> Option<u32> {
        Some(self.class_names.len() as u32)
    }

    fn class_names(&self) -> Option<&[String]> {
        Some(&self.class_names)
    }

    /// Blocks of rows, each of which is decompressed as a whole.
    fn shard_starts(&self) -> Option<&[u64]> {
        Some(&self.starts)
    }

    /// As many blocks as the cache holds; rows that are not in chunks are read one by one.
    fn shuffle_window(&self) -> Option<usize> {
        let chunked =
            self.parts.iter().map(|part| &part.images).filter(|images| images.is_chunked());
        let largest = chunked.map(|images| images.block_rows() * images.row_bytes()).max()?;
        Some((CACHE_BYTES / largest.max(1)).clamp(1, 1024) as usize)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
