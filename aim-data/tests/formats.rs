//! Data sets as other tools write them: img2dataset's shards and MosaicML's MDS, and the choice of
//! files and fields. Files under `fixtures/formats` were written by those tools (see
//! `fixtures/make_formats.py`).

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use aim_data::source::{MdsSource, Source as _, WebDataset};
use aim_data::spec::open;
use aim_data::{DefectKind, Error};
use common::{LIMITS, first, fixture, img2dataset, keys, labels, png, tar_of, write};
use tempfile::tempdir;

// ---- img2dataset

#[test]
fn img2dataset_shards_give_text_and_metadata_and_count_failed_rows() {
    let dir = tempdir().unwrap();
    img2dataset(dir.path());
    let source = open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(keys(&*source), ["000000002", "000000000", "000010002", "000010000"]);
    assert_eq!(labels(&*source), [None; 4]);
    assert_eq!(source.text(2).unwrap().unwrap(), "caption 000010002 é");
    let json: serde_json::Value =
        serde_json::from_str(&source.metadata(1).unwrap().unwrap()).unwrap();
    assert_eq!(json["uid"], "000000000");
    assert_eq!((first(&*source, 0), first(&*source, 3)), (0, 11));
    let notes = source.notes().join("\n");
    assert!(notes.contains("2 of 6 rows have no image (2 failed to download"), "{notes}");
    assert!(notes.contains("2 x HTTP Error 404") && !notes.contains("another number"), "{notes}");
}

#[test]
fn shards_that_disagree_with_their_statistics_or_have_none_are_noted() {
    let dir = tempdir().unwrap();
    img2dataset(dir.path());
    let stats = "{\"count\": 3, \"successes\": 3}";
    write(dir.path().join("00000_stats.json"), stats.as_bytes());
    fs::remove_file(dir.path().join("00001_stats.json")).unwrap();
    fs::remove_file(dir.path().join("00001.parquet")).unwrap();
    let source = WebDataset::open(dir.path().to_str().unwrap(), LIMITS).unwrap();
    let notes = source.notes().join("\n");
    assert!(notes.contains("3 stated, 2 found") && notes.contains("1 shards have no"), "{notes}");
    write(dir.path().join("00000_stats.json"), b"{oops");
    let source = WebDataset::open(dir.path().to_str().unwrap(), LIMITS).unwrap();
    assert!(source.notes()[0].contains("00000_stats.json"), "{:?}", source.notes());
}

#[test]
fn packing_keeps_labels_text_and_metadata() {
    let dir = tempdir().unwrap();
    let source = open(&format!("mds:{}?metadata=extra", fixture("mds_zstd").display())).unwrap();
    let options = aim_data::pack::PackOptions::default();
    let go_on = &mut |_| std::ops::ControlFlow::Continue(());
    let report = aim_data::pack::pack(&*source, dir.path(), &options, go_on).unwrap();
    assert_eq!((report.samples, report.skipped.len()), (5, 0));
    let packed = open(dir.path().to_str().unwrap()).unwrap();
    for index in 0..5 {
        assert_eq!(packed.read(index, 0).unwrap(), source.read(index, 0).unwrap());
        assert_eq!(packed.text(index).unwrap(), source.text(index).unwrap());
        assert_eq!(packed.metadata(index).unwrap(), source.metadata(index).unwrap());
    }
}

#[test]
fn fields_choose_image_label_and_text() {
    let dir = tempdir().unwrap();
    let files = [
        ("a.jpg", png(1)),
        ("a.seg.png", png(2)),
        ("a.kind", b"5".to_vec()),
        ("a.cap", b"words".to_vec()),
        ("b.jpg", png(3)),
        ("b.kind", b"6".to_vec()),
        ("b.cls", b"no number".to_vec()),
    ];
    write(dir.path().join("x.tar"), &tar_of(&files));
    let path = dir.path().join("x.tar").display().to_string();
    assert!(open(&path).is_err(), "the .cls file is none");
    let source = open(&format!("{path}?image=seg.png,jpg&label=kind&text=cap")).unwrap();
    assert_eq!(labels(&*source), [Some(5), Some(6)]);
    assert_eq!((first(&*source, 0), first(&*source, 1)), (2, 3));
    assert_eq!(source.text(0).unwrap().as_deref(), Some("words"));
    assert_eq!((source.text(1).unwrap(), source.metadata(0).unwrap()), (None, None));
    let source = open(&format!("wds:{path}?image=seg.png&label=none")).unwrap();
    assert_eq!((keys(&*source), labels(&*source)), (vec!["a".into()], vec![None]));
    let error = open(&format!("wds:{path}?imag=x")).err().unwrap().to_string();
    assert!(error.contains("unknown field `imag`"), "{error}");
}

