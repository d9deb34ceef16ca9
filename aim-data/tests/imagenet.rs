//! ImageNet as it is downloaded and as Kaggle ships it.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use aim_data::source::open_ilsvrc;
use aim_data::spec::{DataSpec, SpecKind, open};
use common::{LIMITS, first, fixture, keys, labels, png, tar_of, write};
use tempfile::tempdir;

/// The downloads of a small ImageNet with three classes, whose ILSVRC ids are 1 = n02000003,
/// 2 = n02000001, 3 = n02000002 (see `make_formats.py`).
fn imagenet(folder: &Path) {
    let mut inner = Vec::new();
    // Out of order, as nothing promises one.
    for (class, wnid) in [(2u8, "n02000003"), (0, "n02000001"), (1, "n02000002")] {
        let names: Vec<String> = (0..2).map(|n| format!("{wnid}_{n}.JPEG")).collect();
        let files: Vec<(&str, Vec<u8>)> =
            names.iter().map(|name| (name.as_str(), png(class * 10))).collect();
        inner.push((format!("{wnid}.tar"), tar_of(&files)));
    }
    let inner: Vec<(&str, Vec<u8>)> =
        inner.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    write(folder.join("ILSVRC2012_img_train.tar"), &tar_of(&inner));
    // Written out of order as well.
    let val: Vec<(String, Vec<u8>)> =
        [3u8, 1, 2, 4].iter().map(|n| (format!("ILSVRC2012_val_{n:08}.JPEG"), png(*n))).collect();
    let val: Vec<(&str, Vec<u8>)> = val.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    write(folder.join("ILSVRC2012_img_val.tar"), &tar_of(&val));
}

const TRUTH: &[u8] = b"1\n3\n2\n1\n";
const TRUTH_FILE: &str = "ILSVRC2012_validation_ground_truth.txt";

#[test]
fn imagenet_tars_are_read_without_unpacking_and_labels_are_mapped() {
    for meta in ["meta.mat", "meta_compressed.mat"] {
        let dir = tempdir().unwrap();
        imagenet(dir.path());
        let mat = fs::read(fixture(meta)).unwrap();
        let devkit = tar_of(&[
            ("ILSVRC2012_devkit_t12/readme.txt", b"x".to_vec()),
            ("ILSVRC2012_devkit_t12/data/meta.mat", mat),
            (&format!("ILSVRC2012_devkit_t12/data/{TRUTH_FILE}"), TRUTH.to_vec()),
        ]);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gz, &devkit).unwrap();
        write(dir.path().join("ILSVRC2012_devkit_t12.tar.gz"), &gz.finish().unwrap());

        let train = open(&format!("ilsvrc:{}", dir.path().display())).unwrap();
        assert_eq!(train.len(), 6);
        assert_eq!(labels(&*train), [0, 0, 1, 1, 2, 2].map(Some));
        assert_eq!(train.key(3), "n02000002/n02000002_1");
        assert_eq!((first(&*train, 0), first(&*train, 3), first(&*train, 5)), (0, 10, 20));
        let names = train.class_names().unwrap();
        assert_eq!(names, ["n02000001 ant, emmet", "n02000002 bée", "n02000003 zebra"]);
        assert!(train.notes().is_empty(), "{:?}", train.notes());
        assert!(train.location(3).contains("n02000002_1.JPEG (data at byte"));

        // Ground truth 1, 3, 2, 1 in ILSVRC ids is zebra, bee, ant, zebra: classes 2, 1, 0, 2.
        let val = open(&format!("ilsvrc:{}#val", dir.path().display())).unwrap();
        assert_eq!(labels(&*val), [2, 1, 0, 2].map(Some));
        assert_eq!((first(&*val, 0), first(&*val, 3)), (1, 4));
        assert_eq!(val.key(1), "ILSVRC2012_val_00000002");
        // The tar file alone is recognised, and so is the folder.
        let bare = dir.path().join("ILSVRC2012_img_val.tar");
        assert_eq!(open(bare.to_str().unwrap()).unwrap().fingerprint(), val.fingerprint());
        let spec: DataSpec = dir.path().to_str().unwrap().parse().unwrap();
        assert!(matches!(spec.kind, SpecKind::Ilsvrc { .. }));
    }
}

