//! HDF5 files, as far as arrays of integers need them: what h5py writes for PatchCamelyon.
//!
//! Read are superblocks of versions 0 to 3, groups by symbol table or by link messages, integers of
//! one to eight bytes, and compact, contiguous or chunked storage under a version 1 B-tree with the
//! filters deflate, shuffle and fletcher32. Anything else is refused by name. The format:
//! <https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html>.
//!
//! There are crates that read all of HDF5; none of them has been stable for long, and a file from
//! the network meets here three hundred lines instead of thirty thousand. Every length is checked
//! against the file before memory is reserved, every walk has a budget that the file's own length
//! sets.

mod chunks;
mod header;
mod names;

use crate::source::mds::ReadAt;

use chunks::Chunked;
use header::{Layout, Messages};

/// A number that stands for "there is nothing here", whatever its width.
const UNDEFINED: u64 = u64::MAX;
/// Most bytes of a block of rows: a larger one would not fit the cache that reads it.
const MAX_BLOCK: u64 = 512 << 20;
/// Bytes of rows read together where the file has no chunks.
const CONTIGUOUS_BLOCK: u64 = 1 << 20;
/// Most dimensions of an array.
const MAX_RANK: usize = 8;

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// In bytes from the start of the file.
    pub(crate) offset: u64,
    pub(crate) reason: String,
}

fn problem(offset: u64, reason: impl Into<String>) -> Problem {
    Problem { offset, reason: reason.into() }
}

/// Bytes of a file with the widths of its addresses and lengths.
#[derive(Clone, Copy)]
struct Reader<'a> {
    file: &'a dyn ReadAt,
    len: u64,
    /// Where address 0 lies.
    base: u64,
    address_bytes: u8,
    length_bytes: u8,
}

impl Reader<'_> {
    /// `count` bytes at an address, which must lie in the file.
    fn bytes(&self, address: u64, count: u64) -> Result<Vec<u8>, Problem> {
        let at = self.base.checked_add(address);
        let inside = at.and_then(|at| at.checked_add(count)).is_some_and(|end| end <= self.len);
        let (Some(at), true) = (at, inside) else {
            let reason =
                format!("{count} bytes at {address} lie outside the file of {} bytes", self.len);
            return Err(problem(address, reason));
        };
        let mut bytes = vec![0; count as usize];
        let read = self.file.fill(&mut bytes, at);
        read.map_err(|error| problem(address, format!("cannot read {count} bytes: {error}")))?;
        Ok(bytes)
    }

    fn cursor<'b>(&self, bytes: &'b [u8], address: u64) -> Cursor<'b> {
        let (address_bytes, length_bytes) = (self.address_bytes, self.length_bytes);
        Cursor { bytes, at: 0, address, address_bytes, length_bytes }
    }
}

/// Walks over bytes that were read at `address`.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    address: u64,
    address_bytes: u8,
    length_bytes: u8,
}

impl<'a> Cursor<'a> {
    fn fail(&self, reason: impl Into<String>) -> Problem {
        problem(self.address.saturating_add(self.at as u64), reason)
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.fail(format!("{count} bytes expected, {} are left", self.left())));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, width: usize) -> Result<u64, Problem> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// An address; all bits set is [`UNDEFINED`] at any width.
    fn address(&mut self) -> Result<u64, Problem> {
        self.wide(self.address_bytes)
    }

    fn length(&mut self) -> Result<u64, Problem> {
        self.wide(self.length_bytes)
    }

    fn wide(&mut self, width: u8) -> Result<u64, Problem> {
        let value = self.number(usize::from(width))?;
        let all = UNDEFINED >> (64 - 8 * u32::from(width));
        Ok(if value == all { UNDEFINED } else { value })
    }

    fn expect(&mut self, signature: &[u8; 4]) -> Result<(), Problem> {
        let start = self.at;
        if self.take(4)? == signature {
            return Ok(());
        }
        self.at = start;
        Err(self.fail(format!("expected the signature {}", String::from_utf8_lossy(signature))))
    }
}

/// The type of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Integer {
    /// 1, 2, 4 or 8.
    pub(crate) bytes: u8,
    pub(crate) signed: bool,
    pub(crate) big_endian: bool,
}

