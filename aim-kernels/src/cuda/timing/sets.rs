//! [`Sets`]: the buffers of a case, several times over.

use std::sync::Arc;

use bytemuck::Pod;
use half::bf16;

use super::chip;
use crate::cuda::checks::Lab;
use crate::cuda::{ALIGN, CudaError, DeviceArena, DeviceSlice, Gpu, SplitSlice};

/// Random values that are made on the host; longer buffers repeat them.
const BLOCK: usize = 1 << 18;
/// How many times the cache the sets are together.
const CACHES: usize = 4;
/// Most sets: small buffers stay in the cache in a training step, too.
const MOST: usize = 32;

/// What a buffer holds at first. Never zeros where something is read: they can run faster than data does.
#[derive(Clone, Debug)]
enum Fill {
    /// Normal values of this standard deviation.
    Bf16(f64),
    F32(f64),
    /// Random bits.
    Bits,
    Index(Vec<i32>),
    /// Written before it is read, or a sum that starts at nothing.
    Zeros,
}

/// One buffer of a case.
#[derive(Clone, Debug)]
pub(super) struct Part {
    bytes: usize,
    /// Bytes that must move to or from it.
    moved: f64,
    fill: Fill,
}

impl Part {
    fn new(bytes: usize, fill: Fill) -> Self {
        Self { bytes, moved: bytes as f64, fill }
    }

    /// bf16 values that are read.
    pub(super) fn bf16(len: usize) -> Self {
        Self::new(2 * len, Fill::Bf16(1.0))
    }

    /// f32 values that are read.
    pub(super) fn f32(len: usize) -> Self {
        Self::new(4 * len, Fill::F32(1.0))
    }

    /// Bytes that are read: pixels, lower halves of masters.
    pub(super) fn bits(bytes: usize) -> Self {
        Self::new(bytes, Fill::Bits)
    }

    pub(super) fn index(values: &[i32]) -> Self {
        Self::new(4 * values.len(), Fill::Index(values.to_vec()))
    }

    /// Bytes that are written.
    pub(super) fn output(bytes: usize) -> Self {
        Self::new(bytes, Fill::Zeros)
    }

    /// Bytes whose traffic is the kernel's own affair.
    pub(super) fn scratch(bytes: usize) -> Self {
        Self { moved: 0.0, ..Self::output(bytes) }
    }

    /// Values of another standard deviation.
    pub(super) fn scaled(self, std: f64) -> Self {
        let fill = match self.fill {
            Fill::Bf16(_) => Fill::Bf16(std),
            Fill::F32(_) => Fill::F32(std),
            other => other,
        };
        Self { fill, ..self }
    }

    /// Read and written.
    pub(super) fn updated(self) -> Self {
        Self { moved: 2.0 * self.moved, ..self }
    }

    /// Only so many bytes of it are read or written.
    pub(super) fn moving(self, bytes: usize) -> Self {
        Self { moved: bytes as f64, ..self }
    }

    pub(super) fn moved(&self) -> f64 {
        self.moved
    }
}

/// The buffers of a case in one arena, as often as it takes that a run finds nothing of the one before in the cache.
pub struct Sets {
    arena: DeviceArena,
    /// Start within a set and length of each buffer, bytes.
    places: Vec<(usize, usize)>,
    stride: usize,
    count: usize,
}

impl Sets {
    pub(super) fn new(gpu: &Arc<Gpu>, parts: &[Part]) -> Result<Self, CudaError> {
        let mut stride = 0;
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            places.push((stride, part.bytes));
            stride = (stride + part.bytes).next_multiple_of(ALIGN);
        }
        let enough = (CACHES * chip(gpu)?.l2_bytes).div_ceil(stride.max(1)).clamp(2, MOST);
        // Choosing an algorithm takes memory of its own.
        let fit = gpu.free_memory()? / 2 / stride.max(1);
        let count = enough.min(fit).max(1);
        let arena = DeviceArena::new(gpu, stride * count, "the buffers of a measurement")?;
        let sets = Self { arena, places, stride, count };
        let mut lab = Lab::new(Arc::clone(gpu), 1);
        for (i, part) in parts.iter().enumerate() {
            sets.fill(&mut lab, i, part)?;
        }
        Ok(sets)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn fill(&self, lab: &mut Lab, part: usize, what: &Part) -> Result<(), CudaError> {
        let bits = |lab: &mut Lab, len: usize| -> Vec<u8> {
            (0..len.div_ceil(8)).flat_map(|_| lab.bits().to_ne_bytes()).collect()
        };
        match &what.fill {
            Fill::Zeros => Ok(()),
            Fill::Bf16(std) => self.repeat(part, &lab.normal_bf16(BLOCK, *std)),
            Fill::F32(std) => self.repeat(part, &lab.normal(BLOCK, *std)),
            Fill::Bits => self.repeat(part, &bits(lab, BLOCK)),
            Fill::Index(values) => (0..self.count)
                .try_for_each(|set| self.get::<i32>(set, part).upload(self.arena.gpu(), values)),
        }
    }

    /// Fills a buffer of every set with a block of values, again and again.
    fn repeat<T: Pod>(&self, part: usize, block: &[T]) -> Result<(), CudaError> {
        let gpu = self.arena.gpu();
        let first = self.get::<T>(0, part);
        let len = first.len();
        let mut filled = block.len().min(len);
        first.range(0..filled).upload(gpu, &block[..filled])?;
        while filled < len {
            let more = filled.min(len - filled);
            first.range(filled..filled + more).copy_from(gpu, first.range(0..more))?;
            filled += more;
        }
        (1..self.count).try_for_each(|set| self.get::<T>(set, part).copy_from(gpu, first))
    }

    /// Buffer `part` of the set whose turn it is in run `number`.
    pub(super) fn get<T: Pod>(&self, number: usize, part: usize) -> DeviceSlice<'_, T> {
        let (start, bytes) = self.places[part];
        let start = number % self.count * self.stride + start;
        self.arena.slice(start, bytes / size_of::<T>())
    }

    /// Buffers `part` and the next as the halves of masters.
    pub(super) fn split(&self, number: usize, part: usize) -> SplitSlice<'_> {
        SplitSlice { hi: self.get::<bf16>(number, part), lo: self.get(number, part + 1) }
    }
}
