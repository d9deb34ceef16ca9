//! [`View`]: features of a store as classifiers train on them.

use std::sync::{Mutex, PoisonError};

use aim_kernels::attention_pool::Tokens;
use aim_kernels::cpu::pool;
use half::bf16;

use super::{Data, FeatureDtype, FeatureStore, read_at};
use crate::error::TrainError;
use crate::probe::features::Features;

/// The mean of some blocks of a store. A single block in memory is used where it is.
pub struct View<'a> {
    store: &'a FeatureStore,
    blocks: Vec<usize>,
    wide: Vec<f32>,
    narrow: Vec<bf16>,
}

impl<'a> View<'a> {
    pub(super) fn new(store: &'a FeatureStore, blocks: Vec<usize>) -> Self {
        Self { store, blocks, wide: Vec::new(), narrow: Vec::new() }
    }

    /// Index of each image in its source.
    pub fn indices(&self) -> &[u32] {
        &self.store.indices
    }
}

impl Features for View<'_> {
    fn labels(&self) -> &[i32] {
        &self.store.labels
    }

    fn tokens(&self) -> usize {
        self.store.shape.tokens
    }

    fn dim(&self) -> usize {
        self.store.shape.dim
    }

    fn batch(
        &mut self,
        images: &[u32],
        f: &mut dyn FnMut(Tokens<'_>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let (store, stride) = (self.store, self.store.shape.stride());
        if let &[block] = &self.blocks[..] {
            let start = |image: &u32| store.start(*image as usize, block);
            match &store.data {
                Data::Fp32(values) => {
                    let slices: Vec<&[f32]> =
                        images.iter().map(|image| &values[start(image)..][..stride]).collect();
                    return f(Tokens::F32(&slices));
                }
                Data::Bf16(values) => {
                    let slices: Vec<&[bf16]> =
                        images.iter().map(|image| &values[start(image)..][..stride]).collect();
                    return f(Tokens::Bf16(&slices));
                }
                Data::File(file, path) if store.shape.dtype == FeatureDtype::Bf16 => {
                    self.narrow.resize(images.len() * stride, bf16::ZERO);
                    each_image(&mut self.narrow, stride, |i, narrow| {
                        let bytes = bytemuck::cast_slice_mut(narrow);
                        read_at(file, path, bytes, 2 * start(&images[i]) as u64)
                    })?;
                    let slices: Vec<&[bf16]> = self.narrow.chunks_exact(stride).collect();
                    return f(Tokens::Bf16(&slices));
                }
                Data::File(..) => {}
            }
        }
        self.wide.resize(images.len() * stride, 0.0);
        let blocks = &self.blocks;
        each_image(&mut self.wide, stride, |i, mean| {
            let image = images[i] as usize;
            if let &[block] = &blocks[..] {
                return store.read_wide(image, block, mean);
            }
            // The order and the arithmetic of the extractor's own mean: a window of a sweep has the features of a run
            // with these layers.
            let share = 1.0 / blocks.len() as f32;
            let mut one = vec![0.0; stride];
            mean.fill(0.0);
            for &block in blocks {
                store.read_wide(image, block, &mut one)?;
                mean.iter_mut().zip(&one).for_each(|(sum, v)| *sum += share * v);
            }
            Ok(())
        })?;
        let slices: Vec<&[f32]> = self.wide.chunks_exact(stride).collect();
        f(Tokens::F32(&slices))
    }
}

/// Fills each image's values on the kernels' threads; the first error of the lowest image.
fn each_image<T: Send>(
    values: &mut [T],
    stride: usize,
    fill: impl Fn(usize, &mut [T]) -> Result<(), TrainError> + Sync,
) -> Result<(), TrainError> {
    let failed: Mutex<Option<(usize, TrainError)>> = Mutex::new(None);
    pool::for_each_chunk(values, stride, |image, values| {
        if let Err(error) = fill(image, values) {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.as_ref().is_none_or(|(first, _)| image < *first) {
                *failed = Some((image, error));
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}
