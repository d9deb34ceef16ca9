//! From the unfinished file to the finished one: header, labels and keys, and the name.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use aim_data::source::Source;
use aim_tensor::io::npy::{self, Descr};
use aim_tensor::io::safetensors::{self, Dtype};

use super::columns::{Columns, Shape};
use super::journal::{Job, Journal};
use super::{ElementType, Format, Pool, Request, Summary, beside};
use crate::durable;
use crate::error::TrainError;

/// Bytes moved at a time.
const PIECE_BYTES: usize = 4 << 20;

/// Bytes that the header takes at most, whatever the number of rows will be.
pub(super) fn header_room(job: &Job, request: &Request) -> Result<usize, TrainError> {
    Ok(header(job, request, job.images, job.images, true, 0)?.len())
}

/// The header for that many rows, of at least `least` bytes; empty for parquet, which has its at the end.
fn header(
    job: &Job,
    request: &Request,
    rows: u64,
    skipped: u64,
    labels: bool,
    least: usize,
) -> Result<Vec<u8>, TrainError> {
    let count = usize::try_from(rows).map_err(|_| TrainError::Unsupported {
        what: "so many images",
        instead: "use a part of the data",
    })?;
    let mut shape = vec![count];
    shape.extend(job.row_shape());
    match request.format {
        Format::Parquet => Ok(Vec::new()),
        Format::Npy => {
            let descr = if request.dtype == ElementType::Fp16 { Descr::F16 } else { Descr::F32 };
            Ok(npy::header_at_least(descr, &shape, least))
        }
        Format::Safetensors => {
            let dtype = match request.dtype {
                ElementType::Fp32 => Dtype::F32,
                ElementType::Fp16 => Dtype::F16,
                ElementType::Bf16 => Dtype::BF16,
            };
            let mut tensors: Vec<(&str, Dtype, &[usize])> =
                job.columns.iter().map(|name| (name.as_str(), dtype, &shape[..])).collect();
            let rows = [count];
            if labels {
                tensors.push(("labels", Dtype::I64, &rows));
            }
            tensors.push(("indices", Dtype::I64, &rows));
            Ok(safetensors::header(&tensors, &metadata(job, skipped)?, least)?)
        }
    }
}

/// The strings of a safetensors file. Nothing of where it lies: the same job gives the same bits anywhere.
fn metadata(job: &Job, skipped: u64) -> Result<BTreeMap<String, String>, TrainError> {
    let layers =
        serde_json::to_string(&job.layers).map_err(|_| TrainError::Internal("layers are JSON"))?;
    let pool = if job.pool == Pool::Mean { "mean" } else { "none" };
    Ok(BTreeMap::from([
        ("layers".into(), layers),
        ("pool".into(), pool.into()),
        ("skipped".into(), skipped.to_string()),
        ("weights".into(), job.weights().into()),
    ]))
}

fn keys_path(request: &Request) -> PathBuf {
    beside(&request.out, ".keys.txt")
}

fn labels_path(request: &Request) -> PathBuf {
    beside(&request.out, ".labels.npy")
}

fn skipped_path(request: &Request) -> PathBuf {
    beside(&request.out, ".skipped.jsonl")
}

/// What a finished file holds.
pub(super) fn summary(job: &Job, request: &Request, journal: &Journal) -> Summary {
    let mut shape = vec![journal.rows as usize];
    shape.extend(job.row_shape());
    let others: &[PathBuf] = match request.format {
        Format::Safetensors => &[keys_path(request)],
        Format::Npy => &[keys_path(request), labels_path(request)],
        Format::Parquet => &[],
    };
    let mut files = vec![request.out.clone()];
    files.extend(others.iter().chain([&skipped_path(request)]).filter(|p| p.is_file()).cloned());
    Summary {
        images: journal.rows,
        skipped: journal.skipped_count(),
        shape,
        columns: job.columns.clone(),
        files,
    }
}

/// Everything after the last image. Interrupted anywhere, it can be done again.
pub(super) fn finish(
    job: &Job,
    request: &Request,
    source: &dyn Source,
    journal: Journal,
    columns: Columns,
) -> Result<Summary, TrainError> {
    write_skipped(request, &journal)?;
    let labelled = source.num_classes().is_some();
    let rows = || Indices { next: 0, end: journal.next, skipped: journal.skipped.iter() };
    if request.format != Format::Parquet {
        durable::replace_with(&keys_path(request), |out| {
            rows().try_for_each(|index| writeln!(out, "{}", one_line(&source.key(index))))
        })?;
    }
    let label = |index: u64| source.label(index).map_or(-1, i64::from);
    match request.format {
        Format::Parquet => parquet(job, request, source, &journal, columns, &mut rows())?,
        Format::Npy => {
            let labels = labels_path(request);
            if labelled {
                durable::replace_with(&labels, |out| {
                    out.write_all(&npy::header(Descr::I64, &[journal.rows as usize]))?;
                    rows().try_for_each(|index| out.write_all(&label(index).to_le_bytes()))
                })?;
            } else {
                durable::remove_file(&labels)?;
            }
            settle(job, request, &journal, columns, labelled, |_| Ok(()))?;
        }
        Format::Safetensors => settle(job, request, &journal, columns, labelled, |out| {
            if labelled {
                rows().try_for_each(|index| out.write_all(&label(index).to_le_bytes()))?;
            }
            rows().try_for_each(|index| out.write_all(&(index as i64).to_le_bytes()))
        })?,
    }
    let summary = summary(job, request, &journal);
    journal.remove()?;
    Ok(summary)
}

