//! [`ParquetSource`]: images in a column of parquet files, as Hugging Face stores data sets.

mod columns;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};

use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::source::cache::BlockCache;
use crate::source::img2dataset::Rows;
use crate::source::{
    Fields, Fingerprint, Payload, Sample, SampleFormat, Source, check_encoded_size, check_json,
    open_regular, paths,
};
use columns::{Columns, Value, class_names, integers, string_at, value_at};

/// Most bytes of row groups kept in memory.
const CACHE_BYTES: u64 = 512 << 20;
/// Largest image column of a row group, in bytes when decompressed. A row group is read as a whole.
const MAX_GROUP: u64 = 2 << 30;
/// Rows decoded at a time: binary columns hold at most 2 GiB in one array.
const BATCH_ROWS: usize = 256;
/// A label that is none.
const NO_LABEL: u32 = u32::MAX;

/// Images in parquet files: a binary column, or a structure with a binary field `bytes` as Hugging
/// Face's `Image` feature writes it, and an integer column with the class number.
///
/// Columns are told by name and type unless [`Fields`] names them. Class names are taken from the
/// `ClassLabel` feature in the file's metadata. A row group is decoded as a whole and kept in a
/// cache of 512 MiB, or of two row groups where they are larger than half of that. Rows without an image are defects of those samples; negative labels (as in test
/// splits without labels) count as none.
#[derive(Debug)]
pub struct ParquetSource {
    files: Vec<ParquetFile>,
    groups: Vec<Group>,
    /// First sample of each row group.
    starts: Vec<u64>,
    rows: u64,
    /// Empty when the files have no labels.
    labels: Vec<u32>,
    num_classes: Option<u32>,
    class_names: Option<Vec<String>>,
    fingerprint: String,
    notes: Vec<String>,
    limits: DecodeLimits,
    cache: BlockCache<Vec<ArrayRef>>,
}

#[derive(Debug)]
struct ParquetFile {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    columns: Columns,
}

#[derive(Debug)]
struct Group {
    file: u32,
    /// Number within the file.
    number: u32,
    /// First row within the file.
    first_row: u64,
    /// Decompressed bytes of the image column.
    bytes: u64,
}

impl ParquetSource {
    /// Opens the files that a pattern names (a list, braces, wildcards, or a folder of `*.parquet`),
    /// with the choice of columns behind `?`.
    ///
    /// # Errors
    /// [`Error::Spec`] for an unusable pattern, [`Error::Format`] for a file that is no parquet or
    /// has no image column, [`Error::Empty`] without rows.
    pub fn open(pattern: &str, limits: DecodeLimits) -> Result<Self> {
        Self::with_cache(pattern, limits, CACHE_BYTES)
    }

    fn with_cache(pattern: &str, limits: DecodeLimits, cache_bytes: u64) -> Result<Self> {
        let spec_error = |reason| Error::Spec { spec: format!("parquet:{pattern}"), reason };
        let (pattern, fields) = Fields::split(pattern).map_err(spec_error)?;
        let mut this = Self {
            files: Vec::new(),
            groups: Vec::new(),
            starts: Vec::new(),
            rows: 0,
            labels: Vec::new(),
            num_classes: None,
            class_names: None,
            fingerprint: String::new(),
            notes: Vec::new(),
            limits,
            cache: BlockCache::new(cache_bytes),
        };
        let mut fingerprint = Fingerprint::new("parquet");
        for path in paths::find_files("parquet", pattern, "parquet")? {
            this.add_file(path, &fields, &mut fingerprint)?;
        }
        if this.rows == 0 {
            let reason = format!("{} files with 0 rows", this.files.len());
            return Err(Error::Empty { location: pattern.to_owned(), reason });
        }
        let largest = this.labels.iter().filter(|&&label| label != NO_LABEL).max();
        let named = this.class_names.as_ref().map(|names| names.len() as u32);
        this.num_classes = largest.map(|label| label + 1).max(named);
        this.fingerprint = fingerprint.finish();
        this.cache.reserve(this.largest_group());
        Ok(this)
    }

