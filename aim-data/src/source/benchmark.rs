//! The data sets of the paper's downstream benchmarks (Table 6), in the layouts in which they are
//! published.
//!
//! [`Benchmark`] names them, [`open_benchmark`] opens a split of one. Each file below states where
//! its layout is documented. ImageNet is [`open_ilsvrc`](crate::source::open_ilsvrc)'s.
//!
//! Lists and annotations are read when a source is opened; images only when they are asked for. One
//! that is listed and not there, or lies outside the folder, is a bad sample; a list that is not
//! there is an error.

mod cars;
mod cifar;
mod domainnet;
mod dtd;
mod eurosat;
mod fmow;
mod food101;
mod inat;
mod listed;
mod lists;
mod pcam;
mod pets;
mod pickle;
mod wilds;

use std::path::Path;

use crate::decode::DecodeLimits;
use crate::error::{Error, Result};
use crate::source::Source;

pub use listed::ListedImages;
#[doc(inline)]
pub use {cifar::Cifar, pcam::Pcam};

pub(crate) mod parsers {
    //! The parsers of lists, for fuzzing.
    pub(crate) use super::cars::{annotations, class_names};
    pub(crate) use super::cifar::{decode_pickle, records};
    pub(crate) use super::domainnet::parse as domainnet;
    pub(crate) use super::dtd::parse as dtd;
    pub(crate) use super::fmow::parse as fmow;
    pub(crate) use super::food101::parse as food101;
    pub(crate) use super::inat::parse as inat;
    pub(crate) use super::listed::safe_relative;
    pub(crate) use super::pets::parse as pets;
    pub(crate) use super::wilds::parse as wilds;
}

/// A data set of the paper's benchmarks, other than ImageNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Benchmark {
    /// iNaturalist 2018.
    INat18,
    /// CIFAR-10.
    Cifar10,
    /// CIFAR-100, with its 100 fine classes.
    Cifar100,
    /// Food-101.
    Food101,
    /// Describable Textures.
    Dtd,
    /// Oxford-IIIT Pets, with its 37 breeds.
    Pets,
    /// Stanford Cars.
    Cars,
    /// iWildCam 2020 as in WILDS.
    IWildCam,
    /// Camelyon17 as in WILDS.
    Camelyon17,
    /// PatchCamelyon.
    Pcam,
    /// RxRx1 as in WILDS.
    RxRx1,
    /// EuroSAT, its RGB images.
    EuroSat,
    /// Functional Map of the World, as in WILDS or in class folders.
    Fmow,
    /// DomainNet; its domain Infograph unless another one is named.
    DomainNet,
}

/// Name in a specification, splits, and what follows the splits behind `:`.
type Form = (Benchmark, &'static str, &'static [&'static str], Option<&'static str>);

const TRAIN_TEST: &[&str] = &["train", "test"];
const THREE: &[&str] = &["train", "val", "test"];
/// In and out of the training set's distribution.
const SHIFTED: &[&str] = &["train", "val", "test", "id_val", "id_test"];

const FORMS: [Form; 14] = [
    (Benchmark::INat18, "inat18", &["train", "val"], None),
    (Benchmark::Cifar10, "cifar10", TRAIN_TEST, None),
    (Benchmark::Cifar100, "cifar100", TRAIN_TEST, None),
    (Benchmark::Food101, "food101", TRAIN_TEST, None),
    (Benchmark::Dtd, "dtd", THREE, Some("a split number from 1 to 10")),
    (Benchmark::Pets, "pets", TRAIN_TEST, None),
    (Benchmark::Cars, "cars", TRAIN_TEST, None),
    (Benchmark::IWildCam, "iwildcam", SHIFTED, None),
    (Benchmark::Camelyon17, "camelyon17", &["train", "val", "test", "id_val"], None),
    (Benchmark::Pcam, "pcam", THREE, None),
    (Benchmark::RxRx1, "rxrx1", &["train", "val", "test", "id_test"], None),
    (Benchmark::EuroSat, "eurosat", THREE, None),
    (Benchmark::Fmow, "fmow", SHIFTED, None),
    (Benchmark::DomainNet, "domainnet", TRAIN_TEST, Some("a domain such as sketch")),
];

impl Benchmark {
    fn form(self) -> &'static Form {
        // Every variant has its row: a test holds that.
        FORMS.iter().find(|form| form.0 == self).unwrap_or(&FORMS[0])
    }

    /// What it is called in a specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.form().1
    }

    /// The data set with this name; `infograph` is DomainNet's.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name == "infograph" { "domainnet" } else { name };
        FORMS.iter().find(|form| form.1 == name).map(|form| form.0)
    }

    /// All of them, in the order of the paper's Table 6.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMS.iter().map(|form| form.0)
    }

    /// The data set whose files lie in a folder, where they leave no doubt.
    #[must_use]
    pub fn recognise(folder: &Path) -> Option<Self> {
        let has = |name: &str| folder.join(name).exists();
        let found = [
            (Self::INat18, has("train2018.json") || has("val2018.json")),
            (Self::Cifar10, has("data_batch_1.bin") || has("data_batch_1")),
            (Self::Cifar100, has("fine_label_names.txt") && has("train.bin")),
            (Self::Food101, has("meta/classes.txt") && has("meta/train.txt")),
            (Self::Dtd, has("labels/train1.txt") && has("images")),
            (Self::Pets, has("annotations/trainval.txt") && has("images")),
            (
                Self::Cars,
                has("cars_annos.mat") || has("devkit/cars_meta.mat") || has("cars_meta.mat"),
            ),
            (Self::Pcam, pcam::is_folder(folder)),
            (Self::EuroSat, has("2750/AnnualCrop") || has("AnnualCrop")),
            (Self::Fmow, has("rgb_metadata.csv")),
            (Self::DomainNet, has("infograph_train.txt")),
        ];
        let by_name = found.iter().filter(|(_, found)| *found).map(|(which, _)| *which);
        let mut all = by_name.chain(wilds::recognise(folder));
        // Two of them in one folder: it is for the user to say which one is meant.
        match (all.next(), all.next()) {
            (Some(one), None) => Some(one),
            _ => None,
        }
    }
}

