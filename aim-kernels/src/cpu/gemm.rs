//! Matrix products: strided views, one single-threaded product, and the cut of a large product into pieces.
//!
//! The product itself is faer's (AVX-512, AVX2 or portable at run time, packing buffers kept per thread, so that a warm
//! call allocates nothing). Threads come from our pool: a product is cut into tiles by its shape alone, each tile runs
//! over the whole inner dimension on one thread, and so bits do not depend on the thread count.

use std::marker::PhantomData;

use faer::Accum;

use super::pool;

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
        // SAFETY: the first element of an existing row, or one past the end for an empty view.
        Self { data: unsafe { self.data.add(if rows == 0 { 0 } else { start * self.row_stride }) }, rows, ..self }
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

    /// As [`MatMut::new`], from a pointer to the first element.
    ///
    /// # Safety
    /// All elements are inside one allocation and nobody else touches them while the view lives.
    pub(crate) unsafe fn from_raw(data: *mut f32, rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, lifetime: PhantomData }
    }
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
    assert!(needed <= len && (cols <= row_stride || rows <= 1), "{rows}x{cols} by {row_stride} in {len} values");
}

/// `c = alpha a b`, or `c += alpha a b` when `accumulate`, on the calling thread.
pub(crate) fn gemm(c: MatMut<'_>, accumulate: bool, a: Mat<'_>, b: Mat<'_>, alpha: f32) {
    assert!(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols, "product of unlike matrices");
    let accum = if accumulate { Accum::Add } else { Accum::Replace };
    // SAFETY: the views were checked against their slices when made; `c` is exclusive.
    unsafe {
        let view = |m: Mat<'_>| {
            faer::MatRef::from_raw_parts(m.data, m.rows, m.cols, m.row_stride as isize, m.col_stride as isize)
        };
        let c = faer::MatMut::from_raw_parts_mut(c.data, c.rows, c.cols, c.row_stride as isize, 1);
        faer::linalg::matmul::matmul(c, accum, view(a), view(b), alpha, faer::Par::Seq);
    }
}

/// Rows and columns of one piece of a `rows` x `cols` product.
///
/// Wide tiles pack their operands less often, many tiles keep many threads busy: tiles shrink from 512 x 512 until
/// there are 16, but not below 128 x 128.
fn tile(rows: usize, cols: usize) -> (usize, usize) {
    let (mut tall, mut wide) = (512, 512);
    while rows.div_ceil(tall) * cols.div_ceil(wide) < 16 && (tall > 128 || wide > 128) {
        // Cut the dimension whose tile is longer than the matrix first: that cut is free.
        if wide > 128 && (wide > tall || tall == 128 || wide > 2 * cols) { wide /= 2 } else { tall /= 2 }
    }
    // Even out: 576 columns are cut as 2 x 288 and not as 512 + 64.
    let even = |size: usize, tile: usize| {
        let count = size.div_ceil(tile).max(1);
        size.div_ceil(count).next_multiple_of(16)
    };
    (even(rows, tall), even(cols, wide))
}

/// `c = a b` or `c += a b` over the pool; then `finish(first_row, first_col, rows, cols)` for each finished tile.
pub(crate) fn par_gemm(c: &mut [f32], accumulate: bool, a: Mat<'_>, b: Mat<'_>) {
    let (rows, cols) = (a.rows, b.cols);
    assert_eq!(c.len(), rows * cols, "product of {rows}x{cols} into {} values", c.len());
    let (tall, wide) = tile(rows, cols);
    let (down, across) = (rows.div_ceil(tall), cols.div_ceil(wide));
    let out = pool::Disjoint::new(c);
    pool::for_each(down * across, |piece| {
        // Neighbouring pieces share rows of `a` and go over the columns.
        let (r, col) = (piece / across * tall, piece % across * wide);
        let (tall, wide) = (tall.min(rows - r), wide.min(cols - col));
        // SAFETY: tiles do not overlap and lie inside `c`.
        let c = unsafe { MatMut::from_raw(out.as_mut_ptr().add(r * cols + col), tall, wide, cols) };
        gemm(c, accumulate, a.rows(r, tall), b.cols(col, wide), 1.0);
    });
}
