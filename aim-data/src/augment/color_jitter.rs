//! [`ColorJitter`].

use super::pixel_ops;
use crate::error::{Error, Result};
use crate::random::Rng;

/// Random changes of brightness, contrast, saturation and hue, in random order.
///
/// torchvision's definition, on bytes as Pillow computes it: factors uniform in
/// `[max(0, 1 - x), 1 + x]`, the hue turned by a share of the circle uniform in `[-x, x]`. A value
/// of 0 leaves that property alone. Gray images have no saturation and no hue, and stay gray.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ColorJitter {
    /// Largest change of brightness, 0 or more.
    pub brightness: f64,
    /// Largest change of contrast, 0 or more.
    pub contrast: f64,
    /// Largest change of saturation, 0 or more.
    pub saturation: f64,
    /// Largest turn of the hue, 0 to 0.5.
    pub hue: f64,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
    /// Steps on Pillow's circle of 256.
    Hue(u8),
}

/// What was drawn: up to four changes, in order.
pub(super) type Changes = [Option<Change>; 4];

impl ColorJitter {
    pub(super) fn validate(&self) -> Result<()> {
        let factors = [self.brightness, self.contrast, self.saturation];
        if !factors.iter().all(|factor| (0.0..=100.0).contains(factor)) {
            return Err(Error::Config(format!(
                "colour jitter {factors:?}: expected changes of brightness, contrast and \
                 saturation from 0 to 100"
            )));
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return Err(Error::Config(format!("hue jitter {}: expected 0 to 0.5", self.hue)));
        }
        Ok(())
    }

    /// Draws an order, then a factor for each change that is not off.
    pub(super) fn sample(&self, rng: &mut Rng) -> Changes {
        if *self == Self::default() {
            return [None; 4];
        }
        let mut order = [0, 1, 2, 3];
        for at in (1..4u32).rev() {
            order.swap(at as usize, rng.below(at + 1) as usize);
        }
        let mut factor = |change: f64| {
            (change > 0.0).then(|| rng.uniform((1.0 - change).max(0.0), 1.0 + change) as f32)
        };
        let all = [
            factor(self.brightness).map(Change::Brightness),
            factor(self.contrast).map(Change::Contrast),
            factor(self.saturation).map(Change::Saturation),
            (self.hue > 0.0).then(|| hue(rng.uniform(-self.hue, self.hue))),
        ];
        order.map(|at: usize| all[at])
    }
}

/// A turn by a share of the circle, truncated to Pillow's steps as torchvision does.
fn hue(share: f64) -> Change {
    Change::Hue((share * 255.0) as i32 as u8)
}

/// Applies changes to RGB pixels.
pub(super) fn apply(changes: &Changes, pixels: &mut [u8]) {
    for change in changes.iter().flatten() {
        let (pixels, _) = pixels.as_chunks_mut::<3>();
        match *change {
            Change::Brightness(factor) => pixel_ops::brightness(pixels, factor),
            Change::Contrast(factor) => pixel_ops::contrast(pixels, factor),
            Change::Saturation(factor) => pixel_ops::color(pixels, factor),
            Change::Hue(steps) => {
                for pixel in pixels {
                    let [hue, saturation, value] = to_hsv(*pixel);
                    *pixel = from_hsv([hue.wrapping_add(steps), saturation, value]);
                }
            }
        }
    }
}

