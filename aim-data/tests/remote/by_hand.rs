//! The same against a complete S3 server: `pip install 'moto[server]'`, then
//!
//! ```text
//! moto_server -H 127.0.0.1 -p 5555 &
//! AIM_TEST_S3_PORT=5555 cargo test -p aim-data --features object-store --test remote -- --ignored
//! ```

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use aim_data::remote::{RemoteErrorKind, RemoteOptions};
use aim_data::source::Source;

use crate::{Setup, assert_same, epoch, refused};

/// Puts an object, or makes a bucket; moto asks for no signature.
fn put(port: u16, path: &str, body: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "PUT /{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n")
        .unwrap();
    write!(stream, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") || answer.contains("BucketAlready"), "{answer}");
}

#[test]
#[ignore = "needs a server: see the head of the file"]
fn a_complete_server_gives_what_the_disk_gives() {
    let port: u16 = std::env::var("AIM_TEST_S3_PORT").unwrap().parse().unwrap();
    let setup = Setup::new();
    put(port, "bucket", b"");
    for entry in fs::read_dir(setup.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        put(port, &format!("bucket/train/{name}"), &fs::read(&path).unwrap());
    }
    let mut options = setup.options();
    options.settings[0].1 = format!("http://127.0.0.1:{port}");
    options.stall_timeout = std::time::Duration::from_secs(10);
    let local = setup.local();
    for pattern in ["s3://bucket/train/{00..03}.tar", "s3://bucket/train/", "s3://bucket/t*/0?.tar"]
    {
        let source = setup.open(pattern, &options).unwrap();
        assert_eq!(source.len(), local.len());
        assert_same(&source, &local);
    }
    let expected = epoch(setup.local(), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for options in [
        RemoteOptions { memory_bytes: 32 << 10, ..options.clone() },
        options.clone().with_cache(dir.path()),
    ] {
        let source = setup.open("s3://bucket/train/{00..03}.tar", &options).unwrap();
        assert!(epoch(source, 3).unwrap() == expected);
    }
    for (pattern, word) in [
        ("s3://bucket/train/04.tar", "NoSuchKey"),
        ("s3://no-such-bucket/train/04.tar", "NoSuchBucket"),
        ("s3://no-such-bucket/train/*.tar", "NoSuchBucket"),
    ] {
        let error = refused(&setup, pattern, &options);
        assert_eq!((error.kind, error.tries), (RemoteErrorKind::Missing, 1), "{error}");
        assert!(error.reason.contains(word), "{error}");
    }
}
