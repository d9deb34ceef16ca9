//! Files that a pattern names: comma lists, braces and wildcards, for every kind of source.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::glob;

/// The items of a comma list; commas inside braces belong to them, and a path that exists as it
/// stands is one item.
pub(crate) fn split_list(text: &str) -> Vec<&str> {
    if Path::new(text).exists() {
        return vec![text];
    }
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items
}

/// All paths that a pattern names, in the order given, wildcards sorted. A folder stands for the
/// files in it that have the extension, sorted by name.
///
/// # Errors
/// A pattern that cannot be expanded, names nothing, or names a path that is not there.
#[cfg_attr(not(feature = "parquet"), allow(dead_code))]
pub(crate) fn find_files(scheme: &str, pattern: &str, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in find_paths(scheme, pattern)? {
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let before = files.len();
        for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
            let entry = entry.map_err(Error::io("list", &path))?.path();
            let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
            if entry.extension().is_some_and(|found| found == extension)
                && !entry.file_name().is_some_and(hidden)
            {
                files.push(entry);
            }
        }
        files[before..].sort();
        if files.len() == before {
            let reason = format!("the folder holds no *.{extension} file");
            return Err(Error::Empty { location: path.display().to_string(), reason });
        }
    }
    Ok(files)
}

/// As [`find_files`], with folders left as they are.
pub(crate) fn find_paths(scheme: &str, pattern: &str) -> Result<Vec<PathBuf>> {
    let spec_error = |reason| Error::Spec { spec: format!("{scheme}:{pattern}"), reason };
    let (mut paths, mut missing) = (Vec::new(), Vec::new());
    for item in split_list(pattern) {
        if item.is_empty() {
            return Err(spec_error("an item of the list is empty".into()));
        }
        if Path::new(item).exists() {
            paths.push(PathBuf::from(item));
            continue;
        }
        for name in glob::expand_braces(item).map_err(spec_error)? {
            let before = paths.len();
            if Path::new(&name).exists() {
                paths.push(PathBuf::from(&name));
            } else if glob::has_wildcard(&name) {
                paths.extend(glob::glob(&name)?);
            }
            if paths.len() == before {
                missing.push(name);
            }
        }
    }
    if let Some(first) = missing.first() {
        let total = paths.len() + missing.len();
        let reason = format!("{} of {total} not found, the first is {first}", missing.len());
        return Err(spec_error(reason));
    }
    let mut seen = std::collections::HashSet::new();
    if let Some(twice) = paths.iter().find(|path| !seen.insert(path.as_path())) {
        return Err(spec_error(format!("{} is named twice", twice.display())));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_split_at_commas_outside_braces() {
        assert_eq!(split_list("a,b"), ["a", "b"]);
        assert_eq!(split_list("s-{a,b}.tar,{0..3}"), ["s-{a,b}.tar", "{0..3}"]);
        assert_eq!(split_list("a"), ["a"]);
        assert_eq!(split_list("a}b,c"), ["a}b", "c"]);
    }

    #[test]
    fn patterns_name_files_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.x", "b.x", "c.y", "sub/d.x", "with,comma.x"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let root = dir.path().display();
        let names = |pattern: String| -> Vec<String> {
            let files = find_files("x", &pattern, "x").unwrap();
            files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(format!("{root}")), ["a.x", "b.x", "with,comma.x"]);
        assert_eq!(names(format!("{root}/c.y,{root}/{{b,a}}.x")), ["c.y", "b.x", "a.x"]);
        assert_eq!(names(format!("{root}/sub,{root}/?.x")), ["d.x", "a.x", "b.x"]);
        assert_eq!(names(format!("{root}/with,comma.x")), ["with,comma.x"]);
        for bad in ["a.x,", "a.x,a.x", "q.x", "*.z", "{a,q}.x"] {
            let items: Vec<_> = bad
                .split(',')
                .map(|i| if i.is_empty() { String::new() } else { format!("{root}/{i}") })
                .collect();
            let pattern = if bad.contains('{') { format!("{root}/{bad}") } else { items.join(",") };
            assert!(find_files("x", &pattern, "x").is_err(), "{pattern}");
        }
        assert!(find_files("x", &format!("{root}/sub"), "y").is_err());
    }
}
