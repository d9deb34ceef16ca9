//! From the kernels' source to a cubin for the exact chip, kept on disk.
//!
//! All sources are one translation unit without an include, so NVRTC alone makes code for a chip that need not be
//! there. What it makes is kept in a folder: `$AIM_CACHE`, else `$XDG_CACHE_HOME/aim`, else `~/.cache/aim`. An entry is
//! named by the hash of source and options and by NVRTC's version; it carries a checksum, and one that does not verify
//! is made again. `$AIM_CUBIN` names a file to load instead.

mod cache;
mod cubin;
mod resources;

use std::ffi::CString;
use std::path::{Path, PathBuf};

pub use resources::{KernelResources, resources};

use super::libraries::{self, Nvrtc, Version};
use super::{CudaError, sources};
use cache::{Cache, Entry};

/// The architectures that the kernels are compiled for in the tests: A100; RTX 30 and A10; RTX 40 and L4; H100 and
/// H200; B200; RTX 50. `a` means features of exactly that chip.
pub const ARCHS: &[&str] = &["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"];

/// The oldest that has bf16 in its matrix units.
const OLDEST: u32 = 80;

/// Kernels compiled for an architecture.
#[derive(Clone, Debug)]
pub struct Built {
    /// ELF for the device.
    pub cubin: Vec<u8>,
    /// The compiler's words; [`resources()`] reads them.
    pub log: String,
    /// The compiler's version.
    pub nvrtc: Version,
    /// The entry in the cache that this was read from; None if it was compiled now.
    pub cached: Option<PathBuf>,
    /// What is worth telling the user, a sentence each.
    pub notes: Vec<String>,
}

/// Compiled kernels to load.
pub(crate) struct Image {
    pub(crate) cubin: Vec<u8>,
    /// Such as `sm_90a`.
    pub(crate) arch: String,
    /// Where they are from, for messages.
    pub(crate) origin: String,
    /// What made them, if known.
    pub(crate) nvrtc: Option<Version>,
    pub(crate) notes: Vec<String>,
}

/// The exact architecture of a chip, such as `sm_90a`.
fn exact(major: u32, minor: u32) -> String {
    // Chips from 9.0 on have features that only the exact architecture's code may use.
    let features = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{features}")
}

/// The best architecture that a compiler knows for a chip: its own, or else the newest before it of the same major
/// version, whose code runs there too. `known` are 10 x major + minor.
fn best(major: u32, minor: u32, known: &[u32]) -> Option<String> {
    if known.contains(&(10 * major + minor)) {
        return Some(exact(major, minor));
    }
    let older = (0..minor).rev().find(|minor| known.contains(&(10 * major + minor)))?;
    Some(format!("sm_{major}{older}"))
}

/// 10 x major + minor of an architecture's name.
fn number(arch: &str) -> Option<u32> {
    let digits = arch.strip_prefix("sm_")?.trim_end_matches(['a', 'f']);
    digits.parse().ok().filter(|number| (OLDEST..1000).contains(number))
}

/// The architecture to compile for on a chip of compute capability `major.minor`: `sm_90a` on 9.0. An NVRTC that is
/// older than the chip may know one before it whose code runs there.
///
/// # Errors
/// [`CudaError::UnknownChip`] if it does not.
pub fn arch(major: u32, minor: u32) -> Result<String, CudaError> {
    match libraries::compiler() {
        Ok(nvrtc) => {
            best(major, minor, nvrtc.archs()).ok_or_else(|| unknown(exact(major, minor), nvrtc))
        }
        // Kernels compiled before may still be there.
        Err(_) => Ok(exact(major, minor)),
    }
}

/// Compiled kernels for a chip: `$AIM_CUBIN`, or from the cache, or compiled now.
pub(crate) fn image(major: i32, minor: i32) -> Result<Image, CudaError> {
    let (major, minor) = (major.unsigned_abs(), minor.unsigned_abs());
    if let Some(path) = std::env::var_os("AIM_CUBIN").filter(|path| !path.is_empty()) {
        return given(&PathBuf::from(path), major, minor);
    }
    let arch = arch(major, minor)?;
    let Built { cubin, nvrtc, cached, mut notes, .. } = build(&arch)?;
    if arch != exact(major, minor) {
        notes.push(format!(
            "NVRTC {nvrtc} does not know this chip; kernels are compiled for {arch}, a newer one is faster"
        ));
    }
    let origin = cached.map_or_else(|| format!("NVRTC {nvrtc}"), |path| path.display().to_string());
    Ok(Image { cubin, arch, origin, nvrtc: Some(nvrtc), notes })
}

/// Kernels of the user's own choice.
fn given(path: &Path, major: u32, minor: u32) -> Result<Image, CudaError> {
    let wrong = |reason: String| CudaError::Cubin { path: path.to_owned(), reason };
    let mut cubin = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    cubin::check(&cubin, major, minor).map_err(wrong)?;
    // The driver reads text to its end.
    cubin.push(0);
    let origin = format!("{} ($AIM_CUBIN)", path.display());
    Ok(Image { cubin, arch: exact(major, minor), origin, nvrtc: None, notes: Vec::new() })
}

