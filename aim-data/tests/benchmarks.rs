//! The data sets of the paper's benchmarks, each in a small tree of its published layout.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use aim_data::source::{Benchmark, Payload, Source};
use aim_data::spec::{DataSpec, SpecKind, open};
use common::{first, keys, labels, png, write};
use tempfile::{TempDir, tempdir};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/benchmarks").join(name)
}

/// Puts a fixture into a tree.
fn put(root: &Path, place: &str, name: &str) {
    write(root.join(place), &fs::read(fixture(name)).unwrap());
}

/// Writes images whose pixels tell their place in `names`.
fn images(root: &Path, names: &[&str]) {
    for (number, name) in (1u8..).zip(names) {
        write(root.join(name), &png(number));
    }
}

fn open_split(set: &str, root: &Path, split: &str) -> std::sync::Arc<dyn Source> {
    open(&format!("{set}:{}#{split}", root.display())).unwrap()
}

fn refused(set: &str, root: &Path, split: &str) -> String {
    let opened = open(&format!("{set}:{}#{split}", root.display()));
    opened.err().unwrap_or_else(|| panic!("{set}#{split} was opened")).to_string()
}

/// A bare path is recognised as this set, and gives the same as `set:PATH`.
fn recognised(set: &str, root: &Path) {
    let spec: DataSpec = root.to_str().unwrap().parse().unwrap();
    let expected = Benchmark::from_name(set).unwrap();
    assert!(matches!(&spec.kind, SpecKind::Benchmark { set, .. } if *set == expected), "{spec}");
    assert_eq!(spec.to_string(), format!("{}:{}", expected.name(), root.display()));
}

fn pixels(source: &dyn Source) -> Vec<u8> {
    (0..source.len()).map(|index| first(source, index)).collect()
}

fn names(source: &dyn Source) -> Vec<&str> {
    source.class_names().unwrap().iter().map(String::as_str).collect()
}

fn cars() -> TempDir {
    let dir = tempdir().unwrap();
    let root = dir.path().join("stanford_cars");
    put(&root, "devkit/cars_meta.mat", "cars_meta.mat");
    put(&root, "devkit/cars_train_annos.mat", "cars_train_annos.mat");
    images(&root, &["cars_train/00001.jpg", "cars_train/00002.jpg", "cars_train/00003.jpg"]);
    images(&root, &["cars_test/00001.jpg", "cars_test/00002.jpg"]);
    dir
}

#[test]
fn cars_in_the_devkits_layout() {
    let dir = cars();
    let root = dir.path().join("stanford_cars");
    let train = open_split("cars", dir.path(), "train");
    assert_eq!(labels(&*train), [2, 0, 1].map(Some));
    assert_eq!(keys(&*train)[0], "cars_train/00001");
    assert_eq!(pixels(&*train), [1, 2, 3]);
    let classes = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Škoda Octavia 2012"];
    assert_eq!((names(&*train), train.num_classes()), (classes.to_vec(), Some(3)));
    recognised("cars", &root);
    // The test list that comes with the devkit has no labels.
    put(&root, "devkit/cars_test_annos.mat", "cars_test_annos.mat");
    let text = refused("cars", &root, "test");
    assert!(text.contains("cars_test_annos_withlabels.mat") && text.contains("found"), "{text}");
    put(&root, "cars_test_annos_withlabels.mat", "cars_test_annos.mat");
    let text = refused("cars", &root, "test");
    assert!(text.contains("annotation 0") && text.contains("fname"), "{text}");
    put(&root, "cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat");
    let both = open_split("cars", &root, "train+test");
    assert_eq!(labels(&*both), [2, 0, 1, 1, 1].map(Some));
    assert_eq!(both.key(4), "cars_test/00002");
    // Kaggle's copy has each folder twice.
    fs::create_dir(root.join("cars_train/cars_train")).unwrap();
    for name in ["00001.jpg", "00002.jpg", "00003.jpg"] {
        fs::rename(
            root.join("cars_train").join(name),
            root.join("cars_train/cars_train").join(name),
        )
        .unwrap();
    }
    assert_eq!(pixels(&*open_split("cars", &root, "train")), [1, 2, 3]);
}

