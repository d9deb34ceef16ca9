//! [`HorizontalFlip`].

use crate::error::{Error, Result};
use crate::random::Rng;

/// Mirrors an image left to right with a probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HorizontalFlip {
    /// Probability, 0 to 1.
    pub p: f64,
}

impl Default for HorizontalFlip {
    fn default() -> Self {
        Self { p: 0.5 }
    }
}

impl HorizontalFlip {
    pub(super) fn validate(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.p) {
            return Ok(());
        }
        Err(Error::Config(format!("flip probability {}: expected 0 to 1", self.p)))
    }

    pub(super) fn sample(&self, rng: &mut Rng) -> bool {
        rng.unit() < self.p
    }
}

/// Mirrors each row of RGB pixels.
pub(super) fn flip_rows(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut(width * 3) {
        let (row, _) = row.as_chunks_mut::<3>();
        row.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_mirrored_by_pixel() {
        let mut pixels = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        flip_rows(&mut pixels, 2);
        assert_eq!(pixels, [4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9]);
    }
}
