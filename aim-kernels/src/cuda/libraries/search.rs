//! One library looked for in all places.

use std::ffi::{CStr, OsStr, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::places::{self, Place};
use super::{Found, names};
use crate::cuda::CudaError;

/// A library to look for.
pub(super) struct Wanted {
    /// File name for messages.
    pub(super) name: &'static str,
    /// Name by which cudarc knows it, if it is called through cudarc.
    pub(super) cudarc: Option<&'static str>,
    /// File names, the best first.
    pub(super) files: &'static [&'static str],
    /// Whether Python's wheels have it.
    pub(super) python: bool,
    /// Functions that must be there.
    pub(super) symbols: &'static [&'static CStr],
    /// What to do when it is missing.
    pub(super) advice: &'static str,
}

impl Wanted {
    /// Names for the system's loader, in the order in which they are tried: cudarc's where it will ask again.
    fn bare(&self) -> Vec<String> {
        match self.cudarc {
            Some(name) => cudarc::get_lib_name_candidates(name),
            None => self.files.iter().map(|&file| file.to_owned()).collect(),
        }
    }

    /// Whether a file called so is this library: `libcuda.so.580.95` is `libcuda.so.1`.
    fn is_called(&self, file: &Path) -> bool {
        let stem = self.name.split_inclusive(".so").next().unwrap_or(self.name);
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.strip_prefix(stem).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    pub(super) fn unusable(&self, path: &Path, reason: String) -> CudaError {
        CudaError::UnusableLibrary { library: self.name, path: path.to_owned(), reason }
    }
}

/// Loads a library by path or by name.
pub(super) fn open(name: &OsStr) -> Result<Library, String> {
    // SAFETY: loading runs the library's own initialisers. The name is that of a library of CUDA, in a place where the
    // user or the system put it: it is trusted as much as one that the program would have been linked with.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| match error {
        libloading::Error::DlOpen { source } => source.to_string(),
        other => other.to_string(),
    })
}

/// Why a library that is there did not load; None if it is only not there.
fn defect(message: &str, name: &str) -> Option<String> {
    let gone = message.ends_with("No such file or directory") && message.starts_with(name);
    (!gone).then(|| message.to_owned())
}

/// The wanted library in the first place where `accept` takes it. It stays loaded for good: unloading CUDA's libraries
/// is not safe. A file that `accept` or the loader refuse is passed over, unless the user pointed at it.
pub(super) fn search<T>(
    wanted: &Wanted,
    mut accept: impl FnMut(&Library, &Path) -> Result<T, String>,
) -> Result<(PathBuf, T), CudaError> {
    let mut attempt = |path: &Path| {
        let library = open(path.as_os_str())?;
        // As the loader's own messages begin.
        let accepted =
            accept(&library, path).map_err(|reason| format!("{}: {reason}", path.display()))?;
        std::mem::forget(library);
        Ok::<_, String>((path.to_owned(), accepted))
    };
    let mut looked_in = Vec::new();
    for place in places::all(wanted.python) {
        let (label, paths) = match place {
            Place::Given { label, entries } => {
                if let Some(path) = given(wanted, &entries).first() {
                    return attempt(path).map_err(|message| {
                        let start = format!("{}: ", path.display());
                        let reason = message.strip_prefix(&start).unwrap_or(&message);
                        wanted.unusable(path, format!("{reason} ($AIM_CUDA_LIB)"))
                    });
                }
                (label, Vec::new())
            }
            Place::Loader => {
                let names = wanted.bare().into_iter().map(PathBuf::from);
                ("the system's loader".to_owned(), names.collect())
            }
            Place::Folders { label, folders } => (label, inside(wanted, &folders)),
        };
        let mut defects = Vec::new();
        for path in paths {
            match attempt(&path) {
                Ok(found) => return Ok(found),
                Err(message) => defects.extend(defect(&message, &path.to_string_lossy())),
            }
        }
        defects.dedup();
        looked_in.push(if defects.is_empty() {
            label
        } else {
            format!("{label} ({})", defects.join("; "))
        });
    }
    Err(CudaError::MissingLibrary { library: wanted.name, looked_in, advice: wanted.advice })
}

