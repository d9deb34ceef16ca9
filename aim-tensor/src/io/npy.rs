//! NumPy's `.npy`: a short text header, then the array, row-major.
//!
//! Written as version 1.0; versions 1 to 3 are read, little-endian and in C order only.
//!
//! ```
//! use aim_tensor::io::npy::{self, NpyData};
//!
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("labels.npy");
//! npy::write_i64(&mut std::fs::File::create(&path)?, &[3], &[7, 8, 9])?;
//! let array = npy::read(&path)?;
//! assert_eq!((array.shape, array.data), (vec![3], NpyData::I64(vec![7, 8, 9])));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use super::IoError;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Magic, version and header length of version 1.
const PREAMBLE_BYTES: usize = 10;
/// The header ends at a multiple of this, so that a mapped array is aligned.
const ALIGNMENT: usize = 64;
/// NumPy itself refuses longer headers by default (`max_header_size`).
const MAX_HEADER_BYTES: usize = 10_000;

/// The types that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descr {
    /// `<f4`
    F32,
    /// `<f2`
    F16,
    /// `<i8`
    I64,
}

/// An array read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Npy {
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: NpyData,
}

/// The elements: floats of any width as f32, integers as i64.
#[derive(Debug, Clone, PartialEq)]
pub enum NpyData {
    /// From `<f4`, `<f2` or `<f8` (rounded to nearest).
    F32(Vec<f32>),
    /// From `<i8`, `<i4`, `<i2`, `|i1`, `<u4`, `<u2`, `|u1` or `|b1`.
    I64(Vec<i64>),
}

/// The header, after which the rows follow: for arrays too large to have at once.
pub fn header(descr: Descr, shape: &[usize]) -> Vec<u8> {
    header_at_least(descr, shape, 0)
}

/// As [`header`], of at least `least` bytes: to be written over a longer header, when the number of rows is known only
/// after them. `least` is rounded up to a multiple of 64.
pub fn header_at_least(descr: Descr, shape: &[usize], least: usize) -> Vec<u8> {
    let descr = match descr {
        Descr::F32 => "<f4",
        Descr::F16 => "<f2",
        Descr::I64 => "<i8",
    };
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    // A tuple of one keeps its comma, longer ones lose the last.
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}")
        .into_bytes();
    let needed = (PREAMBLE_BYTES + text.len() + 1).max(least);
    let padded = needed.next_multiple_of(ALIGNMENT) - PREAMBLE_BYTES;
    text.resize(padded - 1, b' ');
    text.push(b'\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    // Some 3,000 dimensions would be needed to exceed a u16.
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.append(&mut text);
    bytes
}

/// Writes an f32 array.
///
/// # Errors
/// What `out` returns; [`io::ErrorKind::InvalidInput`] if `data` does not have the shape's size.
pub fn write_f32(out: &mut dyn Write, shape: &[usize], data: &[f32]) -> io::Result<()> {
    check_size(shape, data.len())?;
    out.write_all(&header(Descr::F32, shape))?;
    out.write_all(bytemuck::cast_slice(data))
}

/// Writes an i64 array.
///
/// # Errors
/// As [`write_f32`].
pub fn write_i64(out: &mut dyn Write, shape: &[usize], data: &[i64]) -> io::Result<()> {
    check_size(shape, data.len())?;
    out.write_all(&header(Descr::I64, shape))?;
    out.write_all(bytemuck::cast_slice(data))
}

fn check_size(shape: &[usize], elements: usize) -> io::Result<()> {
    if product(shape) == Some(elements) && shape.len() <= 32 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{elements} elements do not make an array of shape {shape:?} (at most 32 sizes)"),
    ))
}

fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
}

/// Reads an array.
///
/// # Errors
/// [`IoError::Malformed`] for anything but a complete little-endian C-order array of the types of
/// [`NpyData`]; nothing is allocated before the file's length agrees with its header.
pub fn read(path: impl AsRef<Path>) -> Result<Npy, IoError> {
    let path = path.as_ref();
    let os = |source| IoError::os("read", path, source);
    let bad = |reason: String| IoError::malformed(path, "npy", reason);
    let kind = fs::metadata(path).map_err(os)?;
    if !kind.is_file() {
        return Err(bad("not a regular file".into()));
    }
    let mut file = File::open(path).map_err(os)?;
    let mut start = Vec::new();
    let limit = (MAX_HEADER_BYTES + 12) as u64;
    Read::by_ref(&mut file).take(limit).read_to_end(&mut start).map_err(os)?;
    let (descr, shape, data_at) = parse_header(&start).map_err(bad)?;
    let width = element_bytes(&descr).ok_or_else(|| {
        bad(format!("its type is `{descr}`: expected little-endian floats, integers or booleans"))
    })?;
    let expected = product(&shape).and_then(|n| n.checked_mul(width));
    let found = kind.len().saturating_sub(data_at as u64);
    if expected.map(|n| n as u64) != Some(found) {
        return Err(bad(format!(
            "{found} bytes after the header, its shape {shape:?} of {descr} needs {} (truncated?)",
            expected.map_or_else(|| "too many".into(), |n| n.to_string())
        )));
    }
    let mut bytes = start.split_off(data_at.min(start.len()));
    // Bounded by the file's length; `take` in case it grows meanwhile.
    let rest = found.saturating_sub(bytes.len() as u64);
    file.take(rest).read_to_end(&mut bytes).map_err(os)?;
    Ok(Npy { shape, data: elements(&descr, &bytes) })
}

