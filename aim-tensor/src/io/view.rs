//! One tensor of a file, and its conversion into the caller's memory.

use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use super::IoError;
use super::map::MappedFile;

/// Bytes that are converted before the pages they came from are given back.
const PIECE_BYTES: usize = 8 << 20;

/// A tensor that lies in a mapped file, little-endian. It may start at any address: no format here
/// aligns anything.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The tensor's name.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: &'a [usize],
    /// From its first element to its last; as many as shape and type make where it is contiguous.
    pub(crate) bytes: &'a [u8],
    /// Elements from one index to the next, for each dimension; none where the tensor is row-major and
    /// contiguous.
    pub(crate) strides: Option<&'a [usize]>,
    /// Where the bytes are mapped.
    pub(crate) map: Option<&'a MappedFile>,
}

impl View<'_> {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        // Headers are checked on opening: the product does not overflow.
        self.shape.iter().product()
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// [`IoError::Shape`] with both shapes.
    pub fn expect_shape(&self, expected: &[usize]) -> Result<(), IoError> {
        if self.shape == expected {
            return Ok(());
        }
        Err(IoError::Shape {
            path: self.path.to_path_buf(),
            name: self.name.to_string(),
            expected: expected.to_vec(),
            found: self.shape.to_vec(),
        })
    }

    /// Copies F32, F16, BF16 or F64 elements as f32 (F64 rounds to nearest).
    ///
    /// # Errors
    /// [`IoError::Length`] if `destination` has another length, [`IoError::Dtype`] for other types.
    pub fn copy_to_f32(&self, destination: &mut [f32]) -> Result<(), IoError> {
        self.check_length(destination.len())?;
        match self.dtype {
            Dtype::F32 => self.convert(destination, f32::from_le_bytes),
            Dtype::F16 => self.convert(destination, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => self.convert(destination, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => self.convert(destination, |b| f64::from_le_bytes(b) as f32),
            _ => return Err(self.wrong_dtype("F32, F16, BF16 or F64")),
        }
        Ok(())
    }

    /// The elements as f32, as [`View::copy_to_f32`].
    ///
    /// # Errors
    /// [`IoError::Dtype`] for types that are no floats.
    pub fn to_f32(&self) -> Result<Vec<f32>, IoError> {
        // Bounded by the file: its header was checked against its length.
        let mut values = vec![0.0; self.elements()];
        self.copy_to_f32(&mut values)?;
        Ok(values)
    }

    /// Copies I64, I32, I16, I8, U32, U16, U8 or BOOL elements as i64.
    ///
    /// # Errors
    /// [`IoError::Length`] if `destination` has another length, [`IoError::Dtype`] for other types.
    pub fn copy_to_i64(&self, destination: &mut [i64]) -> Result<(), IoError> {
        self.check_length(destination.len())?;
        match self.dtype {
            Dtype::I64 => self.convert(destination, i64::from_le_bytes),
            Dtype::I32 => self.convert(destination, |b| i32::from_le_bytes(b).into()),
            Dtype::I16 => self.convert(destination, |b| i16::from_le_bytes(b).into()),
            Dtype::I8 => self.convert(destination, |b| i8::from_le_bytes(b).into()),
            Dtype::U32 => self.convert(destination, |b| u32::from_le_bytes(b).into()),
            Dtype::U16 => self.convert(destination, |b| u16::from_le_bytes(b).into()),
            Dtype::U8 | Dtype::BOOL => self.convert(destination, |b| u8::from_le_bytes(b).into()),
            _ => return Err(self.wrong_dtype("an integer type up to I64")),
        }
        Ok(())
    }

    /// The elements as i64, as [`View::copy_to_i64`].
    ///
    /// # Errors
    /// [`IoError::Dtype`] for types that are no integers.
    pub fn to_i64(&self) -> Result<Vec<i64>, IoError> {
        let mut values = vec![0; self.elements()];
        self.copy_to_i64(&mut values)?;
        Ok(values)
    }

    /// Copies integer elements as i32.
    ///
    /// # Errors
    /// As [`View::copy_to_i64`], and [`IoError::OutOfRange`] for a value that does not fit.
    pub fn copy_to_i32(&self, destination: &mut [i32]) -> Result<(), IoError> {
        self.check_length(destination.len())?;
        if self.dtype == Dtype::I32 {
            self.convert(destination, i32::from_le_bytes);
            return Ok(());
        }
        for (index, (to, value)) in destination.iter_mut().zip(self.to_i64()?).enumerate() {
            *to = i32::try_from(value).map_err(|_| IoError::OutOfRange {
                path: self.path.to_path_buf(),
                name: self.name.to_string(),
                index,
                value: value.into(),
                expected: "I32",
            })?;
        }
        Ok(())
    }

    /// The elements as i32, as [`View::copy_to_i32`].
    ///
    /// # Errors
    /// As [`View::copy_to_i32`].
    pub fn to_i32(&self) -> Result<Vec<i32>, IoError> {
        let mut values = vec![0; self.elements()];
        self.copy_to_i32(&mut values)?;
        Ok(values)
    }

    fn check_length(&self, destination: usize) -> Result<(), IoError> {
        if destination == self.elements() {
            return Ok(());
        }
        Err(IoError::Length {
            path: self.path.to_path_buf(),
            name: self.name.to_string(),
            shape: self.shape.to_vec(),
            elements: self.elements(),
            destination,
        })
    }

    fn wrong_dtype(&self, expected: &'static str) -> IoError {
        IoError::Dtype {
            path: self.path.to_path_buf(),
            name: self.name.to_string(),
            expected,
            found: self.dtype.to_string(),
        }
    }

    /// Element by element, `N` bytes each; lengths were checked. Pages that were read are given back.
    fn convert<const N: usize, T>(&self, destination: &mut [T], read: impl Fn([u8; N]) -> T) {
        if let Some(strides) = self.strides {
            self.gather(destination, strides, read);
            self.release(self.bytes);
            return;
        }
        let count = PIECE_BYTES / N;
        for (to, from) in destination.chunks_mut(count).zip(self.bytes.chunks(count * N)) {
            for (to, from) in to.iter_mut().zip(from.as_chunks::<N>().0) {
                *to = read(*from);
            }
            self.release(from);
        }
    }

    /// In row-major order from wherever the strides say; the reader checked that they stay inside.
    fn gather<const N: usize, T>(
        &self,
        destination: &mut [T],
        strides: &[usize],
        read: impl Fn([u8; N]) -> T,
    ) {
        let elements = self.bytes.as_chunks::<N>().0;
        let mut index = vec![0; self.shape.len()];
        let mut at = 0;
        for to in destination {
            if let Some(from) = elements.get(at) {
                *to = read(*from);
            }
            for ((index, &size), &stride) in index.iter_mut().zip(self.shape).zip(strides).rev() {
                *index += 1;
                at += stride;
                if *index < size {
                    break;
                }
                at -= stride * size;
                *index = 0;
            }
        }
    }

    /// Small pieces stay: a system call for each costs more than their pages.
    fn release(&self, part: &[u8]) {
        if let Some(map) = self.map.filter(|_| part.len() >= PIECE_BYTES / 8) {
            map.release_part(part);
        }
    }
}
