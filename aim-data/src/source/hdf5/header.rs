//! Object headers: the messages that describe a group or an array.

use super::{Cursor, Integer, MAX_RANK, Problem, Reader, problem};

/// Most messages of an object, and most bytes that they may take.
const MAX_MESSAGES: usize = 4096;
const MAX_BYTES: u64 = 4 << 20;
/// Most filters of an array.
const MAX_FILTERS: usize = 8;

const DATASPACE: u16 = 0x01;
const DATATYPE: u16 = 0x03;
const LAYOUT: u16 = 0x08;
const FILTERS: u16 = 0x0b;
const CONTINUATION: u16 = 0x10;

/// The messages of one object.
pub(super) struct Messages {
    address: u64,
    list: Vec<Message>,
}

pub(super) struct Message {
    pub(super) kind: u16,
    shared: bool,
    /// Where the data lie.
    pub(super) address: u64,
    pub(super) data: Vec<u8>,
}

/// Where the elements of an array are.
pub(super) enum Layout {
    Compact(Vec<u8>),
    Contiguous {
        address: u64,
        length: u64,
    },
    /// The B-tree's address, and the sizes of a chunk.
    Chunked {
        address: u64,
        chunk: Vec<u64>,
    },
}

/// A step that chunks went through when they were written, in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Deflate,
    Shuffle,
    /// A checksum of four bytes behind the data.
    Fletcher32,
}

impl Messages {
    /// Reads the header at an address with all its continuations.
    pub(super) fn read(reader: &Reader<'_>, address: u64) -> Result<Self, Problem> {
        let mut this = Self { address, list: Vec::new() };
        let head = reader.bytes(address, 16)?;
        let (mut blocks, version_2) = if head.starts_with(b"OHDR") {
            (vec![second_version(reader, address)?], Some(head[5]))
        } else {
            let mut cursor = reader.cursor(&head, address);
            let version = cursor.number(1)?;
            if version != 1 {
                return Err(problem(address, format!("object header version {version}")));
            }
            cursor.take(7)?;
            // Behind the size are four bytes of padding.
            (vec![(address.saturating_add(16), cursor.number(4)?)], None)
        };
        let (mut next, mut total) = (0, 0u64);
        while let Some(&(at, length)) = blocks.get(next) {
            next += 1;
            total = total.saturating_add(length);
            if total > MAX_BYTES || blocks.len() > MAX_MESSAGES {
                return Err(problem(
                    at,
                    format!("an object header of more than {MAX_BYTES} bytes"),
                ));
            }
            let bytes = reader.bytes(at, length)?;
            let mut cursor = reader.cursor(&bytes, at);
            if version_2.is_some() && next > 1 {
                cursor.expect(b"OCHK")?;
                // Its checksum is no message.
                let end = bytes.len().saturating_sub(4).max(4);
                cursor.bytes = &bytes[..end.min(bytes.len())];
            }
            this.add(reader, &mut cursor, version_2, &mut blocks)?;
        }
        Ok(this)
    }

    fn add(
        &mut self,
        reader: &Reader<'_>,
        cursor: &mut Cursor<'_>,
        version_2: Option<u8>,
        blocks: &mut Vec<(u64, u64)>,
    ) -> Result<(), Problem> {
        let head = match version_2 {
            None => 8,
            Some(flags) => 4 + if flags & 4 != 0 { 2 } else { 0 },
        };
        // What is left behind the last message is a gap.
        while cursor.left() >= head {
            let kind = cursor.number(if version_2.is_some() { 1 } else { 2 })? as u16;
            let size = cursor.number(2)? as usize;
            let flags = cursor.number(1)?;
            cursor.take(if version_2.is_some() { head - 4 } else { 3 })?;
            let address = cursor.address.saturating_add(cursor.at as u64);
            let data = cursor.take(size)?.to_vec();
            if self.list.len() >= MAX_MESSAGES {
                return Err(cursor.fail(format!("more than {MAX_MESSAGES} messages")));
            }
            if kind == CONTINUATION {
                let mut inner = reader.cursor(&data, address);
                blocks.push((inner.address()?, inner.length()?));
            }
            self.list.push(Message { kind, shared: flags & 2 != 0, address, data });
        }
        Ok(())
    }