/// An array of integers in a file.
#[derive(Debug)]
pub(crate) struct Dataset {
    /// Sizes, the slowest dimension first; none is 0.
    pub(crate) dims: Vec<u64>,
    pub(crate) element: Integer,
    storage: Storage,
    base: u64,
}

#[derive(Debug)]
enum Storage {
    Compact(Vec<u8>),
    Contiguous { address: u64 },
    Chunked(Chunked),
}

impl Dataset {
    /// Opens the array called `name` in the root group.
    ///
    /// # Errors
    /// A [`Problem`] for anything that is damaged, or that this reader does not know.
    pub(crate) fn open(file: &dyn ReadAt, len: u64, name: &str) -> Result<Self, Problem> {
        let (reader, root) = superblock(file, len)?;
        let address = names::find(&reader, root, name)?;
        let messages = Messages::read(&reader, address)?;
        let dims = messages.dimensions(&reader)?;
        let element = messages.element(&reader)?;
        let total = dims.iter().try_fold(u64::from(element.bytes), |n, &dim| n.checked_mul(dim));
        let total = total.filter(|&total| total > 0 && dims.len() <= MAX_RANK && !dims.is_empty());
        let Some(total) = total else {
            return Err(problem(address, format!("`{name}` has the sizes {dims:?}")));
        };
        let storage = match messages.layout(&reader)? {
            Layout::Compact(bytes) if bytes.len() as u64 >= total => Storage::Compact(bytes),
            Layout::Contiguous { address: UNDEFINED, .. } => {
                return Err(problem(address, format!("nothing was ever written into `{name}`")));
            }
            Layout::Contiguous { address: data, length }
                if length >= total && reader.bytes_inside(data, total) =>
            {
                Storage::Contiguous { address: data }
            }
            Layout::Chunked { address: index, chunk } => {
                let filters = messages.filters(&reader)?;
                Storage::Chunked(Chunked::read(&reader, index, &dims, chunk, element, filters)?)
            }
            _ => {
                let reason = format!("`{name}` has the sizes {dims:?} but fewer bytes");
                return Err(problem(address, reason));
            }
        };
        let this = Self { dims, element, storage, base: reader.base };
        if this.block_rows().saturating_mul(this.row_bytes()) > MAX_BLOCK {
            let rows = this.block_rows();
            let reason = format!(
                "chunks of {rows} rows of {} bytes are beyond {MAX_BLOCK} bytes; write the file \
                 again with smaller chunks",
                this.row_bytes()
            );
            return Err(problem(address, reason));
        }
        Ok(this)
    }

    /// Bytes of one row: everything but the first dimension.
    pub(crate) fn row_bytes(&self) -> u64 {
        // Their product was checked when the array was opened.
        self.dims[1..].iter().product::<u64>() * u64::from(self.element.bytes)
    }

    /// Rows that are read together: a chunk's, whatever else lies beside it.
    pub(crate) fn block_rows(&self) -> u64 {
        match &self.storage {
            Storage::Chunked(chunked) => chunked.chunk[0].min(self.dims[0]),
            _ => (CONTIGUOUS_BLOCK / self.row_bytes()).clamp(1, self.dims[0]),
        }
    }

    /// Whether rows have to be decompressed or put together from chunks.
    pub(crate) fn is_chunked(&self) -> bool {
        matches!(self.storage, Storage::Chunked(_))
    }

    /// The rows from `block * block_rows()` on, `block_rows()` of them or as many as are left.
    ///
    /// # Errors
    /// A [`Problem`] for bytes that cannot be read or decompressed, or a block past the end.
    pub(crate) fn read_block(
        &self,
        file: &dyn ReadAt,
        len: u64,
        block: u64,
    ) -> Result<Vec<u8>, Problem> {
        let first = block.saturating_mul(self.block_rows());
        let Some(left) = self.dims[0].checked_sub(first).filter(|&left| left > 0) else {
            return Err(problem(0, format!("block {block} of {} rows", self.dims[0])));
        };
        let rows = left.min(self.block_rows());
        let (start, count) = (first * self.row_bytes(), rows * self.row_bytes());
        let reader = Reader { file, len, base: self.base, address_bytes: 8, length_bytes: 8 };
        match &self.storage {
            Storage::Compact(bytes) => Ok(bytes[start as usize..(start + count) as usize].to_vec()),
            Storage::Contiguous { address } => reader.bytes(address + start, count),
            Storage::Chunked(chunked) => chunked.read_rows(&reader, &self.dims, block, rows),
        }
    }

