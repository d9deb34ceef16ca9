//! Sources: images by index, wherever they are stored.
//!
//! A source is opened once, knows its samples (key, size, label) and reads any of them on any
//! thread. Order, repetition, augmentation and error policy are not its business: see
//! [`sampler`](crate::sampler) and [`loader`](crate::loader).

mod benchmark;
mod cache;
mod concat;
mod fields;
pub(crate) mod fuzzing;
pub(crate) mod glob;
mod hdf5;
mod idx;
mod ilsvrc;
mod image_files;
mod image_folder;
pub(crate) mod img2dataset;
mod mat;
mod mds;
#[cfg(feature = "parquet")]
mod parquet;
mod paths;
mod subset;
mod synthetic;
pub(crate) mod tar_index;
mod tensors;
mod webdataset;

use std::fs::File;
use std::path::Path;

use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::image::Image;

pub use benchmark::{Benchmark, Cifar, ListedImages, Pcam, open_benchmark};
pub use concat::Concat;
pub use fields::{Field, Fields};
pub use idx::IdxSource;
pub(crate) use idx::is_idx_folder;
pub use ilsvrc::{Ilsvrc, open_ilsvrc};
pub use image_files::ImageFiles;
pub use image_folder::ImageFolder;
pub(crate) use image_folder::open_folders;
pub use mds::MdsSource;
#[cfg(feature = "parquet")]
pub use parquet::ParquetSource;
pub use subset::Subset;
pub use synthetic::{SyntheticKind, SyntheticSource};
pub use tensors::TensorSource;
pub use webdataset::WebDataset;

/// Random access to labelled images.
pub trait Source: Send + Sync {
    /// Number of samples.
    fn len(&self) -> u64;

    /// Whether there are none. The sources of this crate refuse to open empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What [`read`](Self::read) gives for every sample.
    fn format(&self) -> SampleFormat;

    /// Reads a sample. `epoch` matters to generators only.
    ///
    /// # Errors
    /// A [`Defect`] when this one sample cannot be read; `index >= len()` is one too.
    fn read(&self, index: u64, epoch: u64) -> Result<Sample, Defect>;

    /// The sample's key: stable, independent of where the data lie and of their order.
    fn key(&self, index: u64) -> String;

    /// The sample's 64-bit identity, a hash of its key.
    fn key_hash(&self, index: u64) -> u64 {
        key_hash(&self.key(index))
    }

    /// The sample's text (a caption), read from where it is stored; `None` where there is none.
    ///
    /// # Errors
    /// A [`Defect`] when it is there and cannot be read.
    fn text(&self, _index: u64) -> Result<Option<String>, Defect> {
        Ok(None)
    }

    /// The sample's metadata as a JSON text, read from where it is stored; `None` where there is
    /// none.
    ///
    /// # Errors
    /// A [`Defect`] when it is there and cannot be read or is no JSON.
    fn metadata(&self, _index: u64) -> Result<Option<String>, Defect> {
        Ok(None)
    }

    /// Where the sample lies, for messages: a file, or a shard and a key.
    fn location(&self, index: u64) -> String;

    /// The sample's label, without reading its image.
    fn label(&self, index: u64) -> Option<u32>;

    /// One more than the largest possible label; `None` without labels.
    fn num_classes(&self) -> Option<u32>;

    /// Names of the classes in label order, where they are known.
    fn class_names(&self) -> Option<&[String]> {
        None
    }

    /// Index of the first sample of each shard, in order, beginning with 0; `None` for a source
    /// without shards. An empty shard begins where the next one does.
    fn shard_starts(&self) -> Option<&[u64]> {
        None
    }

    /// For a source that is best read shard by shard: how many neighbouring shards its samples
    /// should be shuffled among (see [`sampler`](crate::sampler)). `None`, for sources whose
    /// samples cost the same wherever they lie, shuffles all samples together.
    fn shuffle_window(&self) -> Option<usize> {
        None
    }

    /// Hash over the keys and sizes of all samples, 32 hexadecimal digits. Equal fingerprints mean
    /// that a loader state can be continued.
    fn fingerprint(&self) -> &str;

