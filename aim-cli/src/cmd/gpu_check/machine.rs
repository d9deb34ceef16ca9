//! The device, the driver and the libraries.

use aim_kernels::cuda::libraries::{self, Found};
use aim_kernels::cuda::{CudaError, DeviceInfo, Gpu};
use anyhow::Result;
use serde_json::{Map, Value, json};

/// What is known without opening the device.
///
/// # Errors
/// When there is no device to check.
pub(super) fn facts() -> Result<Map<String, Value>> {
    let devices = Gpu::list()?;
    let Some(DeviceInfo { name, memory, compute: (major, minor), .. }) = devices.first() else {
        return Err(CudaError::NoDevice { ordinal: 0, found: 0 }.into());
    };
    let version = |found: Result<&Found, CudaError>| match found {
        Ok(found) => {
            let version = found.version.map(|version| version.to_string());
            json!({ "version": version, "path": found.path.display().to_string() })
        }
        Err(error) => json!({ "missing": error.to_string() }),
    };
    let mut facts = Map::new();
    let mut put = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    put("program", format!("aim-cli {}", env!("CARGO_PKG_VERSION")).into());
    put("debug_build", cfg!(debug_assertions).into());
    put("device", name.as_str().into());
    put("devices", devices.len().into());
    put("compute_capability", format!("{major}.{minor}").into());
    put("memory_bytes", (*memory).into());
    put("driver", version(libraries::load()));
    put("driver_release", libraries::driver_release().into());
    put("cublaslt", version(libraries::blas()));
    put("nvrtc", version(libraries::nvrtc()));
    put("cpu_threads", std::thread::available_parallelism().map_or(1, usize::from).into());
    put("started_unix_s", super::now_s().as_secs().into());
    Ok(facts)
}
