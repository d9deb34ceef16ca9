//! What `img2dataset` (and DataComp's downloader) says about the shards it wrote.
//!
//! Beside `00000.tar` lie `00000_stats.json` with counts and `00000.parquet` with one row per link,
//! also for the links that could not be downloaded: those are in no tar. Rows without an image are
//! normal, so everything found here becomes a note for people and nothing is an error.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::source::open_regular;

/// Largest statistics file read, in bytes; real ones have a few thousand.
pub(crate) const MAX_STATS: u64 = 4 << 20;
/// Most kinds of failure named in a note.
const MAX_KINDS: usize = 4;

/// Rows of one shard by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Rows {
    pub(crate) total: u64,
    pub(crate) successes: u64,
    pub(crate) failed_to_download: u64,
    pub(crate) failed_to_resize: u64,
    /// Messages of failures with their counts.
    pub(crate) failures: BTreeMap<String, u64>,
}

/// The parts of `_stats.json` that are used.
#[derive(serde::Deserialize)]
struct StatsFile {
    count: u64,
    successes: u64,
    #[serde(default)]
    failed_to_download: u64,
    #[serde(default)]
    failed_to_resize: u64,
    #[serde(default)]
    status_dict: BTreeMap<String, u64>,
}

/// Reads the statistics of one shard from their JSON text.
pub(crate) fn parse_stats(text: &[u8]) -> Result<Rows, String> {
    let stats: StatsFile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let failed = stats.failed_to_download.saturating_add(stats.failed_to_resize);
    if stats.successes.saturating_add(failed) > stats.count {
        let StatsFile { count, successes, .. } = stats;
        return Err(format!("{successes} successes and {failed} failures of {count} rows"));
    }
    let mut failures = stats.status_dict;
    failures.remove("success");
    Ok(Rows {
        total: stats.count,
        successes: stats.successes,
        failed_to_download: stats.failed_to_download,
        failed_to_resize: stats.failed_to_resize,
        failures,
    })
}

/// What one shard's statistics say; nothing where there are none; why they cannot be read.
pub(crate) type Found = Result<Option<Rows>, String>;

/// Notes on shards in files.
pub(crate) fn notes(shards: &[PathBuf], counts: &[u64]) -> Vec<String> {
    let shards = shards.iter().zip(counts);
    notes_on(shards.map(|(path, &count)| (path.as_path(), count, rows_of(path))))
}

/// Notes on shards: rows without an image, shards that disagree with their statistics, shards whose
/// download was not finished. Beside each shard's path stands the number of samples found in it.
/// Empty for shards that `img2dataset` did not write.
pub(crate) fn notes_on<'a>(shards: impl Iterator<Item = (&'a Path, u64, Found)>) -> Vec<String> {
    let mut notes = Vec::new();
    let mut all = Rows::default();
    let (mut known, mut unknown, mut differing) = (0u64, Vec::new(), Vec::new());
    for (path, count, found) in shards {
        match found {
            Ok(Some(rows)) => {
                if rows.successes != count {
                    differing.push((path, rows.successes, count));
                }
                known += 1;
                all.add(rows);
            }
            Ok(None) => unknown.push(path),
            Err(reason) => notes.push(reason),
        }
    }
    if known == 0 {
        return notes;
    }
    if all.total > all.successes {
        notes.push(all.describe());
    }
    if let Some((path, stated, found)) = differing.first() {
        notes.push(format!(
            "{} shards hold another number of images than img2dataset states; the first is {}: \
             {stated} stated, {found} found",
            differing.len(),
            path.display()
        ));
    }
    if let Some(path) = unknown.first() {
        notes.push(format!(
            "{} shards have no _stats.json beside them, so that their download may not have been \
             finished; the first is {}",
            unknown.len(),
            path.display()
        ));
    }
    notes
}

/// What is known about one shard: from its statistics, else from its table of rows.
fn rows_of(shard: &Path) -> Found {
    let Some(stem) = shard.file_stem().and_then(|stem| stem.to_str()) else {
        return Ok(None);
    };
    let path = shard.with_file_name(format!("{stem}_stats.json"));
    if path.is_file() {
        return read_stats(&path).map(Some).map_err(|why| format!("{}: {why}", path.display()));
    }
    #[cfg(feature = "parquet")]
    {
        let path = shard.with_extension("parquet");
        if path.is_file() {
            return super::parquet::count_rows(&path).map_err(|why| why.to_string());
        }
    }
    Ok(None)
}

fn read_stats(path: &Path) -> Result<Rows, String> {
    let (file, length) = open_regular(path).map_err(|error| error.to_string())?;
    if length > MAX_STATS {
        return Err(format!("{length} bytes, at most {MAX_STATS} are accepted"));
    }
    let mut text = Vec::new();
    file.take(MAX_STATS).read_to_end(&mut text).map_err(|error| error.to_string())?;
    parse_stats(&text)
}

impl Rows {
    fn add(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        self.successes = self.successes.saturating_add(other.successes);
        self.failed_to_download = self.failed_to_download.saturating_add(other.failed_to_download);
        self.failed_to_resize = self.failed_to_resize.saturating_add(other.failed_to_resize);
        for (message, count) in other.failures {
            // Messages can name hosts, so that there may be a different one for each row.
            if self.failures.len() < 10_000 || self.failures.contains_key(&message) {
                let sum = self.failures.entry(message).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }

    fn describe(&self) -> String {
        let missing = self.total.saturating_sub(self.successes);
        let mut text = format!(
            "img2dataset: {missing} of {} rows have no image ({} failed to download, {} to resize)",
            self.total, self.failed_to_download, self.failed_to_resize
        );
        let mut failures: Vec<_> = self.failures.iter().collect();
        failures.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let named: Vec<String> = failures
            .iter()
            .take(MAX_KINDS)
            .map(|(message, count)| {
                let short: String = message.chars().take(80).collect();
                format!("{count} x {}", short.escape_debug())
            })
            .collect();
        if !named.is_empty() {
            text.push_str(&format!("; most often {}", named.join(", ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_and_checked() {
        let text = br#"{"count": 10, "successes": 7, "failed_to_download": 2,
            "failed_to_resize": 1, "duration": 1.5, "start_time": 1.0, "end_time": 2.5,
            "status_dict": {"success": 7, "<urlopen error timed out>": 2, "too small": 1}}"#;
        let rows = parse_stats(text).unwrap();
        assert_eq!((rows.total, rows.successes, rows.failures.len()), (10, 7, 2));
        let note = rows.describe();
        assert!(note.contains("3 of 10 rows") && note.contains("2 x <urlopen"), "{note}");
        for bad in [
            &b""[..],
            b"{}",
            b"[1]",
            br#"{"count": -1, "successes": 0}"#,
            br#"{"count": 1, "successes": 2}"#,
            br#"{"count": 18446744073709551615, "successes": 18446744073709551615,
                "failed_to_download": 18446744073709551615}{}"#,
        ] {
            assert!(parse_stats(bad).is_err());
        }
    }
}
