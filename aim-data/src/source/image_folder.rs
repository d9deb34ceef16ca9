//! [`ImageFolder`]: image files in folders.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::decode::DecodeLimits;
use crate::error::{Defect, Error, Result};
use crate::source::{
    Concat, Fingerprint, Payload, Sample, SampleFormat, Source, check_encoded_size,
    is_image_extension, open_regular, unreadable,
};

/// Folders nested deeper than this are an error, not a data set.
const MAX_DEPTH: usize = 32;

/// Image files, either in one folder per class (`DIR/CLASS/**/x.jpg`, labels in the order of the
/// class names, as torchvision's `ImageFolder`) or in one folder without labels (`DIR/x.jpg`).
///
/// Files are sorted by path. Names need not be UTF-8. Only regular files are read: symbolic links
/// are passed over and counted, so that nothing outside the folder is ever touched.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    files: Vec<ImageFile>,
    class_names: Option<Vec<String>>,
    fingerprint: String,
    notes: Vec<String>,
    limits: DecodeLimits,
}

#[derive(Debug)]
struct ImageFile {
    /// Path below the root.
    relative: PathBuf,
    size: u64,
    label: Option<u32>,
}

impl ImageFolder {
    /// Lists a folder.
    ///
    /// # Errors
    /// A folder that cannot be listed, holds no image ([`Error::Empty`]), or holds images both
    /// directly and in class folders, where it is not clear which are meant.
    pub fn open(root: impl Into<PathBuf>, limits: DecodeLimits) -> Result<Self> {
        let root = root.into();
        let mut walk = Walk::default();
        let classes = walk.list(&root, Path::new(""), None)?;
        let flat = walk.files.len();
        for (label, class) in classes.iter().enumerate() {
            walk.descend(&root, Path::new(class), Some(label as u32))?;
        }
        if walk.files.is_empty() {
            let Walk { links, others, .. } = walk;
            let reason = format!(
                "looked for .jpg, .png, .webp, .gif, .bmp and .tif files in it and its class folders; \
                 found {others} other files and {links} symbolic links, which are not followed"
            );
            return Err(Error::Empty { location: root.display().to_string(), reason });
        }
        if flat > 0 && walk.files.len() > flat {
            return Err(Error::Config(format!(
                "{} holds {flat} images beside {} folders with images: move them into a class \
                 folder, or give one of the folders",
                root.display(),
                classes.len()
            )));
        }
        let labelled = flat == 0;
        let notes = walk.notes(if labelled { &classes } else { &[] });
        let mut files = walk.files;
        if !labelled {
            files.sort_by(|a, b| a.relative.cmp(&b.relative));
        }
        let mut fingerprint = Fingerprint::new("imagefolder");
        for file in &files {
            fingerprint.add(file.relative.as_os_str().as_encoded_bytes(), file.size);
        }
        let names = classes.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let class_names = labelled.then_some(names);
        let fingerprint = fingerprint.finish();
        Ok(Self { root, files, class_names, fingerprint, notes, limits })
    }

    fn file(&self, index: u64) -> Option<&ImageFile> {
        self.files.get(usize::try_from(index).ok()?)
    }
}

/// Opens the folders that a pattern names (a list, braces, wildcards) as one source; their classes
/// must be the same.
pub(crate) fn open_folders(pattern: &Path, limits: DecodeLimits) -> Result<Box<dyn Source>> {
    let text = pattern.to_str().filter(|text| {
        !pattern.exists() && (text.contains(['{', ',']) || crate::source::glob::has_wildcard(text))
    });
    let Some(text) = text else {
        return Ok(Box::new(ImageFolder::open(pattern, limits)?));
    };
    let mut parts: Vec<(String, Box<dyn Source>)> = Vec::new();
    for path in crate::source::paths::find_paths("imagefolder", text)? {
        if path.is_dir() {
            let name = path.display().to_string();
            parts.push((name, Box::new(ImageFolder::open(path, limits)?)));
        }
    }
    if parts.is_empty() {
        let reason = "the pattern names no folder".to_owned();
        return Err(Error::Empty { location: text.to_owned(), reason });
    }
    Ok(Box::new(Concat::new(parts)?))
}

