//! The strings that name a policy.

use std::fmt;
use std::str::FromStr;

use super::{OpSet, RandAugment};
use crate::error::{Error, Result};

/// The accepted strings, for messages and help texts.
pub const POLICY_FORMS: &str = "rand, then in any order, each after a dash: m (magnitude, a whole \
    number), n (layers), p (probability of each layer), mstd (standard deviation of the magnitude; \
    above 100 or inf: uniform from 0), mmax (largest magnitude), inc (1: all stronger as the \
    magnitude grows), tweights (timm's weighted set); such as rand-m9-mstd0.5-inc1";

impl FromStr for RandAugment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: String| {
            Error::Config(format!("RandAugment policy `{text}`: {why}; expected {POLICY_FORMS}"))
        };
        let mut sections = text.split('-');
        if sections.next() != Some("rand") {
            return Err(fail("it does not begin with `rand`".into()));
        }
        let mut this = Self::default();
        let (mut increasing, mut weighted) = (false, false);
        let mut seen = Vec::new();
        for section in sections {
            let digits = section.find(|c: char| c.is_ascii_digit() || c == '.');
            let (key, value) = match section.strip_suffix("inf") {
                Some(key) if !key.is_empty() => (key, "inf"),
                _ if section == "tweights" => ("t", "weights"),
                _ => section.split_at(digits.unwrap_or(section.len())),
            };
            if seen.contains(&key) {
                return Err(fail(format!("`{key}` is given twice")));
            }
            seen.push(key);
            let whole = || value.parse::<u32>().map_err(|_| fail(format!("`{section}`")));
            let number = || value.parse::<f64>().map_err(|_| fail(format!("`{section}`")));
            match key {
                "m" => this.magnitude = f64::from(whole()?),
                "n" => this.layers = whole()?,
                "p" => this.probability = number()?,
                "mstd" => {
                    let std = number()?;
                    this.magnitude_std = if std > 100.0 { f64::INFINITY } else { std };
                }
                "mmax" => this.magnitude_max = f64::from(whole()?),
                "inc" => match value {
                    "1" => increasing = true,
                    // timm takes any value for on, this one included.
                    "0" => {}
                    _ => return Err(fail(format!("`{section}`"))),
                },
                "t" if value == "weights" => weighted = true,
                _ => return Err(fail(format!("unknown section `{section}`"))),
            }
        }
        this.set = match (weighted, increasing) {
            (true, _) => OpSet::Weighted,
            (false, true) => OpSet::Increasing,
            (false, false) => OpSet::Usual,
        };
        this.validate().map_err(|error| fail(error.to_string()))?;
        Ok(this)
    }
}

impl fmt::Display for RandAugment {
    /// The policy, without fill and filter, which its string does not hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Self::default();
        write!(f, "rand-m{}", self.magnitude)?;
        if self.layers != usual.layers {
            write!(f, "-n{}", self.layers)?;
        }
        if self.probability != usual.probability {
            write!(f, "-p{}", self.probability)?;
        }
        if self.magnitude_std != usual.magnitude_std {
            write!(f, "-mstd{}", self.magnitude_std)?;
        }
        if self.magnitude_max != usual.magnitude_max {
            write!(f, "-mmax{}", self.magnitude_max)?;
        }
        f.write_str(match self.set {
            OpSet::Usual => "",
            OpSet::Increasing => "-inc1",
            OpSet::Weighted => "-tweights",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_timm_reads_them() {
        let probe: RandAugment = "rand-m9-mstd0.5-inc1".parse().unwrap();
        let expected = RandAugment {
            magnitude: 9.0,
            magnitude_std: 0.5,
            set: OpSet::Increasing,
            ..RandAugment::default()
        };
        assert_eq!(probe, expected);
        let mean = [0.485, 0.456, 0.406];
        assert_eq!(RandAugment::probe(mean), expected.with_mean(mean));
        assert_eq!(RandAugment::probe(mean).fill, [124, 116, 104]);
        let all: RandAugment = "rand-n3-p0.25-mmax20-m12-mstd101-tweights".parse().unwrap();
        assert_eq!((all.layers, all.probability, all.magnitude), (3, 0.25, 12.0));
        assert_eq!((all.magnitude_max, all.magnitude_std), (20.0, f64::INFINITY));
        assert_eq!(all.set, OpSet::Weighted);
        assert_eq!("rand".parse::<RandAugment>().unwrap(), RandAugment::default());
        for policy in [probe, all, RandAugment::default()] {
            assert_eq!(policy.to_string().parse::<RandAugment>().unwrap(), policy, "{policy}");
        }
    }

    #[test]
    fn wrong_policies_list_what_is_known() {
        for (bad, part) in [
            ("", "begin with"),
            ("original-mstd0.5", "begin with"),
            ("rand-w0", "`w0`"),
            ("rand-t3a", "`t3a`"),
            ("rand-m", "`m`"),
            ("rand-m9.5", "`m9.5`"),
            ("rand-m9-m8", "`m` is given twice"),
            ("rand-mstd-1", "`mstd`"),
            ("rand-mstdnan", "`mstdnan`"),
            ("rand-inc2", "`inc2`"),
            ("rand-n0", "n0 layers"),
            ("rand-n99", "n99 layers"),
            ("rand-p1.5", "p1.5"),
            ("rand-m101", "m101"),
            ("rand-m99999999999", "m99999999999"),
            ("rand-mmax0", "mmax0"),
            ("rand-é9", "é9"),
            ("rand--m9", "``"),
        ] {
            let text = bad.parse::<RandAugment>().unwrap_err().to_string();
            assert!(text.contains(part) && text.contains("mstd (standard"), "{bad}: {text}");
        }
    }
}
