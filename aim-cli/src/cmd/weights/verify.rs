//! `aim-cli weights verify`.

use aim_model::weights::released;
use aim_model::weights::verify::{self, Statistics};
use aim_tensor::io::TensorSource as _;
use anyhow::{Result, bail};
use serde::Serialize;

use super::published::{self, Hashed};
use crate::args::WeightsVerify;
use crate::progress::{Pace, Progress, note, warn};
use crate::stdout;
use crate::table::{Table, thousands};
use crate::weights::Weights;

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    /// The paper's size, if it is one.
    model: Option<&'static str>,
    config: aim_model::AimConfig,
    probe_layers: Option<Vec<usize>>,
    parameters: u64,
    tensors: Vec<Row>,
    missing: Vec<String>,
    extra: Vec<String>,
    misshapen: Vec<Misshapen>,
    non_finite: usize,
    published: Vec<Hashed>,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    mean: f64,
    std: f64,
    min: f64,
    max: f64,
    non_finite: usize,
}

#[derive(Debug, Serialize)]
struct Misshapen {
    name: String,
    expected: String,
    found: String,
}

pub(super) fn run(args: &WeightsVerify, quiet: bool) -> Result<()> {
    let weights = Weights::open(&args.path)?;
    weights.announce(quiet);
    let file = &weights.file;
    let published = published::check(file.files(), quiet)?;
    let names: Vec<&str> = file.names().collect();
    let every = Pace::Every(std::time::Duration::from_secs(5));
    let mut progress = Progress::new(quiet, "tensors", names.len() as u64, every);
    let (mut rows, mut buffer) = (Vec::with_capacity(names.len()), Vec::new());
    for (at, name) in names.iter().enumerate() {
        let Statistics { mean, std, min, max, non_finite, .. } =
            verify::statistics(file, name, &mut buffer)?;
        rows.push(Row {
            name: (*name).to_owned(),
            dtype: file.dtype(name).map(|dtype| dtype.to_string()).unwrap_or_default(),
            shape: file.shape(name).unwrap_or_default().to_vec(),
            mean,
            std,
            min,
            max,
            non_finite,
        });
        progress.update(at as u64 + 1, String::new);
    }
    progress.finish();
    let coverage = verify::coverage(file);
    let non_finite = rows.iter().map(|row| row.non_finite).sum();
    let misshapen: Vec<_> = coverage
        .misshapen
        .into_iter()
        .map(|(name, expected, found)| Misshapen { name, expected, found })
        .collect();
    let report = Report {
        path: args.path.display().to_string(),
        model: released::known_size(&weights.config),
        config: weights.config.clone(),
        probe_layers: file.probe_layers(),
        parameters: rows.iter().map(|row| row.shape.iter().product::<usize>() as u64).sum(),
        ok: coverage.missing.is_empty() && misshapen.is_empty() && non_finite == 0,
        tensors: rows,
        missing: coverage.missing,
        extra: coverage.extra,
        misshapen,
        non_finite,
        published,
    };
    if args.json {
        stdout::print_json(&report)?;
    } else {
        stdout::print(&report.table())?;
    }
    report.conclude(quiet)
}

impl Report {
    fn table(&self) -> String {
        let mut table = Table::new(&[
            "tensor",
            "type",
            "shape",
            ">mean",
            ">std",
            ">min",
            ">max",
            ">not finite",
        ]);
        for row in &self.tensors {
            table.row([
                row.name.clone(),
                row.dtype.clone(),
                format!("{:?}", row.shape),
                format!("{:.3e}", row.mean),
                format!("{:.3e}", row.std),
                format!("{:.3e}", row.min),
                format!("{:.3e}", row.max),
                row.non_finite.to_string(),
            ]);
        }
        table.to_string()
    }

    /// Says what was found; an error if the weights cannot be used.
    fn conclude(&self, quiet: bool) -> Result<()> {
        for hashed in &self.published {
            note(quiet, &hashed.to_string());
        }
        for name in &self.extra {
            warn(&format!("tensor {name} is not part of the model"));
        }
        for name in &self.missing {
            warn(&format!("tensor {name} is missing"));
        }
        for Misshapen { name, expected, found } in &self.misshapen {
            warn(&format!("tensor {name}: expected {expected}, found {found}"));
        }
        if !self.ok {
            bail!(
                "{}: {} tensors missing, {} of another shape, {} elements not finite",
                self.path,
                self.missing.len(),
                self.misshapen.len(),
                self.non_finite
            );
        }
        let model = self.model.unwrap_or("a size without a name");
        let (count, tensors) = (thousands(self.parameters), self.tensors.len());
        note(quiet, &format!("{model}: {count} values in {tensors} tensors, complete and finite"));
        Ok(())
    }
}
