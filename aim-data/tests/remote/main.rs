//! Shards read over the network: the same samples in the same order as from disk, whatever the
//! server does, or an error that names what could not be had. Only loopback is ever contacted.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod cache;
mod complete;
mod proxy;
mod server;
mod setup;

use std::fs;
use std::ops::ControlFlow::Continue;
use std::time::Duration;

use aim_data::decode::DecodeLimits;
use aim_data::remote::{RemoteErrorKind, RemoteOptions};
use aim_data::source::{Source, WebDataset};
use aim_data::spec::{DataSpec, OpenOptions};
use aim_data::{DefectKind, Error};
use proptest::prelude::*;
use server::{Fault, Server};
use setup::*;

/// What img2dataset says about its shards is noted as for shards on disk, and kept with the index.
#[test]
fn statistics_beside_remote_shards_are_noted() {
    let setup = Setup::new();
    let indices = setup.dir.path().join("indices");
    let options = RemoteOptions { index_dir: Some(indices.clone()), ..setup.options() };
    let notes = |options: &RemoteOptions| {
        setup.open("s3://bucket/train/{00..03}.tar", options).unwrap().notes().join("\n")
    };
    assert_eq!(notes(&setup.options()), "");
    let stats = |successes: u32| {
        format!(
            "{{\"count\": 30, \"successes\": {successes}, \"failed_to_download\": 5, \
             \"failed_to_resize\": 0, \"status_dict\": {{\"success\": 25, \"HTTP 404\": 5}}}}"
        )
    };
    setup.server.put("bucket/train/00_stats.json", stats(25).as_bytes());
    setup.server.put("bucket/train/01_stats.json", stats(24).as_bytes());
    setup.server.put("bucket/train/02_stats.json", b"{oops");
    let first = notes(&options);
    assert!(first.contains("11 of 60 rows have no image (10 failed to download"), "{first}");
    assert!(
        first.contains("the first is s3://bucket/train/01.tar: 24 stated, 25 found"),
        "{first}"
    );
    assert!(first.contains("02.tar cannot be read"), "{first}");
    assert!(first.contains("1 shards have no _stats.json"), "{first}");
    setup.server.take_log();
    let again = notes(&options);
    assert!(again.contains("11 of 60 rows have no image"), "{again}");
    let (log, _) = setup.server.take_log();
    assert!(log.iter().all(|request| !request.path.contains("stats")), "{log:?}");
}

#[test]
fn any_url_gives_what_the_disk_gives() {
    let setup = Setup::new();
    let (local, options) = (setup.local(), setup.options());
    let web = format!("http://127.0.0.1:{}/bucket/train/{{00..03}}.tar", setup.server.port);
    let named = |scheme: &str| format!("{scheme}://bucket/train/{{00..03}}.tar");
    let listed = |scheme: &str| format!("{scheme}://bucket/train/*.tar");
    let stores = ["s3", "gs", "az"].into_iter().flat_map(|scheme| [named(scheme), listed(scheme)]);
    for pattern in stores.chain([web]).collect::<Vec<_>>().iter() {
        assert_same(&setup.open(pattern, &options).unwrap(), &local);
    }
    let list = "s3://bucket/train/00.tar,s3://bucket/train/{01,02}.tar,s3://bucket/train/*3.tar";
    assert_same(&setup.open(list, &options).unwrap(), &local);
    let open = OpenOptions { remote: Some(options), ..OpenOptions::default() };
    let spec: DataSpec = "s3://bucket/train/@0.5".parse().unwrap();
    assert_eq!((spec.to_string().as_str(), spec.weight), ("wds:s3://bucket/train/@0.5", 0.5));
    assert_same(spec.open(&open).unwrap().as_ref(), &local);
    let chosen = setup.open("s3://bucket/train/*.tar?text=none", &setup.options()).unwrap();
    assert_eq!(chosen.text(0).unwrap(), None);
}

#[test]
fn bad_weather_changes_neither_order_nor_bits() {
    let setup = Setup::new();
    let expected = epoch(setup.local(), 1).unwrap();
    setup.server.script(bad_weather);
    let roomy = setup.options();
    // So little memory that windows are given up for single requests.
    let tight = RemoteOptions { memory_bytes: 32 << 10, ..setup.options() };
    for (options, workers) in [(roomy, 1), (tight.clone(), 1), (tight, 4)] {
        let source = setup.open("s3://bucket/train/{00..03}.tar", &options).unwrap();
        assert!(epoch(source, workers).unwrap() == expected, "{options:?}, {workers} workers");
    }
    let (log, _) = setup.server.take_log();
    assert!(log.len() > 40, "{} requests", log.len());
}

