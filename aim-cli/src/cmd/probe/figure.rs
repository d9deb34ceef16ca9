//! Pictures of a probe's results as PNG: confusion matrices, and accuracy by depth.

use std::io::Cursor;
use std::path::Path;

use aim_train::durable;
use anyhow::{Context as _, Result};
use image::{ImageFormat, Rgb, RgbImage};

const WHITE: Rgb<u8> = Rgb([255; 3]);
const BLACK: Rgb<u8> = Rgb([20; 3]);
const GRAY: Rgb<u8> = Rgb([205; 3]);
/// Lines of a chart: blue, orange, green, purple, red, brown.
const COLORS: [Rgb<u8>; 6] = [
    Rgb([31, 104, 180]),
    Rgb([222, 116, 20]),
    Rgb([44, 140, 60]),
    Rgb([128, 80, 170]),
    Rgb([190, 40, 50]),
    Rgb([120, 84, 70]),
];

/// Letters of 3 x 5 dots, a row in three bits from the top: digits, then A to Z.
const DIGITS: [u16; 10] = [
    0b111_101_101_101_111,
    0b010_110_010_010_111,
    0b111_001_111_100_111,
    0b111_001_111_001_111,
    0b101_101_111_001_001,
    0b111_100_111_001_111,
    0b111_100_111_101_111,
    0b111_001_010_010_010,
    0b111_101_111_101_111,
    0b111_101_111_001_111,
];
const LETTERS: [u16; 26] = [
    0b010_101_111_101_101,
    0b110_101_110_101_110,
    0b011_100_100_100_011,
    0b110_101_101_101_110,
    0b111_100_110_100_111,
    0b111_100_110_100_100,
    0b011_100_101_101_011,
    0b101_101_111_101_101,
    0b111_010_010_010_111,
    0b001_001_001_101_010,
    0b101_101_110_101_101,
    0b100_100_100_100_111,
    0b101_111_111_101_101,
    0b110_101_101_101_101,
    0b010_101_101_101_010,
    0b110_101_110_100_100,
    0b010_101_101_110_011,
    0b110_101_110_101_101,
    0b011_100_010_001_110,
    0b111_010_010_010_010,
    0b101_101_101_101_111,
    0b101_101_101_101_010,
    0b101_101_111_111_101,
    0b101_101_010_101_101,
    0b101_101_010_010_010,
    0b111_001_010_100_111,
];

/// Dots of a character; other characters are blank.
fn glyph(c: char) -> u16 {
    match c {
        '0'..='9' => DIGITS[c as usize - '0' as usize],
        'a'..='z' => LETTERS[c as usize - 'a' as usize],
        'A'..='Z' => LETTERS[c as usize - 'A' as usize],
        '.' => 0b000_000_000_000_010,
        '-' => 0b000_000_111_000_000,
        '%' => 0b101_001_010_100_101,
        _ => 0,
    }
}

/// Width of a text in pixels.
fn text_width(text: &str, zoom: u32) -> u32 {
    4 * zoom * text.chars().count() as u32
}

/// Writes text with its top left corner at a place; what leaves the picture is cut off.
fn text(picture: &mut RgbImage, at: (i64, i64), zoom: u32, color: Rgb<u8>, text: &str) {
    for (i, c) in text.chars().enumerate() {
        let dots = glyph(c);
        for dot in 0..15 {
            if dots >> (14 - dot) & 1 == 1 {
                let x = at.0 + (i as i64 * 4 + dot % 3) * i64::from(zoom);
                let y = at.1 + dot / 3 * i64::from(zoom);
                rectangle(picture, (x, y), (zoom, zoom), color);
            }
        }
    }
}

fn rectangle(picture: &mut RgbImage, at: (i64, i64), size: (u32, u32), color: Rgb<u8>) {
    for y in at.1..at.1 + i64::from(size.1) {
        for x in at.0..at.0 + i64::from(size.0) {
            let inside = (0..i64::from(picture.width())).contains(&x)
                && (0..i64::from(picture.height())).contains(&y);
            if inside {
                picture.put_pixel(x as u32, y as u32, color);
            }
        }
    }
}

/// White for nothing, dark blue for all.
fn shade(share: f64) -> Rgb<u8> {
    // The root shows one image in a hundred.
    let t = share.clamp(0.0, 1.0).sqrt();
    let mix = |from: f64, to: f64| (from + (to - from) * t).round() as u8;
    Rgb([mix(255.0, 8.0), mix(255.0, 48.0), mix(255.0, 107.0)])
}

