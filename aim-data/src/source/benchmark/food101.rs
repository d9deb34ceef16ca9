//! Food-101: `meta/{classes,train,test}.txt` and `images/CLASS/`.
//!
//! A line is `CLASS/NUMBER`, its image `images/CLASS/NUMBER.jpg`.
//! <https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/>, and the `README.txt` in the archive.

use std::path::Path;

use super::listed::Listing;
use super::lists::{at_line, bad, file, lines, root, text};
use crate::error::Result;

/// Lists the splits.
pub(super) fn open(path: &Path, splits: &[&str]) -> Result<Listing> {
    let root = root(path, &["food-101", "food101"], &["meta/classes.txt"])?;
    let classes: Vec<String> = lines(&text(&file(&root, &["meta/classes.txt"])?)?)
        .map(|(_, name)| name.to_owned())
        .collect();
    let mut listing = Listing::new(&root, classes.clone());
    for split in splits {
        let list = file(&root, &[&format!("meta/{split}.txt")])?;
        let images = parse(&text(&list)?, &classes).map_err(bad(&list))?;
        listing.extend(&list, images)?;
    }
    Ok(listing)
}

/// Paths and labels of a list.
pub(crate) fn parse(text: &str, classes: &[String]) -> Result<Vec<(String, u32)>, String> {
    let numbers: std::collections::HashMap<&str, u32> =
        (0..).zip(classes).map(|(number, name)| (name.as_str(), number)).collect();
    lines(text)
        .map(|(number, line)| {
            let class = line.split_once('/').and_then(|(class, _)| numbers.get(class));
            let class = class.ok_or_else(|| {
                at_line(number, line, "CLASS/NUMBER of a class in meta/classes.txt")
            });
            Ok((format!("images/{line}.jpg"), *class?))
        })
        .collect()
}
