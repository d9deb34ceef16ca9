//! Peak memory of a loader over so many samples: `loader_memory SPEC SAMPLES [WORKERS]`.
//!
//! `benches/data/memory.sh` compares 1,000 samples with 100,000.
#![allow(clippy::print_stdout, reason = "the output is the purpose")]

use aim_data::augment::Transform;
use aim_data::loader::{Batch, Loader, LoaderOptions, LoaderState};
use aim_data::spec::{OpenOptions, open_mixture};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "loader_memory SPEC SAMPLES [WORKERS]";
    let spec = args.next().ok_or(usage)?;
    let samples: u64 = args.next().ok_or(usage)?.parse()?;
    let workers = args.next().map_or(Ok(2), |text| text.parse())?;
    let mixture = open_mixture(&[spec.as_str()], &OpenOptions::default())?;
    let options = LoaderOptions { workers, ..LoaderOptions::new(50, 224, Transform::train()) };
    let mut loader = Loader::new(mixture, options, LoaderState::new(1))?;
    let mut batch = Batch::default();
    while loader.state().next_sample < samples {
        loader.next_into(&mut batch)?;
    }
    let peak = benches::peak_memory::peak_rss_mib().unwrap_or(f64::NAN);
    println!("{} samples: peak {peak:.1} MiB", loader.state().next_sample);
    Ok(())
}
