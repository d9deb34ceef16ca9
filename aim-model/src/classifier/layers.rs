//! Which blocks' outputs are averaged for a probe.

use std::ops::Range;

use crate::config::AimConfig;

/// Blocks in a window: the paper averages six.
pub const WINDOW: usize = 6;

/// The blocks whose features classify best: those that ml-aim names for the released sizes, else a window of
/// [`WINDOW`] blocks around two thirds of the depth, where those lie too. Models of at most [`WINDOW`] blocks use all.
///
/// ```
/// use aim_model::{AimConfig, classifier::best_layers};
/// assert_eq!(best_layers(&AimConfig::preset("aim-600M")?), 14..20);
/// assert_eq!(best_layers(&AimConfig::preset("aim-3B")?), 12..18);
/// # Ok::<(), aim_model::ModelError>(())
/// ```
pub fn best_layers(config: &AimConfig) -> Range<usize> {
    let blocks = config.num_blocks;
    let first = match (config.embed_dim, blocks) {
        (1536, 24) | (4096, 32) => 14,
        (2048 | 3072, 24) => 12,
        _ if blocks <= WINDOW => return 0..blocks,
        // The window's middle at two thirds of the depth.
        _ => (2 * blocks / 3).saturating_sub(WINDOW / 2).min(blocks - WINDOW),
    };
    first..first + WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_depth_has_a_window_inside() {
        for num_blocks in 1..=64 {
            let config = AimConfig { num_blocks, embed_dim: 192, ..AimConfig::default() };
            let layers = best_layers(&config);
            assert!(layers.end <= num_blocks && layers.len() == num_blocks.min(WINDOW));
            let middle = (layers.start + layers.end) as f64 / 2.0;
            assert!(num_blocks < 12 || (middle / num_blocks as f64 - 0.667).abs() < 0.06);
        }
    }
}
