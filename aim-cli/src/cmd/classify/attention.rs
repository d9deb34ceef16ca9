//! Where a probe looks, as a picture: rows of image, mean over heads, and each head.

use std::path::Path;

use anyhow::{Context as _, Result};
use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Luma, Rgb, Rgba, RgbaImage};

/// Most rows of a sheet.
const MAX_ROWS: usize = 64;
/// Longest side of a sheet, in pixels: what image viewers still open.
const MAX_SIDE: u64 = 30_000;
/// Cells are enlarged by whole numbers until they are at least this wide.
const CELL: usize = 160;
const GAP: usize = 8;
/// Transparent, so that it suits light and dark pages.
const BACKGROUND: Rgba<u8> = Rgba([0; 4]);
/// Share of the map's colour in a pixel; the rest is the image in grey.
const OPACITY: f32 = 0.65;

/// Rows of cells that grow as images are classified.
#[derive(Default)]
pub(super) struct Sheet {
    rows: Vec<Vec<Cell>>,
}

/// u8 `[height, width, 3]`.
struct Cell {
    pixels: Vec<u8>,
    height: usize,
    width: usize,
}

impl Sheet {
    /// Rows so far.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds an image, u8 `[height, width, 3]`, with its attention `[heads, tokens]`; nothing when the sheet is full.
    pub(super) fn add(
        &mut self,
        image: Vec<u8>,
        (height, width): (usize, usize),
        patch: usize,
        map: &[f32],
    ) {
        let grid = (height / patch.max(1), width / patch.max(1));
        let tokens = grid.0 * grid.1;
        if self.rows.len() >= MAX_ROWS || tokens == 0 || map.is_empty() {
            return;
        }
        let heads = map.len() / tokens;
        let mean: Vec<f32> = (0..tokens)
            .map(|t| (0..heads).map(|h| map[h * tokens + t]).sum::<f32>() / heads as f32)
            .collect();
        let maps = [&mean[..]]
            .into_iter()
            .chain((heads > 1).then(|| map.chunks_exact(tokens)).into_iter().flatten());
        let mut cells: Vec<Cell> = maps
            .map(|map| Cell { pixels: overlay(&image, (height, width), grid, map), height, width })
            .collect();
        cells.insert(0, Cell { pixels: image, height, width });
        self.rows.push(cells);
    }

    /// Writes the picture.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let widest = self.rows.iter().flatten().map(|cell| cell.width).max().unwrap_or(1);
        let tallest = self.rows.iter().flatten().map(|cell| cell.height).max().unwrap_or(1);
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let zoom = CELL.div_ceil(widest).max(1);
        let step = (widest * zoom + GAP, tallest * zoom + GAP);
        let size = |cells: usize, step: usize| {
            let side = (cells * step + GAP) as u64;
            u32::try_from(side).ok().filter(|_| side <= MAX_SIDE)
        };
        let (Some(width), Some(height)) = (size(columns, step.0), size(self.rows.len(), step.1))
        else {
            anyhow::bail!(
                "a picture of {} rows and {columns} columns of {widest} x {tallest} pixels is too large: \
                 give fewer images",
                self.rows.len()
            );
        };
        let mut picture = RgbaImage::from_pixel(width, height, BACKGROUND);
        for (row, cells) in self.rows.iter().enumerate() {
            for (column, cell) in cells.iter().enumerate() {
                let (left, top) = (GAP + column * step.0, GAP + row * step.1);
                cell.draw(&mut picture, (left, top), zoom);
            }
        }
        picture
            .save_with_format(path, image::ImageFormat::Png)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Cell {
    fn draw(&self, picture: &mut RgbaImage, (left, top): (usize, usize), zoom: usize) {
        for y in 0..self.height * zoom {
            for x in 0..self.width * zoom {
                let at = (y / zoom * self.width + x / zoom) * 3;
                let [r, g, b] = [0, 1, 2].map(|c| self.pixels.get(at + c).copied().unwrap_or(0));
                picture.put_pixel((left + x) as u32, (top + y) as u32, Rgba([r, g, b, 255]));
            }
        }
    }
}

/// A map over its image. Each map has its own scale: its largest value is the brightest colour.
fn overlay(
    image: &[u8],
    (height, width): (usize, usize),
    (rows, columns): (usize, usize),
    map: &[f32],
) -> Vec<u8> {
    let most = map.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let values: Vec<f32> = map.iter().map(|value| value / most).collect();
    let small = ImageBuffer::<Luma<f32>, _>::from_raw(columns as u32, rows as u32, values)
        .unwrap_or_else(|| ImageBuffer::new(columns as u32, rows as u32));
    // Bicubic: smooth between the patches' centres; its overshoot is cut off.
    let large = resize(&small, width as u32, height as u32, FilterType::CatmullRom);
    let mut pixels = Vec::with_capacity(image.len());
    for (pixel, Luma([value])) in image.chunks_exact(3).zip(large.pixels()) {
        let Rgb(color) = color(value.clamp(0.0, 1.0));
        // ITU-R BT.601, as PIL's grey.
        let grey =
            0.299 * f32::from(pixel[0]) + 0.587 * f32::from(pixel[1]) + 0.114 * f32::from(pixel[2]);
        pixels.extend(color.map(|c| {
            (OPACITY * f32::from(c) + (1.0 - OPACITY) * grey).round().clamp(0.0, 255.0) as u8
        }));
    }
    pixels
}

/// Inferno: perceptually even, ascending in lightness, and readable without colour.
fn color(value: f32) -> Rgb<u8> {
    let colorous::Color { r, g, b } = colorous::INFERNO.eval_continuous(f64::from(value));
    Rgb([r, g, b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brightest_place_is_where_the_attention_is() {
        // 2 x 3 patches of 4 pixels; attention on the last one.
        let map = [0.02, 0.02, 0.02, 0.02, 0.02, 0.9];
        let image = vec![100; 8 * 12 * 3];
        let pixels = overlay(&image, (8, 12), (2, 3), &map);
        let light = |y: usize, x: usize| {
            pixels[(y * 12 + x) * 3..][..3].iter().map(|&v| u32::from(v)).sum::<u32>()
        };
        assert!(light(7, 11) > 2 * light(0, 0), "{} {}", light(7, 11), light(0, 0));
        let brightest = (0..96).max_by_key(|&i| light(i / 12, i % 12)).unwrap();
        assert!(brightest / 12 >= 4 && brightest % 12 >= 8, "{brightest}");
    }

    #[test]
    fn a_row_is_image_mean_and_heads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let mut sheet = Sheet::default();
        for _ in 0..MAX_ROWS + 1 {
            sheet.add(vec![7; 8 * 8 * 3], (8, 8), 4, &[0.25; 8]);
        }
        assert_eq!((sheet.len(), sheet.rows[0].len()), (MAX_ROWS, 4));
        sheet.rows.truncate(2);
        sheet.save(&path).unwrap();
        let picture = image::open(&path).unwrap();
        assert_eq!((picture.width(), picture.height()), (4 * 168 + 8, 2 * 168 + 8));
        // One head is its own mean.
        sheet.add(vec![7; 8 * 8 * 3], (8, 8), 4, &[0.25; 4]);
        assert_eq!(sheet.rows[2].len(), 2);
    }
}
