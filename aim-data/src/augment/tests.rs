use std::path::PathBuf;

use proptest::prelude::*;

use super::resize::{Region, Resizer};
use super::*;
use crate::decode::{DecodeLimits, decode};
use crate::random::Rng;

fn fixture(name: &str) -> Image {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize").join(name);
    decode(&std::fs::read(path).unwrap(), &DecodeLimits::default()).unwrap()
}

fn ramp(width: u32, height: u32, channels: u8) -> Image {
    let len = width as usize * height as usize * usize::from(channels);
    let pixels = (0..len).map(|at| mix_byte(at as u64)).collect();
    Image::new(width, height, channels, pixels).unwrap()
}

const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Every part of a transform at once.
fn everything() -> Transform {
    Transform::Train(TrainTransform {
        random_erasing: Some(RandomErasing::new(MEAN, STD)),
        ..TrainTransform::probe(MEAN)
    })
}

fn mix_byte(at: u64) -> u8 {
    crate::random::mix(at) as u8
}

/// Pillow's "L" conversion.
fn to_gray(image: &Image) -> Image {
    let luma = |p: &[u8]| {
        ((u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471 + 0x8000)
            >> 16) as u8
    };
    let pixels = image.pixels().chunks_exact(3).map(luma).collect();
    Image::new(image.width(), image.height(), 1, pixels).unwrap()
}

#[test]
fn resampling_agrees_with_pillow() {
    let rgb = fixture("source.png");
    let gray = to_gray(&rgb);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/resize/cases.json");
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 16);
    for case in &cases {
        let number = |value: &serde_json::Value| value.as_u64().unwrap() as u32;
        let image = if case["mode"] == "rgb" { &rgb } else { &gray };
        let (height, width) = (number(&case["out"][0]), number(&case["out"][1]));
        let region = if case["kind"] == "crop" {
            let side = |at: usize| number(&case["box"][at]);
            Region::Crop(CropBox { left: side(0), top: side(1), width: side(2), height: side(3) })
        } else {
            ResizeCenterCrop::default().region(image.width(), image.height(), height, width)
        };
        let expected = fixture(case["expected"].as_str().unwrap());
        let mut found = vec![0; expected.pixels().len()];
        Resizer::new().resize(image.view(), &region, width, height, &mut found);
        let differences: Vec<u32> =
            found.iter().zip(expected.pixels()).map(|(a, b)| u32::from(a.abs_diff(*b))).collect();
        let mean = f64::from(differences.iter().sum::<u32>()) / differences.len() as f64;
        let largest = differences.iter().max().unwrap();
        assert!(mean < 0.002 && *largest <= 1, "{case}: mean {mean}, largest {largest}");
    }
}

#[test]
fn images_of_the_output_size_are_left_alone() {
    let image = ramp(28, 28, 1);
    let mut preprocessor = Preprocessor::new(Transform::eval(), 28, 28).unwrap();
    let mut out = vec![0; preprocessor.output_len()];
    preprocessor.apply(&image, AugmentKey::default(), &mut out).unwrap();
    assert_eq!(out, image.clone().into_rgb().pixels());
    let whole = RandomResizedCrop { scale: (1.0, 1.0), ratio: (1.0, 1.0) };
    let flip = HorizontalFlip { p: 0.0 };
    let train = TrainTransform { crop: whole, flip, ..TrainTransform::default() }.into();
    let mut preprocessor = Preprocessor::new(train, 28, 28).unwrap();
    preprocessor.apply(&image, AugmentKey::default(), &mut out).unwrap();
    assert_eq!(out, image.into_rgb().pixels());
}

#[test]
fn gray_gives_what_its_rgb_copy_gives() {
    let gray = ramp(37, 53, 1);
    let rgb = gray.clone().into_rgb();
    for transform in [Transform::train(), Transform::eval()] {
        let mut preprocessor = Preprocessor::new(transform, 24, 16).unwrap();
        let mut outs = [&gray, &rgb].map(|image| {
            let mut out = vec![0; preprocessor.output_len()];
            let key = AugmentKey { index: 3, ..AugmentKey::default() };
            preprocessor.apply(image, key, &mut out).unwrap();
            out
        });
        assert_eq!(std::mem::take(&mut outs[0]), outs[1]);
    }
}

