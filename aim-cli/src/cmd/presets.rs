//! `aim-cli presets`.

use aim_model::config::{AimConfig, PRESETS};
use anyhow::Result;
use serde_json::json;

use crate::args::Json;
use crate::stdout;
use crate::table::{Table, thousands};

pub(crate) fn run(args: &Json) -> Result<()> {
    let mut table = Table::new(&[
        "preset",
        ">image",
        ">patch",
        ">tokens",
        ">width",
        ">blocks",
        ">heads",
        ">trunk",
        ">head",
        ">GFLOP/image",
    ]);
    let mut list = Vec::new();
    for name in PRESETS {
        let config = AimConfig::preset(name)?;
        let (trunk, head) = (trunk_params(&config), head_params(&config));
        let gflop = forward_flop(&config) as f64 / 1e9;
        list.push(json!({
            "preset": name, "config": config, "trunk_params": trunk, "head_params": head,
            "forward_gflop_per_image": gflop,
        }));
        table.row([
            name.to_owned(),
            config.img_size.to_string(),
            config.patch_size.to_string(),
            config.num_patches().to_string(),
            config.embed_dim.to_string(),
            config.num_blocks.to_string(),
            config.num_heads.to_string(),
            thousands(trunk),
            thousands(head),
            if gflop < 10.0 { format!("{gflop:.2}") } else { format!("{gflop:.0}") },
        ]);
    }
    if args.json {
        return stdout::print_json(&list);
    }
    stdout::print(&format!(
        "{table}\ntrunk and head are numbers of parameters; the head is needed for pre-training only.\n\
         GFLOP/image is one forward pass of both over every token; training takes three times that.\n"
    ))
}

/// Weights of the patch embedding, the blocks and the last norm.
fn trunk_params(config: &AimConfig) -> u64 {
    let d = config.embed_dim as u64;
    let embed = config.patch_dim() as u64 * d + d + 2 * d;
    let block = (4 + 2 * config.mlp_ratio as u64) * d * d + 4 * d;
    embed + config.num_blocks as u64 * block + 2 * d
}

/// Weights of the pixel head with `x + mlp(norm(x))` blocks.
fn head_params(config: &AimConfig) -> u64 {
    let (d, w, pixels) =
        (config.embed_dim as u64, config.head_width as u64, config.patch_dim() as u64);
    let block = 2 * config.mlp_ratio as u64 * w * w + 2 * w;
    (d * w + w) + config.head_depth as u64 * block + 2 * w + (w * pixels + pixels)
}

/// Floating-point operations of one forward pass of trunk and head, two per multiply-add.
fn forward_flop(config: &AimConfig) -> u64 {
    let tokens = config.num_patches() as u64;
    let (d, w, pixels) =
        (config.embed_dim as u64, config.head_width as u64, config.patch_dim() as u64);
    let ratio = config.mlp_ratio as u64;
    let block = (4 + 2 * ratio) * d * d + 2 * tokens * d;
    let head = d * w + config.head_depth as u64 * 2 * ratio * w * w + w * pixels;
    2 * tokens * (pixels * d + config.num_blocks as u64 * block + head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_released_models() {
        let counts = [
            ("aim-600M", 680_535_552, 407_059_020),
            ("aim-1B", 1_209_370_624, 408_107_596),
            ("aim-3B", 2_720_025_600, 410_204_748),
            ("aim-7B", 6_445_404_160, 412_301_900),
        ];
        for (name, trunk, head) in counts {
            let config = AimConfig::preset(name).unwrap();
            assert_eq!((trunk_params(&config), head_params(&config)), (trunk, head), "{name}");
        }
    }
}
