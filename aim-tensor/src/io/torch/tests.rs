//! Files as PyTorch writes them (`tests/fixtures/torch/make.py`), and files as it never does.

use super::forge::{Zip, archive, dict, int, pickle, tensor, text, tuple};
use super::*;
use crate::io::safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// Every tensor of the file against the one that PyTorch wrote as safetensors; returns how many.
fn compare(name: &str) -> usize {
    let expected = SafeTensors::open(fixture("expected.safetensors")).unwrap();
    let file = TorchFile::open(fixture(name)).unwrap();
    for name in file.names() {
        let (found, expected) = (file.tensor(name).unwrap(), expected.tensor(name).unwrap());
        assert_eq!((found.dtype, found.shape), (expected.dtype, expected.shape), "{name}");
        match expected.to_f32() {
            Ok(values) => assert_eq!(found.to_f32().unwrap(), values, "{name}"),
            Err(_) => assert_eq!(found.to_i64().unwrap(), expected.to_i64().unwrap(), "{name}"),
        }
    }
    file.len()
}

#[test]
fn tensors_are_pytorchs_whatever_the_format() {
    assert_eq!(compare("state.pth"), 20);
    for name in ["state_protocol_4.pt", "state_legacy.pth", "nested.pth", "nested_legacy.pth"] {
        assert_eq!(compare(name), 19, "{name}");
    }
    assert_eq!(compare("only_dict.bin"), 19);
    let section = |name| TorchFile::open(fixture(name)).unwrap().section().map(str::to_owned);
    assert_eq!(section("state.pth"), None);
    assert_eq!(section("nested.pth").as_deref(), Some("model"));
    assert_eq!(section("only_dict.bin").as_deref(), Some("state"));
}

fn reason(bytes: &[u8]) -> Fault {
    parse(bytes).map(|contents| format!("{contents:?}")).unwrap_err()
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let fault = reason(bytes);
    assert!(fault.refused && fault.reason.contains(expected), "{expected:?} in {fault:?}");
}

#[track_caller]
fn malformed(bytes: &[u8], expected: &str) {
    let fault = reason(bytes);
    assert!(!fault.refused && fault.reason.contains(expected), "{expected:?} in {fault:?}");
}

