//! Arrays stored in chunks: the B-tree that finds them, and what was done to their bytes.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use super::header::Filter;
use super::{Integer, MAX_BLOCK, Problem, Reader, UNDEFINED, problem};

/// Largest chunk, in bytes when decompressed.
const MAX_CHUNK: u64 = 128 << 20;
/// Deepest B-tree.
const MAX_LEVEL: u64 = 16;

/// One chunk in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    address: u64,
    /// Bytes as they are stored.
    size: u32,
    /// Bit *n* set: filter *n* was left out.
    mask: u32,
}

/// How an array is cut into chunks, and where they are.
#[derive(Debug)]
pub(super) struct Chunked {
    /// Sizes of a chunk; the last ones of a dimension reach beyond the array.
    pub(super) chunk: Vec<u64>,
    element: Integer,
    filters: Vec<Filter>,
    /// By the chunk's number, counted in row-major order.
    chunks: HashMap<u64, Chunk>,
    /// Number of chunks along each dimension.
    counts: Vec<u64>,
}

impl Chunked {
    /// Reads the B-tree at `index`.
    pub(super) fn read(
        reader: &Reader<'_>,
        index: u64,
        dims: &[u64],
        chunk: Vec<u64>,
        element: Integer,
        filters: Vec<Filter>,
    ) -> Result<Self, Problem> {
        let bytes = chunk.iter().try_fold(u64::from(element.bytes), |n, &size| n.checked_mul(size));
        let bytes = bytes.filter(|bytes| (1..=MAX_CHUNK).contains(bytes));
        if bytes.is_none() || chunk.len() != dims.len() {
            let reason = format!(
                "chunks of {chunk:?} elements for sizes {dims:?}: expected as many sizes, and at \
                 most {MAX_CHUNK} bytes"
            );
            return Err(problem(index, reason));
        }
        let counts: Vec<u64> =
            dims.iter().zip(&chunk).map(|(dim, size)| dim.div_ceil(*size)).collect();
        if counts.iter().try_fold(1u64, |n, &count| n.checked_mul(count)).is_none() {
            return Err(problem(index, format!("chunks of {chunk:?} for sizes {dims:?}")));
        }
        let mut this = Self { chunk, element, filters, chunks: HashMap::new(), counts };
        if index != UNDEFINED {
            this.walk(reader, index)?;
        }
        Ok(this)
    }

    /// Enters every chunk of the tree.
    fn walk(&mut self, reader: &Reader<'_>, root: u64) -> Result<(), Problem> {
        // A key, and the address behind it.
        let key = 8 + 8 * (self.chunk.len() as u64 + 1);
        let entry = key + u64::from(reader.address_bytes);
        // As many entries as a file of this length can hold, each once.
        let mut budget = reader.len / entry;
        let (mut todo, mut seen) = (vec![(root, None)], HashSet::new());
        while let Some((address, parent)) = todo.pop() {
            if !seen.insert(address) {
                return Err(problem(address, "the B-tree of chunks runs in a circle"));
            }
            let skip = 8 + 2 * u64::from(reader.address_bytes);
            let head = reader.bytes(address, skip)?;
            let mut cursor = reader.cursor(&head, address);
            cursor.expect(b"TREE")?;
            let (kind, level, count) = (cursor.number(1)?, cursor.number(1)?, cursor.number(2)?);
            let expected = parent.is_none_or(|parent: u64| level + 1 == parent);
            if kind != 1 || level > MAX_LEVEL || !expected {
                let reason = format!("a B-tree of kind {kind} at level {level} among chunks");
                return Err(problem(address, reason));
            }
            let left = budget.checked_sub(count);
            budget =
                left.ok_or_else(|| problem(address, "more chunks than the file has room for"))?;
            let body = reader.bytes(address.saturating_add(skip), count * entry)?;
            let mut cursor = reader.cursor(&body, address.saturating_add(skip));
            for _ in 0..count {
                let (size, mask) = (cursor.number(4)? as u32, cursor.number(4)? as u32);
                let corner = (0..self.chunk.len()).map(|_| cursor.number(8));
                let corner = corner.collect::<Result<Vec<_>, _>>()?;
                cursor.take(8)?;
                let child = cursor.address()?;
                if level > 0 {
                    todo.push((child, Some(level)));
                    continue;
                }
                // Chunks beyond the array are left over from a larger one.
                if let Some(number) = self.number(&corner).map_err(|why| cursor.fail(why))? {
                    let before = self.chunks.insert(number, Chunk { address: child, size, mask });
                    if before.is_some() {
                        return Err(cursor.fail(format!("a second chunk at {corner:?}")));
                    }
                }
            }
        }
        Ok(())
    }

