//! Resampling with an antialiased bicubic filter, to the bit as Pillow's `BICUBIC` does it.
//!
//! Rows first, columns second; weights from f64, rounded to 22 fractional bits; sums in `i32`,
//! rounded and clipped to bytes after each direction. Integers throughout, so that every machine
//! gives the same pixels, whatever instructions it has.

use pulp::Arch;

use super::CropBox;
use crate::image::Image;

/// Fractional bits of a weight: eight bits of pixel and two of head room fill an `i32`.
const PRECISION: u32 = 32 - 8 - 2;
/// Reach of the filter in pixels, when enlarging.
const SUPPORT: f64 = 2.0;
/// Rows filtered side by side, and bytes of a row summed side by side down the columns.
const LANES: usize = 8;
const BLOCK: usize = 32;

/// A stretch of pixels along one direction that becomes the output's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) start: f64,
    pub(super) length: f64,
}

/// Working memory for resampling.
pub(super) struct Resampler {
    arch: Arch,
    across: Weights,
    down: Weights,
    packed: Vec<u8>,
    rows: Vec<u8>,
}

impl Resampler {
    pub(super) fn new() -> Self {
        Self {
            arch: Arch::new(),
            across: Weights::default(),
            down: Weights::default(),
            packed: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Resamples the spans `x` and `y` of a part of an image, given in the part's own pixels, to
    /// `width` pixels a row. Nothing outside the part takes part in filtering.
    pub(super) fn run(
        &mut self,
        image: &Image,
        part: CropBox,
        (x, y): (Span, Span),
        (width, height): (usize, usize),
        out: &mut [u8],
    ) {
        self.across.compute(part.width, x, width);
        self.down.compute(part.height, y, height);
        let Self { across, down, packed, rows, arch } = self;
        if image.channels() == 3 {
            arch.dispatch(|| resample::<3>(image, part, across, down, packed, rows, out));
        } else {
            arch.dispatch(|| resample::<1>(image, part, across, down, packed, rows, out));
        }
    }
}

/// What each output along one direction is made of.
#[derive(Default)]
struct Weights {
    /// First source pixel and number of them.
    bounds: Vec<(usize, usize)>,
    /// `stride` weights for each output.
    values: Vec<i32>,
    stride: usize,
    exact: Vec<f64>,
}

impl Weights {
    fn compute(&mut self, size: u32, span: Span, outputs: usize) {
        let scale = span.length / outputs as f64;
        let filter_scale = scale.max(1.0);
        let reach = SUPPORT * filter_scale;
        self.stride = reach.ceil() as usize * 2 + 1;
        self.bounds.clear();
        self.values.clear();
        for output in 0..outputs {
            let center = span.start + (output as f64 + 0.5) * scale;
            // Truncation towards zero, as the reference casts.
            let first = (center - reach + 0.5).max(0.0) as usize;
            let last = (center + reach + 0.5).min(f64::from(size)) as usize;
            // Rounding in a span that ends at the edge must not leave an output without a pixel.
            let first = first.min(size as usize - 1);
            let count = last.saturating_sub(first).clamp(1, self.stride);
            self.exact.clear();
            self.exact
                .extend((0..count).map(|at| {
                    bicubic(((at + first) as f64 - center + 0.5) * (1.0 / filter_scale))
                }));
            let sum: f64 = self.exact.iter().sum();
            let norm = if sum == 0.0 { 1.0 } else { sum };
            self.bounds.push((first, count));
            self.values.extend(self.exact.iter().map(|weight| fixed(weight / norm)));
            self.values.resize((output + 1) * self.stride, 0);
        }
    }

    /// First and one past the last source pixel in use.
    fn extent(&self) -> (usize, usize) {
        let first = self.bounds.first().map_or(0, |bound| bound.0);
        let last = self.bounds.last().map_or(0, |bound| bound.0 + bound.1);
        (first, last)
    }

    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let rows = self.values.chunks_exact(self.stride);
        self.bounds.iter().zip(rows).map(|(&(first, count), row)| (first, &row[..count]))
    }
}

/// Keys' cubic with a = -1/2.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Both directions. Always inlined, so that the instructions of the caller's choice are used.
#[inline(always)]
fn resample<const C: usize>(
    image: &Image,
    part: CropBox,
    across: &Weights,
    down: &Weights,
    packed: &mut Vec<u8>,
    rows: &mut Vec<u8>,
    out: &mut [u8],
) {
    let row_len = across.bounds.len() * C;
    // Padded, so that every block of a row is a whole one.
    let stride = row_len.next_multiple_of(BLOCK);
    let (top, bottom) = down.extent();
    let (left, right) = across.extent();
    rows.resize((bottom - top) * stride, 0);
    packed.resize((right - left) * C * LANES, 0);
    let image_stride = image.width() as usize * C;
    let offset = (part.left as usize + left) * C;
    let source_row = |y: usize| {
        let start = (part.top as usize + y) * image_stride + offset;
        &image.pixels()[start..start + (right - left) * C]
    };
    for (block, target) in rows.chunks_mut(LANES * stride).enumerate() {
        let first = top + block * LANES;
        // The last block repeats the last row; what it makes of the repetitions is not kept.
        let sources: [&[u8]; LANES] =
            std::array::from_fn(|lane| source_row((first + lane).min(bottom - 1)));
        interleave(&sources, packed);
        filter_rows::<C>(packed, left, across, stride, target);
    }
    for ((first, weights), out_row) in down.iter().zip(out.chunks_exact_mut(row_len)) {
        filter_column(&rows[(first - top) * stride..], stride, weights, out_row);
    }
}

/// Puts the bytes of eight rows next to each other.
#[inline(always)]
fn interleave(sources: &[&[u8]; LANES], packed: &mut [u8]) {
    let (packed, _) = packed.as_chunks_mut::<LANES>();
    for (at, lanes) in packed.iter_mut().enumerate() {
        *lanes = std::array::from_fn(|lane| sources[lane][at]);
    }
}

/// Filters eight rows at once and writes those that `target` has room for.
#[inline(always)]
fn filter_rows<const C: usize>(
    packed: &[u8],
    left: usize,
    across: &Weights,
    stride: usize,
    target: &mut [u8],
) {
    let (packed, _) = packed.as_chunks::<LANES>();
    for (output, (first, weights)) in across.iter().enumerate() {
        let mut sums = [[1 << (PRECISION - 1); LANES]; C];
        let pixels = packed[(first - left) * C..].chunks_exact(C);
        for (&weight, pixel) in weights.iter().zip(pixels) {
            for (sums, lanes) in sums.iter_mut().zip(pixel) {
                for (sum, &value) in sums.iter_mut().zip(lanes) {
                    *sum += i32::from(value) * weight;
                }
            }
        }
        for (lane, row) in target.chunks_exact_mut(stride).enumerate() {
            for (channel, sums) in sums.iter().enumerate() {
                row[output * C + channel] = clip(sums[lane]);
            }
        }
    }
}

/// Filters down the columns: one output row from the rows that begin at `rows`.
#[inline(always)]
fn filter_column(rows: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut sums = [1 << (PRECISION - 1); BLOCK];
        for (&weight, row) in weights.iter().zip(rows.chunks_exact(stride)) {
            let values = &row[block * BLOCK..][..BLOCK];
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = clip(sum);
        }
    }
}
