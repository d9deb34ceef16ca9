//! Transposed copies of small blocks, for products whose left operand lies the wrong way round.

#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};

/// Rows and columns of a square that is transposed in registers.
const SIDE: usize = 8;

/// A block's size, and the distance between neighbours on both sides.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Rows of the copy.
    pub(crate) rows: usize,
    /// Columns of the copy, which are contiguous in the source.
    pub(crate) cols: usize,
    /// Values from a column to the next in the source.
    pub(crate) col_stride: usize,
    /// Values from a row to the next in the copy.
    pub(crate) row_stride: usize,
}

/// `to[r * row_stride + c] = from[c * col_stride + r]`.
///
/// # Panics
/// If the block leaves one of the slices, or overlaps itself in the copy.
pub(crate) fn transpose(block: Block, from: &[f32], to: &mut [f32]) {
    let Block { rows, cols, col_stride, row_stride } = block;
    if rows == 0 || cols == 0 {
        return;
    }
    assert!((cols - 1) * col_stride + rows <= from.len(), "transpose: source");
    assert!(cols <= row_stride && (rows - 1) * row_stride + cols <= to.len(), "transpose: copy");
    let (whole_rows, whole_cols) = (rows / SIDE * SIDE, cols / SIDE * SIDE);
    // Eight columns at a time from end to end: few streams, which hardware reads ahead.
    for c in (0..whole_cols).step_by(SIDE) {
        strip(block, whole_rows, &from[c * col_stride..], &mut to[c..]);
    }
    for c in 0..cols {
        let first = if c < whole_cols { whole_rows } else { 0 };
        for r in first..rows {
            to[r * row_stride + c] = from[c * col_stride + r];
        }
    }
}

/// Eight columns, the first `rows` values of each; `rows` is a multiple of eight.
fn strip(block: Block, rows: usize, from: &[f32], to: &mut [f32]) {
    let Block { col_stride, row_stride, .. } = block;
    if rows == 0 {
        return;
    }
    assert!((SIDE - 1) * col_stride + rows <= from.len(), "transpose: strip of the source");
    assert!((rows - 1) * row_stride + SIDE <= to.len(), "transpose: strip of the copy");
    #[cfg(target_arch = "x86_64")]
    if isa() != Isa::Baseline {
        for r in (0..rows).step_by(SIDE) {
            // SAFETY: the machine has AVX; rows `r..r + 8` of the strip are inside both slices, as asserted.
            unsafe {
                x86::square(
                    from.as_ptr().add(r),
                    col_stride,
                    to.as_mut_ptr().add(r * row_stride),
                    row_stride,
                );
            }
        }
        return;
    }
    for r in 0..rows {
        for c in 0..SIDE {
            to[r * row_stride + c] = from[c * col_stride + r];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::SIDE;

    /// Strips that are asked for ahead of their use.
    const AHEAD: usize = 2;

    /// Transposes one square of eight by eight.
    ///
    /// # Safety
    /// Eight values can be read at each of the eight multiples of `from_stride` and written at those of `to_stride`.
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn square(
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        let mut rows = [_mm256_setzero_ps(); SIDE];
        for (i, row) in rows.iter_mut().enumerate() {
            let at = from.wrapping_add(i * from_stride);
            // A hint, which may point anywhere.
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * SIDE * from_stride).cast());
            // SAFETY: readable by the caller's promise.
            *row = unsafe { _mm256_loadu_ps(at) };
        }
        // Pairs of neighbours, then fours, then halves change places.
        let [a, b, c, d, e, f, g, h] = rows;
        let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        let (ef0, ef1) = (_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
        let (gh0, gh1) = (_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
        let low = |x, y| _mm256_shuffle_ps::<0b01_00_01_00>(x, y);
        let high = |x, y| _mm256_shuffle_ps::<0b11_10_11_10>(x, y);
        let first = [low(ab0, cd0), high(ab0, cd0), low(ab1, cd1), high(ab1, cd1)];
        let second = [low(ef0, gh0), high(ef0, gh0), low(ef1, gh1), high(ef1, gh1)];
        for i in 0..SIDE / 2 {
            let (x, y) = (first[i], second[i]);
            let rows = [
                (i, _mm256_permute2f128_ps::<0x20>(x, y)),
                (i + SIDE / 2, _mm256_permute2f128_ps::<0x31>(x, y)),
            ];
            for (row, values) in rows {
                // SAFETY: writable by the caller's promise.
                unsafe { _mm256_storeu_ps(to.add(row * to_stride), values) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_finds_its_place_and_nothing_else_changes() {
        for (rows, cols) in [(1, 1), (8, 8), (7, 9), (9, 7), (16, 24), (31, 17), (96, 40), (0, 3)] {
            let (col_stride, row_stride) = (rows + 3, cols + 2);
            let from: Vec<f32> = (0..cols * col_stride).map(|i| i as f32).collect();
            let mut to = vec![-1.0; rows * row_stride];
            transpose(Block { rows, cols, col_stride, row_stride }, &from, &mut to);
            for (i, &found) in to.iter().enumerate() {
                let (r, c) = (i / row_stride, i % row_stride);
                let expected = if c < cols { from[c * col_stride + r] } else { -1.0 };
                assert_eq!(found, expected, "{rows}x{cols} at {r}, {c}");
            }
        }
    }
}
