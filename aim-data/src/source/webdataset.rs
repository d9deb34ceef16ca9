//! [`WebDataset`]: images in tar shards.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
#[cfg(feature = "object-store")]
use crate::remote::RemoteShard;
use crate::remote::{RemoteOptions, is_remote, redacted};
use crate::sampler::DEFAULT_WINDOW_SHARDS;
#[cfg(feature = "object-store")]
use crate::source::paths::split_list;
use crate::source::tar_index::{TarIndex, TarSample, index_shard};
use crate::source::{
    Field, Fields, Fingerprint, Payload, Sample, SampleFormat, Source, check_encoded_size,
    check_json, glob, img2dataset, open_regular, read_exact_at, unreadable,
};

/// Shards kept open between reads. More would collide with the usual limit of 1,024 open files, so
/// beyond it a shard is opened for each read, which costs microseconds.
const MAX_OPEN_SHARDS: usize = 256;

/// Largest text or metadata member read, in bytes. Captions of a million letters exist.
const MAX_BESIDE: u64 = 16 << 20;

/// Tar shards in the layout of the `webdataset` project, read by index.
///
/// Members belong to one sample when their paths are equal up to the first dot of the file name
/// (the key); the lower-cased rest says what they are: one of
/// [`IMAGE_EXTENSIONS`](crate::source::IMAGE_EXTENSIONS) the image, `cls` the label, `txt` the text
/// and `json` the metadata, unless [`Fields`] says otherwise; anything else is passed over. Opening reads every header of every shard;
/// nothing is ever unpacked to disk.
#[derive(Debug)]
pub struct WebDataset {
    shards: Vec<Shard>,
    samples: Vec<(u32, TarSample)>,
    num_classes: Option<u32>,
    fingerprint: String,
    notes: Vec<String>,
    limits: DecodeLimits,
    /// First sample of each shard.
    starts: Vec<u64>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    place: Place,
}

/// Where the bytes of a shard are.
#[derive(Debug)]
enum Place {
    /// In a file kept open.
    Open(Arc<File>),
    /// In a file opened for each read.
    Closed,
    #[cfg(feature = "object-store")]
    Remote(RemoteShard),
}

impl Shard {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match &self.place {
            Place::Open(file) => read_exact_at(file, buffer, offset),
            Place::Closed => read_exact_at(&File::open(&self.path)?, buffer, offset),
            #[cfg(feature = "object-store")]
            Place::Remote(shard) => shard.read_at(buffer, offset),
        }
    }
}

impl WebDataset {
    /// Opens the shards that a pattern names: `train-{000000..000127}.tar`, `shards/*.tar`, a
    /// single file, or a folder (its `*.tar` files).
    ///
    /// # Errors
    /// A pattern that cannot be expanded or names a missing shard; [`Error::Shard`] with shard,
    /// key and offset for a damaged or hostile archive; [`Error::Empty`] without any image.
    pub fn open(pattern: &str, limits: DecodeLimits) -> Result<Self> {
        Self::open_with(pattern, limits, None)
    }

    /// As [`open`](Self::open); URLs (`s3://bucket/train/*.tar`) are read as `remote` says, or the
    /// [environment](RemoteOptions::from_env) without it. Order and content are those of the same
    /// shards on disk.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Remote`] when a store does not give what is asked for.
    pub fn open_with(
        pattern: &str,
        limits: DecodeLimits,
        remote: Option<&RemoteOptions>,
    ) -> Result<Self> {
        let (pattern, fields) = Fields::split(pattern)
            .map_err(|reason| Error::Spec { spec: redacted(&format!("wds:{pattern}")), reason })?;
        let opened = if is_remote(pattern) {
            let options = remote.cloned().map_or_else(RemoteOptions::from_env, Ok)?;
            Self::open_remote(pattern, &fields, limits, &options)
        } else {
            Self::with_fields(&find_shards(pattern)?, &fields, limits)
        };
        opened.map_err(|error| match error {
            Error::Empty { reason, .. } => Error::Empty { location: pattern.to_owned(), reason },
            other => other,
        })
    }

