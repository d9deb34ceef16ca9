//! [`Journal`]: what an unfinished file is of, and how far it is.
//!
//! Text, one JSON object a line: the job, then a line each time that rows were synced. A line torn by a power cut is
//! the last one and does not count; nor do the rows that it would have counted.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aim_data::Defect;
use aim_data::source::Source;
use aim_model::features::FeatureExtractor;
use serde::{Deserialize, Serialize};

use super::columns::{Columns, Shape};
use super::{ElementType, Format, Pool, Request, beside};
use crate::durable;
use crate::error::TrainError;
use crate::probe::features::ImageOptions;

/// Longest line that is read: a batch of which every image is described.
const MAX_LINE_BYTES: u64 = 256 << 20;
const VERSION: u32 = 1;

/// Everything that decides what is in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    version: u32,
    weights: String,
    data: String,
    pub(super) images: u64,
    height: usize,
    width: usize,
    mean: [f32; 3],
    std: [f32; 3],
    pub(super) layers: Vec<usize>,
    pub(super) columns: Vec<String>,
    pub(super) tokens: usize,
    pub(super) dim: usize,
    pub(super) pool: Pool,
    pub(super) dtype: ElementType,
    format: Format,
    /// Batches could differ in the last bit of products smaller than 16 x 16 x 16.
    batch_size: usize,
    device: String,
}

impl Job {
    pub(super) fn new(
        extractor: &FeatureExtractor,
        weights: &str,
        source: &Arc<dyn Source>,
        options: &ImageOptions,
        request: &Request,
    ) -> Self {
        let patch = extractor.config().patch_size;
        let layers = extractor.layers().to_vec();
        let columns = if request.average {
            vec!["average".to_owned()]
        } else {
            layers.iter().map(|layer| format!("block_{layer}")).collect()
        };
        Self {
            version: VERSION,
            weights: weights.to_owned(),
            data: source.fingerprint().to_owned(),
            images: source.len(),
            height: options.height,
            width: options.width,
            mean: options.mean,
            std: options.std,
            layers,
            columns,
            tokens: options.height / patch * (options.width / patch),
            dim: extractor.config().embed_dim,
            pool: request.pool,
            dtype: request.dtype,
            format: request.format,
            batch_size: options.batch_size,
            device: extractor.params().device().to_string(),
        }
    }

    /// Values in one row of one column.
    pub(super) fn row_values(&self) -> usize {
        self.row_shape().iter().product()
    }

    /// Shape of one row of one column.
    pub(super) fn row_shape(&self) -> Vec<usize> {
        match self.pool {
            Pool::None => vec![self.tokens, self.dim],
            Pool::Mean => vec![self.dim],
        }
    }

    pub(super) fn weights(&self) -> &str {
        &self.weights
    }

    /// What differs, in words.
    fn differences(&self, now: &Self) -> Result<String, TrainError> {
        let object = |job: &Self| match serde_json::to_value(job) {
            Ok(serde_json::Value::Object(map)) => Ok(map),
            _ => Err(TrainError::Internal("a job is a JSON object")),
        };
        let (saved, now) = (object(self)?, object(now)?);
        let differing = saved.iter().filter(|(key, value)| now.get(*key) != Some(value));
        let words = differing.map(|(key, value)| {
            let now = now.get(key).unwrap_or(&serde_json::Value::Null);
            format!("\n  {key}: {value} there, {now} now")
        });
        Ok(words.collect())
    }
}

/// A line after the first.
#[derive(Serialize, Deserialize)]
struct Line {
    next: u64,
    rows: u64,
    /// Indices of the images without a row since the line before.
    skipped: Vec<u64>,
    defects: Vec<serde_json::Value>,
}

/// How far a file is.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    pub(super) path: PathBuf,
    /// Images done.
    pub(super) next: u64,
    /// Rows written.
    pub(super) rows: u64,
    /// Indices of the images without a row, ascending.
    pub(super) skipped: Vec<u64>,
    /// How many of them are in committed lines.
    committed_skipped: usize,
    committed_next: u64,
    described: Vec<serde_json::Value>,
}

/// What was found of an earlier run.
pub(super) enum JournalState {
    /// Nothing, or something to go on with.
    Open(Journal, Columns),
    /// The finished file has its name already: only the journal was left.
    Finished(Journal),
}

/// Opens the unfinished file of `out` and its journal, or begins them.
pub(super) fn open(
    out: &Path,
    job: &Job,
    shape: Shape,
    restart: bool,
) -> Result<JournalState, TrainError> {
    let (partial, path) = (beside(out, ".partial"), beside(out, ".partial.jsonl"));
    if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        durable::create_dir(parent)?;
    }
    let existed = partial.is_file();
    let file = lock(&partial)?;
    let found = if restart { None } else { read(&path, job)? };
    match found {
        Some(journal) if existed => {
            Ok(JournalState::Open(journal, Columns::new(file, &partial, shape)))
        }
        Some(journal) if journal.next == job.images && out.is_file() => {
            durable::remove_file(&partial)?;
            Ok(JournalState::Finished(journal))
        }
        _ => {
            let grown = file.set_len(0).and_then(|()| file.set_len(shape.end(shape.max_rows)));
            grown.map_err(|source| TrainError::io("create", &partial, source))?;
            let mut text = to_json(job)?;
            text.push(b'\n');
            durable::replace(&path, &text)?;
            let journal = Journal::at(&path)?;
            Ok(JournalState::Open(journal, Columns::new(file, &partial, shape)))
        }
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, TrainError> {
    serde_json::to_vec(value).map_err(|_| TrainError::Internal("a journal line is JSON"))
}

/// Opens the unfinished file for this process alone.
fn lock(path: &Path) -> Result<File, TrainError> {
    let io = |op| move |source| TrainError::io(op, path, source);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = options.map_err(io("create"))?;
    let locked = || TrainError::Locked { path: path.to_owned(), holder: "another process".into() };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(locked()),
        Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
    }
    // Its holder may have given it its final name in between: then this is a finished file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let (held, named) = (file.metadata().map_err(io("open"))?, fs::metadata(path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) != (held.dev(), held.ino()))
            || !path.exists()
        {
            return Err(locked());
        }
    }
    Ok(file)
}

