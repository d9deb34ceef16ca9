//! NVRTC, called directly: cudarc has no way to a cubin's log, and would take whichever version the system's loader
//! prefers, however old.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::Library;

use super::search::{file_of, open, search};
use super::{Found, NVRTC, Version, places, remember};
use crate::cuda::CudaError;

type Program = *mut c_void;
type OfProgram<T> = unsafe extern "C" fn(Program, T) -> c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

/// NVRTC's functions. Results are plain numbers, as a newer library may have codes that no binding knows.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    arch_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    create: Create,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: OfProgram<*mut usize>,
    log: OfProgram<*mut c_char>,
    cubin_size: OfProgram<*mut usize>,
    cubin: OfProgram<*mut c_char>,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Functions {
    fn of(library: &Library) -> Result<Self, String> {
        fn get<F: Copy>(library: &Library, name: &CStr) -> Result<F, String> {
            // SAFETY: each field below has the type that NVRTC documents for the function of that name.
            let symbol = unsafe { library.get::<F>(name) };
            symbol.map(|symbol| *symbol).map_err(|_| format!("it lacks {}", name.to_string_lossy()))
        }
        Ok(Self {
            version: get(library, c"nvrtcVersion")?,
            arch_count: get(library, c"nvrtcGetNumSupportedArchs")?,
            archs: get(library, c"nvrtcGetSupportedArchs")?,
            create: get(library, c"nvrtcCreateProgram")?,
            compile: get(library, c"nvrtcCompileProgram")?,
            log_size: get(library, c"nvrtcGetProgramLogSize")?,
            log: get(library, c"nvrtcGetProgramLog")?,
            cubin_size: get(library, c"nvrtcGetCUBINSize")?,
            cubin: get(library, c"nvrtcGetCUBIN")?,
            destroy: get(library, c"nvrtcDestroyProgram")?,
            error: get(library, c"nvrtcGetErrorString")?,
        })
    }

    fn version(&self) -> Result<Version, String> {
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // SAFETY: writes two numbers.
        match unsafe { (self.version)(&raw mut major, &raw mut minor) } {
            0 => Ok(Version { major: major.unsigned_abs(), minor: minor.unsigned_abs(), patch: 0 }),
            code => Err(format!("it does not tell its version: {}", self.words(code))),
        }
    }

    fn words(&self, code: c_int) -> String {
        // SAFETY: returns a constant text for any number.
        let text = unsafe { (self.error)(code) };
        if text.is_null() {
            return format!("error {code}");
        }
        // SAFETY: a text of the library that ends in zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 { Ok(()) } else { Err(self.words(code)) }
    }
}

/// The compiler, loaded.
pub(crate) struct Nvrtc {
    found: Found,
    version: Version,
    functions: Functions,
    archs: Vec<u32>,
}

/// Finds and loads NVRTC.
pub(crate) fn compiler() -> Result<&'static Nvrtc, CudaError> {
    static FOUND: OnceLock<Result<Nvrtc, CudaError>> = OnceLock::new();
    remember(&FOUND, || {
        let (path, mut nvrtc) = search(&NVRTC, Nvrtc::accept)?;
        nvrtc.found.path = file_of(nvrtc.functions.version as *const c_void).unwrap_or(path);
        Ok(nvrtc)
    })
}

impl Nvrtc {
    /// A library that has everything, its builtins included.
    fn accept(library: &Library, path: &Path) -> Result<Self, String> {
        let functions = Functions::of(library)?;
        let version = functions.version()?;
        // A bare name's folder is known only now.
        let file = file_of(functions.version as *const c_void).unwrap_or_else(|| path.to_owned());
        load_builtins(&file, version)?;
        let archs = archs(&functions)?;
        let found = Found { name: NVRTC.name, path: file, version: Some(version), note: None };
        Ok(Self { found, version, functions, archs })
    }

    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Chips that it compiles for, 10 x major + minor, in order.
    pub(crate) fn archs(&self) -> &[u32] {
        &self.archs
    }

    /// Compiles `source` to a cubin and the compiler's log.
    ///
    /// # Errors
    /// The log and the result's name.
    pub(crate) fn compile(
        &self,
        source: &CStr,
        options: &[CString],
    ) -> Result<(Vec<u8>, String), String> {
        let calls = &self.functions;
        let mut program = Owned { calls, program: std::ptr::null_mut() };
        let none = std::ptr::null();
        // SAFETY: the texts end in zero and outlive the program; no headers are given.
        calls.check(unsafe {
            let name = c"aim.cu".as_ptr();
            (calls.create)(&raw mut program.program, source.as_ptr(), name, 0, none, none)
        })?;
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: as many options as are said; they outlive the call.
        let code =
            unsafe { (calls.compile)(program.program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.bytes(calls.log_size, calls.log).unwrap_or_default();
        let log = String::from_utf8_lossy(log.strip_suffix(&[0]).unwrap_or(&log)).into_owned();
        if code != 0 {
            return Err(format!("{}\n{}", calls.words(code), log.trim_end()));
        }
        let cubin = program.bytes(calls.cubin_size, calls.cubin)?;
        if cubin.is_empty() {
            return Err("NVRTC made no cubin".to_owned());
        }
        Ok((cubin, log))
    }
}

/// A program that is destroyed in the end.
struct Owned<'a> {
    calls: &'a Functions,
    program: Program,
}

impl Owned<'_> {
    fn bytes(
        &self,
        size: OfProgram<*mut usize>,
        read: OfProgram<*mut c_char>,
    ) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: a live program; one number is written.
        self.calls.check(unsafe { size(self.program, &raw mut len) })?;
        let mut bytes = vec![0; len];
        // SAFETY: a live program; as many bytes are written as it has just said.
        self.calls.check(unsafe { read(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created and not yet destroyed. There is nobody to tell if it fails.
            let _ = unsafe { (self.calls.destroy)(&raw mut self.program) };
        }
    }
}

fn archs(functions: &Functions) -> Result<Vec<u32>, String> {
    let mut len: c_int = 0;
    // SAFETY: one number is written.
    functions.check(unsafe { (functions.arch_count)(&raw mut len) })?;
    let mut archs: Vec<c_int> = vec![0; len.clamp(0, 1000) as usize];
    if !archs.is_empty() {
        // SAFETY: as many numbers are written as it has just said.
        functions.check(unsafe { (functions.archs)(archs.as_mut_ptr()) })?;
    }
    Ok(archs.into_iter().map(c_int::unsigned_abs).collect())
}

/// Loads the library that NVRTC asks for by its bare name when it compiles. Without it every compilation fails.
fn load_builtins(nvrtc: &Path, version: Version) -> Result<(), String> {
    let name = format!("libnvrtc-builtins.so.{}.{}", version.major, version.minor);
    let real = nvrtc.canonicalize();
    let beside = [Some(nvrtc), real.as_deref().ok()].into_iter().flatten().filter_map(Path::parent);
    let mut paths: Vec<PathBuf> = beside.map(|dir| dir.join(&name)).collect();
    for entry in places::given_entries() {
        paths.push(entry.join(&name));
        if entry.file_name() == Some(OsStr::new(&name)) {
            paths.push(entry);
        }
    }
    let mut broken = None;
    for path in paths.into_iter().filter(|path| path.is_file()) {
        match open(path.as_os_str()) {
            Ok(library) => {
                std::mem::forget(library);
                return Ok(());
            }
            Err(message) => broken = Some(message),
        }
    }
    match open(OsStr::new(&name)) {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(_) => Err(broken.unwrap_or_else(|| format!("it needs {name}, which is not beside it"))),
    }
}
