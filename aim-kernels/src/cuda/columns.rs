//! How kernels that walk down the columns of a matrix (`columns.cuh`) divide it over blocks.

use cudarc::driver::sys::CUdeviceptr;

use super::Grid;

/// Threads of a block: 8 warps of 32 lanes.
const THREADS: u32 = 256;
/// Rows that the warps of a block take at a time.
const WARPS: usize = 8;
/// Blocks that are enough to keep any GPU busy.
const BLOCKS: usize = 2048;
/// Columns of a block when each lane reads 16 bytes of f32.
const COLUMNS: usize = 128;

/// How the rows are cut: by the shape alone, so that the order of every sum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Rows of a part; the last may be shorter.
    pub(crate) rows: usize,
    /// Number of parts.
    pub(crate) count: usize,
}

/// Cuts `rows` rows of `columns` values so that there is work for all of a GPU and few parts to add up.
pub(crate) fn parts(rows: usize, columns: usize) -> Parts {
    let most = BLOCKS.div_ceil(columns.div_ceil(COLUMNS).max(1));
    let part = rows.div_ceil(most).next_multiple_of(WARPS).max(4 * WARPS);
    Parts { rows: part, count: rows.div_ceil(part) }
}

/// How the columns are cut: 32 lanes of some values each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    count: usize,
    vector: bool,
}

impl Tiles {
    /// `lane` values a lane, 16 bytes, if the rows' length and their stride allow it and the matrices start at
    /// multiples of 16 bytes; one otherwise.
    pub(crate) fn new(
        columns: usize,
        lane: usize,
        stride: usize,
        addresses: &[CUdeviceptr],
    ) -> Self {
        let vector =
            columns.is_multiple_of(lane) && stride.is_multiple_of(lane) && at_16(addresses);
        let width = 32 * if vector { lane } else { 1 };
        Self { count: columns.div_ceil(width), vector }
    }

    /// Whether a lane takes 16 bytes.
    pub(crate) fn vector(self) -> bool {
        self.vector
    }

    /// One block a tile for each of `parts` parts of the rows.
    pub(crate) fn grid(self, parts: usize) -> Grid {
        Grid::new(self.count * parts, THREADS)
    }
}

/// The grid over vectors of `columns` values.
pub(crate) fn vector_grid(columns: usize) -> Grid {
    Grid::new(columns.div_ceil(32), THREADS)
}

/// Whether all addresses are multiples of 16 bytes.
pub(crate) fn at_16(addresses: &[CUdeviceptr]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_rows_and_are_neither_tiny_nor_many() {
        for rows in [0, 1, 31, 33, 257, 65_536, 2_000_000] {
            for columns in [1, 128, 588, 6144, 40_000] {
                let Parts { rows: part, count } = parts(rows, columns);
                assert!(part * count >= rows && part * count < rows + part, "{rows} x {columns}");
                assert!(part >= 32 && part.is_multiple_of(WARPS));
                assert!(count * columns.div_ceil(COLUMNS) <= BLOCKS + columns.div_ceil(COLUMNS));
            }
        }
    }
}
