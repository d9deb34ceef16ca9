//! The inverse cosine transform, in integers, as libjpeg's accurate one ("islow") computes it.

/// Fractional bits of the constants, and of what the first direction leaves for the second.
pub(super) const BITS: i32 = 13;
pub(super) const PASS: i32 = 2;

pub(super) const C0_298: i32 = 2446;
pub(super) const C0_390: i32 = 3196;
pub(super) const C0_541: i32 = 4433;
pub(super) const C0_765: i32 = 6270;
pub(super) const C0_899: i32 = 7373;
pub(super) const C1_175: i32 = 9633;
pub(super) const C1_501: i32 = 12299;
pub(super) const C1_847: i32 = 15137;
pub(super) const C1_961: i32 = 16069;
pub(super) const C2_053: i32 = 16819;
pub(super) const C2_562: i32 = 20995;
pub(super) const C3_072: i32 = 25172;

type Lanes = [i32; 8];

// Loops and literal arrays here, since `std::array::from_fn` is not always inlined, and would then
// be compiled for the build's baseline.
#[inline(always)]
fn map(a: Lanes, b: Lanes, f: impl Fn(i32, i32) -> i32) -> Lanes {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

#[inline(always)]
fn each(mut a: Lanes, f: impl Fn(i32) -> i32) -> Lanes {
    for value in &mut a {
        *value = f(*value);
    }
    a
}

#[inline(always)]
fn add(a: Lanes, b: Lanes) -> Lanes {
    map(a, b, i32::wrapping_add)
}

#[inline(always)]
fn sub(a: Lanes, b: Lanes) -> Lanes {
    map(a, b, i32::wrapping_sub)
}

#[inline(always)]
fn mul(a: Lanes, by: i32) -> Lanes {
    each(a, |value| value.wrapping_mul(by))
}

#[inline(always)]
fn wrap(value: i32) -> i32 {
    i32::from(value as i16)
}

/// Eight transforms of eight values side by side: row `k` of `rows` holds the `k`-th of each.
#[inline(always)]
fn pass<const SHIFT: i32>(rows: &[Lanes; 8]) -> [Lanes; 8] {
    // Even part.
    let z1 = mul(add(rows[2], rows[6]), C0_541);
    let t2 = sub(z1, mul(rows[6], C1_847));
    let t3 = add(z1, mul(rows[2], C0_765));
    let t0 = each(add(rows[0], rows[4]), |value| value << BITS);
    let t1 = each(sub(rows[0], rows[4]), |value| value << BITS);
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
    // Odd part.
    let (t0, t1, t2, t3) = (rows[7], rows[5], rows[3], rows[1]);
    // Sums of 16 bits, as the AVX2 version has them. Valid blocks stay far below.
    let (z3, z4) = (each(add(t0, t2), wrap), each(add(t1, t3), wrap));
    let z5 = mul(add(z3, z4), C1_175);
    let z1 = mul(add(t0, t3), -C0_899);
    let z2 = mul(add(t1, t2), -C2_562);
    let z3 = add(mul(z3, -C1_961), z5);
    let z4 = add(mul(z4, -C0_390), z5);
    let odd = [
        add(mul(t3, C1_501), add(z1, z4)),
        add(mul(t2, C3_072), add(z2, z3)),
        add(mul(t1, C2_053), add(z2, z4)),
        add(mul(t0, C0_298), add(z1, z3)),
    ];
    let narrow = |value: i32| value.clamp(i32::from(i16::MIN), i32::from(i16::MAX));
    let descale = |value: i32| narrow(value.wrapping_add(1 << (SHIFT - 1)) >> SHIFT);
    let sum = |at: usize| each(add(even[at], odd[at]), descale);
    let difference = |at: usize| each(sub(even[at], odd[at]), descale);
    [sum(0), sum(1), sum(2), sum(3), difference(3), difference(2), difference(1), difference(0)]
}

/// Rows become columns, in three rounds of interleaving rows that lie four apart.
#[inline(always)]
fn transpose(rows: &[Lanes; 8]) -> [Lanes; 8] {
    round(&round(&round(rows)))
}

#[inline(always)]
fn round(rows: &[Lanes; 8]) -> [Lanes; 8] {
    let [a, b, c, d, e, f, g, h] = *rows;
    [low(a, e), high(a, e), low(b, f), high(b, f), low(c, g), high(c, g), low(d, h), high(d, h)]
}

#[inline(always)]
fn low(a: Lanes, b: Lanes) -> Lanes {
    [a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]]
}

#[inline(always)]
fn high(a: Lanes, b: Lanes) -> Lanes {
    [a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]]
}

#[inline(always)]
fn level(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}

/// Transforms a block that has nothing but its mean.
#[inline(always)]
pub(super) fn inverse_flat(mean: i16, out: &mut [u8], stride: usize) {
    // Both directions only scale: the first gives an exact number, of 16 bits.
    let once = (i32::from(mean) << PASS).clamp(i32::from(i16::MIN), i32::from(i16::MAX));
    let value = level((once + (1 << (PASS + 2))) >> (PASS + 3));
    for row in out.chunks_mut(stride).take(8) {
        if let Some(row) = row.first_chunk_mut::<8>() {
            *row = [value; 8];
        }
    }
}

/// Transforms a block to bytes.
#[inline(always)]
pub(super) fn inverse(values: &[i16; 64], out: &mut [u8], stride: usize) {
    let mut rows = [[0; 8]; 8];
    for (row, values) in rows.iter_mut().zip(values.as_chunks::<8>().0) {
        for (wide, &value) in row.iter_mut().zip(values) {
            *wide = i32::from(value);
        }
    }
    let columns = transpose(&pass::<{ BITS - PASS }>(&rows));
    let rows = transpose(&pass::<{ BITS + PASS + 3 }>(&columns));
    for (out, row) in out.chunks_mut(stride).zip(&rows) {
        if let Some(out) = out.first_chunk_mut::<8>() {
            for (out, &value) in out.iter_mut().zip(row) {
                *out = level(value);
            }
        }
    }
}