    /// Remarks on what was passed over when the source was opened (links, other files), for people.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// The defect that [`read`](Self::read) answers to an index past the end.
    fn out_of_range(&self, index: u64) -> Defect {
        let reason = format!("sample {index} of {}", self.len());
        self.defect(index, DefectKind::Unreadable, reason)
    }

    /// The defect of a sample, with its place filled in.
    fn defect(&self, index: u64, kind: DefectKind, reason: String) -> Defect {
        Defect { index, key: self.key(index), location: self.location(index), kind, reason }
    }
}

/// One sample as a source gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The image, in one of several stages.
    pub payload: Payload,
    /// Class number.
    pub label: Option<u32>,
}

/// An image somewhere between file and batch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Payload {
    /// The bytes of an image file; still to be decoded and transformed.
    Encoded(Vec<u8>),
    /// Pixels, still to be transformed (cropped, resized, flipped).
    Pixels(Image),
    /// Pixels that go into the batch as they are.
    Final(Image),
    /// Normalised values `[3, height, width]` that go into the batch as they are.
    Tensor(Vec<f32>),
}

/// What all samples of a source have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SampleFormat {
    /// [`Payload::Encoded`] or [`Payload::Pixels`]: any size, will be transformed.
    Image,
    /// [`Payload::Final`] of this size.
    Final {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
    /// [`Payload::Tensor`] of this size.
    Tensor {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

/// File name extensions (lower case) taken for images. What a file really is, its first bytes say.
pub const IMAGE_EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

pub(crate) fn is_image_extension(extension: &str) -> bool {
    IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// First eight bytes of the BLAKE3 hash of a key.
#[must_use]
pub fn key_hash(key: &str) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// Builds a fingerprint from what identifies each sample.
pub(crate) struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    pub(crate) fn new(kind: &str) -> Self {
        let mut this = Self(blake3::Hasher::new());
        this.add(kind.as_bytes(), 0);
        this
    }

    /// Adds a key (any bytes, with its length so that neighbours cannot run together) and a size.
    pub(crate) fn add(&mut self, key: &[u8], size: u64) {
        self.0.update(&(key.len() as u64).to_le_bytes());
        self.0.update(key);
        self.0.update(&size.to_le_bytes());
    }

    pub(crate) fn finish(&self) -> String {
        self.0.finalize().to_hex()[..32].to_owned()
    }
}

/// Opens a regular file: a directory, FIFO or device under the same name is refused, so that no
/// read can hang.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let found = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !found.is_file() {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
        return Err(Error::io("open", path)(reason));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    Ok((file, found.len()))
}

/// Reads exactly `buffer.len()` bytes at `offset`, from any number of threads at once.
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
    }
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            match std::os::windows::fs::FileExt::seek_read(file, &mut buffer[done..], at)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}

/// Checks the size of an encoded image before memory is reserved for it.
pub(crate) fn check_encoded_size(
    size: u64,
    limits: &DecodeLimits,
) -> Result<(), (DefectKind, String)> {
    if size == 0 {
        return Err((DefectKind::Empty, "the file has 0 bytes".into()));
    }
    if size > limits.max_bytes {
        let reason = format!("{size} bytes, at most {} are accepted", limits.max_bytes);
        return Err((DefectKind::TooLarge, reason));
    }
    Ok(())
}

/// Whether a text is JSON, without building anything from it.
pub(crate) fn check_json(text: &str) -> Result<(), String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(|_| ())
        .map_err(|error| format!("its metadata are no JSON: {error}"))
}

/// The defect kind and reason for a failed read.
pub(crate) fn unreadable(error: &std::io::Error) -> (DefectKind, String) {
    if let Some(remote) = crate::remote::behind(error) {
        (DefectKind::Unavailable, remote.to_string())
    } else if error.kind() == std::io::ErrorKind::UnexpectedEof {
        (DefectKind::Truncated, "the file has become shorter since it was indexed".into())
    } else {
        (DefectKind::Unreadable, error.to_string())
    }
}
