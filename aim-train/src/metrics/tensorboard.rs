//! TensorBoard event files, written by hand: three protobuf messages in TFRecord frames.
//!
//! A frame is the length (u64), the masked CRC-32C of those eight bytes, the message, its masked
//! CRC-32C. The messages are `Event { wall_time = 1, step = 2, file_version = 3, summary = 5,
//! session_log = 7 }`, `Summary { value = 1 { tag = 1, simple_value = 2 } }` and `SessionLog {
//! status = 1 }` of TensorFlow's `event.proto` and `summary.proto`.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::lock::host_name;
use crate::{TrainError, durable};

/// An event file that scalars are appended to.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Creates a new event file in a directory, which is created if need be. After a resume
    /// TensorBoard reads several files of one run: with `resume_step`, the step that was resumed
    /// from, it is told to forget what older files say of later steps.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn create(dir: &Path, resume_step: Option<u64>) -> Result<Self, TrainError> {
        durable::create_dir(dir)?;
        let (seconds, host, pid) = (now_s().floor(), host_name(), std::process::id());
        // TensorBoard reads the files in the order of their names.
        let mut taken = 0;
        let (file, path) = loop {
            let name = format!("events.out.tfevents.{seconds:010}.{host}.{pid}.{taken}");
            let path = dir.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && taken < 1000 => {
                    taken += 1;
                }
                Err(source) => return Err(TrainError::io("create", &path, source)),
            }
        };
        let mut writer = Self { file: BufWriter::new(file), path };
        let mut version = event(now_s(), 0);
        field_bytes(&mut version, 3, b"brain.Event:2");
        writer.record(&version)?;
        if let Some(step) = resume_step {
            let mut restart = event(now_s(), step.saturating_add(1));
            // SessionLog.status = START.
            field_bytes(&mut restart, 7, &[0x08, 0x01]);
            writer.record(&restart)?;
        }
        writer.flush()?;
        Ok(writer)
    }

    /// The file that is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one value.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<(), TrainError> {
        self.scalars(step, &[(tag, value)])
    }

    /// Adds values of one step, by tag. They reach the file at the latest with
    /// [`EventWriter::flush`].
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<(), TrainError> {
        self.record(&scalars_event(now_s(), step, values))
    }

    /// Hands everything to the system, so that TensorBoard sees it.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn flush(&mut self) -> Result<(), TrainError> {
        self.file.flush().map_err(|source| TrainError::io("write", &self.path, source))
    }

    /// Makes everything last.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn sync(&mut self) -> Result<(), TrainError> {
        self.flush()?;
        durable::sync_file(self.file.get_ref(), &self.path)
    }

    fn record(&mut self, message: &[u8]) -> Result<(), TrainError> {
        let written = self.file.write_all(&frame(message));
        written.map_err(|source| TrainError::io("write", &self.path, source))
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A TFRecord frame.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(message.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc32c(&length).to_le_bytes());
    bytes.extend(message);
    bytes.extend(masked_crc32c(message).to_le_bytes());
    bytes
}

/// An `Event` with its time and step, to which one more field is added.
fn event(wall_time_s: f64, step: u64) -> Vec<u8> {
    let mut message = vec![1 << 3 | 1];
    message.extend(wall_time_s.to_le_bytes());
    message.push(2 << 3);
    varint(&mut message, step);
    message
}

fn scalars_event(wall_time_s: f64, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut entry = Vec::new();
        field_bytes(&mut entry, 1, tag.as_bytes());
        entry.push(2 << 3 | 5);
        entry.extend(value.to_le_bytes());
        field_bytes(&mut summary, 1, &entry);
    }
    let mut message = event(wall_time_s, step);
    field_bytes(&mut message, 5, &summary);
    message
}

/// A length-delimited field.
fn field_bytes(message: &mut Vec<u8>, number: u8, content: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Checksums of data that itself holds checksums are rotated and offset.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected), a byte at a time: a step has a few hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_check_values() {
        // RFC 3720, appendix B.4, and the usual check string.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn varints() {
        for (value, expected) in
            [(0, vec![0]), (127, vec![127]), (128, vec![0x80, 1]), (300, vec![0xac, 2])]
        {
            let mut bytes = Vec::new();
            varint(&mut bytes, value);
            assert_eq!(bytes, expected);
        }
    }

    #[test]
    fn messages_are_those_of_event_proto() {
        let bytes = scalars_event(1.0, 300, &[("loss", 0.5)]);
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..], // wall_time = 1.0
            &[0x10, 0xac, 0x02],                       // step = 300
            &[0x2a, 13, 0x0a, 11],                     // summary, value
            &[0x0a, 4, b'l', b'o', b's', b's'],        // tag
            &[0x15, 0, 0, 0, 0x3f],                    // simple_value = 0.5
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_resumed_run_adds_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = EventWriter::create(dir.path(), None).unwrap();
        first.scalar(1, "loss", 0.5).unwrap();
        first.sync().unwrap();
        let second = EventWriter::create(dir.path(), Some(7)).unwrap();
        let bytes = std::fs::read(second.path()).unwrap();
        assert_ne!(first.path(), second.path());
        // The first frame: 26 bytes of file version.
        assert_eq!(bytes[..8], 26u64.to_le_bytes());
        assert!(bytes[12..38].ends_with(b"brain.Event:2"));
        // The second: step 8, session log.
        assert!(bytes[..bytes.len() - 4].ends_with(&[0x10, 8, 0x3a, 2, 0x08, 0x01]));
        let name = first.path().file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("events.out.tfevents.") && name.contains(&host_name()), "{name}");
    }
}