/// Pixels across of the field of a confusion matrix, at least.
const FIELD: u32 = 640;
/// Largest number of classes that is drawn class by class: a larger one is drawn in groups of neighbours.
const MOST_CELLS: usize = 1600;

/// A confusion matrix: a row for each class, a column for each answer, darker for a larger share of the row. Up to 20
/// classes have their shares in percent written in; larger matrices have a line and a number every ten or hundred
/// classes.
pub(super) fn confusion(classes: usize, counts: &[(u32, u32, u64)]) -> RgbImage {
    let group = classes.div_ceil(MOST_CELLS).max(1);
    let cells = classes.div_ceil(group).max(1);
    let mut matrix = vec![0_u64; cells * cells];
    let mut totals = vec![0_u64; cells];
    for &(label, predicted, count) in counts {
        let (row, column) = (label as usize / group, predicted as usize / group);
        if row < cells && column < cells {
            matrix[row * cells + column] += count;
            totals[row] += count;
        }
    }
    let cell = if cells <= 20 { 44 } else { FIELD.div_ceil(cells as u32).max(1) };
    let (margin, field) = (48, cell * cells as u32);
    let mut picture = RgbImage::from_pixel(margin + field + 12, margin + field + 12, WHITE);
    let start = |i: usize| i64::from(margin + i as u32 * cell);
    for row in 0..cells {
        for column in 0..cells {
            let count = matrix[row * cells + column];
            let share = count as f64 / totals[row].max(1) as f64;
            let at = (start(column), start(row));
            rectangle(&mut picture, at, (cell, cell), shade(share));
            if cells <= 20 && count > 0 {
                let color = if share > 0.25 { WHITE } else { BLACK };
                let label = format!("{:.0}", 100.0 * share);
                let left = at.0 + (i64::from(cell) - i64::from(text_width(&label, 3)) + 3) / 2;
                text(&mut picture, (left, at.1 + 15), 3, color, &label);
            }
        }
    }
    let every = match classes {
        0..=20 => 1,
        21..=200 => 10,
        201..=2000 => 100,
        _ => 1000,
    };
    for class in (0..classes).step_by(every) {
        let at = start(class / group);
        let label = class.to_string();
        let middle = if cells <= 20 { i64::from(cell) / 2 } else { 0 };
        let width = i64::from(text_width(&label, 2));
        text(&mut picture, (i64::from(margin) - 6 - width, at + middle - 5), 2, BLACK, &label);
        let left = if cells <= 20 { at + middle - width / 2 } else { at - 1 };
        text(&mut picture, (left, i64::from(margin) - 18), 2, BLACK, &label);
        if class > 0 {
            let margin = i64::from(margin);
            rectangle(&mut picture, (margin, at), (field, 1), GRAY);
            rectangle(&mut picture, (at, margin), (1, field), GRAY);
        }
    }
    text(&mut picture, (i64::from(margin), 8), 2, BLACK, "answer, by row the true class");
    let corner = i64::from(margin) - 1;
    frame(&mut picture, (corner, corner), (field + 1, field + 1));
    picture
}

fn frame(picture: &mut RgbImage, at: (i64, i64), size: (u32, u32)) {
    rectangle(picture, (at.0, at.1), (size.0, 1), BLACK);
    rectangle(picture, (at.0, at.1 + i64::from(size.1)), (size.0 + 1, 1), BLACK);
    rectangle(picture, (at.0, at.1), (1, size.1), BLACK);
    rectangle(picture, (at.0 + i64::from(size.0), at.1), (1, size.1), BLACK);
}

/// A line of a chart of accuracies.
pub(super) struct Line {
    pub(super) name: String,
    /// Middle of the blocks, and the accuracy in 0..1.
    pub(super) points: Vec<(f64, f64)>,
}

