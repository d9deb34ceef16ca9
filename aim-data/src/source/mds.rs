//! [`MdsSource`]: folders that MosaicML's `streaming` library wrote.
//!
//! `index.json` lists the shards; a shard is `u32 n`, `u32 offset[n + 1]` from its first byte, the
//! writer's options as JSON, then the samples. A sample is one `u32` length for every column whose
//! encoding has no fixed size, then the values of all columns, in the order of the index. All
//! integers are little-endian. Compressed shards are compressed as a whole.

mod index;
mod sample;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::source::cache::BlockCache;
use crate::source::{
    Fields, Fingerprint, Sample, SampleFormat, Source, check_encoded_size, check_json,
    open_regular, paths, read_exact_at,
};

use index::ShardEntry;
pub(crate) use index::parse_index;
use sample::Slots;
pub(crate) use sample::{Column, Encoding, Layout, image_payload};

/// Most bytes of decompressed shards kept in memory.
const CACHE_BYTES: u64 = 512 << 20;
/// Shards kept open between reads, well below the usual limit of 1,024 open files.
const MAX_OPEN_SHARDS: usize = 256;
/// Largest index file, in bytes.
const MAX_INDEX: u64 = 256 << 20;
/// Most samples in one shard: the table of offsets is read as a whole.
const MAX_SAMPLES: u32 = 1 << 26;

/// Images in the MDS shards of one or more folders, read where they lie.
///
/// Columns are told by their encoding (`jpeg`, `png`, `pil`, `bytes` hold an image; an integer
/// called `label`, `class`, `y` or `target` the class number) unless [`Fields`] names them.
/// Uncompressed shards are read sample by sample, compressed ones (`zstd`, `gz`) are decompressed
/// whole and kept in a cache of 512 MiB, or of two shards where they are larger than half of that.
#[derive(Debug)]
pub struct MdsSource {
    shards: Vec<Shard>,
    /// For each sample its shard and its place in it.
    samples: Vec<Place>,
    /// First sample of each shard.
    starts: Vec<u64>,
    num_classes: Option<u32>,
    fingerprint: String,
    notes: Vec<String>,
    limits: DecodeLimits,
    cache: BlockCache<Vec<u8>>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    /// None for a compressed shard.
    file: ShardFile,
    /// Before its samples' keys: the folder's name where there are several.
    prefix: String,
    entry: ShardEntry,
    layout: Layout,
}

/// How a shard is read.
#[derive(Debug)]
enum ShardFile {
    /// Kept open.
    Open(File),
    /// Opened for each read.
    Closed,
    /// Decompressed as a whole.
    Zipped,
}

#[derive(Debug)]
struct Place {
    shard: u32,
    /// Number within the shard.
    number: u32,
    start: u32,
    end: u32,
    label: Option<u32>,
}

impl MdsSource {
    /// Opens the folders that a pattern names (a list, braces, wildcards; a folder or its
    /// `index.json`), with the choice of columns behind `?`.
    ///
    /// # Errors
    /// [`Error::Spec`] for an unusable pattern, [`Error::Format`] with file and offset for an index
    /// or a shard that does not follow its format, [`Error::Empty`] without samples.
    pub fn open(pattern: &str, limits: DecodeLimits) -> Result<Self> {
        let spec_error = |reason| Error::Spec { spec: format!("mds:{pattern}"), reason };
        let (pattern, fields) = Fields::split(pattern).map_err(spec_error)?;
        let mut this = Self {
            shards: Vec::new(),
            samples: Vec::new(),
            starts: Vec::new(),
            num_classes: None,
            fingerprint: String::new(),
            notes: Vec::new(),
            limits,
            cache: BlockCache::new(CACHE_BYTES),
        };
        let folders = paths::find_paths("mds", pattern)?;
        for path in &folders {
            this.add_folder(path, &fields, folders.len() > 1)?;
        }
        if this.samples.is_empty() {
            let reason = format!("{} shards with 0 samples", this.shards.len());
            return Err(Error::Empty { location: pattern.to_owned(), reason });
        }
        let mut fingerprint = Fingerprint::new("mds");
        for place in &this.samples {
            let shard = &this.shards[place.shard as usize];
            let key = shard.key(place.number);
            fingerprint.add(key.as_bytes(), u64::from(place.end - place.start));
            this.num_classes = this.num_classes.max(place.label.map(|label| label + 1));
        }
        this.fingerprint = fingerprint.finish();
        this.cache.reserve(this.largest_zipped().unwrap_or(0));
        Ok(this)
    }

    /// Bytes of the largest compressed shard when it is decompressed.
    fn largest_zipped(&self) -> Option<u64> {
        let zipped = self.shards.iter().filter(|shard| matches!(shard.file, ShardFile::Zipped));
        zipped.map(|shard| shard.entry.raw_bytes).max()
    }

