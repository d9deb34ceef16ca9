//! The machine's primitives (`prim.cuh`) against what the PTX ISA says of them, computed here from its layouts.
//!
//! The kernels of other checks are right on the emulator only as far as the emulator is right about the machine: these
//! are the first checks to run on a new kind of card.

use bytemuck::Pod;
use half::bf16;

use super::lab::{Buffer, Check, Lab};
use crate::cuda::{Args, CudaError, Grid};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    mma(lab, checks)?;
    matrices(lab, checks)?;
    copies(lab, checks)?;
    shuffles(lab, checks)?;
    functions(lab, checks)?;
    numbers(lab, checks)?;
    for threads in [32, 96, 256, 1024] {
        sums(lab, checks, threads)?;
    }
    Ok(())
}

fn launch(lab: &Lab, name: &'static str, grid: Grid, args: Args) -> Result<(), CudaError> {
    // SAFETY: each caller states the arguments of its kernel in seam.cu and buffers of the sizes given there.
    unsafe { lab.gpu().launch(name, grid, args) }
}

/// Hash of an output's bytes, FNV-1a.
fn bits(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The share of words that differ.
fn exact<T: Pod + PartialEq>(name: &str, found: &[T], expected: &[T]) -> Check {
    assert_eq!(found.len(), expected.len(), "a reference of the output's length");
    let different = found.iter().zip(expected).filter(|(found, expected)| found != expected);
    Check {
        name: format!("seam {name}"),
        error: different.count() as f64 / expected.len() as f64,
        tolerance: 0.0,
        bits: bits(bytemuck::cast_slice(found)),
    }
}

/// The largest relative difference; infinite where one is NaN or infinite and the other is not the same.
fn largest(name: &str, found: &[f32], expected: &[f64], tolerance: f64) -> Check {
    let difference = |(&found, &expected): (&f32, &f64)| {
        let found = f64::from(found);
        match (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE) {
            _ if found == expected || (found.is_nan() && expected.is_nan()) => 0.0,
            relative if relative.is_finite() => relative,
            _ => f64::INFINITY,
        }
    };
    let error = found.iter().zip(expected).map(difference).fold(0.0, f64::max);
    let bits = bits(bytemuck::cast_slice(found));
    Check { name: format!("seam {name}"), error, tolerance, bits }
}

/// PTX ISA, matrix fragments for mma.m16n8k16 with 16-bit floating-point types: (row, column) of a lane's value `i`.
fn fragment_a(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    (row, member * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
}
fn fragment_b(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    (member * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group)
}
fn fragment_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, member * 2 + (i & 1))
}

/// Packs values of a matrix with `columns` columns into the registers of a warp, two a register.
fn registers(
    matrix: &[f32],
    columns: usize,
    values: usize,
    fragment: fn(usize, usize) -> (usize, usize),
) -> Vec<u32> {
    let half = |lane, i| {
        let (row, column) = fragment(lane, i);
        u32::from(bf16::from_f32(matrix[row * columns + column]).to_bits())
    };
    let pair = |at| {
        let (lane, i) = (at / (values / 2), at % (values / 2) * 2);
        half(lane, i) | half(lane, i + 1) << 16
    };
    (0..32 * values / 2).map(pair).collect()
}

