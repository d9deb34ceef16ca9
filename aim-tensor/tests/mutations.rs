//! The readers of PyTorch's files under damaged input, with the standard library alone: what `fuzz/` does with
//! libFuzzer, at a fixed seed.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use aim_tensor::io::fuzzing::{FUZZ_TARGETS, FuzzTarget};

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

fn files() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch");
    let mut paths: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let torch = |path: &&std::path::PathBuf| {
        path.extension().is_some_and(|e| e == "pth" || e == "pt" || e == "bin")
    };
    paths.iter().filter(torch).map(|path| std::fs::read(path).unwrap()).collect()
}

fn find(bytes: &[u8], piece: &[u8]) -> Option<usize> {
    bytes.windows(piece.len()).position(|window| window == piece)
}

/// Inputs that a target accepts, to be damaged.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "torch_file" => files(),
        "torch_pickle" => {
            let pickle = |file: &Vec<u8>| {
                let start = [&b"\x80\x02ccollections"[..], b"\x80\x02}", b"\x80\x04\x95"];
                let at = start.iter().find_map(|start| find(file, start))?;
                let end = find(&file[at..], b"PK\x07\x08").unwrap_or(file.len() - at);
                Some(file[at..at + end].to_vec())
            };
            files().iter().filter_map(pickle).collect()
        }
        other => panic!("no inputs for {other}"),
    }
}

/// Values that lengths and counts go wrong at.
const ODD: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// Operations of a pickle, and records of an archive.
const PIECES: [&[u8]; 24] = [
    b"(",
    b")",
    b"t",
    b"R",
    b"b",
    b"Q",
    b"u",
    b"s",
    b"e",
    b"a",
    b"}",
    b"]",
    b"2",
    b"0",
    b"1",
    b"h\0",
    b"\x94",
    b"\x85",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n",
    b"PK\x01\x02",
    b"PK\x05\x06",
];

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
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => bytes.insert(at, random.next() as u8),
            5 => {
                let value = ODD[random.below(ODD.len())].to_le_bytes();
                for (byte, new) in bytes[at..].iter_mut().zip(&value[..1 << random.below(4)]) {
                    *byte = *new;
                }
            }
            6 => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            7 => {
                let piece = PIECES[random.below(PIECES.len())];
                for (byte, new) in bytes[at..].iter_mut().zip(piece) {
                    *byte = *new;
                }
            }
            _ => {
                // A piece of another input, or of this one.
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
                for (byte, new) in bytes[at..].iter_mut().zip(piece) {
                    *byte = *new;
                }
            }
        }
    }
}

/// Runs a target on damaged inputs until one of two bounds; returns the number of executions.
fn drive((name, target): &FuzzTarget, seed: u64, most: u64, time: Duration) -> u64 {
    let seeds = seeds(name);
    assert!(seeds.len() >= 8, "{name}");
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
fn no_reader_panics_on_damaged_input() {
    for target in FUZZ_TARGETS {
        drive(target, 1, 20_000, Duration::from_secs(60));
    }
}

/// `cargo test --release -p aim-tensor --test mutations -- --ignored --nocapture`; `AIM_MUTATIONS` sets the executions
/// per reader, `AIM_SECONDS` the most seconds for each.
#[test]
#[ignore = "ten million executions per reader take minutes in a release build"]
#[allow(clippy::print_stdout)]
fn ten_million_executions_per_reader() {
    let number = |name: &str, usual: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let most = number("AIM_MUTATIONS", 10_000_000);
    let time = Duration::from_secs(number("AIM_SECONDS", 600));
    for target in FUZZ_TARGETS {
        let start = Instant::now();
        let done = drive(target, 2, most, time);
        println!("{}: {done} executions in {:.0} s", target.0, start.elapsed().as_secs_f64());
    }
}