/// Accuracy over the depth of the blocks.
pub(super) fn depth(blocks: usize, lines: &[Line]) -> RgbImage {
    let (left, top, width, height) = (64_i64, 20_i64, 720_u32, 400_u32);
    let legend = 22 * lines.len() as u32;
    let mut picture =
        RgbImage::from_pixel(left as u32 + width + 24, top as u32 + height + 56 + legend, WHITE);
    let values = lines.iter().flat_map(|line| &line.points).map(|point| 100.0 * point.1);
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 100.0) };
    let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        .into_iter()
        .find(|step| (high - low) / step <= 7.0)
        .unwrap_or(25.0);
    let low = (low / step).floor() * step;
    let high = ((high / step).ceil() * step).max(low + step);
    let x_of = |block: f64| left + ((block + 0.5) / blocks.max(1) as f64 * f64::from(width)) as i64;
    let y_of =
        |percent: f64| top + ((high - percent) / (high - low) * f64::from(height)).round() as i64;
    let mut tick = low;
    while tick <= high + 1e-9 {
        rectangle(&mut picture, (left, y_of(tick)), (width, 1), GRAY);
        let label = if step < 1.0 { format!("{tick:.1}%") } else { format!("{tick:.0}%") };
        let at = (left - 6 - i64::from(text_width(&label, 2)), y_of(tick) - 5);
        text(&mut picture, at, 2, BLACK, &label);
        tick += step;
    }
    let every = blocks.div_ceil(24).max(1);
    for block in (0..blocks).step_by(every) {
        let label = block.to_string();
        let at = x_of(block as f64) - i64::from(text_width(&label, 2)) / 2 + 1;
        text(&mut picture, (at, top + i64::from(height) + 8), 2, BLACK, &label);
    }
    let below = top + i64::from(height) + 28;
    text(&mut picture, (left, below), 2, BLACK, "block, or middle of the window");
    for (i, line) in lines.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let points: Vec<(i64, i64)> =
            line.points.iter().map(|&(x, y)| (x_of(x), y_of(100.0 * y))).collect();
        for pair in points.windows(2) {
            stroke(&mut picture, pair[0], pair[1], color);
        }
        for &(x, y) in &points {
            rectangle(&mut picture, (x - 3, y - 3), (7, 7), color);
        }
        let at = below + 20 + 22 * i as i64;
        rectangle(&mut picture, (left, at), (18, 10), color);
        text(&mut picture, (left + 26, at), 2, BLACK, &line.name);
    }
    frame(&mut picture, (left, top), (width, height));
    picture
}

/// A line two pixels thick.
fn stroke(picture: &mut RgbImage, from: (i64, i64), to: (i64, i64), color: Rgb<u8>) {
    let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).max(1);
    for i in 0..=steps {
        let at = |a: i64, b: i64| a + ((b - a) * i + steps / 2) / steps;
        rectangle(picture, (at(from.0, to.0), at(from.1, to.1)), (2, 2), color);
    }
}

/// Writes a picture as a whole.
pub(super) fn write(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    picture
        .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
        .with_context(|| format!("cannot encode {}", path.display()))?;
    Ok(durable::replace(path, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_as_dark_as_their_share_whatever_the_number_of_classes() {
        for classes in [2, 10, 100, 1000, 8142] {
            let last = classes as u32 - 1;
            let picture = confusion(classes, &[(0, 0, 3), (last, 0, 10), (u32::MAX, 0, 1)]);
            assert!(picture.width() < 2000 && picture.height() >= 100, "{classes}");
            let cells = (picture.width() - 60).max(1);
            assert!(cells >= 80);
            // Corners of the first and the last row's first cell, where there is no number.
            let dark = shade(1.0);
            let (right, bottom) = (picture.width() - 13, picture.height() - 13);
            assert_eq!(picture.get_pixel(48, 48), &dark, "{classes}");
            assert_eq!(picture.get_pixel(48, bottom), &dark, "{classes}");
            assert_ne!(picture.get_pixel(right, bottom), &dark);
        }
        confusion(0, &[]);
    }

    #[test]
    fn charts_have_their_lines_inside() {
        let line = |name: &str, y: f64| Line {
            name: name.into(),
            points: (0..24).map(|i| (f64::from(i), y + 0.01 * f64::from(i))).collect(),
        };
        let picture = depth(24, &[line("single", 0.2), line("windows of 6", 0.5)]);
        for color in &COLORS[..2] {
            assert!(picture.pixels().filter(|pixel| *pixel == color).count() > 1000);
        }
        depth(0, &[]);
        depth(1, &[Line { name: "one".into(), points: vec![(0.0, f64::NAN)] }]);
    }
}