    fn add_folder(&mut self, path: &Path, fields: &Fields, several: bool) -> Result<()> {
        let index = if path.is_dir() { path.join("index.json") } else { path.to_owned() };
        let folder = index.parent().unwrap_or(Path::new("")).to_owned();
        let fail = |reason| Error::Format { path: index.clone(), offset: 0, reason };
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let prefix = if several { format!("{name}/") } else { String::new() };
        let text = read_small(&index)?;
        for entry in parse_index(&text).map_err(fail)? {
            let layout = Layout::new(&entry.columns, fields).map_err(fail)?;
            self.add_shard(&folder, &prefix, entry, layout)?;
        }
        Ok(())
    }

    /// Reads a shard's table and labels.
    fn add_shard(
        &mut self,
        folder: &Path,
        prefix: &str,
        entry: ShardEntry,
        layout: Layout,
    ) -> Result<()> {
        let raw = folder.join(&entry.raw_name);
        let number = self.shards.len() as u32;
        // The uncompressed file is preferred where both are there, as `keep_zip` leaves them.
        let zip = entry.zip.as_ref().filter(|_| !raw.is_file());
        let path = zip.map_or(raw, |(name, _)| folder.join(name));
        let fail = |offset, reason| Error::Format { path: path.clone(), offset, reason };
        let (file, bytes) = if zip.is_some() {
            let (path, file, prefix) = (path.clone(), ShardFile::Zipped, prefix.to_owned());
            let shard = Shard { path, file, prefix, entry, layout };
            let bytes = self.cached(number, &shard)?;
            self.shards.push(shard);
            (None, bytes)
        } else {
            let (file, length) = open_regular(&path)?;
            if length != entry.raw_bytes {
                let stated = entry.raw_bytes;
                let reason = format!("the index states {stated} bytes, the file has {length}");
                return Err(fail(length.min(stated), reason));
            }
            let (path, prefix) = (path.clone(), prefix.to_owned());
            self.shards.push(Shard { path, file: ShardFile::Closed, prefix, entry, layout });
            (Some(file), Arc::default())
        };
        let reader: &dyn ReadAt = match &file {
            Some(file) => file,
            None => &*bytes,
        };
        let Some(shard) = self.shards.last_mut() else { return Ok(()) };
        let table = read_table(reader, shard.entry.raw_bytes, shard.entry.samples)
            .map_err(|reason| fail(0, reason))?;
        for (at, pair) in (0..).zip(table.windows(2)) {
            // A label that cannot be read condemns its sample when that is read.
            let label = shard.layout.read_label(reader, pair[0], pair[1]).ok().flatten();
            let (start, end) = (pair[0], pair[1]);
            self.samples.push(Place { shard: number, number: at, start, end, label });
        }
        if let Some(file) = file.filter(|_| (number as usize) < MAX_OPEN_SHARDS) {
            shard.file = ShardFile::Open(file);
        }
        self.starts.push(self.samples.len() as u64 - u64::from(shard.entry.samples));
        Ok(())
    }

    /// A compressed shard's bytes.
    fn cached(&self, number: u32, shard: &Shard) -> Result<Arc<Vec<u8>>> {
        let load = || index::decompress(&shard.path, &shard.entry);
        self.cache.get((number, 0), shard.entry.raw_bytes, load)
    }

    fn place(&self, index: u64) -> Option<(&Shard, &Place)> {
        let place = self.samples.get(usize::try_from(index).ok()?)?;
        Some((self.shards.get(place.shard as usize)?, place))
    }

    /// The bytes of one sample: all of its columns.
    fn bytes(&self, index: u64) -> Result<(&Shard, Vec<u8>), Defect> {
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let Some((shard, place)) = self.place(index) else {
            return Err(self.out_of_range(index));
        };
        let size = u64::from(place.end - place.start);
        check_encoded_size(size, &self.limits).map_err(fail)?;
        let mut bytes = vec![0; size as usize];
        let result = match &shard.file {
            ShardFile::Open(file) => file.fill(&mut bytes, u64::from(place.start)),
            ShardFile::Closed => File::open(&shard.path)
                .map_err(|error| error.to_string())
                .and_then(|file| file.fill(&mut bytes, u64::from(place.start))),
            ShardFile::Zipped => match self.cached(place.shard, shard) {
                Ok(all) => all.fill(&mut bytes, u64::from(place.start)),
                Err(error) => Err(error.to_string()),
            },
        };
        result.map_err(|reason| fail((DefectKind::Unreadable, reason)))?;
        Ok((shard, bytes))
    }

    /// The values of one sample by column.
    fn slots(&self, index: u64) -> Result<(&Shard, Vec<u8>, Slots), Defect> {
        let (shard, bytes) = self.bytes(index)?;
        match shard.layout.slots(&bytes) {
            Ok(slots) => Ok((shard, bytes, slots)),
            Err(reason) => Err(self.defect(index, DefectKind::Corrupt, reason)),
        }
    }

