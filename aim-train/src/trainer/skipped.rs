//! `skipped.jsonl`: which samples could not be used, where they lie, and why.
//!
//! One line for each, in the first step that would have used it; later epochs add nothing. The
//! file appears with the first of them. A resumed run cuts it back to its checkpoint and goes on,
//! so that it is in the end what it would be without the interruption.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use aim_data::loader::Skipped;
use serde_json::{Map, Value};

use crate::error::TrainError;
use crate::metrics::jsonl::{JsonlWriter, truncate_after};

/// Longest text taken from a sample's key, place or reason, in characters. Names inside archives
/// may have tens of thousands.
const MAX_CHARS: usize = 2000;

/// Which images a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Those trained on.
    Train,
    /// Those held out.
    Validation,
}

/// The file.
#[derive(Debug)]
pub(crate) struct SkippedLog {
    path: PathBuf,
    writer: Option<JsonlWriter>,
}

impl SkippedLog {
    /// Cuts the file back to what a run has done, to nothing for a run from the beginning
    /// (`None`). Returns the training samples (source, index) that it still names as well.
    pub(crate) fn open(
        path: PathBuf,
        done: Option<u64>,
    ) -> Result<(Self, Vec<(u16, u64)>), TrainError> {
        let mut named = Vec::new();
        match done {
            Some(done) => {
                truncate_after(&path, done)?;
                let read = |source| TrainError::io("read", &path, source);
                if path.is_file() {
                    for line in BufReader::new(File::open(&path).map_err(read)?).lines() {
                        named.extend(train_sample(&line.map_err(read)?));
                    }
                }
            }
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(TrainError::io("remove", &path, error));
                }
                _ => {}
            },
        }
        Ok((Self { path, writer: None }, named))
    }

    /// Appends what was skipped in a step.
    pub(crate) fn write(
        &mut self,
        step: u64,
        set: Set,
        skipped: &[Skipped],
    ) -> Result<(), TrainError> {
        for skipped in skipped {
            let writer = match &mut self.writer {
                Some(writer) => writer,
                none => none.insert(JsonlWriter::append_to(&self.path)?),
            };
            writer.line(&fields(step, set, skipped))?;
        }
        Ok(())
    }

    /// Makes what was written survive the end of the machine.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.writer.as_ref().map_or(Ok(()), JsonlWriter::sync)
    }
}

/// A line of the file.
fn fields(step: u64, set: Set, skipped: &Skipped) -> Map<String, Value> {
    let Skipped { source, epoch, defect } = skipped;
    let text = |text: &str| Value::from(text.chars().take(MAX_CHARS).collect::<String>());
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("step", step.into());
    put("set", if set == Set::Train { "train" } else { "validation" }.into());
    put("kind", serde_json::to_value(defect.kind).unwrap_or_default());
    put("source", (*source).into());
    put("epoch", (*epoch).into());
    put("index", defect.index.into());
    put("key", text(&defect.key));
    put("location", text(&defect.location));
    put("reason", text(&defect.reason));
    fields
}

/// Source and index of a training sample that a line names.
fn train_sample(line: &str) -> Option<(u16, u64)> {
    let fields: Map<String, Value> = serde_json::from_str(line).ok()?;
    if fields.get("set")?.as_str()? != "train" {
        return None;
    }
    let source = u16::try_from(fields.get("source")?.as_u64()?).ok()?;
    Some((source, fields.get("index")?.as_u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aim_data::{Defect, DefectKind};

    fn skipped(index: u64) -> Skipped {
        let defect = Defect {
            index,
            key: format!("k{index}"),
            location: format!("00003.tar, k{index}.jpg"),
            kind: DefectKind::UnknownFormat,
            reason: "text".repeat(10_000),
        };
        Skipped { source: 1, epoch: 2, defect }
    }

    #[test]
    fn a_resumed_run_goes_on_from_its_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skipped.jsonl");
        let (mut log, named) = SkippedLog::open(path.clone(), None).unwrap();
        assert!(named.is_empty());
        log.write(1, Set::Train, &[]).unwrap();
        log.sync().unwrap();
        assert!(!path.exists(), "nothing was skipped");
        log.write(0, Set::Validation, &[skipped(5)]).unwrap();
        log.write(3, Set::Train, &[skipped(7), skipped(8)]).unwrap();
        log.write(4, Set::Train, &[skipped(9)]).unwrap();
        log.sync().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let line: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!((line["step"].as_u64(), line["key"].as_str()), (Some(3), Some("k7")));
        assert_eq!(line["kind"], "unknown_format");
        assert!(line["location"].as_str().unwrap().starts_with("00003.tar"));
        assert_eq!(line["reason"].as_str().unwrap().len(), MAX_CHARS);

        let (mut log, named) = SkippedLog::open(path.clone(), Some(3)).unwrap();
        assert_eq!(named, [(1, 7), (1, 8)]);
        log.write(4, Set::Train, &[skipped(9)]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        // From the beginning, nothing of an earlier run stays.
        SkippedLog::open(path.clone(), None).unwrap();
        assert!(!path.exists());
    }
}
