//! `index.json`: the shards of a folder and their columns.

use std::io::Read;
use std::path::{Component, Path};

use super::sample::{Column, Encoding};
use crate::error::{Error, Result};
use crate::source::open_regular;

/// Largest shard that is decompressed, in bytes; the writer's default is 64 MiB.
const MAX_DECOMPRESSED: u64 = 2 << 30;
/// Most columns of a sample.
const MAX_COLUMNS: usize = 256;

/// One shard as the index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardEntry {
    /// Uncompressed file, relative to the index.
    pub(crate) raw_name: String,
    /// Its size in bytes.
    pub(crate) raw_bytes: u64,
    /// Compressed file and how it is compressed.
    pub(crate) zip: Option<(String, Compression)>,
    pub(crate) samples: u32,
    /// In the order in which samples store them.
    pub(crate) columns: Vec<Column>,
}

/// Compression of a whole shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Zstd,
    Gzip,
}

#[derive(serde::Deserialize)]
struct IndexFile {
    version: u64,
    shards: Vec<ShardJson>,
}

#[derive(serde::Deserialize)]
struct ShardJson {
    format: String,
    column_names: Vec<String>,
    column_encodings: Vec<String>,
    column_sizes: Vec<Option<u64>>,
    #[serde(default)]
    compression: Option<String>,
    raw_data: FileJson,
    #[serde(default)]
    zip_data: Option<FileJson>,
    samples: u32,
}

#[derive(serde::Deserialize)]
struct FileJson {
    basename: String,
    bytes: u64,
}

/// Reads an index.
///
/// # Errors
/// A text saying which shard is wrong, and how.
pub(crate) fn parse_index(text: &[u8]) -> Result<Vec<ShardEntry>, String> {
    let index: IndexFile = serde_json::from_slice(text)
        .map_err(|error| format!("expected the index of an MDS folder: {error}"))?;
    if index.version != 2 {
        return Err(format!("expected version 2, found {}", index.version));
    }
    let entries = index.shards.into_iter().enumerate();
    entries
        .map(|(at, shard)| shard.check().map_err(|reason| format!("shard {at}: {reason}")))
        .collect()
}

impl ShardJson {
    fn check(self) -> Result<ShardEntry, String> {
        if self.format != "mds" {
            return Err(format!("expected the format mds, found `{}`", self.format.escape_debug()));
        }
        let count = self.column_names.len();
        if count > MAX_COLUMNS
            || self.column_encodings.len() != count
            || self.column_sizes.len() != count
        {
            return Err(format!(
                "{count} column names, {} encodings and {} sizes; expected as many of each, at \
                 most {MAX_COLUMNS}",
                self.column_encodings.len(),
                self.column_sizes.len()
            ));
        }
        let mut columns = Vec::with_capacity(count);
        for ((name, encoding), size) in
            self.column_names.into_iter().zip(&self.column_encodings).zip(self.column_sizes)
        {
            let encoding = Encoding::parse(encoding);
            let size = match (size.map(u32::try_from).transpose(), encoding.fixed_size()) {
                (Err(_), _) => return Err(format!("column `{name}` has more bytes than fit")),
                (Ok(Some(found)), Some(fixed)) if found != fixed => {
                    return Err(format!("column `{name}`: {found} bytes, expected {fixed}"));
                }
                (Ok(size), _) => size,
            };
            columns.push(Column { name, encoding, size });
        }
        let zip = match (self.zip_data, self.compression) {
            (Some(file), Some(how)) => {
                Some((plain_path(file.basename)?, Compression::parse(&how)?))
            }
            _ => None,
        };
        Ok(ShardEntry {
            raw_name: plain_path(self.raw_data.basename)?,
            raw_bytes: self.raw_data.bytes,
            zip,
            samples: self.samples,
            columns,
        })
    }
}

impl Compression {
    /// `zstd`, `zstd:7`, `gz`, `gz:9`.
    fn parse(text: &str) -> Result<Self, String> {
        match text.split(':').next().unwrap_or_default() {
            "zstd" => Ok(Self::Zstd),
            "gz" => Ok(Self::Gzip),
            other => Err(format!(
                "compression `{}` is not supported, only zstd and gz; write the folder again, or \
                 decompress its shards beside the compressed ones",
                other.escape_debug()
            )),
        }
    }
}

/// A file name that stays in the folder of the index.
fn plain_path(name: String) -> Result<String, String> {
    let normal = |part: &str| !matches!(part, "" | "." | "..");
    let plain = name.split('/').all(normal) && !name.contains(['\\', '\0']);
    // Also refuses what only this system takes for an absolute path, such as a drive.
    let relative = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !plain || !Path::new(&name).components().all(relative) {
        let shown = name.escape_debug();
        return Err(format!("file name `{shown}`: expected one below the index's folder"));
    }
    Ok(name)
}

/// Decompresses a shard into memory.
pub(super) fn decompress(path: &Path, entry: &ShardEntry) -> Result<Vec<u8>> {
    let fail = |offset: usize, reason: String| Error::Format {
        path: path.to_owned(),
        offset: offset as u64,
        reason,
    };
    let stated = entry.raw_bytes;
    if stated > MAX_DECOMPRESSED {
        let reason = format!(
            "a compressed shard of {stated} bytes when decompressed, at most {MAX_DECOMPRESSED} \
             are accepted"
        );
        return Err(fail(0, reason));
    }
    let (file, _) = open_regular(path)?;
    let file = std::io::BufReader::with_capacity(1 << 16, file);
    // Grown while reading: the index cannot reserve memory for bytes that do not follow.
    let mut bytes = Vec::new();
    let read = match entry.zip.as_ref().map(|(_, how)| *how) {
        Some(Compression::Gzip) => {
            flate2::read::MultiGzDecoder::new(file).take(stated + 1).read_to_end(&mut bytes)
        }
        _ => match ruzstd::decoding::StreamingDecoder::new(file) {
            Ok(decoder) => decoder.take(stated + 1).read_to_end(&mut bytes),
            Err(error) => return Err(fail(0, format!("no zstd data: {error}"))),
        },
    };
    read.map_err(|error| fail(bytes.len(), format!("cannot be decompressed: {error}")))?;
    if bytes.len() as u64 != stated {
        let found = bytes.len();
        let more = if found as u64 > stated { "more" } else { "the end" };
        let reason = format!("the index states {stated} bytes, found {more} after {found}");
        return Err(fail(found, reason));
    }
    Ok(bytes)
}
