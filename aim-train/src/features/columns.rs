//! [`Columns`]: the unfinished file, with room for every image in every column.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::journal::Job;
use super::{Request, finish};
use crate::durable;
use crate::error::TrainError;

/// Where everything lies in the unfinished file: room for a header, then the columns, each with room for every image.
///
/// With one column, or when every image got its row, that is where it lies in the finished file too. The file is
/// sparse: what was not written takes no space on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) data_at: u64,
    pub(super) columns: usize,
    pub(super) max_rows: u64,
    pub(super) row_bytes: u64,
}

impl Shape {
    pub(super) fn new(job: &Job, request: &Request) -> Result<Self, TrainError> {
        let shape = Self {
            data_at: finish::header_room(job, request)? as u64,
            columns: job.columns.len(),
            max_rows: job.images,
            row_bytes: (job.row_values() * request.dtype.bytes()) as u64,
        };
        let whole = shape
            .max_rows
            .checked_mul(shape.row_bytes)
            .and_then(|column| column.checked_mul(shape.columns as u64))
            .and_then(|data| data.checked_add(shape.data_at));
        if whole.is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            return Err(TrainError::Unsupported {
                what: "a file of more than 2^63 bytes",
                instead: "use fewer images or layers, or pooled features",
            });
        }
        Ok(shape)
    }

    /// Where a row begins when columns have room for `rows` rows.
    pub(super) fn at(&self, rows: u64, column: usize, row: u64) -> u64 {
        self.data_at + (column as u64 * rows + row) * self.row_bytes
    }

    /// Where the columns end when they hold `rows` rows.
    pub(super) fn end(&self, rows: u64) -> u64 {
        self.at(rows, self.columns, 0)
    }
}

/// The unfinished file.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) file: File,
    pub(super) path: PathBuf,
    shape: Shape,
}

impl Columns {
    pub(super) fn new(file: File, path: &Path, shape: Shape) -> Self {
        Self { file, path: path.to_owned(), shape }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Writes whole rows of a column, the first of them at `row`.
    pub(super) fn write(&mut self, column: usize, row: u64, rows: &[u8]) -> Result<(), TrainError> {
        let at = self.shape.at(self.shape.max_rows, column, row);
        durable::write_at(&mut self.file, at, rows, &self.path)
    }

    /// Reads whole rows of a column.
    pub(super) fn read(
        &mut self,
        column: usize,
        row: u64,
        rows: &mut [u8],
    ) -> Result<(), TrainError> {
        let at = self.shape.at(self.shape.max_rows, column, row);
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(rows));
        read.map_err(|source| TrainError::io("read", &self.path, source))
    }

    pub(super) fn sync(&self) -> Result<(), TrainError> {
        durable::sync_file(&self.file, &self.path)
    }
}
