//! Grids of element-wise and row-wise kernels: the other half of `vector.cuh`.

use super::Grid;

/// bf16 values in the 16 bytes that a thread reads at once.
pub(crate) const WIDTH: usize = 8;
/// Threads of a block.
const THREADS: usize = 256;

/// Whether 16 bytes may be read at each address.
pub(crate) fn aligned<const N: usize>(addresses: [u64; N]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(16))
}

/// Blocks for `vec::map`: each owns 4096 values.
pub(crate) fn map(values: usize) -> Grid {
    Grid::new(values.div_ceil(2 * WIDTH * THREADS), THREADS as u32)
}

/// Blocks whose threads own 4 neighbouring values each.
pub(crate) fn each(values: usize) -> Grid {
    Grid::new(values.div_ceil(4 * THREADS), THREADS as u32)
}

/// Blocks for rows of `width` vectors (or values), and the rows that each owns: as many as keep its threads busy.
pub(crate) fn rows(rows: usize, width: usize) -> (Grid, usize) {
    let span = (THREADS / width.max(1)).max(1);
    let threads = (span * width).next_multiple_of(32).clamp(32, THREADS);
    (Grid::new(rows.div_ceil(span), threads as u32), span)
}
