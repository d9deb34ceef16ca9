//! [`Transform`]: all that is done to an image, as one value.

use super::{
    ColorJitter, HorizontalFlip, RandAugment, RandomErasing, RandomResizedCrop, ResizeCenterCrop,
};
use crate::error::Result;

/// What is done to every image.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "there is one in a loader, and it is read by value")]
pub enum Transform {
    /// Random crop, resize, flip and changes of colour: for training.
    Train(TrainTransform),
    /// Resize and centre crop: for validation, probes and features.
    Eval(ResizeCenterCrop),
}

/// The parts of a random transform, in the order in which they are done.
///
/// The default is AIM's for pre-training: scale 0.4 to 1, ratio 3/4 to 4/3, flip with probability
/// 1/2 (paper, appendix on hyperparameters), colours as they are.
///
/// ```
/// use aim_data::augment::{RandomErasing, TrainTransform, Transform};
///
/// let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// let finetune = Transform::Train(TrainTransform {
///     random_erasing: Some(RandomErasing::new(mean, std)),
///     ..TrainTransform::probe(mean)
/// });
/// # assert_ne!(finetune, Transform::probe_train(mean));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrainTransform {
    /// A random part, resized to the output.
    pub crop: RandomResizedCrop,
    /// Left and right exchanged.
    pub flip: HorizontalFlip,
    /// Changes of colour.
    pub color_jitter: ColorJitter,
    /// Changes drawn from a policy.
    pub rand_augment: Option<RandAugment>,
    /// Boxes of noise.
    pub random_erasing: Option<RandomErasing>,
}

impl TrainTransform {
    /// The recipe of AIM's attentive probes and LoRA (paper, appendix on hyperparameters): scale 0.08 to 1, ratio 3/4
    /// to 4/3, flip with probability 1/2, colour jitter 0.3, `rand-m9-mstd0.5-inc1`; for images
    /// normalised with `mean`.
    ///
    /// The table lists both colour jitter and RandAugment, and both are done, in its order. timm
    /// leaves the jitter out where there is RandAugment, unless it is forced, and then does it
    /// last; for timm's own transform set `color_jitter` to its default here.
    #[must_use]
    pub fn probe(mean: [f64; 3]) -> Self {
        Self {
            crop: RandomResizedCrop { scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) },
            flip: HorizontalFlip { p: 0.5 },
            // A single number is brightness, contrast and saturation, no hue, in timm.
            color_jitter: ColorJitter { brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.0 },
            rand_augment: Some(RandAugment::probe(mean)),
            random_erasing: None,
        }
    }
}

impl From<TrainTransform> for Transform {
    fn from(transform: TrainTransform) -> Self {
        Self::Train(transform)
    }
}

impl Transform {
    /// AIM's transform for pre-training, the [default](TrainTransform) of its parts.
    #[must_use]
    pub fn train() -> Self {
        Self::Train(TrainTransform::default())
    }

    /// The recipe of AIM's attentive probes and LoRA: [`TrainTransform::probe`].
    #[must_use]
    pub fn probe_train(mean: [f64; 3]) -> Self {
        Self::Train(TrainTransform::probe(mean))
    }

    /// The usual evaluation transform: resize to size / 0.875, crop the centre.
    #[must_use]
    pub fn eval() -> Self {
        Self::Eval(ResizeCenterCrop::default())
    }

    pub(super) fn validate(&self) -> Result<()> {
        match self {
            Self::Train(parts) => {
                parts.crop.validate()?;
                parts.flip.validate()?;
                parts.color_jitter.validate()?;
                parts.rand_augment.map_or(Ok(()), |policy| policy.validate())?;
                parts.random_erasing.map_or(Ok(()), |erasing| erasing.validate())
            }
            Self::Eval(resize) => resize.validate(),
        }
    }
}
