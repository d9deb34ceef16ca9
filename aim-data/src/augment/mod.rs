//! Transforms on 8-bit pixels, from a decoded image to its place in a batch.
//!
//! Every random choice comes from an [`AugmentKey`], so that a sample's pixels depend on neither
//! the thread that made them nor what was made before.
//!
//! - [`Transform`]: what is done to every image; [`TrainTransform`] its random form, with
//!   [`RandomResizedCrop`], [`HorizontalFlip`], [`ColorJitter`], [`RandAugment`], [`RandomErasing`]
//! - [`Preprocessor`]: doing it

mod affine;
mod color_jitter;
#[cfg(target_arch = "x86_64")]
mod filter_x86;
mod flip;
mod pixel_ops;
mod rand_augment;
mod random_erasing;
mod random_resized_crop;
mod resample;
mod resize;
mod transform;

use crate::decode::{DecodeError, DecodeLimits, Part};
use crate::error::{Error, Result};
use crate::image::{Image, View, gray_to_rgb};
use crate::random::{Purpose, Rng};

pub use crate::random::AugmentKey;
pub use affine::Interpolation;
pub use color_jitter::ColorJitter;
pub use flip::HorizontalFlip;
pub use rand_augment::{OpSet, POLICY_FORMS, RandAugment};
pub use random_erasing::{EraseMode, RandomErasing};
pub use random_resized_crop::RandomResizedCrop;
pub use resize::ResizeCenterCrop;
pub use transform::{TrainTransform, Transform};

use color_jitter::Changes;
use rand_augment::RandAugmentScratch;
use resize::{Region, Resizer};

/// Largest output side, in pixels.
const MAX_SIDE: u32 = 1 << 13;

/// Applies a [`Transform`] to images, keeping its working memory between them.
pub struct Preprocessor {
    transform: Transform,
    height: u32,
    width: u32,
    resizer: Resizer,
    gray: Vec<u8>,
    scratch: RandAugmentScratch,
    part: Part,
    choice: Option<Choice>,
}

/// What was drawn for an image.
#[derive(Debug, Clone, Copy)]
struct Choice {
    /// What the changes of the finished crop are drawn from, when it is made.
    key: AugmentKey,
    region: Region,
    flip: bool,
    changes: Changes,
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
        Ok(Self {
            transform,
            height,
            width,
            resizer: Resizer::new(),
            gray: Vec::new(),
            scratch: RandAugmentScratch::new(),
            part: Part::default(),
            choice: None,
        })
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
        let choice = self.choose(image.width(), image.height(), key);
        self.write(image.view(), &choice, out)
    }

    /// Decodes an image file, or the part of it that `key` chooses: faster than decoding it and
    /// then [`apply`](Self::apply), with the same pixels in the end. [`render`](Self::render) makes
    /// the output.
    ///
    /// # Errors
    /// A [`DecodeError`] for what [`decode`](crate::decode::decode) refuses; a file broken outside
    /// the part that is used may pass.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        limits: &DecodeLimits,
        key: AugmentKey,
    ) -> Result<(), DecodeError> {
        let mut choice = None;
        let mut part = std::mem::take(&mut self.part);
        let outcome = part.decode(bytes, limits, &mut |width, height| {
            let chosen = self.choose(width, height, key);
            choice = Some(chosen);
            chosen.region.needs((width, height), self.width, self.height)
        });
        self.part = part;
        self.choice = choice.filter(|_| outcome.is_ok());
        outcome
    }

    /// Transforms what was decoded last and writes it as [`apply`](Self::apply) does.
    ///
    /// # Errors
    /// [`Error::Config`] when nothing was decoded, or `out` has a wrong length.
    pub fn render(&mut self, out: &mut [u8]) -> Result<()> {
        let Some(choice) = self.choice else {
            return Err(Error::Config("no image was decoded".into()));
        };
        let part = std::mem::take(&mut self.part);
        let outcome = self.write(part.view(), &choice, out);
        self.part = part;
        outcome
    }

    fn choose(&self, width: u32, height: u32, key: AugmentKey) -> Choice {
        match &self.transform {
            Transform::Train(TrainTransform { crop, flip, color_jitter, .. }) => {
                let mut rng = Rng::new(Purpose::Augment, key);
                // The crop draws first, then the flip, then the colours: a fixed order is part of
                // the definition. What comes after has numbers of its own, so that using it moves
                // no crop.
                let region = crop.sample(width, height, &mut rng);
                let flip = flip.sample(&mut rng);
                Choice { key, region, flip, changes: color_jitter.sample(&mut rng) }
            }
            Transform::Eval(resize) => {
                let region = resize.region(width, height, self.height, self.width);
                Choice { key, region, flip: false, changes: [None; 4] }
            }
        }
    }

    /// Resamples what was chosen of an image, and changes it in the order of [`TrainTransform`].
    fn write(&mut self, image: View<'_>, choice: &Choice, out: &mut [u8]) -> Result<()> {
        let expected = self.output_len();
        if out.len() != expected {
            let found = out.len();
            return Err(Error::Config(format!("output of {found} bytes, expected {expected}")));
        }
        let Self { transform, height, width, resizer, gray, scratch, .. } = self;
        if image.channels == 3 {
            resizer.resize(image, &choice.region, *width, *height, out);
        } else {
            gray.resize(out.len() / 3, 0);
            resizer.resize(image, &choice.region, *width, *height, gray);
            gray_to_rgb(gray, out);
        }
        let width = *width as usize;
        if choice.flip {
            flip::flip_rows(out, width);
        }
        color_jitter::apply(&choice.changes, out);
        if let Transform::Train(TrainTransform { rand_augment, random_erasing, .. }) = transform {
            if let Some(policy) = rand_augment {
                policy.apply(out, width, choice.key, scratch);
            }
            if let Some(erasing) = random_erasing {
                erasing.apply(out, width, &mut Rng::new(Purpose::Erase, choice.key));
            }
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
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct CropBox {
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

#[cfg(test)]
mod tests;
