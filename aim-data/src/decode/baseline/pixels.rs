//! From component planes to RGB: triangle-filtered chroma and fixed-point conversion, as libjpeg.

use super::Area;

/// Where planes lie in the frame.
pub(super) struct Frame {
    pub(super) size: (usize, usize),
    pub(super) sampling: (usize, usize),
    /// First chroma sample of the planes, across and down, in the frame.
    pub(super) origin: (usize, usize),
    /// Chroma samples in a row of its planes.
    pub(super) stride: usize,
}

/// Working memory for one row.
#[derive(Default)]
pub(super) struct Rows {
    sums: Vec<i16>,
    chroma: [Vec<u8>; 2],
}

/// Converts an area that the planes cover.
pub(super) struct Convert<'a> {
    pub(super) frame: Frame,
    pub(super) planes: &'a [Vec<u8>; 3],
    pub(super) area: Area,
    pub(super) rows: &'a mut Rows,
    pub(super) out: &'a mut [u8],
}

impl pulp::NullaryFnOnce for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { frame, planes, area, rows, out } = self;
        let (horizontal, vertical) = frame.sampling;
        let luma_stride = frame.stride * horizontal;
        let luma_left = area.left - frame.origin.0 * horizontal;
        for (y, out) in (area.top..).zip(out.chunks_exact_mut(area.width * 3)) {
            let luma_row = y - frame.origin.1 * vertical;
            let luma = &planes[0][luma_row * luma_stride + luma_left..][..area.width];
            if horizontal == 1 {
                let from = luma_row * frame.stride + luma_left;
                let [cb, cr] = [1, 2].map(|plane| &planes[plane][from..][..area.width]);
                convert(luma, cb, cr, out);
                continue;
            }
            let Rows { sums, chroma } = rows;
            for (plane, row) in planes[1..].iter().zip(chroma.iter_mut()) {
                upsample(&frame, plane, &area, y, sums, row);
            }
            let skip = area.left % 2;
            let [cb, cr] = [0, 1].map(|at| &chroma[at][skip..][..area.width]);
            convert(luma, cb, cr, out);
        }
    }
}

/// One row of chroma at luma's resolution, from the even column at or before the area's first.
#[inline(always)]
fn upsample(
    frame: &Frame,
    plane: &[u8],
    area: &Area,
    y: usize,
    sums: &mut Vec<i16>,
    out: &mut Vec<u8>,
) {
    let (width, height) = (frame.size.0.div_ceil(2), frame.size.1.div_ceil(frame.sampling.1));
    let (first, last) = (area.left / 2, (area.left + area.width - 1) / 2);
    // With a neighbour on each side; at the frame's edge a sample is its own neighbour.
    let (from, until) = (first.saturating_sub(1), (last + 2).min(width));
    let row = |y: usize| &plane[(y - frame.origin.1) * frame.stride..][..frame.stride];
    let part = |y: usize| &row(y)[from - frame.origin.0..until - frame.origin.0];
    sums.clear();
    if first == 0 {
        sums.push(0);
    }
    if frame.sampling.1 == 2 {
        let near = y / 2;
        let far = if y % 2 == 1 { (near + 1).min(height - 1) } else { near.saturating_sub(1) };
        let pairs = part(near).iter().zip(part(far));
        sums.extend(pairs.map(|(&near, &far)| 3 * i16::from(near) + i16::from(far)));
    } else {
        sums.extend(part(y).iter().map(|&value| i16::from(value)));
    }
    if first == 0 {
        sums[0] = sums[1];
    }
    if last + 2 > width {
        sums.push(sums[sums.len() - 1]);
    }
    let count = last + 1 - first;
    out.resize(count * 2, 0);
    let (before, rest) = (&sums[..count], &sums[1..]);
    let (here, after) = (&rest[..count], &rest[1..][..count]);
    let (out, _) = out.as_chunks_mut::<2>();
    // The roundings of an even and an odd pixel differ, so that they have no bias together.
    let (shift, even, odd) = if frame.sampling.1 == 2 { (4, 8, 7) } else { (2, 1, 2) };
    for (((out, &before), &here), &after) in out.iter_mut().zip(before).zip(here).zip(after) {
        let here = here * 3;
        *out = [((here + before + even) >> shift) as u8, ((here + after + odd) >> shift) as u8];
    }
}

#[inline(always)]
fn convert(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    let clip = |value: i32| value.clamp(0, 255) as u8;
    let (out, _) = out.as_chunks_mut::<3>();
    for (((out, &y), &cb), &cr) in out.iter_mut().zip(luma).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let red = y + ((91_881 * cr + HALF) >> 16);
        let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
        let blue = y + ((116_130 * cb + HALF) >> 16);
        *out = [clip(red), clip(green), clip(blue)];
    }
}
