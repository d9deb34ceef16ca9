//! Transforms on 8-bit pixels, from a decoded image to its place in a batch.
//!
//! Every random choice comes from an [`AugmentKey`], so that a sample's pixels depend on neither
//! the thread that made them nor what was made before.

mod flip;
mod random_resized_crop;
mod resample;
mod resize;

use crate::error::{Error, Result};
use crate::image::{Image, gray_to_rgb};
use crate::random::{Purpose, Rng};

pub use crate::random::AugmentKey;
pub use flip::HorizontalFlip;
pub use random_resized_crop::RandomResizedCrop;
pub use resize::ResizeCenterCrop;

use resize::Resizer;

/// Largest output side, in pixels.
const MAX_SIDE: u32 = 1 << 13;

/// What is done to every image.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Transform {
    /// Random crop, resize and flip: for training.
    Train(RandomResizedCrop, HorizontalFlip),
    /// Resize and centre crop: for validation, probes and features.
    Eval(ResizeCenterCrop),
}

impl Transform {
    /// AIM's training transform: scale 0.4 to 1, ratio 3/4 to 4/3, flip with probability 1/2
    /// (paper, appendix on hyperparameters).
    #[must_use]
    pub fn train() -> Self {
        Self::Train(RandomResizedCrop::default(), HorizontalFlip::default())
    }

    /// The usual evaluation transform: resize to size / 0.875, crop the centre.
    #[must_use]
    pub fn eval() -> Self {
        Self::Eval(ResizeCenterCrop::default())
    }

    fn validate(&self) -> Result<()> {
        match self {
            Self::Train(crop, flip) => crop.validate().and_then(|()| flip.validate()),
            Self::Eval(resize) => resize.validate(),
        }
    }
}

/// Applies a [`Transform`] to images, keeping its working memory between them.
pub struct Preprocessor {
    transform: Transform,
    height: u32,
    width: u32,
    resizer: Resizer,
    gray: Vec<u8>,
}

impl Preprocessor {
    /// A preprocessor with outputs of `height` x `width` pixels.
    ///
    /// # Errors
    /// [`Error::Config`] for a size of 0 or above 8192, or parameters that make no sense.
    pub fn new(transform: Transform, height: u32, width: u32) -> Result<Self> {
        if !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
            let text = format!("image size {height} x {width}: expected 1 to {MAX_SIDE} pixels");
            return Err(Error::Config(text));
        }
        transform.validate()?;
        Ok(Self { transform, height, width, resizer: Resizer::new(), gray: Vec::new() })
    }

    /// Bytes of one output: height x width x 3.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.height as usize * self.width as usize * 3
    }

    /// Transforms an image and writes it as RGB `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::Config`] when `out` has another length than [`output_len`](Self::output_len).
    pub fn apply(&mut self, image: &Image, key: AugmentKey, out: &mut [u8]) -> Result<()> {
        if out.len() != self.output_len() {
            let (found, expected) = (out.len(), self.output_len());
            return Err(Error::Config(format!("output of {found} bytes, expected {expected}")));
        }
        let (region, flip) = match &self.transform {
            Transform::Train(crop, flip) => {
                let mut rng = Rng::new(Purpose::Augment, key);
                // The crop draws first, then the flip: a fixed order is part of the definition.
                let region = crop.sample(image.width(), image.height(), &mut rng);
                (region, flip.sample(&mut rng))
            }
            Transform::Eval(resize) => {
                (resize.region(image.width(), image.height(), self.height, self.width), false)
            }
        };
        if image.channels() == 3 {
            self.resizer.resize(image, &region, self.width, self.height, out);
        } else {
            self.gray.resize(out.len() / 3, 0);
            self.resizer.resize(image, &region, self.width, self.height, &mut self.gray);
            gray_to_rgb(&self.gray, out);
        }
        if flip {
            flip::flip_rows(out, self.width as usize);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Preprocessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { transform, height, width, .. } = self;
        write!(f, "Preprocessor({transform:?} to {height} x {width})")
    }
}

/// Which part of an image is resampled to the output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CropBox {
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

#[cfg(test)]
mod tests;