#[test]
fn half_of_the_images_are_flipped() {
    let image = ramp(4, 4, 3);
    let whole = RandomResizedCrop { scale: (1.0, 1.0), ratio: (1.0, 1.0) };
    let transform = TrainTransform { crop: whole, ..TrainTransform::default() }.into();
    let mut preprocessor = Preprocessor::new(transform, 4, 4).unwrap();
    let mut out = vec![0; preprocessor.output_len()];
    let flipped = (0..2000)
        .filter(|&index| {
            let key = AugmentKey { index, ..AugmentKey::default() };
            preprocessor.apply(&image, key, &mut out).unwrap();
            out != image.pixels()
        })
        .count();
    assert!((900..1100).contains(&flipped), "{flipped}");
}

/// Mean share of the area for scale (0.4, 1) and a square image, where
/// large crops of extreme ratio are rejected, from 200,000 draws of the same definition in Python: 0.6418.
#[test]
fn crop_sizes_are_distributed_as_in_torchvision() {
    let crop = RandomResizedCrop::default();
    let mut total = 0.0;
    for index in 0..20_000 {
        let mut rng = Rng::new(Purpose::Augment, AugmentKey { index, ..AugmentKey::default() });
        let found = crop.sample_box(224, 224, &mut rng);
        total += f64::from(found.width * found.height) / (224.0 * 224.0);
    }
    let mean = total / 20_000.0;
    assert!((mean - 0.6418).abs() < 0.005, "{mean}");
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    let crop = |scale, ratio| {
        let crop = RandomResizedCrop { scale, ratio };
        Transform::Train(TrainTransform { crop, ..TrainTransform::default() })
    };
    let bad = [
        crop((0.0, 1.0), (1.0, 1.0)),
        crop((0.5, 0.4), (1.0, 1.0)),
        crop((0.5, 1.5), (1.0, 1.0)),
        crop((0.5, 1.0), (2.0, 1.0)),
        crop((f64::NAN, 1.0), (1.0, 1.0)),
        Transform::Train(TrainTransform {
            flip: HorizontalFlip { p: 1.5 },
            ..TrainTransform::default()
        }),
        Transform::Train(TrainTransform {
            color_jitter: ColorJitter { hue: 0.7, ..ColorJitter::default() },
            ..TrainTransform::default()
        }),
        Transform::Train(TrainTransform {
            rand_augment: Some(RandAugment { layers: 0, ..RandAugment::default() }),
            ..TrainTransform::default()
        }),
        Transform::Train(TrainTransform {
            random_erasing: Some(RandomErasing { max_count: 0, ..RandomErasing::new(MEAN, STD) }),
            ..TrainTransform::default()
        }),
        Transform::Eval(ResizeCenterCrop { crop_ratio: 0.0 }),
    ];
    for transform in bad {
        assert!(Preprocessor::new(transform, 8, 8).is_err(), "{transform:?}");
    }
    assert!(Preprocessor::new(Transform::eval(), 0, 8).is_err());
    assert!(Preprocessor::new(Transform::eval(), 8, 1 << 20).is_err());
}

/// A crop decoded alone and a crop of the whole image are the same to the bit.
#[test]
fn decoding_the_part_alone_changes_nothing() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let names = ["photo_420.jpg", "photo_422.jpg", "photo_444.jpg", "photo_restarts.jpg"];
    let others = ["progressive.jpg", "gray.jpg", "cmyk.jpg", "rotated.jpg", "rgba.png"];
    let photos = names.map(|name| folder.join("baseline").join(name));
    let paths = photos.into_iter().chain(others.map(|name| folder.join("decode").join(name)));
    for path in paths {
        let bytes = std::fs::read(&path).unwrap();
        let limits = DecodeLimits::default();
        let image = decode(&bytes, &limits).unwrap();
        let small = RandomResizedCrop { scale: (0.01, 1.0), ..RandomResizedCrop::default() };
        let small = TrainTransform { crop: small, ..TrainTransform::default() }.into();
        for transform in [Transform::train(), small, everything(), Transform::eval()] {
            let mut preprocessor = Preprocessor::new(transform, 20, 28).unwrap();
            let mut outs = [vec![0; preprocessor.output_len()], vec![0; preprocessor.output_len()]];
            for index in 0..200 {
                let key = AugmentKey { index, ..AugmentKey::default() };
                preprocessor.apply(&image, key, &mut outs[0]).unwrap();
                preprocessor.decode(&bytes, &limits, key).unwrap();
                preprocessor.render(&mut outs[1]).unwrap();
                assert!(outs[0] == outs[1], "{} under {key:?}", path.display());
            }
        }
    }
}

