//! `data check`: does every sample decode?

use std::collections::BTreeMap;

use crate::error::{Defect, Result};
use crate::scan::{OnProgress, ScanOptions, scan};
use crate::source::Source;

/// What [`check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CheckReport {
    /// Samples in the source.
    pub samples: u64,
    /// Those that can be used.
    pub good: u64,
    /// Good samples by file format.
    pub formats: BTreeMap<&'static str, u64>,
    /// Every sample that cannot be used, by index.
    pub defects: Vec<Defect>,
}

/// Reads and decodes every sample and lists every defect.
///
/// # Errors
/// [`Error::Cancelled`](crate::Error::Cancelled) when `progress` says so. Defects are no error.
pub fn check(
    source: &dyn Source,
    options: &ScanOptions,
    progress: OnProgress<'_>,
) -> Result<CheckReport> {
    let parts = scan(source, options, progress, |report: &mut CheckReport, _, sample| {
        report.samples += 1;
        match sample {
            Ok(sample) => {
                report.good += 1;
                *report.formats.entry(sample.format).or_default() += 1;
            }
            Err(defect) => report.defects.push(defect),
        }
    })?;
    let mut all = CheckReport::default();
    for part in parts {
        all.samples += part.samples;
        all.good += part.good;
        for (format, count) in part.formats {
            *all.formats.entry(format).or_default() += count;
        }
        all.defects.extend(part.defects);
    }
    all.defects.sort_by_key(|defect| defect.index);
    Ok(all)
}