    /// All elements, for arrays of at most `most`.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block), and for more elements.
    pub(crate) fn read_all(
        &self,
        file: &dyn ReadAt,
        len: u64,
        most: u64,
    ) -> Result<Vec<i64>, Problem> {
        let total: u64 = self.dims.iter().product();
        if total > most {
            return Err(problem(0, format!("{total} numbers, at most {most} are accepted")));
        }
        // Grown while reading: blocks that are not there reserve nothing.
        let mut values = Vec::new();
        for block in 0..self.dims[0].div_ceil(self.block_rows()) {
            let bytes = self.read_block(file, len, block)?;
            let width = usize::from(self.element.bytes);
            values.extend(bytes.chunks_exact(width).map(|bytes| self.element.value(bytes)));
        }
        Ok(values)
    }
}

impl Integer {
    /// The value in these bytes; a `u64` beyond `i64` becomes the largest.
    fn value(self, bytes: &[u8]) -> i64 {
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        let raw = if self.big_endian {
            bytes.iter().fold(0, fold)
        } else {
            bytes.iter().rev().fold(0, fold)
        };
        let unused = 64 - 8 * u32::from(self.bytes);
        if self.signed {
            ((raw << unused) as i64) >> unused
        } else {
            i64::try_from(raw).unwrap_or(i64::MAX)
        }
    }
}

impl Reader<'_> {
    fn bytes_inside(&self, address: u64, count: u64) -> bool {
        let end = self.base.checked_add(address).and_then(|at| at.checked_add(count));
        end.is_some_and(|end| end <= self.len)
    }
}

/// The widths of addresses and lengths, and the address of the root group's object header.
fn superblock(file: &dyn ReadAt, len: u64) -> Result<(Reader<'_>, u64), Problem> {
    let mut reader = Reader { file, len, base: 0, address_bytes: 8, length_bytes: 8 };
    let head = reader.bytes(0, len.min(128))?;
    if !head.starts_with(b"\x89HDF\r\n\x1a\n") {
        let hint =
            if head.starts_with(b"\x1f\x8b") { "; it is gzipped: unpack it first" } else { "" };
        return Err(problem(0, format!("expected an HDF5 file{hint}")));
    }
    let mut cursor = reader.cursor(&head, 0);
    cursor.take(8)?;
    let version = cursor.number(1)?;
    match version {
        0 | 1 => {
            cursor.take(4)?;
            widths(&mut reader, &mut cursor)?;
            // Reserved byte, the B-trees' ranks (three of them in version 1) and flags.
            cursor.take(if version == 0 { 9 } else { 13 })?;
        }
        2 | 3 => {
            widths(&mut reader, &mut cursor)?;
            cursor.take(1)?;
        }
        _ => return Err(problem(8, format!("superblock version {version}: expected 0 to 3"))),
    }
    let (a, l) = (reader.address_bytes, reader.length_bytes);
    (cursor.address_bytes, cursor.length_bytes) = (a, l);
    reader.base = cursor.address()?;
    let (_, _) = (cursor.address()?, cursor.address()?);
    if version < 2 {
        // The driver's address, then the root group's entry, which begins with its name.
        let (_, _) = (cursor.address()?, cursor.address()?);
    }
    let root = cursor.address()?;
    Ok((reader, root))
}

fn widths(reader: &mut Reader<'_>, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
    for width in [&mut reader.address_bytes, &mut reader.length_bytes] {
        *width = match cursor.number(1)? {
            bytes @ (2 | 4 | 8) => bytes as u8,
            bytes => return Err(cursor.fail(format!("addresses or lengths of {bytes} bytes"))),
        };
    }
    Ok(())
}
