//! Casts.

use half::bf16;

use super::lab::{Buffer, Check, Lab, compare};
use crate::cast::{self, cuda};
use crate::cuda::{CudaError, SplitSlice};

/// A split operand on the device.
pub(super) struct Split {
    hi: Buffer<bf16>,
    lo: Buffer<i16>,
}

impl Split {
    pub(super) fn upload(lab: &Lab, values: &[f32]) -> Result<Self, CudaError> {
        let (hi, lo): (Vec<_>, Vec<_>) = values.iter().map(|&value| cast::split(value)).unzip();
        Ok(Self { hi: lab.upload(&hi)?, lo: lab.upload(&lo)? })
    }

    fn poisoned(lab: &Lab, len: usize) -> Result<Self, CudaError> {
        Ok(Self { hi: lab.poisoned(len)?, lo: lab.poisoned(len)? })
    }

    pub(super) fn slice(&self) -> SplitSlice<'_> {
        SplitSlice { hi: self.hi.slice(), lo: self.lo.slice() }
    }
}

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for len in [1, 7, 64, 2048, 2055] {
        for skip in [0, 1] {
            flat(lab, checks, len, skip)?;
        }
    }
    for (rows, cols, stride) in
        [(1, 1, 2), (7, 588, 592), (33, 27, 32), (3, 48, 56), (2, 2100, 2104)]
    {
        padded(lab, checks, rows, cols, stride)?;
    }
    Ok(())
}

/// f32 values of every kind: normal ones, and finite patterns with any exponent, zeros and subnormals among them.
fn patterns(lab: &mut Lab, len: usize) -> Vec<f32> {
    let special = [0.0, -0.0, f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX, f32::MIN];
    let ties = [0x3f80_8000, 0xbf81_8000, 0x0000_8000, 0x3f7f_8000].map(f32::from_bits);
    let mut values: Vec<_> = special.into_iter().chain(ties).collect();
    while values.len() < len {
        let value = f32::from_bits(lab.bits() as u32);
        values.push(if value.is_finite() { value } else { value.to_bits() as f32 });
    }
    values.truncate(len);
    values
}

/// The share of values whose bits differ.
fn same(mut check: Check, found: impl Iterator<Item = u32>, expected: &[u32]) -> Check {
    let different = found.zip(expected).filter(|(found, expected)| found != *expected).count();
    check.error = different as f64 / expected.len() as f64;
    check
}

fn flat(lab: &mut Lab, checks: &mut Vec<Check>, len: usize, skip: usize) -> Result<(), CudaError> {
    let values = patterns(lab, len);
    let name = |what: &str| format!("cast {what} {len} from {skip}");
    // With a value before them the others are not at 16 bytes.
    let from = lab.upload(&[&[0.0; 1][..skip], &values].concat())?;
    let from = from.slice().range(skip..skip + len);
    let none = vec![0.0; len];

    let to = Split::poisoned(lab, len)?;
    cuda::split(lab.gpu(), from, to.slice())?;
    let (hi, lo): (Vec<_>, Vec<_>) = values.iter().map(|&value| cast::split(value)).unzip();
    let bits: Vec<_> = hi.iter().map(|hi| u32::from(hi.to_bits())).collect();
    let found = to.hi.read()?.into_iter().map(|hi| u32::from(hi.to_bits()));
    checks.push(same(compare(name("split hi"), &to.hi, &none, 0.0)?, found, &bits));
    let bits: Vec<_> = lo.iter().map(|&lo| lo as u32).collect();
    let found = to.lo.read()?.into_iter().map(|lo| lo as u32);
    checks.push(same(compare(name("split lo"), &to.hi, &none, 0.0)?, found, &bits));

    let back = lab.poisoned(len)?;
    cuda::join(lab.gpu(), to.slice(), back.slice())?;
    let bits: Vec<_> = values.iter().map(|value| value.to_bits()).collect();
    let found = back.read()?.into_iter().map(f32::to_bits);
    checks.push(same(compare(name("split and join"), &back, &none, 0.0)?, found, &bits));

    let rounded = lab.poisoned(len)?;
    cuda::to_bf16(lab.gpu(), 1, len, from, rounded.slice(), len)?;
    let nearest: Vec<_> = values.iter().map(|&value| bf16::from_f32(value)).collect();
    let bits: Vec<_> = nearest.iter().map(|value| u32::from(value.to_bits())).collect();
    let found = rounded.read()?.into_iter().map(|value| u32::from(value.to_bits()));
    checks.push(same(compare(name("to_bf16"), &rounded, &none, 0.0)?, found, &bits));

    let widened = lab.poisoned(len)?;
    cuda::to_f32(lab.gpu(), rounded.slice(), widened.slice())?;
    let bits: Vec<_> = nearest.iter().map(|value| value.to_f32().to_bits()).collect();
    let found = widened.read()?.into_iter().map(f32::to_bits);
    checks.push(same(compare(name("to_f32"), &widened, &none, 0.0)?, found, &bits));
    Ok(())
}

fn padded(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<(), CudaError> {
    let values = lab.normal(rows * cols, 1.0);
    let (from, to) = (lab.upload(&values)?, lab.poisoned::<bf16>(rows * stride)?);
    cuda::to_bf16(lab.gpu(), rows, cols, from.slice(), to.slice(), stride)?;
    let mut expected = vec![0.0; rows * stride];
    for (to, from) in expected.chunks_mut(stride).zip(values.chunks(cols)) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = bf16::from_f32(from).to_f64();
        }
    }
    checks.push(compare(format!("cast pad [{rows}, {cols}] to {stride}"), &to, &expected, 0.0)?);
    Ok(())
}