#[test]
fn silence_is_cut_short() {
    let setup = Setup::new();
    let expected = epoch(setup.local(), 1).unwrap();
    setup.server.script(|request| match request.number {
        3 | 9 => Fault::Stall,
        _ => Fault::None,
    });
    let hasty = RemoteOptions { stall_timeout: Duration::from_millis(400), ..setup.options() };
    let source = setup.open("s3://bucket/train/{00..03}.tar", &hasty).unwrap();
    assert!(epoch(source, 2).unwrap() == expected);
}

#[test]
fn a_pass_costs_one_sequential_read_and_the_next_start_none() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    let pattern = "s3://bucket/train/{00..03}.tar";
    // Room for two shards of four, so that nothing of the first is left after the last.
    let total: u64 = (0..SHARDS).map(|shard| shard_bytes(shard, 1).len() as u64).sum();
    let index_dir = Some(dir.path().join("index"));
    let options = RemoteOptions { memory_bytes: total / 2, index_dir, ..setup.options() };
    let source = setup.open(pattern, &options).unwrap();
    let (log, sent) = setup.server.take_log();
    // The statistics that img2dataset writes beside a shard are looked for as well.
    let parts = log.iter().filter(|request| !request.head && request.path.ends_with(".tar"));
    let gets = parts.count() as u64;
    assert!(sent == total && gets <= total / (16 << 10) + 4, "index: {gets} GETs, {sent} bytes");
    assert_same(&source, &setup.local());
    let (log, sent) = setup.server.take_log();
    let gets = log.len() as u64;
    assert!(sent <= total && gets <= total / (16 << 10) + 4, "epoch: {gets} GETs, {sent} bytes");
    drop(source);
    let again = setup.open(pattern, &options).unwrap();
    let (log, sent) = setup.server.take_log();
    assert!(sent == 0 && log.iter().all(|request| request.head), "{log:?}");
    assert_same(&again, &setup.local());
    // A damaged index is made again, and so is one of a shard that has changed.
    for entry in fs::read_dir(dir.path().join("index")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    setup.server.put("bucket/train/02.tar", &shard_bytes(2, 2));
    let again = setup.open(pattern, &RemoteOptions { max_tries: 29, ..options }).unwrap();
    assert_ne!(content(&again, 55).1, content(&setup.local(), 55).1);
    assert_eq!(content(&again, 5), content(&setup.local(), 5));
}

#[test]
fn samples_picked_from_far_more_than_memory_are_fetched_alone() {
    let setup = Setup::new();
    let options =
        RemoteOptions { memory_bytes: 16 << 10, window_bytes: 16 << 10, ..setup.options() };
    let source = setup.open("s3://bucket/train/{00..03}.tar", &options).unwrap();
    let local = setup.local();
    let pick = |round: u64| (0..100).map(move |at| (at * 37 + round) % 100);
    for index in pick(1) {
        assert_eq!(content(&source, index), content(&local, index));
    }
    setup.server.take_log();
    let wanted: usize = pick(2).map(|index| content(&source, index).1.len()).sum();
    let (_, sent) = setup.server.take_log();
    assert!(sent < 2 * wanted as u64, "{sent} bytes for {wanted}");
}

#[test]
fn what_no_retry_can_help_is_not_retried() {
    let setup = Setup::new();
    let options = setup.options();
    let missing = refused(&setup, "s3://bucket/train/{00..09}.tar", &options);
    assert_eq!(missing.kind, RemoteErrorKind::Missing);
    assert_eq!(missing.tries, 1);
    assert_eq!(missing.url, "s3://bucket/train/04.tar");
    assert!(missing.reason.contains("404 NoSuchKey"), "{missing}");
    for (status, code, kind, word) in [
        (404, "NoSuchBucket", RemoteErrorKind::Missing, "NoSuchBucket"),
        (403, "AccessDenied", RemoteErrorKind::Denied, "AccessDenied"),
        (403, "SignatureDoesNotMatch", RemoteErrorKind::Denied, "AWS_SECRET_ACCESS_KEY"),
        (401, "Unauthorized", RemoteErrorKind::Denied, "401"),
        (301, "PermanentRedirect", RemoteErrorKind::Misconfigured, "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", RemoteErrorKind::Misconfigured, "AWS_REGION"),
    ] {
        setup.server.script(move |_| Fault::Status(status, code));
        for pattern in ["s3://bucket/train/00.tar", "s3://bucket/train/*.tar"] {
            let error = refused(&setup, pattern, &options);
            assert_eq!((error.kind, error.tries), (kind, 1), "{error}");
            assert!(error.to_string().contains(word), "{error}");
            let (log, _) = setup.server.take_log();
            // Looks at other shards that were given up may still arrive.
            let ours = log
                .iter()
                .filter(|request| {
                    request.path.starts_with('?') || request.path.ends_with("/00.tar")
                })
                .count();
            assert!(ours <= 2, "{log:?}");
        }
    }
}

