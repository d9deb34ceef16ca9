//! Changes of colour that look at no neighbouring pixel, and sharpness: Pillow's `ImageOps` and
//! `ImageEnhance`, to the byte.

/// Three tables, one for each channel.
type Tables = [[u8; 256]; 3];

/// `ImageOps.autocontrast`: stretches each channel's range to 0 to 255.
pub(super) fn auto_contrast(pixels: &mut [[u8; 3]]) {
    let tables = histograms(pixels).map(|histogram| {
        let low = histogram.iter().position(|&count| count > 0);
        let high = histogram.iter().rposition(|&count| count > 0);
        match (low, high) {
            (Some(low), Some(high)) if low < high => {
                let scale = 255.0 / (high - low) as f64;
                let offset = -(low as f64) * scale;
                // Conversion truncates and saturates.
                std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
            }
            _ => IDENTITY,
        }
    });
    look_up_channels(pixels, &tables);
}

/// `ImageOps.equalize`: gives each channel a histogram as even as a table can make it.
pub(super) fn equalize(pixels: &mut [[u8; 3]]) {
    let tables = histograms(pixels).map(|histogram| {
        let total: u32 = histogram.iter().sum();
        let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        let step = (total - last) / 255;
        if step == 0 {
            return IDENTITY;
        }
        let mut below = step / 2;
        histogram.map(|count| {
            let level = (below / step).min(255) as u8;
            below += count;
            level
        })
    });
    look_up_channels(pixels, &tables);
}

/// `ImageOps.invert`.
pub(super) fn invert(pixels: &mut [[u8; 3]]) {
    for value in pixels.as_flattened_mut() {
        *value = 255 - *value;
    }
}

/// `ImageOps.posterize`: keeps the highest bits of each value; 8 keep all, 0 none (timm's magnitude
/// of 10 asks for it, Pillow 13 refuses it, those before made the image black as here).
pub(super) fn posterize(pixels: &mut [[u8; 3]], bits: u8) {
    let mask = 0xffu8.checked_shl(8 - u32::from(bits.min(8))).unwrap_or(0);
    for value in pixels.as_flattened_mut() {
        *value &= mask;
    }
}

/// `ImageOps.solarize`: inverts values from `threshold` on; 256 leaves all alone.
pub(super) fn solarize(pixels: &mut [[u8; 3]], threshold: u16) {
    let change = |value: u8| if u16::from(value) < threshold { value } else { 255 - value };
    look_up(pixels, &std::array::from_fn(|value| change(value as u8)));
}

/// timm's `solarize_add`: adds to values below 128.
pub(super) fn solarize_add(pixels: &mut [[u8; 3]], add: u8) {
    let change = |value: u8| if value < 128 { value.saturating_add(add) } else { value };
    look_up(pixels, &std::array::from_fn(|value| change(value as u8)));
}

/// `ImageEnhance.Brightness`: from black (0) over the image (1) and on.
pub(super) fn brightness(pixels: &mut [[u8; 3]], factor: f32) {
    look_up(pixels, &table(0, factor));
}

/// `ImageEnhance.Contrast`: from the mean gray (0) over the image (1) and on.
pub(super) fn contrast(pixels: &mut [[u8; 3]], factor: f32) {
    let sum: u64 = pixels.iter().map(|pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8;
    look_up(pixels, &table(mean, factor));
}

/// `ImageEnhance.Color`: from gray (0) over the image (1) and on.
pub(super) fn color(pixels: &mut [[u8; 3]], factor: f32) {
    for pixel in pixels {
        let gray = luma(pixel);
        *pixel = pixel.map(|value| blend(gray, value, factor));
    }
}

/// `ImageEnhance.Sharpness`: from Pillow's `SMOOTH` filter of the image (0) over the image (1) and
/// on. The filter leaves the outermost pixels alone.
pub(super) fn sharpness(pixels: &mut [u8], width: usize, factor: f32, scratch: &mut Vec<u8>) {
    let row = width * 3;
    if width < 3 || pixels.len() < 3 * row {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(pixels);
    let (near, centre) = (1.0f32 / 13.0, 5.0f32 / 13.0);
    let inner = row - 6;
    for (y, out) in pixels.chunks_exact_mut(row).enumerate().skip(1) {
        let Some(window) = scratch.get((y - 1) * row..(y + 2) * row) else { break };
        let (above, rest) = window.split_at(row);
        let (at, below) = rest.split_at(row);
        // The bytes of one row to the left, in the middle and to the right of each inner byte.
        let beside = |bytes: &'_ [u8], place: usize, middle: f32| {
            let [left, here, right] = [0, 3, 6].map(|shift| f32::from(bytes[place + shift]));
            left * near + here * middle + right * near
        };
        for (place, out) in out[3..3 + inner].iter_mut().enumerate() {
            // The order of the sum is Pillow's: from the row below upwards, 0.5 for rounding first.
            let sum = 0.5
                + beside(below, place, near)
                + beside(at, place, centre)
                + beside(above, place, near);
            *out = blend(sum as u8, at[place + 3], factor);
        }
    }
}

/// What becomes of each value when it is blended with the same gray.
fn table(gray: u8, factor: f32) -> [u8; 256] {
    std::array::from_fn(|value| blend(gray, value as u8, factor))
}

fn look_up(pixels: &mut [[u8; 3]], table: &[u8; 256]) {
    for value in pixels.as_flattened_mut() {
        *value = table[usize::from(*value)];
    }
}

/// Pillow's `blend`: from `base` (factor 0) over `value` (1) and on, cut off and truncated.
fn blend(base: u8, value: u8, factor: f32) -> u8 {
    let difference = f32::from(value) - f32::from(base);
    // Conversion saturates.
    (f32::from(base) + factor * difference) as u8
}

/// Pillow's "L".
fn luma(&[red, green, blue]: &[u8; 3]) -> u8 {
    let [red, green, blue] = [red, green, blue].map(u32::from);
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
}

const IDENTITY: [u8; 256] = {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        table[value] = value as u8;
        value += 1;
    }
    table
};

/// How often each value occurs in each channel.
fn histograms(pixels: &[[u8; 3]]) -> [[u32; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in pixels {
        for (counts, &value) in counts.iter_mut().zip(pixel) {
            counts[usize::from(value)] += 1;
        }
    }
    counts
}

fn look_up_channels(pixels: &mut [[u8; 3]], tables: &Tables) {
    for pixel in pixels {
        for (value, table) in pixel.iter_mut().zip(tables) {
            *value = table[usize::from(*value)];
        }
    }
}
