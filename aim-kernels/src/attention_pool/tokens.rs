//! [`Tokens`]: the features of a batch, wherever they lie.

use std::cell::RefCell;

use half::bf16;

/// Features of a batch: one slice `[tokens, dim]` for each image, which need not lie side by side.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// In f32.
    F32(&'a [&'a [f32]]),
    /// In bf16; widened to f32 image by image where they are used.
    Bf16(&'a [&'a [bf16]]),
}

impl<'a> Tokens<'a> {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(images) => images.len(),
            Self::Bf16(images) => images.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the images.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::F32(images) => Self::F32(&images[range]),
            Self::Bf16(images) => Self::Bf16(&images[range]),
        }
    }

    /// Whether every image has `len` values.
    pub(super) fn all_have(&self, len: usize) -> bool {
        match self {
            Self::F32(images) => images.iter().all(|image| image.len() == len),
            Self::Bf16(images) => images.iter().all(|image| image.len() == len),
        }
    }

    /// Calls `f` with one image in f32.
    pub fn with_image<R>(&self, image: usize, f: impl FnOnce(&[f32]) -> R) -> R {
        thread_local! {
            static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        match self {
            Self::F32(images) => f(images[image]),
            Self::Bf16(images) => WIDE.with_borrow_mut(|wide| {
                wide.clear();
                // Not `to_f32`: that one handles NaN apart, and this is a shift that vectorises.
                let widen = |v: &bf16| f32::from_bits(u32::from(v.to_bits()) << 16);
                wide.extend(images[image].iter().map(widen));
                f(wide)
            }),
        }
    }
}
