//! [`IdxSource`]: the IDX files of MNIST, Fashion-MNIST and their relatives.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::{Defect, DefectKind, Error, Result};
use crate::image::Image;
use crate::source::{Fingerprint, Payload, Sample, SampleFormat, Source, open_regular};

/// Most bytes of pixels accepted in one file.
const MAX_BYTES: u64 = 1 << 34;
/// Longest side of an image, in pixels.
const MAX_SIDE: u32 = 1 << 14;

/// Gray images from an IDX file, held in memory.
///
/// Format: two zero bytes, a type byte (8 = unsigned bytes), the number of dimensions, each
/// dimension as a big-endian `u32`, then the values; images are `[count, height, width]`, labels
/// `[count]`. Both may be gzipped.
#[derive(Debug)]
pub struct IdxSource {
    images: PathBuf,
    stem: String,
    height: u32,
    width: u32,
    pixels: Vec<u8>,
    labels: Option<Vec<u8>>,
    num_classes: Option<u32>,
    fingerprint: String,
}

impl IdxSource {
    /// Opens an image file and, where given, its labels. Without `labels`, a file of the usual
    /// name (`train-labels-idx1-ubyte` beside `train-images-idx3-ubyte`) is used when it exists.
    ///
    /// # Errors
    /// A file that cannot be read, is no IDX file of bytes, is shorter or longer than its header
    /// says, or has another number of labels than of images.
    pub fn open(images: impl Into<PathBuf>, labels: Option<&Path>) -> Result<Self> {
        let path = images.into();
        let (sizes, pixels) = read_idx(&path, 3)?;
        let (count, height, width) = match sizes[..] {
            [count, height, width] => (count, height, width),
            _ => (0, 0, 0),
        };
        let location = path.display().to_string();
        if count == 0 {
            let reason = "its header states 0 images".to_owned();
            return Err(Error::Empty { location, reason });
        }
        let beside = labels.map(Path::to_owned).or_else(|| labels_beside(&path));
        let labels = match beside {
            Some(labels_path) => {
                let (sizes, labels) = read_idx(&labels_path, 1)?;
                if sizes[..] != [count] {
                    let reason = format!("{} labels for {count} images", labels.len());
                    return Err(Error::Format { path: labels_path, offset: 4, reason });
                }
                Some(labels)
            }
            None => None,
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let stem = name.split(['-', '.', '_']).next().unwrap_or_default().to_owned();
        let mut fingerprint = Fingerprint::new("idx");
        fingerprint.add(&pixels, u64::from(count));
        fingerprint.add(labels.as_deref().unwrap_or_default(), u64::from(width));
        let largest = labels.as_ref().and_then(|labels| labels.iter().max());
        Ok(Self {
            images: path,
            stem,
            height,
            width,
            num_classes: largest.map(|&label| u32::from(label) + 1),
            fingerprint: fingerprint.finish(),
            pixels,
            labels,
        })
    }

    /// Opens one split of a folder that holds the four files of MNIST or Fashion-MNIST: `split` is
    /// the start of the file names, `train` or `t10k`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the folder has no such file.
    pub fn open_split(folder: &Path, split: &str) -> Result<Self> {
        let candidates = split_files(folder, split);
        let Some(path) = candidates.iter().find(|path| path.is_file()) else {
            let location = folder.display().to_string();
            let reason = format!("expected {split}-images-idx3-ubyte or the same with .gz");
            return Err(Error::Empty { location, reason });
        };
        Self::open(path, None)
    }

    /// Height and width of every image, in pixels.
    #[must_use]
    pub fn image_size(&self) -> (u32, u32) {
        (self.height, self.width)
    }

    fn image_len(&self) -> usize {
        self.height as usize * self.width as usize
    }
}

/// Whether a folder holds the IDX files of some split.
pub(crate) fn is_idx_folder(folder: &Path) -> bool {
    ["train", "t10k"].iter().any(|split| split_files(folder, split).iter().any(|p| p.is_file()))
}

fn split_files(folder: &Path, split: &str) -> [PathBuf; 2] {
    ["gz", ""].map(|extension| {
        folder.join(format!("{split}-images-idx3-ubyte")).with_extension(extension)
    })
}

fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let plain = name.replace("images-idx3", "labels-idx1");
    if plain == name {
        return None;
    }
    let stem = plain.strip_suffix(".gz").unwrap_or(&plain);
    let candidates = [plain.clone(), stem.to_owned(), format!("{stem}.gz")];
    candidates.iter().map(|name| images.with_file_name(name)).find(|path| path.is_file())
}