#[cfg(feature = "parquet")]
use super::parquet::finish as parquet;

/// Refused before anything is computed.
#[cfg(not(feature = "parquet"))]
fn parquet(
    _: &Job,
    _: &Request,
    _: &dyn Source,
    _: &Journal,
    _: Columns,
    _: &mut dyn Iterator<Item = u64>,
) -> Result<(), TrainError> {
    Err(TrainError::Internal("parquet without the feature"))
}

/// Indices of the images that have rows.
struct Indices<'a> {
    next: u64,
    end: u64,
    skipped: std::slice::Iter<'a, u64>,
}

impl Iterator for Indices<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.skipped.as_slice().first() == Some(&self.next) {
            self.skipped.next();
            self.next += 1;
        }
        let index = self.next;
        (index < self.end).then(|| {
            self.next += 1;
            index
        })
    }
}

/// A key as one line: a line break in a file name must not move the keys behind it.
fn one_line(key: &str) -> std::borrow::Cow<'_, str> {
    if key.contains(['\n', '\r']) {
        key.replace('\n', "\\n").replace('\r', "\\r").into()
    } else {
        key.into()
    }
}

/// The list of images without a row; none when all have one.
fn write_skipped(request: &Request, journal: &Journal) -> Result<(), TrainError> {
    let path = skipped_path(request);
    if journal.skipped.is_empty() {
        return durable::remove_file(&path);
    }
    durable::replace_with(&path, |out| {
        journal.for_each_defect(|defect| {
            serde_json::to_writer(&mut *out, defect)?;
            out.write_all(b"\n")
        })
    })
}

/// Puts header and `tail` to the columns and gives the file its name. Where columns have to move together, since some
/// images have no row, they are copied to a new file.
fn settle(
    job: &Job,
    request: &Request,
    journal: &Journal,
    columns: Columns,
    labelled: bool,
    tail: impl Fn(&mut dyn io::Write) -> io::Result<()>,
) -> Result<(), TrainError> {
    let shape = columns.shape();
    let skipped = journal.skipped_count();
    let room = shape.data_at as usize;
    let header = header(job, request, journal.rows, skipped, labelled, room)?;
    if header.len() != room {
        return Err(TrainError::Internal("the header has the room that was left for it"));
    }
    if shape.columns == 1 || journal.rows == shape.max_rows {
        let Columns { mut file, path, .. } = columns;
        write_tail(&mut file, &path, shape.end(journal.rows), &tail)?;
        durable::write_at(&mut file, 0, &header, &path)?;
        durable::sync_file(&file, &path)?;
        return give_name(&path, &request.out);
    }
    let path = beside(&request.out, ".partial.packed");
    let created = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
    let mut file = created.map_err(|source| TrainError::io("create", &path, source))?;
    durable::write_at(&mut file, 0, &header, &path)?;
    let partial = columns.path.clone();
    pack(columns, shape, journal.rows, &mut file, &path)?;
    write_tail(&mut file, &path, shape.end(journal.rows), &tail)?;
    durable::sync_file(&file, &path)?;
    give_name(&path, &request.out)?;
    durable::remove_file(&partial)
}

/// Copies the columns without the room that they did not need.
fn pack(
    mut columns: Columns,
    shape: Shape,
    rows: u64,
    file: &mut File,
    path: &Path,
) -> Result<(), TrainError> {
    let step = (PIECE_BYTES as u64 / shape.row_bytes.max(1)).max(1);
    let mut piece = Vec::new();
    for column in 0..shape.columns {
        for row in (0..rows).step_by(step as usize) {
            let count = step.min(rows - row);
            piece.resize((count * shape.row_bytes) as usize, 0);
            columns.read(column, row, &mut piece)?;
            durable::write_at(file, shape.at(rows, column, row), &piece, path)?;
        }
    }
    Ok(())
}

/// Ends the file at `at` and what `tail` writes.
fn write_tail(
    file: &mut File,
    path: &Path,
    at: u64,
    tail: &impl Fn(&mut dyn io::Write) -> io::Result<()>,
) -> Result<(), TrainError> {
    use std::io::Seek as _;
    let written = file.set_len(at).and_then(|()| {
        file.seek(io::SeekFrom::Start(at))?;
        let mut out = BufWriter::with_capacity(1 << 20, &mut *file);
        tail(&mut out)?;
        out.flush()
    });
    written.map_err(|source| TrainError::io("write", path, source))
}

/// Gives a synced file its final name.
pub(super) fn give_name(path: &Path, out: &Path) -> Result<(), TrainError> {
    durable::rename(path, out)?;
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => durable::sync_dir(parent),
        _ => durable::sync_dir(Path::new(".")),
    }
}
