//! Every parser under damaged input, with the standard library alone: what `fuzz/` does with
//! libFuzzer, at a fixed seed.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use aim_data::{FUZZ_TARGETS, FuzzTarget};

/// A small generator: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn fixtures(folder: &str, keep: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let kept = paths.iter().filter(|path| keep(path.file_name().unwrap().to_str().unwrap()));
    kept.map(|path| std::fs::read(path).unwrap()).collect()
}

fn tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/b.jpg", "d".repeat(120));
    for (name, data) in
        [("a.jpg", "x"), ("a.cls", "7"), ("a.json", "{}"), (&long, "y"), ("c.seg.png", "z")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Four kinds of columns and a shard of two samples of them.
fn mds_shards() -> Vec<Vec<u8>> {
    // Two samples of (bytes, int), then (pil, uint8).
    let sample = |head: &[u8], body: &[u8], tail: &[u8]| [head, body, tail].concat();
    let shard = |kinds: [u8; 4], samples: [Vec<u8>; 2]| {
        let start = 4 + 12u32;
        let ends = [start, start + samples[0].len() as u32];
        let end = ends[1] + samples[1].len() as u32;
        let mut bytes = kinds.to_vec();
        for word in [2, ends[0], ends[1], end] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&samples.concat());
        bytes
    };
    let zeros = [0u8; 8];
    let lengths = [&[3, 0, 0, 0][..], &zeros].concat();
    let first = sample(&lengths, b"abc", &[7, 0, 0, 0, 0, 0, 0, 0]);
    let pil = [&2u32.to_le_bytes()[..], &1u32.to_le_bytes(), &1u32.to_le_bytes(), b"Lxy"].concat();
    let second = [&(pil.len() as u32).to_le_bytes()[..], &zeros, &pil, &[5]].concat();
    vec![shard([0, 1, 2, 7], [first.clone(), first]), shard([3, 5, 2, 6], [second.clone(), second])]
}

/// Inputs that a target accepts, to be damaged.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let idx = |dims: &[u32], values: &[u8]| {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|dim| bytes.extend_from_slice(&dim.to_be_bytes()));
        bytes.extend_from_slice(values);
        bytes
    };
    let decode = |extension: &str| {
        fixtures("decode", |name| {
            let named = name.ends_with(&format!(".{extension}"));
            named && !name.contains("expected") && name != "rgb16.png"
        })
    };
    match target {
        "tar_index" => vec![tar()],
        "idx" => vec![idx(&[2, 3, 2], &[9; 12]), idx(&[4], &[1; 4])],
        "mds_index" => fixtures("formats/mds_zstd", |name| name == "index.json"),
        "mds_shard" => mds_shards(),
        "mat" => {
            let mut all = fixtures("formats", |name| name.ends_with(".mat"));
            all.extend(fixtures("benchmarks", |name| name.ends_with(".mat")));
            all
        }
        // The smaller ones: what is mutated should be structure, not pixels.
        "hdf5" => fixtures("benchmarks", |name| name.ends_with(".h5") && !name.starts_with("lzf")),
        "cifar" => fixtures("benchmarks", |name| name.starts_with("cifar")),
        "benchmark_lists" => vec![
            b"#Image ID\nAbyssinian_100 1 1 1\nSphynx_3 37 1 3\n".to_vec(),
            b"banded/banded_0002.jpg\nbanded/b.jpg 3\ninfograph/axe/i_1.jpg 12\n".to_vec(),
            b"apple_pie/1005649\nbanded/12\n".to_vec(),
        ],
        "benchmark_tables" => vec![
            b",split,location_remapped,y,filename\n0,train,3,2,\"a, b.jpg\"\n1,id_val,4,0,b.jpg\n"
                .to_vec(),
            b",patient,node,x_coord,y_coord,tumor,slide,center,split\n0,004,4,3328,2,1,0,0,0\n"
                .to_vec(),
            b"dataset,experiment,plate,well,site,sirna,sirna_id\ntrain,HEPG2-01,1,B02,1,s20,1\n"
                .to_vec(),
            b"split,category,timestamp\ntrain,zoo,2012-12-31T23:59:59Z\nseq,dam,2016-01-01\n"
                .to_vec(),
        ],
        "inat_json" => vec![
            br#"{"images": [{"id": 1, "file_name": "a/b.jpg"}, {"id": 2, "file_name": "c.jpg"}],
                "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 2, "category_id": 2}],
                "categories": [{"id": 7, "name": "x"}, {"id": 2, "name": 3}]}"#
                .to_vec(),
        ],
        "class_lists" => vec![
            b"n02000001 ant\nn02000003 zebra, horse\n".to_vec(),
            b"ImageId,P\nx,n02000001 1 2\n".to_vec(),
        ],
        "img2dataset_stats" => vec![
            br#"{"count": 10, "successes": 7, "failed_to_download": 2, "failed_to_resize": 1,
                "duration": 1.5, "status_dict": {"success": 7, "timed out": 2}}"#
                .to_vec(),
        ],
        "safetensors_header" => vec![
            br#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#
                .to_vec(),
        ],
        "spec" => vec![b"s-{000..003}.tar,{a,b}/*.tar?image=seg.png,jpg&label=cls".to_vec()],
        "decode_jpeg" => decode("jpg"),
        "decode_png" => decode("png"),
        "decode_webp" => decode("webp"),
        "decode_gif" => decode("gif"),
        "decode_bmp" => decode("bmp"),
        "decode_tiff" => decode("tif"),
        other => panic!("no inputs for {other}"),
    }
}

