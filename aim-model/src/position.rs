//! Fixed two-dimensional sin-cos positions.

/// The table `[rows * columns, dim]` for a grid, token `y * columns + x` in row-major order.
///
/// With `q = dim / 4` and `w_j = 10000^(-j / q)`, a row is `[sin(x w), cos(x w), sin(y w), cos(y w)]`: the column
/// comes first (ml-aim's `SinCosPosEmbed`). Coordinates are integers and unscaled, so that any grid works.
/// `dim` is a multiple of 4.
pub fn sin_cos_2d(rows: usize, columns: usize, dim: usize) -> Vec<f32> {
    let quarter = dim / 4;
    let omega: Vec<f64> =
        (0..quarter).map(|j| 10_000_f64.powf(-(j as f64) / quarter as f64)).collect();
    let mut table = Vec::with_capacity(rows * columns * dim);
    for y in 0..rows {
        for x in 0..columns {
            for coordinate in [x as f64, y as f64] {
                table.extend(omega.iter().map(|w| (coordinate * w).sin() as f32));
                table.extend(omega.iter().map(|w| (coordinate * w).cos() as f32));
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_comes_first() {
        let table = sin_cos_2d(2, 3, 8);
        // Token (y = 1, x = 2), frequencies 1 and 0.01.
        let row = &table[5 * 8..];
        let expected =
            [2.0_f32.sin(), 0.02_f32.sin(), 2.0_f32.cos(), 0.02_f32.cos(), 1.0_f32.sin()];
        for (found, expected) in row.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