#[test]
fn cars_in_one_file() {
    let dir = tempdir().unwrap();
    put(dir.path(), "cars_annos.mat", "cars_annos.mat");
    images(dir.path(), &["car_ims/000001.jpg", "car_ims/000002.jpg", "car_ims/000003.jpg"]);
    let train = open_split("cars", dir.path(), "train");
    assert_eq!((labels(&*train), pixels(&*train)), ([0, 1].map(Some).to_vec(), vec![1, 3]));
    let test = open_split("cars", dir.path(), "test");
    assert_eq!((labels(&*test), keys(&*test)), (vec![Some(2)], vec!["car_ims/000002".to_owned()]));
    recognised("cars", dir.path());
}

#[test]
fn pets() {
    let dir = tempdir().unwrap();
    let header = "#Image CLASS-ID SPECIES BREED ID\n";
    let trainval =
        format!("{header}Abyssinian_100 1 1 1\namerican_bulldog_12 2 2 1\r\n\nSphynx_3 4 1 3\n");
    write(dir.path().join("annotations/trainval.txt"), trainval.as_bytes());
    write(dir.path().join("annotations/test.txt"), b"Bengal_7 3 1 2\nSphynx_9 4 1 3\n");
    images(
        dir.path(),
        &[
            "images/Abyssinian_100.jpg",
            "images/american_bulldog_12.jpg",
            "images/Sphynx_3.jpg",
            "images/Bengal_7.jpg",
            "images/Sphynx_9.jpg",
        ],
    );
    let train = open(&format!("pets:{}", dir.path().display())).unwrap();
    assert_eq!((labels(&*train), pixels(&*train)), ([0, 1, 3].map(Some).to_vec(), vec![1, 2, 3]));
    assert_eq!(names(&*train), ["Abyssinian", "american_bulldog", "Bengal", "Sphynx"]);
    let test = open_split("pets", dir.path(), "test");
    assert_eq!((labels(&*test), names(&*test)), ([2, 3].map(Some).to_vec(), names(&*train)));
    assert_eq!(labels(&*open_split("pets", dir.path(), "test+trainval")).len(), 5);
    recognised("pets", dir.path());
    let text = refused("pets", dir.path(), "val");
    assert!(text.contains("expected train, test"), "{text}");
    write(dir.path().join("annotations/test.txt"), b"Bengal_7 3\nSphynx_9 zero\n");
    let text = refused("pets", dir.path(), "test");
    assert!(text.contains("test.txt") && text.contains("line 2"), "{text}");
}

#[test]
fn dtd_has_ten_partitions() {
    let dir = tempdir().unwrap();
    let list = |name: &str, text: &str| {
        write(dir.path().join("dtd/labels").join(name), text.as_bytes());
    };
    list("train1.txt", "banded/banded_0002.jpg\nzigzagged/z_1.jpg\n");
    list("val1.txt", "dotted/d_1.jpg\n");
    list("test1.txt", "zigzagged/z_2.jpg\n");
    list("train2.txt", "banded/banded_0002.jpg\n");
    list("val2.txt", "zigzagged/z_2.jpg\n");
    let files =
        ["banded/banded_0002.jpg", "zigzagged/z_1.jpg", "dotted/d_1.jpg", "zigzagged/z_2.jpg"];
    images(&dir.path().join("dtd/images"), &files);
    let train = open_split("dtd", dir.path(), "train+val");
    assert_eq!(names(&*train), ["banded", "dotted", "zigzagged"]);
    assert_eq!((labels(&*train), pixels(&*train)), ([0, 2, 1].map(Some).to_vec(), vec![1, 2, 3]));
    assert_eq!(labels(&*open_split("dtd", dir.path(), "test")), [Some(2)]);
    let second = open_split("dtd", dir.path(), "val:2");
    assert_eq!((labels(&*second), names(&*second)), (vec![Some(1)], vec!["banded", "zigzagged"]));
    recognised("dtd", &dir.path().join("dtd"));
    assert!(refused("dtd", dir.path(), "train:11").contains("1 to 10"));
    let text = refused("dtd", dir.path(), "test:2");
    assert!(text.contains("labels/test2.txt"), "{text}");
}

