//! [`Affine`]: turning, shearing and shifting an image, as Pillow's `Image.transform` computes it.

/// How a pixel is made of those around the place that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Interpolation {
    /// From 2 x 2 pixels.
    Bilinear,
    /// From 4 x 4 pixels (Pillow's cubic with a = -1).
    #[default]
    Bicubic,
    /// One of the two at random, each time: what timm does unless it is told a filter.
    Random,
}

/// One of the filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Bilinear,
    Bicubic,
}

/// Where in the source a pixel of the result comes from: `x' = a x + b y + c`, `y' = d x + e y + f`
/// for `[a, b, c, d, e, f]`, in pixels, pixel centres at halves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Affine(pub(super) [f64; 6]);

impl Affine {
    /// A turn about the centre, counter-clockwise as `Image.rotate`.
    pub(super) fn rotation(degrees: f64, width: usize, height: usize) -> Self {
        let angle = -degrees.rem_euclid(360.0).to_radians();
        // Pillow rounds to 15 decimals, so that right angles are exact.
        let round = |value: f64| format!("{value:.15}").parse().unwrap_or(value);
        let (cos, sin, minus_sin): (f64, f64, f64) =
            (round(angle.cos()), round(angle.sin()), round(-angle.sin()));
        let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
        let left = cos * -x + sin * -y + x;
        let top = minus_sin * -x + cos * -y + y;
        Self([cos, sin, left, minus_sin, cos, top])
    }

    /// Writes the transformed image `[height, width, 3]`, with `fill` where nothing of `source`,
    /// which has the same size, falls.
    pub(super) fn apply(
        &self,
        filter: Filter,
        source: &[u8],
        width: usize,
        fill: [u8; 3],
        out: &mut [u8],
    ) {
        let Self([a, b, c, d, e, f]) = *self;
        let pixels = Pixels { bytes: source, width, height: source.len() / (3 * width.max(1)) };
        let inside = |at: f64, side: usize| at >= 0.0 && at < side as f64;
        for (row, out) in out.chunks_exact_mut(3 * width.max(1)).enumerate() {
            let y = row as f64 + 0.5;
            let (out, _) = out.as_chunks_mut::<3>();
            for (column, out) in out.iter_mut().enumerate() {
                let x = column as f64 + 0.5;
                let (from_x, from_y) = (a * x + b * y + c, d * x + e * y + f);
                *out = if !inside(from_x, width) || !inside(from_y, pixels.height) {
                    fill
                } else if filter == Filter::Bicubic {
                    pixels.bicubic(from_x - 0.5, from_y - 0.5)
                } else {
                    pixels.bilinear(from_x - 0.5, from_y - 0.5)
                };
            }
        }
    }
}

/// Pixels to look up, those outside repeated from the edge.
struct Pixels<'a> {
    bytes: &'a [u8],
    width: usize,
    height: usize,
}

impl Pixels<'_> {
    /// Offset in its row of a column's first byte.
    fn column(&self, x: i64) -> usize {
        3 * x.clamp(0, self.width as i64 - 1) as usize
    }

    fn row(&self, y: i64) -> &[u8] {
        let start = y.clamp(0, self.height as i64 - 1) as usize * self.width * 3;
        &self.bytes[start..start + self.width * 3]
    }

    /// The value at a place counted from the centre of the first pixel.
    fn bilinear(&self, x: f64, y: f64) -> [u8; 3] {
        let (left, top) = (x.floor(), y.floor());
        let (dx, dy) = (x - left, y - top);
        let columns = [0, 1].map(|step| self.column(left as i64 + step));
        let rows = [0, 1].map(|step| self.row(top as i64 + step));
        std::array::from_fn(|channel| {
            let [upper, lower] = rows.map(|row| {
                let [a, b] = columns.map(|column| f64::from(row[column + channel]));
                a + (b - a) * dx
            });
            (upper + (lower - upper) * dy) as u8
        })
    }

    /// As [`bilinear`](Self::bilinear), from four rows of four pixels.
    fn bicubic(&self, x: f64, y: f64) -> [u8; 3] {
        let (left, top) = (x.floor(), y.floor());
        let (dx, dy) = (x - left, y - top);
        let columns = [-1, 0, 1, 2].map(|step| self.column(left as i64 + step));
        let along = |row: &[u8]| -> [f64; 3] {
            std::array::from_fn(|channel| {
                cubic(columns.map(|column| f64::from(row[column + channel])), dx)
            })
        };
        // Shears and shifts along a row meet every row in its middle, where the others have no part.
        if dy == 0.0 {
            return along(self.row(top as i64)).map(|value| value as u8);
        }
        let rows = [-1, 0, 1, 2].map(|step| along(self.row(top as i64 + step)));
        // Conversion truncates and saturates.
        std::array::from_fn(|channel| cubic(rows.map(|row| row[channel]), dy) as u8)
    }
}

/// Pillow's cubic between the second and the third of four values. Its form matters: written with
/// weights, equal values would not give themselves, and truncation would make them one darker.
fn cubic([a, b, c, d]: [f64; 4], at: f64) -> f64 {
    let linear = -a + c;
    let square = 2.0 * (a - b) + c - d;
    let cube = -a + b - c + d;
    b + at * (linear + at * (square + at * cube))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_by_right_angles_move_pixels_and_nothing_else() {
        let source: Vec<u8> = (0..27).map(|value| value * 9).collect();
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let turned = |degrees| {
                let mut out = vec![0; 27];
                Affine::rotation(degrees, 3, 3).apply(filter, &source, 3, [1, 2, 3], &mut out);
                out
            };
            assert_eq!(turned(0.0), source);
            let (pixels, _) = source.as_chunks::<3>();
            let half: Vec<u8> = pixels.iter().rev().flatten().copied().collect();
            assert_eq!(turned(180.0), half);
            assert_eq!(turned(-180.0), half);
            // Counter-clockwise: the last column becomes the first row.
            assert_eq!(turned(90.0)[..9], [pixels[2], pixels[5], pixels[8]].concat());
        }
    }

    #[test]
    fn what_comes_from_outside_is_filled() {
        let mut out = vec![9; 12];
        let shift = Affine([1.0, 0.0, 50.0, 0.0, 1.0, 0.0]);
        shift.apply(Filter::Bicubic, &[7; 12], 2, [1, 2, 3], &mut out);
        assert_eq!(out, [1, 2, 3].repeat(4));
    }
}