#[test]
fn what_python_would_execute_is_refused_by_name() {
    for (name, expected) in [
        ("refused_module.pth", "torch.nn.modules.linear.Linear"),
        ("refused_namespace.pth", "argparse.Namespace"),
        ("refused_expanded.pth", "repeats the elements of a storage"),
    ] {
        let error = TorchFile::open(fixture(name)).unwrap_err().to_string();
        assert!(error.contains("is refused: ") && error.contains(expected), "{error}");
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn one_tensor_as_the_forge_makes_it() {
    let bytes = archive(&dict(&[(text("a"), tensor("FloatStorage", 4, 1, &[3], &[1]))]));
    let contents = parse(&bytes).unwrap();
    let [entry] = contents.entries.as_slice() else { panic!("{contents:?}") };
    assert_eq!((entry.name.as_str(), entry.shape.as_slice()), ("a", [3].as_slice()));
    let values: &[f32] = &[2.0, 3.0, 4.0];
    assert_eq!(&bytes[entry.range.clone()], bytemuck::cast_slice::<f32, u8>(values));
}

#[test]
fn windows_stay_on_their_storage() {
    let file = |numel, offset, shape: &[i32], strides: &[i32]| {
        archive(&dict(&[(text("a"), tensor("FloatStorage", numel, offset, shape, strides))]))
    };
    malformed(&file(4, 0, &[5], &[1]), "does not fit its storage of 4 elements");
    malformed(&file(4, 2, &[2], &[2]), "does not fit");
    malformed(&file(4, 5, &[0], &[1]), "does not fit");
    malformed(&file(4, i32::MAX, &[i32::MAX, i32::MAX], &[i32::MAX, i32::MAX]), "does not fit");
    malformed(&file(4, 0, &[i32::MAX; 9], &[i32::MAX; 9]), "does not fit");
    malformed(&file(4, -1, &[2], &[1]), "a size or offset of -1");
    malformed(&file(4, 0, &[2], &[-1]), "a size or offset of -1");
    malformed(&file(4, 0, &[2, 2], &[1]), "with strides");
    malformed(&file(4, 0, &[1; 65], &[1; 65]), "at most 64 dimensions");
    malformed(&file(5, 0, &[4], &[1]), "expected 5 elements, found 16 bytes");
    malformed(&file(i32::MAX, 0, &[4], &[1]), "expected 2147483647 elements");
    refused(&file(4, 0, &[1 << 30], &[0]), "repeats the elements");
    refused(&file(4, 0, &[i32::MAX; 9], &[0; 9]), "repeats the elements");
    let doubles = archive(&dict(&[(text("a"), tensor("DoubleStorage", 4, 0, &[4], &[1]))]));
    malformed(&doubles, "expected 4 elements, found 16 bytes");
    let many: Vec<_> = (0..400)
        .map(|i| (text(&i.to_string()), tensor("FloatStorage", 4, 0, &[4], &[1])))
        .collect();
    assert_eq!(parse(&archive(&dict(&many))).unwrap().entries.len(), 400);
}

#[test]
fn a_file_cannot_claim_many_times_its_size() {
    // One tensor of a large storage, under a thousand names.
    let mut body = b"}(".to_vec();
    let storage = vec![0u8; 1 << 20];
    body.extend(text("0"));
    body.extend(tensor("ByteStorage", 1 << 20, 0, &[1 << 20], &[1]));
    body.extend(b"q\0");
    for name in 1..1000 {
        body.extend([text(&name.to_string()), b"h\0".to_vec()].concat());
    }
    body.extend(b"u");
    let mut zip = Zip::default();
    zip.add("a/data.pkl", &pickle(&body)).add("a/data/0", &storage);
    refused(&zip.finish(), "over 8 times as large as the file");
}

#[test]
fn the_state_dict_is_chosen_as_described() {
    let weights = |value: i32| dict(&[(text("w"), tensor("FloatStorage", 4, value, &[1], &[1]))]);
    let chosen = |items: &[(&str, Vec<u8>)]| {
        let items: Vec<_> = items.iter().map(|(key, value)| (text(key), value.clone())).collect();
        parse(&archive(&dict(&items))).map(|contents| contents.section)
    };
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(chosen(&[("teacher", weights(0)), ("model", weights(1))]), Ok(named("model")));
    assert_eq!(chosen(&[("student", weights(0)), ("epoch", int(3))]), Ok(named("student")));
    let inner = dict(&[(text("module"), weights(0)), (text("other"), weights(0))]);
    assert_eq!(chosen(&[("state_dict", inner)]), Ok(named("state_dict.module")));
    assert_eq!(
        chosen(&[("w", tensor("FloatStorage", 4, 0, &[1], &[1])), ("x", weights(0))]),
        Ok(None)
    );
    // A `model` without tensors is not it.
    assert_eq!(chosen(&[("model", dict(&[])), ("ema", weights(0))]), Ok(named("ema")));
    let error = chosen(&[("ema", weights(0)), ("teacher", weights(1))]).unwrap_err();
    assert!(error.reason.contains("`ema`, `teacher`"), "{error:?}");
    for nothing in [dict(&[]), dict(&[(text("a"), dict(&[(text("b"), int(1))]))])] {
        malformed(&archive(&nothing), "no dict of tensors");
    }
    malformed(&archive(&int(7)), "expected a dict of tensors, found an integer");
}

#[test]
fn archives_that_are_not_what_they_say_are_refused() {
    let state = dict(&[(text("a"), tensor("FloatStorage", 4, 0, &[4], &[1]))]);
    let zip = || {
        let mut zip = Zip::default();
        zip.add("a/data.pkl", &pickle(&state)).add("a/data/0", &[0; 16]);
        zip
    };
    let changed = |change: &dyn Fn(&mut Zip)| {
        let mut zip = zip();
        change(&mut zip);
        zip.finish()
    };
    assert!(parse(&zip().finish()).is_ok() && parse(&zip().finish_as(true)).is_ok());
    // A zip bomb: deflated, small here and large there.
    let bomb = changed(&|zip| {
        zip.central[1][10] = 8;
        zip.central[1][24..28].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    });
    refused(
        &bomb,
        "entry `a/data/0` is compressed (method 8, 16 bytes that would become 2147483647)",
    );
    refused(&changed(&|zip| zip.central[0][8] |= 1), "entry `a/data.pkl` is encrypted");
    let again = zip().central[1].clone();
    refused(&changed(&|zip| zip.central.push(again.clone())), "entry `a/data/0` comes twice");
    // Another entry inside the bytes of the storage.
    let mut inner = Zip::default();
    inner.add("a/x", &[0; 8]);
    let mut outer = Zip::default();
    outer.add("a/data.pkl", &pickle(&state)).add("a/data/0", &inner.bytes);
    let mut hidden = inner.central[0].clone();
    let start = outer.bytes.len() - inner.bytes.len();
    hidden[42..46].copy_from_slice(&(start as u32).to_le_bytes());
    outer.central.push(hidden);
    refused(&outer.finish(), "entries `a/data/0` and `a/x` overlap");
    let mut escape = zip();
    escape.add("a/../../etc/passwd", b"");
    refused(&escape.finish(), "entry \"a/../../etc/passwd\" points outside the archive");
    let mut absolute = zip();
    absolute.add("/a", b"");
    refused(&absolute.finish(), "points outside");
    for (at, value) in [(42, 0xffff_fff0u32), (20, 0x7fff_ffff)] {
        let outside = changed(&|zip| {
            zip.central[1][at..at + 4].copy_from_slice(&value.to_le_bytes());
            let packed = zip.central[1][20..24].to_vec();
            zip.central[1][24..28].copy_from_slice(&packed);
        });
        refused(&outside, "entry `a/data/0` lies outside the file");
    }
    refused(&changed(&|zip| zip.central[1][46] = b'b'), "another name than in the directory");
    let mut wide = changed(&|zip| zip.central[1][20..28].fill(0xff));
    malformed(&wide, "entry `a/data/0` lacks its 64-bit size");
    let end = wide.len() - 22;
    wide[end + 10] = 200;
    wide[end + 8] = 200;
    malformed(&wide, "cannot list 200 entries");
    wide[end + 4] = 1;
    malformed(&wide, "in several parts");
    let mut script = zip();
    script.add("a/constants.pkl", b"");
    refused(&script.finish(), "TorchScript");
    let mut big = zip();
    big.add("a/byteorder", b"big");
    malformed(&big.finish(), "big-endian");
    let mut without = Zip::default();
    without.add("a/data/0", &[0; 16]);
    malformed(&without.finish(), "without data.pkl");
    let mut no_storage = Zip::default();
    no_storage.add("a/data.pkl", &pickle(&state));
    malformed(&no_storage.finish(), "storage `0` is not in the archive");
}

#[test]
fn files_cut_anywhere_are_refused() {
    let state = dict(&[(text("a"), tensor("FloatStorage", 4, 0, &[4], &[1]))]);
    let legacy = std::fs::read(fixture("state_legacy.pth")).unwrap();
    for (bytes, step) in [(archive(&state), 1), (legacy, 1)] {
        assert!(parse(&bytes).is_ok());
        for end in (0..bytes.len()).step_by(step) {
            let fault = reason(&bytes[..end]);
            assert!(!fault.reason.is_empty(), "{end}");
        }
    }
    for (bytes, expected) in
        [(&b"PK\x03\x04"[..], "too short"), (b"", "neither"), (b"{}", "neither")]
    {
        malformed(bytes, expected);
    }
}

#[test]
fn legacy_storages_must_be_there_once_and_fit() {
    let start =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let file = |state: &[u8], keys: &[u8], storages: &[u8]| {
        [&start[..], &pickle(state), &pickle(keys), storages].concat()
    };
    let state = dict(&[(text("a"), tensor("FloatStorage", 2, 0, &[2], &[1]))]);
    let keys = |keys: &[&str]| {
        [b"](".to_vec(), keys.iter().flat_map(|key| text(key)).collect(), b"e".to_vec()].concat()
    };
    let storage = [&2u64.to_le_bytes()[..], &[0; 8]].concat();
    let contents = parse(&file(&state, &keys(&["0"]), &storage)).unwrap();
    assert_eq!(contents.entries[0].shape, [2]);
    malformed(&file(&state, &keys(&[]), &storage), "storage `0` is not in the file");
    malformed(&file(&state, &keys(&["1"]), &storage), "storage `1` belongs to no tensor");
    let twice = [storage.clone(), storage.clone()].concat();
    refused(&file(&state, &keys(&["0", "0"]), &twice), "storage `0` comes twice");
    let long = [&u64::MAX.to_le_bytes()[..], &[0; 8]].concat();
    malformed(
        &file(&state, &keys(&["0"]), &long),
        "expected 2 elements, found 18446744073709551615",
    );
    malformed(&file(&state, &keys(&["0"]), &storage[..15]), "reaches over the file's end");
    malformed(&file(&state, &int(3), &storage), "an integer where the keys of storages should be");
    let huge = dict(&[(text("a"), tensor("FloatStorage", i32::MAX, 0, &[2], &[1]))]);
    let claimed = [&(i32::MAX as u64).to_le_bytes()[..], &[0; 8]].concat();
    malformed(&file(&huge, &keys(&["0"]), &claimed), "reaches over the file's end");
    let mut other = file(&state, &keys(&["0"]), &storage);
    other[18] = 0xea;
    malformed(&other, "expected protocol version 1001");
    // A view on a storage, as versions before 0.4 wrote them.
    let view = |offset, length| {
        let view = tuple(&[text("v"), int(offset), int(length)]);
        let float = b"ctorch\nFloatStorage\n".to_vec();
        let parts = [text("storage"), float, text("0"), text("cpu"), int(2), view];
        let storage = [tuple(&parts), b"Q".to_vec()].concat();
        let one = tuple(&[int(1)]);
        let hooks = b"N".to_vec();
        let arguments = tuple(&[storage, int(0), one.clone(), one, b"\x89".to_vec(), hooks]);
        let call = [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()];
        file(&dict(&[(text("a"), call.concat())]), &keys(&["0"]), &storage_of())
    };
    fn storage_of() -> Vec<u8> {
        [&2u64.to_le_bytes()[..], &1.0f32.to_le_bytes(), &2.0f32.to_le_bytes()].concat()
    }
    let bytes = view(1, 1);
    let contents = parse(&bytes).unwrap();
    assert_eq!(&bytes[contents.entries[0].range.clone()], &2.0f32.to_le_bytes());
    malformed(&view(1, 2), "a view outside storage `0`");
}