#[test]
fn food101() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("food-101");
    write(root.join("meta/classes.txt"), b"apple_pie\nwaffles\n");
    write(root.join("meta/train.txt"), b"waffles/12\napple_pie/1005649\n");
    write(root.join("meta/test.txt"), b"waffles/13\nsushi/1\n");
    images(&root, &["images/waffles/12.jpg", "images/apple_pie/1005649.jpg"]);
    let train = open_split("food101", dir.path(), "train");
    assert_eq!((labels(&*train), pixels(&*train)), ([1, 0].map(Some).to_vec(), vec![1, 2]));
    assert_eq!(names(&*train), ["apple_pie", "waffles"]);
    recognised("food101", &root);
    let text = refused("food101", dir.path(), "test");
    assert!(text.contains("line 2") && text.contains("sushi"), "{text}");
}

#[test]
fn inaturalist_2018() {
    let dir = tempdir().unwrap();
    let json = |images: &str, annotations: &str| {
        format!(
            r#"{{"info": {{"year": 2018}}, "licenses": [], "images": [{images}],
            "annotations": [{annotations}],
            "categories": [{{"id": 7, "name": "3"}}, {{"id": 2, "name": "9"}}]}}"#
        )
    };
    let image = |id: u32, name: &str| {
        format!(r#"{{"id": {id}, "width": 2, "height": 2, "file_name": "{name}", "license": 1}}"#)
    };
    let of =
        |id: u32, class: u32| format!(r#"{{"id": 1, "image_id": {id}, "category_id": {class}}}"#);
    let train = [image(10, "train_val2018/Aves/7/b.jpg"), image(11, "train_val2018/Aves/2/a.jpg")];
    let text = json(&train.join(","), &[of(11, 2), of(10, 7)].join(","));
    write(dir.path().join("train2018.json"), text.as_bytes());
    let text = json(&image(3, "train_val2018/Aves/2/c.jpg"), &of(3, 2));
    write(dir.path().join("val2018.json"), text.as_bytes());
    images(dir.path(), &["train_val2018/Aves/2/a.jpg", "train_val2018/Aves/7/b.jpg"]);
    let train = open_split("inat18", dir.path(), "train");
    assert_eq!((labels(&*train), pixels(&*train)), ([0, 1].map(Some).to_vec(), vec![1, 2]));
    assert_eq!(names(&*train), ["9", "3"]);
    write(
        dir.path().join("categories.json"),
        br#"[{"id": 2, "name": "Larus canus", "genus": "L"}]"#,
    );
    let both = open_split("inat18", dir.path(), "train+val");
    assert_eq!(
        (labels(&*both), names(&*both)),
        ([0, 1, 0].map(Some).to_vec(), vec!["Larus canus", "3"])
    );
    recognised("inat18", dir.path());
    let text = json(&image(3, "c.jpg"), &of(3, 5));
    write(dir.path().join("val2018.json"), text.as_bytes());
    assert!(refused("inat18", dir.path(), "val").contains("category 5"));
}

#[test]
fn wilds_iwildcam() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("iwildcam_v2.0");
    let table = ",split,location_remapped,y,datetime,filename\n\
                 0,train,3,2,\"2013-01-01, 1\",a.jpg\n1,val,4,0,x,b.jpg\n2,id_test,3,1,x,c.jpg\n";
    write(root.join("metadata.csv"), table.as_bytes());
    write(
        root.join("categories.csv"),
        b"y,category_id,name\n0,0,empty\n2,9,\"tapir, common\"\n99999,1,x\n",
    );
    images(&root, &["train/a.jpg", "train/b.jpg", "train/c.jpg"]);
    let train = open_split("iwildcam", dir.path(), "train");
    assert_eq!((labels(&*train), pixels(&*train)), (vec![Some(2)], vec![1]));
    assert_eq!(names(&*train), ["empty", "1", "tapir, common"]);
    assert_eq!(pixels(&*open_split("iwildcam", &root, "val+id_test")), [2, 3]);
    recognised("iwildcam", &root);
    let text = refused("iwildcam", &root, "id_val");
    assert!(text.contains("no image"), "{text}");
}

