//! The handle of cuBLASLt and its workspace.

use std::fmt::Display;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, result as driver};

use super::key::{Added, Epilogue, Key, Pointers};
use super::plan::Plan;
use crate::cuda::{CudaError, Gpu, libraries};

/// Workspace that the algorithms of Hopper and later want, bytes.
const LARGE_WORKSPACE: usize = 32 << 20;
/// Workspace that suffices before.
const SMALL_WORKSPACE: usize = 4 << 20;

/// An opened cuBLASLt.
pub(super) struct Library {
    pub(super) handle: sys::cublasLtHandle_t,
    workspace: CUdeviceptr,
    pub(super) workspace_bytes: usize,
    /// Such as `13.0.2`.
    pub(super) version: String,
    context: Arc<CudaContext>,
}

// SAFETY: cuBLASLt lets any thread use a handle; the workspace is memory of the device. One lock is held over both.
unsafe impl Send for Library {}

impl Library {
    pub(super) fn open(gpu: &Gpu) -> Result<Self, CudaError> {
        let version = libraries::blas()?.version;
        let version = version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
        gpu.bind()?;
        let context = Arc::clone(gpu.context());
        let (major, _) =
            context.compute_capability().map_err(CudaError::driver("asking for the chip"))?;
        let workspace_bytes = if major >= 9 { LARGE_WORKSPACE } else { SMALL_WORKSPACE };
        let handle = result::create_handle().map_err(refused("making a handle"))?;
        // From here on `drop` cleans up.
        let mut library = Self { handle, workspace: 0, workspace_bytes, version, context };
        // SAFETY: a plain allocation; the pointer is freed in `drop`.
        library.workspace = unsafe { driver::malloc_sync(workspace_bytes) }.map_err(|_| {
            CudaError::OutOfMemory {
                what: "the workspace of cuBLASLt",
                bytes: workspace_bytes,
                free: gpu.free_memory().unwrap_or(0),
            }
        })?;
        Ok(library)
    }

    /// Puts a product on the stream.
    ///
    /// # Safety
    /// The plan was made for the key; the pointers are those of live matrices as the key describes them.
    pub(super) unsafe fn multiply(
        &self,
        gpu: &Gpu,
        key: &Key,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        pointers: Pointers,
    ) -> Result<(), CublasError> {
        if key.epilogue != Epilogue::Nothing {
            plan.descriptor.set_aux(pointers.aux)?;
        }
        let alpha = 1.0f32;
        let beta = if key.added == Added::Nothing { 0.0f32 } else { 1.0 };
        let added = if key.added == Added::Other { pointers.added } else { pointers.result };
        // The right operand is cuBLASLt's first: see `Plan::new`.
        // SAFETY: the caller vouches for plan and pointers; the scalars are read during the call.
        unsafe {
            result::matmul(
                self.handle,
                plan.descriptor.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointers.right as *const _,
                plan.right.0,
                pointers.left as *const _,
                plan.left.0,
                added as *const _,
                plan.result.0,
                pointers.result as *mut _,
                plan.result.0,
                std::ptr::from_ref(algorithm),
                self.workspace as *mut _,
                self.workspace_bytes,
                gpu.stream().cast(),
            )
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // There is nobody to tell if any of this fails.
        let _ = self.context.bind_to_thread();
        // SAFETY: made in `open`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
        if self.workspace != 0 {
            // SAFETY: allocated in `open`, freed once; the driver waits for work that uses it.
            let _ = unsafe { driver::free_sync(self.workspace) };
        }
    }
}

/// Says what cuBLASLt was asked for.
pub(super) fn refused(doing: impl Display) -> impl FnOnce(CublasError) -> CudaError {
    move |error| CudaError::Blas { doing: doing.to_string(), message: error.to_string() }
}
