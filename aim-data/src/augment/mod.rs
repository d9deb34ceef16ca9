//! Transforms on 8-bit pixels, from a decoded image to its place in a batch.
//!
//! Every random choice comes from an [`AugmentKey`], so that a sample's pixels depend on neither
//! the thread that made them nor what was made before.

mod color_jitter;
#[cfg(target_arch = "x86_64")]
mod filter_x86;
mod flip;
mod random_resized_crop;
mod resample;
mod resize;

use crate::decode::{DecodeError, DecodeLimits, Part};
use crate::error::{Error, Result};
use crate::image::{Image, View, gray_to_rgb};
use crate::random::{Purpose, Rng};

pub use crate::random::AugmentKey;
pub use color_jitter::ColorJitter;
pub use flip::HorizontalFlip;
pub use random_resized_crop::RandomResizedCrop;
pub use resize::ResizeCenterCrop;

use color_jitter::Changes;
use resize::{Region, Resizer};

/// Largest output side, in pixels.
const MAX_SIDE: u32 = 1 << 13;

/// What is done to every image.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Transform {
    /// Random crop, resize, flip and changes of colour: for training.
    Train(RandomResizedCrop, HorizontalFlip, ColorJitter),
    /// Resize and centre crop: for validation, probes and features.
    Eval(ResizeCenterCrop),
}

impl Transform {
    /// AIM's training transform: scale 0.4 to 1, ratio 3/4 to 4/3, flip with probability 1/2
    /// (paper, appendix on hyperparameters), colours as they are.
    #[must_use]
    pub fn train() -> Self {
        Self::Train(RandomResizedCrop::default(), HorizontalFlip::default(), ColorJitter::default())
    }

    /// The usual evaluation transform: resize to size / 0.875, crop the centre.
    #[must_use]
    pub fn eval() -> Self {
        Self::Eval(ResizeCenterCrop::default())
    }

    fn validate(&self) -> Result<()> {
        match self {
            Self::Train(crop, flip, jitter) => {
                crop.validate()?;
                flip.validate()?;
                jitter.validate()
            }
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
    part: Part,
    choice: Option<Choice>,
}

/// What was drawn for an image.
#[derive(Debug, Clone, Copy)]
struct Choice {
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
        let Self { height, width, resizer, gray, .. } = self;
        write(image.view(), choice, (*width, *height), resizer, gray, out)
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
        let Self { height, width, resizer, gray, part, .. } = self;
        write(part.view(), choice, (*width, *height), resizer, gray, out)
    }

    fn choose(&self, width: u32, height: u32, key: AugmentKey) -> Choice {
        match &self.transform {
            Transform::Train(crop, flip, jitter) => {
                let mut rng = Rng::new(Purpose::Augment, key);
                // The crop draws first, then the flip, then the colours: a fixed order is part of
                // the definition.
                let region = crop.sample(width, height, &mut rng);
                let flip = flip.sample(&mut rng);
                Choice { region, flip, changes: jitter.sample(&mut rng) }
            }
            Transform::Eval(resize) => {
                let region = resize.region(width, height, self.height, self.width);
                Choice { region, flip: false, changes: [None; 4] }
            }
        }
    }
}

/// Resamples what was chosen of an image, and flips it.
fn write(
    image: View<'_>,
    choice: Choice,
    (width, height): (u32, u32),
    resizer: &mut Resizer,
    gray: &mut Vec<u8>,
    out: &mut [u8],
) -> Result<()> {
    let expected = height as usize * width as usize * 3;
    if out.len() != expected {
        let found = out.len();
        return Err(Error::Config(format!("output of {found} bytes, expected {expected}")));
    }
    if image.channels == 3 {
        resizer.resize(image, &choice.region, width, height, out);
    } else {
        gray.resize(out.len() / 3, 0);
        resizer.resize(image, &choice.region, width, height, gray);
        gray_to_rgb(gray, out);
    }
    if choice.flip {
        flip::flip_rows(out, width as usize);
    }
    color_jitter::apply(&choice.changes, out);
    Ok(())
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
