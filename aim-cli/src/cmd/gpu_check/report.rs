//! What was found, as tables and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::record::{Check, Line, Record, Step, Timing};
use crate::args::GpuCheck;
use crate::table::{Table, bytes};

/// A unit that is over.
struct Part {
    unit: String,
    seconds: f64,
    error: Option<String>,
}

/// All that was heard.
pub(super) struct Report {
    facts: Map<String, Value>,
    parts: Vec<Part>,
    records: Vec<Record>,
}

impl Report {
    pub(super) fn new(args: &GpuCheck, mut facts: Map<String, Value>) -> Self {
        facts.insert("seed".to_owned(), args.seed.into());
        facts.insert("quick".to_owned(), args.quick.into());
        facts.insert("batch".to_owned(), super::batch(args).into());
        Self { facts, parts: Vec::new(), records: Vec::new() }
    }

    pub(super) fn hear(&mut self, line: Line) {
        match line {
            Line::Record { record } => self.records.push(record),
            Line::End { unit, seconds, error } => self.parts.push(Part { unit, seconds, error }),
            Line::Begin { .. } | Line::Fatal { .. } => {}
        }
    }

    /// The machine in a line.
    pub(super) fn heading(&self) -> String {
        let fact = |name: &str| self.facts.get(name).unwrap_or(&Value::Null);
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let version = |name: &str| match fact(name).get("version") {
            Some(version) => text(version),
            None => "missing".to_owned(),
        };
        format!(
            "{}, {}, compute capability {}; driver {} (CUDA {}), cuBLASLt {}, NVRTC {}; seed {}",
            text(fact("device")),
            bytes(fact("memory_bytes").as_u64().unwrap_or(0)),
            text(fact("compute_capability")),
            text(fact("driver_release")),
            version("driver"),
            version("cublaslt"),
            version("nvrtc"),
            fact("seed"),
        )
    }

    fn checks(&self) -> impl Iterator<Item = &Check> {
        self.records.iter().filter_map(|record| match record {
            Record::Check(check) => Some(check),
            _ => None,
        })
    }

    fn timings<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Timing> {
        self.records.iter().filter_map(move |record| match record {
            Record::Timing(timing) if timing.group == group => Some(timing),
            _ => None,
        })
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.records.iter().filter_map(|record| match record {
            Record::Step(step) => Some(step),
            _ => None,
        })
    }

    /// How many checks and units there were.
    pub(super) fn judged(&self) -> usize {
        self.checks().count() + self.parts.len()
    }

    /// What failed, in words.
    pub(super) fn failures(&self) -> Vec<String> {
        let checks = self.checks().filter(|check| !check.passed()).map(|check| {
            let Check { group, name, error, tolerance } = check;
            let error = error.map_or_else(|| "NaN".to_owned(), |error| format!("{error:.2e}"));
            format!("{group}: {name} ({error}, allowed {tolerance:.1e})")
        });
        let parts = self.parts.iter().filter_map(|Part { unit, error, .. }| {
            error.as_ref().map(|error| format!("{unit}: {error}"))
        });
        checks.chain(parts).collect()
    }

