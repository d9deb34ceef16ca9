//! What the classes of ImageNet are called and which one each validation image shows.
//!
//! A class index is the rank of the class's WordNet id among the sorted 1,000. The devkit numbers
//! its synsets otherwise (`ILSVRC2012_ID`), and its ground truth is written in those numbers.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::mat::{Structs, Value, read_structs};
use crate::source::open_regular;

/// Largest text or MAT file read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

const GROUND_TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
const DEVKIT: &str = "ILSVRC2012_devkit_t12";

/// The classes, sorted by WordNet id: what a class index counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Classes {
    /// `n01440764`, sorted, none twice.
    pub(crate) ids: Vec<String>,
    /// `tench, Tinca tinca`, in the same order.
    pub(crate) words: Vec<String>,
    /// Class index by ILSVRC id, where the devkit said it.
    by_number: HashMap<u32, u32>,
}

/// Labels of validation images, by file name or by position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Truth {
    /// Class index of image 1, 2, …
    Numbered(Vec<u32>),
    /// Class index by file name without extension.
    Named(HashMap<String, u32>),
}

/// Whether a text is a WordNet id: `n` and eight digits.
pub(crate) fn is_wnid(text: &str) -> bool {
    text.len() == 9 && text.starts_with('n') && text[1..].bytes().all(|b| b.is_ascii_digit())
}

impl Classes {
    /// Sorts classes by their ids.
    pub(crate) fn new(pairs: Vec<(String, String, Option<u32>)>) -> Result<Self, String> {
        let mut pairs = pairs;
        pairs.sort();
        let mut this = Self::default();
        for (id, words, number) in pairs {
            if !is_wnid(&id) {
                let shown = id.escape_debug();
                return Err(format!("`{shown}` is no WordNet id such as n01440764"));
            }
            if this.ids.last() == Some(&id) {
                return Err(format!("{id} is there twice"));
            }
            let index = this.ids.len() as u32;
            if let Some(number) = number
                && this.by_number.insert(number, index).is_some()
            {
                return Err(format!("the ILSVRC id {number} is there twice"));
            }
            this.ids.push(id);
            this.words.push(words);
        }
        if this.ids.is_empty() {
            return Err("there are no classes".into());
        }
        Ok(this)
    }

    /// The class index of a WordNet id.
    pub(crate) fn index(&self, id: &str) -> Option<u32> {
        let found = self.ids.binary_search_by(|known| known.as_str().cmp(id));
        found.ok().map(|index| index as u32)
    }

    /// From `meta.mat`: the synsets without children are the classes.
    pub(crate) fn from_meta(bytes: &[u8]) -> Result<Self, String> {
        let synsets: Structs = read_structs(bytes, "synsets")?;
        let mut pairs = Vec::new();
        for row in 0..synsets.rows.len() {
            let number = |field| match synsets.get(row, field) {
                Some(Value::Number(value)) if (0.0..1e6).contains(value) => Ok(*value as u32),
                other => Err(format!("synset {row}: {field} is {other:?}, expected a number")),
            };
            let text = |field| match synsets.get(row, field) {
                Some(Value::Text(text)) => Ok(text.clone()),
                other => Err(format!("synset {row}: {field} is {other:?}, expected a text")),
            };
            if number("num_children")? == 0 {
                pairs.push((text("WNID")?, text("words")?, Some(number("ILSVRC2012_ID")?)));
            }
        }
        Self::new(pairs)
    }

    /// From `LOC_synset_mapping.txt`: a WordNet id and words on each line.
    pub(crate) fn from_mapping(text: &str) -> Result<Self, String> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        Self::new(
            lines
                .map(|line| {
                    let (id, words) =
                        line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
                    (id.to_owned(), words.trim().to_owned(), None)
                })
                .collect(),
        )
    }

    /// The devkit's ground truth: an ILSVRC id on each line.
    pub(crate) fn ground_truth(&self, text: &str) -> Result<Truth, String> {
        let label = |(at, line): (usize, &str)| {
            let number = line.trim().parse::<u32>().ok();
            let index = number.and_then(|number| self.by_number.get(&number).copied());
            index.ok_or_else(|| {
                let shown: String = line.chars().take(40).collect();
                format!("line {}: `{}` is no ILSVRC id of a class", at + 1, shown.escape_debug())
            })
        };
        text.lines().enumerate().map(label).collect::<Result<_, _>>().map(Truth::Numbered)
    }

    /// Kaggle's `LOC_val_solution.csv`: `ImageId,PredictionString` where the latter begins with the
    /// WordNet id.
    pub(crate) fn solution(&self, text: &str) -> Result<Truth, String> {
        let mut labels = HashMap::new();
        for (at, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty()) {
            let parts = line
                .split_once(',')
                .map(|(image, rest)| (image, rest.split_whitespace().next().unwrap_or_default()));
            let label = parts.and_then(|(image, id)| Some((image, self.index(id)?)));
            let Some((image, label)) = label else {
                let shown: String = line.chars().take(40).collect();
                return Err(format!("line {}: `{}`: no known class", at + 1, shown.escape_debug()));
            };
            if labels.insert(image.to_owned(), label).is_some() {
                return Err(format!("line {}: a second line for {image}", at + 1));
            }
        }
        Ok(Truth::Named(labels))
    }
}

