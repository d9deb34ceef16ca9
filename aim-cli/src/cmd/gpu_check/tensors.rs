//! Attention's inputs and results as files, for a comparison with other programs on the same numbers.
//!
//! bf16 values are written as the 16 bits that they are, `<u2`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use aim_kernels::cast::split;
use aim_kernels::cuda::DeviceArena;
use aim_kernels::prefix_attention::{PrefixAttention, cuda};
use aim_model::AimConfig;
use aim_tensor::Philox;
use aim_tensor::io::npy;
use anyhow::{Context as _, Result};

use super::Context;
use super::bench::sizes;
use super::record::{Record, Tensor};

/// Random values that are made; longer tensors repeat them, which no two tokens of a head notice.
const BLOCK: usize = (1 << 22) - 3;

pub(super) fn run(context: &Context, preset: &str) -> Result<()> {
    let out = context.out.as_deref().context("tensors need --out")?;
    let config = AimConfig::preset(preset)?;
    let (batch, tokens, heads) = (context.batch, config.num_patches(), config.num_heads);
    let shape = PrefixAttention { batch, tokens, heads, head_dim: config.head_dim() };
    let (one, all) = (batch * tokens * shape.dim(), 3 * batch * tokens * shape.dim());
    let (qkv, dout) = (normal(context.seed, "qkv", all), normal(context.seed, "dout", one));
    let prefix = sizes(preset, batch)?.prefix;

    let gpu = &context.gpu;
    let arena = |values: usize| DeviceArena::new(gpu, values, "attention's tensors");
    let (big, small) = (arena(2 * 2 * all)?, arena(2 * 2 * one)?);
    let rows = batch * heads * tokens;
    let extra = arena(4 * (batch + rows + cuda::backward_scratch(shape)))?;
    let bits = |arena: &DeviceArena, values: &[u16]| {
        arena.slice::<u16>(0, values.len()).upload(gpu, values)
    };
    bits(&big, &qkv)?;
    bits(&small, &dout)?;
    extra.slice::<i32>(0, batch).upload(gpu, &prefix)?;
    let floats = extra.slice::<f32>(4 * batch, rows + cuda::backward_scratch(shape));
    let (lse, scratch) = (floats.range(0..rows), floats.range(rows..floats.len()));
    let (x, dx) = (big.slice(0, all), big.slice(2 * all, all));
    let (dy, y) = (small.slice(0, one), small.slice(2 * one, one));
    let on_device = extra.slice(0, batch);
    cuda::forward(gpu, shape, x, on_device, y, lse)?;
    cuda::backward(gpu, shape, x, on_device, y, lse, dy, dx, false, scratch)?;

    let read = |arena: &DeviceArena, len: usize| -> Result<Vec<u16>> {
        let mut values = vec![0; len];
        arena.slice::<u16>(2 * len, len).download(gpu, &mut values)?;
        Ok(values)
    };
    let packed = [batch, tokens, 3, heads, shape.head_dim];
    let single = [batch, tokens, heads, shape.head_dim];
    for (name, shape, values) in [
        ("qkv", &packed[..], &qkv),
        ("dout", &single[..], &dout),
        ("out", &single[..], &read(&small, one)?),
        ("dqkv", &packed[..], &read(&big, all)?),
    ] {
        let file = format!("attention-{preset}-{name}.npy");
        write(&out.join(&file), shape, values)?;
        tell(context, preset, name, file, shape)?;
    }
    let file = format!("attention-{preset}-prefix.npy");
    let path = out.join(&file);
    let values: Vec<i64> = prefix.iter().map(|&s| s.into()).collect();
    let mut to = File::create(&path).with_context(|| path.display().to_string())?;
    npy::write_i64(&mut to, &[batch], &values).with_context(|| path.display().to_string())?;
    tell(context, preset, "prefix", file, &[batch])
}

fn tell(context: &Context, size: &str, name: &str, file: String, shape: &[usize]) -> Result<()> {
    let (size, name) = (size.to_owned(), name.to_owned());
    context.emit(Record::Tensor(Tensor { size, name, file, shape: shape.to_vec() }))
}

/// Normal values as the bits of the nearest bf16.
fn normal(seed: u64, what: &str, len: usize) -> Vec<u16> {
    let mut block = vec![0.0; BLOCK.min(len)];
    Philox::new(seed, what).fill_normal(1.0, &mut block);
    block.iter().map(|&value| split(value).0.to_bits()).cycle().take(len).collect()
}

/// Writes 16-bit words as NumPy's `.npy`.
fn write(path: &Path, shape: &[usize], values: &[u16]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut to = BufWriter::new(File::create(path).with_context(failed)?);
    to.write_all(&header(shape)).with_context(failed)?;
    for chunk in values.chunks(1 << 16) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        to.write_all(&bytes).with_context(failed)?;
    }
    to.flush().with_context(failed)
}

/// The header of an f32 array with the type, a word of the same length, changed.
fn header(shape: &[usize]) -> Vec<u8> {
    let mut header = npy::header(npy::Descr::F32, shape);
    if let Some(at) = header.windows(3).position(|word| word == b"<f4") {
        header[at..at + 3].copy_from_slice(b"<u2");
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        write(&path, &[2, 3], &[0, 1, 0x3f80, 0xffff, 4, 5]).unwrap();
        let read = npy::read(&path).unwrap();
        assert_eq!(read.shape, [2, 3]);
        assert_eq!(read.data, npy::NpyData::I64(vec![0, 1, 0x3f80, 0xffff, 4, 5]));
        let values = normal(1, "x", BLOCK + 2);
        assert_eq!((values.len(), values[BLOCK]), (BLOCK + 2, values[0]));
    }
}
