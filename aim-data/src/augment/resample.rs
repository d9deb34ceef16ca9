//! Resampling with an antialiased bicubic filter, to the bit as Pillow's `BICUBIC` does it.
//!
//! Rows first, columns second; weights from f64, rounded to 22 fractional bits; sums in `i32`,
//! rounded and clipped to bytes after each direction. Integers throughout, so that every machine
//! gives the same pixels, whatever instructions it has.

use pulp::Arch;

use super::CropBox;
use crate::image::View;

/// Fractional bits of a weight: eight bits of pixel and two of head room fill an `i32`.
const PRECISION: u32 = 32 - 8 - 2;
/// Reach of the filter in pixels, when enlarging.
const SUPPORT: f64 = 2.0;
/// Rows filtered side by side (gray and colour), and bytes summed side by side down the columns.
const LANES: usize = 8;
const COLOR_LANES: usize = 4;
const BLOCK: usize = 32;
/// Bytes past a row of RGB pixels that may be read.
const PAD: usize = 16;

/// A stretch of pixels along one direction that becomes the output's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) start: f64,
    pub(super) length: f64,
}

impl Span {
    /// First pixel that the filter can reach, and how many, of `size`.
    pub(super) fn reach(self, size: u32, outputs: usize) -> (u32, u32) {
        let margin = SUPPORT * (self.length / outputs as f64).max(1.0) + 1.0;
        let first = (self.start - margin).max(0.0).min(f64::from(size - 1)) as u32;
        let end = (self.start + self.length + margin).ceil().min(f64::from(size)) as u32;
        (first, end.max(first + 1) - first)
    }
}

/// Working memory for resampling.
pub(super) struct Resampler {
    arch: Arch,
    #[cfg(target_arch = "x86_64")]
    v3: Option<super::filter_x86::V3>,
    #[cfg(target_arch = "x86_64")]
    pairs: super::filter_x86::Pairs,
    across: Weights,
    down: Weights,
    packed: Vec<u8>,
    rows: Vec<u8>,
}

impl Resampler {
    pub(super) fn new() -> Self {
        Self {
            arch: Arch::new(),
            #[cfg(target_arch = "x86_64")]
            v3: super::filter_x86::V3::try_new(),
            #[cfg(target_arch = "x86_64")]
            pairs: super::filter_x86::Pairs::default(),
            across: Weights::default(),
            down: Weights::default(),
            packed: Vec::new(),
            rows: Vec::new(),
        }
    }

    #[cfg(test)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    pub(super) fn without_vectors() -> Self {
        let mut this = Self::new();
        #[cfg(target_arch = "x86_64")]
        {
            this.v3 = None;
        }
        this
    }

    /// Resamples the spans `x` and `y` of a part of an image, given in the part's own pixels, to
    /// `width` pixels a row. Nothing outside the part takes part in filtering.
    pub(super) fn run(
        &mut self,
        image: View<'_>,
        part: CropBox,
        (x, y): (Span, Span),
        (width, height): (usize, usize),
        out: &mut [u8],
    ) {
        self.across.compute(part.width, x, width);
        self.down.compute(part.height, y, height);
        let Self { across, down, packed, rows, arch, .. } = self;
        #[cfg(target_arch = "x86_64")]
        if let (3, Some(v3)) = (image.channels, self.v3) {
            self.pairs.compute(&across.values, across.stride);
            let wide = Some((v3, &self.pairs));
            v3.vectorize(Task::<3> { image, part, across, down, wide, packed, rows, out });
            return;
        }
        let wide = None;
        if image.channels == 3 {
            arch.dispatch(Task::<3> { image, part, across, down, wide, packed, rows, out });
        } else {
            arch.dispatch(Task::<1> { image, part, across, down, wide, packed, rows, out });
        }
    }
}

/// The AVX2 filter's token and weights, where there is AVX2.
#[cfg(target_arch = "x86_64")]
type Wide<'a> = Option<(super::filter_x86::V3, &'a super::filter_x86::Pairs)>;
#[cfg(not(target_arch = "x86_64"))]
type Wide<'a> = Option<&'a std::convert::Infallible>;

/// What [`resample`] takes. A type of its own, since a closure handed to `dispatch` need not be
/// inlined there, and would then be compiled for the build's baseline.
struct Task<'a, const C: usize> {
    image: View<'a>,
    part: CropBox,
    across: &'a Weights,
    down: &'a Weights,
    wide: Wide<'a>,
    packed: &'a mut Vec<u8>,
    rows: &'a mut Vec<u8>,
    out: &'a mut [u8],
}

