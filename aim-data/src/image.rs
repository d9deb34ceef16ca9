//! [`Image`]: 8-bit pixels, gray or RGB.

/// Decoded pixels, `[height, width, channels]`, one byte each, rows without padding.
///
/// Gray images stay gray (one channel) until they are written into a batch: resampling one channel
/// instead of three equal ones gives the same bytes for a third of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    channels: u8,
    pixels: Vec<u8>,
}

impl Image {
    /// An image from its bytes.
    ///
    /// Returns `None` unless `channels` is 1 or 3, neither side is 0 and
    /// `pixels.len() == height * width * channels`.
    #[must_use]
    pub fn new(width: u32, height: u32, channels: u8, pixels: Vec<u8>) -> Option<Self> {
        let len = u64::from(width) * u64::from(height);
        let len = len.checked_mul(u64::from(channels))?;
        let valid = matches!(channels, 1 | 3) && len > 0 && len == pixels.len() as u64;
        valid.then_some(Self { width, height, channels, pixels })
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// 1 (gray) or 3 (RGB).
    #[must_use]
    pub fn channels(&self) -> u8 {
        self.channels
    }

    /// The bytes, `[height, width, channels]`.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub(crate) fn view(&self) -> View<'_> {
        let Self { width, height, channels, .. } = *self;
        View { whole: (width, height), origin: (0, 0), width, channels, pixels: &self.pixels }
    }

    pub(crate) fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The same image with three channels.
    #[must_use]
    pub fn into_rgb(self) -> Self {
        if self.channels == 3 {
            return self;
        }
        let mut pixels = vec![0; self.pixels.len() * 3];
        gray_to_rgb(&self.pixels, &mut pixels);
        Self { channels: 3, pixels, ..self }
    }
}

/// Borrowed pixels of an image, or of a part of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    /// Width and height of the image.
    pub(crate) whole: (u32, u32),
    /// Where the first pixel lies in it: column and row.
    pub(crate) origin: (u32, u32),
    /// Pixels in a row of the part.
    pub(crate) width: u32,
    pub(crate) channels: u8,
    pub(crate) pixels: &'a [u8],
}

/// Writes each gray byte three times.
pub(crate) fn gray_to_rgb(gray: &[u8], rgb: &mut [u8]) {
    for (out, &value) in rgb.chunks_exact_mut(3).zip(gray) {
        out.fill(value);
    }
}