    /// All messages of a kind.
    pub(super) fn all(&self, kind: u16) -> impl Iterator<Item = &Message> {
        self.list.iter().filter(move |message| message.kind == kind)
    }

    fn one(&self, kind: u16, what: &str) -> Result<&Message, Problem> {
        let found = self.all(kind).next();
        let found = found.ok_or_else(|| problem(self.address, format!("there is no {what}")))?;
        if found.shared {
            let reason = format!("the {what} is stored elsewhere (a committed or shared one)");
            return Err(problem(found.address, reason));
        }
        Ok(found)
    }

    /// The sizes of the array.
    pub(super) fn dimensions(&self, reader: &Reader<'_>) -> Result<Vec<u64>, Problem> {
        let message = self.one(DATASPACE, "array shape: is it a group?")?;
        let mut cursor = reader.cursor(&message.data, message.address);
        let (version, rank) = (cursor.number(1)?, cursor.number(1)? as usize);
        cursor.take(match version {
            1 => 6,
            2 => 2,
            _ => return Err(cursor.fail(format!("dataspace version {version}"))),
        })?;
        if rank == 0 || rank > MAX_RANK {
            return Err(cursor.fail(format!("{rank} dimensions: expected 1 to {MAX_RANK}")));
        }
        (0..rank).map(|_| cursor.length()).collect()
    }

    /// The type of the elements, which must be integers.
    pub(super) fn element(&self, reader: &Reader<'_>) -> Result<Integer, Problem> {
        let message = self.one(DATATYPE, "element type")?;
        let mut cursor = reader.cursor(&message.data, message.address);
        let class = cursor.number(1)? & 15;
        let flags = cursor.number(3)?;
        let bytes = cursor.number(4)?;
        // h5py stores booleans as an enumeration of one byte.
        match (class, bytes) {
            (0, 1 | 2 | 4 | 8) => Ok(Integer {
                bytes: bytes as u8,
                signed: flags & 8 != 0,
                big_endian: flags & 1 != 0,
            }),
            (8, 1) => Ok(Integer { bytes: 1, signed: false, big_endian: false }),
            _ => {
                let reason = format!(
                    "elements of class {class} with {bytes} bytes: expected integers of 1, 2, 4 or \
                     8 bytes"
                );
                Err(problem(message.address, reason))
            }
        }
    }

    /// Where the elements are.
    pub(super) fn layout(&self, reader: &Reader<'_>) -> Result<Layout, Problem> {
        let message = self.one(LAYOUT, "data layout")?;
        let mut cursor = reader.cursor(&message.data, message.address);
        let version = cursor.number(1)?;
        match version {
            1 | 2 => old_layout(&mut cursor),
            3 | 4 => {
                let class = cursor.number(1)?;
                match class {
                    0 => {
                        let count = cursor.number(2)? as usize;
                        Ok(Layout::Compact(cursor.take(count)?.to_vec()))
                    }
                    1 => Ok(Layout::Contiguous {
                        address: cursor.address()?,
                        length: cursor.length()?,
                    }),
                    2 if version == 3 => {
                        let rank = cursor.number(1)? as usize;
                        let address = cursor.address()?;
                        Ok(Layout::Chunked { address, chunk: sizes(&mut cursor, rank)? })
                    }
                    _ => Err(cursor.fail(newer(version))),
                }
            }
            _ => Err(cursor.fail(newer(version))),
        }
    }