/// Pillow's "HSV", each on 0 to 255.
fn to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let most = red.max(green).max(blue);
    let least = red.min(green).min(blue);
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let saturation = range / f32::from(most);
    let [below_red, below_green, below_blue] =
        [red, green, blue].map(|value| f64::from(f32::from(most - value) / range));
    let sector = if red == most {
        below_blue - below_green
    } else if green == most {
        2.0 + below_red - below_blue
    } else {
        4.0 + below_green - below_red
    };
    // From 5/6 to 11/6: one subtraction is the remainder by 1, and exact.
    let turn = f64::from(sector as f32) / 6.0 + 1.0;
    let hue = if turn >= 1.0 { turn - 1.0 } else { turn } as f32;
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let place = f64::from(hue) * 6.0 / 255.0;
    let sector = place as u8;
    let part = f64::from((place - f64::from(sector)) as f32);
    let saturation = f64::from((f64::from(saturation) / 255.0) as f32);
    let level = |share: f64| nearest(f64::from(value) * share);
    let low = level(1.0 - saturation);
    let falling = level(1.0 - saturation * part);
    let rising = level(1.0 - saturation * (1.0 - part));
    match sector % 6 {
        0 => [value, rising, low],
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        _ => [value, low, falling],
    }
}

/// `f64::round` from 0 to 255, without the call that it is on processors before SSE4.1.
fn nearest(level: f64) -> u8 {
    let whole = level as u8;
    whole + u8::from(level - f64::from(whole) >= 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{DecodeLimits, decode};
    use crate::random::{AugmentKey, Purpose};

    fn fixture(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jitter/");
        let bytes = std::fs::read(format!("{folder}{name}")).unwrap();
        decode(&bytes, &DecodeLimits::default()).unwrap().into_rgb().pixels().to_vec()
    }

    #[test]
    fn changes_agree_with_torchvision_on_pillow() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jitter/cases.json");
        let cases: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(folder).unwrap()).unwrap();
        let source = fixture("source.png");
        assert!(cases.len() >= 12);
        for case in &cases {
            let mut changes = [None; 4];
            for (at, step) in case["steps"].as_array().unwrap().iter().enumerate() {
                let factor = step[1].as_f64().unwrap();
                changes[at] = Some(match step[0].as_str().unwrap() {
                    "brightness" => Change::Brightness(factor as f32),
                    "contrast" => Change::Contrast(factor as f32),
                    "saturation" => Change::Saturation(factor as f32),
                    _ => hue(factor),
                });
            }
            let mut found = source.clone();
            apply(&changes, &mut found);
            let expected = fixture(case["expected"].as_str().unwrap());
            let differences = found.iter().zip(&expected).map(|(a, b)| u32::from(a.abs_diff(*b)));
            let mean = f64::from(differences.sum::<u32>()) / found.len() as f64;
            assert!(mean < 0.05, "{case}: mean difference {mean}");
        }
    }

    #[test]
    fn factors_stay_in_their_ranges_and_orders_differ() {
        let jitter = ColorJitter { brightness: 0.4, contrast: 1.5, saturation: 0.2, hue: 0.1 };
        let mut firsts = [0; 4];
        for index in 0..2000 {
            let key = AugmentKey { index, ..AugmentKey::default() };
            let changes = jitter.sample(&mut Rng::new(Purpose::Augment, key));
            for (at, change) in changes.into_iter().flatten().enumerate() {
                let kind = match change {
                    Change::Brightness(factor) => {
                        assert!((0.6..=1.4).contains(&factor));
                        0
                    }
                    Change::Contrast(factor) => {
                        assert!((0.0..=2.5).contains(&factor));
                        1
                    }
                    Change::Saturation(factor) => {
                        assert!((0.8..=1.2).contains(&factor));
                        2
                    }
                    Change::Hue(steps) => {
                        assert!(steps <= 25 || steps >= 231);
                        3
                    }
                };
                firsts[kind] += u32::from(at == 0);
            }
        }
        assert!(firsts.iter().all(|&count| (400..600).contains(&count)), "{firsts:?}");
        let nothing =
            ColorJitter::default().sample(&mut Rng::new(Purpose::Augment, AugmentKey::default()));
        assert_eq!(nothing, [None; 4]);
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for jitter in [
            ColorJitter { brightness: -0.1, ..ColorJitter::default() },
            ColorJitter { contrast: f64::NAN, ..ColorJitter::default() },
            ColorJitter { hue: 0.6, ..ColorJitter::default() },
        ] {
            assert!(jitter.validate().is_err(), "{jitter:?}");
        }
    }
}
