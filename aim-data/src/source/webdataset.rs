//! [`WebDataset`]: images in tar shards.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::decode::DecodeLimits;
use crate::error::{Defect, Error, Result};
use crate::source::tar_index::{TarSample, index_shard};
use crate::source::{
    Fingerprint, Payload, Sample, SampleFormat, Source, check_encoded_size, glob, open_regular,
    read_exact_at, unreadable,
};

/// Shards kept open between reads. More would collide with the usual limit of 1,024 open files, so
/// beyond it a shard is opened for each read, which costs microseconds.
const MAX_OPEN_SHARDS: usize = 256;

/// Tar shards in the layout of the `webdataset` project, read by index.
///
/// Members belong to one sample when their paths are equal up to the first dot of the file name
/// (the key); the lower-cased rest says what they are: `jpg`, `jpeg`, `png` or `webp` the image,
/// `cls` the label, anything else is passed over. Opening reads every header of every shard;
/// nothing is ever unpacked to disk.
#[derive(Debug)]
pub struct WebDataset {
    shards: Vec<Shard>,
    samples: Vec<(u32, TarSample)>,
    num_classes: Option<u32>,
    fingerprint: String,
    notes: Vec<String>,
    limits: DecodeLimits,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: Option<Arc<File>>,
}

impl WebDataset {
    /// Opens the shards that a pattern names: `train-{000000..000127}.tar`, `shards/*.tar`, a
    /// single file, or a folder (its `*.tar` files).
    ///
    /// # Errors
    /// A pattern that cannot be expanded or names a missing shard; [`Error::Shard`] with shard,
    /// key and offset for a damaged or hostile archive; [`Error::Empty`] without any image.
    pub fn open(pattern: &str, limits: DecodeLimits) -> Result<Self> {
        Self::from_shards(&find_shards(pattern)?, limits).map_err(|error| match error {
            Error::Empty { reason, .. } => Error::Empty { location: pattern.to_owned(), reason },
            other => other,
        })
    }

    /// Opens the given shards, in this order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_shards(paths: &[PathBuf], limits: DecodeLimits) -> Result<Self> {
        let mut fingerprint = Fingerprint::new("webdataset");
        let mut this = Self {
            shards: Vec::with_capacity(paths.len()),
            samples: Vec::new(),
            num_classes: None,
            fingerprint: String::new(),
            notes: Vec::new(),
            limits,
        };
        let mut without_image = 0;
        for path in paths {
            let index = index_shard(path)?;
            let shard = this.shards.len() as u32;
            without_image += index.without_image;
            for sample in index.samples {
                fingerprint.add(sample.key.as_bytes(), sample.size);
                if let Some(label) = sample.label {
                    this.num_classes = this.num_classes.max(Some(label + 1));
                }
                this.samples.push((shard, sample));
            }
            let keep = paths.len() <= MAX_OPEN_SHARDS;
            let file = if keep { Some(Arc::new(open_regular(path)?.0)) } else { None };
            this.shards.push(Shard { path: path.clone(), file });
        }
        if this.samples.is_empty() {
            let reason = format!(
                "{} shards, {without_image} keys, none with a .jpg, .jpeg, .png or .webp member",
                paths.len()
            );
            return Err(Error::Empty { location: "shards".into(), reason });
        }
        if without_image > 0 {
            this.notes.push(format!("{without_image} keys without an image were passed over"));
        }
        this.fingerprint = fingerprint.finish();
        Ok(this)
    }

    /// The shards, in order.
    pub fn shards(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    fn sample(&self, index: u64) -> Option<(&Shard, &TarSample)> {
        let (shard, sample) = self.samples.get(usize::try_from(index).ok()?)?;
        Some((self.shards.get(*shard as usize)?, sample))
    }
}

impl Source for WebDataset {
    fn len(&self) -> u64 {
        self.samples.len() as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let Some((shard, sample)) = self.sample(index) else {
            return Err(self.out_of_range(index));
        };
        check_encoded_size(sample.size, &self.limits).map_err(fail)?;
        let file = match &shard.file {
            Some(file) => Ok(Arc::clone(file)),
            None => File::open(&shard.path).map(Arc::new),
        };
        let mut bytes = vec![0; sample.size as usize];
        file.and_then(|file| read_exact_at(&file, &mut bytes, sample.offset))
            .map_err(|error| fail(unreadable(&error)))?;
        Ok(Sample { payload: Payload::Encoded(bytes), label: sample.label })
    }

    fn key(&self, index: u64) -> String {
        self.sample(index).map_or_else(String::new, |(_, sample)| sample.key.to_string())
    }

    fn location(&self, index: u64) -> String {
        self.sample(index).map_or_else(
            || format!("sample {index}"),
            |(shard, sample)| {
                let TarSample { key, extension, offset, .. } = sample;
                format!("{}, {key}.{extension} (data at byte {offset})", shard.path.display())
            },
        )
    }

    fn label(&self, index: u64) -> Option<u32> {
        self.sample(index)?.1.label
    }

    fn num_classes(&self) -> Option<u32> {
        self.num_classes
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The tar files that a pattern names, in order.
fn find_shards(pattern: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(pattern);
    if path.is_dir() {
        let mut shards = Vec::new();
        for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
            let entry = entry.map_err(Error::io("list", path))?.path();
            if entry.extension().is_some_and(|extension| extension == "tar") {
                shards.push(entry);
            }
        }
        shards.sort();
        if shards.is_empty() {
            let reason = "the folder holds no *.tar file".to_owned();
            return Err(Error::Empty { location: pattern.to_owned(), reason });
        }
        return Ok(shards);
    }
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    let spec_error = |reason| Error::Spec { spec: format!("wds:{pattern}"), reason };
    let names = glob::expand_braces(pattern).map_err(spec_error)?;
    let mut shards = Vec::with_capacity(names.len());
    let mut missing = Vec::new();
    for name in names {
        let before = shards.len();
        if Path::new(&name).exists() {
            shards.push(PathBuf::from(&name));
        } else if glob::has_wildcard(&name) {
            shards.extend(glob::glob(&name)?);
        }
        if shards.len() == before {
            missing.push(name);
        }
    }
    if let Some(first) = missing.first() {
        let total = shards.len() + missing.len();
        let reason = format!("{} of {total} shards not found, the first is {first}", missing.len());
        return Err(spec_error(reason));
    }
    Ok(shards)
}