    /// The number of the chunk with this corner; none outside the array.
    fn number(&self, corner: &[u64]) -> Result<Option<u64>, String> {
        let mut number = 0;
        for ((&at, &size), &count) in corner.iter().zip(&self.chunk).zip(&self.counts) {
            if at % size != 0 {
                return Err(format!(
                    "a chunk at {corner:?}, which is no multiple of {:?}",
                    self.chunk
                ));
            }
            if at / size >= count {
                return Ok(None);
            }
            // Below the product of all counts, which was checked.
            number = number * count + at / size;
        }
        Ok(Some(number))
    }

    /// The `rows` rows of block `block`.
    pub(super) fn read_rows(
        &self,
        reader: &Reader<'_>,
        dims: &[u64],
        block: u64,
        rows: u64,
    ) -> Result<Vec<u8>, Problem> {
        let width = u64::from(self.element.bytes);
        let across: u64 = self.counts[1..].iter().product();
        // All of them are looked up before memory is reserved for what they hold.
        let mut chunks = Vec::new();
        for number in block * across..(block + 1) * across {
            let missing = || problem(0, format!("chunk {number} is not in the file"));
            chunks.push(*self.chunks.get(&number).ok_or_else(missing)?);
        }
        let mut out = vec![0; (rows * dims[1..].iter().product::<u64>() * width) as usize];
        for (place, chunk) in (0..).zip(chunks) {
            let bytes = self.load(reader, chunk)?;
            // Where the chunk lies in each dimension behind the first, and how much of it counts.
            let rank = dims.len();
            let (mut start, mut extent, mut rest) = (vec![0; rank], vec![rows; rank], place);
            for dim in (1..rank).rev() {
                start[dim] = rest % self.counts[dim] * self.chunk[dim];
                extent[dim] = self.chunk[dim].min(dims[dim] - start[dim]);
                rest /= self.counts[dim];
            }
            copy_box(&bytes, &self.chunk, &mut out, dims, &start, &extent, width);
        }
        Ok(out)
    }

    /// The elements of a chunk, as they were before the filters.
    fn load(&self, reader: &Reader<'_>, chunk: Chunk) -> Result<Vec<u8>, Problem> {
        let width = usize::from(self.element.bytes);
        let expected = self.chunk.iter().product::<u64>() as usize * width;
        let fail = |reason: String| problem(chunk.address, reason);
        // Stored bytes are at most what deflate makes of incompressible ones, and a checksum.
        if u64::from(chunk.size) > 2 * MAX_BLOCK {
            return Err(fail(format!("a chunk of {} bytes", chunk.size)));
        }
        let mut bytes = reader.bytes(chunk.address, u64::from(chunk.size))?;
        for (at, filter) in self.filters.iter().enumerate().rev() {
            if chunk.mask >> at & 1 != 0 {
                continue;
            }
            bytes = match filter {
                Filter::Deflate => {
                    let mut raw = Vec::new();
                    // A checksum may be under the deflated bytes.
                    let most = expected as u64 + 4;
                    let decoder = flate2::read::ZlibDecoder::new(bytes.as_slice());
                    let read = decoder.take(most + 1).read_to_end(&mut raw);
                    read.map_err(|error| fail(format!("cannot decompress a chunk: {error}")))?;
                    if raw.len() as u64 > most {
                        return Err(fail(format!("a chunk of more than {expected} bytes")));
                    }
                    raw
                }
                Filter::Shuffle => unshuffle(&bytes, width),
                Filter::Fletcher32 => {
                    let checked = bytes.len().checked_sub(4);
                    let checked = checked.ok_or_else(|| fail("a chunk without checksum".into()))?;
                    let (data, sum) = bytes.split_at(checked);
                    let found = fletcher32(data).to_le_bytes();
                    if found != sum {
                        return Err(fail(format!("a chunk's checksum is {found:?}, not {sum:?}")));
                    }
                    data.to_vec()
                }
            };
        }
        if bytes.len() != expected {
            let reason = format!("a chunk has {} bytes, expected {expected}", bytes.len());
            return Err(fail(reason));
        }
        Ok(bytes)
    }
}

