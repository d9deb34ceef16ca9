//! Round trips, hostile files, shards.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::io::IoError;

fn encode(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn open_bytes(bytes: &[u8]) -> Result<(tempfile::TempDir, SafeTensors), IoError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    fs::write(&path, bytes).unwrap();
    SafeTensors::open(&path).map(|file| (dir, file))
}

fn error_of(bytes: &[u8]) -> String {
    open_bytes(bytes).unwrap_err().to_string()
}

const DTYPES: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I64, Dtype::U8];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any tensors in, the same tensors out, through one file and through shards, and the library
    /// reads the same from our bytes and would have written the same bytes.
    #[test]
    fn round_trip(
        specs in prop::collection::btree_map(
            "[a-z\"\\\\/ .0-9]{1,12}",
            (0usize..DTYPES.len(), prop::collection::vec(0usize..5, 0..4)),
            0..8,
        ),
        fill in any::<u8>(),
        max_shard_bytes in 1u64..400,
    ) {
        let owned: Vec<(&str, Dtype, &[usize], Vec<u8>)> = specs.iter().map(|(name, (d, shape))| {
            let bytes = shape.iter().product::<usize>() * DTYPES[*d].bitsize() / 8;
            let data = (0..bytes).map(|i| fill.wrapping_add(i as u8)).collect();
            (name.as_str(), DTYPES[*d], shape.as_slice(), data)
        }).collect();
        let tensors: Vec<TensorRef> = owned.iter()
            .map(|(name, dtype, shape, data)| TensorRef { name, dtype: *dtype, shape, data })
            .collect();

        let plan = FilePlan::new(&tensors, &BTreeMap::new()).unwrap();
        let mut bytes = Vec::new();
        plan.write_to(&mut bytes).unwrap();
        prop_assert_eq!(plan.bytes(), bytes.len() as u64);
        let theirs: Vec<_> = tensors.iter().map(|t| {
            let view = ::safetensors::tensor::TensorView::new(t.dtype, t.shape.to_vec(), t.data);
            (t.name, view.unwrap())
        }).collect();
        prop_assert_eq!(&bytes, &::safetensors::serialize(theirs, None).unwrap());

        let dir = tempfile::tempdir().unwrap();
        let names = write_sharded(dir.path(), "model", &tensors, max_shard_bytes).unwrap();
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), names.len());
        for opened in [open_bytes(&bytes).unwrap().1, SafeTensors::open(dir.path()).unwrap()] {
            prop_assert_eq!(opened.len(), tensors.len());
            for t in &tensors {
                let view = opened.tensor(t.name).unwrap();
                prop_assert_eq!((view.dtype, view.shape, view.bytes), (t.dtype, t.shape, t.data));
            }
        }
    }

    /// No change of a header byte, and no cut, may do worse than an error.
    #[test]
    fn damaged_files_do_not_panic(at in 0usize..120, to in any::<u8>(), length in 0usize..160) {
        let values = [1.0f32, 2.0, 3.0];
        let tensors = [TensorRef::f32("a", &[3], &values), TensorRef::f32("bb", &[1, 3], &values)];
        let mut bytes = Vec::new();
        FilePlan::new(&tensors, &BTreeMap::new()).unwrap().write_to(&mut bytes).unwrap();
        let full = bytes.len();
        let cut = open_bytes(&bytes[..length.min(full)]);
        prop_assert_eq!(cut.is_ok(), length >= full);
        let at = at.min(full - 1);
        bytes[at] = to;
        if let Ok((_dir, file)) = open_bytes(&bytes) {
            for view in file.tensors() {
                let _ = (view.to_f32(), view.to_i64(), view.to_i32());
            }
        }
    }
}

