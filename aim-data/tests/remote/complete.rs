//! The same against a complete S3 server: moto (`pip install 'moto[server]'`), where its `moto_server` is found.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aim_data::remote::{RemoteErrorKind, RemoteOptions};
use aim_data::source::Source;

use crate::proxy::Proxy;
use crate::{Setup, assert_same, epoch, refused};

/// A server that ends with the test.
struct Moto {
    process: Child,
    port: u16,
}

impl Moto {
    /// Starts it; `None`, with the reason printed, where there is none.
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(process) => process,
            Err(error) => {
                println!("skipped: moto_server: {error}");
                return None;
            }
        };
        let this = Self { process, port };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "moto_server does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(this)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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
fn a_complete_server_gives_what_the_disk_gives() {
    let Some(moto) = Moto::start() else { return };
    let port = moto.port;
    let setup = Setup::new();
    put(port, "bucket", b"");
    for entry in fs::read_dir(setup.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        put(port, &format!("bucket/train/{name}"), &fs::read(&path).unwrap());
    }
    let mut options = setup.options();
    options.settings[0].1 = format!("http://127.0.0.1:{port}");
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
    let proxy = Proxy::start(port);
    let mut spoiled = RemoteOptions { memory_bytes: 32 << 10, ..options.clone() };
    spoiled.settings[0].1 = format!("http://127.0.0.1:{}", proxy.port);
    let source = setup.open("s3://bucket/train/{00..03}.tar", &spoiled).unwrap();
    assert!(epoch(source, 3).unwrap() == expected);
    assert!(proxy.requests() > 40, "{} requests", proxy.requests());
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
