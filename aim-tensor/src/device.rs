//! [`Device`]: where parameters live and tapes run.

use std::fmt;
use std::sync::Arc;

use aim_kernels::cuda::Gpu;

use crate::error::TensorError;

/// Where parameters live and tapes run.
#[derive(Clone, Default)]
pub enum Device {
    /// This process's threads, fp32.
    #[default]
    Cpu,
    /// A GPU: bf16 activations and matrix operands, fp32 masters, gradients of parameters and statistics.
    Cuda(Arc<Gpu>),
}

impl Device {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// What is missing on this machine and where it was looked for.
    pub fn cuda(ordinal: usize) -> Result<Self, TensorError> {
        Ok(Self::Cuda(Gpu::open(ordinal)?))
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        match self {
            Self::Cpu => None,
            Self::Cuda(gpu) => Some(gpu),
        }
    }

    /// How values are stored there.
    pub fn storage(&self) -> Storage {
        match self {
            Self::Cpu => Storage::Fp32,
            Self::Cuda(_) => Storage::Bf16,
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu, Self::Cpu) => true,
            (Self::Cuda(a), Self::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("the CPU"),
            Self::Cuda(gpu) => write!(f, "{} ({})", gpu.name(), gpu.arch()),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a run stores what its tape computes: the precision model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// Everything f32.
    #[default]
    Fp32,
    /// bf16 for activations, the residual stream and matrix operands; f32 for patches, predictions, logits, losses,
    /// statistics and gradients of parameters.
    Bf16,
}
