//! Finding an object of the root group by its name.

use std::collections::HashSet;

use super::header::Messages;
use super::{Problem, Reader, UNDEFINED, problem};

/// Most nodes of a group's B-tree, and names in all; the files in question have one name.
const MAX_NODES: usize = 4096;
const MAX_NAMES: usize = 65_536;
/// Largest heap of names, in bytes.
const MAX_HEAP: u64 = 4 << 20;

const LINK_INFO: u16 = 0x02;
const LINK: u16 = 0x06;
const SYMBOL_TABLE: u16 = 0x11;

/// The address of the object header that `name` leads to in the group at `address`.
pub(super) fn find(reader: &Reader<'_>, address: u64, name: &str) -> Result<u64, Problem> {
    let messages = Messages::read(reader, address)?;
    let mut names = Vec::new();
    for link in messages.all(LINK) {
        let (found, target) = read_link(reader, &link.data, link.address)?;
        match target {
            Some(target) if found == name.as_bytes() => return Ok(target),
            _ => names.push(String::from_utf8_lossy(found).into_owned()),
        }
    }
    if let Some(table) = messages.all(SYMBOL_TABLE).next() {
        let mut cursor = reader.cursor(&table.data, table.address);
        let (tree, heap) = (cursor.address()?, cursor.address()?);
        let heap = read_heap(reader, heap)?;
        if let Some(found) = search(reader, tree, &heap, name, &mut names)? {
            return Ok(found);
        }
    }
    for info in messages.all(LINK_INFO) {
        let mut cursor = reader.cursor(&info.data, info.address);
        cursor.take(1)?;
        let flags = cursor.number(1)?;
        cursor.take(if flags & 1 != 0 { 8 } else { 0 })?;
        if names.is_empty() && cursor.address()? != UNDEFINED {
            return Err(problem(info.address, "the group keeps its names in a fractal heap"));
        }
    }
    names.truncate(8);
    let names = names.iter().map(|name| name.escape_debug().to_string()).collect::<Vec<_>>();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    Err(problem(address, format!("expected an array called `{name}`, found {names}")))
}

/// Name and address of a link message; no address for soft and external links.
fn read_link<'a>(
    reader: &Reader<'_>,
    data: &'a [u8],
    address: u64,
) -> Result<(&'a [u8], Option<u64>), Problem> {
    let mut cursor = reader.cursor(data, address);
    let (version, flags) = (cursor.number(1)?, cursor.number(1)?);
    if version != 1 {
        return Err(cursor.fail(format!("link version {version}")));
    }
    let kind = if flags & 8 != 0 { cursor.number(1)? } else { 0 };
    cursor.take(if flags & 4 != 0 { 8 } else { 0 })?;
    cursor.take(if flags & 16 != 0 { 1 } else { 0 })?;
    let length = cursor.number(1 << (flags & 3))?;
    let name = cursor.take(usize::try_from(length).unwrap_or(usize::MAX))?;
    let target = if kind == 0 { Some(cursor.address()?) } else { None };
    Ok((name, target))
}

/// The bytes of a local heap.
fn read_heap(reader: &Reader<'_>, address: u64) -> Result<Vec<u8>, Problem> {
    let head = reader
        .bytes(address, 8 + 2 * u64::from(reader.length_bytes) + u64::from(reader.address_bytes))?;
    let mut cursor = reader.cursor(&head, address);
    cursor.expect(b"HEAP")?;
    cursor.take(4)?;
    let (length, _, data) = (cursor.length()?, cursor.length()?, cursor.address()?);
    if length > MAX_HEAP {
        return Err(cursor.fail(format!("a heap of {length} bytes, at most {MAX_HEAP}")));
    }
    reader.bytes(data, length)
}

/// Walks over the group's B-tree; what is not the name looked for goes to `names`.
fn search(
    reader: &Reader<'_>,
    tree: u64,
    heap: &[u8],
    name: &str,
    names: &mut Vec<String>,
) -> Result<Option<u64>, Problem> {
    let (mut todo, mut seen) = (vec![tree], HashSet::new());
    let mut count = 0;
    while let Some(address) = todo.pop() {
        if !seen.insert(address) || seen.len() > MAX_NODES {
            return Err(problem(address, "the group's B-tree runs in a circle or is too large"));
        }
        let widths = u64::from(reader.address_bytes) + u64::from(reader.length_bytes);
        let head = reader.bytes(address, 8)?;
        let mut cursor = reader.cursor(&head, address);
        if head.starts_with(b"SNOD") {
            cursor.take(6)?;
            let entries = cursor.number(2)?;
            count += entries as usize;
            if count > MAX_NAMES {
                return Err(problem(address, format!("more than {MAX_NAMES} names")));
            }
            let size = 2 * u64::from(reader.address_bytes) + 24;
            let body = reader.bytes(address.saturating_add(8), entries * size)?;
            let mut cursor = reader.cursor(&body, address.saturating_add(8));
            for _ in 0..entries {
                let (at, target) = (cursor.address()?, cursor.address()?);
                cursor.take(24)?;
                let rest = usize::try_from(at).ok().and_then(|at| heap.get(at..));
                let Some(rest) = rest else {
                    return Err(cursor.fail(format!("a name at {at} of {} bytes", heap.len())));
                };
                let found = rest.split(|&byte| byte == 0).next().unwrap_or_default();
                if found == name.as_bytes() {
                    return Ok(Some(target));
                }
                if names.len() < 8 {
                    names.push(String::from_utf8_lossy(found).into_owned());
                }
            }
            continue;
        }
        cursor.expect(b"TREE")?;
        let kind = cursor.number(1)?;
        if kind != 0 {
            return Err(cursor.fail(format!("a B-tree of kind {kind} in a group")));
        }
        cursor.take(1)?;
        let entries = cursor.number(2)?;
        let skip = 8 + 2 * u64::from(reader.address_bytes);
        let body = reader.bytes(address.saturating_add(skip), entries * widths)?;
        let mut cursor = reader.cursor(&body, address);
        for _ in 0..entries {
            cursor.length()?;
            todo.push(cursor.address()?);
        }
        if todo.len() > MAX_NODES {
            return Err(problem(address, "the group's B-tree is too large"));
        }
    }
    Ok(None)
}
