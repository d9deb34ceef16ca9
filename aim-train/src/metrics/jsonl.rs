//! `metrics.jsonl`: one JSON object a step, on one line each.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{TrainError, durable};

/// Our lines have some 300 bytes; what is longer is not one of ours.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Appends lines to a file.
#[derive(Debug)]
pub struct JsonlWriter {
    file: File,
    path: PathBuf,
}

/// What [`truncate_after`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Truncated {
    /// Lines that stayed.
    pub kept: usize,
    /// Lines of later steps, removed.
    pub dropped: usize,
    /// Lines that are no complete object with a `step`, removed: what a crash leaves at the end.
    pub torn: usize,
    /// The highest step that stayed.
    pub last_step: Option<u64>,
}

impl JsonlWriter {
    /// Opens a file for appending, and creates it if need be.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn append_to(path: impl Into<PathBuf>) -> Result<Self, TrainError> {
        let path = path.into();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|source| TrainError::io("open", &path, source))?;
        Ok(Self { file, path })
    }

    /// Appends one line. It is with the system when this returns, so it survives the end of the
    /// process (not that of the machine: see [`JsonlWriter::sync`]).
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn line(&mut self, fields: &Map<String, Value>) -> Result<(), TrainError> {
        let mut text = serde_json::to_vec(fields).map_err(|error| TrainError::Json {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        text.push(b'\n');
        // One write: a reader of the growing file sees no half lines.
        self.file.write_all(&text).map_err(|source| TrainError::io("write", &self.path, source))
    }

    /// Makes the lines written so far survive the end of the machine: before a checkpoint that
    /// counts on them is committed.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn sync(&self) -> Result<(), TrainError> {
        durable::sync_file(&self.file, &self.path)
    }
}

/// Removes the lines of steps after `step`, and torn ones, from a file: the resumed run writes them
/// again. The file is replaced in one step, and only if anything has to go; if there is none,
/// nothing happens.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::DiskFull`].
pub fn truncate_after(path: &Path, step: u64) -> Result<Truncated, TrainError> {
    let io = |source| TrainError::io("read", path, source);
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Truncated::default()),
        Ok(kind) if kind.is_file() => {}
        Ok(_) => return Err(io(io::Error::other("expected a regular file"))),
        Err(error) => return Err(io(error)),
    }
    // Two passes over the file instead of its content in memory.
    let counted = filter(path, step, &mut io::sink()).map_err(io)?;
    if counted.dropped + counted.torn > 0 {
        durable::replace_with(path, |out| filter(path, step, out).map(|_| ()))?;
    }
    Ok(counted)
}

fn filter(path: &Path, step: u64, out: &mut dyn Write) -> io::Result<Truncated> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut result = Truncated::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        Read::by_ref(&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(result);
        }
        if line.last() != Some(&b'\n') {
            // Torn, or too long to be ours.
            reader.skip_until(b'\n')?;
            result.torn += 1;
            continue;
        }
        match step_of(&line) {
            Some(at) if at <= step => {
                out.write_all(&line)?;
                result.kept += 1;
                result.last_step = result.last_step.max(Some(at));
            }
            Some(_) => result.dropped += 1,
            None => result.torn += 1,
        }
    }
}

fn step_of(line: &[u8]) -> Option<u64> {
    let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    fields.get("step")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn line(step: u64, loss: f64) -> Map<String, Value> {
        let value = serde_json::json!({ "step": step, "loss": loss });
        value.as_object().unwrap().clone()
    }

    #[test]
    fn lines_come_back_in_bits_and_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let losses = [0.1f32, 1.0 / 3.0, f32::MIN_POSITIVE, 16_777_217.0];
        for (step, loss) in losses.iter().enumerate() {
            // Opened anew each time: it appends.
            let mut writer = JsonlWriter::append_to(&path).unwrap();
            writer.line(&line(step as u64, f64::from(*loss))).unwrap();
            writer.sync().unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"step\":0,\"loss\":"), "{text}");
        for (text, loss) in text.lines().zip(losses) {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!((value["loss"].as_f64().unwrap() as f32).to_bits(), loss.to_bits());
        }
    }

    #[test]
    fn truncation_drops_later_and_torn_lines_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(truncate_after(&path, 3).unwrap(), Truncated::default());
        assert!(!path.exists());

        let whole: String =
            (1..=5).map(|step| format!("{{\"step\":{step},\"loss\":0.5}}\n")).collect();
        let kept: String = whole.split_inclusive('\n').take(3).collect();
        // Torn at every place of the last line.
        let last = whole.lines().last().unwrap().len() + 1;
        for cut in 1..last {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let found = truncate_after(&path, 3).unwrap();
            let expected = Truncated { kept: 3, dropped: 1, torn: 1, last_step: Some(3) };
            assert_eq!(found, expected);
            assert_eq!(fs::read_to_string(&path).unwrap(), kept);
        }
        // A torn line of a step that counts, zeros as a power cut leaves, no step, a huge line.
        let huge = "x".repeat(3 << 20);
        fs::write(&path, format!("{kept}{{\"loss\":1}}\n\0\0\0\n{huge}\n{{\"step\":3")).unwrap();
        assert_eq!(truncate_after(&path, 9).unwrap().torn, 4);
        assert_eq!(fs::read_to_string(&path).unwrap(), kept);

        let before = path.metadata().unwrap().modified().unwrap();
        let found = truncate_after(&path, 3).unwrap();
        assert_eq!(found, Truncated { kept: 3, dropped: 0, torn: 0, last_step: Some(3) });
        assert_eq!(path.metadata().unwrap().modified().unwrap(), before);
        assert_eq!(truncate_after(&path, 0).unwrap().last_step, None);
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
