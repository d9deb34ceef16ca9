//! Reading the headers of a tar shard, without unpacking anything.
//!
//! The `tar` crate parses header blocks; walking from one to the next is done here, so that every
//! length is checked against the file before it is used and every complaint can name its offset.

mod label;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{Error, Result, ShardProblem};
use crate::source::{Field, Fields, open_regular};

const BLOCK: u64 = 512;
/// Longest name or extended header accepted, in bytes.
const MAX_EXTENDED: u64 = 1 << 16;
/// Longest `.cls` member read, in bytes.
const MAX_CLS: u64 = 32;
/// Longest `.json` member read for a label, in bytes.
const MAX_JSON: u64 = 16 << 20;

/// One image of a shard.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct TarSample {
    /// Path up to the first dot of the file name.
    pub(crate) key: Box<str>,
    /// Extension of the image, lower case.
    pub(crate) extension: Box<str>,
    /// Where the image's bytes start in the shard.
    pub(crate) offset: u64,
    /// Number of bytes.
    pub(crate) size: u64,
    /// Content of the sample's label member.
    pub(crate) label: Option<u32>,
    /// Where the bytes of the sample's text and metadata members are.
    pub(crate) beside: Option<Box<Beside>>,
}

/// Members beside an image: offset and size of each.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Beside {
    pub(crate) text: Option<(u64, u64)>,
    pub(crate) metadata: Option<(u64, u64)>,
}

/// What a shard holds.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct TarIndex {
    pub(crate) samples: Vec<TarSample>,
    /// Keys that have no image, only other files.
    pub(crate) without_image: u64,
}

/// Indexes one shard: every sample that has an image, in the order of the archive.
pub(crate) fn index_shard(path: &Path, fields: &Fields) -> Result<TarIndex> {
    let (file, length) = open_regular(path)?;
    index_reader(path, file, length, fields)
}

/// As [`index_shard`], from any bytes; `path` is for messages only.
pub(crate) fn index_reader(
    path: &Path,
    reader: impl Read + Seek,
    length: u64,
    fields: &Fields,
) -> Result<TarIndex> {
    let mut scanner =
        Scanner { path, reader: BufReader::new(reader), base: 0, length, position: 0 };
    let mut index = TarIndex::default();
    let mut finished: HashMap<String, u64> = HashMap::new();
    let mut group: Option<Group> = None;
    while let Some(member) = scanner.next_member()? {
        let Some((key, extension)) = split_name(&member.name) else {
            continue;
        };
        let fail = |problem| scanner.problem(member.header, key, problem);
        if group.as_ref().is_none_or(|group| group.key != key) {
            if let Some(done) = group.take() {
                finished.insert(done.key.clone(), done.start);
                done.finish(&mut index);
            }
            if let Some(&first) = finished.get(key) {
                return Err(fail(ShardProblem::Interleaved { first }));
            }
        }
        let group = group.get_or_insert_with(|| Group::new(key, member.header));
        if group.extensions.contains(&extension) {
            let text = format!("a second `.{extension}` file of the same sample");
            return Err(fail(ShardProblem::Duplicate(text)));
        }
        if let Some(rank) = fields.image_rank(&extension) {
            match &group.image {
                // Without a choice of fields it is not clear which one is meant.
                Some((first, ..)) if fields.image.is_empty() => {
                    let text = format!(
                        "the sample has two images, .{first} and .{extension}; choose one with \
                         `?image={first}`"
                    );
                    return Err(fail(ShardProblem::Duplicate(text)));
                }
                Some((_, best, ..)) if *best <= rank => {}
                _ => group.image = Some((extension.clone(), rank, member.data, member.size)),
            }
        } else if fields.text.is(&extension, "txt") {
            group.beside.text = Some((member.data, member.size));
        } else if let Some(label_key) = fields.label_key(&extension) {
            if member.size > MAX_JSON {
                let found = format!("in {} bytes, at most {MAX_JSON} are read", member.size);
                let problem = ShardProblem::BadJsonLabel { key: label_key.to_owned(), found };
                return Err(scanner.problem(member.header, key, problem));
            }
            let text = scanner.read_member(&member, MAX_JSON, key)?;
            group.label = label::in_json(&text, label_key)
                .map_err(|problem| scanner.problem(member.header, key, problem))?;
            if fields.metadata != Field::None {
                group.beside.metadata = Some((member.data, member.size));
            }
        } else if fields.metadata.is(&extension, "json") {
            group.beside.metadata = Some((member.data, member.size));
        } else if fields.label.is(&extension, "cls") {
            let text = scanner.read_member(&member, MAX_CLS, key)?;
            let label = label::in_text(&text)
                .map_err(|problem| scanner.problem(member.header, key, problem))?;
            group.label = Some(label);
        }
        group.extensions.push(extension);
    }
    if let Some(done) = group {
        done.finish(&mut index);
    }
    Ok(index)
}

