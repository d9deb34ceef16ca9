use super::op::Op;
use super::*;
use crate::augment::affine::Filter;
use crate::decode::{DecodeLimits, decode};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rand_augment/");

fn fixture(name: &str) -> (Vec<u8>, usize) {
    let bytes = std::fs::read(format!("{FOLDER}{name}")).unwrap();
    let image = decode(&bytes, &DecodeLimits::default()).unwrap().into_rgb();
    (image.pixels().to_vec(), image.width() as usize)
}

fn kind(name: &str) -> Kind {
    let name = name.trim_end_matches("Increasing").trim_end_matches("Rel");
    *Kind::ALL.iter().find(|kind| format!("{kind:?}") == name).unwrap()
}

/// Strengths and pixels of every change, those of timm on Pillow to the byte.
#[test]
fn changes_are_those_of_timm_on_pillow() {
    let text = std::fs::read(format!("{FOLDER}cases.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
    let (sources, width) = fixture("sources.png");
    let (expected, _) = fixture("expected.png");
    let size = 3 * width * 20;
    let mut seen = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let name = case["name"].as_str().unwrap();
        let increasing = case["increasing"].as_bool().unwrap();
        let negative = case["negative"].as_bool().unwrap();
        let op = kind(name).op(case["level"].as_f64().unwrap(), increasing, negative);
        let filter = match case["filter"].as_str().unwrap() {
            "bilinear" => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        let source = case["source"].as_u64().unwrap() as usize * size;
        let mut found = sources[source..source + size].to_vec();
        op.apply(&mut found, width, filter, [124, 116, 104], &mut Vec::new());
        let expected = &expected[number * size..(number + 1) * size];
        let wrong = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        assert_eq!(wrong, 0, "{case}: {op:?}, {wrong} of {size} bytes differ");
        if !seen.contains(&kind(name)) {
            seen.push(kind(name));
        }
    }
    assert_eq!((seen.len(), cases.len() * size), (15, expected.len()));
}

fn rng(index: u64) -> Rng {
    Rng::new(Purpose::RandAugment, AugmentKey { index, ..AugmentKey::default() })
}

#[test]
fn layers_are_drawn_evenly_and_magnitudes_normally() {
    let policy: RandAugment = "rand-m9-mstd0.5-inc1-n3".parse().unwrap();
    let mut counts = [0; 15];
    for index in 0..5000 {
        let chosen = policy.choose(&mut rng(index));
        assert_eq!(chosen.iter().flatten().count(), 3);
        chosen.iter().flatten().for_each(|kind| counts[*kind as usize] += 1);
    }
    assert!(counts.iter().all(|count| (880..1120).contains(count)), "{counts:?}");
    let levels: Vec<f64> = (0..5000).map(|index| policy.level(&mut rng(index))).collect();
    let mean = levels.iter().sum::<f64>() / 5000.0;
    let below = levels.iter().filter(|level| **level < 8.5).count();
    let cut = levels.iter().filter(|level| **level == 10.0).count();
    // Cutting off at two deviations takes 0.004 from the mean.
    assert!((mean - 9.0).abs() < 0.03, "{mean}");
    // 15.9 % lie a deviation below the mean, 2.3 % are cut off.
    assert!((700..890).contains(&below) && (80..150).contains(&cut), "{below} {cut}");
    let uniform = RandAugment { magnitude_std: f64::INFINITY, ..policy };
    let levels: Vec<f64> = (0..2000).map(|index| uniform.level(&mut rng(index))).collect();
    let low = levels.iter().filter(|level| **level < 4.5).count();
    assert!(levels.iter().all(|level| (0.0..9.0).contains(level)));
    assert!((900..1100).contains(&low), "{low}");
}

/// Shares of the first draw are the weights; no kind comes twice.
#[test]
fn the_weighted_set_is_drawn_without_replacement() {
    let policy: RandAugment = "rand-n15-tweights".parse().unwrap();
    let mut first = [0.0; 15];
    for index in 0..4000 {
        let chosen = policy.choose(&mut rng(index));
        let mut all: Vec<usize> = chosen.iter().flatten().map(|kind| *kind as usize).collect();
        first[all[0]] += 1.0 / 4000.0;
        all.sort_unstable();
        assert_eq!(all, (0..15).collect::<Vec<_>>());
    }
    let total: f64 = Kind::WEIGHTS.iter().sum();
    for (share, weight) in first.iter().zip(Kind::WEIGHTS) {
        assert!((share - weight / total).abs() < 0.025, "{first:?}");
    }
}

#[test]
fn half_of_the_layers_are_made_and_half_of_those_go_the_other_way() {
    // A magnitude of 0 changes nothing but what has no magnitude, so count what changes at 10.
    let policy: RandAugment = "rand-m10-n1-inc1".parse().unwrap();
    let source: Vec<u8> = (0..8 * 8 * 3).map(|at| crate::random::mix(at) as u8 / 2 + 60).collect();
    let mut changed = 0;
    for index in 0..2000 {
        let mut pixels = source.clone();
        let key = AugmentKey { index, ..AugmentKey::default() };
        policy.apply(&mut pixels, 8, key, &mut Vec::new());
        changed += u32::from(pixels != source);
    }
    assert!((900..1100).contains(&changed), "{changed}");
    let never = RandAugment { probability: 0.0, ..policy };
    let mut pixels = source.clone();
    never.apply(&mut pixels, 8, AugmentKey::default(), &mut Vec::new());
    assert_eq!(pixels, source);
    assert_eq!(Kind::Rotate.op(5.0, true, false), Op::Rotate(15.0));
    assert_eq!(Kind::Rotate.op(5.0, true, true), Op::Rotate(-15.0));
}

/// Every kind at every strength, on images that are nearly nothing.
#[test]
fn any_size_and_magnitude_goes() {
    for kind in Kind::ALL {
        for level in [0.0, 3.3, 10.0, 37.0, 100.0] {
            for (increasing, negative) in [(true, true), (true, false), (false, false)] {
                let op = kind.op(level, increasing, negative);
                for (width, height) in [(1, 1), (2, 1), (1, 2), (3, 3), (5, 2)] {
                    for filter in [Filter::Bilinear, Filter::Bicubic] {
                        let mut pixels = vec![77; width * height * 3];
                        op.apply(&mut pixels, width, filter, [1, 2, 3], &mut Vec::new());
                    }
                }
            }
        }
    }
}