    /// Opens the given shards, in this order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_shards(paths: &[PathBuf], limits: DecodeLimits) -> Result<Self> {
        Self::with_fields(paths, &Fields::default(), limits)
    }

    /// Opens the given shards, in this order, taking the members that `fields` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_fields(paths: &[PathBuf], fields: &Fields, limits: DecodeLimits) -> Result<Self> {
        let parts = paths.iter().map(|path| {
            let index = index_shard(path, fields)?;
            let place = match paths.len() <= MAX_OPEN_SHARDS {
                true => Place::Open(Arc::new(open_regular(path)?.0)),
                false => Place::Closed,
            };
            Ok((Shard { path: path.clone(), place }, index))
        });
        let mut this = Self::from_parts(parts, fields, limits)?;
        this.notes.extend(img2dataset::notes(paths, &this.counts()));
        Ok(this)
    }

    #[cfg(feature = "object-store")]
    fn open_remote(
        pattern: &str,
        fields: &Fields,
        limits: DecodeLimits,
        options: &RemoteOptions,
    ) -> Result<Self> {
        let mut shards = Vec::new();
        for item in split_list(pattern) {
            shards.extend(crate::remote::open_pattern(item, options)?);
        }
        let choice = format!("{fields:?}");
        let (indices, remark) =
            crate::remote::index_all(&shards, &choice, |path, cursor, length| {
                crate::source::tar_index::index_reader(path, cursor, length, fields)
            })?;
        let mut statistics = Vec::with_capacity(shards.len());
        let parts = shards.into_iter().zip(indices).map(|(shard, (index, found))| {
            statistics.push(found);
            let path = shard.path().to_owned();
            Ok((Shard { path, place: Place::Remote(shard) }, index))
        });
        let mut this = Self::from_parts(parts, fields, limits)?;
        this.notes.extend(remark);
        let described = this.shards.iter().zip(this.counts()).zip(statistics);
        let described =
            described.map(|((shard, count), found)| (shard.path.as_path(), count, found));
        let notes = img2dataset::notes_on(described);
        this.notes.extend(notes);
        Ok(this)
    }

    #[cfg(not(feature = "object-store"))]
    fn open_remote(
        pattern: &str,
        _fields: &Fields,
        _limits: DecodeLimits,
        _options: &RemoteOptions,
    ) -> Result<Self> {
        let reason = "this program was built without object stores: build it with \
                      `--features object-store`, or give shards on the local disk";
        Err(Error::Spec { spec: redacted(&format!("wds:{pattern}")), reason: reason.into() })
    }

    /// Puts shards and what is in them together.
    fn from_parts(
        parts: impl Iterator<Item = Result<(Shard, TarIndex)>>,
        fields: &Fields,
        limits: DecodeLimits,
    ) -> Result<Self> {
        let mut fingerprint = Fingerprint::new("webdataset");
        let mut this = Self {
            shards: Vec::new(),
            samples: Vec::new(),
            num_classes: None,
            fingerprint: String::new(),
            notes: Vec::new(),
            limits,
            starts: Vec::new(),
        };
        let mut without_image = 0;
        for part in parts {
            let (entry, index) = part?;
            this.starts.push(this.samples.len() as u64);
            let shard = this.shards.len() as u32;
            without_image += index.without_image;
            for sample in index.samples {
                fingerprint.add(sample.key.as_bytes(), sample.size);
                if let Some(label) = sample.label {
                    this.num_classes = this.num_classes.max(Some(label + 1));
                }
                this.samples.push((shard, sample));
            }
            this.shards.push(entry);
        }
        if this.samples.is_empty() {
            let reason = format!(
                "{} shards, {without_image} keys, none with an image member ({})",
                this.shards.len(),
                fields.image_names()
            );
            return Err(Error::Empty { location: "shards".into(), reason });
        }
        if let Field::Json(key) = &fields.label
            && this.num_classes.is_none()
        {
            let count = this.samples.len();
            return Err(Error::Config(format!(
                "none of {count} samples has `{key}` in its metadata, which `?label=json:{key}` \
                 takes labels from"
            )));
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

    /// Number of samples in each shard.
    fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.shards.len()];
        self.samples.iter().for_each(|(shard, _)| counts[*shard as usize] += 1);
        counts
    }

    /// Reads a small member beside a sample's image as text.
    fn read_beside(&self, index: u64, what: &str, place: (u64, u64)) -> Result<String, Defect> {
        let fail = |kind, reason| self.defect(index, kind, reason);
        let Some((shard, _)) = self.sample(index) else {
            return Err(self.out_of_range(index));
        };
        let (offset, size) = place;
        if size > MAX_BESIDE {
            let reason = format!("{size} bytes of {what}, at most {MAX_BESIDE} are accepted");
            return Err(fail(DefectKind::TooLarge, reason));
        }
        let mut bytes = vec![0; size as usize];
        shard.read_at(&mut bytes, offset).map_err(|error| {
            let (kind, reason) = unreadable(&error);
            fail(kind, reason)
        })?;
        String::from_utf8(bytes)
            .map_err(|_| fail(DefectKind::Corrupt, format!("its {what} is no UTF-8 text")))
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
        let mut bytes = vec![0; sample.size as usize];
        shard.read_at(&mut bytes, sample.offset).map_err(|error| fail(unreadable(&error)))?;
        Ok(Sample { payload: Payload::Encoded(bytes), label: sample.label })
    }

    fn key(&self, index: u64) -> String {
        self.sample(index).map_or_else(String::new, |(_, sample)| sample.key.to_string())
    }

    fn text(&self, index: u64) -> Result<Option<String>, Defect> {
        let beside = self.sample(index).and_then(|(_, sample)| sample.beside.as_deref());
        beside
            .and_then(|beside| beside.text)
            .map(|at| self.read_beside(index, "text", at))
            .transpose()
    }

    fn metadata(&self, index: u64) -> Result<Option<String>, Defect> {
        let beside = self.sample(index).and_then(|(_, sample)| sample.beside.as_deref());
        let Some(place) = beside.and_then(|beside| beside.metadata) else {
            return Ok(None);
        };
        let text = self.read_beside(index, "metadata", place)?;
        check_json(&text).map_err(|reason| self.defect(index, DefectKind::Corrupt, reason))?;
        Ok(Some(text))
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

    fn shard_starts(&self) -> Option<&[u64]> {
        Some(&self.starts)
    }

    /// Remote shards are fetched as a whole or in large parts, so each is used up before others.
    /// The same on disk, where it would not matter: a run has one order wherever its shards lie.
    fn shuffle_window(&self) -> Option<usize> {
        Some(DEFAULT_WINDOW_SHARDS)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The tar files that a list of patterns names, in order.
fn find_shards(patterns: &str) -> Result<Vec<PathBuf>> {
    let mut shards = Vec::new();
    for pattern in crate::source::paths::split_list(patterns) {
        shards.extend(find_some(pattern)?);
    }
    Ok(shards)
}

/// The tar files that a pattern names, in order.
fn find_some(pattern: &str) -> Result<Vec<PathBuf>> {
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
