//! The file that names the data sets of a suite.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cmd::Usage;

/// `aim-cli config suite`.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// Largest file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
const MAX_NAME: usize = 64;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suite {
    #[serde(rename = "set", default)]
    pub(super) sets: Vec<Set>,
}

/// One data set; what it leaves out is as on the command line.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    /// Name of its folder, and of its column in the table where it is one of the paper's.
    pub(super) name: String,
    pub(super) train: String,
    pub(super) val: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) epochs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch_size: Option<u32>,
    /// Learning rates, of which the best is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lr: Option<Rates>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weight_decay: Option<f64>,
    #[serde(default)]
    pub(super) metric: Metric,
}

/// One learning rate or several.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Rates {
    One(f64),
    Several(Vec<f64>),
}

impl Rates {
    pub(super) fn all(&self) -> &[f64] {
        match self {
            Self::One(rate) => std::slice::from_ref(rate),
            Self::Several(rates) => rates,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) enum Metric {
    /// Share of images whose class has the highest score.
    #[default]
    #[serde(rename = "top1")]
    Top1,
}

impl Suite {
    /// Reads and checks a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let found = std::fs::metadata(path)
            .with_context(|| format!("cannot open the suite {}", path.display()))?;
        let usage = |reason: String| Usage(format!("{}: {reason}", path.display()));
        if !found.is_file() || found.len() > MAX_BYTES {
            let reason = format!("expected a TOML file of at most {MAX_BYTES} bytes");
            return Err(usage(reason).into());
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the suite {}", path.display()))?;
        Ok(Self::parse(&text).map_err(usage)?)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let suite: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if suite.sets.is_empty() {
            return Err("expected at least one [[set]]; `aim-cli config suite` prints some".into());
        }
        for (at, set) in suite.sets.iter().enumerate() {
            set.check().map_err(|reason| format!("set `{}`: {reason}", set.name.escape_debug()))?;
            if suite.sets[..at].iter().any(|other| other.name == set.name) {
                return Err(format!("two sets are called `{}`", set.name));
            }
        }
        Ok(suite)
    }
}

impl Set {
    fn check(&self) -> Result<(), String> {
        // It becomes a folder of --out.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.bytes().all(plain) {
            return Err("expected a name of letters, digits, - and _".into());
        }
        let rates = self.lr.as_ref().map_or(&[][..], Rates::all);
        let positive = |rate: &f64| rate.is_finite() && *rate > 0.0;
        if (self.lr.is_some() && rates.is_empty()) || !rates.iter().all(positive) {
            return Err(format!("lr = {rates:?}: expected numbers above 0"));
        }
        if self.weight_decay.is_some_and(|decay| !(decay.is_finite() && decay >= 0.0)) {
            return Err(format!("weight_decay = {:?}: expected 0 or more", self.weight_decay));
        }
        if self.epochs == Some(0) {
            return Err("epochs = 0: expected 1 or more".into());
        }
        if self.batch_size.is_some_and(|size| !(2..=65_536).contains(&size)) {
            return Err(format!("batch_size = {:?}: expected 2 to 65536", self.batch_size));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::COLUMNS;
    use super::*;

    #[test]
    fn the_example_names_the_15_benchmarks_with_specifications_that_parse() {
        let suite = Suite::parse(EXAMPLE).unwrap();
        let names: Vec<_> = suite.sets.iter().map(|set| set.name.as_str()).collect();
        assert_eq!(names, COLUMNS.map(|column| column.name));
        for set in &suite.sets {
            for spec in [&set.train, &set.val] {
                let spec: aim_data::spec::DataSpec = spec.parse().unwrap();
                assert!(!spec.to_string().starts_with("imagefolder"), "{spec}");
            }
            assert_ne!(set.train, set.val);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let set = "[[set]]\nname = \"a\"\ntrain = \"x\"\nval = \"y\"\n";
        assert_eq!(Suite::parse(set).unwrap().sets[0].metric, Metric::Top1);
        let rates = format!("{set}lr = [1e-4, 3e-4]\n");
        assert_eq!(Suite::parse(&rates).unwrap().sets[0].lr.as_ref().unwrap().all(), [1e-4, 3e-4]);
        for (text, part) in [
            (String::new(), "at least one"),
            (format!("{set}epoch = 3\n"), "unknown field `epoch`"),
            (format!("{set}epochs = 0\n"), "epochs"),
            (format!("{set}lr = []\n"), "lr"),
            (format!("{set}lr = -1.0\n"), "lr"),
            (format!("{set}batch_size = 1\n"), "batch_size"),
            (format!("{set}weight_decay = nan\n"), "weight_decay"),
            (format!("{set}metric = \"map\"\n"), "top1"),
            (format!("{set}{set}"), "two sets"),
            (set.replace("\"a\"", "\"../a\""), "letters"),
            (set.replace("train", "trian"), "trian"),
        ] {
            let error = Suite::parse(&text).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
