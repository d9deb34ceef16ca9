//! iNaturalist 2018: `train2018.json`, `val2018.json` and the images they name.
//!
//! COCO's layout: `images` (id, file_name), `annotations` (image_id, category_id) and `categories` (id,
//! name). The competition's files number the species without naming them; `categories.json`, published
//! afterwards, has the names. <https://github.com/visipedia/inat_comp/tree/master/2018>.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::listed::Listing;
use super::lists::{MAX_CLASSES, bad, file, root, stream};
use crate::error::Result;

#[derive(Debug, Deserialize)]
struct File {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    #[serde(default)]
    categories: Vec<Category>,
}

#[derive(Debug, Deserialize)]
struct Image {
    id: i64,
    file_name: String,
}

#[derive(Debug, Deserialize)]
struct Annotation {
    image_id: i64,
    category_id: i64,
}

#[derive(Debug, Deserialize)]
struct Category {
    id: i64,
    #[serde(default)]
    name: serde_json::Value,
}

/// The images of a file, and its categories' ids and names, sorted.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    pub(crate) images: Vec<(String, u32)>,
    pub(crate) categories: Vec<(i64, String)>,
}

/// Lists the splits.
pub(super) fn open(path: &Path, splits: &[&str]) -> Result<Listing> {
    let list = |split: &str| format!("{split}2018.json");
    let root = root(path, &["inat2018", "inat_2018"], &[&list(splits[0])])?;
    let mut names = HashMap::new();
    let extra = root.join("categories.json");
    if extra.is_file() {
        let read: Result<Vec<Category>, _> = serde_json::from_reader(stream(&extra)?);
        let read = read.map_err(|error| bad(&extra)(error.to_string()))?;
        names.extend(read.into_iter().map(|category| (category.id, called(category.name))));
    }
    let mut listing: Option<(Listing, Vec<i64>)> = None;
    for split in splits {
        let list = file(&root, &[&list(split)])?;
        let parsed = parse(stream(&list)?).map_err(bad(&list))?;
        let ids: Vec<i64> = parsed.categories.iter().map(|(id, _)| *id).collect();
        let (listing, known) = listing.get_or_insert_with(|| {
            let class_names = parsed.categories.into_iter();
            let class_names = class_names.map(|(id, name)| names.get(&id).cloned().unwrap_or(name));
            (Listing::new(&root, class_names.collect()), ids.clone())
        });
        if *known != ids {
            let reason = "its categories are not those of the other split, so that labels would \
                          not mean the same";
            return Err(bad(&list)(reason.into()));
        }
        listing.extend(&list, parsed.images)?;
    }
    let (listing, _) = listing.ok_or_else(|| bad(&root)("no split".into()))?;
    Ok(listing)
}

fn called(name: serde_json::Value) -> String {
    match name {
        serde_json::Value::String(name) => name,
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Reads a file; a label is the rank of a category's id.
pub(crate) fn parse(reader: impl Read) -> Result<Parsed, String> {
    let file: File = serde_json::from_reader(reader).map_err(|error| error.to_string())?;
    let mut categories: Vec<(i64, String)> =
        file.categories.into_iter().map(|category| (category.id, called(category.name))).collect();
    categories.sort();
    categories.dedup_by_key(|(id, _)| *id);
    if categories.is_empty() || categories.len() > MAX_CLASSES {
        return Err(format!("{} categories: expected 1 to {MAX_CLASSES}", categories.len()));
    }
    let mut paths: HashMap<i64, String> =
        file.images.into_iter().map(|image| (image.id, image.file_name)).collect();
    let mut images = Vec::with_capacity(file.annotations.len());
    for (number, annotation) in file.annotations.iter().enumerate() {
        let Annotation { image_id, category_id } = *annotation;
        let label = categories.binary_search_by_key(&category_id, |(id, _)| *id);
        // Each image has one annotation; a second one would find its path gone.
        let (Ok(label), Some(path)) = (label, paths.remove(&image_id)) else {
            return Err(format!(
                "annotation {number}: image {image_id} or category {category_id} is not in the \
                 file, or the image has a second annotation"
            ));
        };
        images.push((path, label as u32));
    }
    Ok(Parsed { images, categories })
}
