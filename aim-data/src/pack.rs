//! `data pack`: writing a source as tar shards.

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use tempfile::NamedTempFile;

use crate::decode::ImageFormat;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::image::Image;
use crate::scan::{OnProgress, Progress};
use crate::source::{Payload, Sample, SampleFormat, Source};

/// How to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackOptions {
    /// Samples in a shard.
    pub samples_per_shard: u64,
    /// Start of the shards' names: `PREFIX-000000.tar`.
    pub prefix: String,
}

impl Default for PackOptions {
    /// 10,000 samples in `train-000000.tar`, ...
    fn default() -> Self {
        Self { samples_per_shard: 10_000, prefix: "train".into() }
    }
}

/// What [`pack`] wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PackReport {
    /// Samples written.
    pub samples: u64,
    /// Bytes in all shards.
    pub bytes: u64,
    /// The shards, in order.
    pub shards: Vec<PathBuf>,
    /// Samples that were left out because they are no images.
    pub skipped: Vec<Defect>,
}

/// Writes every sample of a source into tar shards that [`WebDataset`](crate::source::WebDataset)
/// and the `webdataset` project read: `KEY.jpg` (`.png`, `.webp`, …) with the stored bytes unchanged,
/// raw pixels as `KEY.png`, the label as `KEY.cls`, text as `KEY.txt` and metadata as `KEY.json`.
///
/// The same source gives the same bytes. A shard has its name only when it is complete and on
/// disk: each is written to a temporary file in the same folder, synchronised and renamed.
///
/// # Errors
/// [`Error::Config`] for unusable options, shards of the same prefix that exist already, or a
/// source of tensors; [`Error::Io`] when writing fails; [`Error::Cancelled`] when `progress` says
/// so (complete shards stay).
pub fn pack(
    source: &dyn Source,
    out_dir: &Path,
    options: &PackOptions,
    progress: OnProgress<'_>,
) -> Result<PackReport> {
    let PackOptions { samples_per_shard, prefix } = options;
    if *samples_per_shard == 0 {
        return Err(Error::Config("samples per shard: expected at least 1".into()));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if prefix.is_empty() || prefix.starts_with('.') || !prefix.chars().all(plain) {
        return Err(Error::Config(format!(
            "shard prefix `{prefix}`: expected letters, digits, `-`, `_` and inner `.`"
        )));
    }
    if let SampleFormat::Tensor { .. } = source.format() {
        let text = "normalised tensors cannot be packed: shards hold image files";
        return Err(Error::Config(text.into()));
    }
    std::fs::create_dir_all(out_dir).map_err(Error::io("create", out_dir))?;
    refuse_existing(out_dir, prefix)?;
    let mut keys = HashSet::new();
    let mut report = PackReport::default();
    let mut shard: Option<ShardWriter> = None;
    let total = source.len();
    for index in 0..total {
        match read_file(source, index).and_then(|file| Ok((file, beside(source, index)?))) {
            Ok(((extension, bytes, label), beside)) => {
                let key = unique_key(&source.key(index), index, &mut keys);
                let writer = match &mut shard {
                    Some(writer) => writer,
                    None => shard.insert(ShardWriter::create(out_dir)?),
                };
                writer.append(&format!("{key}.{extension}"), &bytes)?;
                if let Some(label) = label {
                    writer.append(&format!("{key}.cls"), label.to_string().as_bytes())?;
                }
                for (extension, text) in beside {
                    writer.append(&format!("{key}.{extension}"), text.as_bytes())?;
                }
                writer.samples += 1;
                report.samples += 1;
            }
            Err(defect) => report.skipped.push(defect),
        }
        let full = shard.as_ref().is_some_and(|writer| writer.samples >= *samples_per_shard);
        if (full || index + 1 == total)
            && let Some(writer) = shard.take()
        {
            let name = format!("{prefix}-{:06}.tar", report.shards.len());
            let path = out_dir.join(name);
            report.bytes += writer.finish(&path)?;
            report.shards.push(path);
        }
        if progress(Progress { done: index + 1, total }).is_break() && index + 1 < total {
            return Err(Error::Cancelled { done: index + 1, total });
        }
    }
    if report.samples == 0 {
        let first = report.skipped.iter().take(5).cloned().collect();
        return Err(Error::NoUsableSample { tried: total, first });
    }
    sync_folder(out_dir)?;
    Ok(report)
}

/// Old shards beside new ones would silently become part of the data set.
fn refuse_existing(out_dir: &Path, prefix: &str) -> Result<()> {
    for entry in std::fs::read_dir(out_dir).map_err(Error::io("list", out_dir))? {
        let name = entry.map_err(Error::io("list", out_dir))?.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
        let number = number.and_then(|rest| rest.strip_suffix(".tar")).unwrap_or_default();
        if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::Config(format!(
                "{} holds {name} already: remove it, or choose another folder or prefix",
                out_dir.display()
            )));
        }
    }
    Ok(())
}