/// Puts the bytes of each element together again: all first bytes were stored first.
fn unshuffle(bytes: &[u8], width: usize) -> Vec<u8> {
    let count = bytes.len() / width.max(1);
    let mut out = bytes.to_vec();
    for (element, whole) in out.chunks_exact_mut(width).enumerate() {
        for (plane, byte) in whole.iter_mut().enumerate() {
            *byte = bytes[plane * count + element];
        }
    }
    out
}

/// HDF5's checksum: two sums modulo 65,535 over big-endian words of 16 bits.
fn fletcher32(bytes: &[u8]) -> u32 {
    // Folding, unlike a remainder, leaves 0xffff where a sum is a multiple of it.
    let fold = |sum: u32| (sum & 0xffff) + (sum >> 16);
    let (mut first, mut second) = (0u32, 0u32);
    for pair in bytes.chunks(2) {
        let word = u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        first = fold(first + word);
        second = fold(second + first);
    }
    second << 16 | first
}

/// Copies the part `extent` of a chunk to `start` in an array of `dims`. The first dimension begins at 0
/// in both.
fn copy_box(
    chunk: &[u8],
    chunk_dims: &[u64],
    out: &mut [u8],
    dims: &[u64],
    start: &[u64],
    extent: &[u64],
    width: u64,
) {
    // Strides in bytes.
    let (mut from, mut to, mut offset) = (vec![0; dims.len()], vec![0; dims.len()], 0);
    let (mut in_chunk, mut in_out) = (width, width);
    for dim in (0..dims.len()).rev() {
        (from[dim], to[dim]) = (in_chunk as usize, in_out as usize);
        offset += start[dim] as usize * to[dim];
        in_chunk *= chunk_dims[dim];
        in_out *= dims[dim];
    }
    // One dimension more, of one row, so that there are always two to go along.
    let extent: Vec<usize> = std::iter::once(1).chain(extent.iter().map(|&n| n as usize)).collect();
    let (from, to) = ([&[0][..], &from].concat(), [&[0][..], &to].concat());
    copy_along(chunk, &mut out[offset..], &from, &to, &extent);
}

/// Copies along the first of the dimensions that are left; `from` and `to` are strides in bytes.
fn copy_along(chunk: &[u8], out: &mut [u8], from: &[usize], to: &[usize], extent: &[usize]) {
    if let (&[stride, width], &[out_stride, _], &[count, run]) = (from, to, extent) {
        let run = run * width;
        for at in 0..count {
            let (source, target) = (at * stride, at * out_stride);
            // Chunks of one colour are copied byte by byte: no call for each.
            if run == 1 {
                out[target] = chunk[source];
            } else {
                out[target..target + run].copy_from_slice(&chunk[source..source + run]);
            }
        }
        return;
    }
    for at in 0..extent[0] {
        let (source, target) = (at * from[0], at * to[0]);
        copy_along(&chunk[source..], &mut out[target..], &from[1..], &to[1..], &extent[1..]);
    }
}