#[test]
fn what_does_not_pass_ends_with_bytes_tries_and_reason() {
    let setup = Setup::new();
    let options = setup.impatient();
    for (fault, word) in [
        (Fault::Status(500, "InternalError"), "500 InternalError: as scripted"),
        (Fault::Status(503, "SlowDown"), "503 SlowDown"),
        (Fault::Close, ""),
        (Fault::Garbage, ""),
        (Fault::Whole, ""),
        (Fault::HalfRange, ""),
        (Fault::Absurd, ""),
        (Fault::Stall, ""),
        (Fault::Trickle, "900ms in all"),
    ] {
        setup.server.script(move |request| if request.head { Fault::None } else { fault });
        let error = refused(&setup, "s3://bucket/train/01.tar", &options);
        let text = error.to_string();
        assert_eq!(error.kind, RemoteErrorKind::Unavailable, "{fault:?}: {text}");
        assert!(text.starts_with("cannot read s3://bucket/train/01.tar, bytes 0..16384"), "{text}");
        assert!(text.contains(word) && error.tries <= 3, "{fault:?}: {text}");
        assert!(error.tries == 3 || matches!(fault, Fault::Stall | Fault::Trickle), "{text}");
    }
    // Nobody listens there any more.
    let port = Server::start().port;
    let mut gone = setup.impatient();
    gone.settings[0].1 = format!("http://127.0.0.1:{port}");
    std::thread::sleep(Duration::from_millis(50));
    let error = refused(&setup, "s3://bucket/train/01.tar", &gone);
    assert_eq!((error.kind, error.tries), (RemoteErrorKind::Unavailable, 3), "{error}");
}

#[test]
fn a_store_that_goes_away_stops_the_run_and_no_sample_is_passed_over() {
    let setup = Setup::new();
    let tight = RemoteOptions { memory_bytes: 32 << 10, ..setup.impatient() };
    let source = setup.open("s3://bucket/train/{00..03}.tar", &tight).unwrap();
    setup.server.script(|_| Fault::Status(503, "SlowDown"));
    let defect = source.read(0, 0).unwrap_err();
    assert_eq!(defect.kind, DefectKind::Unavailable);
    let checked = aim_data::check::check(&source, &Default::default(), &mut |_| Continue(()));
    assert!(matches!(checked, Err(Error::Unavailable { .. })), "{checked:?}");
    let error = epoch(source, 3).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Unavailable { .. }), "{text}");
    assert!(text.contains("s3://bucket/train/") && text.contains("3 tries"), "{text}");
    assert!(text.contains("SlowDown") && text.contains("bytes "), "{text}");
}

#[test]
fn a_shard_that_changes_between_requests_is_noticed() {
    for (pattern, what) in
        [("s3://bucket/train/01.tar", "412"), ("s3://bucket/train/0?.tar", "ETag")]
    {
        let setup = Setup::new();
        let tight = RemoteOptions { memory_bytes: 32 << 10, ..setup.options() };
        let source = setup.open(pattern, &tight).unwrap();
        // As many bytes and other content: neither length nor header would tell.
        let mut other = shard_bytes(1, 1);
        other[1100] ^= 1;
        setup.server.put("bucket/train/01.tar", &other);
        setup.server.take_log();
        let defects: Vec<_> =
            (0..source.len()).filter_map(|index| source.read(index, 0).err()).collect();
        if what == "412" {
            assert!(!defects.is_empty());
            let text = &defects[0].reason;
            assert!(text.contains("changed") || text.contains("412"), "{text}");
            assert!(text.contains("(1 try)") && text.contains("index the new content"), "{text}");
        }
        // Longer than before is noticed without a tag too.
        other.resize(other.len() + 512, 0);
        setup.server.put("bucket/train/01.tar", &other);
        let defects: Vec<_> =
            (0..source.len()).filter_map(|index| source.read(index, 0).err()).collect();
        assert!(!defects.is_empty() && defects.iter().all(|d| d.kind == DefectKind::Unavailable));
    }
}

