//! [`ListedImages`]: image files named by a list.

use std::path::{Path, PathBuf};

use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::source::{
    Benchmark, Fingerprint, Payload, Sample, SampleFormat, Source, check_encoded_size,
    open_regular, unreadable,
};

/// Longest path in a list, in bytes.
const MAX_PATH: usize = 1024;
/// Images looked for when a source is opened, to tell a list without its images.
const LOOKED_FOR: usize = 16;

/// Image files that a data set's lists name, with the labels that they give.
///
/// The files are opened when they are read: one that is not there is a bad sample. A file outside
/// the folder is never read, neither through `..` in a list nor through a symbolic link; the folder
/// itself may be one.
#[derive(Debug)]
pub struct ListedImages {
    root: PathBuf,
    entries: Vec<Entry>,
    /// The paths of all files below the root, one after the other.
    paths: String,
    class_names: Vec<String>,
    fingerprint: String,
    notes: Vec<String>,
    limits: DecodeLimits,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where its path ends in `paths`.
    end: u64,
    label: u32,
}

/// What lists say, before it is a source.
#[derive(Debug)]
pub(super) struct Listing {
    root: PathBuf,
    entries: Vec<Entry>,
    paths: String,
    class_names: Vec<String>,
    notes: Vec<String>,
}

impl Listing {
    pub(super) fn new(root: &Path, class_names: Vec<String>) -> Self {
        let (entries, paths, notes) = Default::default();
        Self { root: root.to_owned(), entries, paths, class_names, notes }
    }

    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Adds an image by its path below the root.
    ///
    /// # Errors
    /// A text for a path that leaves the folder, or a label without a class.
    pub(super) fn add(&mut self, relative: &str, label: u32) -> Result<(), String> {
        safe_relative(relative)?;
        if label as usize >= self.class_names.len() {
            return Err(format!("class {label} of {}", self.class_names.len()));
        }
        self.paths.push_str(relative);
        self.entries.push(Entry { end: self.paths.len() as u64, label });
        Ok(())
    }

    /// Adds all images of a list; an error tells the list's file.
    pub(super) fn extend(
        &mut self,
        list: &Path,
        images: impl IntoIterator<Item = (String, u32)>,
    ) -> Result<()> {
        for (relative, label) in images {
            let added = self.add(&relative, label);
            added.map_err(|reason| Error::Format { path: list.to_owned(), offset: 0, reason })?;
        }
        Ok(())
    }

    /// The source.
    ///
    /// # Errors
    /// [`Error::Empty`] without images, or when none of the first ones is there.
    pub(super) fn finish(self, which: Benchmark, limits: DecodeLimits) -> Result<ListedImages> {
        let Self { root, entries, paths, class_names, notes } = self;
        let empty = |reason| Error::Empty { location: root.display().to_string(), reason };
        if entries.is_empty() {
            return Err(empty("the lists name no image of these splits".into()));
        }
        // Symbolic links on the way to the folder are the user's; those below it are not followed.
        let root = root.canonicalize().map_err(Error::io("open", &root))?;
        let mut fingerprint = Fingerprint::new(which.name());
        let mut this = ListedImages {
            root,
            entries,
            paths,
            class_names,
            fingerprint: String::new(),
            notes,
            limits,
        };
        for index in 0..this.entries.len() {
            let label = this.entries[index].label;
            fingerprint.add(this.path(index).as_bytes(), u64::from(label));
        }
        this.fingerprint = fingerprint.finish();
        let looked_for = LOOKED_FOR.min(this.entries.len());
        if !(0..looked_for).any(|index| this.root.join(this.path(index)).exists()) {
            let reason = format!(
                "its lists name {} images, but the first {looked_for} of them are not there; the \
                 first was expected at {}",
                this.entries.len(),
                this.root.join(this.path(0)).display()
            );
            return Err(Error::Empty { location: this.root.display().to_string(), reason });
        }
        Ok(this)
    }
}

/// Whether a path in a list stays below the folder: relative, without `..`, of sane length.
///
/// # Errors
/// A text saying what is wrong with it.
pub(crate) fn safe_relative(path: &str) -> Result<(), String> {
    let shown = || path.chars().take(60).collect::<String>().escape_debug().to_string();
    if path.is_empty() || path.len() > MAX_PATH {
        return Err(format!("`{}`: a path of {} bytes", shown(), path.len()));
    }
    let unsafe_part = |part: &str| matches!(part, "" | "." | "..");
    // A colon would be a drive or a stream on Windows.
    let foreign = path.contains(['\\', '\0']) || (cfg!(windows) && path.contains(':'));
    if foreign || path.split('/').any(unsafe_part) {
        return Err(format!(
            "`{}` is no path below the data set's folder: expected a relative one without `..`",
            shown()
        ));
    }
    Ok(())
}

impl ListedImages {
    fn entry(&self, index: u64) -> Option<(usize, Entry)> {
        let index = usize::try_from(index).ok()?;
        Some((index, *self.entries.get(index)?))
    }

    fn path(&self, index: usize) -> &str {
        let end = |index: usize| self.entries.get(index).map_or(0, |entry| entry.end as usize);
        let start = if index == 0 { 0 } else { end(index - 1) };
        self.paths.get(start..end(index)).unwrap_or_default()
    }
}

impl Source for ListedImages {
    fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let Some((at, entry)) = self.entry(index) else {
            return Err(self.out_of_range(index));
        };
        let path = self.root.join(self.path(at));
        let found = path.canonicalize().map_err(|error| fail(unreadable(&error)))?;
        if !found.starts_with(&self.root) {
            let reason = format!(
                "a symbolic link to {}, outside the data set's folder: not followed",
                found.display()
            );
            return Err(fail((DefectKind::Unreadable, reason)));
        }
        let opened = open_regular(&found);
        let (mut file, size) =
            opened.map_err(|error| fail((DefectKind::Unreadable, error.to_string())))?;
        check_encoded_size(size, &self.limits).map_err(fail)?;
        let mut bytes = vec![0; size as usize];
        let read = std::io::Read::read_exact(&mut file, &mut bytes);
        read.map_err(|error| fail(unreadable(&error)))?;
        Ok(Sample { payload: Payload::Encoded(bytes), label: Some(entry.label) })
    }

    /// The path in the list without its extension.
    fn key(&self, index: u64) -> String {
        self.entry(index).map_or_else(String::new, |(at, _)| {
            Path::new(self.path(at)).with_extension("").to_string_lossy().replace('\\', "/")
        })
    }

    fn location(&self, index: u64) -> String {
        match self.entry(index) {
            Some((at, _)) => self.root.join(self.path(at)).display().to_string(),
            None => format!("{}, sample {index}", self.root.display()),
        }
    }

    fn label(&self, index: u64) -> Option<u32> {
        Some(self.entry(index)?.1.label)
    }

    fn num_classes(&self) -> Option<u32> {
        Some(self.class_names.len() as u32)
    }

    fn class_names(&self) -> Option<&[String]> {
        Some(&self.class_names)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_folder() {
        for good in ["a.jpg", "a b/c.d.jpg", "é/x", "..a/b..jpg"] {
            assert_eq!(safe_relative(good), Ok(()), "{good}");
        }
        let long = "x".repeat(MAX_PATH + 1);
        for bad in
            ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "..\\x", "a\0", &long]
        {
            assert!(safe_relative(bad).is_err(), "{bad:?}");
        }
    }
}