/// A sample's text and metadata, each with its extension.
fn beside(source: &dyn Source, index: u64) -> Result<Vec<(&'static str, String)>, Defect> {
    let metadata = source.metadata(index)?.map(|text| ("json", text));
    let text = source.text(index)?.map(|text| ("txt", text));
    Ok(metadata.into_iter().chain(text).collect())
}

/// A sample as an image file: extension, bytes and label.
fn read_file(
    source: &dyn Source,
    index: u64,
) -> Result<(&'static str, Vec<u8>, Option<u32>), Defect> {
    let Sample { payload, label } = source.read(index, 0)?;
    let fail = |kind, reason: &str| Err(source.defect(index, kind, reason.to_owned()));
    match payload {
        Payload::Encoded(bytes) => match ImageFormat::detect(&bytes) {
            Some(format) => Ok((format.extension(), bytes, label)),
            None => {
                fail(DefectKind::UnknownFormat, &format!("expected {}", crate::decode::FORMATS))
            }
        },
        Payload::Pixels(image) | Payload::Final(image) => match encode_png(&image) {
            Ok(bytes) => Ok(("png", bytes, label)),
            Err(error) => fail(DefectKind::Corrupt, &error.to_string()),
        },
        Payload::Tensor(_) => fail(DefectKind::UnknownFormat, "expected an image, found a tensor"),
    }
}

/// Pixels as a PNG file, gray or RGB. Lossless, and the same bytes for the same pixels.
///
/// # Errors
/// Whatever the encoder refuses; nothing known for a valid [`Image`].
pub fn encode_png(image: &Image) -> Result<Vec<u8>> {
    let color = if image.channels() == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(image.pixels(), image.width(), image.height(), color)
        .map_err(|error| Error::Config(format!("cannot encode a PNG: {error}")))?;
    Ok(bytes)
}

/// A key that is a safe relative path without dots in its last part, where readers would take
/// what follows for an extension, and that has not been used before.
fn unique_key(key: &str, index: u64, used: &mut HashSet<String>) -> String {
    let parts: Vec<String> = key
        .split('/')
        .filter(|part| !matches!(*part, "" | "." | ".."))
        .map(|part| part.replace(|c: char| c == '.' || c == '\\' || c.is_control(), "_"))
        .collect();
    let mut key = if parts.is_empty() { format!("{index:09}") } else { parts.join("/") };
    while !used.insert(key.clone()) {
        key = format!("{key}-{index}");
    }
    key
}

/// A shard being written.
struct ShardWriter {
    builder: tar::Builder<BufWriter<NamedTempFile>>,
    samples: u64,
}

impl ShardWriter {
    fn create(folder: &Path) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".pack-").suffix(".tmp");
        // A temporary file is private by default; a shard is as readable as any new file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(Error::io("create a file in", folder))?;
        Ok(Self { builder: tar::Builder::new(BufWriter::new(file)), samples: 0 })
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.builder.append_data(&mut header, name, bytes).map_err(Error::io("write", name))
    }

    /// Completes the shard under its name; returns its size in bytes.
    fn finish(self, path: &Path) -> Result<u64> {
        let write = || {
            let mut buffer = self.builder.into_inner()?;
            buffer.flush()?;
            let file = buffer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            let size = file.as_file().metadata()?.len();
            file.persist_noclobber(path).map_err(|error| error.error)?;
            Ok(size)
        };
        write().map_err(Error::io("write", path))
    }
}

/// Makes renames durable.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let folder_file = std::fs::File::open(folder).map_err(Error::io("open", folder))?;
        folder_file.sync_all().map_err(Error::io("synchronise", folder))?;
    }
    Ok(())
}
