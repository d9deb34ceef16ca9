//! MATLAB level 5 files, as far as lists of data sets need them (ImageNet's `meta.mat`, the
//! annotations of Stanford Cars): arrays of structures with numbers and texts, and cells of texts.
//!
//! A file is a header of 128 bytes and a run of elements: a tag (`u32` type, `u32` bytes; or both in
//! one `u32` with up to four bytes of data behind it), the data, padding to 8 bytes. A compressed
//! element holds another one. Every length is checked against the bytes that are there.

use std::io::Read;

/// Most bytes that a compressed element may become.
const MAX_INFLATED: u64 = 64 << 20;
/// Matrices nested deeper than this are refused.
const MAX_DEPTH: u32 = 8;
/// Most fields of a structure.
const MAX_FIELDS: usize = 64;

const INT8: u32 = 1;
const UINT8: u32 = 2;
const UTF8: u32 = 16;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

const CLASS_CELL: u8 = 1;
const CLASS_STRUCT: u8 = 2;
const CLASS_CHAR: u8 = 4;

/// A value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    /// The first element.
    Number(f64),
    /// Anything else.
    Other,
}

/// The structures of an array, each with its fields in the order of `fields`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Structs {
    pub(crate) fields: Vec<String>,
    pub(crate) rows: Vec<Vec<Value>>,
}

impl Structs {
    /// A field of a row.
    pub(crate) fn get(&self, row: usize, field: &str) -> Option<&Value> {
        let column = self.fields.iter().position(|name| name == field)?;
        self.rows.get(row)?.get(column)
    }
}

/// The array of structures called `name`, from a whole file.
///
/// # Errors
/// A text saying at which byte (of the file, or of what a compressed element holds) what was found.
pub(crate) fn read_structs(file: &[u8], name: &str) -> Result<Structs, String> {
    let found = find(file, |data| structs(data, name))?;
    found.ok_or_else(|| format!("there is no array of structures called `{name}`"))
}

/// The texts of the cell array called `name`, from a whole file.
///
/// # Errors
/// As [`read_structs`], and for a cell that holds something else.
pub(crate) fn read_texts(file: &[u8], name: &str) -> Result<Vec<String>, String> {
    let found = find(file, |data| texts(data, name))?;
    found.ok_or_else(|| format!("there is no cell array called `{name}`"))
}

/// What `read` makes of the first matrix that it accepts.
fn find<T>(
    file: &[u8],
    read: impl Fn(&[u8]) -> Result<Option<T>, String>,
) -> Result<Option<T>, String> {
    let header = file.get(..128).ok_or("expected a MAT file, found fewer than 128 bytes")?;
    if !header.starts_with(b"MATLAB 5.0") || &header[126..128] != b"IM" {
        return Err(
            "expected a little-endian MAT file of level 5 (saved with `-v6` or `-v7`)".into()
        );
    }
    let mut elements = Cursor { bytes: &file[128..], at: 0 };
    while let Some((kind, data)) = elements.next()? {
        let inflated;
        let (kind, data) = if kind == COMPRESSED {
            inflated = inflate(data)?;
            match (Cursor { bytes: &inflated, at: 0 }).next()? {
                Some((kind, data)) => (kind, data),
                None => continue,
            }
        } else {
            (kind, data)
        };
        if kind == MATRIX
            && let Some(found) = read(data)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn inflate(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let decoder = flate2::read::ZlibDecoder::new(data);
    decoder.take(MAX_INFLATED + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_INFLATED {
        return Err(format!("a compressed element of more than {MAX_INFLATED} bytes"));
    }
    Ok(bytes)
}

/// Walks over elements.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Type and data of the next element; none at the end.
    fn next(&mut self) -> Result<Option<(u32, &'a [u8])>, String> {
        let start = self.at;
        if start >= self.bytes.len() {
            return Ok(None);
        }
        let cut = || format!("byte {start}: an element is cut short");
        let tag = self.word(start).ok_or_else(cut)?;
        let (kind, from, length) = if tag >> 16 != 0 {
            // Small: the upper half is the length, the data fill the second word.
            (tag & 0xffff, start + 4, (tag >> 16) as usize)
        } else {
            (tag, start + 8, self.word(start + 4).ok_or_else(cut)? as usize)
        };
        let small = from == start + 4;
        if small && length > 4 {
            return Err(format!("byte {start}: a small element of {length} bytes"));
        }
        let end = from.checked_add(length).ok_or_else(cut)?;
        let data = self.bytes.get(from..end).ok_or_else(cut)?;
        // Compressed elements are not padded.
        let padded = if kind == COMPRESSED { end } else { end.div_ceil(8) * 8 };
        self.at = if small { start + 8 } else { padded };
        Ok(Some((kind, data)))
    }

    fn expect(&mut self, what: &str) -> Result<(u32, &'a [u8]), String> {
        let at = self.at;
        self.next()?.ok_or_else(|| format!("byte {at}: expected {what}, found the end"))
    }
}

/// What all matrices begin with.
struct Matrix<'a> {
    class: u8,
    count: usize,
    name: &'a [u8],
    rest: Cursor<'a>,
}

fn matrix(data: &[u8]) -> Result<Matrix<'_>, String> {
    let mut rest = Cursor { bytes: data, at: 0 };
    let (_, flags) = rest.expect("array flags")?;
    let class = *flags.first().ok_or("array flags of 0 bytes")?;
    let (_, dims) = rest.expect("dimensions")?;
    let count = dims.chunks_exact(4).try_fold(1usize, |count, dim| {
        let dim = u32::from_le_bytes(dim.try_into().ok()?);
        count.checked_mul(usize::try_from(dim).ok()?)
    });
    let count = count.ok_or("dimensions beyond what is accepted")?;
    let (_, name) = rest.expect("a name")?;
    Ok(Matrix { class, count, name, rest })
}

