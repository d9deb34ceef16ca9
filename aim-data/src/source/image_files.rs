//! [`ImageFiles`]: image files that are named one by one.

use std::path::PathBuf;

use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::source::{
    Fingerprint, Payload, Sample, SampleFormat, Source, check_encoded_size, open_regular,
    unreadable,
};

/// Image files in the order in which they are given, as on a command line; without labels.
///
/// A file that is not there is a [`Defect`], like one that cannot be decoded: the others are still
/// read. Symbolic links are followed, since somebody named them.
#[derive(Debug)]
pub struct ImageFiles {
    paths: Vec<PathBuf>,
    fingerprint: String,
    limits: DecodeLimits,
}

impl ImageFiles {
    /// Takes the files; nothing is read.
    ///
    /// # Errors
    /// [`Error::Empty`] without any.
    pub fn new(paths: Vec<PathBuf>, limits: DecodeLimits) -> Result<Self> {
        if paths.is_empty() {
            let reason = "no file was named".into();
            return Err(Error::Empty { location: "a list of files".into(), reason });
        }
        let mut fingerprint = Fingerprint::new("files");
        for path in &paths {
            let size = std::fs::metadata(path).map_or(0, |found| found.len());
            fingerprint.add(path.as_os_str().as_encoded_bytes(), size);
        }
        Ok(Self { paths, fingerprint: fingerprint.finish(), limits })
    }

    fn path(&self, index: u64) -> Option<&PathBuf> {
        self.paths.get(usize::try_from(index).ok()?)
    }
}

impl Source for ImageFiles {
    fn len(&self) -> u64 {
        self.paths.len() as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let Some(path) = self.path(index) else {
            return Err(self.out_of_range(index));
        };
        let (mut file, size) = open_regular(path).map_err(|error| {
            // The path is in the location already.
            let reason = match error {
                Error::Io { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            fail((DefectKind::Unreadable, reason))
        })?;
        check_encoded_size(size, &self.limits).map_err(fail)?;
        let mut bytes = vec![0; size as usize];
        std::io::Read::read_exact(&mut file, &mut bytes)
            .map_err(|error| fail(unreadable(&error)))?;
        Ok(Sample { payload: Payload::Encoded(bytes), label: None })
    }

    /// The path as it was given.
    fn key(&self, index: u64) -> String {
        self.path(index).map_or_else(String::new, |path| path.display().to_string())
    }

    fn location(&self, index: u64) -> String {
        self.key(index)
    }

    fn label(&self, _index: u64) -> Option<u32> {
        None
    }

    fn num_classes(&self) -> Option<u32> {
        None
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_a_defect_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("a.png");
        std::fs::write(&good, "bytes").unwrap();
        let paths = vec![dir.path().join("none.jpg"), good.clone(), dir.path().to_owned()];
        let source = ImageFiles::new(paths, DecodeLimits::default()).unwrap();
        assert_eq!(source.read(0, 0).unwrap_err().kind, DefectKind::Unreadable);
        let sample = source.read(1, 0).unwrap();
        assert_eq!(sample.payload, Payload::Encoded(b"bytes".to_vec()));
        assert_eq!(source.key(1), good.display().to_string());
        assert!(source.read(2, 0).is_err() && source.read(3, 0).is_err());
        assert!(ImageFiles::new(Vec::new(), DecodeLimits::default()).is_err());
    }
}