/// The files of one key, which follow each other.
struct Group {
    key: String,
    start: u64,
    extensions: Vec<String>,
    /// Extension, rank among the choices, offset and size.
    image: Option<(String, usize, u64, u64)>,
    label: Option<u32>,
    beside: Beside,
}

impl Group {
    fn new(key: &str, start: u64) -> Self {
        let (extensions, beside) = (Vec::new(), Beside::default());
        Self { key: key.to_owned(), start, extensions, image: None, label: None, beside }
    }

    fn finish(self, index: &mut TarIndex) {
        match self.image {
            None => index.without_image += 1,
            Some((extension, _, offset, size)) => index.samples.push(TarSample {
                key: self.key.into(),
                extension: extension.into(),
                offset,
                size,
                label: self.label,
                beside: (self.beside != Beside::default()).then(|| Box::new(self.beside)),
            }),
        }
    }
}

/// Key and lower-case extension; `None` for names without either and for webdataset's own
/// `__meta__` files, which its readers pass over too.
pub(crate) fn split_name(name: &str) -> Option<(&str, String)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let base = &name[start..];
    let dot = base.find('.')?;
    if dot == 0 || (base.starts_with("__") && base.ends_with("__")) {
        return None;
    }
    Some((&name[..start + dot], base[dot + 1..].to_lowercase()))
}

/// A regular file in the archive.
pub(crate) struct Member {
    pub(crate) name: String,
    /// Offset of its header.
    pub(crate) header: u64,
    /// Offset of its data.
    pub(crate) data: u64,
    pub(crate) size: u64,
}

/// What extended headers say about the next member.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Walks from header to header of an archive, or of an archive that is a member of another.
pub(crate) struct Scanner<'a, R> {
    path: &'a Path,
    reader: BufReader<R>,
    /// Where the archive starts in the reader; every other offset counts from there.
    base: u64,
    length: u64,
    position: u64,
}

impl<'a> Scanner<'a, File> {
    /// The archive that fills bytes `base` to `base + length` of a file.
    pub(crate) fn within(path: &'a Path, mut file: File, base: u64, length: u64) -> Result<Self> {
        file.seek(SeekFrom::Start(base)).map_err(Error::io("read", path))?;
        Ok(Self { path, reader: BufReader::new(file), base, length, position: 0 })
    }
}

