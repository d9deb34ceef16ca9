//! What a run directory holds, as far as it can be read: every part may be missing or damaged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use aim_train::config::{Entry, read_entries};
use anyhow::{Result, bail};
use serde_json::Value;

/// A longer line of metrics is no line of metrics.
const MAX_LINE: u64 = 1 << 20;
const MAX_CONFIG: u64 = 1 << 20;
const MAX_PICTURE: u64 = 16 << 20;
const MAX_PICTURES: usize = 24;
const MAX_RESULTS: u64 = 4 << 20;

/// Values of one metric with the steps they belong to.
pub(super) type Points = Vec<(f64, f64)>;

/// A picture of the run.
pub(super) struct Picture {
    pub(super) name: String,
    pub(super) png: Vec<u8>,
}

/// One line of a probe's results.
pub(super) struct ProbeRow {
    pub(super) probe: String,
    pub(super) features: String,
    pub(super) layers: String,
    /// One accuracy per seed, 0 to 1.
    pub(super) accuracy: Vec<f64>,
}

/// The results of one `probe` directory.
pub(super) struct Probe {
    pub(super) name: String,
    /// Number of images and classes, as a sentence; may be empty.
    pub(super) about: String,
    pub(super) rows: Vec<ProbeRow>,
}

/// Everything that was found.
#[derive(Default)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) config: Vec<Entry>,
    pub(super) metrics: BTreeMap<String, Points>,
    pub(super) pictures: Vec<Picture>,
    pub(super) probes: Vec<Probe>,
    pub(super) checkpoints: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Run {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            bail!("{} is no directory; expected the --out of `aim-cli pretrain`", dir.display());
        }
        let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let name = full.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut run = Self { name, ..Self::default() };
        run.read_config(&dir.join("config.toml"));
        run.read_metrics(&dir.join("metrics.jsonl"));
        run.read_pictures(&dir.join("reconstructions"));
        run.read_probes(dir);
        run.checkpoints = names(&dir.join("checkpoints"))
            .into_iter()
            .filter(|name| name.starts_with("step-"))
            .collect();
        if run.config.is_empty() && run.metrics.is_empty() && run.probes.is_empty() {
            bail!(
                "{} holds neither config.toml nor metrics.jsonl nor probe results; \
                 expected the --out of `aim-cli pretrain`",
                dir.display()
            );
        }
        Ok(run)
    }

    /// The value of `section.key` in the configuration, as TOML.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.config.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }

    /// A metric's values; empty when it was never written.
    pub(super) fn points(&self, key: &str) -> &[(f64, f64)] {
        self.metrics.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// A metric's last value.
    pub(super) fn last(&self, key: &str) -> Option<f64> {
        self.points(key).last().map(|(_, value)| *value)
    }

    fn read_config(&mut self, path: &Path) {
        let Some(bytes) = self.bytes(path, MAX_CONFIG) else { return };
        match read_entries(path, &String::from_utf8_lossy(&bytes)) {
            Ok(entries) => self.config = entries,
            Err(error) => self.warnings.push(error.to_string()),
        }
    }

    fn read_metrics(&mut self, path: &Path) {
        let Ok(file) = File::open(path) else { return };
        let mut reader = BufReader::new(file);
        let (mut line, mut bad) = (Vec::new(), 0_u64);
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    self.warnings.push(format!("{}: {error}", path.display()));
                    break;
                }
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            // A run that is being written, or was killed, may end in half a line.
            let whole = line.ends_with(b"\n");
            if self.metric_line(&line).is_none() && whole {
                bad += 1;
            }
        }
        if bad > 0 {
            self.warnings.push(format!("{}: {bad} unreadable lines left out", path.display()));
        }
    }

    fn metric_line(&mut self, line: &[u8]) -> Option<()> {
        let Ok(Value::Object(values)) = serde_json::from_slice(line) else { return None };
        let step = values.get("step")?.as_f64()?;
        for (key, value) in &values {
            if let (Some(number), true) = (value.as_f64(), key != "step") {
                self.metrics.entry(key.clone()).or_default().push((step, number));
            }
        }
        Some(())
    }

    fn read_pictures(&mut self, dir: &Path) {
        for name in names(dir) {
            if !name.ends_with(".png") || self.pictures.len() == MAX_PICTURES {
                continue;
            }
            let path = dir.join(&name);
            let Some(png) = self.bytes(&path, MAX_PICTURE) else { continue };
            if png.starts_with(b"\x89PNG\r\n\x1a\n") {
                let name = name.trim_end_matches(".png").to_owned();
                self.pictures.push(Picture { name, png });
            } else {
                self.warnings.push(format!("{}: no PNG", path.display()));
            }
        }
    }

    fn read_probes(&mut self, dir: &Path) {
        for name in names(dir).into_iter().filter(|name| name.starts_with("probe")) {
            let path = dir.join(&name).join("results.json");
            let Some(bytes) = self.bytes(&path, MAX_RESULTS) else { continue };
            match serde_json::from_slice::<Value>(&bytes) {
                Ok(value) => self.probes.push(probe(name, &value)),
                Err(error) => self.warnings.push(format!("{}: {error}", path.display())),
            }
        }
    }

    /// A whole file; a missing one is `None`, a large or unreadable one a warning.
    fn bytes(&mut self, path: &Path, most: u64) -> Option<Vec<u8>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    self.warnings.push(format!("{}: {error}", path.display()));
                }
                return None;
            }
        };
        let mut bytes = Vec::new();
        match file.take(most + 1).read_to_end(&mut bytes) {
            Ok(length) if length as u64 <= most => return Some(bytes),
            Ok(_) => self.warnings.push(format!("{}: more than {most} bytes", path.display())),
            Err(error) => self.warnings.push(format!("{}: {error}", path.display())),
        }
        None
    }
}

/// Names in a directory, sorted; empty when there is none.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|e| PathBuf::from(e.file_name()).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn probe(name: String, value: &Value) -> Probe {
    let number = |key: &str, unit: &str| {
        value.get(key).and_then(Value::as_u64).map(|n| format!("{n} {unit}"))
    };
    let about: Vec<_> = [
        number("train_images", "training images"),
        number("val_images", "validation images"),
        number("num_classes", "classes"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let rows = value.get("results").and_then(Value::as_array).into_iter().flatten();
    Probe { name, about: about.join(", "), rows: rows.map(probe_row).collect() }
}

fn probe_row(value: &Value) -> ProbeRow {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let layers = value.get("layers").and_then(Value::as_array).into_iter().flatten();
    let layers: Vec<_> = layers.filter_map(Value::as_u64).collect();
    let accuracy = match value.get("accuracy") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_f64).collect(),
        Some(single) => single.as_f64().into_iter().collect(),
        None => Vec::new(),
    };
    ProbeRow { probe: text("probe"), features: text("features"), layers: ranges(&layers), accuracy }
}

/// `6, 7, 8, 11` as `6-8, 11`.
fn ranges(numbers: &[u64]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some((first, _)) = rest.split_first() {
        let follows = |(i, number): &(usize, &u64)| first.checked_add(*i as u64) == Some(**number);
        let length = rest.iter().enumerate().take_while(follows).count();
        let comma = if text.is_empty() { "" } else { ", " };
        text.push_str(&format!("{comma}{first}"));
        if length > 1 {
            text.push_str(&format!("-{}", first + length as u64 - 1));
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_in_short() {
        assert_eq!(ranges(&[6, 7, 8, 11]), "6-8, 11");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[u64::MAX, 1]), format!("{}, 1", u64::MAX));
        assert_eq!(ranges(&[]), "");
    }
}
