//! The columns of an MDS sample.

use std::ops::Range;

use super::ReadAt;
use crate::decode::DecodeLimits;
use crate::error::DefectKind;
use crate::image::Image;
use crate::source::{Field, Fields, Payload, check_encoded_size};

/// Column names taken for a label, in order of preference.
const LABELS: [&str; 5] = ["label", "class", "cls", "y", "target"];
/// Column names taken for a caption.
const TEXTS: [&str; 3] = ["caption", "text", "txt"];
/// Column names taken for metadata.
const METADATA: [&str; 2] = ["json", "metadata"];
/// Column names taken for an image when several could be one.
const IMAGES: [&str; 4] = ["image", "img", "x", "jpg"];

/// Where each column of one sample lies in its bytes.
pub(crate) type Slots = Vec<Range<usize>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) encoding: Encoding,
    /// Bytes of a value; none when they vary.
    pub(crate) size: Option<u32>,
}

/// How a column's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// An image file: `jpeg`, `png`, `bytes`.
    File,
    /// `pil`: width, height and the length of the mode's name as `u32`, the name, the pixels.
    Pil,
    /// A signed integer of so many bytes.
    Signed(u8),
    /// An unsigned integer of so many bytes.
    Unsigned(u8),
    /// `str_int`: decimal digits.
    Digits,
    /// `str`.
    Text,
    /// `json`.
    Json,
    /// Anything else: passed over.
    Other,
}

impl Encoding {
    pub(crate) fn parse(name: &str) -> Self {
        match name.split(':').next().unwrap_or_default() {
            "jpeg" | "png" | "bytes" => Self::File,
            "pil" => Self::Pil,
            "int" | "int64" => Self::Signed(8),
            "int32" => Self::Signed(4),
            "int16" => Self::Signed(2),
            "int8" => Self::Signed(1),
            "uint64" => Self::Unsigned(8),
            "uint32" => Self::Unsigned(4),
            "uint16" => Self::Unsigned(2),
            "uint8" => Self::Unsigned(1),
            "str_int" => Self::Digits,
            "str" => Self::Text,
            "json" => Self::Json,
            _ => Self::Other,
        }
    }

    pub(crate) fn fixed_size(self) -> Option<u32> {
        match self {
            Self::Signed(bytes) | Self::Unsigned(bytes) => Some(u32::from(bytes)),
            _ => None,
        }
    }

    fn is_integer(self) -> bool {
        matches!(self, Self::Signed(_) | Self::Unsigned(_) | Self::Digits)
    }
}

/// Which column is what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) columns: Vec<Column>,
    pub(crate) image: usize,
    pub(crate) label: Option<usize>,
    pub(crate) text: Option<usize>,
    pub(crate) metadata: Option<usize>,
}

impl Layout {
    pub(crate) fn new(columns: &[Column], fields: &Fields) -> Result<Self, String> {
        let all = || {
            let names: Vec<String> =
                columns.iter().map(|c| format!("{} ({:?})", c.name, c.encoding)).collect();
            format!("the columns are {}", names.join(", "))
        };
        let find = |name: &str| columns.iter().position(|column| column.name == name);
        let image = if fields.image.is_empty() {
            let images =
                |column: &Column| matches!(column.encoding, Encoding::File | Encoding::Pil);
            let candidates: Vec<usize> =
                (0..columns.len()).filter(|&at| images(&columns[at])).collect();
            let usual =
                IMAGES.iter().find_map(|name| find(name).filter(|at| candidates.contains(at)));
            match (usual, candidates.as_slice()) {
                (Some(at), _) | (None, &[at]) => at,
                (None, []) => return Err(format!("no column holds images: {}", all())),
                _ => return Err(format!("choose the image with `?image=NAME`: {}", all())),
            }
        } else {
            let found = fields.image.iter().find_map(|name| find(name));
            found.ok_or_else(|| format!("no column {}: {}", fields.image.join(", "), all()))?
        };
        fields.label.must_be_a_column()?;
        let pick = |field: &Field, usual: &[&str], fits: fn(Encoding) -> bool| {
            let names = field.names(usual);
            let at =
                names.iter().find_map(|name| find(name).filter(|&at| fits(columns[at].encoding)));
            match (field, at) {
                (Field::Named(name), None) => Err(format!("no usable column `{name}`: {}", all())),
                (_, at) => Ok(at),
            }
        };
        let label = pick(&fields.label, &LABELS, Encoding::is_integer)?;
        let text = pick(&fields.text, &TEXTS, |encoding| encoding == Encoding::Text)?;
        let metadata = pick(&fields.metadata, &METADATA, |encoding| encoding == Encoding::Json)?;
        Ok(Self { columns: columns.to_vec(), image, label, text, metadata })
    }

    /// Bytes of the lengths that a sample begins with.
    fn head(&self) -> usize {
        4 * self.columns.iter().filter(|column| column.size.is_none()).count()
    }

