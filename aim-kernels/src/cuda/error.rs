//! What can go wrong between here and a GPU.

use std::path::PathBuf;

use cudarc::driver::DriverError;

/// Errors of the CUDA side.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library is not on this machine.
    #[error("no CUDA: {library} was not found; looked in {}. {advice}", looked_in.join(", "))]
    MissingLibrary {
        /// File name, such as `libcuda.so.1`.
        library: &'static str,
        /// Where it was looked for, with what stood in the way there.
        looked_in: Vec<String>,
        /// What to install or set.
        advice: &'static str,
    },
    /// A library is there and is not what its name says, or not new enough.
    #[error("no CUDA: {} cannot be used: {reason}", path.display())]
    UnusableLibrary {
        /// File name that was asked for, such as `libcuda.so.1`.
        library: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The driver is there and does not start.
    #[error("no CUDA: the driver ({}) does not start: {error}. {advice}", path.display())]
    Start {
        /// The driver's library.
        path: PathBuf,
        /// Name and text of its error.
        error: String,
        /// What may help.
        advice: &'static str,
    },
    /// The driver is there, a device is not.
    #[error("no CUDA device {ordinal}: the driver knows {}", devices(*found))]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// Devices there are.
        found: usize,
    },
    /// The driver refused.
    #[error("CUDA: {doing}: {}", answer(*error))]
    Driver {
        /// What was being done.
        doing: String,
        /// The driver's answer.
        error: DriverError,
    },
    /// cuBLASLt refused.
    #[error("cuBLASLt: {doing}: {message}")]
    Blas {
        /// What was being done, with the shape.
        doing: String,
        /// Its status.
        message: String,
    },
    /// Kernels do not compile, which is a fault of this program or an NVRTC that is too old for the chip.
    #[error("NVRTC could not compile the kernels for {arch}:\n{log}")]
    Compile {
        /// Such as `sm_90a`.
        arch: String,
        /// The compiler's words.
        log: String,
    },
    /// NVRTC is older than the chip.
    #[error(
        "NVRTC {nvrtc} ({}) compiles nothing that runs on {arch}; install a newer one, such as by \
         `pip install -U nvidia-cuda-nvrtc`",
        path.display()
    )]
    UnknownChip {
        /// Such as `sm_120a`.
        arch: String,
        /// NVRTC's version.
        nvrtc: super::libraries::Version,
        /// NVRTC's file.
        path: PathBuf,
    },
    /// A file with compiled kernels cannot be used.
    #[error("compiled kernels {}: {reason}", path.display())]
    Cubin {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that the kernels do not do.
    #[error("{op} on CUDA: expected {expected}, found {found}")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// What would work.
        expected: &'static str,
        /// What was asked for.
        found: String,
    },
    /// The device's memory is too small.
    #[error("could not reserve {} MiB on the GPU for {what}, {} MiB are free", bytes >> 20, free >> 20)]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free on the device.
        free: usize,
    },
}

impl CudaError {
    /// Says what the driver was asked for.
    pub(crate) fn driver(doing: impl Into<String>) -> impl FnOnce(DriverError) -> Self {
        |error| Self::Driver { doing: doing.into(), error }
    }
}

/// The driver's name for an error, and its text.
fn answer(error: DriverError) -> String {
    let name = format!("{:?}", error.0);
    match error.error_string() {
        Ok(text) => format!("{name}, {}", text.to_string_lossy()),
        Err(_) => name,
    }
}

/// How many devices there are, and what may hide them.
fn devices(found: usize) -> String {
    let number = if found == 0 { "none".to_owned() } else { format!("{found}, from 0 on") };
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(visible) => format!("{number} (CUDA_VISIBLE_DEVICES is '{visible}')"),
        Err(_) => number,
    }
}
