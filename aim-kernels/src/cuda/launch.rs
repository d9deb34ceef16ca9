//! Launching kernels: grid and arguments.

use std::ffi::c_void;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use super::{CudaError, DeviceSlice, Gpu};

/// Most arguments of a kernel.
const MOST: usize = 24;
/// Shared memory that a kernel may use without asking first.
const PLAIN_SHARED: u32 = 48 << 10;

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub(crate) shared: u32,
}

impl Grid {
    /// `blocks` blocks in a row, without dynamic shared memory.
    pub(crate) fn new(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared: 0 }
    }
}

/// A kernel's arguments, each in a slot of 8 bytes.
pub(crate) struct Args {
    slots: [u64; MOST],
    len: usize,
}

impl Args {
    pub(crate) fn new() -> Self {
        Self { slots: [0; MOST], len: 0 }
    }

    fn push(mut self, bits: u64) -> Self {
        assert!(self.len < MOST, "more than {MOST} arguments");
        self.slots[self.len] = bits;
        self.len += 1;
        self
    }

    pub(crate) fn slice<T: Pod>(self, slice: DeviceSlice<'_, T>) -> Self {
        self.push(slice.ptr())
    }

    /// A pointer, or null.
    pub(crate) fn optional<T: Pod>(self, slice: Option<DeviceSlice<'_, T>>) -> Self {
        self.push(slice.map_or(0, DeviceSlice::ptr))
    }

    pub(crate) fn i32(self, value: usize) -> Self {
        let value = i32::try_from(value).expect("sizes were checked to fit 31 bits");
        self.push(u64::from(value as u32))
    }

    pub(crate) fn bool(self, value: bool) -> Self {
        self.i32(usize::from(value))
    }

    pub(crate) fn u64(self, value: usize) -> Self {
        self.push(value as u64)
    }

    pub(crate) fn f32(self, value: f32) -> Self {
        self.push(u64::from(value.to_bits()))
    }
}

impl Gpu {
    /// Puts a kernel on the stream.
    ///
    /// # Safety
    /// The arguments are those of the kernel of that name in order and type, and what it reads and writes lies inside
    /// the slices.
    pub(crate) unsafe fn launch(
        &self,
        name: &'static str,
        grid: Grid,
        mut args: Args,
    ) -> Result<(), CudaError> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let function = self.function(name)?;
        if grid.shared > PLAIN_SHARED {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a live function of a module that is never unloaded.
            unsafe {
                result::function::set_function_attribute(function, attribute, grid.shared as i32)
            }
            .map_err(CudaError::driver(format!(
                "{name}: {} bytes of shared memory",
                grid.shared
            )))?;
        }
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST];
        for (pointer, slot) in pointers.iter_mut().zip(&mut args.slots[..args.len]) {
            *pointer = std::ptr::from_mut(slot).cast();
        }
        let [x, y, z] = grid.blocks;
        // SAFETY: the caller vouches for the arguments; slots and pointers outlive the call, which copies them.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared,
                self.stream(),
                &mut pointers[..args.len],
            )
        }
        .map_err(CudaError::driver(format!("launching {name} with {grid:?}")))
    }
}