/// Values that lengths and counts go wrong at.
const ODD: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

fn mutate(seeds: &[Vec<u8>], random: &mut Random, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend_from_slice(&seeds[random.below(seeds.len())]);
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 | 2 => bytes[at] = random.next() as u8,
            3 => bytes.truncate(at),
            4 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => bytes.insert(at, random.next() as u8),
            6 => {
                let value = ODD[random.below(ODD.len())].to_le_bytes();
                let width = 1 << random.below(4);
                let big = random.below(2) == 0;
                for (offset, byte) in bytes[at..].iter_mut().take(width).enumerate() {
                    *byte = value[if big { width - 1 - offset } else { offset }];
                }
            }
            7 => {
                // A piece of another input, or of this one.
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
                for (byte, new) in bytes[at..].iter_mut().zip(piece) {
                    *byte = *new;
                }
            }
            _ => {
                let digits = bytes[at..].iter_mut().take(12).filter(|b| b.is_ascii_digit());
                for digit in digits {
                    *digit = b'0' + random.below(10) as u8;
                }
            }
        }
    }
    // Checksums would hide everything behind them from this: they are made right again.
    if seeds[0].len() >= 512 && seeds[0][257..].starts_with(b"ustar") && random.below(4) != 0 {
        for block in bytes.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
    }
}

/// Runs a target on damaged inputs until one of two bounds; returns the number of executions.
fn drive((name, target): &FuzzTarget, seed: u64, most: u64, time: Duration) -> u64 {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name}");
    seeds.iter().for_each(|bytes| target(bytes));
    let (mut random, mut bytes) = (Random(seed), Vec::new());
    let start = Instant::now();
    for done in 0..most {
        if done % 256 == 0 && start.elapsed() > time {
            return done;
        }
        mutate(&seeds, &mut random, &mut bytes);
        target(&bytes);
    }
    most
}

#[test]
fn no_parser_panics_on_damaged_input() {
    for target in FUZZ_TARGETS {
        drive(target, 1, 3_000, Duration::from_secs(60));
    }
}

/// `cargo test --release -p aim-data --test mutations -- --ignored --nocapture`; `AIM_MUTATIONS`
/// sets the executions per parser, `AIM_SECONDS` the most seconds for each, `AIM_PARSERS` names some.
#[test]
#[ignore = "ten million executions per parser take a quarter of an hour in a release build"]
#[allow(clippy::print_stdout)]
fn ten_million_executions_per_parser() {
    let number = |name: &str, usual: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let most = number("AIM_MUTATIONS", 10_000_000);
    let time = Duration::from_secs(number("AIM_SECONDS", 600));
    let names = std::env::var("AIM_PARSERS").unwrap_or_default();
    let chosen = |name: &str| names.is_empty() || names.split(',').any(|chosen| chosen == name);
    for target in FUZZ_TARGETS.iter().filter(|target| chosen(target.0)) {
        let start = Instant::now();
        let done = drive(target, 2, most, time);
        println!("{}: {done} executions in {:.0} s", target.0, start.elapsed().as_secs_f64());
    }
}
