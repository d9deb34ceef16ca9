//! Operands that do not start where their allocation does, for the paths of unaligned addresses.

use bytemuck::Pod;

use super::lab::{Buffer, Lab};
use crate::cuda::{CudaError, DeviceSlice};

/// What stands in front of the operand and must still do so after a kernel.
const FRONT: f32 = 1.0;

/// `values` behind `shift` others.
pub(super) fn behind<T: Copy + From<f32>>(shift: usize, values: &[T]) -> Vec<T> {
    [&vec![T::from(FRONT); shift][..], values].concat()
}

/// An f32 operand of a kernel, some values into its allocation.
pub(super) struct Shifted {
    pub(super) buffer: Buffer<f32>,
    shift: usize,
}

impl Shifted {
    /// Holding `values`.
    pub(super) fn new(lab: &Lab, shift: usize, values: &[f32]) -> Result<Self, CudaError> {
        Ok(Self { buffer: lab.upload(&behind(shift, values))?, shift })
    }

    /// Room for an output.
    pub(super) fn poisoned(lab: &Lab, shift: usize, len: usize) -> Result<Self, CudaError> {
        Self::new(lab, shift, &vec![f32::NAN; len])
    }

    pub(super) fn slice(&self) -> DeviceSlice<'_, f32> {
        tail(&self.buffer, self.shift)
    }
}

/// A buffer without its first `shift` values.
pub(super) fn tail<T: Pod>(buffer: &Buffer<T>, shift: usize) -> DeviceSlice<'_, T> {
    let all = buffer.slice();
    all.range(shift..all.len())
}