    fn add_file(
        &mut self,
        path: PathBuf,
        fields: &Fields,
        fingerprint: &mut Fingerprint,
    ) -> Result<()> {
        let metadata = load_metadata(&path)?;
        let fail = |reason| Error::Format { path: path.clone(), offset: 0, reason };
        let columns = Columns::find(metadata.schema(), fields).map_err(fail)?;
        if let Some(label) = &columns.label {
            let names = class_names(metadata.schema().metadata(), label);
            if let (Some(old), Some(new)) = (&self.class_names, &names)
                && old != new
            {
                let reason = "its class names differ from those of the files before it";
                return Err(fail(reason.into()));
            }
            self.class_names = self.class_names.take().or(names);
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file = self.files.len() as u32;
        let file_entry = ParquetFile { path: path.clone(), metadata, columns };
        let labelled = file_entry.columns.label.is_some();
        if self.files.first().is_some_and(|first| first.columns.label.is_some() != labelled) {
            return Err(fail("some of the files have a column of labels and some have not".into()));
        }
        let before = self.rows;
        let mut row = 0u64;
        for number in 0..file_entry.metadata.metadata().num_row_groups() {
            let rows = file_entry.metadata.metadata().row_group(number).num_rows();
            let rows = u64::try_from(rows).map_err(|_| fail(format!("{rows} rows")))?;
            let bytes = file_entry.column_bytes(number, &file_entry.columns.image_leaf);
            if bytes > MAX_GROUP {
                return Err(fail(format!(
                    "row group {number} holds {bytes} bytes of images, at most {MAX_GROUP} are \
                     accepted; write the file with smaller row groups"
                )));
            }
            self.groups.push(Group { file, number: number as u32, first_row: row, bytes });
            self.starts.push(before + row);
            row = row.saturating_add(rows);
        }
        self.rows = before.saturating_add(row);
        let (labels, odd) = file_entry.labels(row)?;
        if odd > 0 {
            self.notes.push(format!("{}: {odd} labels beyond a class number", path.display()));
        }
        self.labels.extend(labels);
        fingerprint.add(stem.as_bytes(), row);
        for group in self.groups.iter().filter(|group| group.file == file) {
            fingerprint.add(b"", group.bytes);
        }
        self.files.push(file_entry);
        Ok(())
    }

    /// Bytes of the largest row group.
    fn largest_group(&self) -> u64 {
        self.groups.iter().map(|group| group.bytes).max().unwrap_or(0)
    }

    /// Row group and the row's number in it.
    fn group(&self, index: u64) -> Option<(usize, u64)> {
        if index >= self.rows {
            return None;
        }
        let group = self.starts.partition_point(|&start| start <= index).checked_sub(1)?;
        Some((group, index - self.starts[group]))
    }

    /// The value of a leaf column in a row.
    fn value<T>(
        &self,
        index: u64,
        which: u32,
        leaf: &str,
        get: impl FnOnce(&dyn Array, usize) -> T,
    ) -> Result<T, Defect> {
        let Some((number, row)) = self.group(index) else {
            return Err(self.out_of_range(index));
        };
        let group = &self.groups[number];
        let file = &self.files[group.file as usize];
        let bytes = file.column_bytes(group.number as usize, leaf);
        let load = || file.read_column(group.number as usize, leaf);
        let fail = |reason| self.defect(index, DefectKind::Unreadable, reason);
        let arrays = self.cache.get((number as u32, which), bytes, load).map_err(fail)?;
        let mut left = row as usize;
        for array in arrays.iter() {
            if left < array.len() {
                return Ok(get(&**array, left));
            }
            left -= array.len();
        }
        Err(fail("the row group has fewer rows than the file's metadata state".into()))
    }

    fn string(
        &self,
        index: u64,
        which: u32,
        name: fn(&Columns) -> Option<&String>,
    ) -> Result<Option<String>, Defect> {
        let Some((number, _)) = self.group(index) else {
            return Err(self.out_of_range(index));
        };
        let file = &self.files[self.groups[number].file as usize];
        match name(&file.columns) {
            None => Ok(None),
            Some(name) => self.value(index, which, name, string_at),
        }
    }
}

/// Reads a file's footer.
fn load_metadata(path: &Path) -> Result<ArrowReaderMetadata> {
    let (file, length) = open_regular(path)?;
    let fail = |reason| Error::Format { path: path.to_owned(), offset: length, reason };
    let load = || ArrowReaderMetadata::load(&file, ArrowReaderOptions::new());
    contained(|| load().map_err(|error| error.to_string()))
        .map_err(|reason| fail(format!("expected a parquet file: {reason}")))
}

/// Keeps a panic of the parquet reader, which trusts parts of what it reads, to one file.
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the parquet reader panicked; the file is damaged".into()))
}

impl ParquetFile {
    /// Decompressed bytes of a leaf column in a row group.
    fn column_bytes(&self, group: usize, leaf: &str) -> u64 {
        let columns = self.metadata.metadata().row_group(group).columns();
        let found = columns.iter().filter(|column| column.column_path().string() == leaf);
        found.map(|column| u64::try_from(column.uncompressed_size()).unwrap_or(u64::MAX)).sum()
    }

