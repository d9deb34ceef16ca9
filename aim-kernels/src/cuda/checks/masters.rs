//! Parameters split into bf16 and remainder, made and read by a host's own arithmetic.

use half::bf16;

use super::lab::{Buffer, Lab};
use super::shifted::tail;
use crate::cuda::{CudaError, SplitSlice};

/// Parameters as the device keeps them.
pub(super) struct Masters {
    pub(super) hi: Buffer<bf16>,
    lo: Buffer<i16>,
}

impl Masters {
    pub(super) fn new(lab: &Lab, values: &[f32]) -> Result<Self, CudaError> {
        let hi: Vec<bf16> = values.iter().map(|&value| nearest(value)).collect();
        let lo: Vec<i16> = values.iter().map(|value| value.to_bits() as i16).collect();
        Ok(Self { hi: lab.upload(&hi)?, lo: lab.upload(&lo)? })
    }

    /// From value `start` on.
    pub(super) fn slice(&self, start: usize) -> SplitSlice<'_> {
        SplitSlice { hi: tail(&self.hi, start), lo: tail(&self.lo, start) }
    }

    /// The exact values.
    pub(super) fn read(&self) -> Result<Vec<f32>, CudaError> {
        let halves = self.hi.read()?.into_iter().zip(self.lo.read()?);
        Ok(halves.map(|(hi, lo)| join(hi, lo)).collect())
    }
}

/// The nearest bf16, ties away from zero.
pub(super) fn nearest(value: f32) -> bf16 {
    bf16::from_bits((value.to_bits().wrapping_add(0x8000) >> 16) as u16)
}

fn join(hi: bf16, lo: i16) -> f32 {
    f32::from_bits((u32::from(hi.to_bits()) << 16).wrapping_add_signed(i32::from(lo)))
}