/// Which parts of a data set: `train`, `train+val`, `train+val:2`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Splits {
    names: Vec<&'static str>,
    /// What follows the last `:`.
    argument: Option<String>,
}

impl Splits {
    fn parse(which: Benchmark, text: Option<&str>) -> Result<Self, String> {
        let (_, _, known, argument) = which.form();
        let text = text.unwrap_or("train");
        let (names, given) = match text.split_once(':') {
            Some((names, given)) => (names, Some(given)),
            None => (text, None),
        };
        let expected = || {
            let argument = argument.map_or(String::new(), |what| format!(", and :N for {what}"));
            format!("expected {}, joined by +{argument}", known.join(", "))
        };
        let mut found = Vec::new();
        for name in names.split('+') {
            let same = match (which, name) {
                (Benchmark::Pets, "trainval") => "train",
                (Benchmark::Pcam, "valid") => "val",
                _ => name,
            };
            let Some(name) = known.iter().find(|known| **known == same) else {
                return Err(format!("split `{name}`: {}", expected()));
            };
            if found.contains(name) {
                return Err(format!("split `{name}` is named twice: {}", expected()));
            }
            found.push(*name);
        }
        match (given, argument) {
            (Some(given), None) => Err(format!("`:{given}` behind the splits: {}", expected())),
            (Some(""), Some(what)) => Err(format!("nothing behind `:`, expected {what}")),
            _ => Ok(Self { names: found, argument: given.map(str::to_owned) }),
        }
    }
}

/// Opens splits of a benchmark's data set: `split` as in `train`, `train+val`, and for DTD
/// `train+val:2`; `train` without one. `path` is the folder that its archives were unpacked in, or
/// the one in it that they made.
///
/// # Errors
/// [`Error::Spec`] for splits that the data set has not; [`Error::Empty`] naming what was expected
/// and what was found for files that are not there; [`Error::Format`] for those that do not follow
/// their format.
pub fn open_benchmark(
    which: Benchmark,
    path: &Path,
    split: Option<&str>,
    limits: DecodeLimits,
) -> Result<Box<dyn Source>> {
    let wrong = |reason| {
        let split = split.map_or(String::new(), |split| format!("#{split}"));
        Error::Spec { spec: format!("{}:{}{split}", which.name(), path.display()), reason }
    };
    let splits = Splits::parse(which, split).map_err(wrong)?;
    let listing = match which {
        Benchmark::INat18 => inat::open(path, &splits.names)?,
        Benchmark::Cifar10 | Benchmark::Cifar100 => {
            return Ok(Box::new(Cifar::open(path, which, &splits.names)?));
        }
        Benchmark::Food101 => food101::open(path, &splits.names)?,
        Benchmark::Dtd => {
            let number = splits.argument.as_deref().unwrap_or("1");
            if !number.parse().is_ok_and(|number: u32| (1..=10).contains(&number)) {
                return Err(wrong(format!("split number `{number}`: expected 1 to 10")));
            }
            dtd::open(path, &splits.names, number)?
        }
        Benchmark::Pets => pets::open(path, &splits.names)?,
        Benchmark::Cars => cars::open(path, &splits.names)?,
        Benchmark::IWildCam | Benchmark::Camelyon17 | Benchmark::RxRx1 => {
            wilds::open(which, path, &splits.names)?
        }
        Benchmark::Pcam => return Ok(Box::new(Pcam::open(path, &splits.names, limits)?)),
        Benchmark::EuroSat => eurosat::open(path, &splits.names, limits)?,
        Benchmark::Fmow => fmow::open(path, &splits.names, limits)?,
        Benchmark::DomainNet => {
            let domain = splits.argument.as_deref().unwrap_or("infograph");
            if domain.len() > 32 || !domain.bytes().all(|byte| byte.is_ascii_lowercase()) {
                return Err(wrong(format!("domain `{domain}`: expected one such as sketch")));
            }
            domainnet::open(path, &splits.names, domain)?
        }
    };
    Ok(Box::new(listing.finish(which, limits)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_has_its_name() {
        let all: Vec<_> = Benchmark::all().collect();
        for which in &all {
            assert_eq!(Benchmark::from_name(which.name()), Some(*which));
        }
        assert_eq!(Benchmark::from_name("infograph"), Some(Benchmark::DomainNet));
        assert_eq!(Benchmark::from_name("imagenet"), None);
    }

    #[test]
    fn splits_are_joined_and_checked() {
        let parse = |which, text| Splits::parse(which, Some(text));
        let dtd = parse(Benchmark::Dtd, "train+val:7").unwrap();
        assert_eq!((dtd.names, dtd.argument.as_deref()), (vec!["train", "val"], Some("7")));
        assert_eq!(Splits::parse(Benchmark::Cars, None).unwrap().names, ["train"]);
        assert_eq!(parse(Benchmark::Pets, "trainval+test").unwrap().names, ["train", "test"]);
        for (which, bad, part) in [
            (Benchmark::Cars, "val", "train, test"),
            (Benchmark::Cars, "train+train", "twice"),
            (Benchmark::Cars, "train:1", ":1"),
            (Benchmark::Dtd, "train:", "split number"),
            (Benchmark::Pcam, "", "val"),
        ] {
            let text = parse(which, bad).unwrap_err();
            assert!(text.contains(part), "{bad}: {text}");
        }
    }
}