fn mma(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    // Whole numbers, whose sums are exact in any order; and others, whose sums the machine may cut off.
    for (name, whole, tolerance) in [("mma of whole numbers", true, 0.0), ("mma", false, 1e-5)] {
        let mut values = |len: usize| -> Vec<f32> {
            let whole_number = |lab: &mut Lab| lab.below(33) as f32 - 16.0;
            match whole {
                true => (0..len).map(|_| whole_number(lab)).collect(),
                false => lab.normal_bf16(len, 1.0).into_iter().map(bf16::to_f32).collect(),
            }
        };
        let (a, b, c) = (values(16 * 16), values(16 * 8), values(16 * 8));
        let added: Vec<_> = (0..128)
            .map(|at| fragment_c(at / 4, at % 4))
            .map(|(row, column)| c[row * 8 + column])
            .collect();
        let d = lab.poisoned::<f32>(128)?;
        let left = lab.upload(&registers(&a, 16, 8, fragment_a))?;
        let right = lab.upload(&registers(&b, 8, 4, fragment_b))?;
        let plus = lab.upload(&added)?;
        let args = Args::new().slice(left.slice()).slice(right.slice());
        let args = args.slice(plus.slice()).slice(d.slice());
        launch(lab, "seam_mma", Grid::new(1, 32), args)?;
        let expected: Vec<f64> = (0..128)
            .map(|at| fragment_c(at / 4, at % 4))
            .map(|(row, column)| {
                let product = |k| f64::from(a[row * 16 + k]) * f64::from(b[k * 8 + column]);
                f64::from(c[row * 8 + column]) + (0..16).map(product).sum::<f64>()
            })
            .collect();
        checks.push(super::lab::compare(format!("seam {name}"), &d, &expected, tolerance)?);
    }
    Ok(())
}

fn matrices(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    const ROWS: usize = 64;
    let tile: Vec<u16> = (0..ROWS * 8).map(|_| lab.bits() as u16).collect();
    // Each matrix has its rows in all the eight places modulo 128 bytes, in a random order: no conflicts.
    let mut at = Vec::new();
    for _ in 0..4 {
        let mut places: Vec<i32> = (0..8).collect();
        for i in (1..8).rev() {
            places.swap(i, lab.below(i + 1));
        }
        at.extend(places.iter().map(|place| place + 8 * lab.below(ROWS / 8) as i32));
    }
    let out = lab.poisoned::<u32>(256)?;
    let (input, rows) = (lab.upload(&tile)?, lab.upload(&at)?);
    let args = Args::new().slice(input.slice()).slice(rows.slice()).i32(ROWS).slice(out.slice());
    let grid = Grid { shared: (16 * ROWS) as u32, ..Grid::new(1, 32) };
    launch(lab, "seam_matrices", grid, args)?;
    // PTX ISA, ldmatrix: lane l points at row l % 8 of matrix l / 8, and holds of each matrix the values of row l / 4,
    // columns 2 (l % 4) and the next.
    let value = |matrix: usize, row: usize, column: usize| {
        u32::from(tile[at[matrix * 8 + row] as usize * 8 + column])
    };
    let pair = |transposed: bool, lane: usize, matrix: usize| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        match transposed {
            false => value(matrix, row, column) | value(matrix, row, column + 1) << 16,
            true => value(matrix, column, row) | value(matrix, column + 1, row) << 16,
        }
    };
    let expected: Vec<_> = (0..256).map(|i| pair(i >= 128, i % 128 / 4, i % 4)).collect();
    checks.push(exact("ldmatrix, plain and transposed", &out.read()?, &expected));
    Ok(())
}

fn copies(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for n in [32, 96] {
        let input: Vec<u32> = (0..2 * n * 4).map(|_| lab.bits() as u32).collect();
        let valid: Vec<i32> = (0..n).map(|_| lab.below(2) as i32).collect();
        let out = lab.poisoned::<u32>(2 * n * 4)?;
        let (from, which) = (lab.upload(&input)?, lab.upload(&valid)?);
        let args = Args::new().slice(from.slice()).slice(which.slice()).slice(out.slice());
        let grid = Grid { shared: (32 * n) as u32, ..Grid::new(1, n as u32) };
        launch(lab, "seam_copies", grid, args)?;
        let mut expected = Vec::new();
        for group in 0..2 {
            for next in (0..n).map(|i| (i + 1) % n) {
                let row = &input[(group * n + next) * 4..][..4];
                let there = group == 0 || valid[next] != 0;
                expected.extend(row.iter().map(|&word| if there { word } else { 0 }));
            }
        }
        checks.push(exact(&format!("asynchronous copies by {n} threads"), &out.read()?, &expected));
    }
    Ok(())
}