#[test]
fn conversions() {
    let f64s: Vec<u8> = [1.5f64, -2.25].iter().flat_map(|v| v.to_le_bytes()).collect();
    let f16s: Vec<u8> =
        [1.5f32, -2.25].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let bf16s: Vec<u8> =
        [1.5f32, -2.25].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let tensors = [
        TensorRef { name: "f64", dtype: Dtype::F64, shape: &[2], data: &f64s },
        TensorRef { name: "f16", dtype: Dtype::F16, shape: &[2], data: &f16s },
        TensorRef { name: "bf16", dtype: Dtype::BF16, shape: &[2], data: &bf16s },
        TensorRef::f32("f32", &[2], &[1.5, -2.25]),
        TensorRef::i64("i64", &[2], &[-7, 1 << 40]),
        TensorRef::i32("i32", &[2], &[-7, 9]),
        TensorRef { name: "u8", dtype: Dtype::U8, shape: &[2, 1], data: &[255, 3] },
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_file(&path, &tensors, &BTreeMap::new()).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    for name in ["f64", "f16", "bf16", "f32"] {
        assert_eq!(file.tensor(name).unwrap().to_f32().unwrap(), [1.5, -2.25], "{name}");
        assert!(file.tensor(name).unwrap().to_i64().is_err(), "{name}");
    }
    assert_eq!(file.tensor("i64").unwrap().to_i64().unwrap(), [-7, 1 << 40]);
    assert_eq!(file.tensor("i32").unwrap().to_i64().unwrap(), [-7, 9]);
    assert_eq!(file.tensor("i32").unwrap().to_i32().unwrap(), [-7, 9]);
    assert_eq!(file.tensor("u8").unwrap().to_i32().unwrap(), [255, 3]);
    let message = file.tensor("i64").unwrap().to_i32().unwrap_err().to_string();
    assert!(message.contains("1099511627776 at element 1"), "{message}");
    assert!(file.tensor("i64").unwrap().to_f32().unwrap_err().to_string().contains("I64"));
    let message = file.tensor("f32").unwrap().copy_to_f32(&mut [0.0; 3]).unwrap_err().to_string();
    assert!(message.contains("2 elements") && message.contains("destination 3"), "{message}");
    let message = file.tensor("u8").unwrap().expect_shape(&[2]).unwrap_err().to_string();
    assert!(message.contains("[2, 1]") && message.contains("expected [2]"), "{message}");
}

#[test]
fn data_of_any_alignment() {
    // A header of odd length, as other writers make: the floats start at an odd address.
    for pad in 0..8 {
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}{}"#,
            " ".repeat(pad)
        );
        let data: Vec<u8> = [3.25f32, -1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let (_dir, file) = open_bytes(&encode(&header, &data)).unwrap();
        assert_eq!(file.tensor("a").unwrap().to_f32().unwrap(), [3.25, -1.0]);
    }
}

#[test]
fn hostile_headers() {
    assert!(error_of(b"").contains("0 bytes"));
    assert!(error_of(&u64::MAX.to_le_bytes()).contains("claims"));
    assert!(error_of(&encode("{}", b"trailing")).contains("0 bytes of data"));
    assert!(error_of(&encode("[1", b"")).contains("line 1"));
    let one = |shape: &str, from: &str, to: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    for (shape, from, to) in [
        ("[2]", "0", "4"),                      // bytes do not match the shape
        ("[1]", "4", "8"),                      // a hole
        ("[1]", "8", "4"),                      // backwards
        ("[-1]", "0", "4"),                     // negative
        ("[18446744073709551615,2]", "0", "8"), // the product overflows
        ("[0]", "18446744073709551615", "18446744073709551615"), // an end that overflows
        ("[4611686018427387903]", "0", "18446744073709551612"), // a size beyond any file
    ] {
        error_of(&encode(&one(shape, from, to), &[0; 4]));
    }
    // Sixteen tensors of 2^60 bytes less eight: the sum with the header's length overflows.
    let big = 1u64 << 60;
    let entries: Vec<String> = (0..16u64)
        .map(|i| {
            let (from, size) = (i * big, if i == 15 { big - 8 } else { big });
            let to = from + size;
            format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{from},{to}]}}"#)
        })
        .collect();
    error_of(&encode(&format!("{{{}}}", entries.join(",")), b""));
}

