//! Initial values (ml-l3m): Xavier uniform for matrices, ones and zeros for norms.

use aim_tensor::{Parameters, Philox};

/// Fills every parameter of a trunk and a pixel head. Values depend on seed and name only.
///
/// Matrices are uniform in +-sqrt(6 / (inputs + outputs)), with queries, keys and values as matrices of their own and
/// the patch projection as a matrix over the flat patch; its bias is uniform in +-1/sqrt(patch values), PyTorch's
/// default for a convolution. Other biases are 0, norms start as the identity.
pub fn initialize(params: &mut Parameters, seed: u64) {
    let layout = params.layout().clone();
    for param in layout.iter() {
        let Some(id) = layout.id(&param.spec.name) else { continue };
        let name = param.spec.name.as_str();
        let shape = param.spec.shape;
        let random = Philox::new(seed, name);
        let values = params.value_mut(id);
        if name.ends_with("patchifier.proj.bias") {
            let patch = layout.id("preprocessor.patchifier.proj.weight").map_or(1, |id| {
                let weight = &layout.get(id).spec.shape;
                weight.len() / weight.dims()[0].max(1)
            });
            random.fill_uniform(1.0 / (patch as f32).sqrt(), values);
        } else if is_norm(name) {
            values.fill(if name.ends_with(".weight") { 1.0 } else { 0.0 });
        } else if shape.dims().len() < 2 {
            values.fill(0.0);
        } else {
            let outputs = shape.dims()[0];
            let inputs = shape.len() / outputs.max(1);
            // A fused qkv is three matrices: the bound is that of one.
            let outputs = if name.ends_with(".qkv.weight") { outputs / 3 } else { outputs };
            random.fill_uniform((6.0 / (inputs + outputs) as f32).sqrt(), values);
        }
    }
}

fn is_norm(name: &str) -> bool {
    name.rsplit('.').nth(1).is_some_and(|part| part.contains("norm"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::AimConfig;
    use crate::pixel_head::PixelHead;
    use crate::trunk::Trunk;
    use aim_tensor::ParamLayout;

    #[test]
    fn bounds_are_xavier_with_qkv_apart() {
        let config = AimConfig { num_blocks: 1, ..AimConfig::preset("aim-nano").unwrap() };
        let mut specs = Trunk::specs(&config, true);
        specs.extend(PixelHead::specs(&config));
        let mut params = Parameters::new(Arc::new(ParamLayout::new(specs).unwrap())).unwrap();
        initialize(&mut params, 0);
        let most = |name: &str| {
            let id = params.layout().id(name).unwrap();
            params.value(id).iter().fold(0.0_f32, |most, v| most.max(v.abs()))
        };
        let near = |found: f32, bound: f32| {
            assert!(found <= bound && found > 0.98 * bound, "{found} {bound}")
        };
        near(most("trunk.blocks.0.attn.qkv.weight"), (6.0_f32 / 384.0).sqrt());
        near(most("trunk.blocks.0.mlp.fc1.weight"), (6.0_f32 / 960.0).sqrt());
        near(most("preprocessor.patchifier.proj.weight"), (6.0_f32 / 240.0).sqrt());
        assert!(most("preprocessor.patchifier.proj.bias") <= 1.0 / 48.0_f32.sqrt());
        assert_eq!(most("pixel_head.pred.bias"), 0.0);
        assert_eq!(most("trunk.post_trunk_norm.weight"), 1.0);
        assert_eq!(most("trunk.blocks.0.norm_1.bias"), 0.0);
    }
}