#[test]
fn rendering_needs_a_decoded_image() {
    let mut preprocessor = Preprocessor::new(Transform::train(), 8, 8).unwrap();
    let mut out = vec![0; preprocessor.output_len()];
    assert!(preprocessor.render(&mut out).is_err());
    let limits = DecodeLimits::default();
    assert!(preprocessor.decode(b"no image", &limits, AugmentKey::default()).is_err());
    assert!(preprocessor.render(&mut out).is_err());
}

/// Each part does what it does in the order of the fields, and the later ones move no crop.
#[test]
fn the_parts_of_the_probe_recipe_are_done_in_order() {
    let image = ramp(60, 50, 3);
    let probe = TrainTransform::probe(MEAN);
    assert_eq!(Transform::from(probe), Transform::probe_train(MEAN));
    let run = |transform: TrainTransform, index| {
        let mut preprocessor = Preprocessor::new(transform.into(), 24, 24).unwrap();
        let mut out = vec![0; preprocessor.output_len()];
        let key = AugmentKey { index, ..AugmentKey::default() };
        preprocessor.apply(&image, key, &mut out).unwrap();
        out
    };
    let mut differing = 0;
    for index in 0..40 {
        let mut expected = run(TrainTransform { rand_augment: None, ..probe }, index);
        let key = AugmentKey { index, ..AugmentKey::default() };
        let without = expected.clone();
        RandAugment::probe(MEAN).apply(&mut expected, 24, key, &mut Vec::new());
        assert_eq!(run(probe, index), expected);
        differing += u32::from(without != expected);
        let erasing = RandomErasing { probability: 1.0, ..RandomErasing::new(MEAN, STD) };
        let erased = TrainTransform { random_erasing: Some(erasing), ..probe };
        erasing.apply(&mut expected, 24, &mut Rng::new(Purpose::Erase, key));
        assert_eq!(run(erased, index), expected);
    }
    // Three quarters have one or two changes, most of which can be seen.
    assert!((20..40).contains(&differing), "{differing}");
}

fn side() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1u32), 1u32..5, 1u32..700]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn crops_stay_inside(
        width in side(),
        height in side(),
        index: u64,
        scale in (0.01f64..1.0, 0.0f64..1.0),
        ratio in (0.1f64..10.0, 1.0f64..10.0),
    ) {
        let scale = (scale.0, scale.0 + (1.0 - scale.0) * scale.1);
        let crop = RandomResizedCrop { scale, ratio: (ratio.0, ratio.0 * ratio.1) };
        let mut rng = Rng::new(Purpose::Augment, AugmentKey { index, ..AugmentKey::default() });
        let found = crop.sample_box(width, height, &mut rng);
        prop_assert!(found.width >= 1 && found.height >= 1);
        prop_assert!(found.left + found.width <= width && found.top + found.height <= height);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// The same integers, with and without vector instructions.
    #[test]
    fn instructions_do_not_change_pixels(
        width in side(),
        height in prop_oneof![Just(1u32), 1u32..60],
        out_height in 1u32..40,
        out_width in 1u32..40,
        index: u64,
    ) {
        let image = ramp(width, height, 3);
        for transform in [Transform::train(), everything(), Transform::eval()] {
            let mut outs = [true, false].map(|vectors| {
                let mut preprocessor = Preprocessor::new(transform, out_height, out_width).unwrap();
                if !vectors {
                    preprocessor.resizer = Resizer::without_vectors();
                }
                let mut out = vec![0; preprocessor.output_len()];
                let key = AugmentKey { index, ..AugmentKey::default() };
                preprocessor.apply(&image, key, &mut out).unwrap();
                out
            });
            prop_assert_eq!(std::mem::take(&mut outs[0]), std::mem::take(&mut outs[1]));
        }
    }

    #[test]
    fn any_image_size_gives_any_output_size(
        width in side(),
        height in prop_oneof![Just(1u32), 1u32..60],
        out_height in 1u32..40,
        out_width in 1u32..40,
        gray: bool,
        index: u64,
    ) {
        let image = ramp(width, height, if gray { 1 } else { 3 });
        for transform in [Transform::train(), everything(), Transform::eval()] {
            let mut preprocessor = Preprocessor::new(transform, out_height, out_width).unwrap();
            let mut out = vec![0; preprocessor.output_len()];
            let key = AugmentKey { index, ..AugmentKey::default() };
            preprocessor.apply(&image, key, &mut out).unwrap();
        }
    }
}
