//! cuBLASLt's own objects, each destroyed when it is dropped.

use std::ffi::c_void;

use bytemuck::Pod;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUdeviceptr;

use super::key::Number;

/// `CUBLAS_OP_N` and `CUBLAS_OP_T`, which the bindings do not name.
const PLAIN: i32 = 0;
const TRANSPOSED: i32 = 1;

fn data_type(number: Number) -> sys::cudaDataType {
    match number {
        Number::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Number::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

/// What a product does: transpositions and what is fused behind it. Sums are in f32.
pub(super) struct Descriptor(pub(super) sys::cublasLtMatmulDesc_t);
// SAFETY: a handle to memory on the heap that no thread owns.
unsafe impl Send for Descriptor {}

impl Descriptor {
    pub(super) fn new(transposed: [bool; 2]) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let this = Self(result::create_matmul_desc(compute, data_type(Number::F32))?);
        let operation = |transposed| if transposed { TRANSPOSED } else { PLAIN };
        this.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(transposed[0]))?;
        this.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(transposed[1]))?;
        Ok(this)
    }

    /// Fuses an epilogue whose second matrix has `stride`.
    pub(super) fn fuse(
        &self,
        epilogue: sys::cublasLtEpilogue_t,
        stride: i64,
    ) -> Result<(), CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue as u32)?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, stride)
    }

    /// Where the epilogue's second matrix is.
    pub(super) fn set_aux(&self, aux: CUdeviceptr) -> Result<(), CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux)
    }

    fn set<T: Pod>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: T,
    ) -> Result<(), CublasError> {
        let value: *const c_void = std::ptr::from_ref(&value).cast();
        // SAFETY: a live descriptor; the value is read during the call.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A column-major matrix.
pub(super) struct Layout(pub(super) sys::cublasLtMatrixLayout_t);
// SAFETY: as for `Descriptor`.
unsafe impl Send for Layout {}

impl Layout {
    pub(super) fn new(number: Number, size: [u64; 2], stride: i64) -> Result<Self, CublasError> {
        result::create_matrix_layout(data_type(number), size[0], size[1], stride).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What is asked of an algorithm.
pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Algorithms that need at most `workspace` bytes, are content with these alignments (of the first operand, the
    /// second, what is added and the result) and give the same bits whenever they run.
    pub(super) fn new(workspace: usize, alignments: [u32; 4]) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let this = Self(result::create_matmul_pref()?);
        this.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace as u64)?;
        // A sum over many rows may be cut into parts. The parts must meet in the workspace, in f32 and in a fixed
        // order: neither in the result (`INPLACE`), nor rounded to the result's type first (`OUTPUT_TYPE`, which for
        // an f32 result is the same as `COMPUTE_TYPE`).
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        this.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction as u32)?;
        let attributes = [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        for (attribute, alignment) in attributes.into_iter().zip(alignments) {
            this.set(attribute, alignment)?;
        }
        Ok(this)
    }

    fn set<T: Pod>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), CublasError> {
        let value: *const c_void = std::ptr::from_ref(&value).cast();
        // SAFETY: a live preference; the value is read during the call.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
