//! A device opened through cudarc alone, for tests of the fakes themselves.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr, CUfunction, CUresult, CUstream};
use cudarc::driver::{CudaContext, DriverError, result};

/// A device and the module of the environment's kernels.
pub(crate) struct Device {
    pub(crate) context: Arc<CudaContext>,
    module: sys::CUmodule,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    Pointer(CUdeviceptr),
    Int(i32),
    Float(f32),
}

impl Device {
    pub(crate) fn open() -> Self {
        let context = CudaContext::new(0).expect("the fake driver has a device");
        let path = std::env::var_os("AIM_CUBIN").expect("set by the harness");
        let image = std::fs::read(path).expect("made by the harness");
        // SAFETY: a file in memory.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        Self { context, module: module.expect("any file is a module") }
    }

    /// Memory with these values.
    pub(crate) fn upload(&self, values: &[f32]) -> CUdeviceptr {
        let memory = self.alloc(size_of_val(values)).expect("there is memory");
        // SAFETY: memory of that size.
        unsafe { result::memcpy_htod_sync(memory, values) }.expect("memory of this size");
        memory
    }

    pub(crate) fn alloc(&self, bytes: usize) -> Result<CUdeviceptr, DriverError> {
        // SAFETY: a plain allocation.
        unsafe { result::malloc_sync(bytes) }
    }

    pub(crate) fn free(&self, memory: CUdeviceptr) -> Result<(), DriverError> {
        // SAFETY: the fake refuses what is no allocation.
        unsafe { result::free_sync(memory) }
    }

    pub(crate) fn download(&self, memory: CUdeviceptr, len: usize) -> Vec<f32> {
        let mut values = vec![0.0f32; len];
        // SAFETY: the fake refuses what is outside an allocation.
        unsafe { result::memcpy_dtoh_sync(&mut values, memory) }.expect("memory of this size");
        values
    }

    pub(crate) fn function(&self, name: &str) -> Result<CUfunction, DriverError> {
        let name = CString::new(name).expect("a name without zero");
        // SAFETY: a live module.
        unsafe { result::module::get_function(self.module, name) }
    }

    /// Lets a kernel use so much dynamic shared memory.
    pub(crate) fn allow_shared(&self, name: &str, bytes: i32) -> Result<(), DriverError> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
        let function = self.function(name)?;
        // SAFETY: a live function.
        unsafe { result::function::set_function_attribute(function, MOST, bytes) }
    }

    /// Puts a kernel on a stream.
    pub(crate) fn launch_on(
        &self,
        stream: CUstream,
        name: &str,
        blocks: (u32, u32, u32),
        threads: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<(), DriverError> {
        let mut slots: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer(pointer) => pointer,
                Arg::Int(value) => u64::from(value as u32),
                Arg::Float(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> =
            slots.iter_mut().map(|slot| std::ptr::from_mut(slot).cast()).collect();
        let function = self.function(name)?;
        // SAFETY: the arguments are those of probe.cu; tests that break this do so on purpose, in a child process.
        unsafe {
            result::launch_kernel(function, blocks, (threads, 1, 1), shared, stream, &mut pointers)
        }
    }

    /// Runs a kernel to its end.
    pub(crate) fn run(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<(), DriverError> {
        let null = std::ptr::null_mut();
        self.launch_on(null, name, (blocks, 1, 1), threads, shared, args)?;
        result::ctx::synchronize()
    }
}

/// The code of an error.
pub(crate) fn code<T>(result: Result<T, DriverError>) -> CUresult {
    match result {
        Ok(_) => CUresult::CUDA_SUCCESS,
        Err(DriverError(code)) => code,
    }
}
