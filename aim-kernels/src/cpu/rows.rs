//! Rows of a matrix named by an index that comes from data.

/// Row `index` of a `[rows, dim]` matrix.
///
/// # Panics
/// If there is no such row.
#[inline(always)]
pub(crate) fn row(matrix: &[f32], dim: usize, index: i32) -> &[f32] {
    let rows = matrix.len() / dim;
    assert!(index >= 0 && (index as usize) < rows, "index {index} into {rows} rows");
    &matrix[index as usize * dim..][..dim]
}