    /// The filters in the order in which they were applied.
    pub(super) fn filters(&self, reader: &Reader<'_>) -> Result<Vec<Filter>, Problem> {
        if self.all(FILTERS).next().is_none() {
            return Ok(Vec::new());
        }
        let message = self.one(FILTERS, "filter pipeline")?;
        let mut cursor = reader.cursor(&message.data, message.address);
        let (version, count) = (cursor.number(1)?, cursor.number(1)? as usize);
        if !(1..=2).contains(&version) || count > MAX_FILTERS {
            return Err(cursor.fail(format!("{count} filters, version {version}")));
        }
        if version == 1 {
            cursor.take(6)?;
        }
        let mut filters = Vec::with_capacity(count);
        for _ in 0..count {
            let id = cursor.number(2)?;
            let name = if version == 1 || id >= 256 { cursor.number(2)? as usize } else { 0 };
            cursor.take(2)?;
            let values = cursor.number(2)? as usize;
            // Version 1 pads names to 8 bytes and the values to an even number.
            let (name, values) = match version {
                1 => (name.div_ceil(8) * 8, values + values % 2),
                _ => (name, values),
            };
            let name = String::from_utf8_lossy(cursor.take(name)?).into_owned();
            cursor.take(4 * values)?;
            filters.push(match id {
                1 => Filter::Deflate,
                2 => Filter::Shuffle,
                3 => Filter::Fletcher32,
                _ => {
                    let name = name.trim_end_matches('\0').escape_debug().to_string();
                    let reason =
                        format!("filter {id} ({name}): expected deflate, shuffle or fletcher32");
                    return Err(cursor.fail(reason));
                }
            });
        }
        Ok(filters)
    }
}

fn newer(version: u64) -> String {
    format!(
        "data layout version {version}, of files for newer libraries only: write it again for older \
         ones (`h5repack --low=0 --high=1`, or h5py without libver='latest')"
    )
}

/// Address and length of the messages of a version 2 header.
fn second_version(reader: &Reader<'_>, address: u64) -> Result<(u64, u64), Problem> {
    // Up to six bytes, four times and two counts, eight bytes of size.
    let available = reader.len.saturating_sub(reader.base.saturating_add(address));
    let head = reader.bytes(address, available.min(34))?;
    let mut cursor = reader.cursor(&head, address);
    cursor.take(4)?;
    let (version, flags) = (cursor.number(1)?, cursor.number(1)?);
    if version != 2 {
        return Err(problem(address, format!("object header version {version}")));
    }
    cursor.take(if flags & 32 != 0 { 16 } else { 0 })?;
    cursor.take(if flags & 16 != 0 { 4 } else { 0 })?;
    let length = cursor.number(1 << (flags & 3))?;
    Ok((address.saturating_add(cursor.at as u64), length))
}

/// Versions 1 and 2, written before HDF5 1.6.3.
fn old_layout(cursor: &mut Cursor<'_>) -> Result<Layout, Problem> {
    let (rank, class) = (cursor.number(1)? as usize, cursor.number(1)?);
    cursor.take(5)?;
    match class {
        1 => {
            let address = cursor.address()?;
            // The sizes of the array; its bytes are as many as it needs.
            Ok(Layout::Contiguous { address, length: u64::MAX })
        }
        2 => {
            let address = cursor.address()?;
            Ok(Layout::Chunked { address, chunk: sizes(cursor, rank)? })
        }
        0 => {
            cursor.take(4 * rank)?;
            let count = cursor.number(4)? as usize;
            Ok(Layout::Compact(cursor.take(count)?.to_vec()))
        }
        _ => Err(cursor.fail(format!("storage of class {class}"))),
    }
}

/// The sizes of a chunk: `rank` counts the element's size as a last dimension, which is left out.
fn sizes(cursor: &mut Cursor<'_>, rank: usize) -> Result<Vec<u64>, Problem> {
    if !(2..=MAX_RANK + 1).contains(&rank) {
        return Err(cursor.fail(format!("chunks of {} dimensions", rank.saturating_sub(1))));
    }
    (1..rank).map(|_| cursor.number(4)).collect()
}
