//! [`SyntheticSource`]: images made on the spot, for tests and for measuring everything but I/O.

use crate::error::{Defect, DefectKind, Error, Result};
use crate::image::Image;
use crate::random::{AugmentKey, Purpose, Rng};
use crate::source::{Fingerprint, Payload, Sample, SampleFormat, Source};

/// What a [`SyntheticSource`] draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyntheticKind {
    /// Independent uniform bytes, drawn afresh for every index and epoch, which go into the batch
    /// as they are. Cropping would resample them and make neighbours predictable, so a model that
    /// predicts them at all has seen its target.
    Noise,
    /// Coloured stripes whose direction is the class and whose phase, period and colours depend on
    /// the index. The same in every epoch; cropped and flipped like any image.
    Stripes,
}

/// A generator of images; every one is a pure function of (seed, index) and, for noise, epoch.
#[derive(Debug, Clone)]
pub struct SyntheticSource {
    /// What to draw.
    pub kind: SyntheticKind,
    /// Number of samples in an epoch.
    pub num_samples: u64,
    /// Height in pixels.
    pub height: u32,
    /// Width in pixels.
    pub width: u32,
    /// Number of classes; the label of sample `i` is `i % num_classes`.
    pub num_classes: u32,
    /// Seed of the generator.
    pub seed: u64,
    fingerprint: String,
}

/// The options a synthetic spec accepts.
const OPTIONS: &str =
    "expected noise or stripes, n=SAMPLES, size=PIXELS, height=, width=, classes=, seed=";

impl SyntheticSource {
    /// Parses comma-separated options: `noise` (the default) or `stripes`, `n=1024`, `size=32` (or
    /// `height=` and `width=`), `classes=10`, `seed=0`. `size` defaults to `default_size`
    /// (height, width).
    ///
    /// # Errors
    /// [`Error::Spec`] for an unknown option or a value out of range.
    pub fn parse(options: &str, default_size: (u32, u32)) -> Result<Self> {
        let mut this = Self {
            kind: SyntheticKind::Noise,
            num_samples: 1024,
            height: default_size.0,
            width: default_size.1,
            num_classes: 10,
            seed: 0,
            fingerprint: String::new(),
        };
        for option in options.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            this.set(option).map_err(|reason| Error::Spec {
                spec: format!("synthetic:{options}"),
                reason: format!("{reason}; {OPTIONS}"),
            })?;
        }
        let mut fingerprint = Fingerprint::new("synthetic");
        let Self { kind, num_samples, height, width, num_classes, seed, .. } = &this;
        let identity = format!("{kind:?} {height}x{width} {num_classes} {seed}");
        fingerprint.add(identity.as_bytes(), *num_samples);
        this.fingerprint = fingerprint.finish();
        Ok(this)
    }

    fn set(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let number = |low: u64, high: u64| match value.parse() {
            Ok(number) if (low..=high).contains(&number) => Ok(number),
            _ => Err(format!("`{option}`: expected a number from {low} to {high}")),
        };
        let side = || number(1, 1 << 13).map(|side| side as u32);
        match (name, value) {
            ("noise", "") => self.kind = SyntheticKind::Noise,
            ("stripes", "") => self.kind = SyntheticKind::Stripes,
            ("n", _) => self.num_samples = number(1, 1 << 40)?,
            ("size", _) => (self.height, self.width) = (side()?, side()?),
            ("height", _) => self.height = side()?,
            ("width", _) => self.width = side()?,
            ("classes", _) => self.num_classes = number(1, 1 << 20)? as u32,
            ("seed", _) => self.seed = number(0, u64::MAX)?,
            _ => return Err(format!("unknown option `{option}`")),
        }
        Ok(())
    }

    fn noise(&self, rng: &mut Rng) -> Vec<u8> {
        let mut pixels = vec![0; self.height as usize * self.width as usize * 3];
        rng.fill(&mut pixels);
        pixels
    }

    /// Integer arithmetic only: the same bytes on every machine.
    fn stripes(&self, rng: &mut Rng, class: u32) -> Vec<u8> {
        // Direction as a point on the unit diamond, which needs no trigonometry.
        let turn = i64::from(class) * 512 / i64::from(self.num_classes);
        let (dx, dy) = (256 - turn, 256 - (256 - turn).abs());
        let period = i64::from(4 + rng.below(8)) * 256;
        let phase = i64::from(rng.below(1 << 16));
        let mut colours = [[0i64; 3]; 2];
        for value in colours.iter_mut().flatten() {
            *value = i64::from(rng.below(256));
        }
        let mut pixels = Vec::with_capacity(self.height as usize * self.width as usize * 3);
        for y in 0..i64::from(self.height) {
            for x in 0..i64::from(self.width) {
                // A triangle wave in 0..=256.
                let place = (dx * x + dy * y + phase).rem_euclid(period) * 512 / period;
                let wave = 256 - (256 - place).abs();
                for (a, b) in colours[0].iter().zip(colours[1]) {
                    pixels.push(((a * wave + b * (256 - wave)) / 256) as u8);
                }
            }
        }
        pixels
    }
}

impl Source for SyntheticSource {
    fn len(&self) -> u64 {
        self.num_samples
    }

    fn format(&self) -> SampleFormat {
        match self.kind {
            SyntheticKind::Noise => SampleFormat::Final { height: self.height, width: self.width },
            SyntheticKind::Stripes => SampleFormat::Image,
        }
    }

    fn read(&self, index: u64, epoch: u64) -> Result<Sample, Defect> {
        if index >= self.num_samples {
            return Err(self.out_of_range(index));
        }
        let epoch = if self.kind == SyntheticKind::Noise { epoch } else { 0 };
        let key = AugmentKey { seed: self.seed, epoch, index, ..AugmentKey::default() };
        let mut rng = Rng::new(Purpose::Synthetic, key);
        let class = (index % u64::from(self.num_classes)) as u32;
        let pixels = match self.kind {
            SyntheticKind::Noise => self.noise(&mut rng),
            SyntheticKind::Stripes => self.stripes(&mut rng, class),
        };
        let image = Image::new(self.width, self.height, 3, pixels).ok_or_else(|| {
            self.defect(index, DefectKind::Corrupt, "an image without pixels".into())
        })?;
        let payload = match self.kind {
            SyntheticKind::Noise => Payload::Final(image),
            SyntheticKind::Stripes => Payload::Pixels(image),
        };
        Ok(Sample { payload, label: Some(class) })
    }

    fn key(&self, index: u64) -> String {
        format!("synthetic-{index:06}")
    }

    fn location(&self, index: u64) -> String {
        format!("synthetic image {index}")
    }

    fn label(&self, index: u64) -> Option<u32> {
        (index < self.num_samples).then_some((index % u64::from(self.num_classes)) as u32)
    }

    fn num_classes(&self) -> Option<u32> {
        Some(self.num_classes)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