#[test]
fn a_missing_tensor_names_the_nearest() {
    let tensors = [
        TensorRef::f32("trunk.blocks.0.attn.qkv.weight", &[1], &[1.0]),
        TensorRef::f32("trunk.post_trunk_norm.bias", &[1], &[1.0]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_file(&path, &tensors, &BTreeMap::new()).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    let message = file.tensor("trunk.blocks.1.attn.qkv.weight").unwrap_err().to_string();
    assert!(message.contains("`trunk.blocks.0.attn.qkv.weight`"), "{message}");
    assert!(!file.tensor("x").unwrap_err().to_string().contains("nearest"));
}

#[test]
fn metadata_is_kept_and_bytes_do_not_depend_on_order() {
    let metadata: BTreeMap<String, String> =
        (0..20).map(|i| (format!("key {i}"), format!("\"{i}\""))).collect();
    let (a, b) = (TensorRef::f32("a", &[1], &[1.0]), TensorRef::i64("b", &[1], &[2]));
    let mut first = Vec::new();
    FilePlan::new(&[a, b], &metadata).unwrap().write_to(&mut first).unwrap();
    let mut second = Vec::new();
    FilePlan::new(&[b, a], &metadata).unwrap().write_to(&mut second).unwrap();
    assert_eq!(first, second);
    let (_dir, file) = open_bytes(&first).unwrap();
    assert_eq!(file.metadata(), &metadata);
    assert_eq!(file.names().collect::<Vec<_>>(), ["b", "a"]);
    let mut empty = Vec::new();
    FilePlan::new(&[], &metadata).unwrap().write_to(&mut empty).unwrap();
    assert_eq!(open_bytes(&empty).unwrap().1.metadata(), &metadata);
}

#[test]
fn unwritable_tensors() {
    let none = BTreeMap::new();
    let a = TensorRef::f32("a", &[1], &[1.0]);
    let message = FilePlan::new(&[a, a], &none).unwrap_err().to_string();
    assert!(message.contains("twice"), "{message}");
    let message = ShardPlan::new("m", &[a, a], 4, &none).unwrap_err().to_string();
    assert!(message.contains("twice"), "{message}");
    assert!(FilePlan::new(&[TensorRef::f32("a", &[2], &[1.0])], &none).is_err());
    assert!(FilePlan::new(&[TensorRef::f32("__metadata__", &[1], &[1.0])], &none).is_err());
    let missing = Path::new("/nonexistent-dir/x.safetensors");
    let message = write_file(missing, &[a], &none).unwrap_err().to_string();
    assert!(message.contains("/nonexistent-dir/x.safetensors"), "{message}");
}

#[test]
fn shards_are_named_and_indexed_as_hugging_face_does() {
    let values = [0.0f32; 4];
    let names = ["a", "b", "c"];
    let tensors: Vec<_> = names.iter().map(|name| TensorRef::f32(name, &[4], &values)).collect();
    let dir = tempfile::tempdir().unwrap();
    let files = write_sharded(dir.path(), "model", &tensors, 32).unwrap();
    assert_eq!(
        files,
        [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ]
    );
    let index = fs::read(dir.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(
        index,
        serde_json::json!({
            "metadata": { "total_size": 48 },
            "weight_map": {
                "a": "model-00001-of-00002.safetensors",
                "b": "model-00001-of-00002.safetensors",
                "c": "model-00002-of-00002.safetensors",
            }
        })
    );
    // A limit that fits: one file, which readers prefer; shards beside it would be shadowed.
    assert_eq!(write_sharded(dir.path(), "model", &tensors, 48).unwrap(), ["model.safetensors"]);
    let message = write_sharded(dir.path(), "model", &tensors, 32).unwrap_err().to_string();
    assert!(message.contains("prefer the older"), "{message}");
}

#[test]
fn an_index_stays_in_its_directory() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("inner");
    fs::create_dir(&dir).unwrap();
    let a = TensorRef::f32("a", &[1], &[1.0]);
    for path in [outer.path().join("x.safetensors"), dir.join("y.safetensors")] {
        write_file(path, &[a], &BTreeMap::new()).unwrap();
    }
    let open = |tensor: &str, shard: &str| {
        let index = serde_json::json!({ "weight_map": { tensor: shard } });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        SafeTensors::open(&dir).map(|_| ()).map_err(|error| error.to_string())
    };
    let absolute = outer.path().join("x.safetensors").display().to_string();
    for shard in ["../x.safetensors", &absolute, "..", ".", "", "..\\x.safetensors", "sub/y"] {
        let message = open("a", shard).unwrap_err();
        assert!(message.contains("same directory"), "{shard}: {message}");
    }
    assert_eq!(open("a", "y.safetensors"), Ok(()));
    assert!(open("b", "y.safetensors").unwrap_err().contains("does not hold it"));
    assert!(open("a", "z.safetensors").unwrap_err().contains("z.safetensors"));
}

#[test]
fn what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let message = SafeTensors::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors.index.json") && message.contains("neither"));
    let message = SafeTensors::open(dir.path().join("no.safetensors")).unwrap_err().to_string();
    assert!(message.contains("no.safetensors"), "{message}");
    let message = SafeTensors::open("/dev/null").unwrap_err().to_string();
    assert!(message.contains("no regular file"), "{message}");
}