    /// Where the columns lie, given the lengths at a sample's start and its size.
    fn ranges(&self, head: &[u8], size: usize) -> Result<Slots, String> {
        let mut lengths = head.chunks_exact(4);
        let mut at = self.head();
        let mut slots = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let length = match column.size {
                Some(size) => Some(size),
                None => {
                    lengths.next().and_then(|word| Some(u32::from_le_bytes(word.try_into().ok()?)))
                }
            };
            let end = length.and_then(|length| at.checked_add(length as usize));
            let end = end.filter(|&end| end <= size).ok_or_else(|| {
                format!("column `{}` ends past the sample's {size} bytes", column.name)
            })?;
            slots.push(at..end);
            at = end;
        }
        if at != size {
            return Err(format!("its columns have {at} bytes, the sample {size}"));
        }
        Ok(slots)
    }

    /// Where the columns lie in a sample.
    pub(crate) fn slots(&self, sample: &[u8]) -> Result<Slots, String> {
        let head = sample.get(..self.head());
        let head =
            head.ok_or_else(|| format!("a sample of {} bytes is too short", sample.len()))?;
        self.ranges(head, sample.len())
    }

    /// The label of the sample at bytes `start` to `end`, without reading its image.
    pub(crate) fn read_label(
        &self,
        shard: &dyn ReadAt,
        start: u32,
        end: u32,
    ) -> Result<Option<u32>, String> {
        let Some(column) = self.label else {
            return Ok(None);
        };
        let size = (end - start) as usize;
        let mut head = vec![0; self.head()];
        if head.len() > size {
            return Err(format!("a sample of {size} bytes is too short"));
        }
        shard.fill(&mut head, u64::from(start))?;
        let slots = self.ranges(&head, size)?;
        let range = slots.get(column).cloned().unwrap_or_default();
        let mut value = vec![0; range.len().min(64)];
        shard.fill(&mut value, u64::from(start) + range.start as u64)?;
        self.label_of(&value, column).map(Some)
    }

    /// The label among a sample's values.
    pub(crate) fn label_value(
        &self,
        sample: &[u8],
        slots: &Slots,
        column: usize,
    ) -> Result<u32, String> {
        let value = slots.get(column).and_then(|range| sample.get(range.clone()));
        self.label_of(value.unwrap_or_default(), column)
    }

    fn label_of(&self, value: &[u8], column: usize) -> Result<u32, String> {
        let found = integer(self.columns[column].encoding, value);
        // The largest u32 is kept free so that label + 1 never overflows.
        let label = found.and_then(|value| u32::try_from(value).ok()).filter(|&v| v != u32::MAX);
        label.ok_or_else(|| match found {
            Some(value) => format!("label {value}, expected a class number"),
            None => format!("label `{}`, expected a class number", value.escape_ascii()),
        })
    }
}

/// An integer column's value.
pub(crate) fn integer(encoding: Encoding, value: &[u8]) -> Option<i128> {
    let unsigned = || value.iter().rev().fold(0i128, |sum, &byte| sum << 8 | i128::from(byte));
    match encoding {
        Encoding::Digits => std::str::from_utf8(value).ok()?.trim().parse().ok(),
        Encoding::Unsigned(bytes) if value.len() == usize::from(bytes) => Some(unsigned()),
        Encoding::Signed(bytes) if value.len() == usize::from(bytes) => {
            let negative = value.last().is_some_and(|&byte| byte >= 0x80);
            Some(unsigned() - if negative { 1i128 << (8 * u32::from(bytes)) } else { 0 })
        }
        _ => None,
    }
}

/// The image column's value.
pub(crate) fn image_payload(
    encoding: Encoding,
    value: Vec<u8>,
    limits: &DecodeLimits,
) -> Result<Payload, (DefectKind, String)> {
    check_encoded_size(value.len() as u64, limits)?;
    if encoding == Encoding::File {
        return Ok(Payload::Encoded(value));
    }
    pil(&value, limits).map(Payload::Pixels)
}

/// A `pil` value: raw pixels in one of Pillow's modes.
fn pil(value: &[u8], limits: &DecodeLimits) -> Result<Image, (DefectKind, String)> {
    let corrupt = |reason: String| (DefectKind::Corrupt, reason);
    let word = |at: usize| {
        let bytes = value.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (Some(width), Some(height), Some(length)) = (word(0), word(4), word(8)) else {
        return Err((DefectKind::Truncated, "the header is cut short".into()));
    };
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        let most = limits.max_pixels;
        let reason = format!("{width} x {height} pixels, at most {most} pixels are accepted");
        return Err((DefectKind::TooLarge, reason));
    }
    let mode = value.get(12..).and_then(|rest| rest.get(..length as usize)).unwrap_or_default();
    let raw = value.get(12 + mode.len()..).unwrap_or_default();
    let channels = match mode {
        b"L" => 1,
        b"RGB" => 3,
        other => {
            let reason = format!("mode `{}`, expected L or RGB", other.escape_ascii());
            return Err((DefectKind::UnknownFormat, reason));
        }
    };
    Image::new(width, height, channels, raw.to_vec()).ok_or_else(|| {
        corrupt(format!("{width} x {height} pixels of {channels} bytes, found {} bytes", raw.len()))
    })
}
