//! [`Plan`]: a product's descriptors and the algorithms that can run it.

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};

use super::key::{Added, Epilogue, Key, Number};
use super::library::{Library, refused};
use super::objects::{Descriptor, Layout, Preference};
use crate::cuda::CudaError;

/// Algorithms asked for.
const CANDIDATES: usize = 8;

/// A product's descriptors and the algorithms that can run it.
pub(super) struct Plan {
    pub(super) descriptor: Descriptor,
    pub(super) left: Layout,
    pub(super) right: Layout,
    pub(super) result: Layout,
    /// What cuBLASLt proposes, the one that it believes fastest first. Never empty.
    pub(super) candidates: Vec<sys::cublasLtMatmulAlgo_t>,
    /// The one that runs.
    pub(super) chosen: usize,
    /// Whether that choice stands: it was measured, kept from an earlier run, or there is no other.
    pub(super) settled: bool,
    /// Time of the chosen one if it was measured, seconds.
    pub(super) time_s: Option<f64>,
}

impl Plan {
    /// Asks cuBLASLt how to run a product; `None` where it cannot.
    ///
    /// Its matrices are column-major, ours row-major. A row-major matrix `[r, c]` with row stride `s` is, read
    /// column-major, its transpose: `c` rows, `r` columns, leading dimension `s`. So `R = op(A) op(B)` is asked for as
    /// `R^T = op(B)^T op(A)^T`, which needs no transposition beyond those in `op`: the right operand goes first, sizes
    /// are swapped, strides and `op` stay.
    pub(super) fn new(library: &Library, key: &Key) -> Result<Option<Self>, CudaError> {
        Self::ask(library, key).map_err(refused(format!("planning {key}")))
    }

    fn ask(library: &Library, key: &Key) -> Result<Option<Self>, CublasError> {
        let [left, right] = key.transposed();
        let descriptor = Descriptor::new([right, left])?;
        let fused = key.epilogue != Epilogue::Nothing;
        if fused {
            if !key.strides[2].is_multiple_of(8) {
                // A rule for the epilogue's second matrix, which has the result's stride.
                return Ok(None);
            }
            use sys::cublasLtEpilogue_t as Fused;
            let epilogue = match key.epilogue {
                Epilogue::Nothing => Fused::CUBLASLT_EPILOGUE_DEFAULT,
                Epilogue::Gelu => Fused::CUBLASLT_EPILOGUE_GELU_AUX,
                Epilogue::GeluBackward => Fused::CUBLASLT_EPILOGUE_DGELU,
            };
            descriptor.fuse(epilogue, key.strides[2] as i64)?;
            // There is no preference for this matrix: the alignment is seen by an address, which is not used.
            descriptor.set_aux(u64::from(key.alignments[4]))?;
        }
        let layout = |number, i: usize| {
            let [rows, columns] = key.sizes()[i];
            Layout::new(number, [columns as u64, rows as u64], key.strides[i] as i64)
        };
        let (left, right) = (layout(Number::Bf16, 0)?, layout(Number::Bf16, 1)?);
        let result = layout(key.result, 2)?;
        let [a, b, c, d, _] = key.alignments;
        let c = if key.added == Added::Other { c } else { d };
        let preference = Preference::new(library.workspace_bytes, [b, a, c, d])?;
        let candidates =
            match candidates(library, &descriptor, [&right, &left, &result], &preference) {
                Ok(candidates) => candidates,
                Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)) => Vec::new(),
                // Some versions call an epilogue that they lack invalid.
                Err(CublasError(Status::CUBLAS_STATUS_INVALID_VALUE)) if fused => Vec::new(),
                Err(error) => return Err(error),
            };
        if candidates.is_empty() {
            return Ok(None);
        }
        let settled = candidates.len() == 1;
        let time_s = None;
        Ok(Some(Self { descriptor, left, right, result, candidates, chosen: 0, settled, time_s }))
    }

    /// The algorithm that runs.
    pub(super) fn algorithm(&self) -> &sys::cublasLtMatmulAlgo_t {
        &self.candidates[self.chosen]
    }

    /// Takes the algorithm of an earlier run if cuBLASLt proposes it again; the bits come from a file, and nothing that
    /// it did not propose itself is handed to it.
    pub(super) fn keep(&mut self, bits: &[u64; 8]) -> bool {
        let found = self.candidates.iter().position(|candidate| candidate.data == *bits);
        if let Some(chosen) = found {
            (self.chosen, self.settled) = (chosen, true);
        }
        found.is_some()
    }
}

/// Algorithms for a product of the matrices (first, second, result).
fn candidates(
    library: &Library,
    descriptor: &Descriptor,
    [first, second, result]: [&Layout; 3],
    preference: &Preference,
) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CublasError> {
    // SAFETY: plain numbers and an enum in which 0 is success.
    let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] =
        unsafe { std::mem::zeroed() };
    let mut len = 0;
    // SAFETY: live objects, and room for as many results as are asked for.
    unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            library.handle,
            descriptor.0,
            first.0,
            second.0,
            result.0,
            result.0,
            preference.0,
            CANDIDATES as i32,
            found.as_mut_ptr(),
            &mut len,
        )
    }
    .result()?;
    let usable = found.iter().take(len.max(0) as usize).filter(|found| {
        found.state == Status::CUBLAS_STATUS_SUCCESS
            && found.workspaceSize <= library.workspace_bytes
    });
    Ok(usable.map(|found| found.algo).collect())
}