#[test]
fn wilds_camelyon17_splits_by_hospital() {
    let dir = tempdir().unwrap();
    let table = ",patient,node,x_coord,y_coord,tumor,slide,center,split\n\
                 0,004,4,3328,21792,1,0,0,0\n1,004,4,1,2,0,0,0,1\n2,010,1,5,6,1,0,1,0\n\
                 3,020,2,7,8,0,0,2,1\n";
    write(dir.path().join("metadata.csv"), table.as_bytes());
    let patch = |name: &str, at: &str| format!("patches/{name}/patch_{name}_{at}.png");
    let files = [
        patch("patient_004_node_4", "x_3328_y_21792"),
        patch("patient_004_node_4", "x_1_y_2"),
        patch("patient_010_node_1", "x_5_y_6"),
        patch("patient_020_node_2", "x_7_y_8"),
    ];
    images(dir.path(), &files.each_ref().map(String::as_str));
    let of = |split| {
        let source = open_split("camelyon17", dir.path(), split);
        (labels(&*source), pixels(&*source))
    };
    assert_eq!(of("train"), (vec![Some(1)], vec![1]));
    assert_eq!(of("id_val"), (vec![Some(0)], vec![2]));
    assert_eq!(of("val"), (vec![Some(1)], vec![3]));
    assert_eq!(of("test"), (vec![Some(0)], vec![4]));
    recognised("camelyon17", dir.path());
    write(dir.path().join("metadata.csv"), b"patient,node,tumor,center\n1,2,0,0\n");
    let text = refused("camelyon17", dir.path(), "train");
    assert!(text.contains("expected a column `x_coord`") && text.contains("patient"), "{text}");
}

#[test]
fn wilds_rxrx1() {
    let dir = tempdir().unwrap();
    let table = "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id\n\
                 1,1,HEPG2,train,HEPG2-01,1,B02,1,t,s20,1\n2,1,HEPG2,train,HEPG2-01,1,B02,2,t,s20,1\n\
                 3,1,U2OS,val,U2OS-03,2,C03,2,t,EMPTY,0\n";
    write(dir.path().join("metadata.csv"), table.as_bytes());
    let folder = "images/HEPG2-01/Plate1/B02";
    let files = [
        format!("{folder}_s1.png"),
        format!("{folder}_s2.png"),
        "images/U2OS-03/Plate2/C03_s2.png".into(),
    ];
    images(dir.path(), &files.each_ref().map(String::as_str));
    let of = |split| pixels(&*open_split("rxrx1", dir.path(), split));
    assert_eq!((of("train"), of("id_test"), of("val")), (vec![1], vec![2], vec![3]));
    let train = open_split("rxrx1", dir.path(), "train");
    assert_eq!((labels(&*train), names(&*train)), (vec![Some(1)], vec!["EMPTY", "s20"]));
    recognised("rxrx1", dir.path());
}

