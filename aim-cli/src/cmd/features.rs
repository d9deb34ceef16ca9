//! `aim-cli features`: block outputs of images, in the order of the data.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use aim_tensor::io::npy;
use aim_tensor::io::safetensors::{self, TensorRef};
use aim_train::probe::features::for_each_batch;
use anyhow::{Context as _, Result};

use super::Usage;
use crate::args::{Features, Pool};
use crate::progress::{Pace, Progress, note, warn};
use crate::weights::{Weights, open_device, parse_layers};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Npy,
}

pub(crate) fn run(args: &Features, quiet: bool) -> Result<()> {
    let device = open_device(args.device.device, quiet)?;
    let format = match args.out.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => Format::Safetensors,
        Some("npy") => Format::Npy,
        _ => {
            return Err(Usage(format!(
                "--out {}: expected .safetensors or .npy",
                args.out.display()
            ))
            .into());
        }
    };
    let weights = Weights::open(&args.checkpoint)?;
    let layers = parse_layers(&args.layers, weights.config.num_blocks)?;
    if format == Format::Npy && layers.len() != 1 {
        return Err(Usage(
            "a .npy file holds one layer: choose one with --layers, or .safetensors".into(),
        )
        .into());
    }
    let source = aim_data::spec::open(&args.data)?;
    let options = weights.image_options(args.batch_size as usize);
    let mut extractor = weights.extractor(&layers, None, &device)?;
    let dim = weights.config.embed_dim;
    let mut columns: Vec<Vec<f32>> = vec![Vec::new(); layers.len()];
    let (mut images, mut tokens) = (0, 1);
    let mut progress =
        Progress::new(quiet, "features", source.len(), Pace::Every(Duration::from_secs(10)));
    let result = for_each_batch(
        &source,
        &options,
        &mut |done, _| progress.update(done, String::new),
        &mut |skipped| warn(&format!("left out: {}", skipped.defect)),
        |batch, kind, pixels| {
            extractor.run(kind, pixels)?;
            images += batch.len();
            if args.pool == Pool::None {
                tokens = extractor.tokens();
            }
            for (i, column) in columns.iter_mut().enumerate() {
                append(column, &extractor.layer(i)?, extractor.tokens(), dim, args.pool);
            }
            Ok(())
        },
    );
    progress.finish();
    result?;
    let shape: Vec<usize> = match args.pool {
        Pool::None => vec![images, tokens, dim],
        Pool::Mean => vec![images, dim],
    };
    match format {
        Format::Safetensors => {
            let names: Vec<String> = layers.iter().map(|layer| format!("block_{layer}")).collect();
            let tensors: Vec<_> = names
                .iter()
                .zip(&columns)
                .map(|(name, values)| TensorRef::f32(name, &shape, values))
                .collect();
            safetensors::write_file(&args.out, &tensors, &Default::default())
                .map_err(aim_tensor::TensorError::from)?;
        }
        Format::Npy => write_npy(&args.out, &shape, &columns[0])
            .with_context(|| format!("cannot write {}", args.out.display()))?,
    }
    note(quiet, &format!("{images} images of shape {shape:?} in {}", args.out.display()));
    Ok(())
}

fn append(column: &mut Vec<f32>, values: &[f32], tokens: usize, dim: usize, pool: Pool) {
    match pool {
        Pool::None => column.extend_from_slice(values),
        Pool::Mean => {
            for image in values.chunks_exact(tokens * dim) {
                let at = column.len();
                column.resize(at + dim, 0.0);
                for token in image.chunks_exact(dim) {
                    column[at..]
                        .iter_mut()
                        .zip(token)
                        .for_each(|(sum, v)| *sum += v / tokens as f32);
                }
            }
        }
    }
}

fn write_npy(path: &Path, shape: &[usize], values: &[f32]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    npy::write_f32(&mut file, shape, values)?;
    file.flush()
}