    /// Rewrites the JSON file, so that it is whole whenever this process ends.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let parts: Vec<_> = self
            .parts
            .iter()
            .map(|Part { unit, seconds, error }| {
                json!({ "unit": unit, "seconds": seconds, "error": error })
            })
            .collect();
        let all = json!({
            "format": 1, "machine": self.facts, "failures": self.failures(), "parts": parts,
            "records": self.records,
        });
        let new = file.with_extension("json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(&all)?)
            .and_then(|()| std::fs::rename(&new, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The tables.
    pub(super) fn text(&self) -> String {
        let seconds: f64 = self.parts.iter().map(|part| part.seconds).sum();
        let mut sections = vec![self.heading()];
        let notes = self.records.iter().filter_map(|record| match record {
            Record::Note { text } => Some(format!("note: {text}")),
            _ => None,
        });
        sections.extend(notes);
        sections.extend(self.check_table());
        sections.extend(self.rate_lines());
        sections.extend(self.kernel_table());
        sections.extend(self.attention_table());
        sections.extend(self.product_table());
        sections.extend(self.gelu_table());
        sections.extend(self.step_table());
        let failures = self.failures();
        sections.extend(failures.iter().map(|failure| format!("FAILED {failure}")));
        sections.push(format!(
            "{} of {} checks and parts passed, {seconds:.0} s",
            self.judged() - failures.len(),
            self.judged()
        ));
        sections.iter().map(|section| format!("{}\n", section.trim_end())).collect()
    }

    /// One row for each group of checks: how many, and the one that uses most of its tolerance.
    fn check_table(&self) -> Option<String> {
        let mut groups: Vec<(&str, Vec<&Check>)> = Vec::new();
        for check in self.checks() {
            match groups.iter_mut().find(|(group, _)| *group == check.group) {
                Some((_, checks)) => checks.push(check),
                None => groups.push((&check.group, vec![check])),
            }
        }
        let mut table =
            Table::new(&["checks", ">number", ">failed", ">error", ">allowed", "worst"]);
        for (group, checks) in &groups {
            let failed = checks.iter().filter(|check| !check.passed()).count();
            let worst = checks.iter().max_by(|a, b| a.used().total_cmp(&b.used()))?;
            let error =
                worst.error.map_or_else(|| "NaN".to_owned(), |error| format!("{error:.1e}"));
            let cells = [checks.len().to_string(), failed.to_string(), error];
            let more = [format!("{:.1e}", worst.tolerance), worst.name.clone()];
            table.row(std::iter::once((*group).to_owned()).chain(cells).chain(more));
        }
        (!groups.is_empty()).then(|| format!("\n{table}"))
    }

    /// GB/s of a copy, TFLOP/s of the square product; NaN if not measured.
    fn rates(&self) -> (f64, f64) {
        let find = |name: &str| self.timings("rates").find(|timing| timing.name.starts_with(name));
        (
            find("copy").map_or(f64::NAN, Timing::gb_per_s),
            find("cube").map_or(f64::NAN, Timing::tflop_per_s),
        )
    }

    fn rate_lines(&self) -> Option<String> {
        let lines: Vec<String> = self
            .timings("rates")
            .map(|timing| match timing.flops {
                0.0 => format!(
                    "copy of {}: {:.0} GB/s, read and written",
                    timing.shape,
                    timing.gb_per_s()
                ),
                _ => format!("product {}: {:.1} TFLOP/s", timing.shape, timing.tflop_per_s()),
            })
            .collect();
        (!lines.is_empty()).then(|| format!("\n{}", lines.join("\n")))
    }

    /// A table of a row a name and a column a size.
    fn by_size<'a>(
        &self,
        title: &str,
        timings: impl Iterator<Item = &'a Timing>,
        cell: impl Fn(&Timing) -> String,
    ) -> Option<String> {
        let mut sizes: Vec<&str> = Vec::new();
        let mut rows: Vec<(&str, BTreeMap<usize, String>)> = Vec::new();
        for timing in timings {
            let column = sizes.iter().position(|size| *size == timing.size).unwrap_or(sizes.len());
            if column == sizes.len() {
                sizes.push(&timing.size);
            }
            if !rows.iter().any(|(name, _)| *name == timing.name) {
                rows.push((&timing.name, BTreeMap::new()));
            }
            if let Some((_, cells)) = rows.iter_mut().find(|(name, _)| *name == timing.name) {
                cells.insert(column, cell(timing));
            }
        }
        let columns: Vec<String> = sizes.iter().map(|size| format!(">{size}")).collect();
        let names = std::iter::once(title).chain(columns.iter().map(String::as_str));
        let mut table = Table::new(&names.collect::<Vec<_>>());
        for (name, cells) in &rows {
            let cells = (0..sizes.len()).map(|i| cells.get(&i).cloned().unwrap_or_default());
            table.row(std::iter::once((*name).to_owned()).chain(cells));
        }
        (!rows.is_empty()).then(|| format!("\n{table}"))
    }

    fn kernel_table(&self) -> Option<String> {
        let (copy, _) = self.rates();
        let timings = self.timings("kernels").filter(|timing| timing.flops == 0.0);
        self.by_size("us, share of the copy", timings, |timing| {
            format!("{} {:>3.0}%", micros(timing.median_s), 100.0 * timing.gb_per_s() / copy)
        })
    }

    fn attention_table(&self) -> Option<String> {
        let timings = self.timings("kernels").filter(|timing| timing.flops > 0.0);
        self.by_size("us, TFLOP/s visible, dense", timings, |timing| {
            let dense = timing.dense_flops / timing.median_s * 1e-12;
            format!("{} {:.0} {dense:.0}", micros(timing.median_s), timing.tflop_per_s())
        })
    }

    fn product_table(&self) -> Option<String> {
        let (_, cube) = self.rates();
        self.by_size("TFLOP/s, share of the cube", self.timings("products"), |timing| {
            format!("{:.0} {:>3.0}%", timing.tflop_per_s(), 100.0 * timing.tflop_per_s() / cube)
        })
    }

    /// The exact GELU as a kernel of its own against the tanh form in the product's epilogue.
    fn gelu_table(&self) -> Option<String> {
        let mut table = Table::new(&[
            "GELU",
            "size",
            ">product us",
            ">erf kernel us",
            ">fused tanh us",
            ">ratio",
        ]);
        let mut rows = 0;
        for fused in self.timings("products").filter(|timing| timing.name.ends_with("_gelu")) {
            let plain = fused.name.trim_end_matches("_gelu");
            let kernel = if plain.ends_with("forward") { "gelu/forward" } else { "gelu/backward" };
            let product = self
                .timings("products")
                .find(|timing| timing.size == fused.size && timing.name == plain);
            let kernel = self
                .timings("kernels")
                .find(|timing| timing.size == fused.size && timing.name == kernel);
            let (Some(product), Some(kernel)) = (product, kernel) else { continue };
            let apart = product.median_s + kernel.median_s;
            table.row([
                plain.to_owned(),
                fused.size.clone(),
                micros(product.median_s),
                micros(kernel.median_s),
                micros(fused.median_s),
                format!("{:.2}", fused.median_s / apart),
            ]);
            rows += 1;
        }
        (rows > 0).then(|| format!("\n{table}"))
    }

    fn step_table(&self) -> Option<String> {
        let (_, cube) = self.rates();
        let columns =
            ["step", ">batch", ">ms", ">images/s", ">TFLOP/s", ">of cube", ">GiB", "memory"];
        let mut table = Table::new(&columns);
        for step in self.steps() {
            let rate = step.flops / step.median_s * 1e-12;
            let all = step.parameter_bytes + step.moment_bytes + step.step_bytes;
            let gib = |bytes: usize| format!("{:.1}", bytes as f64 / (1u64 << 30) as f64);
            let state = [
                ("masters and gradients".to_owned(), step.parameter_bytes),
                ("moments".to_owned(), step.moment_bytes),
            ];
            let memory = state.iter().chain(&step.by_category).filter(|(_, bytes)| *bytes > 0);
            let memory: Vec<_> =
                memory.map(|(name, bytes)| format!("{name} {}", gib(*bytes))).collect();
            table.row([
                step.preset.clone(),
                format!("{}{}", step.batch, if step.largest { " (largest)" } else { "" }),
                format!("{:.1}", step.median_s * 1e3),
                format!("{:.1}", step.batch as f64 / step.median_s),
                format!("{rate:.0}"),
                format!("{:.0}%", 100.0 * rate / cube),
                gib(all),
                memory.join(", "),
            ]);
        }
        self.steps().next().map(|_| format!("\n{table}"))
    }
}

fn micros(seconds: f64) -> String {
    let micros = seconds * 1e6;
    if micros < 100.0 { format!("{micros:.1}") } else { format!("{micros:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(group: &str, size: &str, name: &str, median_s: f64) -> Record {
        Record::Timing(Timing {
            group: group.into(),
            size: size.into(),
            name: name.into(),
            shape: "2 x 3".into(),
            median_s,
            p10_s: median_s,
            p90_s: median_s,
            samples: 30,
            bytes: 1e6,
            flops: if group == "products" { 1e9 } else { 0.0 },
            dense_flops: 0.0,
        })
    }

    fn report(records: Vec<Record>) -> Report {
        Report { facts: Map::new(), parts: Vec::new(), records }
    }

    #[test]
    fn a_row_a_name_and_a_column_a_size() {
        let report = report(vec![
            timing("rates", "", "copy", 1e-6),
            timing("kernels", "a", "gelu/forward", 2e-6),
            timing("kernels", "b", "gelu/forward", 4e-6),
            timing("products", "b", "fc1/forward", 4e-6),
            timing("products", "b", "fc1/forward_gelu", 6e-6),
        ]);
        let kernels = report.kernel_table().unwrap();
        let row = kernels.lines().find(|line| line.starts_with("gelu/forward")).unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells, ["gelu/forward", "2.0", "50%", "4.0", "25%"]);
        let gelu = report.gelu_table().unwrap();
        assert!(gelu.contains("fc1/forward") && gelu.contains("0.75"), "{gelu}");
        assert!(report.step_table().is_none());
    }

    #[test]
    fn failures_are_named() {
        let mut report = report(vec![
            Record::Check(Check::new("gelu", "forward", 1e-3, 4e-3)),
            Record::Check(Check::new("gelu", "backward", f64::NAN, 4e-3)),
        ]);
        report.hear(Line::End { unit: "bench/x".into(), seconds: 1.0, error: Some("gone".into()) });
        let failures = report.failures();
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[0].contains("backward") && failures[1] == "bench/x: gone");
        let text = report.text();
        assert!(text.contains("1 of 3 checks and parts passed"), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("gelu") && line.contains("NaN")),
            "{text}"
        );
    }
}