/// What has been found so far.
#[derive(Default)]
struct Walk {
    files: Vec<ImageFile>,
    links: u64,
    others: u64,
}

impl Walk {
    /// Everything below one class folder, in sorted order.
    fn descend(&mut self, root: &Path, class: &Path, label: Option<u32>) -> Result<()> {
        let first = self.files.len();
        let mut todo = vec![(class.to_owned(), 1)];
        while let Some((folder, depth)) = todo.pop() {
            if depth > MAX_DEPTH {
                let path = root.join(folder);
                let reason = format!("{} is nested deeper than {MAX_DEPTH}", path.display());
                return Err(Error::Config(reason));
            }
            for name in self.list(root, &folder, label)? {
                todo.push((folder.join(name), depth + 1));
            }
        }
        self.files[first..].sort_by(|a, b| a.relative.cmp(&b.relative));
        Ok(())
    }

    /// Adds the images directly in `root/folder`; returns its subfolders, sorted by name.
    fn list(&mut self, root: &Path, folder: &Path, label: Option<u32>) -> Result<Vec<OsString>> {
        let path = root.join(folder);
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
            let entry = entry.map_err(Error::io("list", &path))?;
            let kind = entry.file_type().map_err(Error::io("inspect", entry.path()))?;
            let name = entry.file_name();
            // Hidden folders (`.git`, `.ipynb_checkpoints`) are no classes and their files no data.
            if name.as_encoded_bytes().starts_with(b".") {
                self.others += u64::from(!kind.is_dir());
            } else if kind.is_dir() {
                folders.push(name);
            } else if kind.is_symlink() {
                self.links += 1;
            } else if kind.is_file() && has_image_extension(&name) {
                let size = entry.metadata().map_err(Error::io("inspect", entry.path()))?.len();
                self.files.push(ImageFile { relative: folder.join(name), size, label });
            } else {
                self.others += 1;
            }
        }
        folders.sort();
        Ok(folders)
    }

    fn notes(&self, classes: &[OsString]) -> Vec<String> {
        let mut notes = Vec::new();
        if self.links > 0 {
            notes.push(format!("{} symbolic links were not followed", self.links));
        }
        if self.others > 0 {
            notes.push(format!("{} files that are no images were passed over", self.others));
        }
        let mut filled = vec![false; classes.len()];
        for label in self.files.iter().filter_map(|file| file.label) {
            filled[label as usize] = true;
        }
        for (class, _) in classes.iter().zip(filled).filter(|(_, filled)| !filled) {
            notes.push(format!("class folder {} holds no image", class.to_string_lossy()));
        }
        notes
    }
}

fn has_image_extension(name: &OsString) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(is_image_extension)
}

impl Source for ImageFolder {
    fn len(&self) -> u64 {
        self.files.len() as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let Some(ImageFile { relative, label, .. }) = self.file(index) else {
            return Err(self.out_of_range(index));
        };
        let (mut file, size) = open_regular(&self.root.join(relative))
            .map_err(|error| fail((crate::error::DefectKind::Unreadable, error.to_string())))?;
        check_encoded_size(size, &self.limits).map_err(fail)?;
        let mut bytes = vec![0; size as usize];
        std::io::Read::read_exact(&mut file, &mut bytes)
            .map_err(|error| fail(unreadable(&error)))?;
        Ok(Sample { payload: Payload::Encoded(bytes), label: *label })
    }

    /// The path below the root without its extension.
    fn key(&self, index: u64) -> String {
        self.file(index).map_or_else(String::new, |file| {
            file.relative.with_extension("").to_string_lossy().replace('\\', "/")
        })
    }

    fn location(&self, index: u64) -> String {
        match self.file(index) {
            Some(file) => self.root.join(&file.relative).display().to_string(),
            None => format!("{}, sample {index}", self.root.display()),
        }
    }

    fn label(&self, index: u64) -> Option<u32> {
        self.file(index)?.label
    }

    fn num_classes(&self) -> Option<u32> {
        self.class_names.as_ref().map(|names| names.len() as u32)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}
