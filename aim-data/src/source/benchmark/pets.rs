//! Oxford-IIIT Pets: `annotations/{trainval,test}.txt` and `images/`.
//!
//! A line is `NAME CLASS SPECIES BREED`, classes counted from 1; an image is `images/NAME.jpg`, and a
//! class is called like its images without their number. <https://www.robots.ox.ac.uk/~vgg/data/pets/>,
//! and the `README` in `annotations/`.

use std::collections::BTreeMap;
use std::path::Path;

use super::listed::Listing;
use super::lists::{at_line, bad, file, lines, named, root, text};
use crate::error::Result;

/// Most classes that a list may speak of.
const MAX_CLASS: u32 = 10_000;

/// Lists the splits: `train` is the official `trainval`.
pub(super) fn open(path: &Path, splits: &[&str]) -> Result<Listing> {
    let lists = ["annotations/trainval.txt", "annotations/test.txt"];
    let root = root(path, &["oxford-iiit-pet", "oxford_iiit_pet"], &lists)?;
    let name = |split: &str| if split == "train" { lists[0] } else { lists[1] };
    // Both lists name the classes, so that labels mean the same whichever is asked for.
    let (mut names, mut images) = (BTreeMap::new(), Vec::new());
    for list in lists {
        let wanted = splits.iter().any(|split| name(split) == list);
        if !wanted && !root.join(list).is_file() {
            continue;
        }
        let list = file(&root, &[list])?;
        images.push((list.clone(), parse(&text(&list)?, &mut names).map_err(bad(&list))?));
    }
    let count = names.keys().next_back().map_or(0, |last| *last as usize + 1);
    let mut listing = Listing::new(&root, named(count, names));
    for split in splits {
        for (list, images) in images.iter().filter(|(list, _)| list.ends_with(name(split))) {
            let images = images.iter().map(|(name, label)| (format!("images/{name}.jpg"), *label));
            listing.extend(list, images)?;
        }
    }
    Ok(listing)
}

/// Names and labels of the images of a list; the classes' names go to `names`.
pub(crate) fn parse(
    text: &str,
    names: &mut BTreeMap<u32, String>,
) -> Result<Vec<(String, u32)>, String> {
    let mut images = Vec::new();
    for (number, line) in lines(text).filter(|(_, line)| !line.starts_with('#')) {
        let mut parts = line.split_whitespace();
        let (name, class) = (parts.next(), parts.next().and_then(|class| class.parse().ok()));
        let class = class.filter(|class| (1..=MAX_CLASS).contains(class));
        let (Some(name), Some(class)) = (name, class) else {
            return Err(at_line(number, line, "NAME CLASS SPECIES BREED"));
        };
        let called = name.rsplit_once('_').map_or(name, |(class, _)| class);
        names.entry(class - 1).or_insert_with(|| called.to_owned());
        images.push((name.to_owned(), class - 1));
    }
    Ok(images)
}
