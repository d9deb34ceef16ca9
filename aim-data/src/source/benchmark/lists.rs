//! What reading lists has in common: finding the folder, bounded reading, tables.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::open_regular;

/// Largest list or MAT file that is read into memory.
const MAX_TEXT: u64 = 256 << 20;
/// Largest table or JSON file, which are read as streams.
const MAX_STREAM: u64 = 2 << 30;
/// Most classes of a data set: what a list says must not decide how much memory is taken.
pub(super) const MAX_CLASSES: usize = 1 << 20;

/// The error for a format that is not followed.
pub(super) fn bad(path: &Path) -> impl Fn(String) -> Error + '_ {
    move |reason| Error::Format { path: path.to_owned(), offset: 0, reason }
}

/// A line of a list for a message.
pub(super) fn at_line(number: usize, line: &str, expected: &str) -> String {
    let shown: String = line.chars().take(60).collect();
    format!("line {}: expected {expected}, found `{}`", number + 1, shown.escape_debug())
}

/// The folder that holds one of `markers`: `path` itself or one of its `inner` folders.
pub(super) fn root(path: &Path, inner: &[&str], markers: &[&str]) -> Result<PathBuf> {
    let folders = std::iter::once(path.to_owned()).chain(inner.iter().map(|name| path.join(name)));
    for folder in folders {
        if markers.iter().any(|marker| folder.join(marker).exists()) {
            return Ok(folder);
        }
    }
    Err(missing(path, markers))
}

/// The first of several files of a folder that is there.
pub(super) fn file(root: &Path, names: &[&str]) -> Result<PathBuf> {
    let found = names.iter().map(|name| root.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| missing(root, names))
}

fn missing(folder: &Path, names: &[&str]) -> Error {
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .take(1000)
        .collect();
    found.sort();
    let more = if found.len() > 8 { ", …" } else { "" };
    found.truncate(8);
    let found = match (folder.is_dir(), found.is_empty()) {
        (false, _) => "no such folder".to_owned(),
        (true, true) => "an empty folder".to_owned(),
        (true, false) => format!("{}{more}", found.join(", ")),
    };
    let reason = format!("expected {}; found {found}", names.join(" or "));
    Error::Empty { location: folder.display().to_string(), reason }
}

/// A whole file, of a size that lists have.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    if length > MAX_TEXT {
        return Err(bad(path)(format!("{length} bytes, at most {MAX_TEXT} are accepted")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// A whole text; bytes that are no UTF-8 become replacement characters.
pub(super) fn text(path: &Path) -> Result<String> {
    let text = String::from_utf8_lossy(&bytes(path)?).into_owned();
    // Lists written on Windows may begin with a byte order mark.
    Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
}

/// Lines that are not empty, with their numbers from 0, without space around them.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty())
}

/// A file to read as a stream.
pub(super) fn stream(path: &Path) -> Result<BufReader<std::io::Take<File>>> {
    let (file, length) = open_regular(path)?;
    if length > MAX_STREAM {
        return Err(bad(path)(format!("{length} bytes, at most {MAX_STREAM} are accepted")));
    }
    Ok(BufReader::new(file.take(MAX_STREAM)))
}

/// Reads a table with a header line, giving the chosen columns of each row in the order asked for.
///
/// # Errors
/// A text naming the line for a row that has not as many columns as the header, or that `row`
/// refuses, and naming the columns that are missing.
pub(super) fn table<const N: usize>(
    reader: impl Read,
    columns: [&str; N],
    mut row: impl FnMut(u64, [&str; N]) -> Result<(), String>,
) -> Result<(), String> {
    let mut reader = csv::ReaderBuilder::new().from_reader(reader);
    let header = reader.byte_headers().map_err(|error| error.to_string())?;
    let mut places = [0; N];
    for (place, name) in places.iter_mut().zip(columns) {
        let found = header.iter().position(|found| found.trim_ascii() == name.as_bytes());
        *place = found.ok_or_else(|| {
            let names: Vec<_> = header.iter().take(12).map(String::from_utf8_lossy).collect();
            let shown: String = names.join(", ").chars().take(200).collect();
            format!("expected a column `{name}`, found {}", shown.escape_debug())
        })?;
    }
    let mut record = csv::ByteRecord::new();
    let mut number = 0;
    while reader.read_byte_record(&mut record).map_err(|error| error.to_string())? {
        let line = record.position().map_or(0, csv::Position::line);
        let mut values = [""; N];
        for (value, place) in values.iter_mut().zip(places) {
            let found = record.get(place).map(|bytes| std::str::from_utf8(bytes.trim_ascii()));
            *value = found
                .and_then(Result::ok)
                .ok_or_else(|| format!("line {line}: a value that is no UTF-8"))?;
        }
        row(number, values).map_err(|reason| format!("line {line}: {reason}"))?;
        number += 1;
    }
    Ok(())
}

/// A class number out of a table.
pub(super) fn class(text: &str) -> Result<u32, String> {
    let class = text.parse().ok().filter(|&class: &u32| (class as usize) < MAX_CLASSES);
    class.ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        format!("`{}`: expected a class number", shown.escape_debug())
    })
}

/// `count` class names: those given, else the numbers.
pub(super) fn named(count: usize, names: impl IntoIterator<Item = (u32, String)>) -> Vec<String> {
    let mut all: Vec<String> = (0..count).map(|class| class.to_string()).collect();
    for (class, name) in names {
        if let Some(slot) = all.get_mut(class as usize) {
            *slot = name;
        }
    }
    all
}
