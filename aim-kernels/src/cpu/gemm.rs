//! Matrix products: strided views, one single-threaded product, and the cut of a large product into pieces.
//!
//! The product itself is faer's (AVX-512, AVX2 or portable at run time, packing buffers kept per thread, so that a warm
//! call allocates nothing). Threads come from our pool: a product is cut into tiles by its shape alone, each tile runs
//! over the whole inner dimension on one thread, and so bits do not depend on the thread count.

use std::cell::RefCell;
use std::marker::PhantomData;

use faer::Accum;

use super::pool;
use super::transpose::{Block, transpose};

/// A strided matrix that is read.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: *const f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    lifetime: PhantomData<&'a [f32]>,
}

// SAFETY: a shared view of f32.
unsafe impl Sync for Mat<'_> {}
// SAFETY: as above.
unsafe impl Send for Mat<'_> {}

impl<'a> Mat<'a> {
    /// `rows` rows of `cols` values, `row_stride` apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        Self { data: data.as_ptr(), rows, cols, row_stride, col_stride: 1, lifetime: PhantomData }
    }

    /// A `rows` x `cols` matrix without gaps.
    pub(crate) fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols)
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    fn rows(self, start: usize, rows: usize) -> Self {
        assert!(start + rows <= self.rows, "rows {start}+{rows} of {}", self.rows);
        let offset = if rows == 0 { 0 } else { start * self.row_stride };
        // SAFETY: the first element of an existing row, or of the matrix for an empty view.
        let data = unsafe { self.data.add(offset) };
        Self { data, rows, ..self }
    }

    fn cols(self, start: usize, cols: usize) -> Self {
        self.t().rows(start, cols).t()
    }
}

/// A strided matrix that is written.
pub(crate) struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// `rows` rows of `cols` values, `row_stride` apart.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        // SAFETY: bounds were checked and the borrow is exclusive.
        unsafe { Self::from_raw(data.as_mut_ptr(), rows, cols, row_stride) }
    }

    /// A `rows` x `cols` matrix without gaps.
    pub(crate) fn dense(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols)
    }

    /// The same view for a shorter time.
    fn reborrow(&mut self) -> MatMut<'_> {
        // SAFETY: the same elements, and `self` is not used while the new view lives.
        unsafe { MatMut::from_raw(self.data, self.rows, self.cols, self.row_stride) }
    }

    /// As [`MatMut::new`], from a pointer to the first element.
    ///
    /// # Safety
    /// All elements are inside one allocation and nobody else touches them while the view lives.
    pub(crate) unsafe fn from_raw(
        data: *mut f32,
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> Self {
        Self { data, rows, cols, row_stride, lifetime: PhantomData }
    }
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
    assert!(
        needed <= len && (cols <= row_stride || rows <= 1),
        "{rows}x{cols} by {row_stride} in {len} values"
    );
}

/// `c = alpha a b`, or `c += alpha a b` when `accumulate`, on the calling thread.
pub(crate) fn gemm(c: MatMut<'_>, accumulate: bool, a: Mat<'_>, b: Mat<'_>, alpha: f32) {
    assert!(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols, "product of unlike matrices");
    let accum = if accumulate { Accum::Add } else { Accum::Replace };
    // SAFETY: the views were checked against their slices when made; `c` is exclusive.
    unsafe {
        let view = |m: Mat<'_>| {
            faer::MatRef::from_raw_parts(
                m.data,
                m.rows,
                m.cols,
                m.row_stride as isize,
                m.col_stride as isize,
            )
        };
        let c = faer::MatMut::from_raw_parts_mut(c.data, c.rows, c.cols, c.row_stride as isize, 1);
        faer::linalg::matmul::matmul(c, accum, view(a), view(b), alpha, faer::Par::Seq);
    }
}

/// Rows and columns of one piece of a `rows` x `cols` product.
///
/// Wide tiles pack their operands less often, many tiles keep many threads busy: tiles shrink until there are 16, but
/// not below `least`. faer's kernels cover 24 or 96 columns at a time, so widths are multiples of 96 or divide it.
fn tile(rows: usize, cols: usize, most: (usize, usize), least: (usize, usize)) -> (usize, usize) {
    let (mut tall, mut wide) = most;
    while rows.div_ceil(tall) * cols.div_ceil(wide) < 16 && (tall > least.0 || wide > least.1) {
        // Cut the dimension whose tile is longer than the matrix first: that cut is free.
        let across = wide > least.1 && (wide > tall || tall == least.0 || wide > 2 * cols);
        if across { wide /= 2 } else { tall /= 2 }
    }
    // Even out: 576 rows are cut as 2 x 288 and not as 512 + 64.
    let even = |size: usize, tile: usize, unit: usize| {
        let count = size.div_ceil(tile).max(1);
        size.div_ceil(count).next_multiple_of(unit)
    };
    (even(rows, tall, 16), even(cols, wide, 24))
}

