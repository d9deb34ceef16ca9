//! `aim-cli probe --suite`: several data sets, resumed, one of them failing, and the paper's table.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::*;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small Pets in its published layout: four classes of one colour each.
fn pets(root: &Path) {
    for list in ["trainval", "test"] {
        let mut lines = String::new();
        for class in 1..=4u8 {
            for number in 0..5 {
                let name = format!("breed{class}_{list}{number}");
                lines.push_str(&format!("{name} {class} 1 1\n"));
                let image = root.join(format!("images/{name}.jpg"));
                fs::create_dir_all(image.parent().unwrap()).unwrap();
                image::RgbImage::from_pixel(9, 8, image::Rgb([60 * class, 255 - 60 * class, 90]))
                    .save_with_format(image, image::ImageFormat::Png)
                    .unwrap();
            }
        }
        fs::create_dir_all(root.join("annotations")).unwrap();
        fs::write(root.join(format!("annotations/{list}.txt")), lines).unwrap();
    }
}

#[test]
fn a_suite_goes_on_where_it_stopped_and_past_what_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, out, file) =
        (dir.path().join("run"), dir.path().join("suite"), dir.path().join("suite.toml"));
    run(&mut pretrain_stripes(&run_dir, 10, &[]), 0);
    let place = dir.path().join("pets");
    pets(&place);
    let set = |name: &str, train: &str, val: &str, more: &str| {
        format!("[[set]]\nname = \"{name}\"\ntrain = \"{train}\"\nval = \"{val}\"\n{more}\n")
    };
    let place = text(&place);
    let sets = [
        set(
            "pets",
            &format!("pets:{place}#train"),
            &format!("pets:{place}#test"),
            "epochs = 3\nlr = [1e-3, 1e-2]",
        ),
        set("dtd", &format!("dtd:{place}#train"), &format!("dtd:{place}#test"), ""),
        set("stripes", LABELLED, LABELLED, ""),
    ];
    fs::write(&file, sets.concat()).unwrap();
    let suite = |more: &[&str]| {
        let mut command = aim();
        command.args(["probe", "--checkpoint", text(&run_dir), "--suite", text(&file)]);
        command.args(["--out", text(&out), "--kind", "linear,knn", "--k", "20", "--epochs", "2"]);
        command.args(more);
        command
    };
    let first = suite(&[]).output().unwrap();
    let said = stderr(&first);
    assert_eq!(first.status.code(), Some(1), "{said}");
    assert!(
        said.contains("labels/train1.txt") && said.contains("1 of 3 sets failed: dtd"),
        "{said}"
    );
    let table = String::from_utf8(first.stdout).unwrap();
    let ours: Vec<_> = table.lines().filter(|line| line.starts_with("this model")).collect();
    assert_eq!(ours.len(), 2, "{table}");
    assert!(ours[0].contains("linear") && ours[1].contains("knn"), "{table}");
    // Pets is the eighth of 15 columns; nothing else was run, and there is no average of all.
    let cells: Vec<_> = ours[1].split_whitespace().skip(4).collect();
    assert_eq!(cells.iter().filter(|cell| **cell == "-").count(), 15, "{table}");
    assert!(cells[6] != "-" && cells[16] == cells[6], "{cells:?}");
    assert!(table.contains("Avg of 1: pets") && table.contains("stripes"), "{table}");
    assert!(table.contains("AIM-7B") && table.contains("81.9"), "{table}");
    let kept = fs::read(out.join("pets/set.json")).unwrap();
    assert!(out.join("pets/results.json").is_file() && !out.join("dtd/set.json").exists());

    // The same command keeps what is done; a set with other settings is probed again.
    fs::write(&file, [&sets[0], &*sets[2].replace("\n\n", "\nepochs = 1\n")].concat()).unwrap();
    let second = suite(&["--json"]).output().unwrap();
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    assert!(stderr(&second).contains("1/2 pets: done before"), "{}", stderr(&second));
    assert_eq!(fs::read(out.join("pets/set.json")).unwrap(), kept);
    let printed = String::from_utf8(second.stdout).unwrap();
    assert_eq!(printed.trim_end(), fs::read_to_string(out.join("suite.json")).unwrap());
    for part in ["\"status\": \"kept\"", "\"status\": \"done\"", "\"AIM-0.6B\"", "\"partial\": {"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    // Half a file from a run that was killed is no result.
    fs::write(out.join("pets/set.json"), &kept[..kept.len() / 2]).unwrap();
    let third = suite(&[]).output().unwrap();
    assert!(!stderr(&third).contains("pets: done before"), "{}", stderr(&third));
    assert_eq!(fs::read(out.join("pets/set.json")).unwrap(), kept, "the same bits again");
}

#[test]
fn a_suite_is_checked_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("suite.toml");
    let suite = |text_of: &str| {
        fs::write(&file, text_of).unwrap();
        let mut command = aim();
        command.args(["probe", "--checkpoint", "/nowhere", "--suite", text(&file), "--out", "x"]);
        command
    };
    refused(
        &mut suite("[[set]]\nname = \"../a\"\ntrain = \"x\"\nval = \"y\"\n"),
        2,
        &["suite.toml", "letters"],
    );
    refused(&mut suite("[[set]]\nname = \"a\"\n"), 2, &["missing field `train`"]);
    refused(&mut suite(""), 2, &["at least one"]);
    let both = ["--train", "x"];
    run(suite("").args(both), 2);
    run(aim().args(["probe", "--checkpoint", "x", "--out", "y"]), 2);
    let example = aim().args(["config", "suite"]).output().unwrap();
    let example = String::from_utf8(example.stdout).unwrap();
    assert_eq!(example.matches("[[set]]\n").count(), 15);
    // A checkpoint that is not there is one error, not fifteen.
    let said = refused(&mut suite(&example), 1, &["/nowhere"]);
    assert!(!said.contains("failed, going on"), "{said}");
}
