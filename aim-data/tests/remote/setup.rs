//! Shards on disk and on a server, and what tests see of them.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aim_data::Error;
use aim_data::augment::Transform;
use aim_data::decode::DecodeLimits;
use aim_data::loader::{Loader, LoaderOptions, LoaderState};
use aim_data::remote::{RemoteError, RemoteOptions};
use aim_data::sampler::Mixture;
use aim_data::source::{Payload, Source, WebDataset};
use tempfile::TempDir;

use crate::server::{Fault, Request, Server};

pub(crate) const SHARDS: u32 = 4;
pub(crate) const PER_SHARD: u32 = 25;
pub(crate) const SECRET: &str = "a-secret-of-the-test";

/// Shards of noise images, on disk and on a server as `bucket/train/NN.tar`.
pub(crate) struct Setup {
    pub(crate) dir: TempDir,
    pub(crate) server: Server,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), server: Server::start() };
        for shard in 0..SHARDS {
            let bytes = shard_bytes(shard, 1);
            fs::write(this.dir.path().join(format!("{shard:02}.tar")), &bytes).unwrap();
            this.server.put(&format!("bucket/train/{shard:02}.tar"), &bytes);
        }
        this
    }

    /// The options of the tests: small windows, many short tries.
    pub(crate) fn options(&self) -> RemoteOptions {
        let address = format!("http://127.0.0.1:{}", self.server.port);
        let google = format!(
            r#"{{"gcs_base_url": "{address}", "disable_oauth": true, "client_email": "",
                "private_key": "", "private_key_id": ""}}"#
        );
        let settings = [
            ("aws_endpoint", address.clone()),
            ("google_service_account_key", google),
            ("azure_storage_account_name", "account".into()),
            ("azure_storage_endpoint", address),
            ("azure_skip_signature", "true".into()),
            ("allow_http", "true".into()),
            ("aws_allow_http", "true".into()),
            ("aws_region", "us-east-1".into()),
            ("aws_access_key_id", "test".into()),
            ("aws_secret_access_key", SECRET.into()),
        ];
        RemoteOptions {
            window_bytes: 16 << 10,
            memory_bytes: 256 << 10,
            max_tries: 30,
            total_timeout: Duration::from_secs(20),
            // Longer than any pause of a busy machine, which would cost a request that a test counts.
            stall_timeout: Duration::from_secs(20),
            first_pause: Duration::from_millis(1),
            max_pause: Duration::from_millis(8),
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
            ..RemoteOptions::default()
        }
    }

    /// The same, giving up soon.
    pub(crate) fn impatient(&self) -> RemoteOptions {
        RemoteOptions {
            max_tries: 3,
            total_timeout: Duration::from_millis(900),
            stall_timeout: Duration::from_millis(400),
            ..self.options()
        }
    }

    pub(crate) fn local(&self) -> WebDataset {
        WebDataset::open(self.dir.path().to_str().unwrap(), DecodeLimits::default()).unwrap()
    }

    pub(crate) fn open(&self, pattern: &str, options: &RemoteOptions) -> Result<WebDataset, Error> {
        WebDataset::open_with(pattern, DecodeLimits::default(), Some(options))
    }
}

pub(crate) fn shard_bytes(shard: u32, version: u32) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: String, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o444);
        tar.append_data(&mut header, name, data).unwrap();
    };
    for number in 0..PER_SHARD {
        let mut state = (shard * 1000 + number) * 10 + version;
        // Sizes that no window is a multiple of.
        let (width, height) = (20 + number % 7, 20 + number % 5);
        let pixels = image::RgbImage::from_fn(width, height, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb([(state >> 24) as u8, (state >> 16) as u8, (state >> 8) as u8])
        });
        let mut png = Cursor::new(Vec::new());
        pixels.write_to(&mut png, image::ImageFormat::Png).unwrap();
        let key = format!("{shard:02}{number:04}");
        add(format!("{key}.cls"), format!("{}", number % 10).as_bytes());
        add(format!("{key}.png"), png.get_ref());
        add(format!("{key}.txt"), format!("image {number} of {shard}").as_bytes());
    }
    tar.into_inner().unwrap()
}

pub(crate) fn content(
    source: &dyn Source,
    index: u64,
) -> (String, Vec<u8>, Option<u32>, Option<String>) {
    let sample = source.read(index, 0).unwrap();
    let Payload::Encoded(bytes) = sample.payload else { panic!("no file's bytes") };
    (source.key(index), bytes, sample.label, source.text(index).unwrap())
}

pub(crate) fn assert_same(remote: &dyn Source, local: &dyn Source) {
    assert_eq!((remote.len(), remote.fingerprint()), (local.len(), local.fingerprint()));
    let order =
        |source: &dyn Source| (source.shuffle_window(), source.shard_starts().map(<[u64]>::to_vec));
    assert_eq!(order(remote), order(local));
    for index in 0..local.len() {
        assert_eq!(content(remote, index), content(local, index), "sample {index}");
    }
}

/// Keys and pixels of a batch.
pub(crate) type Seen = (Vec<u64>, Vec<u8>);

/// A shuffled epoch and a half as a training run sees it.
pub(crate) fn epoch(source: WebDataset, workers: usize) -> Result<Vec<Seen>, Error> {
    let batches = source.len() * 3 / 2 / 10;
    let mixture = Mixture::single(Arc::new(source))?;
    let options = LoaderOptions { workers, ..LoaderOptions::new(10, 16, Transform::train()) };
    let mut loader = Loader::new(mixture, options, LoaderState::new(7))?;
    let mut seen = Vec::new();
    for _ in 0..batches {
        let batch = loader.next_batch()?;
        seen.push((batch.keys.clone(), batch.images.as_u8().unwrap().to_vec()));
    }
    Ok(seen)
}

/// A fault for about one request in three, the same in every run.
pub(crate) fn bad_weather(request: &Request) -> Fault {
    let faults = [
        Fault::Status(500, "InternalError"),
        Fault::Status(503, "SlowDown"),
        Fault::Slow,
        Fault::Drop,
        Fault::HalfRange,
        Fault::LongLength,
        Fault::ShortLength,
        Fault::Close,
        Fault::Garbage,
        Fault::Whole,
        Fault::Absurd,
        Fault::Status(429, "TooManyRequests"),
    ];
    let fault = faults[(request.number / 3) as usize % faults.len()];
    if request.number.is_multiple_of(3) { fault } else { Fault::None }
}

/// What opening says, which must come from `Error::Remote`.
pub(crate) fn refused(setup: &Setup, pattern: &str, options: &RemoteOptions) -> RemoteError {
    setup.server.take_log();
    let error = setup.open(pattern, options).unwrap_err();
    let text = error.to_string();
    assert!(!text.contains(SECRET) && text.len() < 1500, "{text}");
    match error {
        Error::Remote(error) => error,
        other => panic!("{other}"),
    }
}

/// Bytes of a folder's files, or of those of one kind.
pub(crate) fn folder_bytes(dir: &Path, kinds: &[&str]) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let ours = files.filter(|file| {
        file.path().extension().is_some_and(|kind| kinds.iter().any(|wanted| kind == *wanted))
    });
    ours.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum()
}