#[test]
fn imagenet_without_a_devkit_trains_but_does_not_validate() {
    let dir = tempdir().unwrap();
    imagenet(dir.path());
    let train = open_ilsvrc(dir.path(), Some("train"), LIMITS).unwrap();
    assert_eq!(labels(&*train), [0, 0, 1, 1, 2, 2].map(Some));
    assert!(train.notes()[0].contains("no devkit"));
    let error = open_ilsvrc(dir.path(), Some("val"), LIMITS).err().unwrap().to_string();
    assert!(error.contains("ILSVRC2012_devkit_t12.tar.gz"), "{error}");
    let error = open_ilsvrc(dir.path(), Some("test"), LIMITS).err().unwrap().to_string();
    assert!(error.contains("train or val"), "{error}");
}

#[test]
fn kaggles_files_and_flat_validation_folders_give_the_same_labels() {
    let dir = tempdir().unwrap();
    let images = dir.path().join("ILSVRC/Data/CLS-LOC");
    for n in 1..=3u8 {
        write(images.join(format!("val/ILSVRC2012_val_{n:08}.JPEG")), &png(n));
    }
    for wnid in ["n02000001", "n02000002"] {
        write(images.join(format!("train/{wnid}/{wnid}_1.JPEG")), &png(7));
    }
    write(
        dir.path().join("LOC_synset_mapping.txt"),
        b"n02000001 ant, emmet\nn02000003 zebra\nn02000002 bee\n",
    );
    let solution = "ImageId,PredictionString\nILSVRC2012_val_00000002,n02000002 1 2 3 4 \n\
                    ILSVRC2012_val_00000001,n02000003 1 2 3 4 n02000003 5 6 7 8 \n";
    write(dir.path().join("LOC_val_solution.csv"), solution.as_bytes());
    let val = open(&format!("{}#val", dir.path().display())).unwrap();
    assert_eq!(keys(&*val), ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"]);
    assert_eq!(labels(&*val), [Some(2), Some(1)]);
    assert!(val.notes()[0].contains("1 members"), "{:?}", val.notes());
    let train = open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(train.class_names().unwrap(), ["n02000001", "n02000002"]);
    // The devkit's files, loose in the folder, and images directly in val/.
    let dir = tempdir().unwrap();
    for n in 1..=4u8 {
        write(dir.path().join(format!("val/ILSVRC2012_val_{n:08}.JPEG")), &png(n));
    }
    fs::copy(fixture("meta.mat"), dir.path().join("meta.mat")).unwrap();
    write(dir.path().join(TRUTH_FILE), TRUTH);
    let val = open(&format!("ilsvrc:{}#val", dir.path().display())).unwrap();
    assert_eq!(labels(&*val), [2, 1, 0, 2].map(Some));
    assert_eq!(first(&*val, 2), 3);
}

#[test]
fn damaged_imagenet_files_are_refused_with_the_place() {
    let dir = tempdir().unwrap();
    imagenet(dir.path());
    let open_split =
        |split| open_ilsvrc(dir.path(), Some(split), LIMITS).err().unwrap().to_string();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put(TRUTH_FILE, b"1\n4\n");
    let mat = fs::read(fixture("meta.mat")).unwrap();
    put("meta.mat", &mat);
    // 4 is the id of `animal`, which is no class.
    let error = open_split("val");
    assert!(error.contains(TRUTH_FILE) && error.contains("line 2"), "{error}");
    put("meta.mat", &mat[..mat.len() / 2]);
    let error = open_split("val");
    assert!(error.contains("meta.mat") && error.contains("cut short"), "{error}");
    put("meta.mat", b"MATLAB 7.3");
    assert!(open_split("train").contains("meta.mat"));
    fs::remove_file(dir.path().join("meta.mat")).unwrap();
    put("LOC_synset_mapping.txt", b"n02000001 ant\n");
    let error = open_split("train");
    assert!(error.contains("n02000002 is no class"), "{error}");
    put("ILSVRC2012_img_train.tar", &tar_of(&[("cats.tar", b"x".to_vec())]));
    assert!(open_split("train").contains("cats.tar"));
    let mut cut = tar_of(&[("n02000001.tar", tar_of(&[("a.JPEG", png(1))]))]);
    // The inner archive's header says more bytes than the inner archive has.
    cut[512 + 124..512 + 136].copy_from_slice(b"00000777777\0");
    cut[512 + 148..512 + 156].copy_from_slice(b"        ");
    let sum: u32 = cut[512..1024].iter().map(|&byte| u32::from(byte)).sum();
    cut[512 + 148..512 + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    put("ILSVRC2012_img_train.tar", &cut);
    let error = open_split("train");
    assert!(error.contains("byte 512") && error.contains("truncated"), "{error}");
}