#[test]
fn fmow_splits_by_time() {
    let dir = tempdir().unwrap();
    let table = "split,img_filename,category,timestamp,country_code\n\
                 train,x.jpg,zoo,2012-12-31T23:59:59Z,USA\ntrain,x.jpg,airport,2013-01-01T00:00:00Z,USA\n\
                 seq,x.jpg,dam,2010-05-05T00:00:00Z,USA\nval,x.jpg,airport,2015-06-06T00:00:00Z,USA\n\
                 test,x.jpg,zoo,2016-01-01T00:00:00Z,USA\nval,x.jpg,zoo,2002-01-01T00:00:00Z,USA\n";
    write(dir.path().join("rgb_metadata.csv"), table.as_bytes());
    let files: Vec<String> = (0..6).map(|row| format!("images/rgb_img_{row}.png")).collect();
    images(dir.path(), &files.iter().map(String::as_str).collect::<Vec<_>>());
    let of = |split| {
        let source = open_split("fmow", dir.path(), split);
        (labels(&*source), pixels(&*source))
    };
    assert_eq!(of("train"), (vec![Some(2)], vec![1]));
    assert_eq!(of("val"), (vec![Some(0)], vec![4]));
    assert_eq!(of("test"), (vec![Some(2)], vec![5]));
    assert_eq!(of("id_val"), (vec![Some(2)], vec![6]));
    assert_eq!(names(&*open_split("fmow", dir.path(), "train")), ["airport", "dam", "zoo"]);
    recognised("fmow", dir.path());
}

#[test]
fn fmow_in_class_folders() {
    let dir = tempdir().unwrap();
    images(
        dir.path(),
        &[
            "train/airport/airport_0/airport_0_0_rgb.jpg",
            "train/airport/airport_0/airport_0_0_msrgb.jpg",
            "train/zoo/zoo_1/zoo_1_0_rgb.jpg",
            "val/airport/airport_9/airport_9_0_rgb.jpg",
            "val/zoo/zoo_9/zoo_9_0_rgb.jpg",
        ],
    );
    let both = open_split("fmow", dir.path(), "train+val");
    assert_eq!(
        (labels(&*both), pixels(&*both)),
        ([0, 1, 0, 1].map(Some).to_vec(), vec![1, 3, 4, 5])
    );
    assert_eq!(names(&*both), ["airport", "zoo"]);
}

#[test]
fn eurosat_with_and_without_lists() {
    let dir = tempdir().unwrap();
    let classes = ["AnnualCrop", "Forest"];
    for class in classes {
        for number in 1..=10u8 {
            write(dir.path().join(format!("2750/{class}/{class}_{number}.jpg")), &png(number));
        }
    }
    let of = |split| keys(&*open_split("eurosat", dir.path(), split));
    let (train, val, test) = (of("train"), of("val"), of("test"));
    assert_eq!([train.len(), val.len(), test.len()], [12, 4, 4]);
    let forests = |keys: &[String]| keys.iter().filter(|key| key.starts_with("Forest")).count();
    assert_eq!([forests(&train), forests(&val), forests(&test)], [6, 2, 2]);
    let mut all = of("train+val+test");
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 20);
    // The split depends on names only: these are the hashes' choice, whatever else changes.
    assert_eq!(
        val,
        [
            "AnnualCrop/AnnualCrop_4",
            "AnnualCrop/AnnualCrop_7",
            "Forest/Forest_2",
            "Forest/Forest_9"
        ]
    );
    assert!(open_split("eurosat", dir.path(), "val").notes()[0].contains("hashes"));
    recognised("eurosat", dir.path());
    write(dir.path().join("eurosat-train.txt"), b"Forest_2.jpg\nAnnualCrop_3.tif\nForest_99.jpg\n");
    let listed = open_split("eurosat", dir.path(), "train");
    assert_eq!(labels(&*listed), [1, 0, 1].map(Some));
    assert_eq!((first(&*listed, 0), first(&*listed, 1)), (2, 3));
    let defect = listed.read(2, 0).unwrap_err();
    assert!(defect.location.contains("Forest_99.jpg"), "{defect}");
    let text = refused("eurosat", dir.path(), "val");
    assert!(text.contains("eurosat-val.txt"), "{text}");
}