/// The structures of a matrix, when it is the one looked for.
fn structs(data: &[u8], name: &str) -> Result<Option<Structs>, String> {
    let Matrix { class, count, name: found, mut rest } = matrix(data)?;
    if class != CLASS_STRUCT || found != name.as_bytes() {
        return Ok(None);
    }
    let fields = field_names(&mut rest)?;
    let mut structs = Structs { fields, rows: Vec::new() };
    for row in 0..count {
        // Each value takes bytes of the file, so that a large count alone reserves nothing; without
        // fields there would be no bytes.
        if structs.fields.is_empty() {
            return Err("structures without fields".into());
        }
        let mut values = Vec::with_capacity(structs.fields.len());
        for field in &structs.fields {
            let (kind, data) = rest.expect("a value")?;
            let value = if kind == MATRIX { value(data, 0) } else { Ok(Value::Other) };
            values.push(value.map_err(|why| format!("structure {row}, field `{field}`: {why}"))?);
        }
        structs.rows.push(values);
    }
    Ok(Some(structs))
}

/// The texts of a cell array, when it is the one looked for.
fn texts(data: &[u8], name: &str) -> Result<Option<Vec<String>>, String> {
    let Matrix { class, count, name: found, mut rest } = matrix(data)?;
    if class != CLASS_CELL || found != name.as_bytes() {
        return Ok(None);
    }
    // Each takes bytes of the file, as structures do.
    let mut texts = Vec::new();
    for number in 0..count {
        let value = match rest.expect("a cell")? {
            (MATRIX, data) => value(data, 0).map_err(|why| format!("cell {number}: {why}"))?,
            _ => Value::Other,
        };
        match value {
            Value::Text(text) => texts.push(text),
            other => return Err(format!("cell {number} is {other:?}, expected a text")),
        }
    }
    Ok(Some(texts))
}

fn field_names(rest: &mut Cursor<'_>) -> Result<Vec<String>, String> {
    let (_, width) = rest.expect("the length of field names")?;
    let width = width.get(..4).map_or(0, |w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]) as usize);
    let (_, names) = rest.expect("field names")?;
    if width == 0 || names.len() % width != 0 || names.len() / width > MAX_FIELDS {
        return Err(format!("field names of {width} bytes in {} bytes", names.len()));
    }
    let text = |name: &[u8]| {
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        String::from_utf8_lossy(&name[..end]).into_owned()
    };
    Ok(names.chunks_exact(width).map(text).collect())
}

/// A number or a text; a cell is taken for its first element.
fn value(data: &[u8], depth: u32) -> Result<Value, String> {
    if data.is_empty() {
        return Ok(Value::Other);
    }
    if depth > MAX_DEPTH {
        return Err(format!("cells nested deeper than {MAX_DEPTH}"));
    }
    let Matrix { class, count, mut rest, .. } = matrix(data)?;
    if count == 0 {
        return Ok(if class == CLASS_CHAR { Value::Text(String::new()) } else { Value::Other });
    }
    match class {
        CLASS_CELL => match rest.next()? {
            Some((MATRIX, inner)) => value(inner, depth + 1),
            _ => Ok(Value::Other),
        },
        CLASS_CHAR => {
            let (kind, text) = rest.expect("text")?;
            Ok(Value::Text(match kind {
                INT8 | UINT8 | UTF8 => String::from_utf8_lossy(text).into_owned(),
                _ => {
                    let units: Vec<u16> = text
                        .chunks_exact(2)
                        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                        .collect();
                    String::from_utf16_lossy(&units)
                }
            }))
        }
        // Double, single and the integers.
        6..=15 => {
            let (kind, data) = rest.expect("numbers")?;
            Ok(number(kind, data).map_or(Value::Other, Value::Number))
        }
        _ => Ok(Value::Other),
    }
}

/// The first number of an element: a small array of doubles may be stored as bytes.
fn number(kind: u32, data: &[u8]) -> Option<f64> {
    fn first<const N: usize>(data: &[u8]) -> Option<[u8; N]> {
        data.get(..N)?.try_into().ok()
    }
    Some(match kind {
        INT8 => f64::from(i8::from_le_bytes(first(data)?)),
        UINT8 => f64::from(u8::from_le_bytes(first(data)?)),
        3 => f64::from(i16::from_le_bytes(first(data)?)),
        4 => f64::from(u16::from_le_bytes(first(data)?)),
        5 => f64::from(i32::from_le_bytes(first(data)?)),
        6 => f64::from(u32::from_le_bytes(first(data)?)),
        7 => f64::from(f32::from_le_bytes(first(data)?)),
        9 => f64::from_le_bytes(first(data)?),
        12 => i64::from_le_bytes(first(data)?) as f64,
        13 => u64::from_le_bytes(first(data)?) as f64,
        _ => return None,
    })
}
