//! Finding the libraries of CUDA at run time.
//!
//! Nothing is linked: a library is looked for when it is first needed, in this order.
//!
//! 1. `$AIM_CUDA_LIB`, a colon list of folders and files. What is there is meant: a file of the right name that does
//!    not load is an error.
//! 2. The system's loader (`LD_LIBRARY_PATH`, `ldconfig`).
//! 3. `$CUDA_HOME` and `$CUDA_PATH`, `/usr/local/cuda*`, `/usr/local/nvidia`, the system's library folders, WSL's.
//! 4. `site-packages/nvidia` of the active Python environment, where pip puts CUDA's wheels. Python is not run.
//!
//! cudarc loads by bare name and panics when a library or one of its functions is not there. So the library is loaded
//! here first, by its path; the loader then answers cudarc's request for the name in the file's `SONAME` with what is
//! already loaded. And the functions that are called are looked up here first. NVRTC is called without cudarc.
//!
//! ```
//! // On a machine without CUDA this is an error that says what to install and where it was looked for.
//! match aim_kernels::cuda::libraries::nvrtc() {
//!     Ok(found) => println!("{} {:?}", found.path.display(), found.version),
//!     Err(missing) => println!("{missing}"),
//! }
//! ```

mod driver;
mod nvrtc;
mod places;
mod search;

use std::ffi::{CStr, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

use super::CudaError;
pub use driver::driver_release;
pub(crate) use driver::start;
pub(crate) use nvrtc::{Nvrtc, compiler};
use search::{Wanted, function, load_for_cudarc};

/// A version such as 13.0 or 2.27.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number; 0 where there is none.
    pub patch: u32,
}