/// Reads a journal; `None` when there is none with a whole first line.
fn read(path: &Path, job: &Job) -> Result<Option<Journal>, TrainError> {
    let io = |source| TrainError::io("read", path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut next_line = |line: &mut Vec<u8>| -> Result<bool, TrainError> {
        line.clear();
        (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', line).map_err(io)?;
        Ok(line.last() == Some(&b'\n'))
    };
    if !next_line(&mut line)? {
        return Ok(None);
    }
    let saved: Job =
        serde_json::from_slice(&line).map_err(|error| TrainError::PartialFeatures {
            path: path.to_owned(),
            reason: format!("its first line is no job of this version ({error})"),
        })?;
    if saved != *job {
        return Err(TrainError::PartialFeatures {
            path: path.to_owned(),
            reason: format!("it is of another job:{}", saved.differences(job)?),
        });
    }
    let mut journal = Journal::at(path)?;
    let mut whole = line.len() as u64;
    while next_line(&mut line)? {
        let Ok(entry) = serde_json::from_slice::<Line>(&line) else { break };
        if !journal.accepts(&entry, job) {
            break;
        }
        journal.next = entry.next;
        journal.rows = entry.rows;
        journal.skipped.extend(entry.skipped);
        whole += line.len() as u64;
    }
    journal.committed_skipped = journal.skipped.len();
    journal.committed_next = journal.next;
    // What comes behind is torn, and the next line must not be joined to it.
    let cut = journal.file.set_len(whole).and_then(|()| journal.file.seek(SeekFrom::End(0)));
    cut.map_err(|source| TrainError::io("write", path, source))?;
    Ok(Some(journal))
}

impl Journal {
    fn at(path: &Path) -> Result<Self, TrainError> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let mut file = opened.map_err(|source| TrainError::io("open", path, source))?;
        file.seek(SeekFrom::End(0)).map_err(|source| TrainError::io("open", path, source))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            next: 0,
            rows: 0,
            skipped: Vec::new(),
            committed_skipped: 0,
            committed_next: 0,
            described: Vec::new(),
        })
    }

    /// Whether a line follows from those before.
    fn accepts(&self, line: &Line, job: &Job) -> bool {
        let inside = |&index: &u64| index >= self.next && index < line.next;
        let skipped = (self.skipped.len() + line.skipped.len()) as u64;
        line.next <= job.images
            && line.next >= self.next
            && (line.next == job.images || line.next.is_multiple_of(job.batch_size.max(1) as u64))
            && line.skipped.iter().all(inside)
            && line.skipped.is_sorted()
            && line.rows.checked_add(skipped) == Some(line.next)
    }

    /// Counts the images up to `end`, of which `used` (ascending) have rows.
    pub(super) fn advance(&mut self, end: u64, used: impl Iterator<Item = u64>) {
        let mut expected = self.next;
        for index in used {
            self.skipped.extend(expected..index);
            expected = index + 1;
            self.rows += 1;
        }
        self.skipped.extend(expected..end);
        self.next = end;
    }

    /// Keeps why an image has no row.
    pub(super) fn describe(&mut self, defect: Defect) -> Result<(), TrainError> {
        let value = serde_json::to_value(defect);
        self.described.push(value.map_err(|_| TrainError::Internal("a defect is JSON"))?);
        Ok(())
    }

    pub(super) fn skipped_count(&self) -> u64 {
        self.skipped.len() as u64
    }

    /// Appends a line and syncs it; the rows that it counts are synced already.
    pub(super) fn commit(&mut self) -> Result<(), TrainError> {
        if self.next == self.committed_next {
            return Ok(());
        }
        let line = Line {
            next: self.next,
            rows: self.rows,
            skipped: self.skipped.get(self.committed_skipped..).unwrap_or_default().to_vec(),
            defects: std::mem::take(&mut self.described),
        };
        let mut text = to_json(&line)?;
        text.push(b'\n');
        durable::append(&mut self.file, &text, &self.path)?;
        self.committed_skipped = self.skipped.len();
        self.committed_next = self.next;
        Ok(())
    }

    /// Calls `each` with every defect that was described, in the order of images.
    pub(super) fn for_each_defect(
        &self,
        mut each: impl FnMut(&serde_json::Value) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut reader = BufReader::new(File::open(&self.path)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            // The first line is the job.
            if let Ok(entry) = serde_json::from_slice::<Line>(&line) {
                entry.defects.iter().try_for_each(&mut each)?;
            }
        }
    }

    /// Removes the journal: the file is finished.
    pub(super) fn remove(self) -> Result<(), TrainError> {
        durable::remove_file(&self.path)
    }
}
