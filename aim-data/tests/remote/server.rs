//! A small S3 and web server on loopback that misbehaves as a script says.
//!
//! It speaks as much HTTP/1.1 as reading shards takes: GET with a range and `If-Match`, HEAD, and
//! `ListObjectsV2` in pages. It checks no signatures; `complete.rs` has a complete server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Objects named in one page of a listing.
const PAGE: usize = 2;

/// What to do to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// This status with this code in an XML body.
    Status(u16, &'static str),
    /// Close without an answer.
    Close,
    /// Something that is no HTTP.
    Garbage,
    /// Close in the middle of the body.
    Drop,
    /// Silence in the middle of the body.
    Stall,
    /// The body in pieces with pauses.
    Slow,
    /// Half of the range, correctly declared.
    HalfRange,
    /// A longer `Content-Length` than the body has.
    LongLength,
    /// A shorter `Content-Length` than the body has.
    ShortLength,
    /// The whole object with status 200.
    Whole,
    /// A `Content-Range` at the end of what 64 bits can name.
    Absurd,
    /// One piece after the other, never silent and never done in time.
    Trickle,
}

/// A request as the script sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) number: u64,
    pub(crate) head: bool,
    /// `bucket/key`, or `?` and the prefix for a listing.
    pub(crate) path: String,
    pub(crate) range: Option<Range<u64>>,
}

type Script = Box<dyn Fn(&Request) -> Fault + Send>;

struct State {
    objects: BTreeMap<String, (Arc<Vec<u8>>, String)>,
    script: Script,
    log: Vec<Request>,
    sent: u64,
}

