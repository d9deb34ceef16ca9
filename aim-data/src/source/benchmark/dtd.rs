//! Describable Textures: `labels/{train,val,test}{1..10}.txt` and `images/CLASS/`.
//!
//! A line is `CLASS/FILE`. There are ten partitions, of which the benchmarks take the first;
//! `train+val` and `test` of one have 3,760 and 1,880 images.
//! <https://www.robots.ox.ac.uk/~vgg/data/dtd/>.

use std::collections::BTreeSet;
use std::path::Path;

use super::listed::Listing;
use super::lists::{at_line, bad, file, lines, root, text};
use crate::error::Result;

/// Lists splits of partition `number`.
pub(super) fn open(path: &Path, splits: &[&str], number: &str) -> Result<Listing> {
    let list = |split: &str| format!("labels/{split}{number}.txt");
    let root = root(path, &["dtd", "dtd/dtd"], &[&list(splits[0])])?;
    // Any list of the partition may name a class.
    let (mut classes, mut images) = (BTreeSet::new(), Vec::new());
    for split in ["train", "val", "test"] {
        if !splits.contains(&split) && !root.join(list(split)).is_file() {
            continue;
        }
        let path = file(&root, &[&list(split)])?;
        let names = parse(&text(&path)?).map_err(bad(&path))?;
        classes.extend(names.iter().map(|(class, _)| class.clone()));
        images.push((split, path, names));
    }
    let classes: Vec<String> = classes.into_iter().collect();
    let label = |class: &String| classes.binary_search(class).map_or(u32::MAX, |at| at as u32);
    let mut listing = Listing::new(&root, classes.clone());
    for wanted in splits {
        for (_, list, names) in images.iter().filter(|(split, ..)| split == wanted) {
            let images =
                names.iter().map(|(class, file)| (format!("images/{class}/{file}"), label(class)));
            listing.extend(list, images)?;
        }
    }
    Ok(listing)
}

/// Class and file of each line.
pub(crate) fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    lines(text)
        .map(|(number, line)| match line.split_once('/') {
            Some((class, file)) if !class.is_empty() => Ok((class.to_owned(), file.to_owned())),
            _ => Err(at_line(number, line, "CLASS/FILE")),
        })
        .collect()
}
