//! Decoding no more of an image than is asked for.

use super::baseline::{Area, Header};
use super::{
    DecodeError, DecodeLimits, ImageFormat, check_bytes, check_size, contained, decode, jpeg,
};
use crate::augment::CropBox;
use crate::image::View;

/// Bytes kept from one image to the next; the memory of a larger image is given back.
const KEPT: usize = 16 << 20;

/// Pixels of a part of an image, in memory that is kept from one image to the next.
#[derive(Debug, Default)]
pub(crate) struct Part {
    whole: (u32, u32),
    area: CropBox,
    channels: u8,
    pixels: Vec<u8>,
}

impl Part {
    /// Decodes what `choose` asks for when told the image's width and height, or more.
    ///
    /// The pixels are those that [`decode`] gives. What lies outside the part may go unread: a file
    /// that is broken only there may pass.
    pub(crate) fn decode(
        &mut self,
        bytes: &[u8],
        limits: &DecodeLimits,
        choose: &mut dyn FnMut(u32, u32) -> CropBox,
    ) -> Result<(), DecodeError> {
        check_bytes(bytes, limits)?;
        if self.pixels.capacity() > KEPT {
            self.pixels = Vec::new();
        }
        if ImageFormat::detect(bytes) == Some(ImageFormat::Jpeg)
            && jpeg::is_complete(bytes)
            && contained(ImageFormat::Jpeg, || self.decode_area(bytes, limits, choose))?
        {
            return Ok(());
        }
        let image = decode(bytes, limits)?;
        let (width, height) = (image.width(), image.height());
        choose(width, height);
        self.whole = (width, height);
        self.area = CropBox { left: 0, top: 0, width, height };
        self.channels = image.channels();
        self.pixels = image.into_pixels();
        Ok(())
    }

    /// Whether the area alone could be decoded.
    fn decode_area(
        &mut self,
        bytes: &[u8],
        limits: &DecodeLimits,
        choose: &mut dyn FnMut(u32, u32) -> CropBox,
    ) -> Result<bool, DecodeError> {
        let Some(header) = Header::parse(bytes).filter(|header| !jpeg::is_turned(header.exif))
        else {
            return Ok(false);
        };
        check_size(header.width as u64, header.height as u64, limits)?;
        self.whole = (header.width as u32, header.height as u32);
        self.area = choose(self.whole.0, self.whole.1);
        let CropBox { left, top, width, height } = self.area;
        let [left, top, width, height] = [left, top, width, height].map(|side| side as usize);
        self.channels = 3;
        Ok(header.decode(Area { left, top, width, height }, &mut self.pixels).is_some())
    }

    pub(crate) fn view(&self) -> View<'_> {
        View {
            whole: self.whole,
            origin: (self.area.left, self.area.top),
            width: self.area.width,
            channels: self.channels,
            pixels: &self.pixels,
        }
    }
}