/// Files of the right name in folders, the best name first.
fn inside(wanted: &Wanted, folders: &[PathBuf]) -> Vec<PathBuf> {
    let all = wanted.files.iter().flat_map(|file| folders.iter().map(move |dir| dir.join(file)));
    all.filter(|path| path.exists()).collect()
}

/// What the entries of `$AIM_CUDA_LIB` have of this library: themselves, or what is in or under them.
fn given(wanted: &Wanted, entries: &[PathBuf]) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in entries {
        if entry.is_dir() {
            folders.push(entry.clone());
            // As pip lays them out: the folder that `pip install --target` was given will do.
            folders.extend(places::wheels(entry));
        } else if wanted.is_called(entry) {
            files.push(entry.clone());
        }
    }
    files.extend(inside(wanted, &folders));
    files
}

/// The function `name` of a library.
///
/// # Safety
/// `F` is the function's pointer type.
pub(super) unsafe fn function<F: Copy>(library: &libloading::Library, name: &CStr) -> Option<F> {
    // SAFETY: the caller vouches for the type.
    unsafe { library.get::<F>(name) }.ok().map(|symbol| *symbol)
}

/// The file that an address is in, as the loader knows it.
pub(super) fn file_of(address: *const c_void) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; the structure is large enough and is read only after success.
    let info = unsafe {
        if libc::dladdr(address, info.as_mut_ptr()) == 0 {
            return None;
        }
        info.assume_init()
    };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's own text, which lives as long as the library: for good.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// Loads a library so that cudarc finds it too, and looks up the functions that will be called through cudarc.
pub(super) fn load_for_cudarc(
    wanted: &Wanted,
    culib: impl FnOnce() -> &'static libloading::Library,
) -> Result<Found, CudaError> {
    let (opened, ()) = search(wanted, |_, _| Ok(()))?;
    // cudarc panics when none of its names opens.
    let Some(again) = wanted.bare().iter().find_map(|name| open(OsStr::new(name)).ok()) else {
        let reason = format!("its SONAME is not {}, by which it is asked for", wanted.files[0]);
        return Err(wanted.unusable(&opened, reason));
    };
    std::mem::forget(again);
    let library = culib();
    // SAFETY: only addresses are compared with null and named, nothing is called.
    let address = |name: &&CStr| unsafe { function::<*const c_void>(library, name) };
    let path = wanted.symbols.iter().find_map(address).and_then(file_of);
    let path = path.unwrap_or_else(|| opened.clone());
    let missing: Vec<_> =
        wanted.symbols.iter().filter(|name| address(name).is_none()).copied().collect();
    if !missing.is_empty() {
        let reason = format!("it lacks {}; is it a stub, or too old?", names(missing));
        return Err(wanted.unusable(&path, reason));
    }
    let note = hidden(&opened, &path).then(|| {
        format!("{} was asked for, but the system's loader prefers this one", opened.display())
    });
    Ok(Found { name: wanted.name, path, version: None, note })
}

/// Whether a file that was opened by its path is not the one that is used.
fn hidden(opened: &Path, used: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    opened.is_absolute() && real(opened) != real(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognised_by_name() {
        let wanted = super::super::NVRTC;
        let called = |name: &str| wanted.is_called(Path::new(name));
        assert!(
            called("/x/libnvrtc.so.13") && called("libnvrtc.so") && called("libnvrtc.so.12.9.86")
        );
        assert!(
            !called("/x/libnvrtc-builtins.so.13.0") && !called("libnvrtc.sox") && !called("/x/")
        );
    }

    #[test]
    fn what_is_only_not_there_is_no_defect() {
        let gone = "libcuda.so.1: cannot open shared object file: No such file or directory";
        assert_eq!(defect(gone, "libcuda.so.1"), None);
        let needs = "libcudart.so.13: cannot open shared object file: No such file or directory";
        assert_eq!(defect(needs, "/x/libcublasLt.so.13"), Some(needs.to_owned()));
    }
}