/// `c = a b` or `c += a b` over the pool.
pub(crate) fn par_gemm(c: &mut [f32], accumulate: bool, a: Mat<'_>, b: Mat<'_>) {
    let (rows, cols) = (a.rows, b.cols);
    assert_eq!(c.len(), rows * cols, "product of {rows}x{cols} into {} values", c.len());
    let transposed = a.col_stride > 1;
    let (tall, wide) = if transposed {
        tile(rows, cols, (TALLEST, 384), (96, 96))
    } else {
        tile(rows, cols, (512, 384), (128, 96))
    };
    let (down, across) = (rows.div_ceil(tall), cols.div_ceil(wide));
    let out = pool::Disjoint::new(c);
    pool::for_each(down * across, |piece| {
        // Neighbouring pieces share rows of `a` and go over the columns.
        let (r, col) = (piece / across * tall, piece % across * wide);
        let (tall, wide) = (tall.min(rows - r), wide.min(cols - col));
        // SAFETY: tiles do not overlap and lie inside `c`.
        let c = unsafe { MatMut::from_raw(out.as_mut_ptr().add(r * cols + col), tall, wide, cols) };
        let (a, b) = (a.rows(r, tall), b.cols(col, wide));
        if transposed { gemm_copied(c, accumulate, a, b) } else { gemm(c, accumulate, a, b, 1.0) }
    });
}

/// Most rows of a tile whose left operand is copied.
const TALLEST: usize = 192;
/// Inner dimension of one product on a copy: the copy fills 192 KiB of a second-level cache.
const DEPTH: usize = 256;
/// Values from one row of the copy to the next: not a power of two, which would crowd the rows into a few sets of the
/// first-level cache.
const STRIDE: usize = DEPTH + 16;

/// [`gemm`] for an `a` whose columns are contiguous, as in a weight gradient.
///
/// faer reads this operand in place, four rows of it at a time along the inner dimension: here, four values from each
/// of thousands of lines of cache. A transposed copy of a block costs a twentieth of the block's product and makes the
/// whole a quarter to a third faster.
fn gemm_copied(mut c: MatMut<'_>, accumulate: bool, a: Mat<'_>, b: Mat<'_>) {
    thread_local! {
        static COPY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    COPY.with_borrow_mut(|copy| {
        // As large as any tile needs: a thread that meets a taller one later allocates nothing.
        copy.resize(TALLEST * STRIDE, 0.0);
        for start in (0..a.cols.max(1)).step_by(DEPTH) {
            let depth = DEPTH.min(a.cols - start);
            let block = a.cols(start, depth);
            copy_rows(block, copy);
            let block = Mat::new(copy, a.rows, depth, STRIDE);
            gemm(c.reborrow(), accumulate || start > 0, block, b.rows(start, depth), 1.0);
        }
    });
}

/// Copies a matrix whose columns are contiguous to one whose rows are, [`STRIDE`] apart.
fn copy_rows(from: Mat<'_>, to: &mut [f32]) {
    let Mat { rows, cols, row_stride, col_stride, .. } = from;
    assert!(rows <= TALLEST && cols <= DEPTH && row_stride == 1, "copy of {rows}x{cols}");
    if rows > 0 && cols > 0 {
        // SAFETY: the view covers these elements.
        let from = unsafe { std::slice::from_raw_parts(from.data, (cols - 1) * col_stride + rows) };
        transpose(Block { rows, cols, col_stride, row_stride: STRIDE }, from, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_operands_of_any_size_give_the_product() {
        for (rows, inner, cols) in
            [(1, 1, 1), (7, 0, 5), (9, 13, 3), (200, 300, 100), (16, 513, 31)]
        {
            let a: Vec<f32> = (0..inner * rows).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..inner * cols).map(|i| (i % 5) as f32 - 2.0).collect();
            for accumulate in [false, true] {
                let mut c = vec![1.0; rows * cols];
                par_gemm(
                    &mut c,
                    accumulate,
                    Mat::dense(&a, inner, rows).t(),
                    Mat::dense(&b, inner, cols),
                );
                for (i, &c) in c.iter().enumerate() {
                    let (r, col) = (i / cols, i % cols);
                    let sum: f32 = (0..inner).map(|k| a[k * rows + r] * b[k * cols + col]).sum();
                    // Small whole numbers: the product is exact whatever its order.
                    assert_eq!(
                        c,
                        if accumulate { sum + 1.0 } else { sum },
                        "{rows}x{inner}x{cols} at {i}"
                    );
                }
            }
        }
    }
}
