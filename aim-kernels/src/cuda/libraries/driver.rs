//! Starting the driver.

use std::ffi::{CStr, c_char, c_int, c_uint};

use super::load;
use super::search::function;
use crate::cuda::CudaError;

// Codes are read as plain numbers: a value that the bindings' enum does not know would be undefined behaviour in it, and
// a stub or a newer driver may return anything.
type Init = unsafe extern "C" fn(c_uint) -> c_int;
type DeviceCount = unsafe extern "C" fn(*mut c_int) -> c_int;
type ErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;

/// Loads and starts the driver, and counts the devices; the time is that of the driver's start, some 0.1 s, once.
///
/// # Errors
/// [`CudaError::Start`] when the driver refuses. No device is no error here.
pub(crate) fn start() -> Result<usize, CudaError> {
    let found = load()?;
    // SAFETY: `load` has found the driver.
    let library = unsafe { cudarc::driver::sys::culib() };
    let lacks = |name: &str| CudaError::UnusableLibrary {
        library: found.name,
        path: found.path.clone(),
        reason: format!("it lacks {name}"),
    };
    // SAFETY: the driver's functions of these names have these types.
    let (init, count): (Option<Init>, Option<DeviceCount>) =
        unsafe { (function(library, c"cuInit"), function(library, c"cuDeviceGetCount")) };
    let init = init.ok_or_else(|| lacks("cuInit"))?;
    let count = count.ok_or_else(|| lacks("cuDeviceGetCount"))?;
    let mut devices: c_int = 0;
    // SAFETY: the documented way to start; the count is written to a number that is there.
    let code = unsafe {
        match init(0) {
            0 => count(&raw mut devices),
            code => code,
        }
    };
    match code {
        0 => Ok(devices.max(0) as usize),
        NO_DEVICE => Ok(0),
        code => Err(CudaError::Start {
            path: found.path.clone(),
            error: text(library, code),
            advice: advice(code),
        }),
    }
}

/// The driver's own words for a code.
fn text(library: &libloading::Library, code: c_int) -> String {
    let ask = |name: &CStr| -> Option<String> {
        // SAFETY: both functions that are asked have this type.
        let function: ErrorText = unsafe { function(library, name) }?;
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: it writes the address of a constant text, or fails.
        let code = unsafe { function(code, &raw mut text) };
        if code != 0 || text.is_null() {
            return None;
        }
        // SAFETY: a text of the driver that ends in zero.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (ask(c"cuGetErrorName"), ask(c"cuGetErrorString")) {
        (Some(name), Some(words)) => format!("{name}, {words}"),
        (Some(name), None) => name,
        _ => format!("error {code}"),
    }
}

/// What helps against errors of the start.
fn advice(code: c_int) -> &'static str {
    match code {
        34 => {
            "This is the toolkit's stub for linking: take its folder off LD_LIBRARY_PATH and AIM_CUDA_LIB, so that the \
             driver's own libcuda.so.1 is found"
        }
        802 => "The system is still starting, or needs nvidia-fabricmanager to run",
        803 => {
            "The driver's library and its kernel module are of different versions: restart the machine after an \
             update; in a container, take CUDA's compat folder off the search path"
        }
        804 => "CUDA's compat folder does not serve this card: take it off the search path",
        999 => {
            "Often the module nvidia_uvm is not loaded: try `nvidia-modprobe -u -c 0`, or restart the machine"
        }
        _ => "See what `nvidia-smi` says",
    }
}

/// The release of the driver's kernel module, such as `580.95.05`.
pub fn driver_release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    release(&text).map(str::to_owned)
}

fn release(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn release_of_the_kernel_module() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  \
                    (dvs-builder@x)  Tue Sep 23 10:11:16 UTC 2025\nGCC version:  gcc version 12.2.0\n";
        assert_eq!(release(text), Some("580.95.05"));
        assert_eq!(release(""), None);
    }
}