#[test]
fn text_and_metadata_that_are_none_are_defects_when_asked_for() {
    let dir = tempdir().unwrap();
    let files = [("a.png", png(1)), ("a.txt", vec![0xff, 0xfe]), ("a.json", b"{oops".to_vec())];
    write(dir.path().join("x.tar"), &tar_of(&files));
    let source = open(&dir.path().join("x.tar").display().to_string()).unwrap();
    assert_eq!(source.text(0).unwrap_err().kind, DefectKind::Corrupt);
    assert_eq!(source.metadata(0).unwrap_err().kind, DefectKind::Corrupt);
    assert_eq!(first(&*source, 0), 1);
}

#[test]
fn labels_are_taken_from_a_key_of_the_metadata() {
    let dir = tempdir().unwrap();
    let files = [
        ("a.json", br#"{"cls": 4, "meta": {"id": "11"}}"#.to_vec()),
        ("a.png", png(1)),
        ("a.cls", b"1".to_vec()),
        ("b.png", png(2)),
        ("b.json", br#"{"cls": null, "meta": {}}"#.to_vec()),
        ("c.png", png(3)),
    ];
    write(dir.path().join("x.tar"), &tar_of(&files));
    let path = format!("wds:{}", dir.path().join("x.tar").display());
    assert_eq!(labels(&*open(&path).unwrap()), [Some(1), None, None]);
    let source = open(&format!("{path}?label=json:cls")).unwrap();
    assert_eq!((labels(&*source), source.num_classes()), (vec![Some(4), None, None], Some(5)));
    assert!(source.metadata(0).unwrap().unwrap().contains("\"11\""));
    let source = open(&format!("{path}?label=json:meta.id&metadata=none")).unwrap();
    assert_eq!((source.label(0), source.metadata(0).unwrap()), (Some(11), None));
    let fail = |spec: String| open(&spec).err().unwrap().to_string();
    let missing = fail(format!("{path}?label=json:klass"));
    assert!(missing.contains("none of 3 samples has `klass`"), "{missing}");
    let object = fail(format!("{path}?label=json:meta"));
    assert!(object.contains("x.tar") && object.contains("`meta` of its metadata is"), "{object}");
    let columns = fail(format!("mds:{}?label=json:cls", fixture("mds_plain").display()));
    assert!(columns.contains("tar shards"), "{columns}");
}

// ---- lists, braces, wildcards

#[test]
fn every_form_takes_lists_braces_and_wildcards() {
    let dir = tempdir().unwrap();
    let root = dir.path().display();
    for name in ["a", "b", "c"] {
        write(dir.path().join(format!("{name}.tar")), &tar_of(&[(&format!("{name}.png"), png(1))]));
        for class in ["cat", "dog"] {
            write(dir.path().join(format!("folder-{name}/{class}/{name}.png")), &png(1));
        }
    }
    for (pattern, expected) in [
        (format!("wds:{root}/a.tar,{root}/{{c,b}}.tar"), vec!["a", "c", "b"]),
        (format!("wds:{root}/[ab].tar,{root}/c.tar"), vec!["a", "b", "c"]),
    ] {
        assert_eq!(keys(&*open(&pattern).unwrap()), expected);
    }
    let source = open(&format!("imagefolder:{root}/folder-{{a,b}},{root}/folder-?")).err().unwrap();
    assert!(source.to_string().contains("named twice"), "{source}");
    let source = open(&format!("imagefolder:{root}/folder-*")).unwrap();
    assert_eq!((source.len(), source.num_classes()), (6, Some(2)));
    assert_eq!(labels(&*source)[..3], [Some(0), Some(1), Some(0)]);
    assert!(source.key(5).ends_with("folder-c/dog/c"), "{}", source.key(5));
    assert_eq!((first(&*source, 5), source.read(6, 0).unwrap_err().index), (1, 6));
    fs::rename(dir.path().join("folder-b/dog"), dir.path().join("folder-b/emu")).unwrap();
    let error = open(&format!("imagefolder:{root}/folder-*")).err().unwrap();
    assert!(error.to_string().contains("other classes"), "{error}");
}

// ---- MDS

#[test]
fn mds_folders_are_read_as_mosaicml_wrote_them() {
    let mut fingerprints = Vec::new();
    for name in ["mds_plain", "mds_zstd", "mds_gz"] {
        let spec = format!("mds:{}?metadata=extra", fixture(name).display());
        let source = open(&spec).unwrap();
        assert_eq!(source.len(), 5, "{name}");
        assert_eq!(labels(&*source), [4, 3, 2, 1, 0].map(Some), "{name}");
        assert_eq!(source.num_classes(), Some(5));
        for index in 0..5u8 {
            let at = u64::from(index);
            assert!(first(&*source, at).abs_diff(index * 10) <= 3, "{name} {index}");
            assert_eq!(source.text(at).unwrap().unwrap(), format!("number {index} é"));
            assert_eq!(source.metadata(at).unwrap().unwrap(), format!("{{\"n\": {index}}}"));
        }
        assert!(source.read(5, 0).is_err());
        assert!(source.key(4).starts_with("shard.00001/"), "{}", source.key(4));
        fingerprints.push(source.fingerprint().to_owned());
    }
    assert!(fingerprints.iter().all(|print| *print == fingerprints[0]));
    let raw = format!("mds:{}?image=raw&label=none", fixture("mds_plain").display());
    let source = open(&raw).unwrap();
    assert_eq!((first(&*source, 3), source.label(3)), (3, None));
    let two = format!("mds:{}/mds_{{plain,gz}}", fixture("").display());
    assert_eq!(open(&two).unwrap().len(), 10);
    for bad in ["?image=nope", "?label=caption", "?label=nope"] {
        let spec = format!("mds:{}{bad}", fixture("mds_plain").display());
        let error = open(&spec).err().unwrap().to_string();
        assert!(error.contains("the columns are"), "{error}");
    }
}

/// A copy of the plain fixture with changed files.
fn damaged(change: impl FnOnce(&Path)) -> Result<MdsSource, Error> {
    let dir = tempdir().unwrap();
    for entry in fs::read_dir(fixture("mds_plain")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    change(dir.path());
    MdsSource::open(dir.path().to_str().unwrap(), LIMITS)
}

#[test]
fn damaged_mds_folders_are_refused_with_the_place() {
    let text = fs::read_to_string(fixture("mds_plain/index.json")).unwrap();
    for (from, to, what) in [
        ("\"version\": 2}", "\"version\": 9}", "version"),
        ("shard.00000.mds", "../shard.00000.mds", "below"),
        ("shard.00000.mds", "/etc/passwd", "below"),
        ("\"format\": \"mds\"", "\"format\": \"jsonl\"", "mds"),
        ("\"jpeg\"", "\"unknown\"", ""),
        ("[null, null, null, 8, null]", "[null]", "sizes"),
        ("\"bytes\": ", "\"bytes\": 1", "bytes"),
        ("\"samples\": ", "\"samples\": 4", "samples"),
        ("{\"shards\"", "{\"shard\"", "index"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        let result = damaged(|dir| fs::write(dir.join("index.json"), changed).unwrap());
        match result {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("index.json") || text.contains("shard.0000"), "{text}");
                assert!(text.contains(what), "{text} {what}");
            }
            // A column that holds no image leaves the other one.
            Ok(_) => assert_eq!(from, "\"jpeg\""),
        }
    }
    let shard = fs::read(fixture("mds_plain/shard.00000.mds")).unwrap();
    for (at, value) in [(0, 200u32), (4, 0), (4, u32::MAX), (8, 1), (8, u32::MAX)] {
        let mut bytes = shard.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let error = damaged(|dir| fs::write(dir.join("shard.00000.mds"), bytes).unwrap());
        assert!(matches!(error, Err(Error::Format { .. })), "{at} {value}");
    }
    let error = damaged(|dir| fs::write(dir.join("shard.00000.mds"), &shard[..99]).unwrap());
    assert!(error.unwrap_err().to_string().contains("99"));
    let error = damaged(|dir| fs::remove_file(dir.join("shard.00000.mds")).unwrap());
    assert!(error.unwrap_err().to_string().contains("shard.00000.mds"));
    // A sample whose lengths do not add up is a defect of that sample only.
    let start = u32::from_le_bytes(shard[4..8].try_into().unwrap()) as usize;
    let source = damaged(|dir| {
        let mut bytes = shard.clone();
        bytes[start..start + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        fs::write(dir.join("shard.00000.mds"), bytes).unwrap();
    });
    let source = source.unwrap();
    assert_eq!((source.label(0), source.label(1)), (None, Some(3)));
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_without_the_feature_says_how_to_get_it() {
    let error = open(fixture("hf_zstd.parquet").to_str().unwrap()).err().unwrap().to_string();
    assert!(error.contains("--features parquet"), "{error}");
}
