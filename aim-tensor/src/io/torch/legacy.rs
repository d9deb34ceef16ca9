//! The format of PyTorch before 1.6: pickles one after the other, then the storages.
//!
//! ```text
//! magic number, protocol version, description of the machine     a pickle each
//! what was saved                                                 a pickle
//! keys of the storages                                           a pickle
//! for each key: number of elements (i64), then the elements
//! ```

use std::collections::HashMap;
use std::ops::Range;

use super::pickle::{self, Pickle, Value};
use super::{Fault, state_dict};

/// 0x1950a86a20f9469cfc6c as a pickle writes it, behind the two bytes of its protocol.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// Where it starts.
const MAGIC_AT: usize = 2;
const PROTOCOL: i64 = 1001;
/// The number of elements before each storage.
const COUNT_BYTES: usize = 8;

/// Whether bytes start with the magic number.
pub(super) fn detects(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(MAGIC_AT..).is_some_and(|b| b.starts_with(MAGIC))
}

/// The pickle of what was saved, and where in the file each of its storages is.
pub(super) fn parse(bytes: &[u8]) -> Result<(Pickle<'_>, Vec<Range<usize>>), Fault> {
    let mut at = MAGIC_AT + MAGIC.len();
    let mut next = || {
        let parsed = pickle::parse(bytes.get(at..).unwrap_or_default())?;
        at += parsed.length;
        Ok::<_, Fault>(parsed)
    };
    let version = next()?;
    if !matches!(version.value(version.root), Value::Int(PROTOCOL)) {
        return Err(format!("expected protocol version {PROTOCOL} after its magic number").into());
    }
    next()?;
    let saved = next()?;
    let keys = next()?;
    let places = places(bytes, at, &saved, &keys)?;
    let mut ranges = Vec::with_capacity(saved.storages.len());
    for storage in &saved.storages {
        let key = saved.bytes.get(storage.key.clone()).unwrap_or_default();
        let whole = places.get(key).cloned();
        let whole = whole.ok_or_else(|| format!("storage `{}` is not in the file", shown(key)))?;
        ranges.push(match storage.view {
            None => whole,
            Some((first, count)) => {
                let end = first.checked_add(count).filter(|&end| end <= storage.numel);
                let end = end.ok_or_else(|| format!("a view outside storage `{}`", shown(key)))?;
                let width = state_dict::width(storage.dtype);
                whole.start + first * width..whole.start + end * width
            }
        });
    }
    Ok((saved, ranges))
}

/// Where each storage's elements are, by its key. Only the saved tensors tell how wide an element is.
fn places<'a>(
    bytes: &[u8],
    mut at: usize,
    saved: &Pickle<'a>,
    keys: &Pickle<'_>,
) -> Result<HashMap<&'a [u8], Range<usize>>, Fault> {
    let mut sizes: HashMap<&[u8], (usize, usize)> = HashMap::new();
    for storage in &saved.storages {
        let key = saved.bytes.get(storage.key.clone()).unwrap_or_default();
        let size = (storage.numel, state_dict::width(storage.dtype));
        if *sizes.entry(key).or_insert(size) != size {
            return Err(format!("storage `{}` is described in two ways", shown(key)).into());
        }
    }
    let Value::List(list) = keys.value(keys.root) else {
        return Err(format!(
            "{} where the keys of storages should be",
            keys.value(keys.root).kind()
        )
        .into());
    };
    let mut places = HashMap::new();
    for &key in list {
        let key = keys.text(key).ok_or("a storage whose key is no string")?.as_bytes();
        let unknown = || format!("storage `{}` belongs to no tensor", shown(key));
        let (&key, &(numel, width)) = sizes.get_key_value(key).ok_or_else(unknown)?;
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk::<COUNT_BYTES>());
        let count = count.map(|count| u64::from_le_bytes(*count));
        if count != Some(numel as u64) {
            let found = count.map_or_else(|| "nothing".to_owned(), |count| count.to_string());
            let key = shown(key);
            return Err(format!("storage `{key}`: expected {numel} elements, found {found}").into());
        }
        let start = at + COUNT_BYTES;
        let end = numel.checked_mul(width).and_then(|size| start.checked_add(size));
        let end = end.filter(|&end| end <= bytes.len());
        at = end.ok_or_else(|| format!("storage `{}` reaches over the file's end", shown(key)))?;
        if places.insert(key, start..at).is_some() {
            return Err(Fault::refused(format!("storage `{}` comes twice", shown(key))));
        }
    }
    Ok(places)
}

fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key.get(..64).unwrap_or(key)).into_owned()
}