fn unknown(arch: String, nvrtc: &Nvrtc) -> CudaError {
    CudaError::UnknownChip { arch, nvrtc: nvrtc.version(), path: nvrtc.found().path.clone() }
}

/// Kernels for `arch`, one of [`ARCHS`] or another name that NVRTC knows, out of the cache or compiled now.
///
/// Without NVRTC what an NVRTC of any version made of the same source before is taken.
///
/// # Errors
/// [`CudaError::MissingLibrary`] without NVRTC, [`CudaError::UnknownChip`], [`CudaError::Compile`]. The cache is never a
/// reason to fail, only for a note.
pub fn build(arch: &str) -> Result<Built, CudaError> {
    let Some(number) = number(arch) else {
        return Err(CudaError::Unsupported {
            op: "kernels",
            expected: "an architecture such as sm_90a, sm_80 or newer",
            found: arch.to_owned(),
        });
    };
    let failed = |log: String| CudaError::Compile { arch: arch.to_owned(), log };
    let source = source();
    let options = options(arch);
    let (cache, mut notes) = match Cache::open() {
        Ok(cache) => (Some(cache), Vec::new()),
        Err(note) => (None, vec![note]),
    };
    let hash = cache::hash(&source, &options);
    let nvrtc = match libraries::compiler() {
        Ok(nvrtc) => nvrtc,
        Err(missing) => {
            let entry = cache.and_then(|cache| cache.newest(arch, &hash));
            return entry.map(|entry| from_cache(entry, notes)).ok_or(missing);
        }
    };
    if !nvrtc.archs().contains(&number) {
        return Err(unknown(arch.to_owned(), nvrtc));
    }
    let version = nvrtc.version();
    if let Some(cache) = &cache {
        match cache.read(arch, &hash, version) {
            Ok(Some(entry)) => return Ok(from_cache(entry, notes)),
            Ok(None) => {}
            Err(note) => notes.push(note),
        }
    }
    let (source, options) = c_strings(source, options).map_err(failed)?;
    let (cubin, log) = nvrtc.compile(&source, &options).map_err(failed)?;
    if let Some(Err(note)) = cache.map(|cache| cache.write(arch, &hash, version, &cubin, &log)) {
        notes.push(note);
    }
    Ok(Built { cubin, log, nvrtc: version, cached: None, notes })
}

fn from_cache(entry: Entry, notes: Vec<String>) -> Built {
    let Entry { path, version, cubin, log } = entry;
    Built { cubin, log, nvrtc: version, cached: Some(path), notes }
}

/// The folder in which compiled kernels are kept, if there is one.
pub fn cache_folder() -> Option<PathBuf> {
    cache::folder()
}

/// All sources as one unit; `#line` makes messages name the file.
fn source() -> String {
    let mut unit = String::new();
    for (name, text) in sources::FILES {
        unit.push_str(&format!("#line 1 \"{name}\"\n{text}\n"));
    }
    unit
}

fn options(arch: &str) -> Vec<String> {
    let architecture = format!("--gpu-architecture={arch}");
    let fixed = ["--std=c++17", "-lineinfo", "--ptxas-options=-v"];
    std::iter::once(architecture).chain(fixed.map(str::to_owned)).collect()
}

fn c_strings(source: String, options: Vec<String>) -> Result<(CString, Vec<CString>), String> {
    let options: Result<Vec<_>, _> = options.into_iter().map(CString::new).collect();
    CString::new(source)
        .and_then(|source| Ok((source, options?)))
        .map_err(|error| format!("zero byte in the source or options: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_architecture_for_a_chip() {
        let known = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];
        let best = |major, minor, known: &[u32]| best(major, minor, known).unwrap_or_default();
        for (major, minor, arch) in [(8, 0, "sm_80"), (8, 9, "sm_89"), (9, 0, "sm_90a")] {
            assert_eq!(best(major, minor, &known), arch);
        }
        for (major, minor, arch) in [(10, 0, "sm_100a"), (12, 0, "sm_120a"), (10, 3, "sm_103a")] {
            assert_eq!(best(major, minor, &known), arch);
        }
        assert_eq!(best(8, 9, &known[..3]), "sm_86", "code for 8.6 runs on 8.9");
        assert_eq!(best(12, 1, &[120]), "sm_120", "only exact code has the letter");
        assert_eq!(best(10, 0, &known[..7]), "", "nothing of another major version runs");
        assert_eq!(best(8, 0, &[75, 86]), "", "nor of a newer minor one");
    }

    #[test]
    fn numbers_of_architectures() {
        assert_eq!(ARCHS.iter().filter_map(|arch| number(arch)).count(), ARCHS.len());
        assert_eq!(number("sm_103f"), Some(103));
        for wrong in ["", "sm_", "sm_75", "90a", "compute_90", "sm_9000", "sm_90a --x"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn one_unit_that_names_its_files() {
        let unit = source();
        assert_eq!(unit.matches("#line 1 \"").count(), sources::FILES.len());
        assert!(unit.starts_with("#line 1 \"prim.cuh\"\n") && !unit.contains('\0'));
    }
}
