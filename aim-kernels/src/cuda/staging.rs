//! [`Staging`]: values on their way to the device while it works.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use super::{CudaError, DeviceSlice, Gpu};

/// Bytes of page-locked memory are reserved in steps of this, so that sizes that differ little share a buffer.
const STEP: usize = 4096;

/// Two buffers of page-locked host memory for each place on the device that is written again and again.
///
/// A copy from ordinary memory keeps the host until all work before it has ended. From page-locked memory it takes its
/// turn on the stream, and the host goes on: it prepares the next batch while the device computes. A buffer is written
/// again only after the copy out of it has happened; with two, that is the copy before the last.
pub struct Staging {
    gpu: Arc<Gpu>,
    places: Vec<Place>,
}

struct Place {
    to: sys::CUdeviceptr,
    buffers: [Buffer; 2],
    /// Which one is written next.
    turn: usize,
}

impl Staging {
    /// No buffers yet: each place gets its two when it is written for the first time.
    pub fn new(gpu: &Arc<Gpu>) -> Self {
        Self { gpu: Arc::clone(gpu), places: Vec::new() }
    }

    /// Copies values to the device: after all work before, before all work behind. `from` may change when this returns.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload<T: Pod>(&mut self, to: DeviceSlice<'_, T>, from: &[T]) -> Result<(), CudaError> {
        assert_eq!(from.len(), to.len(), "values to upload");
        let bytes: &[u8] = bytemuck::cast_slice(from);
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        let known = self.places.iter().position(|place| place.to == to.ptr());
        let at = known.unwrap_or(self.places.len());
        if known.is_none() {
            let buffers = [Buffer::new(&self.gpu)?, Buffer::new(&self.gpu)?];
            self.places.push(Place { to: to.ptr(), buffers, turn: 0 });
        }
        let place = &mut self.places[at];
        let buffer = &mut place.buffers[place.turn];
        place.turn ^= 1;
        if buffer.reserve(bytes.len()) {
            buffer.send(place.to, bytes)
        } else {
            // Page-locked memory is scarce on this machine; ordinary memory costs waiting, nothing else.
            to.upload(&self.gpu, from)
        }
    }
}

/// A stretch of page-locked memory, and the event of the last copy out of it.
struct Buffer {
    gpu: Arc<Gpu>,
    memory: *mut u8,
    bytes: usize,
    copied: sys::CUevent,
}

// SAFETY: memory that only its owner reaches, and a handle that the driver lets any thread use.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(gpu: &Arc<Gpu>) -> Result<Self, CudaError> {
        let copied = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(CudaError::driver("making an event"))?;
        Ok(Self { gpu: Arc::clone(gpu), memory: std::ptr::null_mut(), bytes: 0, copied })
    }

    /// Makes room for `bytes`; whether the driver gave it.
    fn reserve(&mut self, bytes: usize) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        self.free();
        let size = bytes.next_multiple_of(STEP);
        // SAFETY: a plain allocation, freed in `free`.
        let Ok(memory) = (unsafe { result::malloc_host(size, 0) }) else { return false };
        (self.memory, self.bytes) = (memory.cast(), size);
        true
    }

    fn send(&mut self, to: sys::CUdeviceptr, from: &[u8]) -> Result<(), CudaError> {
        let doing = CudaError::driver("copying to the device");
        // SAFETY: the event lives as long as the buffer. One that was never recorded is no wait.
        let waited = unsafe { result::event::synchronize(self.copied) };
        let sent = waited.and_then(|()| {
            // SAFETY: room for `from` was reserved, nothing on the device reads it any more, and nobody else has it.
            let memory = unsafe { std::slice::from_raw_parts_mut(self.memory, from.len()) };
            memory.copy_from_slice(from);
            // SAFETY: the caller's slice on the device has this many bytes; the memory stays until the event.
            unsafe { result::memcpy_htod_async(to, memory, self.gpu.stream()) }?;
            // SAFETY: both handles are live.
            unsafe { result::event::record(self.copied, self.gpu.stream()) }
        });
        sent.map_err(doing)
    }

    fn free(&mut self) {
        if !self.memory.is_null() {
            // SAFETY: allocated in `reserve`; the copy out of it has happened, and nobody is told if the driver refuses.
            let _ = unsafe {
                result::event::synchronize(self.copied)
                    .and_then(|()| result::free_host(self.memory.cast()))
            };
        }
        (self.memory, self.bytes) = (std::ptr::null_mut(), 0);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            self.free();
            // SAFETY: made in `new`, destroyed once.
            let _ = unsafe { result::event::destroy(self.copied) };
        }
    }
}
