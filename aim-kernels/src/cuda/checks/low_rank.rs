//! The low-rank addend.

use std::ops::Range;

use super::lab::{Check, Lab, compare};
use super::matrix::Matrix;
use crate::cuda::CudaError;
use crate::low_rank::{LowRank, cuda};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for (rows, rank, outputs, segments) in [
        (1, 1, 8, vec![(0, 8)]),
        (33, 2, 24, vec![(0, 8), (16, 24)]),
        (64, 8, 96, vec![(0, 32), (64, 96)]),
        (40, 5, 30, vec![(3, 10), (10, 29)]),
    ] {
        let segments: Vec<Range<usize>> = segments.into_iter().map(|(from, to)| from..to).collect();
        check(lab, checks, LowRank { rows, rank, outputs, segments: &segments })?;
    }
    Ok(())
}

fn check(lab: &mut Lab, checks: &mut Vec<Check>, shape: LowRank<'_>) -> Result<(), CudaError> {
    let LowRank { rows, rank, outputs, segments } = shape;
    let (width, covered) = (shape.width(), shape.covered());
    let name = |what: &str| format!("low_rank {what} {rows} x {outputs}, rank {rank} {segments:?}");
    let u = Matrix::new(lab, rows, width, 0)?;
    let weight = Matrix::new(lab, covered, rank, 8)?;
    let before = lab.normal_bf16(rows * outputs, 1.0);
    let dy = Matrix::new(lab, rows, outputs, 0)?;
    // Of a column of y: the first column of its range in u, and its row of B.
    let place = |column: usize| {
        let mut row = 0;
        segments.iter().enumerate().find_map(|(i, segment)| {
            let found = segment.contains(&column).then(|| (i * rank, row + column - segment.start));
            row += segment.len();
            found
        })
    };

    let y = lab.upload(&before)?;
    cuda::add(lab.gpu(), shape, u.operand(), weight.operand(), y.slice())?;
    let expected: Vec<f64> = (0..rows * outputs)
        .map(|i| {
            let (row, column) = (i / outputs, i % outputs);
            let added = place(column).map_or(0.0, |(at, of)| {
                (0..rank).map(|r| u.at(row, at + r) * weight.at(of, r)).sum()
            });
            f64::from(before[i].to_f32()) + added
        })
        .collect();
    checks.push(compare(name("forward"), &y, &expected, 4e-3)?);

    let mut sums = (vec![0.0; rows * width], vec![0.0; covered * rank]);
    for (row, column) in (0..rows).flat_map(|row| (0..outputs).map(move |column| (row, column))) {
        let Some((at, of)) = place(column) else { continue };
        for r in 0..rank {
            sums.0[row * width + at + r] += dy.at(row, column) * weight.at(of, r);
            sums.1[of * rank + r] += dy.at(row, column) * u.at(row, at + r);
        }
    }
    let before = lab.normal_bf16(rows * width, 1.0);
    for accumulate in [false, true] {
        let du = if accumulate { lab.upload(&before)? } else { lab.poisoned(rows * width)? };
        let (dy, weight) = (dy.operand(), weight.operand());
        cuda::backward_input(lab.gpu(), shape, dy, weight, du.slice(), accumulate)?;
        let old = before.iter().map(|v| if accumulate { f64::from(v.to_f32()) } else { 0.0 });
        let expected: Vec<f64> = sums.0.iter().zip(old).map(|(sum, old)| sum + old).collect();
        let name = name(&format!("du, accumulate {accumulate}"));
        checks.push(compare(name, &du, &expected, 4e-3)?);
    }

    let stride = rank + 3;
    let before = lab.normal(covered * stride, 1.0);
    let dweight = lab.upload(&before)?;
    cuda::backward_weight(lab.gpu(), shape, dy.operand(), u.operand(), dweight.slice(), stride)?;
    let mut expected: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
    for (i, sum) in sums.1.iter().enumerate() {
        expected[i / rank * stride + i % rank] += sum;
    }
    checks.push(compare(name("dB"), &dweight, &expected, 1e-5)?);
    Ok(())
}
