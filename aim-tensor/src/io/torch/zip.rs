//! The table of contents of a zip archive whose entries are stored as they are.
//!
//! A reader of our own, of a small part of the format: the `zip` crate reads entries as streams and keeps the last of
//! two entries of one name, while what is needed here is where each entry's bytes lie in the map, and a refusal of
//! everything that `torch.save` never writes: compressed, encrypted, overlapping, doubled or misplaced entries.

use std::collections::HashMap;
use std::ops::Range;

use super::Fault;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const LOCATOR_BYTES: usize = 20;
const END_64_BYTES: usize = 56;
/// A comment's length is a u16, so the end of the directory lies within this of the end of the file.
const MAX_COMMENT: usize = u16::MAX as usize;
/// Tag of the field with 64-bit sizes.
const EXTRA_64: u16 = 1;

/// Where each entry's bytes are, by name.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    pub(super) entries: HashMap<&'a str, Range<usize>>,
}

/// What the end of the archive says about its directory.
struct Directory {
    count: u64,
    bytes: u64,
    offset: u64,
    /// Where the record that says so starts: the directory ends before it.
    end: usize,
}

/// One entry of the directory, with its 64-bit sizes resolved.
struct Entry<'a> {
    name: &'a str,
    flags: u16,
    size: u64,
    local: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

/// Reads the directory and checks every entry against the file. Memory is bounded by the directory's size.
pub(super) fn parse(bytes: &[u8]) -> Result<Archive<'_>, Fault> {
    let directory = find_directory(bytes)?;
    let (from, to) = directory_range(&directory)?;
    let mut rest = bytes.get(from..to).ok_or("its directory lies outside the file")?;
    // The count is the archive's claim; each entry takes this many bytes at least.
    if directory.count > (rest.len() / CENTRAL_BYTES) as u64 {
        return Err(format!(
            "its directory of {} bytes cannot list {} entries",
            rest.len(),
            directory.count
        )
        .into());
    }
    let count = directory.count as usize;
    let mut entries = HashMap::with_capacity(count);
    let mut places = Vec::with_capacity(count);
    for _ in 0..count {
        let (entry, after) = central_entry(rest)?;
        rest = after;
        let data = place(bytes, &entry, from)?;
        places.push((entry.local as usize, data.end, entry.name));
        if entries.insert(entry.name, data).is_some() {
            return Err(Fault::refused(format!("entry `{}` comes twice", entry.name)));
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && end > start
        {
            return Err(Fault::refused(format!("entries `{first}` and `{second}` overlap")));
        }
    }
    Ok(Archive { entries })
}

fn find_directory(bytes: &[u8]) -> Result<Directory, Fault> {
    let earliest = bytes.len().saturating_sub(END_BYTES + MAX_COMMENT);
    let latest = bytes.len().checked_sub(END_BYTES).ok_or("too short for a zip archive")?;
    let ends = |at: &usize| {
        u32_at(bytes, *at) == Some(END)
            && u16_at(bytes, at + 20) == Some((bytes.len() - at - END_BYTES) as u16)
    };
    let at = (earliest..=latest)
        .rev()
        .find(ends)
        .ok_or("a zip archive without the directory at its end (truncated?)")?;
    let short = |offset| u16_at(bytes, at + offset).unwrap_or(u16::MAX);
    let long = |offset| u32_at(bytes, at + offset).unwrap_or(u32::MAX);
    if let Some(wide) = directory_64(bytes, at)? {
        return Ok(wide);
    }
    if short(4) != 0 || short(6) != 0 || short(8) != short(10) {
        return Err("a zip archive in several parts".into());
    }
    let (bytes, offset) = (long(12).into(), long(16).into());
    Ok(Directory { count: short(10).into(), bytes, offset, end: at })
}

/// The 64-bit form, if its locator stands before the end at `at`.
fn directory_64(bytes: &[u8], at: usize) -> Result<Option<Directory>, Fault> {
    let Some(locator) = at.checked_sub(LOCATOR_BYTES) else { return Ok(None) };
    if u32_at(bytes, locator) != Some(LOCATOR_64) {
        return Ok(None);
    }
    let outside = || Fault::from("its 64-bit directory lies outside the file");
    let record = u64_at(bytes, locator + 8).and_then(|at| usize::try_from(at).ok());
    let record = record.filter(|at| at.saturating_add(END_64_BYTES) <= locator);
    let record = record.ok_or_else(outside)?;
    if u32_at(bytes, record) != Some(END_64) {
        return Err("its 64-bit directory has no signature".into());
    }
    let long = |offset| u64_at(bytes, record + offset).ok_or_else(outside);
    let parts = (u32_at(bytes, record + 16), u32_at(bytes, record + 20));
    if parts != (Some(0), Some(0)) || long(24)? != long(32)? {
        return Err("a zip archive in several parts".into());
    }
    Ok(Some(Directory { count: long(32)?, bytes: long(40)?, offset: long(48)?, end: record }))
}

fn directory_range(directory: &Directory) -> Result<(usize, usize), Fault> {
    let end = directory.offset.checked_add(directory.bytes);
    let end = end.filter(|end| *end <= directory.end as u64);
    let end = end.ok_or("its directory reaches over its own end")?;
    Ok((directory.offset as usize, end as usize))
}