impl<R: Read + Seek> Scanner<'_, R> {
    pub(crate) fn problem(&self, offset: u64, key: &str, problem: ShardProblem) -> Error {
        let offset = self.base + offset;
        Error::Shard { shard: self.path.to_owned(), offset, key: key.to_owned(), problem }
    }

    /// The error of a read: a remote shard's own, which names the bytes, or the system's.
    fn unread(&self, error: std::io::Error) -> Error {
        match crate::remote::behind(&error) {
            Some(remote) => Error::Remote(remote.clone()),
            None => Error::io("read", self.path)(error),
        }
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        // A relative seek keeps the buffer, which often holds the next header already.
        let delta = position as i64 - self.position as i64;
        self.reader.seek_relative(delta).map_err(|error| self.unread(error))?;
        self.position = position;
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.reader.read_exact(buffer).map_err(|error| self.unread(error))?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// The next regular file, or `None` at the end of the archive.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>> {
        let mut extended = Extended::default();
        loop {
            let start = self.position;
            let Some(header) = self.next_header(start)? else {
                return Ok(None);
            };
            let raw_name = extended.name.clone().unwrap_or_else(|| header.path_bytes().into());
            let shown = String::from_utf8_lossy(&raw_name).into_owned();
            let fail = |this: &Self, problem| Err(this.problem(start, &shown, problem));
            let size = match (extended.size, header.entry_size()) {
                (Some(size), _) | (None, Ok(size)) => size,
                (None, Err(error)) => {
                    return fail(self, ShardProblem::BadHeader(error.to_string()));
                }
            };
            let data = start + BLOCK;
            if size > self.length.saturating_sub(data) {
                let text = format!(
                    "the member is said to have {size} bytes, the file has {} left",
                    self.length.saturating_sub(data)
                );
                return fail(self, ShardProblem::Truncated(text));
            }
            let next = data + size.div_ceil(BLOCK) * BLOCK;
            match header.entry_type().as_byte() {
                b'L' => extended.name = Some(self.read_long_name(start, size, &shown)?),
                b'x' => self.read_pax(start, size, &shown, &mut extended)?,
                // Global extended headers and long link names say nothing about a file's bytes.
                b'g' | b'K' => {}
                b'5' => extended = Extended::default(),
                b'0' | 0 | b'7' if !raw_name.ends_with(b"/") => {
                    let name = safe_name(&shown).map_err(|why| self.problem(start, &shown, why))?;
                    self.seek(next.min(self.length))?;
                    return Ok(Some(Member { name, header: start, data, size }));
                }
                b'0' | 0 | b'7' => extended = Extended::default(),
                other => return fail(self, ShardProblem::NotAFile(describe_type(other))),
            }
            self.seek(next.min(self.length))?;
        }
    }

    /// The header block at `start`, checked; `None` where the end-of-archive block is.
    fn next_header(&mut self, start: u64) -> Result<Option<tar::Header>> {
        let left = self.length - start;
        if left < BLOCK {
            let text = format!(
                "expected a header or the end-of-archive block, found {left} more bytes of {}",
                self.length
            );
            return Err(self.problem(start, "", ShardProblem::Truncated(text)));
        }
        let mut header = tar::Header::new_old();
        self.read(header.as_mut_bytes())?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The checksum is the sum of all bytes with its own field taken as spaces.
        let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
        let field: u32 = bytes[148..156].iter().map(|&byte| u32::from(byte)).sum();
        let sum = sum - field + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(stated) if stated == sum => Ok(Some(header)),
            _ => {
                let text = "its checksum does not match".to_owned();
                Err(self.problem(start, "", ShardProblem::BadHeader(text)))
            }
        }
    }

    /// Reads a small member's data; the position moves past them.
    fn read_data(&mut self, start: u64, size: u64, limit: u64, name: &str) -> Result<Vec<u8>> {
        if size > limit {
            let text = format!("{size} bytes of metadata, at most {limit} are accepted");
            return Err(self.problem(start, name, ShardProblem::BadHeader(text)));
        }
        let mut data = vec![0; size as usize];
        self.read(&mut data)?;
        Ok(data)
    }

    fn read_long_name(&mut self, start: u64, size: u64, shown: &str) -> Result<Vec<u8>> {
        let mut name = self.read_data(start, size, MAX_EXTENDED, shown)?;
        name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    /// Reads `LENGTH KEY=VALUE\n` records; `path` and `size` override the next header.
    fn read_pax(&mut self, start: u64, size: u64, shown: &str, out: &mut Extended) -> Result<()> {
        let data = self.read_data(start, size, MAX_EXTENDED, shown)?;
        for record in tar::PaxExtensions::new(&data) {
            let parsed = record.map_err(|error| error.to_string()).and_then(|record| {
                match record.key_bytes() {
                    b"path" => out.name = Some(record.value_bytes().to_vec()),
                    b"size" => {
                        let text = record.value().map_err(|error| error.to_string())?;
                        out.size = Some(text.parse().map_err(|_| format!("size `{text}`"))?);
                    }
                    _ => {}
                }
                Ok(())
            });
            if let Err(text) = parsed {
                return Err(self.problem(start, shown, ShardProblem::BadHeader(text)));
            }
        }
        Ok(())
    }

    /// Reads the data of a member just returned, and goes back to where scanning continues.
    fn read_member(&mut self, member: &Member, limit: u64, key: &str) -> Result<Vec<u8>> {
        if member.size > limit {
            let text = format!("{} bytes", member.size);
            return Err(self.problem(member.header, key, ShardProblem::BadLabel(text)));
        }
        let resume = self.position;
        self.seek(member.data)?;
        let mut data = vec![0; member.size as usize];
        self.read(&mut data)?;
        self.seek(resume)?;
        Ok(data)
    }
}

/// A member name without leading `./`, refused when it points outside the archive.
fn safe_name(name: &str) -> Result<String, ShardProblem> {
    if name.starts_with('/') {
        return Err(ShardProblem::UnsafePath("absolute"));
    }
    let mut parts = name.split('/').filter(|part| !part.is_empty() && *part != ".").peekable();
    if parts.peek().is_none() {
        return Err(ShardProblem::UnsafePath("empty"));
    }
    let mut safe = String::with_capacity(name.len());
    for part in parts {
        if part == ".." {
            return Err(ShardProblem::UnsafePath("a path with `..`"));
        }
        if !safe.is_empty() {
            safe.push('/');
        }
        safe.push_str(part);
    }
    Ok(safe)
}

fn describe_type(kind: u8) -> &'static str {
    match kind {
        b'1' => "hard link",
        b'2' => "symbolic link",
        b'3' => "character device",
        b'4' => "block device",
        b'6' => "FIFO",
        b'S' => "sparse file",
        _ => "special entry",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_first_dot() {
        assert_eq!(split_name("a/b.c/0001.seg.PNG"), Some(("a/b.c/0001", "seg.png".into())));
        assert_eq!(split_name("x.jpg"), Some(("x", "jpg".into())));
        for ignored in ["README", "a/.hidden", "__meta__.__", "a.b/c"] {
            assert_eq!(split_name(ignored), None, "{ignored}");
        }
    }

    #[test]
    fn unsafe_names_are_refused() {
        assert_eq!(safe_name("./a//b.jpg").unwrap(), "a/b.jpg");
        for bad in ["../a.jpg", "a/../../b", "/etc/passwd", "./", ""] {
            assert!(safe_name(bad).is_err(), "{bad}");
        }
    }
}
