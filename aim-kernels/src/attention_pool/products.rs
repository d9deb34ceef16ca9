//! The two products between a few rows and an image's tokens, for any number of rows.
//!
//! A value is one sum of fixed order that looks at nothing but its own row and column. So a row's results are the same
//! bits whatever rows are computed beside it: a grid of probes trains each as if alone. A general matrix product does
//! not promise that, and is slow where there are three rows.

use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Portable, Vector};
use crate::cpu::pool::Disjoint;
use crate::cpu::simd::{Isa, LANES, isa};

/// Values of a row that one pass of [`scores`] covers: four rows of each side stay in the first-level cache.
const DEPTH: usize = 512;
/// Tokens that are compared with four rows before the next four rows.
const TOKENS: usize = 16;

/// Rows of equal length that lie in groups: `[groups, …, rows in a group, len]` at one place of the middle.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    data: *const f32,
    /// Number of rows.
    pub(super) count: usize,
    group: usize,
    group_stride: usize,
    len: usize,
    lifetime: PhantomData<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// `count` rows of `len` values without gaps.
    pub(super) fn dense(data: &'a [f32], count: usize, len: usize) -> Self {
        Self::grouped(data, count, count.max(1), 0, len)
    }

    /// `count` rows, of which each `group` lie together and groups start `group_stride` apart.
    pub(super) fn grouped(
        data: &'a [f32],
        count: usize,
        group: usize,
        group_stride: usize,
        len: usize,
    ) -> Self {
        assert!(end(count, group, group_stride, len) <= data.len(), "attention_pool: rows");
        Self { data: data.as_ptr(), count, group, group_stride, len, lifetime: PhantomData }
    }

    #[inline(always)]
    fn at(&self, row: usize) -> *const f32 {
        debug_assert!(row < self.count);
        let offset = row / self.group * self.group_stride + row % self.group * self.len;
        // SAFETY: inside the data, which `grouped` checked.
        unsafe { self.data.add(offset) }
    }
}

/// Where the last of the rows ends.
fn end(count: usize, group: usize, group_stride: usize, len: usize) -> usize {
    match count.checked_sub(1) {
        Some(last) => last / group * group_stride + (last % group + 1) * len,
        None => 0,
    }
}

/// [`Rows`] that are written, of which the caller is the only user.
#[derive(Clone, Copy)]
pub(super) struct RowsMut<'a> {
    data: *mut f32,
    count: usize,
    group: usize,
    group_stride: usize,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> RowsMut<'a> {
    /// `count` rows of `len` values without gaps.
    pub(super) fn dense(data: &'a mut [f32], count: usize, len: usize) -> Self {
        assert!(count * len <= data.len(), "attention_pool: rows");
        let data = data.as_mut_ptr();
        Self { data, count, group: count.max(1), group_stride: 0, len, lifetime: PhantomData }
    }

    /// As [`Rows::grouped`], the first row at `start`.
    ///
    /// # Safety
    /// Nobody else touches these rows while the view lives.
    pub(super) unsafe fn grouped(
        data: &Disjoint<'a, f32>,
        start: usize,
        count: usize,
        group: usize,
        group_stride: usize,
        len: usize,
    ) -> Self {
        assert!(start + end(count, group, group_stride, len) <= data.len(), "attention_pool: rows");
        // SAFETY: inside the slice.
        let data = unsafe { data.as_mut_ptr().add(start) };
        Self { data, count, group, group_stride, len, lifetime: PhantomData }
    }

    #[inline(always)]
    fn at(&self, row: usize) -> *mut f32 {
        debug_assert!(row < self.count);
        let offset = row / self.group * self.group_stride + row % self.group * self.len;
        // SAFETY: inside the data, which was checked.
        unsafe { self.data.add(offset) }
    }

    /// Calls `f` for each row.
    pub(super) fn for_each(&mut self, mut f: impl FnMut(&mut [f32])) {
        for row in 0..self.count {
            // SAFETY: inside the data, and ours alone.
            f(unsafe { std::slice::from_raw_parts_mut(self.at(row), self.len) });
        }
    }

    /// The rows to read.
    pub(super) fn as_rows(&self) -> Rows<'_> {
        let Self { data, count, group, group_stride, len, .. } = *self;
        Rows { data, count, group, group_stride, len, lifetime: PhantomData }
    }
}

/// Defines `$name`, which runs the generic `$body` with this machine's vectors.
macro_rules! vector_dispatch {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident : $ty:ty),* $(,)?) = $body:ident;) => {
        $(#[$meta])*
        pub(super) fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) {
                    // SAFETY: the features are enabled here, and the arguments are as for `$name`.
                    unsafe { $body::<Avx512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    // SAFETY: as above.
                    unsafe { $body::<Avx2>($($arg),*) }
                }
                match isa() {
                    // SAFETY: `isa` saw these features on this machine.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Baseline => {}
                }
            }
            // SAFETY: no instructions beyond the build's.
            unsafe { $body::<Portable>($($arg),*) }
        }
    };
}

