//! Stanford Cars: annotations in MAT files.
//!
//! The devkit's layout, as torchvision's `StanfordCars` expects it: `cars_train/`, `cars_test/`,
//! `devkit/cars_train_annos.mat`, `devkit/cars_meta.mat`, and `cars_test_annos_withlabels.mat` beside
//! them or in `devkit/`. Also the older one, `car_ims/` with one `cars_annos.mat`, whose 16,185 images
//! carry the split in a field `test`. <https://ai.stanford.edu/~jkrause/cars/car_dataset.html>
//! (archived), <https://pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html>.

use std::path::Path;

use super::listed::Listing;
use super::lists::{bad, bytes, file, root};
use crate::error::Result;
use crate::source::mat::{Value, read_structs, read_texts};

const OLD: &str = "cars_annos.mat";

/// One image of an annotation file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Annotation {
    path: String,
    label: u32,
    /// What the older file says.
    test: Option<bool>,
}

/// Lists the splits.
pub(super) fn open(path: &Path, splits: &[&str]) -> Result<Listing> {
    let markers = ["devkit/cars_meta.mat", "cars_meta.mat", OLD];
    let root = root(path, &["stanford_cars", "stanford-cars"], &markers)?;
    let meta = file(&root, &markers)?;
    let names = class_names(&bytes(&meta)?).map_err(bad(&meta))?;
    let mut listing = Listing::new(&root, names);
    for &split in splits {
        if meta.ends_with(OLD) {
            let all = annotations(&bytes(&meta)?).map_err(bad(&meta))?;
            let kept = all.into_iter().filter(|image| image.test == Some(split == "test"));
            listing.extend(&meta, kept.map(|image| (image.path, image.label)))?;
            continue;
        }
        let list = match split {
            "test" => ["cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"],
            _ => ["devkit/cars_train_annos.mat", "cars_train_annos.mat"],
        };
        let list = file(&root, &list)?;
        let all = annotations(&bytes(&list)?).map_err(bad(&list))?;
        // Kaggle's copy has the folder twice.
        let folder = [format!("cars_{split}/cars_{split}"), format!("cars_{split}")];
        let folder = folder.iter().find(|folder| root.join(folder).is_dir()).unwrap_or(&folder[1]);
        let images = all.into_iter().map(|image| (format!("{folder}/{}", image.path), image.label));
        listing.extend(&list, images)?;
    }
    Ok(listing)
}

/// The names of the classes, in the order of their numbers.
pub(crate) fn class_names(mat: &[u8]) -> Result<Vec<String>, String> {
    let names = read_texts(mat, "class_names")?;
    if names.is_empty() { Err("there are no class names".into()) } else { Ok(names) }
}

/// The images of an annotation file.
pub(crate) fn annotations(mat: &[u8]) -> Result<Vec<Annotation>, String> {
    let structs = read_structs(mat, "annotations")?;
    let mut images = Vec::new();
    for row in 0..structs.rows.len() {
        let path = ["fname", "relative_im_path"].iter().find_map(|name| structs.get(row, name));
        let (Some(Value::Text(path)), Some(Value::Number(class))) =
            (path, structs.get(row, "class"))
        else {
            return Err(format!(
                "annotation {row}: expected a text `fname` or `relative_im_path` and a number \
                 `class`, among the fields {:?}. The list without labels is of no use here",
                structs.fields
            ));
        };
        let class = Some(*class).filter(|class| (1.0..1e6).contains(class));
        // Classes are counted from 1.
        let label = class.ok_or_else(|| format!("annotation {row}: class {class:?}"))? as u32 - 1;
        let test = match structs.get(row, "test") {
            Some(Value::Number(test)) => Some(*test != 0.0),
            _ => None,
        };
        images.push(Annotation { path: path.clone(), label, test });
    }
    Ok(images)
}
