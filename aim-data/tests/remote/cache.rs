//! The cache of whole shards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aim_data::remote::RemoteOptions;
use aim_data::source::Source;

use crate::server::{Fault, Server};
use crate::{
    PER_SHARD, SHARDS, Setup, assert_same, bad_weather, content, epoch, folder_bytes, shard_bytes,
};

const PATTERN: &str = "s3://bucket/train/{00..03}.tar";

fn total() -> u64 {
    (0..SHARDS).map(|shard| shard_bytes(shard, 1).len() as u64).sum()
}

/// Options that make a client of their own, as another process has one.
fn other_process(options: &RemoteOptions, number: u32) -> RemoteOptions {
    RemoteOptions { max_tries: options.max_tries + number, ..options.clone() }
}

fn cached_files(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "shard")).collect()
}

#[test]
fn a_cached_shard_is_fetched_once_and_checked_when_opened() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    let options = setup.options().with_cache(dir.path());
    setup.server.script(bad_weather);
    let expected = epoch(setup.local(), 1).unwrap();
    assert!(epoch(setup.open(PATTERN, &options).unwrap(), 3).unwrap() == expected);
    assert_eq!(cached_files(dir.path()).len(), SHARDS as usize);
    setup.server.script(|request| match request.head {
        true => Fault::None,
        false => Fault::Status(500, "InternalError"),
    });
    setup.server.take_log();
    let second = setup.open(PATTERN, &other_process(&options, 1)).unwrap();
    assert!(epoch(second, 3).unwrap() == expected);
    // Damage of any kind is found, and the shard fetched again.
    setup.server.script(|_| Fault::None);
    let files = cached_files(dir.path());
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[5000] ^= 1;
    fs::write(&files[0], &bytes).unwrap();
    fs::write(&files[1], &bytes[..700]).unwrap();
    fs::write(&files[2], b"").unwrap();
    setup.server.take_log();
    let third = setup.open(PATTERN, &other_process(&options, 2)).unwrap();
    assert_same(&third, &setup.local());
    let (_, sent) = setup.server.take_log();
    assert!(sent > total() / 2 && sent < total(), "{sent} of {}", total());
    assert_eq!(folder_bytes(dir.path(), &["part"]), 0);
}

#[test]
fn the_bound_holds_and_the_least_recently_used_goes() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    // Two and a half shards.
    let cache_bytes = total() * 5 / 8;
    let options = RemoteOptions { cache_bytes, ..setup.options().with_cache(dir.path()) };
    // Files of others are not ours to remove, and a dead process's unfinished one is.
    fs::write(dir.path().join("notes.shard"), vec![0; 1 << 20]).unwrap();
    let dead = dir.path().join(format!("{}.part", "0".repeat(32)));
    fs::write(&dead, vec![0; 1 << 20]).unwrap();
    let source = setup.open(PATTERN, &options).unwrap();
    let local = setup.local();
    let mut most = 0;
    for round in 0..3 {
        for index in 0..source.len() {
            assert_eq!(content(&source, index), content(&local, index), "round {round}");
            if index % 5 == 0 {
                most = most.max(folder_bytes(dir.path(), &["shard", "part"]) - (1 << 20));
            }
        }
    }
    assert!(most <= cache_bytes && most > cache_bytes / 2, "{most} of {cache_bytes}");
    assert!(!dead.exists() && dir.path().join("notes.shard").exists());
    // The last two shards are there, the first is not: it costs requests, they do not.
    setup.server.take_log();
    let last = u64::from(PER_SHARD * 3);
    content(&source, last);
    content(&source, last - 1);
    assert_eq!(setup.server.take_log().1, 0);
    // A shard larger than the whole cache is read without it.
    let small = tempfile::tempdir().unwrap();
    let options = RemoteOptions { cache_bytes: 5000, ..setup.options().with_cache(small.path()) };
    assert_same(&setup.open(PATTERN, &options).unwrap(), &local);
    assert!(cached_files(small.path()).is_empty());
}

/// Runs as a process of its own in `several_processes_share_a_folder`; alone it does nothing.
#[test]
fn child() {
    let Ok(text) = std::env::var("AIM_TEST_CACHE_CHILD") else {
        return;
    };
    let (port, dir) = text.split_once(' ').unwrap();
    let setup = Setup::new();
    let mut options = setup.options().with_cache(dir);
    options.settings[0].1 = format!("http://127.0.0.1:{port}");
    options.cache_bytes = total() * 5 / 8;
    for _ in 0..2 {
        assert_same(&setup.open(PATTERN, &options).unwrap(), &setup.local());
    }
}

#[test]
fn several_processes_share_a_folder() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    setup.server.script(|request| match request.number % 4 {
        0 => Fault::Slow,
        _ => Fault::None,
    });
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::child", "--nocapture"])
            .env("AIM_TEST_CACHE_CHILD", format!("{} {}", setup.server.port, dir.path().display()))
            .output()
    };
    std::thread::scope(|scope| {
        let children: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
        for child in children {
            let output = child.join().unwrap().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
        }
    });
    assert!(folder_bytes(dir.path(), &["shard", "part"]) <= total() * 5 / 8);
    let _ = Server::start();
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_at_once() {
    let setup = Setup::new();
    let file = setup.dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = setup.open(PATTERN, &setup.options().with_cache(&file)).unwrap_err().to_string();
    assert!(error.contains("cannot create") && error.contains("file"), "{error}");
}