/// Reads an IDX file of bytes with the given number of dimensions.
fn read_idx(path: &Path, dimensions: usize) -> Result<(Vec<u32>, Vec<u8>)> {
    let (file, length) = open_regular(path)?;
    parse_idx(path, file, length, dimensions)
}

/// As [`read_idx`], from any bytes; `path` is for messages only.
pub(crate) fn parse_idx<'a>(
    path: &Path,
    mut file: impl Read + Seek + 'a,
    length: u64,
    dimensions: usize,
) -> Result<(Vec<u32>, Vec<u8>)> {
    let fail = |offset, reason| Error::Format { path: path.to_owned(), offset, reason };
    let mut magic = [0; 2];
    if length < 2 {
        return Err(fail(0, format!("expected an IDX file, found {length} bytes")));
    }
    file.read_exact(&mut magic).map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("read", path))?;
    let zipped = magic == [0x1f, 0x8b];
    let mut reader: Box<dyn Read + 'a> = if zipped {
        Box::new(MultiGzDecoder::new(std::io::BufReader::new(file)))
    } else {
        Box::new(file)
    };
    let mut header = vec![0; 4 + 4 * dimensions];
    reader.read_exact(&mut header).map_err(|error| fail(0, format!("header: {error}")))?;
    let expected = [0, 0, 8, dimensions as u8];
    if header[..4] != expected {
        let found = &header[..4];
        return Err(fail(0, format!("expected the IDX magic {expected:?}, found {found:?}")));
    }
    let sizes: Vec<u32> = header[4..]
        .chunks_exact(4)
        .map(|bytes| bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
        .collect();
    let total = sizes.iter().try_fold(1u64, |total, &size| total.checked_mul(u64::from(size)));
    let total = total.filter(|&total| total <= MAX_BYTES);
    let sane = sizes[1..].iter().all(|side| (1..=MAX_SIDE).contains(side));
    let (Some(total), true) = (total, sane) else {
        return Err(fail(4, format!("sizes {sizes:?} are beyond what is accepted")));
    };
    // Grown while reading, so that a header cannot reserve memory for bytes that do not follow.
    let mut values = Vec::new();
    let read = reader.by_ref().take(total).read_to_end(&mut values);
    let offset = (header.len() + values.len()) as u64;
    read.map_err(|error| fail(offset, error.to_string()))?;
    if (values.len() as u64) < total {
        let reason = format!("sizes {sizes:?} need {total} bytes, found {}", values.len());
        return Err(fail(offset, reason));
    }
    // Also makes the gzip reader verify its checksum, which follows the last byte.
    let mut surplus = [0];
    match reader.read(&mut surplus) {
        Ok(0) => Ok((sizes, values)),
        Ok(_) => Err(fail(offset, format!("expected the end after {total} bytes, found more"))),
        Err(error) => Err(fail(offset, error.to_string())),
    }
}

impl Source for IdxSource {
    fn len(&self) -> u64 {
        (self.pixels.len() / self.image_len()) as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let size = self.image_len();
        let pixels = usize::try_from(index)
            .ok()
            .and_then(|index| self.pixels.get(index.checked_mul(size)?..)?.get(..size));
        let pixels = pixels.ok_or_else(|| self.out_of_range(index))?;
        let image = Image::new(self.width, self.height, 1, pixels.to_vec()).ok_or_else(|| {
            self.defect(index, DefectKind::Corrupt, "an image without pixels".into())
        })?;
        Ok(Sample { payload: Payload::Pixels(image), label: self.label(index) })
    }

    fn key(&self, index: u64) -> String {
        format!("{}-{index:06}", self.stem)
    }

    fn location(&self, index: u64) -> String {
        format!("{}, image {index}", self.images.display())
    }

    fn label(&self, index: u64) -> Option<u32> {
        let labels = self.labels.as_ref()?;
        labels.get(usize::try_from(index).ok()?).map(|&label| u32::from(label))
    }

    fn num_classes(&self) -> Option<u32> {
        self.num_classes
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