fn shuffles(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let narrow = lab.normal(32, 1.0);
    let wide: Vec<u64> = (0..32).map(|_| lab.bits()).collect();
    let from: Vec<i32> = (0..32).map(|_| lab.below(32) as i32).collect();
    let lanes: Vec<usize> = (0..5)
        .flat_map(|i| (0..32).map(move |lane| lane ^ (1 << i)))
        .chain(from.iter().map(|&lane| lane as usize))
        .collect();
    let which = lab.upload(&from)?;
    let (input, out) = (lab.upload(&narrow)?, lab.poisoned::<f32>(lanes.len())?);
    let args = Args::new().slice(input.slice()).slice(which.slice()).slice(out.slice());
    launch(lab, "seam_shuffle_32", Grid::new(1, 32), args)?;
    let expected: Vec<_> = lanes.iter().map(|&lane| narrow[lane]).collect();
    checks.push(exact("shuffles of 4 bytes", &out.read()?, &expected));

    let (input, out) = (lab.upload(&wide)?, lab.poisoned::<u64>(lanes.len())?);
    let args = Args::new().slice(input.slice()).slice(which.slice()).slice(out.slice());
    launch(lab, "seam_shuffle_64", Grid::new(1, 32), args)?;
    let expected: Vec<_> = lanes.iter().map(|&lane| wide[lane]).collect();
    checks.push(exact("shuffles of 8 bytes", &out.read()?, &expected));
    Ok(())
}

fn functions(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let mut x: Vec<f32> = lab.normal(300, 8.0);
    x.extend(lab.normal(300, 0.5));
    let special =
        [0.0, 1.0, -1.0, 200.0, -200.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40];
    x.extend(special);
    let n = x.len();
    let (input, out) = (lab.upload(&x)?, lab.poisoned::<f32>(5 * n)?);
    let args = Args::new().slice(input.slice()).slice(out.slice()).i32(n);
    launch(lab, "seam_functions", Grid::new(n.div_ceil(64), 64), args)?;
    let found = out.read()?;
    type Function = fn(f64) -> f64;
    let tests: [(&str, Function, f64); 5] = [
        // PTX ISA: 2^-22 of ex2.approx's full range; lg2.approx: see below.
        ("2^x", f64::exp2, 3e-7),
        ("log2 x", f64::log2, f64::INFINITY),
        ("1 / sqrt x", |x| 1.0 / x.sqrt(), 3e-7),
        ("e^x", f64::exp, 3e-7),
        ("tanh x", f64::tanh, 3e-7),
    ];
    for (i, (name, function, tolerance)) in tests.into_iter().enumerate() {
        // Results and arguments below the normal range are zero for the first two.
        let flush = |v: f64| {
            let small = i < 2 && v.abs() < f64::from(f32::MIN_POSITIVE);
            if small { 0.0f64.copysign(v) } else { v }
        };
        let overflow = |v: f64| if v > f64::from(f32::MAX) { f64::INFINITY } else { v };
        let expected: Vec<_> =
            x.iter().map(|&x| overflow(flush(function(flush(f64::from(x)))))).collect();
        let found = &found[i * n..][..n];
        checks.push(if name == "log2 x" {
            logarithms(found, &expected)
        } else {
            // e^-200 and its like are below what f32 holds.
            let shown: Vec<_> = expected.iter().map(|&v| f64::from(v as f32)).collect();
            largest(name, found, &shown, tolerance)
        });
    }
    Ok(())
}

/// PTX ISA, lg2.approx: an absolute error of 2^-22 where the result is small, a relative one of 2^-22 elsewhere.
fn logarithms(found: &[f32], expected: &[f64]) -> Check {
    let close = |(&found, &expected): (&f32, &f64)| {
        let found = f64::from(found);
        found == expected
            || (found.is_nan() && expected.is_nan())
            || (found - expected).abs() <= 3e-7 * expected.abs().max(1.0)
    };
    let wrong = found.iter().zip(expected).filter(|pair| !close(*pair)).count();
    let error = wrong as f64 / found.len() as f64;
    let bits = bits(bytemuck::cast_slice(found));
    Check { name: "seam log2 x".into(), error, tolerance: 0.0, bits }
}

