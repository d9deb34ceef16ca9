//! The inverse cosine transform with AVX2, to the bit what [`inverse`](super::transform::inverse)
//! computes.

use std::arch::x86_64::{__m128i, __m256i};

use bytemuck::{cast, cast_slice};
pub(super) use pulp::x86::V3;

use super::transform::{
    BITS, C0_298, C0_390, C0_541, C0_765, C0_899, C1_175, C1_501, C1_847, C1_961, C2_053, C2_562,
    C3_072, PASS,
};

/// Factors of pairs, eight times.
#[inline(always)]
fn pairs(first: i32, second: i32) -> __m256i {
    cast([[first as i16, second as i16]; 8])
}

/// Eight pairs of two rows, the first four in the lower half.
#[inline(always)]
fn zip(v3: V3, a: __m128i, b: __m128i) -> __m256i {
    // Quarters 0, 0, 1, 1, so that each half finds its four values in its lower part.
    let spread = |row| v3.avx2._mm256_permute4x64_epi64::<0x50>(v3.avx._mm256_castsi128_si256(row));
    v3.avx2._mm256_unpacklo_epi16(spread(a), spread(b))
}

/// Transforms eight columns at once, down the rows.
#[inline(always)]
fn pass<const SHIFT: i32>(v3: V3, rows: &[__m128i; 8]) -> [__m128i; 8] {
    let (sse2, avx, avx2) = (v3.sse2, v3.avx, v3.avx2);
    let madd = |pair, first, second| avx2._mm256_madd_epi16(pair, pairs(first, second));
    let add = |a, b| avx2._mm256_add_epi32(a, b);
    let sub = |a, b| avx2._mm256_sub_epi32(a, b);
    // Even part.
    let pair = zip(v3, rows[2], rows[6]);
    let t3 = madd(pair, C0_541 + C0_765, C0_541);
    let t2 = madd(pair, C0_541, C0_541 - C1_847);
    let pair = zip(v3, rows[0], rows[4]);
    let round: __m256i = cast([1i32 << (SHIFT - 1); 8]);
    let t0 = add(madd(pair, 1 << BITS, 1 << BITS), round);
    let t1 = add(madd(pair, 1 << BITS, -(1 << BITS)), round);
    let (e0, e1, e2, e3) = (add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3));
    // Odd part.
    let z3 = sse2._mm_add_epi16(rows[7], rows[3]);
    let z4 = sse2._mm_add_epi16(rows[5], rows[1]);
    let pair = zip(v3, z3, z4);
    let z3 = madd(pair, C1_175 - C1_961, C1_175);
    let z4 = madd(pair, C1_175, C1_175 - C0_390);
    let pair = zip(v3, rows[7], rows[1]);
    let o3 = add(madd(pair, C0_298 - C0_899, -C0_899), z3);
    let o0 = add(madd(pair, -C0_899, C1_501 - C0_899), z4);
    let pair = zip(v3, rows[5], rows[3]);
    let o2 = add(madd(pair, C2_053 - C2_562, -C2_562), z4);
    let o1 = add(madd(pair, -C2_562, C3_072 - C2_562), z3);
    // Two rows of 16-bit numbers, in order.
    let narrow = |a: __m256i, b: __m256i| {
        let descale = |value| avx2._mm256_srai_epi32::<SHIFT>(value);
        let mixed = avx2._mm256_packs_epi32(descale(a), descale(b));
        let ordered = avx2._mm256_permute4x64_epi64::<0xd8>(mixed);
        (avx._mm256_castsi256_si128(ordered), avx2._mm256_extracti128_si256::<1>(ordered))
    };
    let (r0, r7) = narrow(add(e0, o0), sub(e0, o0));
    let (r1, r6) = narrow(add(e1, o1), sub(e1, o1));
    let (r2, r5) = narrow(add(e2, o2), sub(e2, o2));
    let (r3, r4) = narrow(add(e3, o3), sub(e3, o3));
    [r0, r1, r2, r3, r4, r5, r6, r7]
}

/// Rows become columns, in three rounds of interleaving rows that lie four apart.
#[inline(always)]
fn transpose(v3: V3, rows: [__m128i; 8]) -> [__m128i; 8] {
    let mut rows = rows;
    let low = |a, b| v3.sse2._mm_unpacklo_epi16(a, b);
    let high = |a, b| v3.sse2._mm_unpackhi_epi16(a, b);
    for _ in 0..3 {
        let [a, b, c, d, e, f, g, h] = rows;
        rows = [
            low(a, e),
            high(a, e),
            low(b, f),
            high(b, f),
            low(c, g),
            high(c, g),
            low(d, h),
            high(d, h),
        ];
    }
    rows
}

/// Transforms a block to bytes.
#[inline(always)]
pub(super) fn inverse(v3: V3, values: &[i16; 64], out: &mut [u8], stride: usize) {
    let rows: &[[i16; 8]] = cast_slice(values);
    let Some(&[a, b, c, d, e, f, g, h]) = rows.first_chunk::<8>() else { return };
    let rows = [cast(a), cast(b), cast(c), cast(d), cast(e), cast(f), cast(g), cast(h)];
    let columns = transpose(v3, pass::<{ BITS - PASS }>(v3, &rows));
    let [a, b, c, d, e, f, g, h] = transpose(v3, pass::<{ BITS + PASS + 3 }>(v3, &columns));
    // Saturated around 0, then moved up by 128.
    let middle: __m128i = cast([-128i8; 16]);
    let bytes = |a, b| -> [[u8; 8]; 2] {
        cast(v3.sse2._mm_xor_si128(v3.sse2._mm_packs_epi16(a, b), middle))
    };
    let rows = [bytes(a, b), bytes(c, d), bytes(e, f), bytes(g, h)];
    for (out, row) in out.chunks_mut(stride).zip(rows.as_flattened()) {
        if let Some(out) = out.first_chunk_mut::<8>() {
            *out = *row;
        }
    }
}