#[test]
fn domainnet_and_infograph() {
    let dir = tempdir().unwrap();
    let list = |name: &str, text: &str| write(dir.path().join(name), text.as_bytes());
    list("infograph_train.txt", "infograph/axe/i_1.jpg 1\ninfograph/bee/i 2.jpg 2\n");
    list("infograph_test.txt", "infograph/ant/i_3.jpg 0\n");
    list("sketch_train.txt", "sketch/ant/s_1.jpg 0\n");
    images(dir.path(), &["infograph/axe/i_1.jpg", "infograph/bee/i 2.jpg", "sketch/ant/s_1.jpg"]);
    let train = open_split("infograph", dir.path(), "train");
    assert_eq!((labels(&*train), pixels(&*train)), ([1, 2].map(Some).to_vec(), vec![1, 2]));
    assert_eq!(names(&*train), ["ant", "axe", "bee"]);
    assert_eq!(pixels(&*open_split("domainnet", dir.path(), "train:sketch")), [3]);
    recognised("domainnet", dir.path());
    assert!(refused("domainnet", dir.path(), "train:../x").contains("domain"));
    let text = refused("domainnet", dir.path(), "test:clipart");
    assert!(text.contains("clipart_test.txt"), "{text}");
}

/// A CIFAR record whose pixels are (red, green, blue) = (label, 100, column).
fn record(labels: &[u8]) -> Vec<u8> {
    let mut bytes = labels.to_vec();
    bytes.extend([labels[labels.len() - 1]; 1024]);
    bytes.extend([100; 1024]);
    bytes.extend((0..1024).map(|at| (at % 32) as u8));
    bytes
}

fn image_of(source: &dyn Source, index: u64) -> Vec<u8> {
    match source.read(index, 0).unwrap().payload {
        Payload::Pixels(image) => image.pixels().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn cifar_binary() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("cifar-10-batches-bin");
    let names_of =
        |count: usize| (0..count).map(|n| format!("name {n}\n")).collect::<String>() + "\n";
    write(root.join("batches.meta.txt"), names_of(10).as_bytes());
    for batch in 1..=5u8 {
        let bytes = [record(&[batch]), record(&[9])].concat();
        write(root.join(format!("data_batch_{batch}.bin")), &bytes);
    }
    write(root.join("test_batch.bin"), &record(&[3]));
    let train = open_split("cifar10", dir.path(), "train");
    assert_eq!(labels(&*train), [1, 9, 2, 9, 3, 9, 4, 9, 5, 9].map(Some));
    assert_eq!((train.key(2), &names(&*train)[9]), ("data_batch_2-00000".to_owned(), &"name 9"));
    let image = image_of(&*train, 4);
    assert_eq!(
        (&image[..6], &image[3 * 31..3 * 33]),
        (&[3, 100, 0, 3, 100, 1][..], &[3, 100, 31, 3, 100, 0][..])
    );
    assert_eq!(labels(&*open_split("cifar10", &root, "test")), [Some(3)]);
    recognised("cifar10", &root);
    write(root.join("test_batch.bin"), &record(&[3])[1..]);
    assert!(refused("cifar10", &root, "test").contains("multiple of 3073"));
    write(root.join("test_batch.bin"), &record(&[10]));
    assert!(refused("cifar10", &root, "test").contains("class 10 of 10"));

    let root = dir.path().join("hundred");
    write(root.join("fine_label_names.txt"), names_of(100).as_bytes());
    write(root.join("train.bin"), &[record(&[4, 99]), record(&[4, 0])].concat());
    let train = open_split("cifar100", &root, "train");
    assert_eq!((labels(&*train), image_of(&*train, 0)[0]), ([99, 0].map(Some).to_vec(), 99));
    recognised("cifar100", &root);
}

#[test]
fn cifar_as_python_pickled_it() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("cifar-10-batches-py");
    put(&root, "batches.meta", "cifar10_meta");
    put(&root, "test_batch", "cifar10_batch");
    let test = open_split("cifar10", dir.path(), "test");
    assert_eq!((labels(&*test), names(&*test)[3]), ([6, 9, 0].map(Some).to_vec(), "name 3"));
    // Plane, row and column make (5 (1024 plane + 32 row + column) + 40 image) mod 251.
    let value = |image: usize, plane: usize, at: usize| {
        ((5 * (1024 * plane + at) + 40 * image) % 251) as u8
    };
    let image = image_of(&*test, 2);
    for at in [0, 1, 33, 1023] {
        let expected = [0, 1, 2].map(|plane| value(2, plane, at));
        assert_eq!(image[3 * at..3 * at + 3], expected);
    }
    put(&root, "data_batch_1", "cifar10_batch_python3");
    let text = refused("cifar10", dir.path(), "train");
    assert!(text.contains("data_batch_2.bin"), "{text}");
    (2..=5).for_each(|n| put(&root, &format!("data_batch_{n}"), "cifar10_batch_python3"));
    assert_eq!(open_split("cifar10", dir.path(), "train").len(), 15);
    recognised("cifar10", &root);

    let root = dir.path().join("cifar-100-python");
    put(&root, "meta", "cifar100_meta");
    put(&root, "train", "cifar100_train");
    let train = open_split("cifar100", dir.path(), "train");
    assert_eq!((labels(&*train), names(&*train)[99]), ([99, 0, 5].map(Some).to_vec(), "name 99"));
    // A batch of the wrong kind.
    put(&root, "train", "cifar10_batch");
    assert!(refused("cifar100", dir.path(), "train").contains("fine_labels"));
}