    /// Opened anew: two readers of one file would share its position.
    fn reader(
        &self,
        groups: Option<Vec<usize>>,
        leaf: &str,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, String>>, String> {
        let file = File::open(&self.path).map_err(|error| error.to_string())?;
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
        let mask = ProjectionMask::columns(builder.parquet_schema(), [leaf]);
        let mut builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
        if let Some(groups) = groups {
            builder = builder.with_row_groups(groups);
        }
        let reader = builder.build().map_err(|error| error.to_string())?;
        Ok(reader.map(|batch| batch.map_err(|error| error.to_string())))
    }

    fn read_column(&self, group: usize, leaf: &str) -> Result<Vec<ArrayRef>, String> {
        contained(|| {
            let batches = self.reader(Some(vec![group]), leaf)?;
            batches.map(|batch| Ok(Arc::clone(first_column(&batch?)?))).collect()
        })
    }

    /// The labels of all rows, and how many were no class number.
    fn labels(&self, rows: u64) -> Result<(Vec<u32>, u64)> {
        let fail = |reason| Error::Format { path: self.path.clone(), offset: 0, reason };
        let Some(name) = &self.columns.label else {
            return Ok((Vec::new(), 0));
        };
        let (mut labels, mut odd) = (Vec::new(), 0);
        let result = contained(|| {
            for batch in self.reader(None, name)? {
                let batch = batch?;
                for value in integers(&**first_column(&batch)?)? {
                    let label = value.and_then(|value| u32::try_from(value).ok());
                    odd += u64::from(value.is_some_and(|value| value >= i128::from(NO_LABEL)));
                    labels.push(label.unwrap_or(NO_LABEL));
                }
            }
            Ok(())
        });
        result.map_err(|reason| fail(format!("column `{name}`: {reason}")))?;
        if labels.len() as u64 != rows {
            let found = labels.len();
            return Err(fail(format!("column `{name}` has {found} values for {rows} rows")));
        }
        Ok((labels, odd))
    }
}

fn first_column(batch: &RecordBatch) -> Result<&ArrayRef, String> {
    batch.columns().first().ok_or_else(|| "the column is missing".to_owned())
}

/// Counts the rows of an `img2dataset` table by what became of them; none for other tables.
pub(super) fn count_rows(path: &Path) -> Result<Option<Rows>> {
    let metadata = load_metadata(path)?;
    if metadata.schema().field_with_name("status").is_err() {
        return Ok(None);
    }
    let columns = Columns::default();
    let file = ParquetFile { path: path.to_owned(), metadata, columns };
    let mut rows = Rows::default();
    let result = contained(|| {
        for batch in file.reader(None, "status")? {
            let batch = batch?;
            let column = first_column(&batch)?;
            for row in 0..column.len() {
                rows.total += 1;
                match string_at(&**column, row).as_deref() {
                    Some("success") => rows.successes += 1,
                    Some("failed_to_download") => rows.failed_to_download += 1,
                    Some("failed_to_resize") => rows.failed_to_resize += 1,
                    _ => {}
                }
            }
        }
        Ok(())
    });
    result.map_err(|reason| Error::Format { path: path.to_owned(), offset: 0, reason })?;
    Ok(Some(rows))
}

impl Source for ParquetSource {
    fn len(&self) -> u64 {
        self.rows
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let Some((number, _)) = self.group(index) else {
            return Err(self.out_of_range(index));
        };
        let leaf = &self.files[self.groups[number].file as usize].columns.image_leaf;
        let max = self.limits.max_bytes;
        let value = self.value(index, 0, leaf, |array, row| value_at(array, row, max))?;
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let bytes = match value {
            Value::Bytes(bytes) => bytes,
            Value::Null(what) => return Err(fail((DefectKind::Empty, what.to_owned()))),
            Value::TooLarge(size) => {
                check_encoded_size(size, &self.limits).map_err(fail)?;
                Vec::new()
            }
        };
        check_encoded_size(bytes.len() as u64, &self.limits).map_err(fail)?;
        Ok(Sample { payload: Payload::Encoded(bytes), label: self.label(index) })
    }

    /// `train-00000-of-00294/000012`: the file's name and the row in it.
    fn key(&self, index: u64) -> String {
        self.group(index).map_or_else(String::new, |(number, row)| {
            let group = &self.groups[number];
            let stem = self.files[group.file as usize].path.file_stem().unwrap_or_default();
            format!("{}/{:06}", stem.to_string_lossy(), group.first_row + row)
        })
    }

    fn text(&self, index: u64) -> Result<Option<String>, Defect> {
        self.string(index, 1, |columns| columns.text.as_ref())
    }

    fn metadata(&self, index: u64) -> Result<Option<String>, Defect> {
        let text = self.string(index, 2, |columns| columns.metadata.as_ref())?;
        if let Some(text) = &text {
            check_json(text).map_err(|reason| self.defect(index, DefectKind::Corrupt, reason))?;
        }
        Ok(text)
    }

    fn location(&self, index: u64) -> String {
        match self.group(index) {
            None => format!("sample {index}"),
            Some((number, row)) => {
                let group = &self.groups[number];
                let (path, row) = (&self.files[group.file as usize].path, group.first_row + row);
                format!("{}, row {row} (row group {})", path.display(), group.number)
            }
        }
    }

    fn label(&self, index: u64) -> Option<u32> {
        let label = *self.labels.get(usize::try_from(index).ok()?)?;
        (label != NO_LABEL).then_some(label)
    }

    fn num_classes(&self) -> Option<u32> {
        self.num_classes
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn shard_starts(&self) -> Option<&[u64]> {
        Some(&self.starts)
    }

    /// As many row groups as fill half of the cache.
    fn shuffle_window(&self) -> Option<usize> {
        Some(self.cache.window(self.largest_group()))
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}
