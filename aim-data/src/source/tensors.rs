//! [`TensorSource`]: normalised images from a safetensors file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Defect, DefectKind, Error, Result};
use crate::source::{
    Fingerprint, Payload, Sample, SampleFormat, Source, open_regular, read_exact_at, unreadable,
};

/// Longest safetensors header accepted, in bytes (the format's own limit).
const MAX_HEADER: u64 = 100_000_000;
/// Longest side of an image, in pixels.
const MAX_SIDE: usize = 1 << 14;

/// Images as an `f32` tensor `[images, 3, height, width]`, normalised already, for comparing with
/// other programs value by value: neither decoded nor cropped nor normalised again.
///
/// A tensor `labels` (`i64` or `i32`, `[images]`) in the same file gives the labels. Images are
/// read one at a time as they are asked for; the file is never in memory as a whole.
#[derive(Debug)]
pub struct TensorSource {
    path: PathBuf,
    name: String,
    file: File,
    /// Offset of the first image, in bytes.
    start: u64,
    count: u64,
    height: usize,
    width: usize,
    labels: Option<Vec<u32>>,
    fingerprint: String,
}

impl TensorSource {
    /// Opens a file. Without `name`, the tensor `images` is taken, or the only one of four
    /// dimensions.
    ///
    /// # Errors
    /// A file that is no safetensors file, is cut short, or has no such tensor (the message lists
    /// what there is).
    pub fn open(path: impl Into<PathBuf>, name: Option<&str>) -> Result<Self> {
        let path = path.into();
        let (file, length) = open_regular(&path)?;
        let (metadata, start) = read_header(&path, &file, length)?;
        let tensors = metadata.tensors();
        let fail = |reason| Error::Format { path: path.clone(), offset: 8, reason };
        let described = || {
            let mut all: Vec<_> = tensors
                .iter()
                .map(|(name, info)| format!("{name} {:?} {:?}", info.dtype, info.shape))
                .collect();
            all.sort();
            all.truncate(20);
            all.join(", ")
        };
        let four: Vec<&String> = tensors
            .iter()
            .filter(|(_, info)| info.shape.len() == 4)
            .map(|(name, _)| name)
            .collect();
        let name = match (name, &four[..]) {
            (Some(name), _) => name.to_owned(),
            (None, [only]) => (*only).clone(),
            (None, _) => "images".to_owned(),
        };
        let Some(info) = tensors.get(&name) else {
            return Err(fail(format!("no tensor `{name}`; the file holds: {}", described())));
        };
        let expected = "expected f32 [images, 3, height, width]";
        let (count, height, width) = match (info.dtype, &info.shape[..]) {
            (Dtype::F32, &[count, 3, height, width])
                if (1..=MAX_SIDE).contains(&height) && (1..=MAX_SIDE).contains(&width) =>
            {
                (count as u64, height, width)
            }
            (dtype, shape) => {
                return Err(fail(format!(
                    "tensor `{name}`: {expected}, found {dtype:?} {shape:?}"
                )));
            }
        };
        if count == 0 {
            let location = format!("{}#{name}", path.display());
            return Err(Error::Empty { location, reason: "its first dimension is 0".into() });
        }
        let labels = match tensors.get("labels") {
            Some(info) => Some(read_labels(&path, &file, start, info, count)?),
            None => None,
        };
        let mut fingerprint = Fingerprint::new("tensors");
        fingerprint.add(name.as_bytes(), count);
        fingerprint.add(format!("{height}x{width}").as_bytes(), length);
        Ok(Self {
            start: start + info.data_offsets.0 as u64,
            fingerprint: fingerprint.finish(),
            path: path.clone(),
            name,
            file,
            count,
            height,
            width,
            labels,
        })
    }
}