impl<const C: usize> pulp::NullaryFnOnce for Task<'_, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { image, part, across, down, wide, packed, rows, out } = self;
        resample::<C>(image, part, across, down, wide, packed, rows, out);
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
    image: View<'_>,
    part: CropBox,
    across: &Weights,
    down: &Weights,
    wide: Wide<'_>,
    packed: &mut Vec<u8>,
    rows: &mut Vec<u8>,
    out: &mut [u8],
) {
    let row_len = across.bounds.len() * C;
    // Padded, so that every block of a row is a whole one and a pixel can be written as four bytes.
    let stride = (row_len + 1).next_multiple_of(BLOCK);
    let (top, bottom) = down.extent();
    let (left, right) = across.extent();
    rows.resize((bottom - top) * stride, 0);
    let image_stride = image.width as usize * C;
    let offset = (part.left as usize + left - image.origin.0 as usize) * C;
    let start =
        |y: usize| (part.top as usize + y - image.origin.1 as usize) * image_stride + offset;
    let len = (right - left) * C;
    if C == 3 {
        for (block, target) in rows.chunks_mut(COLOR_LANES * stride).enumerate() {
            let row = |lane: usize| start((top + block * COLOR_LANES + lane).min(bottom - 1));
            // A few bytes past each row are read, and have no influence. Where the image ends
            // before them, rows are copied.
            let rows: [usize; COLOR_LANES] = std::array::from_fn(row);
            let inside = rows.iter().all(|from| from + len + PAD <= image.pixels.len());
            if !inside {
                packed.resize(COLOR_LANES * (len + PAD), 0);
                for (copy, from) in packed.chunks_exact_mut(len + PAD).zip(rows) {
                    copy[..len].copy_from_slice(&image.pixels[from..][..len]);
                }
            }
            let sources = std::array::from_fn(|lane| {
                if inside {
                    &image.pixels[rows[lane]..][..len + PAD]
                } else {
                    &packed[lane * (len + PAD)..][..len + PAD]
                }
            });
            #[cfg(target_arch = "x86_64")]
            if let Some((v3, pairs)) = wide {
                let layout = (stride, PRECISION);
                super::filter_x86::filter_color(
                    v3,
                    &sources,
                    left,
                    (&across.bounds, pairs),
                    layout,
                    target,
                );
                continue;
            }
            filter_color(&sources, left, across, stride, target);
        }
    } else {
        packed.resize(len * LANES, 0);
        for (block, target) in rows.chunks_mut(LANES * stride).enumerate() {
            let first = top + block * LANES;
            // The last block repeats the last row; what it makes of the repetitions is not kept.
            let sources: [&[u8]; LANES] = std::array::from_fn(|lane| {
                &image.pixels[start((first + lane).min(bottom - 1))..][..len]
            });
            interleave(&sources, packed);
            filter_gray(packed, left, across, stride, target);
        }
    }
    for ((first, weights), out_row) in down.iter().zip(out.chunks_exact_mut(row_len)) {
        filter_column(&rows[(first - top) * stride..], stride, weights, out_row);
    }
}

/// Filters [`COLOR_LANES`] rows of RGB pixels at once and writes those that `target` has room for.
///
/// A pixel is read and summed as four bytes, the fourth being its neighbour's and of no use: so
/// that it fills a vector register. Its result is overwritten by the next pixel's.
#[inline(always)]
fn filter_color(
    sources: &[&[u8]; COLOR_LANES],
    left: usize,
    across: &Weights,
    stride: usize,
    target: &mut [u8],
) {
    let count = target.len() / stride;
    for (output, (first, weights)) in across.iter().enumerate() {
        let mut sums = [[1 << (PRECISION - 1); 4]; COLOR_LANES];
        let from = (first - left) * 3;
        let rows: [&[u8]; COLOR_LANES] =
            std::array::from_fn(|lane| &sources[lane][from..from + weights.len() * 3 + 1]);
        for (tap, &weight) in weights.iter().enumerate() {
            for (sums, row) in sums.iter_mut().zip(&rows) {
                if let Some(pixel) = row[tap * 3..].first_chunk::<4>() {
                    *sums = std::array::from_fn(|at| sums[at] + i32::from(pixel[at]) * weight);
                }
            }
        }
        for (lane, sums) in sums.iter().enumerate().take(count) {
            if let Some(pixel) = target[lane * stride + output * 3..].first_chunk_mut::<4>() {
                *pixel = sums.map(clip);
            }
        }
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

/// Filters eight rows of gray pixels at once and writes those that `target` has room for.
#[inline(always)]
fn filter_gray(packed: &[u8], left: usize, across: &Weights, stride: usize, target: &mut [u8]) {
    let (packed, _) = packed.as_chunks::<LANES>();
    for (output, (first, weights)) in across.iter().enumerate() {
        let mut sums = [1 << (PRECISION - 1); LANES];
        for (&weight, lanes) in weights.iter().zip(&packed[first - left..]) {
            for (sum, &value) in sums.iter_mut().zip(lanes) {
                *sum += i32::from(value) * weight;
            }
        }
        for (sum, row) in sums.iter().zip(target.chunks_exact_mut(stride)) {
            row[output] = clip(*sum);
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
        // Clipped as a whole block, of which the row may take a part.
        let mut bytes = [0; BLOCK];
        for (byte, sum) in bytes.iter_mut().zip(sums) {
            *byte = clip(sum);
        }
        let len = out.len();
        out.copy_from_slice(&bytes[..len]);
    }
}