#[test]
fn listings_follow_pages_and_patterns() {
    let setup = Setup::new();
    let options = setup.options();
    for (number, key) in ["a b.tar", "sub/x.tar", ".hidden.tar", "z.txt"].iter().enumerate() {
        setup.server.put(&format!("bucket/train/{key}"), &shard_bytes(90 + number as u32, 1));
    }
    let shards = |pattern: &str| -> Vec<String> {
        let source = setup.open(pattern, &options).unwrap();
        source.shards().map(|path| path.to_str().unwrap()[18..].to_owned()).collect()
    };
    assert_eq!(shards("s3://bucket/train/[01][0-2].tar"), ["00.tar", "01.tar", "02.tar"]);
    assert_eq!(shards("s3://bucket/train/*/*.tar"), ["sub/x.tar"]);
    assert_eq!(shards("s3://bucket/train/{a*,03}.tar"), ["a b.tar", "03.tar"]);
    assert_eq!(shards("s3://bucket/train/").len(), 5);
    for nothing in ["s3://bucket/test/", "s3://bucket/train/*.zip"] {
        let text = setup.open(nothing, &options).unwrap_err().to_string();
        assert!(text.contains("no object matches") && text.contains(nothing), "{text}");
    }
    setup.server.take_log();
    setup.open("s3://bucket/train/{00..03}.tar", &options).unwrap();
    assert!(setup.server.take_log().0.iter().all(|request| !request.path.starts_with('?')));
}

#[test]
fn secrets_in_urls_are_refused_and_not_repeated() {
    for url in [
        format!("https://me:{SECRET}@127.0.0.1/a.tar"),
        format!("https://127.0.0.1/a.tar?X-Amz-Signature={SECRET}"),
        format!("s3://key:{SECRET}@bucket/a.tar"),
    ] {
        for text in [url.clone(), format!("wds:{url}")] {
            let opened =
                text.parse::<DataSpec>().and_then(|spec| spec.open(&OpenOptions::default()));
            let message = opened.err().unwrap().to_string();
            assert!(!message.contains(SECRET), "{message}");
        }
    }
}

#[test]
fn hostile_shards_are_refused_as_on_disk() {
    let setup = Setup::new();
    let whole = shard_bytes(0, 1);
    let options = setup.options();
    for (number, bytes) in
        [&whole[..20_000], &whole[..512], &whole[3..], &[0; 4096]].iter().enumerate()
    {
        let key = format!("bad/{number}.tar");
        setup.server.put(&format!("bucket/{key}"), bytes);
        let path = setup.dir.path().join("bad");
        fs::write(&path, bytes).unwrap();
        let on_disk = WebDataset::open(path.to_str().unwrap(), DecodeLimits::default());
        let on_disk = on_disk.unwrap_err().to_string().replace(path.to_str().unwrap(), "X");
        let url = format!("s3://bucket/{key}");
        let remote = setup.open(&url, &options).unwrap_err().to_string().replace(&url, "X");
        assert_eq!(remote, on_disk);
    }
    setup.server.put("bucket/empty.tar", b"");
    assert!(setup.open("s3://bucket/empty.tar", &options).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_weather_and_any_memory_give_the_same_samples(
        faults in prop::collection::vec(0usize..16, 1..24),
        window in 1u64..40_000,
        memory in 1u64..300_000,
        order in prop::collection::vec(0u64..100, 1..60),
    ) {
        let setup = Setup::new();
        let options = RemoteOptions {
            window_bytes: window, memory_bytes: memory, max_tries: 60, ..setup.options()
        };
        let kinds = [
            Fault::Drop, Fault::Slow, Fault::ShortLength, Fault::LongLength, Fault::HalfRange,
            Fault::Status(500, "InternalError"), Fault::Close,
        ];
        let last = faults.len();
        setup.server.script(move |request| {
            let fault = faults[request.number as usize % last];
            // Every second request works, so that the tries suffice whatever was drawn.
            if request.number % 2 == 0 { Fault::None } else { *kinds.get(fault).unwrap_or(&Fault::None) }
        });
        let source = setup.open("s3://bucket/train/{00..03}.tar", &options).unwrap();
        let local = setup.local();
        for index in order {
            prop_assert_eq!(content(&source, index), content(&local, index));
        }
    }
}
