//! Choosing the device, the recomputation level that fits it, and what a checkpoint keeps of such choices.

use aim_kernels::cuda::{CudaError, gemm};
use aim_model::pretrain::PretrainModel;
use aim_model::trunk::ImageBatch;
use aim_tensor::{Device, GeluForm, Plan, PlanOptions, Recompute, Tape, TensorError};
use serde::{Deserialize, Serialize};

use crate::config::{self, Precision, TrainConfig};
use crate::error::TrainError;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
}

/// A device that is open, the arithmetic on it, and why it is not the GPU if one might have been.
#[derive(Debug)]
pub struct Chosen {
    /// The device.
    pub device: Device,
    /// fp32 on the CPU, bf16 on a GPU.
    pub precision: Precision,
    /// For the user.
    pub note: Option<String>,
}

impl DeviceChoice {
    /// Opens the device for a precision.
    ///
    /// # Errors
    /// When the GPU asked for cannot be used, or the device does not compute in that precision.
    pub fn open(self, precision: Precision) -> Result<Chosen, TrainError> {
        let cpu = |note| Chosen { device: Device::Cpu, precision: Precision::Fp32, note };
        let cuda = |ordinal| -> Result<Chosen, TrainError> {
            let device = Device::cuda(ordinal)?;
            Ok(Chosen { device, precision: Precision::Bf16, note: None })
        };
        match (self, precision) {
            (Self::Cpu, Precision::Bf16) => Err(TrainError::Unsupported {
                what: "train.precision = \"bf16\" on the CPU",
                instead: "use train.precision = \"fp32\" or --device cuda",
            }),
            (Self::Cuda(_), Precision::Fp32) => Err(TrainError::Unsupported {
                what: "train.precision = \"fp32\" on CUDA",
                instead: "use train.precision = \"bf16\" (masters, gradients and statistics stay \
                          fp32) or --device cpu",
            }),
            (Self::Cpu, _) | (Self::Auto, Precision::Fp32) => Ok(cpu(None)),
            (Self::Cuda(ordinal), _) => cuda(ordinal),
            (Self::Auto, Precision::Bf16) => cuda(0),
            (Self::Auto, Precision::Auto) => {
                cuda(0).or_else(|error| Ok(cpu(Some(why_not_cuda(&error)))))
            }
        }
    }
}

/// `device.json` of a checkpoint: what was chosen for a GPU. A resumed run chooses the same, so that its bits are those
/// of a run that was never interrupted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceState {
    /// Version of cuBLASLt.
    version: String,
    /// Name of the device.
    device: String,
    /// Each matrix product, and the algorithm chosen for it as cuBLASLt's 64 bytes.
    algorithms: Vec<(String, [u64; 8])>,
}

impl DeviceState {
    /// The choices of a run so far; none on the CPU.
    pub(super) fn of(device: &Device) -> Option<Self> {
        let gemm::Chosen { version, device, algorithms } = gemm::export(device.gpu()?);
        Some(Self { version, device, algorithms })
    }

    /// Makes products use these choices from now on. Returns why not, where they cannot.
    pub(super) fn apply(self, device: &Device) -> Vec<String> {
        let Self { version, device: name, algorithms } = self;
        let chosen = gemm::Chosen { version, device: name, algorithms };
        device.gpu().map_or_else(Vec::new, |gpu| gemm::import(gpu, &chosen))
    }
}

/// Reserves what products need, so that what is free afterwards stays free; with `tune` they choose their algorithms by
/// measurement.
pub(crate) fn prepare(device: &Device, tune: bool) -> Result<(), TrainError> {
    if let Some(gpu) = device.gpu() {
        gemm::prepare(gpu).map_err(TensorError::from)?;
        gemm::tune(gpu, tune);
    }
    Ok(())
}

/// Ends measuring: a product whose shape comes up later, such as a batch of validation images, takes the library's
/// first proposal. Returns what the user should know of the products so far.
pub(super) fn settle(device: &Device) -> Vec<String> {
    let Some(gpu) = device.gpu() else { return Vec::new() };
    gemm::tune(gpu, false);
    gemm::notes(gpu)
}

/// How steps are planned, as far as the configuration says.
pub(super) fn options(train: &TrainConfig) -> PlanOptions {
    let gelu = match train.gelu {
        config::Gelu::Erf => GeluForm::Erf,
        config::Gelu::Tanh => GeluForm::Tanh,
    };
    PlanOptions { gelu, ..PlanOptions::default() }
}

/// The least recomputation with which a step fits into the device's free memory; on the CPU none, unless asked for.
pub(super) fn fit_recompute(
    train: &TrainConfig,
    device: &Device,
    model: &PretrainModel,
    images: ImageBatch,
    rows: usize,
) -> Result<Recompute, TrainError> {
    let level = match train.recompute {
        config::Recompute::Auto => None,
        config::Recompute::None => Some(Recompute::None),
        config::Recompute::Norms => Some(Recompute::Norms),
        config::Recompute::NormsGelu => Some(Recompute::NormsGelu),
        config::Recompute::Block => Some(Recompute::Block),
    };
    match level {
        None if device.gpu().is_some() => {
            let (tape, _) = model.record(images, rows)?;
            least_recompute(device, &tape, options(train))
        }
        level => Ok(level.unwrap_or_default()),
    }
}

/// The least recomputation with which a tape's step fits into the device's free memory; on the CPU none.
pub(crate) fn least_recompute(
    device: &Device,
    tape: &Tape,
    options: PlanOptions,
) -> Result<Recompute, TrainError> {
    let Some(gpu) = device.gpu() else { return Ok(Recompute::None) };
    let free = gpu.free_memory().map_err(TensorError::from)?;
    for recompute in [Recompute::None, Recompute::Norms, Recompute::NormsGelu] {
        let storage = device.storage();
        let options = PlanOptions { backward: true, recompute, storage, ..options };
        // Fragments and the driver's own needs: one part in sixteen.
        if Plan::new(tape, options)?.memory().arena_bytes <= free / 16 * 15 {
            return Ok(recompute);
        }
    }
    Ok(Recompute::Block)
}

fn why_not_cuda(error: &TrainError) -> String {
    match error {
        // The usual case needs no list of places that were searched.
        TrainError::Tensor(TensorError::Cuda(CudaError::MissingLibrary { library, .. }))
            if library.starts_with("libcuda.") =>
        {
            format!("computing on the CPU: no NVIDIA driver ({library}) on this machine")
        }
        other => format!("computing on the CPU: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_and_device_must_agree() {
        let cpu = DeviceChoice::Cpu.open(Precision::Auto).unwrap();
        assert_eq!((cpu.device, cpu.precision), (Device::Cpu, Precision::Fp32));
        assert!(DeviceChoice::Cpu.open(Precision::Bf16).is_err());
        assert!(DeviceChoice::Cuda(0).open(Precision::Fp32).is_err());
        let auto = DeviceChoice::Auto.open(Precision::Fp32).unwrap();
        assert_eq!((auto.device, auto.note), (Device::Cpu, None));
    }
}
