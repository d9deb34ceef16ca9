//! Sources: what they accept, and what hostile or damaged data say.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use aim_data::decode::DecodeLimits;
use aim_data::error::ShardProblem;
use aim_data::source::{IdxSource, ImageFolder, Payload, Source, TensorSource, WebDataset};
use aim_data::spec::{DataSpec, OpenOptions, SpecKind, open, open_mixture};
use aim_data::{DefectKind, Error};
use tempfile::{TempDir, tempdir};

const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 20, max_pixels: 1 << 20 };

fn write(path: PathBuf, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn keys(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|index| source.key(index)).collect()
}

fn bytes(source: &dyn Source, index: u64) -> Vec<u8> {
    match source.read(index, 0).unwrap().payload {
        Payload::Encoded(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

// ---- image folders

#[test]
fn class_folders_are_labelled_in_the_order_of_their_names() {
    let dir = tempdir().unwrap();
    for name in ["dog/b.jpg", "cat/z.PNG", "cat/deep/a.webp", "dog/a.jpeg", "dog/notes.txt"] {
        write(dir.path().join(name), b"x");
    }
    fs::create_dir(dir.path().join("emu")).unwrap();
    let source = ImageFolder::open(dir.path(), LIMITS).unwrap();
    assert_eq!(keys(&source), ["cat/deep/a", "cat/z", "dog/a", "dog/b"]);
    let labels: Vec<_> = (0..4).map(|index| source.label(index)).collect();
    assert_eq!(labels, [Some(0), Some(0), Some(1), Some(1)]);
    assert_eq!(source.class_names().unwrap(), ["cat", "dog", "emu"]);
    assert_eq!(source.num_classes(), Some(3));
    let notes = source.notes().join("\n");
    assert!(notes.contains("1 files") && notes.contains("emu"), "{notes}");
}

#[test]
fn a_flat_folder_has_no_labels() {
    let dir = tempdir().unwrap();
    for name in ["b.jpg", "a.jpg", ".hidden.jpg"] {
        write(dir.path().join(name), b"x");
    }
    let source = ImageFolder::open(dir.path(), LIMITS).unwrap();
    assert_eq!(keys(&source), ["a", "b"]);
    assert_eq!((source.label(0), source.num_classes()), (None, None));
    assert_eq!(source.read(2, 0).unwrap_err().kind, DefectKind::Unreadable);
    write(dir.path().join("class/c.jpg"), b"x");
    assert!(matches!(ImageFolder::open(dir.path(), LIMITS), Err(Error::Config(_))));
}

#[test]
fn empty_and_missing_folders_are_clear_errors() {
    let dir = tempdir().unwrap();
    let error = ImageFolder::open(dir.path(), LIMITS).unwrap_err();
    assert!(matches!(error, Error::Empty { .. }), "{error}");
    let missing = dir.path().join("no such folder");
    let text = ImageFolder::open(&missing, LIMITS).unwrap_err().to_string();
    assert!(text.contains("no such folder"), "{text}");
}

#[cfg(unix)]
#[test]
fn links_are_not_followed_and_odd_names_are_fine() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempdir().unwrap();
    let outside = tempdir().unwrap();
    let secret = write(outside.path().join("secret.jpg"), b"secret");
    let odd = std::ffi::OsStr::from_bytes(b"caf\xe9 \xff.jpg");
    write(dir.path().join(odd), b"odd");
    std::os::unix::fs::symlink(&secret, dir.path().join("link.jpg")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("linked")).unwrap();
    let source = ImageFolder::open(dir.path(), LIMITS).unwrap();
    assert_eq!(source.len(), 1);
    assert_eq!(bytes(&source, 0), b"odd");
    assert!(source.notes().iter().any(|note| note.contains("2 symbolic links")));
}

#[test]
fn files_of_no_or_too_many_bytes_are_refused_unread() {
    let dir = tempdir().unwrap();
    write(dir.path().join("a.jpg"), b"");
    let large = fs::File::create(dir.path().join("b.jpg")).unwrap();
    large.set_len(1 << 40).unwrap();
    let source = ImageFolder::open(dir.path(), LIMITS).unwrap();
    let defects: Vec<_> = (0..2).map(|index| source.read(index, 0).unwrap_err()).collect();
    assert_eq!((defects[0].kind, defects[1].kind), (DefectKind::Empty, DefectKind::TooLarge));
    fs::remove_file(dir.path().join("a.jpg")).unwrap();
    assert_eq!(source.read(0, 0).unwrap_err().kind, DefectKind::Unreadable);
}

// ---- tar shards

/// Writes members as they are given, names unchecked.
struct Tar(Vec<u8>);

impl Tar {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn member(mut self, kind: u8, name: &str, size: u64, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().div_ceil(512) * 512, 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.member(b'0', name, data.len() as u64, data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn shard(bytes: &[u8]) -> (TempDir, Result<WebDataset, Error>) {
    let dir = tempdir().unwrap();
    let path = write(dir.path().join("s.tar"), bytes);
    let opened = WebDataset::open(path.to_str().unwrap(), LIMITS);
    (dir, opened)
}

#[test]
fn a_shard_is_read_by_key() {
    let long = format!("{}/x.jpg", "d".repeat(150));
    let pax = format!("{} path=p/6.jpg\n", 16);
    let bytes = Tar::new()
        .member(b'5', "./", 0, b"")
        .file("./a/1.jpg", b"one")
        .file("a/1.cls", b"7\n")
        .file("a/1.json", b"{}")
        .file("a/2.seg.png", b"mask")
        .file("a/2.CLS", b"3")
        .file("a/2.PNG", b"two")
        .file("README", b"no key")
        .file("3.txt", b"no image")
        .member(b'L', "././@LongLink", 151 + 6, format!("{long}\0").as_bytes())
        .file("cut short", b"long")
        .member(b'x', "PaxHeaders", pax.len() as u64, pax.as_bytes())
        .file("ignored.jpg", b"six")
        .member(b'7', "5.webp", 4, b"five")
        .end();
    let (_dir, source) = shard(&bytes);
    let source = source.unwrap();
    let long_key = format!("{}/x", "d".repeat(150));
    assert_eq!(keys(&source), ["a/1", "a/2", &long_key, "p/6", "5"]);
    let contents: Vec<_> = (0..5).map(|index| bytes_of(&source, index)).collect();
    assert_eq!(contents, ["one", "two", "long", "six", "five"]);
    assert_eq!((source.label(0), source.label(1), source.label(2)), (Some(7), Some(3), None));
    assert_eq!(source.num_classes(), Some(8));
    assert!(source.notes()[0].contains("1 keys without an image"));
    assert!(source.location(1).contains("a/2.png"), "{}", source.location(1));
}

fn bytes_of(source: &WebDataset, index: u64) -> String {
    String::from_utf8(bytes(source, index)).unwrap()
}

/// Opens a shard that must be refused; checks that the message names shard, key and offset.
fn problem(tar: &[u8], expected_key: &str, expected_offset: u64) -> ShardProblem {
    let (_dir, opened) = shard(tar);
    let error = opened.unwrap_err();
    let text = error.to_string();
    match error {
        Error::Shard { shard, offset, key, problem } => {
            assert!(shard.ends_with("s.tar") && text.contains("s.tar"));
            assert_eq!((key.as_str(), offset), (expected_key, expected_offset), "{text}");
            problem
        }
        other => panic!("{other}"),
    }
}

#[test]
fn names_that_leave_the_archive_are_refused() {
    for name in ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg"] {
        let tar = Tar::new().file("0.jpg", b"x").file(name, b"x").end();
        assert!(matches!(problem(&tar, name, 1024), ShardProblem::UnsafePath(_)), "{name}");
    }
}

#[test]
fn members_that_are_no_files_are_refused() {
    for (kind, what) in [
        (b'1', "hard link"),
        (b'2', "symbolic link"),
        (b'3', "character device"),
        (b'4', "block device"),
        (b'6', "FIFO"),
        (b'S', "sparse file"),
        (b'M', "special entry"),
    ] {
        let tar = Tar::new().file("0.jpg", b"x").member(kind, "1.jpg", 0, b"").end();
        assert_eq!(problem(&tar, "1.jpg", 1024), ShardProblem::NotAFile(what));
    }
}

#[test]
fn interleaved_and_duplicate_keys_are_refused() {
    let interleaved = Tar::new().file("1.jpg", b"x").file("2.jpg", b"x").file("1.cls", b"3").end();
    assert_eq!(problem(&interleaved, "1", 2048), ShardProblem::Interleaved { first: 0 });
    let twice = Tar::new().file("1.jpg", b"x").file("1.jpg", b"y").end();
    assert!(matches!(problem(&twice, "1", 1024), ShardProblem::Duplicate(_)));
    let two_images = Tar::new().file("1.jpg", b"x").file("1.png", b"y").end();
    assert!(matches!(problem(&two_images, "1", 1024), ShardProblem::Duplicate(_)));
}

#[test]
fn labels_that_are_no_numbers_are_refused() {
    for label in ["cat", "-1", "4294967295", "", "1.5"] {
        let tar = Tar::new().file("1.jpg", b"x").file("1.cls", label.as_bytes()).end();
        assert!(matches!(problem(&tar, "1", 1024), ShardProblem::BadLabel(_)), "{label}");
    }
    let tar = Tar::new().file("1.cls", &[b'1'; 4000]).end();
    assert!(matches!(problem(&tar, "1", 0), ShardProblem::BadLabel(_)));
}

#[test]
fn a_shard_cut_anywhere_is_an_error() {
    let whole = Tar::new().file("1.jpg", &[7; 700]).file("2.jpg", &[8; 700]).end();
    for len in 0..whole.len() - 1024 {
        let (_dir, opened) = shard(&whole[..len]);
        let error = opened.unwrap_err();
        let truncated = matches!(&error, Error::Shard { problem: ShardProblem::Truncated(_), .. });
        assert!(truncated, "{len}: {error}");
    }
}

#[test]
fn absurd_sizes_and_noise_are_refused() {
    let absurd = Tar::new().member(b'0', "1.jpg", u64::MAX / 2, b"x").end();
    assert!(matches!(problem(&absurd, "1.jpg", 0), ShardProblem::Truncated(_)));
    let absurd = Tar::new().member(b'L', "l", 1 << 30, b"x").end();
    assert!(matches!(problem(&absurd, "l", 0), ShardProblem::Truncated(_)));
    let long_name = Tar::new().member(b'L', "l", 1 << 17, &vec![b'a'; 1 << 17]).end();
    assert!(matches!(problem(&long_name, "l", 0), ShardProblem::BadHeader(_)));
    for record in ["99999999999 path=a\n", "x path=a\n", "19 size=1000000000x\n"] {
        let tar = Tar::new().member(b'x', "p", record.len() as u64, record.as_bytes()).end();
        assert!(matches!(problem(&tar, "p", 0), ShardProblem::BadHeader(_)), "{record}");
    }
    let pax = "13 size=9999\n";
    let tar =
        Tar::new().member(b'x', "p", pax.len() as u64, pax.as_bytes()).file("1.jpg", b"x").end();
    assert!(matches!(problem(&tar, "1.jpg", 1024), ShardProblem::Truncated(_)));
    let noise: Vec<u8> =
        (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(matches!(problem(&noise, "", 0), ShardProblem::BadHeader(_)));
}

#[test]
fn an_archive_without_images_says_so() {
    let (_dir, opened) = shard(&Tar::new().file("1.txt", b"x").end());
    let error = opened.unwrap_err();
    assert!(
        matches!(&error, Error::Empty { .. }) && error.to_string().contains("s.tar"),
        "{error}"
    );
}

#[test]
fn shard_patterns_name_what_is_missing() {
    let dir = tempdir().unwrap();
    for (number, name) in ["s-00.tar", "s-01.tar", "s-03.tar"].iter().enumerate() {
        let tar = Tar::new().file(&format!("{number}.jpg"), b"x").end();
        write(dir.path().join(name), &tar);
    }
    let pattern = |text: &str| format!("wds:{}/{text}", dir.path().display());
    let all = open(&pattern("s-*.tar")).unwrap();
    assert_eq!(keys(all.as_ref()), ["0", "1", "2"]);
    assert_eq!(open(&pattern("s-{00..01}.tar")).unwrap().len(), 2);
    assert_eq!(open(&pattern("")).unwrap().fingerprint(), all.fingerprint());
    let text = open(&pattern("s-{00..03}.tar")).err().unwrap().to_string();
    assert!(text.contains("1 of 4 shards not found") && text.contains("s-02.tar"), "{text}");
    assert!(open(&pattern("t-*.tar")).is_err());
    assert!(open(&pattern("{1..")).is_err());
}

#[test]
fn a_shard_that_shrinks_after_indexing_is_a_defect() {
    let dir = tempdir().unwrap();
    let path = write(dir.path().join("s.tar"), &Tar::new().file("1.jpg", &[1; 2000]).end());
    let source = WebDataset::open(path.to_str().unwrap(), LIMITS).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    assert_eq!(source.read(0, 0).unwrap_err().kind, DefectKind::Truncated);
}

// ---- IDX

fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|dim| bytes.extend_from_slice(&dim.to_be_bytes()));
    bytes.extend_from_slice(values);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_files_are_read_plain_and_gzipped() {
    let dir = tempdir().unwrap();
    let values: Vec<u8> = (0..2 * 3 * 2).collect();
    write(dir.path().join("train-images-idx3-ubyte.gz"), &gzip(&idx(&[2, 3, 2], &values)));
    write(dir.path().join("train-labels-idx1-ubyte"), &idx(&[2], &[4, 1]));
    let spec = format!("idx:{}", dir.path().display());
    let source = open(&spec).unwrap();
    assert_eq!((source.len(), source.num_classes()), (2, Some(5)));
    assert_eq!((source.key(1).as_str(), source.label(1)), ("train-000001", Some(1)));
    let Payload::Pixels(image) = source.read(1, 0).unwrap().payload else { panic!() };
    assert_eq!((image.height(), image.width(), image.channels()), (3, 2, 1));
    assert_eq!(image.pixels(), &values[6..]);
    assert!(open(&format!("{spec}#t10k")).is_err());
    // The bare folder is recognised.
    let bare: DataSpec = dir.path().to_str().unwrap().parse().unwrap();
    assert!(matches!(bare.kind, SpecKind::IdxFolder { .. }));
}

#[test]
fn damaged_idx_files_are_refused() {
    let dir = tempdir().unwrap();
    let good = idx(&[2, 2, 2], &[0; 8]);
    let zipped = gzip(&good);
    let mut bad_checksum = zipped.clone();
    *bad_checksum.iter_mut().nth_back(5).unwrap() ^= 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("wrong magic", idx(&[8], &[0; 8])),
        ("short", good[..good.len() - 1].to_vec()),
        ("long", [&good[..], &[0]].concat()),
        ("no images", idx(&[0, 2, 2], &[])),
        ("no width", idx(&[2, 2, 0], &[])),
        ("absurd", idx(&[u32::MAX, 1 << 14, 1 << 14], &[0; 8])),
        ("a lie of 16 GiB", idx(&[1 << 24, 1 << 5, 1 << 5], &[0; 8])),
        ("cut gzip", zipped[..zipped.len() - 9].to_vec()),
        ("bad checksum", bad_checksum),
    ];
    for (name, bytes) in cases {
        let path = write(dir.path().join("images"), &bytes);
        let error = IdxSource::open(path, None).unwrap_err();
        assert!(error.to_string().contains("images"), "{name}: {error}");
    }
    let images = write(dir.path().join("images"), &good);
    let labels = write(dir.path().join("labels"), &idx(&[3], &[0; 3]));
    let text = IdxSource::open(images, Some(&labels)).unwrap_err().to_string();
    assert!(text.contains("3 labels for 2 images"), "{text}");
}

#[test]
fn the_fashion_mnist_subset_is_what_its_readme_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/fashion-mnist");
    for (split, per_class) in [("train", 1200), ("t10k", 200)] {
        let source = IdxSource::open_split(&dir, split).unwrap();
        assert_eq!((source.len(), source.image_size()), (per_class * 10, (28, 28)));
        for class in 0..10 {
            let count = (0..source.len()).filter(|&index| source.label(index) == Some(class));
            assert_eq!(count.count() as u64, per_class);
        }
    }
}

// ---- tensors

#[test]
fn damaged_tensor_files_are_refused() {
    let dir = tempdir().unwrap();
    let header = r#"{"a":{"dtype":"F32","shape":[1,3,2,2],"data_offsets":[0,48]}}"#;
    let build = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let good = write(dir.path().join("x.safetensors"), &build(header, 48));
    assert_eq!(TensorSource::open(&good, None).unwrap().len(), 1);
    let text = TensorSource::open(&good, Some("b")).unwrap_err().to_string();
    assert!(text.contains("no tensor `b`") && text.contains("a F32 [1, 3, 2, 2]"), "{text}");
    let nan = header.replace("\"a\"", "\"images\"");
    let mut nan = build(&nan, 48);
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = write(dir.path().join("nan.safetensors"), &nan);
    let source = TensorSource::open(path, None).unwrap();
    assert_eq!(source.read(0, 0).unwrap_err().kind, DefectKind::Corrupt);
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("short", build(header, 47)),
        ("long", build(header, 49)),
        ("huge header", u64::MAX.to_le_bytes().to_vec()),
        ("not json", build("hello", 0)),
        ("offsets", build(&header.replace("[0,48]", "[0,44]"), 48)),
        ("dtype", build(&header.replace("F32", "I32"), 48)),
        ("shape", build(&header.replace("[1,3,2,2]", "[3,1,2,2]"), 48)),
        ("no images", build(&header.replace("[1,3,2,2]", "[0,3,2,2]").replace("48", "0"), 0)),
    ] {
        let path = write(dir.path().join("bad.safetensors"), &bytes);
        let error = TensorSource::open(path, None).unwrap_err();
        assert!(error.to_string().contains("bad.safetensors"), "{name}: {error}");
    }
}

// ---- specifications

#[test]
fn bare_paths_are_recognised_by_what_is_there() {
    let dir = tempdir().unwrap();
    let tar = Tar::new().file("1.jpg", b"x").end();
    write(dir.path().join("shards/a.tar"), &tar);
    write(dir.path().join("images/a.jpg"), b"x");
    write(dir.path().join("odd.bin"), b"x");
    let parse = |name: &str| dir.path().join(name).to_str().unwrap().parse::<DataSpec>();
    assert!(matches!(parse("shards").unwrap().kind, SpecKind::WebDataset(_)));
    assert!(matches!(parse("shards/a.tar").unwrap().kind, SpecKind::WebDataset(_)));
    assert!(matches!(parse("images").unwrap().kind, SpecKind::ImageFolder(_)));
    assert!(matches!(parse("images@0.5").unwrap(), DataSpec { weight: 0.5, .. }));
    assert!(parse("odd.bin").unwrap_err().to_string().contains("accepted forms"));
    assert!(parse("missing").unwrap_err().to_string().contains("no such file"));
    let specs = [format!("{}/images@3", dir.path().display()), "synthetic:stripes,n=4@1".into()];
    let mixture = open_mixture(&specs, &OpenOptions::default()).unwrap();
    assert_eq!((mixture.len(), mixture.proportions()), (5, &[3, 1][..]));
    assert!(open_mixture::<&str>(&[], &OpenOptions::default()).is_err());
}

#[cfg(unix)]
#[test]
fn a_fifo_in_place_of_a_file_does_not_hang() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.tar");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mkfifo");
        return;
    }
    assert!(WebDataset::open(path.to_str().unwrap(), LIMITS).is_err());
}