impl Truth {
    /// The class index of the image `name` (without extension).
    pub(crate) fn label(&self, name: &str) -> Option<u32> {
        match self {
            Self::Named(labels) => labels.get(name).copied(),
            Self::Numbered(labels) => {
                let number: usize = name.strip_prefix("ILSVRC2012_val_")?.parse().ok()?;
                labels.get(number.checked_sub(1)?).copied()
            }
        }
    }
}

/// What the files in a folder say: the classes, and the labels of the validation images.
#[derive(Debug, Default)]
pub(crate) struct Devkit {
    pub(crate) classes: Option<Classes>,
    pub(crate) truth: Option<Truth>,
}

impl Devkit {
    /// Looks for the devkit (as it is downloaded or unpacked) and for Kaggle's files.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        let mut this = Self::default();
        let data = folder.join(DEVKIT).join("data");
        let mut meta = read_first(&[data.join("meta.mat"), folder.join("meta.mat")])?;
        let mut truth = read_first(&[data.join(GROUND_TRUTH), folder.join(GROUND_TRUTH)])?;
        let archive = folder.join(format!("{DEVKIT}.tar.gz"));
        if (meta.is_none() || truth.is_none()) && archive.is_file() {
            let (found_meta, found_truth) = read_archive(&archive)?;
            meta = meta.or(found_meta);
            truth = truth.or(found_truth);
        }
        let fail = |path: PathBuf| move |reason| Error::Format { path, offset: 0, reason };
        if let Some((path, bytes)) = meta {
            this.classes = Some(Classes::from_meta(&bytes).map_err(fail(path))?);
        }
        let mapping = read_first(&[folder.join("LOC_synset_mapping.txt")])?;
        if let (None, Some((path, bytes))) = (&this.classes, mapping) {
            let text = String::from_utf8_lossy(&bytes);
            this.classes = Some(Classes::from_mapping(&text).map_err(fail(path))?);
        }
        let Some(classes) = &this.classes else {
            return Ok(this);
        };
        let solution = read_first(&[folder.join("LOC_val_solution.csv")])?;
        if let Some((path, bytes)) = truth.filter(|_| !classes.by_number.is_empty()) {
            let text = String::from_utf8_lossy(&bytes);
            this.truth = Some(classes.ground_truth(&text).map_err(fail(path))?);
        } else if let Some((path, bytes)) = solution {
            let text = String::from_utf8_lossy(&bytes);
            this.truth = Some(classes.solution(&text).map_err(fail(path))?);
        }
        Ok(this)
    }
}

type Found = Option<(PathBuf, Vec<u8>)>;

/// The first of several files that is there.
fn read_first(paths: &[PathBuf]) -> Result<Found> {
    let Some(path) = paths.iter().find(|path| path.is_file()) else {
        return Ok(None);
    };
    let (file, length) = open_regular(path)?;
    let bytes = read_bounded(file, length, path)?;
    Ok(Some((path.clone(), bytes)))
}

fn read_bounded(reader: impl Read, length: u64, path: &Path) -> Result<Vec<u8>> {
    if length > MAX_BYTES {
        let reason = format!("{length} bytes, at most {MAX_BYTES} are accepted");
        return Err(Error::Format { path: path.to_owned(), offset: 0, reason });
    }
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// `meta.mat` and the ground truth out of the devkit's archive, read in memory.
fn read_archive(path: &Path) -> Result<(Found, Found)> {
    let (file, _) = open_regular(path)?;
    let decoder = flate2::read::GzDecoder::new(std::io::BufReader::new(file));
    // Bounds what is decompressed; the devkit has 3 MB.
    let mut archive = tar::Archive::new(decoder.take(8 * MAX_BYTES));
    let (mut meta, mut truth) = (None, None);
    for entry in archive.entries().map_err(Error::io("read", path))? {
        let entry = entry.map_err(Error::io("read", path))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let slot = match name.rsplit('/').next() {
            Some("meta.mat") => &mut meta,
            Some(GROUND_TRUTH) => &mut truth,
            _ => continue,
        };
        let place = path.join(&name);
        let length = entry.size();
        *slot = Some((place.clone(), read_bounded(entry, length, &place)?));
    }
    Ok((meta, truth))
}
