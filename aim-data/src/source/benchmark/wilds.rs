//! WILDS: `metadata.csv` beside the images, for iWildCam, Camelyon17 and RxRx1.
//!
//! Splits are those of the package's official scheme: `val` and `test` come from other places (camera
//! traps, hospitals, experiments) than `train`, `id_val` and `id_test` from the same. The paper's test
//! sets are the `val` of each. <https://wilds.stanford.edu/datasets/>, and `wilds/datasets/*.py` of
//! <https://github.com/p-lambda/wilds>.

use std::io::{BufRead, Read};
use std::path::Path;

use super::Benchmark;
use super::listed::Listing;
use super::lists::{bad, class, file, named, root, stream, table};
use crate::error::Result;

const METADATA: &str = "metadata.csv";

/// One row of the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) path: String,
    pub(crate) label: u32,
    pub(crate) split: &'static str,
    /// The class's name, where the row says it.
    name: Option<String>,
}

/// Lists splits.
pub(super) fn open(which: Benchmark, path: &Path, splits: &[&str]) -> Result<Listing> {
    let inner = match which {
        Benchmark::IWildCam => "iwildcam_v2.0",
        Benchmark::Camelyon17 => "camelyon17_v1.0",
        _ => "rxrx1_v1.0",
    };
    let root = root(path, &[inner], &[METADATA])?;
    let list = file(&root, &[METADATA])?;
    let rows = parse(which, stream(&list)?).map_err(bad(&list))?;
    let count = rows.iter().map(|row| row.label as usize + 1).max().unwrap_or(0);
    let mut names: Vec<(u32, String)> =
        rows.iter().filter_map(|row| Some((row.label, row.name.clone()?))).collect();
    let categories = root.join("categories.csv");
    match which {
        Benchmark::Camelyon17 => names.extend([(0, "normal".into()), (1, "tumor".into())]),
        Benchmark::IWildCam if categories.is_file() => {
            table(stream(&categories)?, ["y", "name"], |_, [y, name]| {
                // Some species of the whole data set are not in this one and have a y of their own.
                names.extend(class(y).ok().map(|y| (y, name.to_owned())));
                Ok(())
            })
            .map_err(bad(&categories))?;
        }
        _ => {}
    }
    let mut listing = Listing::new(&root, named(count, names));
    for split in splits {
        let chosen = rows.iter().filter(|row| row.split == *split);
        listing.extend(&list, chosen.map(|row| (row.path.clone(), row.label)))?;
    }
    Ok(listing)
}

/// All rows of a data set's metadata that belong to a split.
pub(crate) fn parse(which: Benchmark, reader: impl Read) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let mut add = |path, label, split, name| rows.push(Row { path, label, split, name });
    match which {
        Benchmark::IWildCam => {
            table(reader, ["split", "y", "filename"], |_, [split, y, name]| {
                let splits = ["train", "val", "test", "id_val", "id_test"];
                let known = splits.iter().find(|known| **known == split);
                let known = known.ok_or_else(|| odd("split", split))?;
                add(format!("train/{name}"), class(y)?, known, None);
                Ok(())
            })?;
        }
        Benchmark::Camelyon17 => {
            let columns = ["patient", "node", "x_coord", "y_coord", "tumor", "center", "split"];
            table(reader, columns, |_, [patient, node, x, y, tumor, center, split]| {
                let split = match (center, split) {
                    ("1", _) => "val",
                    ("2", _) => "test",
                    (_, "0") => "train",
                    (_, "1") => "id_val",
                    _ => return Err(odd("split", split)),
                };
                let folder = format!("patient_{patient}_node_{node}");
                let path = format!("patches/{folder}/patch_{folder}_x_{x}_y_{y}.png");
                add(path, class(tumor)?, split, None);
                Ok(())
            })?;
        }
        _ => {
            let columns = ["dataset", "experiment", "plate", "well", "site", "sirna_id", "sirna"];
            table(reader, columns, |_, [set, experiment, plate, well, site, id, sirna]| {
                let split = match (set, site) {
                    // Training and its own test share experiments; each well was imaged twice.
                    ("train", "2") => "id_test",
                    ("train", _) => "train",
                    ("val", _) => "val",
                    ("test", _) => "test",
                    _ => return Err(odd("dataset", set)),
                };
                let path = format!("images/{experiment}/Plate{plate}/{well}_s{site}.png");
                add(path, class(id)?, split, Some(sirna.to_owned()));
                Ok(())
            })?;
        }
    }
    Ok(rows)
}

fn odd(column: &str, value: &str) -> String {
    let shown: String = value.chars().take(40).collect();
    format!("unknown {column} `{}`", shown.escape_debug())
}

/// Which of the three a folder's `metadata.csv` belongs to.
pub(super) fn recognise(folder: &Path) -> Option<Benchmark> {
    let path = folder.join(METADATA);
    let mut header = Vec::new();
    let first = stream(&path).ok()?;
    first.take(4096).read_until(b'\n', &mut header).ok()?;
    let header = String::from_utf8_lossy(&header).into_owned();
    let has = |name: &str| header.trim().split(',').any(|column| column == name);
    [
        (Benchmark::IWildCam, has("filename") && has("location_remapped")),
        (Benchmark::Camelyon17, has("tumor") && has("center")),
        (Benchmark::RxRx1, has("sirna_id") && has("experiment")),
    ]
    .into_iter()
    .find_map(|(which, found)| found.then_some(which))
}
