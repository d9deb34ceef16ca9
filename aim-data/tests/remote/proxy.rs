//! A proxy that spoils the weather between the client and a complete server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that pass before a connection is dropped: the head of an answer and some of its body.
const SOME: usize = 3000;

/// Every third request fails: with a status, by a connection that drops in the middle of the body, or it crawls.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    requests: Arc<AtomicU64>,
}

impl Proxy {
    /// In front of the server at `upstream`.
    pub(crate) fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self { port: listener.local_addr().unwrap().port(), requests: Arc::default() };
        let requests = Arc::clone(&this.requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = requests.fetch_add(1, Ordering::Relaxed);
                // A client or a server that goes away ends its connection, nothing else.
                std::thread::spawn(move || drop(pass(stream, upstream, number)));
            }
        });
        this
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// One request and its answer; each has a connection of its own.
fn pass(mut client: TcpStream, upstream: u16, number: u64) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if number % 9 == 1 {
        return client
            .write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    server.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    let (mut passed, mut buffer) = (0, [0; 1024]);
    loop {
        let read = server.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        client.write_all(&buffer[..read])?;
        passed += read;
        match number % 9 {
            4 if passed >= SOME => return Ok(()),
            7 => std::thread::sleep(Duration::from_millis(5)),
            _ => {}
        }
    }
}
