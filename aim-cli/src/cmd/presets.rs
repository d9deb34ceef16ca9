//! `aim-cli presets`.

use aim_model::config::{AimConfig, PRESETS};
use aim_model::pretrain::{PretrainModel, Target};
use anyhow::Result;
use serde_json::json;

use crate::args::Json;
use crate::table::{Table, thousands};
use crate::{cost, stdout};

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
        let model = PretrainModel::new(&config, Target::NormalizedPixels)?;
        let (trunk, head) = cost::parameters(&model);
        let gflop = cost::whole_image(&model)?.forward as f64 / 1e9;
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
            let model = PretrainModel::new(&config, Target::NormalizedPixels).unwrap();
            assert_eq!(cost::parameters(&model), (trunk, head), "{name}");
        }
    }
}