impl Version {
    /// From a number with the patch below `patch` and the minor version below `minor` in its last decimal digits.
    fn packed(number: u32, minor: u32, patch: u32) -> Self {
        Self {
            major: number / (minor * patch),
            minor: number / patch % minor,
            patch: number % patch,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 { write!(f, ".{}", self.patch) } else { Ok(()) }
    }
}

/// A library that is loaded.
#[derive(Clone, Debug)]
pub struct Found {
    /// File name that was asked for, such as `libcuda.so.1`.
    pub name: &'static str,
    /// The file, as the loader knows it.
    pub path: PathBuf,
    /// What it says of itself.
    pub version: Option<Version>,
    /// Something odd that is worth knowing.
    pub note: Option<String>,
}

/// The functions are those that this crate calls, also inside cudarc. Whoever calls another one adds it: cudarc panics
/// over a function that a library lacks.
const DRIVER: Wanted = Wanted {
    name: "libcuda.so.1",
    cudarc: Some("cuda"),
    files: &["libcuda.so.1", "libcuda.so"],
    python: false,
    symbols: &[
        c"cuInit",
        c"cuDriverGetVersion",
        c"cuGetErrorName",
        c"cuGetErrorString",
        c"cuDeviceGetCount",
        c"cuDeviceGet",
        c"cuDeviceGetName",
        c"cuDeviceGetAttribute",
        c"cuDeviceTotalMem_v2",
        c"cuDevicePrimaryCtxRetain",
        c"cuDevicePrimaryCtxRelease_v2",
        c"cuCtxGetCurrent",
        c"cuCtxSetCurrent",
        c"cuStreamCreate",
        c"cuStreamDestroy_v2",
        c"cuStreamSynchronize",
        c"cuEventCreate",
        c"cuEventRecord",
        c"cuEventSynchronize",
        c"cuEventElapsedTime_v2",
        c"cuEventDestroy_v2",
        c"cuModuleLoadData",
        c"cuModuleGetFunction",
        c"cuFuncSetAttribute",
        c"cuLaunchKernel",
        c"cuMemAlloc_v2",
        c"cuMemFree_v2",
        c"cuMemGetInfo_v2",
        c"cuMemsetD8Async",
        c"cuMemcpyHtoDAsync_v2",
        c"cuMemcpyDtoHAsync_v2",
        c"cuMemcpyDtoDAsync_v2",
    ],
    advice: "It comes with NVIDIA's driver, 570 or newer (Debian: apt install nvidia-driver; Ubuntu: apt install \
             nvidia-driver-580); a container gets it from the host (docker run --gpus all)",
};

const BLAS: Wanted = Wanted {
    name: "libcublasLt.so.13",
    cudarc: Some("cublasLt"),
    files: &["libcublasLt.so.13", "libcublasLt.so.12"],
    python: true,
    symbols: &[
        c"cublasLtCreate",
        c"cublasLtDestroy",
        c"cublasLtMatmul",
        c"cublasLtMatmulAlgoGetHeuristic",
        c"cublasLtMatmulDescCreate",
        c"cublasLtMatmulDescDestroy",
        c"cublasLtMatmulDescSetAttribute",
        c"cublasLtMatmulPreferenceCreate",
        c"cublasLtMatmulPreferenceDestroy",
        c"cublasLtMatmulPreferenceSetAttribute",
        c"cublasLtMatrixLayoutCreate",
        c"cublasLtMatrixLayoutDestroy",
        c"cublasLtMatrixLayoutSetAttribute",
    ],
    advice: "Install it with `pip install 'nvidia-cublas==13.*'` or `apt install libcublas-13-0`, or set \
             AIM_CUDA_LIB to its folder",
};

const NVRTC: Wanted = Wanted {
    name: "libnvrtc.so.13",
    cudarc: None,
    files: &["libnvrtc.so.13", "libnvrtc.so.12"],
    python: true,
    symbols: &[],
    advice: "Install it with `pip install 'nvidia-cuda-nvrtc==13.0.*'` or `apt install cuda-nvrtc-13-0`, or set \
             AIM_CUDA_LIB to its folder",
};

const NCCL: Wanted = Wanted {
    name: "libnccl.so.2",
    cudarc: Some("nccl"),
    files: &["libnccl.so.2"],
    python: true,
    symbols: &[
        c"ncclGetVersion",
        c"ncclGetUniqueId",
        c"ncclCommInitRank",
        c"ncclCommAbort",
        c"ncclAllReduce",
        c"ncclAllGather",
        c"ncclReduceScatter",
        c"ncclBroadcast",
        c"ncclGroupStart",
        c"ncclGroupEnd",
    ],
    advice: "Several GPUs need it: install it with `pip install nvidia-nccl-cu13` or `apt install libnccl2`, or set \
             AIM_CUDA_LIB to its folder",
};

/// The oldest cuBLASLt whose functions are those that cudarc calls.
const OLDEST_BLAS: u32 = 12;

type Search = OnceLock<Result<Found, CudaError>>;

/// Loads the driver, `libcuda`. Cheap: no device is touched and the driver is not started.
///
/// # Errors
/// [`CudaError::MissingLibrary`], or [`CudaError::UnusableLibrary`] for a stub. The answer stays the same for as long as
/// the program runs; so do those of the other libraries.
pub fn load() -> Result<&'static Found, CudaError> {
    static FOUND: Search = OnceLock::new();
    remember(&FOUND, || {
        // SAFETY: `load_for_cudarc` calls it once the library has been loaded.
        let mut found = load_for_cudarc(&DRIVER, || unsafe { cudarc::driver::sys::culib() })?;
        // SAFETY: looked up by `load_for_cudarc`.
        let library = unsafe { cudarc::driver::sys::culib() };
        let mut number: c_int = 0;
        // SAFETY: the driver's function of that name has this type.
        let version: Option<unsafe extern "C" fn(*mut c_int) -> c_int> =
            unsafe { function(library, c"cuDriverGetVersion") };
        // SAFETY: it writes one number, and needs no start before it.
        if version.is_some_and(|version| unsafe { version(&raw mut number) } == 0) {
            found.version = Some(Version::packed(number.unsigned_abs(), 100, 10));
        }
        Ok(found)
    })
}

