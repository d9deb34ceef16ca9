//! [`Gpu`]: one device, its stream and the compiled kernels.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::compile::{self, Image};
use super::{CudaError, gemm, libraries};

/// The oldest chips that the kernels run on: the first with bf16 in their matrix units.
const OLDEST: (i32, i32) = (8, 0);

/// A function of the loaded module.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);
// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Function {}

/// What the driver says of a device that need not be opened for it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its number in `cuda:N`.
    pub ordinal: usize,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Memory, bytes.
    pub memory: u64,
    /// Compute capability, such as `(9, 0)`.
    pub compute: (i32, i32),
}

/// One device, opened. All work goes on one stream, in order.
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: sys::CUmodule,
    functions: Mutex<HashMap<&'static str, Function>>,
    blas: gemm::Blas,
    name: String,
    arch: String,
    notes: Vec<String>,
}

// SAFETY: the module is a handle that the driver lets any thread use.
unsafe impl Send for Gpu {}
// SAFETY: as above; the map of functions has its lock.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens device `ordinal`, compiling the kernels for it if they are not in the cache.
    ///
    /// # Errors
    /// What is missing and where it was looked for.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let found = libraries::start()?;
        if ordinal >= found {
            return Err(CudaError::NoDevice { ordinal, found });
        }
        let context = CudaContext::new(ordinal)
            .map_err(CudaError::driver(format!("opening device {ordinal}")))?;
        // SAFETY: all memory and work is on one stream: there is nothing for events to order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(CudaError::driver("making a stream"))?;
        let (major, minor) =
            context.compute_capability().map_err(CudaError::driver("asking for the chip"))?;
        let name = context.name().map_err(CudaError::driver("asking for the name"))?;
        if (major, minor) < OLDEST {
            return Err(CudaError::Unsupported {
                op: "computing",
                expected: "compute capability 8.0 or newer",
                found: format!("{major}.{minor} ({name})"),
            });
        }
        let image = compile::image(major, minor)?;
        // SAFETY: a whole cubin in memory.
        let module = unsafe { result::module::load_data(image.cubin.as_ptr().cast()) }
            .map_err(CudaError::driver(loading(&image)))?;
        let (functions, blas) = (Mutex::default(), gemm::Blas::default());
        let Image { arch, notes, .. } = image;
        Ok(Arc::new(Self { context, stream, module, functions, blas, name, arch, notes }))
    }

    /// The devices of this machine.
    ///
    /// # Errors
    /// What is missing and where it was looked for. No device is no error.
    pub fn list() -> Result<Vec<DeviceInfo>, CudaError> {
        use result::device;
        use sys::CUdevice_attribute_enum as Attribute;
        let describe = |ordinal: usize| {
            let asked = device::get(ordinal as i32).and_then(|handle| {
                let attribute = |which| {
                    // SAFETY: a handle that the driver has just given.
                    unsafe { device::get_attribute(handle, which) }
                };
                let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
                let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
                // SAFETY: as above.
                let memory = unsafe { device::total_mem(handle) }? as u64;
                let name = device::get_name(handle)?;
                Ok(DeviceInfo { ordinal, name, memory, compute: (major, minor) })
            });
            asked.map_err(CudaError::driver(format!("asking about device {ordinal}")))
        };
        (0..libraries::start()?).map(describe).collect()
    }

    /// The device's name, such as `NVIDIA H200`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The architecture that kernels were compiled for, such as `sm_90a`.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// What is worth telling the user about how the kernels were made, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for faults of kernels that ran before.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::driver("waiting for the device"))
    }

    /// Bytes free on the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn free_memory(&self) -> Result<usize, CudaError> {
        self.context
            .mem_get_info()
            .map(|(free, _)| free)
            .map_err(CudaError::driver("asking for free memory"))
    }

    /// Makes the device current on this thread.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(CudaError::driver("making the device current"))
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// What [`gemm`] keeps of this device.
    pub(crate) fn blas(&self) -> &gemm::Blas {
        &self.blas
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    pub(crate) fn function(&self, name: &'static str) -> Result<sys::CUfunction, CudaError> {
        let mut functions =
            self.functions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.0);
        }
        let doing = || CudaError::driver(format!("finding kernel {name}"));
        let text = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded and never unloaded.
        let function =
            unsafe { result::module::get_function(self.module, text) }.map_err(doing())?;
        functions.insert(name, Function(function));
        Ok(function)
    }
}

/// What loading an image is called, with what may be wrong if the driver refuses it.
fn loading(image: &Image) -> String {
    let Image { arch, origin, nvrtc, .. } = image;
    let driver = libraries::load().ok().and_then(|found| found.version);
    let newer = match (nvrtc, driver) {
        (Some(nvrtc), Some(driver)) if nvrtc.major > driver.major => format!(
            " (made by NVRTC {nvrtc}, which is newer than the driver's CUDA {driver}: update the driver, or point \
             AIM_CUDA_LIB at an NVRTC of that version)"
        ),
        _ => String::new(),
    };
    format!("loading the kernels for {arch} from {origin}{newer}")
}
