//! Functional Map of the World: `rgb_metadata.csv` and `images/rgb_img_ROW.png` as in WILDS, or
//! `train/CLASS/**/*_rgb.jpg` as in the original's RGB download.
//!
//! WILDS' official splits are by time: `val` is from 2013 to 2015, `test` from 2016 on, `train`, `id_val`
//! and `id_test` from before. The paper's test set of 19,915 images is `val`.
//! <https://wilds.stanford.edu/datasets/#fmow>, `wilds/datasets/fmow_dataset.py` of
//! <https://github.com/p-lambda/wilds>, <https://github.com/fMoW/dataset>.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use super::listed::Listing;
use super::lists::{MAX_CLASSES, bad, file, root, stream, table};
use crate::decode::DecodeLimits;
use crate::error::Result;
use crate::source::{ImageFolder, Source};

const METADATA: &str = "rgb_metadata.csv";

/// One usable row of the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Counts all rows: it is in the image's name.
    number: u64,
    category: String,
    split: &'static str,
}

/// Lists splits.
pub(super) fn open(path: &Path, splits: &[&str], limits: DecodeLimits) -> Result<Listing> {
    let folders = [METADATA, "train", "val"];
    let root = root(path, &["fmow_v1.1", "fmow-rgb", "fMoW-rgb"], &folders)?;
    if !root.join(METADATA).is_file() {
        return class_folders(&root, splits, limits);
    }
    let list = file(&root, &[METADATA])?;
    let rows = parse(stream(&list)?).map_err(bad(&list))?;
    let names: BTreeSet<&str> = rows.iter().map(|row| row.category.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let mut listing = Listing::new(&root, names.iter().map(|name| (*name).to_owned()).collect());
    for split in splits {
        let images = rows.iter().filter(|row| row.split == *split).map(|row| {
            let label =
                names.binary_search(&row.category.as_str()).map_or(u32::MAX, |at| at as u32);
            (format!("images/rgb_img_{}.png", row.number), label)
        });
        listing.extend(&list, images)?;
    }
    Ok(listing)
}

/// The rows that belong to a split, of all classes.
pub(crate) fn parse(reader: impl Read) -> Result<Vec<Row>, String> {
    let (mut rows, mut known) = (Vec::new(), BTreeSet::new());
    table(reader, ["split", "category", "timestamp"], |number, [split, category, timestamp]| {
        let year = timestamp.get(..4).and_then(|year| year.parse::<u32>().ok());
        let year = year
            .ok_or_else(|| format!("expected a timestamp, found `{}`", timestamp.escape_debug()))?;
        if known.insert(category.to_owned()) && known.len() > MAX_CLASSES {
            return Err(format!("more than {MAX_CLASSES} categories"));
        }
        let split = match (split, year) {
            ("train", ..2013) => "train",
            ("val", ..2013) => "id_val",
            ("test", ..2013) => "id_test",
            ("val", 2013..2016) => "val",
            ("test", 2016..) => "test",
            // Left out by the official scheme, and the sequestered images.
            ("train" | "val" | "test" | "seq", _) => "",
            _ => return Err(format!("unknown split `{}`", split.escape_debug())),
        };
        rows.push(Row { number, category: category.to_owned(), split });
        Ok(())
    })?;
    Ok(rows)
}

/// The original's folders, one for each split with one for each class in it.
fn class_folders(root: &Path, splits: &[&str], limits: DecodeLimits) -> Result<Listing> {
    let mut listing: Option<Listing> = None;
    let mut classes = Vec::new();
    for split in splits {
        let folder = ImageFolder::open(root.join(split), limits)?;
        let names = folder.class_names().unwrap_or_default().to_vec();
        let listing = listing.get_or_insert_with(|| Listing::new(root, names.clone()));
        if !classes.is_empty() && classes != names {
            let reason = format!("{split}/ has other class folders than the split before it");
            return Err(bad(root)(reason));
        }
        classes = names;
        // Each scene is there twice, as a sharpened and as a multi-spectral picture.
        let all: Vec<String> = (0..folder.len()).map(|index| folder.location(index)).collect();
        let sharpened = all.iter().any(|path| path.ends_with("_rgb.jpg"));
        let kept = (0..).zip(&all).filter(|(_, path)| !sharpened || path.ends_with("_rgb.jpg"));
        let images = kept.filter_map(|(index, path)| {
            let relative = Path::new(path).strip_prefix(root).ok()?.to_str()?.replace('\\', "/");
            Some((relative, folder.label(index)?))
        });
        listing.extend(root, images.collect::<Vec<_>>())?;
    }
    listing.ok_or_else(|| bad(root)("no split".into()))
}