/// Loads cuBLASLt. The driver must be there too before it is of use.
///
/// # Errors
/// As [`load`].
pub fn blas() -> Result<&'static Found, CudaError> {
    static FOUND: Search = OnceLock::new();
    remember(&FOUND, || {
        // SAFETY: `load_for_cudarc` calls it once the library has been loaded.
        let mut found = load_for_cudarc(&BLAS, || unsafe { cudarc::cublaslt::sys::culib() })?;
        // SAFETY: loaded, or the line above would have failed.
        let library = unsafe { cudarc::cublaslt::sys::culib() };
        // SAFETY: the library's function of that name has this type.
        let version: Option<unsafe extern "C" fn() -> usize> =
            unsafe { function(library, c"cublasLtGetVersion") };
        // SAFETY: it takes nothing and touches no device.
        let number = version.map(|version| unsafe { version() } as u32);
        found.version = number.map(|number| match number {
            0..100_000 => Version::packed(number, 10, 100),
            _ => Version::packed(number, 100, 100),
        });
        match found.version {
            Some(version) if version.major < OLDEST_BLAS => Err(CudaError::UnusableLibrary {
                library: BLAS.name,
                path: found.path,
                reason: format!("its version is {version}, {OLDEST_BLAS}.0 or newer is needed"),
            }),
            _ => Ok(found),
        }
    })
}

/// Loads the compiler, NVRTC, and its `libnvrtc-builtins`.
///
/// # Errors
/// As [`load`].
pub fn nvrtc() -> Result<&'static Found, CudaError> {
    compiler().map(Nvrtc::found)
}

/// Loads NCCL.
///
/// # Errors
/// As [`load`].
pub fn nccl() -> Result<&'static Found, CudaError> {
    static FOUND: Search = OnceLock::new();
    remember(&FOUND, || {
        // SAFETY: `load_for_cudarc` calls it once the library has been loaded.
        let mut found = load_for_cudarc(&NCCL, || unsafe { cudarc::nccl::sys::culib() })?;
        // SAFETY: loaded, or the line above would have failed.
        let library = unsafe { cudarc::nccl::sys::culib() };
        let mut number: c_int = 0;
        // SAFETY: the library's function of that name has this type.
        let version: Option<unsafe extern "C" fn(*mut c_int) -> c_int> =
            unsafe { function(library, c"ncclGetVersion") };
        // SAFETY: it writes one number.
        if version.is_some_and(|version| unsafe { version(&raw mut number) } == 0) {
            found.version = Some(Version::packed(number.unsigned_abs(), 100, 100));
        }
        Ok(found)
    })
}

/// The first answer, again and again.
fn remember<T>(
    answer: &'static OnceLock<Result<T, CudaError>>,
    search: impl FnOnce() -> Result<T, CudaError>,
) -> Result<&'static T, CudaError> {
    answer.get_or_init(search).as_ref().map_err(Clone::clone)
}

/// Symbols by name, for messages.
fn names<'a>(symbols: impl IntoIterator<Item = &'a CStr>) -> String {
    let names: Vec<_> = symbols.into_iter().map(CStr::to_string_lossy).collect();
    let shown = names.iter().take(4).map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    if names.len() > 4 { format!("{shown} and {} more", names.len() - 4) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_unpacked() {
        let text = |number, minor, patch| Version::packed(number, minor, patch).to_string();
        assert_eq!(text(13_000, 100, 10), "13.0");
        assert_eq!(text(12_080, 100, 10), "12.8");
        assert_eq!(text(130_002, 100, 100), "13.0.2");
        assert_eq!(text(11_605, 10, 100), "11.6.5");
        assert_eq!(text(22_703, 100, 100), "2.27.3");
    }
}