fn central_entry(bytes: &[u8]) -> Result<(Entry<'_>, &[u8]), Fault> {
    let truncated = || Fault::from("its directory ends inside an entry");
    let short = |at| u16_at(bytes, at).ok_or_else(truncated);
    let long = |at| u32_at(bytes, at).ok_or_else(truncated);
    if long(0)? != CENTRAL {
        return Err("its directory holds an entry without signature".into());
    }
    let lengths = [28, 30, 32].map(|at| u16_at(bytes, at).map(usize::from));
    let [Some(name), Some(extra), Some(comment)] = lengths else { return Err(truncated()) };
    let (name, rest) =
        bytes.get(CENTRAL_BYTES..).and_then(|b| b.split_at_checked(name)).ok_or_else(truncated)?;
    let (extra, rest) = rest.split_at_checked(extra).ok_or_else(truncated)?;
    let rest = rest.get(comment..).ok_or_else(truncated)?;
    let name = check_name(name)?;
    let flags = short(8)?;
    // Bits 0 and 6 encrypt the data, bit 13 the directory.
    if flags & (1 | 1 << 6 | 1 << 13) != 0 {
        return Err(Fault::refused(format!("entry `{name}` is encrypted")));
    }
    let method = short(10)?;
    let (mut packed, mut size, mut local) =
        (long(20)?.into(), long(24)?.into(), u64::from(long(42)?));
    // The 64-bit fields stand in this order, each only where the short one is full.
    let mut wide = extra_64(extra);
    for value in [&mut size, &mut packed, &mut local] {
        if *value == u64::from(u32::MAX) {
            let (first, after) = wide
                .split_first_chunk::<8>()
                .ok_or_else(|| format!("entry `{name}` lacks its 64-bit size"))?;
            *value = u64::from_le_bytes(*first);
            wide = after;
        }
    }
    if method != 0 || packed != size {
        return Err(Fault::refused(format!(
            "entry `{name}` is compressed (method {method}, {packed} bytes that would become {size}): \
             torch.save stores its entries as they are"
        )));
    }
    Ok((Entry { name, flags, size, local }, rest))
}

/// Names are never used as paths; one that tries to be one is no name of `torch.save`.
fn check_name(name: &[u8]) -> Result<&str, Fault> {
    let name = std::str::from_utf8(name).map_err(|_| "an entry's name is not UTF-8")?;
    let outside = name.starts_with('/')
        || name.contains(['\\', '\0'])
        || name.split('/').any(|part| part == "..");
    if outside {
        return Err(Fault::refused(format!("entry {name:?} points outside the archive")));
    }
    Ok(name)
}

/// The content of the field with 64-bit sizes.
fn extra_64(mut extra: &[u8]) -> &[u8] {
    while let (Some(tag), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some((field, rest)) = extra.get(4..).and_then(|e| e.split_at_checked(length.into()))
        else {
            break;
        };
        if tag == EXTRA_64 {
            return field;
        }
        extra = rest;
    }
    &[]
}

/// Where an entry's bytes are, from its local header, which must agree with the directory.
fn place(bytes: &[u8], entry: &Entry<'_>, directory: usize) -> Result<Range<usize>, Fault> {
    let outside = || Fault::refused(format!("entry `{}` lies outside the file", entry.name));
    let start = usize::try_from(entry.local).map_err(|_| outside())?;
    let header = start.checked_add(LOCAL_BYTES).and_then(|end| bytes.get(start..end));
    let header = header.ok_or_else(outside)?;
    let differs =
        |what: &str| Fault::refused(format!("entry `{}` has another {what} here", entry.name));
    if u32_at(header, 0) != Some(LOCAL) {
        return Err(differs("signature than a local header"));
    }
    if u16_at(header, 8) != Some(0) || u16_at(header, 6) != Some(entry.flags) {
        return Err(differs("method or other flags than in the directory"));
    }
    let name = usize::from(u16_at(header, 26).unwrap_or_default());
    let extra = usize::from(u16_at(header, 28).unwrap_or_default());
    let name_at = start + LOCAL_BYTES;
    if bytes.get(name_at..name_at + name) != Some(entry.name.as_bytes()) {
        return Err(differs("name than in the directory"));
    }
    let data = name_at + name + extra;
    let end = usize::try_from(entry.size).ok().and_then(|size| data.checked_add(size));
    let end = end.filter(|&end| end <= directory).ok_or_else(outside)?;
    Ok(data..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::torch::forge::Zip;

    #[test]
    fn entries_are_where_they_were_put() {
        let mut zip = Zip::default();
        zip.add("a/data.pkl", b"pickle");
        zip.add("a/data/0", b"0123");
        zip.add("a/empty", b"");
        for wide in [false, true] {
            let bytes = zip.finish_as(wide);
            let archive = parse(&bytes).unwrap();
            assert_eq!(archive.entries.len(), 3);
            assert_eq!(&bytes[archive.entries["a/data/0"].clone()], b"0123");
            assert!(archive.entries["a/empty"].is_empty());
        }
    }
}