vector_dispatch! {
    /// `s = a x^T`: a `[rows, dim]`, x `[tokens, dim]`, s `[rows, tokens]`.
    fn scores(a: Rows<'_>, x: &[f32], s: &mut [f32]) = scores_body;
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn scores_body<V: Vector>(a: Rows<'_>, x: &[f32], s: &mut [f32]) {
    let (rows, dim) = (a.count, a.len);
    let tokens = x.len() / dim;
    assert!(x.len() == tokens * dim && s.len() == rows * tokens, "attention_pool: scores");
    for first in (0..dim).step_by(DEPTH) {
        let depth = DEPTH.min(dim - first);
        for block in (0..tokens).step_by(TOKENS) {
            let stop = tokens.min(block + TOKENS);
            let mut row = 0;
            while row < rows {
                let tall = if row + 4 <= rows { 4 } else { 1 };
                let mut token = block;
                while token < stop {
                    let wide = if token + 4 <= stop { 4 } else { 1 };
                    // SAFETY: rows, tokens and values are inside; `s` was checked.
                    unsafe {
                        let tile = Tile { a, x: x.as_ptr(), row, token, first, depth, tokens };
                        match (tall, wide) {
                            (4, 4) => tile.dot::<V, 4, 4>(s),
                            (4, _) => tile.dot::<V, 4, 1>(s),
                            (_, 4) => tile.dot::<V, 1, 4>(s),
                            _ => tile.dot::<V, 1, 1>(s),
                        }
                    }
                    token += wide;
                }
                row += tall;
            }
        }
    }
}

/// A few rows, a few tokens and a stretch of their values.
struct Tile<'a> {
    a: Rows<'a>,
    x: *const f32,
    row: usize,
    token: usize,
    first: usize,
    depth: usize,
    tokens: usize,
}

impl Tile<'_> {
    /// # Safety
    /// As [`scores_body`]; `R` rows and `T` tokens from here exist, and `depth` values from `first`.
    #[inline(always)]
    unsafe fn dot<V: Vector, const R: usize, const T: usize>(&self, s: &mut [f32]) {
        // SAFETY: the caller's promise: `R` rows and `T` tokens from here exist, and `depth` values from `first`.
        unsafe {
            let a: [*const f32; R] =
                std::array::from_fn(|r| self.a.at(self.row + r).add(self.first));
            let x: [*const f32; T] =
                std::array::from_fn(|t| self.x.add((self.token + t) * self.a.len + self.first));
            let mut sums = [[V::zero(); T]; R];
            let whole = self.depth / LANES * LANES;
            let mut d = 0;
            while d < whole {
                let xs: [V; T] = std::array::from_fn(|t| V::load(x[t].add(d)));
                for r in 0..R {
                    let v = V::load(a[r].add(d));
                    for t in 0..T {
                        sums[r][t] = v.mul_add(xs[t], sums[r][t]);
                    }
                }
                d += LANES;
            }
            if whole < self.depth {
                let rest = |from: *const f32| {
                    let mut padded = [0.0; LANES];
                    for (i, v) in padded[..self.depth - whole].iter_mut().enumerate() {
                        *v = *from.add(whole + i);
                    }
                    V::load(padded.as_ptr())
                };
                let xs: [V; T] = std::array::from_fn(|t| rest(x[t]));
                for r in 0..R {
                    let v = rest(a[r]);
                    for t in 0..T {
                        sums[r][t] = v.mul_add(xs[t], sums[r][t]);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let start = (self.row + r) * self.tokens + self.token;
                let places = &mut s[start..start + T];
                let mut values = [0.0; T];
                if let (Some(four), Some(values)) = (sums.first_chunk(), values.first_chunk_mut()) {
                    *values = V::sums(*four);
                } else {
                    values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum.sum());
                }
                for (place, value) in places.iter_mut().zip(values) {
                    *place = if self.first == 0 { value } else { *place + value };
                }
            }
        }
    }
}

vector_dispatch! {
    /// `out = p x`, or `out += p x` when `accumulate`: p `[rows, tokens]`, x `[tokens, dim]`, out `[rows, dim]`.
    fn mix(p: &[f32], x: &[f32], accumulate: bool, out: RowsMut<'_>) = mix_body;
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn mix_body<V: Vector>(p: &[f32], x: &[f32], accumulate: bool, out: RowsMut<'_>) {
    let (rows, dim) = (out.count, out.len);
    let tokens = x.len() / dim;
    assert!(x.len() == tokens * dim && p.len() == rows * tokens, "attention_pool: mix");
    let mut column = 0;
    while column < dim {
        let wide = if column + 2 * LANES <= dim { 2 } else { 1 };
        let width = (wide * LANES).min(dim - column);
        let mut row = 0;
        while row < rows {
            let tall = match rows - row {
                8.. => 8,
                4..8 => 4,
                3 => 3,
                _ => 1,
            };
            // SAFETY: rows and columns are inside; `p` and `x` were checked.
            unsafe {
                let strip =
                    Strip { p: p.as_ptr(), x: x.as_ptr(), out, row, column, tokens, accumulate };
                match (tall, wide, width) {
                    (8, 2, _) => strip.mix::<V, 8, 2>(),
                    (4, 2, _) => strip.mix::<V, 4, 2>(),
                    (3, 2, _) => strip.mix::<V, 3, 2>(),
                    (_, 2, _) => strip.mix::<V, 1, 2>(),
                    (8, _, LANES) => strip.mix::<V, 8, 1>(),
                    (4, _, LANES) => strip.mix::<V, 4, 1>(),
                    (3, _, LANES) => strip.mix::<V, 3, 1>(),
                    (_, _, LANES) => strip.mix::<V, 1, 1>(),
                    _ => (0..tall).for_each(|r| strip.mix_narrow::<V>(r, width)),
                }
            }
            row += tall;
        }
        column += width;
    }
}

/// A few rows and columns of the mix.
struct Strip<'a> {
    p: *const f32,
    x: *const f32,
    out: RowsMut<'a>,
    row: usize,
    column: usize,
    tokens: usize,
    accumulate: bool,
}

impl Strip<'_> {
    /// # Safety
    /// As [`mix_body`]; `R` rows and `C` times 16 columns from here exist.
    #[inline(always)]
    unsafe fn mix<V: Vector, const R: usize, const C: usize>(&self) {
        // SAFETY: the caller's promise: `R` rows and `C` times 16 columns from here exist.
        unsafe {
            let p: [*const f32; R] =
                std::array::from_fn(|r| self.p.add((self.row + r) * self.tokens));
            let out: [*mut f32; R] =
                std::array::from_fn(|r| self.out.at(self.row + r).add(self.column));
            let mut sums = [[V::zero(); C]; R];
            if self.accumulate {
                for (sums, out) in sums.iter_mut().zip(out) {
                    for (c, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(out.add(c * LANES));
                    }
                }
            }
            let mut x = self.x.add(self.column);
            for token in 0..self.tokens {
                let xs: [V; C] = std::array::from_fn(|c| V::load(x.add(c * LANES)));
                for r in 0..R {
                    let weight = V::splat(*p[r].add(token));
                    for c in 0..C {
                        sums[r][c] = weight.mul_add(xs[c], sums[r][c]);
                    }
                }
                x = x.wrapping_add(self.out.len);
            }
            for (sums, out) in sums.iter().zip(out) {
                for (c, sum) in sums.iter().enumerate() {
                    sum.store(out.add(c * LANES));
                }
            }
        }
    }

    /// One row of fewer than 16 columns: only widths that are no multiple of 16 have them.
    ///
    /// # Safety
    /// As [`mix_body`]; the row and `width` columns from here exist.
    #[inline(always)]
    unsafe fn mix_narrow<V: Vector>(&self, row: usize, width: usize) {
        // SAFETY: as above.
        unsafe {
            let out = self.out.at(self.row + row).add(self.column);
            let copy = |from: *const f32| {
                let mut padded = [0.0; LANES];
                std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), width);
                V::load(padded.as_ptr())
            };
            let mut sum = if self.accumulate { copy(out) } else { V::zero() };
            for token in 0..self.tokens {
                let weight = V::splat(*self.p.add((self.row + row) * self.tokens + token));
                sum = weight.mul_add(copy(self.x.add(token * self.out.len + self.column)), sum);
            }
            let mut padded = [0.0; LANES];
            sum.store(padded.as_mut_ptr());
            std::ptr::copy_nonoverlapping(padded.as_ptr(), out, width);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 11) % 17) as f32 - 8.0).collect()
    }

    /// Small whole numbers: sums are exact whatever their order.
    #[test]
    fn both_products_are_right_for_every_remainder() {
        for (rows, tokens, dim) in [
            (1, 1, 1),
            (3, 5, 16),
            (4, 4, 48),
            (5, 17, 33),
            (12, 9, 520),
            (19, 21, 31),
            (8, 3, 1040),
        ] {
            let (a, x) = (values(rows * dim, 1), values(tokens * dim, 2));
            let mut s = vec![f32::NAN; rows * tokens];
            scores(Rows::dense(&a, rows, dim), &x, &mut s);
            for (i, &s) in s.iter().enumerate() {
                let (r, t) = (i / tokens, i % tokens);
                let exact: f32 = (0..dim).map(|d| a[r * dim + d] * x[t * dim + d]).sum();
                assert_eq!(s, exact, "{rows} rows, {tokens} tokens, {dim}: score {r}, {t}");
            }
            let p = values(rows * tokens, 3);
            for accumulate in [false, true] {
                let mut out = vec![if accumulate { 1.0 } else { f32::NAN }; rows * dim];
                mix(&p, &x, accumulate, RowsMut::dense(&mut out, rows, dim));
                for (i, &out) in out.iter().enumerate() {
                    let (r, d) = (i / dim, i % dim);
                    let exact: f32 = (0..tokens).map(|t| p[r * tokens + t] * x[t * dim + d]).sum();
                    let exact = if accumulate { exact + 1.0 } else { exact };
                    assert_eq!(out, exact, "{rows} rows, {tokens} tokens, {dim}: mix {r}, {d}");
                }
            }
        }
    }
}