pub(crate) struct Server {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (objects, script) = (BTreeMap::new(), Box::new(|_: &Request| Fault::None));
        let state = State { objects, script, log: Vec::new(), sent: 0 };
        let this = Self { port, state: Arc::new(Mutex::new(state)), stop: Arc::default() };
        let (state, stop) = (Arc::clone(&this.state), Arc::clone(&this.stop));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
                if let Ok(stream) = stream {
                    // A client that goes away ends its connection, nothing else.
                    std::thread::spawn(move || drop(serve(stream, &state, &stop)));
                }
            }
        });
        this
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let tag = bytes.iter().fold(bytes.len() as u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let object = (Arc::new(bytes.to_vec()), format!("\"{tag:016x}\""));
        self.state.lock().unwrap().objects.insert(path.to_owned(), object);
    }

    pub(crate) fn script(&self, script: impl Fn(&Request) -> Fault + Send + 'static) {
        self.state.lock().unwrap().script = Box::new(script);
    }

    /// Requests since the last call, and the bytes of bodies sent.
    pub(crate) fn take_log(&self) -> (Vec<Request>, u64) {
        let mut state = self.state.lock().unwrap();
        (std::mem::take(&mut state.log), std::mem::take(&mut state.sent))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// Serves one connection until the client or a fault closes it.
fn serve(mut stream: TcpStream, state: &Mutex<State>, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let head = words.next() == Some("HEAD");
        let target = words.next().unwrap_or_default().trim_start_matches('/').to_owned();
        let (mut range, mut if_match) = (None, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(": ") else {
                break;
            };
            match name.to_lowercase().as_str() {
                "range" => {
                    let (start, end) = value.trim_start_matches("bytes=").split_once('-').unwrap();
                    range = Some(start.parse().unwrap()..end.parse::<u64>().unwrap() + 1);
                }
                "if-match" => if_match = Some(value.to_owned()),
                _ => {}
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let path = decoded(path);
        let listing = query.contains("list-type=2") || query.contains("comp=list");
        let path = if listing { format!("?{}", parameter(query, "prefix")) } else { path };
        let (fault, object, keys) = {
            let mut state = state.lock().unwrap();
            let number = state.log.len() as u64;
            let request = Request { number, head, path: path.clone(), range: range.clone() };
            let fault = (state.script)(&request);
            state.log.push(request);
            let keys: Vec<Listed> = state
                .objects
                .iter()
                .map(|(key, (bytes, tag))| (key.clone(), bytes.len(), tag.clone()))
                .collect();
            (fault, state.objects.get(&path).cloned(), keys)
        };
        match fault {
            Fault::Close => return Ok(()),
            Fault::Garbage => return stream.write_all(b"\x16\x03\x01 no http\r\n\r\n"),
            Fault::Status(status, code) => {
                refuse(&mut stream, status, code, head)?;
                continue;
            }
            _ => {}
        }
        if listing {
            let body = list(&keys, &target, query);
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
            continue;
        }
        match object {
            None => refuse(&mut stream, 404, "NoSuchKey", head)?,
            Some((_, tag)) if if_match.is_some_and(|wanted| wanted != tag) => {
                refuse(&mut stream, 412, "PreconditionFailed", head)?;
            }
            Some((bytes, tag)) => {
                let sent = answer(&mut stream, &bytes, &tag, range, head, fault)?;
                state.lock().unwrap().sent += sent;
                if !matches!(fault, Fault::None | Fault::Slow | Fault::HalfRange | Fault::Whole) {
                    return Ok(());
                }
            }
        }
    }
}

fn refuse(stream: &mut TcpStream, status: u16, code: &str, head: bool) -> std::io::Result<()> {
    let body = format!("<Error><Code>{code}</Code><Message>as scripted</Message></Error>");
    let body = if head { String::new() } else { body };
    write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Sends an object or part of it; returns how many bytes of it.
fn answer(
    stream: &mut TcpStream,
    bytes: &[u8],
    tag: &str,
    range: Option<Range<u64>>,
    head: bool,
    fault: Fault,
) -> std::io::Result<u64> {
    let total = bytes.len() as u64;
    let partial = range.is_some() && fault != Fault::Whole;
    let mut range = range.filter(|_| partial).unwrap_or(0..total);
    range.end = range.end.min(total);
    if range.start >= range.end {
        refuse(stream, 416, "InvalidRange", head)?;
        return Ok(0);
    }
    if fault == Fault::HalfRange && !head {
        range.end = range.start + (range.end - range.start).div_ceil(2);
    }
    let body = &bytes[range.start as usize..range.end as usize];
    let length = match fault {
        _ if head => body.len(),
        Fault::LongLength => body.len() + 100,
        Fault::ShortLength => body.len() / 2,
        _ => body.len(),
    };
    let status = if partial { "206 Partial Content" } else { "200 OK" };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: {tag}\r\n")?;
    write!(stream, "Last-Modified: Tue, 01 Jul 2025 10:00:00 GMT\r\n")?;
    match fault {
        Fault::Absurd => write!(stream, "Content-Range: bytes 0-{}/{total}\r\n", u64::MAX)?,
        _ if partial => {
            let Range { start, end } = range;
            write!(stream, "Content-Range: bytes {start}-{}/{total}\r\n", end - 1)?;
        }
        _ => {}
    }
    write!(stream, "\r\n")?;
    if head {
        return Ok(0);
    }
    let half = body.len() / 2;
    match fault {
        Fault::Drop => stream.write_all(&body[..half])?,
        Fault::Stall => {
            stream.write_all(&body[..half])?;
            std::thread::sleep(Duration::from_secs(2));
        }
        Fault::Slow => {
            for piece in body.chunks(body.len().div_ceil(4)) {
                stream.write_all(piece)?;
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        Fault::Trickle => {
            for byte in body.chunks(1) {
                stream.write_all(byte)?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        _ => stream.write_all(body)?,
    }
    Ok(body.len() as u64)
}

fn parameter(query: &str, name: &str) -> String {
    let mut parts = query.split('&').filter_map(|part| part.split_once('='));
    let value = parts.find(|(found, _)| *found == name).map_or("", |(_, value)| value);
    decoded(value)
}

/// Without percent encoding: Google's client encodes even dots.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
        out += &part[2..];
    }
    out
}

/// Key, size and tag.
type Listed = (String, usize, String);

/// One page of a listing of `bucket?query`, as S3 and Google write it, or Azure, which leaves out the tags' quotes.
fn list(keys: &[Listed], target: &str, query: &str) -> String {
    let bucket = format!("{}/", target.split('?').next().unwrap().trim_end_matches('/'));
    let azure = query.contains("comp=list");
    let token = if azure { "marker" } else { "continuation-token" };
    let (prefix, after) = (parameter(query, "prefix"), parameter(query, token));
    let mut found = keys
        .iter()
        .filter_map(|(key, size, tag)| Some((key.strip_prefix(&bucket)?, size, tag)))
        .filter(|(key, ..)| key.starts_with(&prefix) && *key > after.as_str());
    let page: Vec<_> = found.by_ref().take(PAGE).collect();
    let more = found.next().is_some();
    let next = page.last().filter(|_| more).map_or("", |(last, ..)| last);
    if azure {
        let blob = |(key, size, tag): &(&str, &usize, &String)| {
            format!(
                "<Blob><Name>{key}</Name><Properties><Content-Length>{size}</Content-Length>\
                 <Last-Modified>Tue, 01 Jul 2025 10:00:00 GMT</Last-Modified>\
                 <Content-Type>application/x-tar</Content-Type><Etag>{}</Etag></Properties></Blob>",
                tag.trim_matches('"')
            )
        };
        let blobs: String = page.iter().map(blob).collect();
        return format!(
            "<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{next}</NextMarker>\
             </EnumerationResults>"
        );
    }
    let object = |(key, size, tag): &(&str, &usize, &String)| {
        format!(
            "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{tag}</ETag>\
             <LastModified>2025-07-01T10:00:00.000Z</LastModified></Contents>"
        )
    };
    let objects: String = page.iter().map(object).collect();
    let next = match next {
        "" => String::new(),
        next => format!("<NextContinuationToken>{next}</NextContinuationToken>"),
    };
    format!("<ListBucketResult><IsTruncated>{more}</IsTruncated>{objects}{next}</ListBucketResult>")
}