/// Type, shape and where the data starts.
fn parse_header(start: &[u8]) -> Result<(String, Vec<usize>, usize), String> {
    let truncated = || "truncated header".to_string();
    let rest = start.strip_prefix(MAGIC).ok_or("it does not start with \\x93NUMPY")?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(truncated)?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(truncated)?;
            (u16::from_le_bytes(*length) as usize, rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        other => return Err(format!("version {other}, expected 1, 2 or 3")),
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("a header of {length} bytes, at most {MAX_HEADER_BYTES}"));
    }
    let text = rest.get(..length).ok_or_else(truncated)?;
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let descr = field(text, "descr")?.trim_start().strip_prefix('\'');
    let descr =
        descr.and_then(|rest| rest.split_once('\'')).ok_or("structured types are not read")?;
    if !field(text, "fortran_order")?.trim_start().starts_with("False") {
        return Err("it is in Fortran order: save np.ascontiguousarray(array)".into());
    }
    let shape = field(text, "shape")?.trim_start().strip_prefix('(');
    let (shape, _) = shape.and_then(|rest| rest.split_once(')')).ok_or("no shape")?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape = sizes
        .map(|size| size.parse().map_err(|_| format!("a size `{size}` in its shape")))
        .collect::<Result<Vec<usize>, String>>()?;
    Ok((descr.0.to_string(), shape, start.len() - rest.len() + length))
}

/// What follows `'key':`.
fn field<'a>(text: &'a str, key: &str) -> Result<&'a str, String> {
    let quoted = format!("'{key}':");
    text.split_once(&quoted).map(|(_, after)| after).ok_or_else(|| format!("no {quoted} in header"))
}

fn element_bytes(descr: &str) -> Option<usize> {
    match descr {
        "|b1" | "|i1" | "|u1" => Some(1),
        "<f2" | "<i2" | "<u2" => Some(2),
        "<f4" | "<i4" | "<u4" => Some(4),
        "<f8" | "<i8" => Some(8),
        _ => None,
    }
}

/// The types are those of `element_bytes`.
fn elements(descr: &str, bytes: &[u8]) -> NpyData {
    fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
    }
    match descr {
        "<f4" => NpyData::F32(each(bytes, f32::from_le_bytes)),
        "<f2" => NpyData::F32(each(bytes, |b| half::f16::from_le_bytes(b).to_f32())),
        "<f8" => NpyData::F32(each(bytes, |b| f64::from_le_bytes(b) as f32)),
        "<i4" => NpyData::I64(each(bytes, |b| i32::from_le_bytes(b).into())),
        "<i2" => NpyData::I64(each(bytes, |b| i16::from_le_bytes(b).into())),
        "<u4" => NpyData::I64(each(bytes, |b| u32::from_le_bytes(b).into())),
        "<u2" => NpyData::I64(each(bytes, |b| u16::from_le_bytes(b).into())),
        "|i1" => NpyData::I64(each(bytes, |b| i8::from_le_bytes(b).into())),
        "|u1" | "|b1" => NpyData::I64(each(bytes, |b| u8::from_le_bytes(b).into())),
        _ => NpyData::I64(each(bytes, i64::from_le_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_bytes(bytes: &[u8]) -> Result<Npy, IoError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        fs::write(&path, bytes).unwrap();
        read(&path)
    }

    #[test]
    fn header_is_numpys() {
        // np.save of np.zeros((2, 3), np.float32), NumPy 2.
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(text.as_bytes());
        expected.resize(127, b' ');
        expected.push(b'\n');
        assert_eq!(header(Descr::F32, &[2, 3]), expected);
        let scalar = String::from_utf8_lossy(&header(Descr::I64, &[])).into_owned();
        assert!(scalar.contains("'shape': (), "), "{scalar}");
        let vector = String::from_utf8_lossy(&header(Descr::I64, &[5])).into_owned();
        assert!(vector.contains("'shape': (5,), "), "{vector}");
        let long = header_at_least(Descr::F16, &[2, 3], 129);
        assert_eq!((long.len(), long[8], long[191]), (192, 182, b'\n'));
        assert!(String::from_utf8_lossy(&long).contains("'<f2'"));
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let mut good = Vec::new();
        write_f32(&mut good, &[2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!(read_bytes(&good).is_ok());
        for length in 0..good.len() {
            assert!(read_bytes(&good[..length]).is_err(), "{length} bytes were accepted");
        }
        let text = String::from_utf8_lossy(&good).into_owned();
        assert!(text.contains("(2, 2)"));
        let swap = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bytes = good.clone();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            read_bytes(&bytes).unwrap_err().to_string()
        };
        assert!(swap("'<f4'", "'>f4'").contains(">f4"));
        assert!(swap("False", "True,").contains("Fortran"));
        assert!(swap("(2, 2), }   ", "(2, -2), }  ").contains("-2"));
        // Sizes whose product overflows must not be multiplied.
        assert!(swap("(2, 2), }            ", "(9999999999, 9999999999").contains("shape"));
        assert!(write_f32(&mut Vec::new(), &[3], &[1.0]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn round_trip(shape in prop::collection::vec(0usize..5, 0..4), seed in any::<u32>()) {
            let n: usize = shape.iter().product();
            let floats: Vec<f32> = (0..n).map(|i| (seed as f32) * 0.5 + i as f32).collect();
            let ints: Vec<i64> = (0..n).map(|i| i64::from(seed) << 20 | i as i64).collect();
            let (mut a, mut b) = (Vec::new(), Vec::new());
            write_f32(&mut a, &shape, &floats).unwrap();
            write_i64(&mut b, &shape, &ints).unwrap();
            prop_assert_eq!(
                read_bytes(&a).unwrap(), Npy { shape: shape.clone(), data: NpyData::F32(floats) }
            );
            prop_assert_eq!(read_bytes(&b).unwrap(), Npy { shape, data: NpyData::I64(ints) });
        }
    }
}