fn numbers(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    // Any bits, then ties to round both ways, the largest numbers, infinities, subnormals, and NaN in several forms.
    let mut x: Vec<u32> = (0..500).map(|_| lab.bits() as u32).collect();
    x.extend([0x3f80_8000, 0x3f81_8000, 0xbf80_8000, 0xbf81_8000, 0x3f80_7fff, 0x3f80_8001]);
    x.extend([0x7f7f_ffff, 0xff7f_8000, 0x7f7f_7fff, 0x7f80_0000, 0xff80_0000, 1, 0x8000_8000]);
    x.extend([0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xffff_ffff, 0, 0x8000_0000, 0x0000_8000]);
    let n = x.len();
    let (input, out) = (lab.upload(&x)?, lab.poisoned::<u32>(5 * n)?);
    let args = Args::new().slice(input.slice()).slice(out.slice()).i32(n);
    launch(lab, "seam_numbers", Grid::new(n.div_ceil(96), 96), args)?;
    // PTX ISA, cvt.rn.bf16.f32: to nearest even; NaN becomes 0x7fff.
    let round = |bits: u32| {
        let value = f32::from_bits(bits);
        if value.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(value).to_bits()) }
    };
    let pair = |bits: u32| round(bits) | round(bits ^ 0x8000_0000) << 16;
    let halves = |bits: u32| (bits.wrapping_add(0x8000) & 0xffff_0000) | (bits & 0xffff);
    let found = out.read()?;
    let tests: [(&str, &dyn Fn(u32) -> u32); 5] = [
        ("to_bf16", &round),
        ("pack", &pair),
        ("split", &halves),
        ("join of split", &|bits| bits),
        ("halves of a word", &|bits| round(bits) << 16 | round(bits ^ 0x8000_0000)),
    ];
    for (i, (name, function)) in tests.into_iter().enumerate() {
        let expected: Vec<_> = x.iter().map(|&bits| function(bits)).collect();
        checks.push(exact(name, &found[i * n..][..n], &expected));
    }
    Ok(())
}

/// A butterfly in each warp, then the warps in order, as `block_sum` adds.
fn block_sum<T: Copy + std::ops::Add<Output = T>>(values: &[T]) -> T {
    let warp = |lanes: &[T]| {
        let mut lanes = lanes.to_vec();
        for o in [16, 8, 4, 2, 1] {
            lanes = (0..32).map(|lane| lanes[lane] + lanes[lane ^ o]).collect();
        }
        lanes[0]
    };
    let mut warps = values.chunks(32).map(warp);
    let first = warps.next().expect("a block has a warp");
    warps.fold(first, |sum, warp| sum + warp)
}

fn sums(lab: &mut Lab, checks: &mut Vec<Check>, threads: usize) -> Result<(), CudaError> {
    let x = lab.normal(threads, 1.0);
    let (y, z) = (lab.poisoned::<f32>(3 * threads)?, lab.poisoned::<f64>(threads)?);
    let input: Buffer<f32> = lab.upload(&x)?;
    let args = Args::new().slice(input.slice()).slice(y.slice()).slice(z.slice());
    launch(lab, "seam_sums", Grid::new(1, threads as u32), args)?;
    let squares: Vec<f32> = x.iter().map(|x| x * x).collect();
    let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let most = |lanes: &[f32]| vec![lanes.iter().copied().fold(f32::MIN, f32::max); 32];
    let mut expected = vec![block_sum(&x); threads];
    expected.resize(2 * threads, block_sum(&squares));
    expected.extend(x.chunks(32).flat_map(most));
    checks.push(exact(&format!("sums over {threads} threads"), &y.read()?, &expected));
    let expected = vec![block_sum(&wide); threads];
    checks.push(exact(&format!("sums over {threads} threads, double"), &z.read()?, &expected));
    Ok(())
}
