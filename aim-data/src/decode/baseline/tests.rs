use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::decode::{DecodeLimits, decode};

const NAMES: [&str; 4] = ["photo_420.jpg", "photo_422.jpg", "photo_444.jpg", "photo_restarts.jpg"];

fn read(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/baseline");
    std::fs::read(folder.join(name)).unwrap()
}

fn whole(header: &Header<'_>) -> Vec<u8> {
    let area = Area { left: 0, top: 0, width: header.width, height: header.height };
    let mut out = Vec::new();
    header.decode(area, &mut out).unwrap();
    out
}

#[test]
fn pixels_are_those_of_libjpeg_turbo() {
    for name in NAMES {
        let bytes = read(name);
        let expected = read(&format!("{name}.expected.png"));
        let expected = decode(&expected, &DecodeLimits::default()).unwrap();
        let found = whole(&Header::parse(&bytes).unwrap());
        assert!(found == expected.pixels(), "{name}");
    }
}

#[test]
fn other_kinds_are_left_to_the_general_decoder() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    for name in ["progressive.jpg", "gray.jpg", "cmyk.jpg", "ycck.jpg"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        assert!(Header::parse(&bytes).is_none(), "{name}");
    }
    assert!(Header::parse(b"").is_none() && Header::parse(b"\xff\xd8\xff\xda\0").is_none());
}

#[test]
fn a_scan_that_ends_early_is_refused() {
    let bytes = read("photo_420.jpg");
    for len in (bytes.len() / 3..bytes.len() - 2).step_by(37) {
        let mut cut = bytes[..len].to_vec();
        cut.extend_from_slice(b"\xff\xd9");
        let Some(header) = Header::parse(&cut) else { continue };
        let area = Area { left: 0, top: 0, width: header.width, height: header.height };
        // The last bits may have been padding.
        assert!(header.decode(area, &mut Vec::new()).is_none() || len + 4 > bytes.len(), "{len}");
    }
}

/// A code's table whose counts say more codes than there can be.
#[test]
fn impossible_codes_are_refused() {
    let mut table = [0; 17 + 3];
    table[0] = 3;
    assert!(Codes::default().compute(&table).is_none());
    assert!(Codes::default().compute(&[0; 5]).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_area_is_cut_from_the_whole(
        which in 0usize..4,
        x in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        y in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        let bytes = read(NAMES[which]);
        let header = Header::parse(&bytes).unwrap();
        let all = whole(&header);
        let range = |(start, len): (prop::sample::Index, prop::sample::Index), size: usize| {
            let start = start.index(size);
            (start, len.index(size - start) + 1)
        };
        let ((left, width), (top, height)) = (range(x, header.width), range(y, header.height));
        let mut found = Vec::new();
        header.decode(Area { left, top, width, height }, &mut found).unwrap();
        for (row, found) in found.chunks_exact(width * 3).enumerate() {
            let from = ((top + row) * header.width + left) * 3;
            prop_assert!(found == &all[from..from + width * 3]);
        }
    }

    #[test]
    fn damage_never_panics(
        which in 0usize..4,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        at in (0usize..16, 0usize..16),
    ) {
        let mut bytes = read(NAMES[which]);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(header) = Header::parse(&bytes)
            && header.width * header.height <= 1 << 20
        {
            let (left, top) = (at.0.min(header.width - 1), at.1.min(header.height - 1));
            let (width, height) = (header.width - left, header.height - top);
            let _ = header.decode(Area { left, top, width, height }, &mut Vec::new());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Also for numbers that no encoder writes.
    #[test]
    fn instructions_do_not_change_the_transform(
        values in prop::collection::vec((0usize..64, prop_oneof![-300i16..300, any::<i16>()]), 1..64),
    ) {
        let mut block = [0; 64];
        for (at, value) in values {
            block[at] = value;
        }
        let mut plain = [0; 64];
        inverse(&block, &mut plain, 8);
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = transform_x86::V3::try_new() {
            let mut fast = [0; 64];
            transform_x86::inverse(v3, &block, &mut fast, 8);
            prop_assert_eq!(plain, fast);
        }
        let mut flat = [0; 64];
        inverse_flat(block[0], &mut flat, 8);
        block[1..].fill(0);
        inverse(&block, &mut plain, 8);
        prop_assert_eq!(plain, flat);
    }
}