    fn string(
        &self,
        index: u64,
        column: fn(&Layout) -> Option<usize>,
    ) -> Result<Option<String>, Defect> {
        let Some((shard, _)) = self.place(index) else {
            return Err(self.out_of_range(index));
        };
        let Some(column) = column(&shard.layout) else {
            return Ok(None);
        };
        let (_, bytes, slots) = self.slots(index)?;
        let value =
            slots.get(column).and_then(|range| bytes.get(range.clone())).unwrap_or_default();
        match std::str::from_utf8(value) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(self.defect(index, DefectKind::Corrupt, "the text is no UTF-8".into())),
        }
    }
}

/// Bytes at an offset, from a file or from memory.
pub(crate) trait ReadAt {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<(), String>;
}

impl ReadAt for File {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        read_exact_at(self, buffer, offset).map_err(|error| error.to_string())
    }
}

impl ReadAt for [u8] {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        let start = usize::try_from(offset).ok();
        let from = start.and_then(|start| self.get(start..)?.get(..buffer.len()));
        let from = from.ok_or_else(|| format!("byte {offset} is past the end"))?;
        buffer.copy_from_slice(from);
        Ok(())
    }
}

impl ReadAt for &[u8] {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        (**self).fill(buffer, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        self.as_slice().fill(buffer, offset)
    }
}

/// A shard's table of offsets, checked: `n + 1` that rise and lie in the file.
pub(crate) fn read_table(
    shard: &(impl ReadAt + ?Sized),
    length: u64,
    expected: u32,
) -> Result<Vec<u32>, String> {
    let mut word = [0; 4];
    shard.fill(&mut word, 0)?;
    let count = u32::from_le_bytes(word);
    if count != expected {
        return Err(format!("the index states {expected} samples, the shard {count}"));
    }
    let size = (u64::from(count) + 1) * 4;
    if count > MAX_SAMPLES || 4 + size > length {
        return Err(format!("{count} samples need a table of {size} bytes in a file of {length}"));
    }
    let mut bytes = vec![0; size as usize];
    shard.fill(&mut bytes, 4)?;
    let words =
        bytes.chunks_exact(4).map(|word| word.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b)));
    let table: Vec<u32> = words.collect();
    let mut least = 4 + size;
    for (at, &offset) in table.iter().enumerate() {
        if u64::from(offset) < least || u64::from(offset) > length {
            return Err(format!("offset {at} is {offset}, expected {least} to {length}"));
        }
        least = u64::from(offset);
    }
    Ok(table)
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    if length > MAX_INDEX {
        let reason = format!("an index of {length} bytes, at most {MAX_INDEX} are accepted");
        return Err(Error::Format { path: path.to_owned(), offset: 0, reason });
    }
    let mut text = vec![0; length as usize];
    read_exact_at(&file, &mut text, 0).map_err(Error::io("read", path))?;
    Ok(text)
}

impl Shard {
    /// `shard.00000/12`: the file's name without its extensions, and the number in it.
    fn key(&self, number: u32) -> String {
        let name = self.entry.raw_name.strip_suffix(".mds").unwrap_or(&self.entry.raw_name);
        format!("{}{name}/{number:06}", self.prefix)
    }
}

impl Source for MdsSource {
    fn len(&self) -> u64 {
        self.samples.len() as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let (shard, mut bytes, slots) = self.slots(index)?;
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let label = match shard.layout.label {
            None => None,
            Some(column) => Some(
                shard
                    .layout
                    .label_value(&bytes, &slots, column)
                    .map_err(|reason| fail((DefectKind::Corrupt, reason)))?,
            ),
        };
        let range = slots.get(shard.layout.image).cloned().unwrap_or_default();
        bytes.truncate(range.end);
        bytes.drain(..range.start.min(bytes.len()));
        let encoding = shard.layout.columns[shard.layout.image].encoding;
        let payload = image_payload(encoding, bytes, &self.limits).map_err(fail)?;
        Ok(Sample { payload, label })
    }

    fn key(&self, index: u64) -> String {
        self.place(index).map_or_else(String::new, |(shard, place)| shard.key(place.number))
    }

    fn text(&self, index: u64) -> Result<Option<String>, Defect> {
        self.string(index, |layout| layout.text)
    }

    fn metadata(&self, index: u64) -> Result<Option<String>, Defect> {
        let text = self.string(index, |layout| layout.metadata)?;
        if let Some(text) = &text {
            check_json(text).map_err(|reason| self.defect(index, DefectKind::Corrupt, reason))?;
        }
        Ok(text)
    }

    fn location(&self, index: u64) -> String {
        self.place(index).map_or_else(
            || format!("sample {index}"),
            |(shard, place)| format!("{}, sample {}", shard.path.display(), place.number),
        )
    }

    fn label(&self, index: u64) -> Option<u32> {
        self.place(index)?.1.label
    }

    fn num_classes(&self) -> Option<u32> {
        self.num_classes
    }

    fn shard_starts(&self) -> Option<&[u64]> {
        Some(&self.starts)
    }

    /// As many compressed shards as fill half of the cache; uncompressed ones are read sample by
    /// sample.
    fn shuffle_window(&self) -> Option<usize> {
        Some(self.cache.window(self.largest_zipped()?))
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}
