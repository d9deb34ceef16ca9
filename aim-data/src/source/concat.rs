//! [`Concat`]: several sources of one kind as one, for patterns that name more than one folder.

use crate::error::{Defect, Error, Result};
use crate::source::{Fingerprint, Sample, SampleFormat, Source};

/// Sources one after the other. Their classes must be the same, so that labels mean the same.
pub struct Concat {
    parts: Vec<(String, Box<dyn Source>)>,
    /// First sample of each part.
    starts: Vec<u64>,
    len: u64,
    num_classes: Option<u32>,
    fingerprint: String,
    notes: Vec<String>,
}

impl Concat {
    /// Joins named sources; a sample's key is `NAME/KEY`.
    ///
    /// # Errors
    /// [`Error::Config`] for sources with other classes or another format than the first.
    pub fn new(parts: Vec<(String, Box<dyn Source>)>) -> Result<Self> {
        let Some((first_name, first)) = parts.first() else {
            return Err(Error::Config("no sources to join".into()));
        };
        let mut fingerprint = Fingerprint::new("concat");
        let (mut starts, mut len, mut notes) = (Vec::new(), 0, Vec::new());
        for (name, part) in &parts {
            if part.class_names() != first.class_names() {
                return Err(Error::Config(format!(
                    "{name} has other classes than {first_name}, so that labels would not mean the \
                     same; give them as sources of a mixture, each with its own --data"
                )));
            }
            if part.format() != first.format() {
                let text = format!("{name} and {first_name} hold images of different formats");
                return Err(Error::Config(text));
            }
            starts.push(len);
            len += part.len();
            fingerprint.add(name.as_bytes(), part.len());
            fingerprint.add(part.fingerprint().as_bytes(), 0);
            notes.extend(part.notes().iter().map(|note| format!("{name}: {note}")));
        }
        let num_classes = parts.iter().filter_map(|(_, part)| part.num_classes()).max();
        let fingerprint = fingerprint.finish();
        Ok(Self { parts, starts, len, num_classes, fingerprint, notes })
    }

    /// Name and source of a sample, and its index there; past the end, an index past its end.
    fn part(&self, index: u64) -> (&str, &dyn Source, u64) {
        let at = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        let (name, part) = &self.parts[at];
        (name, &**part, index - self.starts[at])
    }

    /// A defect's index counts in the whole.
    fn whole<T>(&self, index: u64, result: Result<T, Defect>) -> Result<T, Defect> {
        result.map_err(|defect| Defect { index, key: self.key(index), ..defect })
    }
}

impl Source for Concat {
    fn len(&self) -> u64 {
        self.len
    }

    fn format(&self) -> SampleFormat {
        self.parts[0].1.format()
    }

    fn read(&self, index: u64, epoch: u64) -> Result<Sample, Defect> {
        let (_, part, at) = self.part(index);
        self.whole(index, part.read(at, epoch))
    }

    fn key(&self, index: u64) -> String {
        let (name, part, at) = self.part(index);
        format!("{name}/{}", part.key(at))
    }

    fn text(&self, index: u64) -> Result<Option<String>, Defect> {
        let (_, part, at) = self.part(index);
        self.whole(index, part.text(at))
    }

    fn metadata(&self, index: u64) -> Result<Option<String>, Defect> {
        let (_, part, at) = self.part(index);
        self.whole(index, part.metadata(at))
    }

    fn location(&self, index: u64) -> String {
        let (_, part, at) = self.part(index);
        part.location(at)
    }

    fn label(&self, index: u64) -> Option<u32> {
        let (_, part, at) = self.part(index);
        part.label(at)
    }

    fn num_classes(&self) -> Option<u32> {
        self.num_classes
    }

    fn class_names(&self) -> Option<&[String]> {
        self.parts[0].1.class_names()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}
