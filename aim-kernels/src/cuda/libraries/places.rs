//! Where libraries of CUDA are kept.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Folders of Python's packages that a message names.
const MOST_SHOWN: usize = 3;

/// One place to look in.
pub(super) enum Place {
    /// What the user pointed at.
    Given { label: String, entries: Vec<PathBuf> },
    /// Wherever the system's loader looks.
    Loader,
    /// Folders, in order.
    Folders { label: String, folders: Vec<PathBuf> },
}

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// All places, in order; those of Python's packages last, if at all.
pub(super) fn all(python: bool) -> Vec<Place> {
    let mut places = vec![given(), Place::Loader];
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(root) = variable(name) {
            let label = format!("${name} ({})", root.display());
            places.push(Place::Folders { label, folders: toolkit(&root) });
        }
    }
    let toolkits = children(Path::new("/usr/local"), "cuda");
    places.push(Place::Folders {
        label: "/usr/local/cuda*".to_owned(),
        folders: toolkits.iter().flat_map(|root| toolkit(root)).collect(),
    });
    let arch = std::env::consts::ARCH;
    for folder in
        ["/usr/local/nvidia/lib64", &format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib/wsl/lib"]
    {
        places.push(Place::Folders { label: folder.to_owned(), folders: vec![folder.into()] });
    }
    if python {
        places.push(packages());
    }
    places
}

fn given() -> Place {
    let Some(value) = variable("AIM_CUDA_LIB") else {
        return Place::Given { label: "$AIM_CUDA_LIB (not set)".to_owned(), entries: Vec::new() };
    };
    let label = format!("$AIM_CUDA_LIB ({})", value.display());
    Place::Given { label, entries: std::env::split_paths(&value).collect() }
}

/// The entries of `$AIM_CUDA_LIB`.
pub(super) fn given_entries() -> Vec<PathBuf> {
    match given() {
        Place::Given { entries, .. } => entries,
        _ => Vec::new(),
    }
}

/// Folders with libraries in a toolkit.
fn toolkit(root: &Path) -> Vec<PathBuf> {
    let targets = children(&root.join("targets"), "");
    let mut folders = vec![root.join("lib64")];
    folders.extend(targets.into_iter().map(|target| target.join("lib")));
    folders
}

/// `site-packages/nvidia` of the Python environments that are active.
fn packages() -> Place {
    let mut prefixes = Vec::new();
    let mut direct = Vec::new();
    prefixes.extend(variable("VIRTUAL_ENV"));
    if let Some(conda) = variable("CONDA_PREFIX") {
        // conda's own packages are no wheels: their libraries are in the environment's folder itself.
        direct.extend([conda.join("lib"), conda.join("targets/x86_64-linux/lib")]);
        prefixes.push(conda);
    }
    prefixes.extend(python_prefixes());
    if let Some(home) = variable("HOME") {
        prefixes.push(home.join(".local"));
    }
    let mut sites = Vec::new();
    for prefix in prefixes {
        for site in site_packages(&prefix) {
            if !sites.contains(&site) {
                sites.push(site);
            }
        }
    }
    let shown: Vec<_> =
        sites.iter().take(MOST_SHOWN).map(|site| site.display().to_string()).collect();
    let label = match sites.len().saturating_sub(MOST_SHOWN) {
        0 if sites.is_empty() => "Python's site-packages (none found)".to_owned(),
        0 => format!("nvidia/*/lib in {}", shown.join(", ")),
        more => format!("nvidia/*/lib in {} and {more} more folders", shown.join(", ")),
    };
    direct.extend(sites.iter().flat_map(|site| wheels(site)));
    Place::Folders { label, folders: direct }
}

/// Where the `python3` on the path is installed: an environment's folder, and that of the interpreter behind it.
fn python_prefixes() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(python) =
        std::env::split_paths(&path).map(|dir| dir.join("python3")).find(|file| file.is_file())
    else {
        return Vec::new();
    };
    let prefix = |file: &Path| file.parent().and_then(Path::parent).map(Path::to_owned);
    let mut prefixes = Vec::new();
    // pyenv's is a script that chooses among installations: all of them are looked at.
    if python.parent().and_then(Path::file_name) == Some(OsStr::new("shims")) {
        let versions = prefix(&python).map(|root| children(&root.join("versions"), ""));
        prefixes.extend(versions.unwrap_or_default());
    }
    prefixes.extend(prefix(&python));
    prefixes.extend(python.canonicalize().ok().as_deref().and_then(prefix));
    prefixes
}

/// Folders of packages of an installation of Python that are there, newest Python first.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let lib = prefix.join("lib");
    // `python3/dist-packages` and `local` are Debian's.
    let mut roots = children(&lib, "python3");
    roots.extend(children(&prefix.join("local/lib"), "python3"));
    let all =
        roots.iter().flat_map(|root| [root.join("site-packages"), root.join("dist-packages")]);
    all.filter(|site| site.is_dir()).collect()
}

/// Folders with libraries of the NVIDIA wheels in a folder of packages. `nvidia/cu13/lib` holds those of CUDA 13;
/// before, each library had a folder of its own.
pub(super) fn wheels(site: &Path) -> Vec<PathBuf> {
    let packages = children(&site.join("nvidia"), "");
    packages.into_iter().map(|package| package.join("lib")).filter(|lib| lib.is_dir()).collect()
}

/// Entries of a folder whose names start so: the bare name first, then from high to low, by numbers where they are.
fn children(folder: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(start))
        .collect();
    names
        .sort_by_cached_key(|name| (name != start, std::cmp::Reverse(numbers(name)), name.clone()));
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// The numbers in a name: `cuda-12.9` has 12 and 9.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_first() {
        let dir = std::env::temp_dir().join(format!("aim-places-{}", std::process::id()));
        for name in ["cuda-12.9", "cuda", "cuda-13.0", "cuda-12.10", "other"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let found = children(&dir, "cuda");
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["cuda", "cuda-13.0", "cuda-12.10", "cuda-12.9"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn wheels_of_a_virtual_environment() {
        let dir = std::env::temp_dir().join(format!("aim-wheels-{}", std::process::id()));
        for name in ["lib/python3.9/site-packages", "lib/python3.12/site-packages/nvidia/cu13/lib"]
        {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let sites = site_packages(&dir);
        assert_eq!(sites[0], dir.join("lib/python3.12/site-packages"));
        assert_eq!(sites.len(), 2);
        assert_eq!(wheels(&sites[0]), [sites[0].join("nvidia/cu13/lib")]);
        assert!(wheels(&sites[1]).is_empty());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