/// Puts the images of one fixture and the labels of another into place.
fn pcam(root: &Path, split: &str, x: &str, y: &str) {
    let name = |array| format!("camelyonpatch_level_2_split_{split}_{array}.h5");
    put(root, &name("x"), &format!("{x}_x.h5"));
    put(root, &name("y"), &format!("{y}_y.h5"));
}

#[test]
fn pcam_in_every_kind_of_storage() {
    // See make_benchmarks.py.
    let expected: Vec<Vec<u8>> = (0..5)
        .map(|n| {
            let at = (0..6).flat_map(|h| (0..4).flat_map(move |w| (0..3).map(move |c| (h, w, c))));
            at.map(|(h, w, c)| ((50 * n + 7 * h + 3 * w + c) % 256) as u8).collect()
        })
        .collect();
    for name in ["contiguous", "gzip", "new", "deep", "compact"] {
        let dir = tempdir().unwrap();
        let y = if name == "compact" { "deep" } else { name };
        pcam(dir.path(), "train", name, y);
        pcam(dir.path(), "valid", "gzip", "new");
        let train = open_split("pcam", dir.path(), "train");
        assert_eq!(labels(&*train), [0, 1, 0, 1, 0].map(Some), "{name}");
        // In an order that goes back and forth between blocks.
        for index in [4, 0, 3, 1, 2] {
            assert_eq!(image_of(&*train, index), expected[index as usize], "{name}, {index}");
        }
        assert_eq!(names(&*train), ["normal", "tumor"]);
        let both = open_split("pcam", dir.path(), "train+val");
        assert_eq!((both.len(), image_of(&*both, 8)), (10, expected[3].clone()));
        assert!(both.key(8).ends_with("split_valid_x-000003"), "{}", both.key(8));
        let starts = both.shard_starts().unwrap();
        assert!(starts.first() == Some(&0) && starts.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(train.shuffle_window().is_some(), !matches!(name, "contiguous" | "compact"));
        recognised("pcam", dir.path());
    }
}

#[test]
fn hdf5_files_that_are_not_read_say_why() {
    let dir = tempdir().unwrap();
    let x = dir.path().join("camelyonpatch_level_2_split_test_x.h5");
    let with = |name: &str| {
        pcam(dir.path(), "test", name, "gzip");
        refused("pcam", dir.path(), "test")
    };
    assert!(with("latest").contains("h5repack"), "{}", with("latest"));
    assert!(with("lzf").contains("32000 (lzf)"), "{}", with("lzf"));
    let whole = fs::read(fixture("gzip_x.h5")).unwrap();
    fs::write(&x, b"\x1f\x8b\x08\0\0\0\0\0").unwrap();
    assert!(refused("pcam", dir.path(), "test").contains("gzipped"));
    fs::write(&x, &whole[..whole.len() / 2]).unwrap();
    let text = refused("pcam", dir.path(), "test");
    assert!(text.contains("_test_x.h5") && text.contains("outside the file"), "{text}");
    fs::copy(fixture("gzip_y.h5"), &x).unwrap();
    let text = refused("pcam", dir.path(), "test");
    assert!(text.contains("expected an array called `x`, found y"), "{text}");
    // Damaged bytes of a chunk: that block's images are bad samples, the others are not.
    let mut damaged = whole.clone();
    let chunk =
        damaged.windows(2).rposition(|pair| pair == [0x78, 0x5e] || pair == [0x78, 0x9c]).unwrap();
    damaged[chunk + 4..chunk + 12].fill(0xff);
    fs::write(&x, &damaged).unwrap();
    let test = open_split("pcam", dir.path(), "test");
    let bad: Vec<u64> = (0..5).filter(|&index| test.read(index, 0).is_err()).collect();
    assert!(!bad.is_empty() && bad.len() < 5, "{bad:?}");
    // A checksum that does not fit.
    let mut damaged = fs::read(fixture("new_x.h5")).unwrap();
    pcam(dir.path(), "test", "new", "new");
    let chunk =
        damaged.windows(2).position(|pair| pair == [0x78, 0x5e] || pair == [0x78, 0x9c]).unwrap();
    let end = chunk + 3;
    damaged[end] ^= 1;
    fs::write(&x, &damaged).unwrap();
    let test = open_split("pcam", dir.path(), "test");
    assert!((0..5).any(|index| test.read(index, 0).is_err()));
}

#[test]
fn listed_files_that_are_missing_or_outside_are_bad_samples() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("pets");
    write(root.join("annotations/trainval.txt"), b"a_1 1 1 1\nb_2 2 1 1\nc_3 3 1 1\nd_4 4 1 1\n");
    write(dir.path().join("secret.jpg"), &png(9));
    images(&root, &["images/a_1.jpg"]);
    fs::create_dir(root.join("images/c_3.jpg")).unwrap();
    let source = open_split("pets", &root, "train");
    assert_eq!(first(&*source, 0), 1);
    for (index, file) in [(1, "b_2.jpg"), (2, "c_3.jpg"), (3, "d_4.jpg"), (4, "sample 4")] {
        let defect = source.read(index, 0).unwrap_err();
        assert!(defect.location.contains(file), "{defect}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.path().join("secret.jpg"), root.join("images/d_4.jpg"))
            .unwrap();
        let defect = source.read(3, 0).unwrap_err();
        assert!(defect.reason.contains("outside"), "{defect}");
        // A link to the folder itself is the user's own.
        std::os::unix::fs::symlink(&root, dir.path().join("link")).unwrap();
        assert_eq!(first(&*open_split("pets", &dir.path().join("link"), "train"), 0), 1);
    }
    write(root.join("annotations/trainval.txt"), b"../../secret 1 1 1\n");
    let text = refused("pets", &root, "train");
    assert!(text.contains("trainval.txt") && text.contains("without `..`"), "{text}");
    // Lists without images.
    write(root.join("annotations/trainval.txt"), b"x_1 1 1 1\n");
    let text = refused("pets", &root, "train");
    assert!(text.contains("images/x_1.jpg") && text.contains("not there"), "{text}");
    let text = refused("pets", &dir.path().join("nowhere"), "train");
    assert!(text.contains("annotations/trainval.txt") && text.contains("no such folder"), "{text}");
}