/// Reads and validates the header; returns it with the offset of the data.
fn read_header(path: &Path, file: &File, length: u64) -> Result<(Metadata, u64)> {
    let fail = |offset, reason| Error::Format { path: path.to_owned(), offset, reason };
    if length < 8 {
        return Err(fail(0, format!("expected a safetensors file, found {length} bytes")));
    }
    let mut size = [0; 8];
    read_exact_at(file, &mut size, 0).map_err(Error::io("read", path))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > length - 8 {
        let reason = format!("not a safetensors file: a header of {size} bytes in {length} bytes");
        return Err(fail(0, reason));
    }
    let mut header = Vec::with_capacity(size as usize);
    file.try_clone()
        .and_then(|mut file| {
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(8))?;
            file.take(size).read_to_end(&mut header)
        })
        .map_err(Error::io("read", path))?;
    let metadata = parse_header(&header).map_err(|reason| fail(8, reason))?;
    let start = 8 + size;
    let expected = start.saturating_add(metadata.data_len() as u64);
    if expected != length {
        let reason = format!("the header describes {expected} bytes, the file has {length}");
        return Err(fail(start, reason));
    }
    Ok((metadata, start))
}

/// A header's tensors. Deserialising also checks that offsets are contiguous and agree with type
/// and shape.
pub(crate) fn parse_header(header: &[u8]) -> Result<Metadata, String> {
    serde_json::from_slice(header).map_err(|error| error.to_string())
}

fn read_labels(
    path: &Path,
    file: &File,
    start: u64,
    info: &TensorInfo,
    count: u64,
) -> Result<Vec<u32>> {
    let offset = start + info.data_offsets.0 as u64;
    let fail = |reason| Error::Format { path: path.to_owned(), offset, reason };
    let width = match info.dtype {
        Dtype::I64 => 8,
        Dtype::I32 => 4,
        _ => 0,
    };
    if width == 0 || info.shape[..] != [count as usize] {
        let (dtype, shape) = (info.dtype, &info.shape);
        let reason = format!("tensor `labels`: expected i64 [{count}], found {dtype:?} {shape:?}");
        return Err(fail(reason));
    }
    // The header was checked against the file's length, so this is no larger than the file.
    let mut bytes = vec![0; count as usize * width];
    read_exact_at(file, &mut bytes, offset).map_err(Error::io("read", path))?;
    let parse = |bytes: &[u8]| {
        let mut wide = [if bytes.last()? & 0x80 == 0 { 0 } else { 0xff }; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        u32::try_from(i64::from_le_bytes(wide)).ok().filter(|&label| label != u32::MAX)
    };
    let labels: Option<Vec<u32>> = bytes.chunks_exact(width).map(parse).collect();
    labels.ok_or_else(|| fail("tensor `labels`: a negative or too large label".into()))
}

impl Source for TensorSource {
    fn len(&self) -> u64 {
        self.count
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Tensor { height: self.height as u32, width: self.width as u32 }
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        if index >= self.count {
            return Err(self.out_of_range(index));
        }
        let mut values = vec![0f32; 3 * self.height * self.width];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        let offset = self.start + index * bytes.len() as u64;
        read_exact_at(&self.file, bytes, offset).map_err(|error| {
            let (kind, reason) = unreadable(&error);
            self.defect(index, kind, reason)
        })?;
        if cfg!(target_endian = "big") {
            for value in &mut values {
                *value = f32::from_bits(value.to_bits().swap_bytes());
            }
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let reason = format!("value {at} of the image is {}", values[at]);
            return Err(self.defect(index, DefectKind::Corrupt, reason));
        }
        Ok(Sample { payload: Payload::Tensor(values), label: self.label(index) })
    }

    fn key(&self, index: u64) -> String {
        format!("{}-{index:06}", self.name)
    }

    fn location(&self, index: u64) -> String {
        format!("{}#{}, image {index}", self.path.display(), self.name)
    }

    fn label(&self, index: u64) -> Option<u32> {
        self.labels.as_ref()?.get(usize::try_from(index).ok()?).copied()
    }

    fn num_classes(&self) -> Option<u32> {
        self.labels.as_ref()?.iter().max().map(|&label| label + 1)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
