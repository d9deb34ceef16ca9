//! EuroSAT: RGB images in `2750/CLASS/CLASS_N.jpg`, and lists of splits where they are there.
//!
//! The data set was published without splits. The usual ones are torchgeo's, of 16,200, 5,400 and 5,400
//! images: `eurosat-{train,val,test}.txt` with a file name on each line
//! (<https://huggingface.co/datasets/isaaccorley/eurosat>, `torchgeo/datasets/eurosat.py` of
//! <https://github.com/torchgeo/torchgeo>). Without the lists each class is split 60 : 20 : 20 in the order
//! of the hashes of its file names, which gives the same three sizes.
//! <https://github.com/phelber/EuroSAT>.

use std::collections::HashSet;
use std::path::Path;

use super::listed::Listing;
use super::lists::{bad, file, lines, root, text};
use crate::decode::DecodeLimits;
use crate::error::Result;
use crate::source::{ImageFolder, Source, key_hash};

/// Lists splits.
pub(super) fn open(path: &Path, splits: &[&str], limits: DecodeLimits) -> Result<Listing> {
    let inner = ["2750", "EuroSAT/2750", "eurosat/2750", "EuroSAT_RGB", "EuroSAT"];
    let images = root(path, &inner, &["AnnualCrop"])?;
    let folder = ImageFolder::open(&images, limits)?;
    let classes = folder.class_names().unwrap_or_default().to_vec();
    let mut listing = Listing::new(&images, classes.clone());
    let lists = |split: &str| {
        let name = format!("eurosat-{split}.txt");
        let parents = [path, &images, images.parent().unwrap_or(path)];
        parents.map(|parent| parent.join(&name)).into_iter().find(|list| list.is_file())
    };
    if ["train", "val", "test"].iter().any(|split| lists(split).is_some()) {
        for split in splits {
            let list = match lists(split) {
                Some(list) => list,
                None => file(path, &[&format!("eurosat-{split}.txt")])?,
            };
            let named = parse(&text(&list)?, &classes).map_err(bad(&list))?;
            listing.extend(&list, named)?;
        }
        return Ok(listing);
    }
    listing.note(
        "there are no lists eurosat-train.txt, …: each class is split 60 : 20 : 20 by the hashes of \
         its file names"
            .into(),
    );
    for split in splits {
        let chosen = hashed(&folder, split);
        for index in (0..folder.len()).filter(|index| chosen.contains(index)) {
            let path = folder.location(index);
            let relative = Path::new(&path).strip_prefix(&images).ok().and_then(Path::to_str);
            if let (Some(relative), Some(label)) = (relative, folder.label(index)) {
                listing.extend(&images, [(relative.replace('\\', "/"), label)])?;
            }
        }
    }
    Ok(listing)
}

/// The samples of a split where nothing else says it.
fn hashed(folder: &ImageFolder, split: &str) -> HashSet<u64> {
    let classes = folder.num_classes().unwrap_or(0) as usize;
    let mut by_class: Vec<Vec<(u64, u64)>> = vec![Vec::new(); classes];
    for index in 0..folder.len() {
        if let Some(class) = folder.label(index).and_then(|label| by_class.get_mut(label as usize))
        {
            class.push((key_hash(&folder.key(index)), index));
        }
    }
    let mut chosen = HashSet::new();
    for class in &mut by_class {
        class.sort_unstable();
        let (first, second) = (class.len() * 60 / 100, class.len() * 80 / 100);
        let part = match split {
            "train" => 0..first,
            "val" => first..second,
            _ => second..class.len(),
        };
        chosen.extend(class[part].iter().map(|(_, index)| *index));
    }
    chosen
}

/// Paths and labels of a list of names such as `AnnualCrop_1.jpg`, whatever their extension.
fn parse(text: &str, classes: &[String]) -> Result<Vec<(String, u32)>, String> {
    lines(text)
        .map(|(number, line)| {
            let name = line.rsplit('/').next().unwrap_or(line);
            let stem = name.split('.').next().unwrap_or(name);
            let class = stem.rsplit_once('_').map(|(class, _)| class);
            let label = class.and_then(|class| classes.iter().position(|known| known == class));
            let (Some(class), Some(label)) = (class, label) else {
                return Err(super::lists::at_line(number, line, "CLASS_N.jpg of a class folder"));
            };
            Ok((format!("{class}/{stem}.jpg"), label as u32))
        })
        .collect()
}
