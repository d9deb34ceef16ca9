//! Shard patterns: `{000..123}` and `{a,b}` braces, then `*`, `?` and `[...]` in file names.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// More shards than this in one pattern is a mistake in the pattern.
const MAX_EXPANSIONS: usize = 1_000_000;

/// Expands braces as shells do: ranges of numbers (zero-padded when an end is), lists, any number
/// of groups. Text without braces comes back alone.
pub(crate) fn expand_braces(pattern: &str) -> Result<Vec<String>, String> {
    let mut done = Vec::new();
    // A stack of patterns whose braces left of the first group have been expanded.
    let mut todo = vec![pattern.to_owned()];
    while let Some(text) = todo.pop() {
        let Some(open) = text.find('{') else {
            done.push(text);
            continue;
        };
        let close = text[open..].find('}').map(|at| at + open);
        let close = close.ok_or_else(|| format!("`{{` without `}}` in `{text}`"))?;
        let (head, group, tail) = (&text[..open], &text[open + 1..close], &text[close + 1..]);
        let items = expand_group(group)?;
        if done.len() + todo.len() + items.len() > MAX_EXPANSIONS {
            return Err(format!("`{pattern}` names more than {MAX_EXPANSIONS} shards"));
        }
        // Pushed in reverse, so that the first item is expanded first and order is kept.
        todo.extend(items.iter().rev().map(|item| format!("{head}{item}{tail}")));
    }
    Ok(done)
}

fn expand_group(group: &str) -> Result<Vec<String>, String> {
    let Some((first, last)) = group.split_once("..") else {
        return Ok(group.split(',').map(str::to_owned).collect());
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (Some(start), Some(end)) = (number(first), number(last)) else {
        return Err(format!("`{{{group}}}`: expected two numbers such as {{000000..000009}}"));
    };
    if end < start || end - start >= MAX_EXPANSIONS as u64 {
        return Err(format!("`{{{group}}}`: expected a range upwards of at most {MAX_EXPANSIONS}"));
    }
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok((start..=end).map(|number| format!("{number:0width$}")).collect())
}

/// Whether a path contains characters that [`glob`] would interpret.
pub(crate) fn has_wildcard(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// All existing paths that match, sorted. Wildcards may stand in any component.
pub(crate) fn glob(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for component in Path::new(pattern).components() {
        let text = component.as_os_str().to_string_lossy();
        if !has_wildcard(&text) {
            found.iter_mut().for_each(|path| path.push(component));
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            if !folder.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
                let entry = entry.map_err(Error::io("list", folder))?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let hidden = name.starts_with('.') && !text.starts_with('.');
                if !hidden && matches(text.as_bytes(), name.as_bytes()) {
                    next.push(entry.path());
                }
            }
        }
        found = next;
    }
    found.retain(|path| path.exists());
    found.sort();
    Ok(found)
}

/// Wildcard match of a whole path in an object store: component by component, so that `*` stays
/// within one, and hidden names are passed over as on disk.
#[cfg_attr(not(feature = "object-store"), allow(dead_code))]
pub(crate) fn matches_path(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    let mut patterns = pattern.split('/');
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part))
                if matches(pattern.as_bytes(), part.as_bytes())
                    && (!part.starts_with('.') || pattern.starts_with('.')) => {}
            _ => return false,
        }
    }
}

/// Wildcard match of a whole name. Backtracks to the last `*` only, so the time is bounded by the
/// product of the two lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if let Some(length) = pattern.get(p..).and_then(|rest| match_one(rest, name[n])) {
            p += length;
            n += 1;
        } else if let Some((star_p, star_n)) = star {
            star = Some((star_p, star_n + 1));
            p = star_p + 1;
            n = star_n + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Length of the pattern element that matches one byte, or `None`.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let Some(close) = pattern.iter().skip(2).position(|&c| c == b']').map(|at| at + 2)
            else {
                return (byte == b'[').then_some(1);
            };
            let set = &pattern[1..close];
            let (negated, set) = match set.split_first() {
                Some((b'!', rest)) => (true, rest),
                _ => (false, set),
            };
            let mut inside = false;
            let mut rest = set;
            while let Some((&low, tail)) = rest.split_first() {
                if let [b'-', high, after @ ..] = tail {
                    inside |= (low..=*high).contains(&byte);
                    rest = after;
                } else {
                    inside |= low == byte;
                    rest = tail;
                }
            }
            (inside != negated).then_some(close + 1)
        }
        other => (other == byte).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_like_a_shell() {
        let expand = |pattern| expand_braces(pattern).unwrap();
        assert_eq!(expand("a.tar"), ["a.tar"]);
        assert_eq!(expand("s-{08..11}.tar"), ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]);
        assert_eq!(expand("{9..10}"), ["9", "10"]);
        assert_eq!(expand("{a,b}/{0..1}"), ["a/0", "a/1", "b/0", "b/1"]);
        for bad in ["{1..", "{a..b}", "{5..1}", "{0..99999999}", "{0..9999}{0..9999}", "{..}"] {
            assert!(expand_braces(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards_match_whole_names() {
        let yes = [("*.tar", "a.tar"), ("a*b*c", "aXbYbZc"), ("s-?[0-3x].tar", "s-92.tar")];
        let no = [("*.tar", "a.tar.gz"), ("?", ""), ("[!a]", "a"), ("a*b", "ac"), ("[", "x")];
        for (pattern, name) in yes {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in no {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        assert!(!matches("a*".repeat(50).as_bytes(), "a".repeat(49).as_bytes()));
    }

    #[test]
    fn wildcards_stay_within_a_component() {
        for path in ["a/b/c.tar", "a/x/d.tar"] {
            assert!(matches_path("a/*/?.tar", path), "{path}");
        }
        for path in
            ["a/c.tar", "a/b/x/c.tar", "a/b/cc.tar", "a/.b/c.tar", "a/b/c.tar/", "/a/b/c.tar"]
        {
            assert!(!matches_path("a/*/?.tar", path), "{path}");
        }
    }

    #[test]
    fn glob_finds_sorted_files_in_any_component() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["p2/b.tar", "p1/c.tar", "p1/a.tar", "p1/a.txt", "q/a.tar"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let pattern = format!("{}/p?/*.tar", dir.path().display());
        let found = glob(&pattern).unwrap();
        let expected = ["p1/a.tar", "p1/c.tar", "p2/b.tar"].map(|name| dir.path().join(name));
        assert_eq!(found, expected);
        assert!(glob("/no/such/folder/*.tar").unwrap().is_empty());
    }
}
