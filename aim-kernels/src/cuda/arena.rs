//! [`DeviceArena`]: one allocation on the device, and typed views of it.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use super::{CudaError, Gpu};

/// Bytes that a region should start at a multiple of: what vector loads and cuBLASLt are happiest with.
pub const ALIGN: usize = 256;

/// One block of device memory.
pub struct DeviceArena {
    gpu: Arc<Gpu>,
    start: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceArena {
    /// Reserves `bytes`, all zero. `what` is for the message when there are not as many.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, what: &'static str) -> Result<Self, CudaError> {
        gpu.bind()?;
        let size = bytes.max(1);
        // SAFETY: a plain allocation; the pointer is freed in `drop`.
        let start = unsafe { result::malloc_sync(size) }.map_err(|_| CudaError::OutOfMemory {
            what,
            bytes,
            free: gpu.free_memory().unwrap_or(0),
        })?;
        let arena = Self { gpu: Arc::clone(gpu), start, bytes: size };
        arena.slice::<u8>(0, size).fill_bytes(gpu, 0)?;
        Ok(arena)
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device it is on.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// `len` values from byte `offset` on.
    ///
    /// # Panics
    /// If the stretch leaves the arena or is misaligned for its type: shapes are validated a level above.
    pub fn slice<T: Pod>(&self, offset: usize, len: usize) -> DeviceSlice<'_, T> {
        let end = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(offset));
        assert!(
            end.is_some_and(|end| end <= self.bytes) && offset.is_multiple_of(align_of::<T>()),
            "{len} values at {offset} of {} bytes",
            self.bytes
        );
        DeviceSlice { ptr: self.start + offset as u64, len, values: PhantomData }
    }
}

impl Drop for DeviceArena {
    fn drop(&mut self) {
        // Work that still uses the memory must end first. There is nobody to tell if the driver refuses.
        let _ = self.gpu.synchronize();
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_sync(self.start) };
    }
}

/// A typed stretch of an arena. Work on one stream is in order, so views may be copied and overlap freely; what a
/// kernel reads and writes in one launch must not overlap unless its launcher says so.
pub struct DeviceSlice<'a, T> {
    ptr: sys::CUdeviceptr,
    len: usize,
    values: PhantomData<&'a [T]>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for DeviceSlice<'_, T> {}

impl<'a, T: Pod> DeviceSlice<'a, T> {
    /// Address on the device.
    pub(crate) fn ptr(self) -> sys::CUdeviceptr {
        self.ptr
    }

    /// Number of values.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are no values.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// A part of the stretch.
    ///
    /// # Panics
    /// If it leaves the stretch.
    pub fn range(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let ptr = self.ptr + (range.start * size_of::<T>()) as u64;
        Self { ptr, len: range.len(), values: PhantomData }
    }

    /// The same bytes as values of another type.
    ///
    /// # Panics
    /// If they are no whole number of them, or misaligned.
    pub fn cast<U: Pod>(self) -> DeviceSlice<'a, U> {
        let bytes = self.len * size_of::<T>();
        let fits = bytes.is_multiple_of(size_of::<U>());
        assert!(fits && self.ptr.is_multiple_of(align_of::<U>() as u64), "{bytes} bytes");
        DeviceSlice { ptr: self.ptr, len: bytes / size_of::<U>(), values: PhantomData }
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn fill_bytes(self, gpu: &Gpu, byte: u8) -> Result<(), CudaError> {
        if self.len == 0 {
            return Ok(());
        }
        gpu.bind()?;
        // SAFETY: the stretch lies inside a live arena.
        unsafe { result::memset_d8_async(self.ptr, byte, self.len * size_of::<T>(), gpu.stream()) }
            .map_err(CudaError::driver("filling memory"))
    }

    /// Copies values to the device; they have arrived when this returns.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload(self, gpu: &Gpu, from: &[T]) -> Result<(), CudaError> {
        assert_eq!(from.len(), self.len, "values to upload");
        if self.len == 0 {
            return Ok(());
        }
        gpu.bind()?;
        // SAFETY: lengths agree, the stretch lies inside a live arena, and `from` outlives the copy.
        unsafe { result::memcpy_htod_async(self.ptr, from, gpu.stream()) }
            .map_err(CudaError::driver("copying to the device"))?;
        gpu.synchronize()
    }

    /// Copies values from the device, after all work before.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn download(self, gpu: &Gpu, to: &mut [T]) -> Result<(), CudaError> {
        assert_eq!(to.len(), self.len, "values to download");
        if self.len == 0 {
            return Ok(());
        }
        gpu.bind()?;
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_async(to, self.ptr, gpu.stream()) }
            .map_err(CudaError::driver("copying from the device"))?;
        gpu.synchronize()
    }

    /// Copies values on the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy_from(self, gpu: &Gpu, from: DeviceSlice<'_, T>) -> Result<(), CudaError> {
        assert_eq!(from.len, self.len, "values to copy");
        if self.len == 0 {
            return Ok(());
        }
        gpu.bind()?;
        let bytes = self.len * size_of::<T>();
        // SAFETY: both stretches lie inside live arenas.
        unsafe { result::memcpy_dtod_async(self.ptr, from.ptr, bytes, gpu.stream()) }
            .map_err(CudaError::driver("copying on the device"))
    }
}

/// fp32 values stored as the nearest bf16 and a 16-bit remainder: together the exact 32 bits, the first half alone the
/// compute copy. `bits(value) = (bits(hi) << 16) + sign_extend(lo)`.
#[derive(Clone, Copy)]
pub struct SplitSlice<'a> {
    /// Nearest bf16 (ties away from zero).
    pub hi: DeviceSlice<'a, half::bf16>,
    /// What is missing, in units of the 32-bit pattern.
    pub lo: DeviceSlice<'a, i16>,
}

impl SplitSlice<'_> {
    /// A part of both halves.
    ///
    /// # Panics
    /// If it leaves them.
    pub fn range(self, range: std::ops::Range<usize>) -> Self {
        Self { hi: self.hi.range(range.clone()), lo: self.lo.range(range) }
    }

    /// Number of values.
    pub fn len(self) -> usize {
        self.hi.len()
    }

    /// Whether there are no values.
    pub fn is_empty(self) -> bool {
        self.hi.is_empty()
    }
}
