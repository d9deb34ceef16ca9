//! DomainNet: `DOMAIN_train.txt`, `DOMAIN_test.txt` and `DOMAIN/CLASS/`; the benchmark's Infograph is one
//! of its six domains.
//!
//! A line is `DOMAIN/CLASS/FILE LABEL`. <https://ai.bu.edu/M3SDA/>.

use std::collections::BTreeMap;
use std::path::Path;

use super::listed::Listing;
use super::lists::{at_line, bad, class, file, lines, named, root, text};
use crate::error::Result;

/// Lists splits of a domain.
pub(super) fn open(path: &Path, splits: &[&str], domain: &str) -> Result<Listing> {
    let list = |split: &str| format!("{domain}_{split}.txt");
    let root = root(path, &["domainnet", "DomainNet"], &[&list(splits[0])])?;
    let (mut names, mut images) = (BTreeMap::new(), Vec::new());
    for split in ["train", "test"] {
        if splits.contains(&split) || root.join(list(split)).is_file() {
            let path = file(&root, &[&list(split)])?;
            images.push((
                split,
                path.clone(),
                parse(&text(&path)?, &mut names).map_err(bad(&path))?,
            ));
        }
    }
    let count = names.keys().next_back().map_or(0, |last| *last as usize + 1);
    let mut listing = Listing::new(&root, named(count, names));
    for wanted in splits {
        for (_, list, images) in images.iter().filter(|(split, ..)| split == wanted) {
            listing.extend(list, images.iter().cloned())?;
        }
    }
    Ok(listing)
}

/// Paths and labels of a list; the classes' names go to `names`.
pub(crate) fn parse(
    text: &str,
    names: &mut BTreeMap<u32, String>,
) -> Result<Vec<(String, u32)>, String> {
    let mut images = Vec::new();
    for (number, line) in lines(text) {
        let parts = line.rsplit_once(char::is_whitespace);
        let parts = parts.and_then(|(path, label)| Some((path.trim_end(), class(label).ok()?)));
        let Some((path, label)) = parts else {
            return Err(at_line(number, line, "PATH LABEL"));
        };
        if let Some(name) = path.rsplit('/').nth(1) {
            names.entry(label).or_insert_with(|| name.to_owned());
        }
        images.push((path.to_owned(), label));
    }
    Ok(images)
}
