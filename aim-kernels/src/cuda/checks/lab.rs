//! What checks are made with: random values, buffers of their own, errors.

use std::sync::Arc;

use bytemuck::Pod;
use half::bf16;

use crate::cuda::{CudaError, DeviceArena, DeviceSlice, Gpu};

/// Result of one check.
#[derive(Clone, Debug)]
pub struct Check {
    /// Kernel and shape.
    pub name: String,
    /// Relative L2 error, or the share of values that differ.
    pub error: f64,
    /// Largest error that passes.
    pub tolerance: f64,
    /// Hash of the output's bits: the same in every schedule.
    pub bits: u64,
}

impl Check {
    /// Whether the error is a number within the tolerance.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// A device and a source of random numbers.
pub struct Lab {
    gpu: Arc<Gpu>,
    state: u64,
}

/// Device memory of one operand, an allocation by itself so that an access outside it is seen where the device can.
pub(crate) struct Buffer<T> {
    arena: DeviceArena,
    len: usize,
    values: std::marker::PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub(crate) fn slice(&self) -> DeviceSlice<'_, T> {
        self.arena.slice(0, self.len)
    }

    /// The values, on the host.
    pub(crate) fn read(&self) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        self.slice().download(self.arena.gpu(), &mut values)?;
        Ok(values)
    }
}

impl Lab {
    /// Checks on `gpu`, reproducible by `seed`.
    pub fn new(gpu: Arc<Gpu>, seed: u64) -> Self {
        Self { gpu, state: seed }
    }

    /// The device.
    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// 64 random bits (splitmix64).
    pub(crate) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Values of mean 0 and standard deviation `std`, nearly normal.
    pub(crate) fn normal(&mut self, len: usize, std: f64) -> Vec<f32> {
        let mut unit = || (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        (0..len)
            .map(|_| {
                let sum: f64 = (0..6).map(|_| unit()).sum();
                ((sum - 3.0) * std * std::f64::consts::SQRT_2) as f32
            })
            .collect()
    }

    /// As [`Lab::normal`], each the nearest bf16.
    pub(crate) fn normal_bf16(&mut self, len: usize, std: f64) -> Vec<bf16> {
        self.normal(len, std).into_iter().map(bf16::from_f32).collect()
    }

    /// Values on the device.
    pub(crate) fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let buffer = self.poisoned(values.len())?;
        buffer.slice().upload(&self.gpu, values)?;
        Ok(buffer)
    }

    /// Room for an output: every byte 0xff, which is NaN in every float type.
    pub(crate) fn poisoned<T: Pod>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let arena = DeviceArena::new(&self.gpu, len * size_of::<T>(), "a check")?;
        arena.slice::<u8>(0, len * size_of::<T>()).fill_bytes(&self.gpu, 0xff)?;
        Ok(Buffer { arena, len, values: std::marker::PhantomData })
    }
}

/// Largest integers and floats alike as f64.
pub(crate) trait Number: Copy + Pod {
    fn f64(self) -> f64;
}
impl Number for f32 {
    fn f64(self) -> f64 {
        f64::from(self)
    }
}
impl Number for bf16 {
    fn f64(self) -> f64 {
        f64::from(self.to_f32())
    }
}

/// Compares an output with its reference by relative L2 norm; NaN anywhere fails.
pub(crate) fn compare<T: Number>(
    name: impl Into<String>,
    found: &Buffer<T>,
    expected: &[f64],
    tolerance: f64,
) -> Result<Check, CudaError> {
    let values = found.read()?;
    assert_eq!(values.len(), expected.len(), "a reference of the output's length");
    let (mut error, mut norm) = (0.0, 0.0);
    for (&value, &expected) in values.iter().zip(expected) {
        error += (value.f64() - expected).powi(2);
        norm += expected * expected;
    }
    // An expected zero is compared with zero itself.
    let error = if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() };
    Ok(Check { name: name.into(), error, tolerance, bits: hash(bytemuck::cast_slice(&values)) })
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
