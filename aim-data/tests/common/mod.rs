//! What tests of data formats share.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};

use aim_data::decode::{DecodeLimits, decode};
use aim_data::image::Image;
use aim_data::pack::encode_png;
use aim_data::source::{Payload, Source};

pub const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 20, max_pixels: 1 << 20 };

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats").join(name)
}

pub fn write(path: PathBuf, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A PNG of one colour that tells its number.
pub fn png(number: u8) -> Vec<u8> {
    encode_png(&Image::new(2, 2, 3, vec![number; 12]).unwrap()).unwrap()
}

pub fn tar_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o444);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn keys(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|index| source.key(index)).collect()
}

pub fn labels(source: &dyn Source) -> Vec<Option<u32>> {
    (0..source.len()).map(|index| source.label(index)).collect()
}

/// The first byte of the first pixel.
pub fn first(source: &dyn Source, index: u64) -> u8 {
    match source.read(index, 0).unwrap().payload {
        Payload::Encoded(bytes) => decode(&bytes, &LIMITS).unwrap().pixels()[0],
        Payload::Pixels(image) => image.pixels()[0],
        other => panic!("{other:?}"),
    }
}

/// Two shards with captions, as img2dataset leaves them: one row failed, members in the order in
/// which downloads ended.
pub fn img2dataset(folder: &Path) {
    for shard in 0..2u8 {
        let mut files = Vec::new();
        let names: Vec<String> = [2, 0].iter().map(|row| format!("{shard:05}000{row}")).collect();
        for (at, key) in names.iter().enumerate() {
            files.push((format!("{key}.png"), png(shard * 10 + at as u8)));
            let json = format!("{{\"uid\": \"{key}\", \"status\": \"success\"}}");
            files.push((format!("{key}.json"), json.into_bytes()));
            files.push((format!("{key}.txt"), format!("caption {key} é").into_bytes()));
        }
        let files: Vec<(&str, Vec<u8>)> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        write(folder.join(format!("{shard:05}.tar")), &tar_of(&files));
        let stats = "{\"count\": 3, \"successes\": 2, \"failed_to_download\": 1, \
                     \"failed_to_resize\": 0, \"duration\": 1.0, \"start_time\": 0.0, \
                     \"end_time\": 1.0, \"status_dict\": {\"success\": 2, \"HTTP Error 404\": 1}}";
        write(folder.join(format!("{shard:05}_stats.json")), stats.as_bytes());
        write(folder.join(format!("{shard:05}.parquet")), b"PAR1");
    }
}
