//! Images cut into the rows that the patch projection multiplies.
//!
//! The patch embedding is a convolution whose kernel is as large as its stride: a linear layer over flattened patches.
//! Here are the flattening and its gradient; the product is [`linear`](crate::linear) on
//! `[batch * tokens, 3 * patch * patch]` with the convolution's weight `[dim, 3, patch, patch]` read as a matrix.
//!
//! - pixels: u8 `[batch, height, width, 3]`, normalised on the way: `(v / 255 - mean) / std` per channel
//! - images, dimages: f32 `[batch, 3, height, width]`, normalised already
//! - patches, dpatches: `[batch * tokens, 3 * patch * patch]`, tokens row by row over the grid, values of a patch in
//!   (channel, row, column) order
//!
//! Every pixel is in one patch, so the gradient of the images is the gradient of the patches put back in place.

pub mod cpu;
pub mod cuda;

/// Colour channels of an image.
pub const CHANNELS: usize = 3;

/// Shape of the images and their patches. Height and width are multiples of the patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchEmbed {
    /// Images.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Rows and columns of pixels in a patch.
    pub patch: usize,
}

impl PatchEmbed {
    /// Rows and columns of patches.
    pub fn grid(&self) -> (usize, usize) {
        (self.height / self.patch, self.width / self.patch)
    }

    /// Patches of an image.
    pub fn tokens(&self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns
    }

    /// Values of a patch: `3 * patch * patch`.
    pub fn patch_dim(&self) -> usize {
        CHANNELS * self.patch * self.patch
    }

    /// Values of all images.
    pub fn image_len(&self) -> usize {
        self.batch * CHANNELS * self.height * self.width
    }
}
