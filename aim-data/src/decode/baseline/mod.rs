//! Part of a baseline JPEG, without computing the rest.
//!
//! Most photographs on the web are baseline JPEGs of three components in one scan, and training
//! takes a random part of each. Entropy coding has no landmarks, so that everything above and
//! beside the part is still read; but only the part is dequantised, transformed, upsampled and
//! converted, and nothing below it is looked at. What comes out is to the bit what libjpeg-turbo
//! (and so Pillow) makes of those pixels: its "islow" inverse transform, its triangle filter for
//! chroma, its fixed-point colour conversion.
//!
//! Every other file (progressive, CMYK, gray, other samplings, several scans) and every defect is
//! left to the general decoder: [`Header::parse`] and [`Header::decode`] answer `None`.

mod huffman;
mod pixels;
mod transform;
#[cfg(target_arch = "x86_64")]
mod transform_x86;

use std::cell::RefCell;

use huffman::{BitReader, Codes};
use transform::{inverse, inverse_flat};

/// Bytes of working memory kept from one image to the next; a larger image gives its own back.
const KEPT: usize = 16 << 20;

/// Size of a frame, and all that its scan needs.
pub(super) struct Header<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    /// The payload of the EXIF segment, after its `Exif\0\0`.
    pub(super) exif: Option<&'a [u8]>,
    /// Luma samples per chroma sample, across and down.
    sampling: (usize, usize),
    components: [Component; 3],
    quantisation: [Option<[u16; 64]>; 4],
    codes: [Option<&'a [u8]>; 8],
    restart_interval: usize,
    scan: &'a [u8],
}

#[derive(Clone, Copy, Default)]
struct Component {
    id: u8,
    sampling: u8,
    quantisation: usize,
    dc: usize,
    ac: usize,
}

/// A rectangle of pixels: left, top, width, height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Working memory, kept from one image to the next.
#[derive(Default)]
struct Scratch {
    entropy: Vec<u8>,
    segments: Vec<usize>,
    codes: [Codes; 8],
    planes: [Vec<u8>; 3],
    rows: pixels::Rows,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn be16(bytes: &[u8]) -> Option<usize> {
    Some(usize::from(*bytes.first()?) << 8 | usize::from(*bytes.get(1)?))
}

impl<'a> Header<'a> {
    /// Reads the segments up to the scan; `None` for a file that is not of this kind.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut this = Self {
            width: 0,
            height: 0,
            exif: None,
            sampling: (1, 1),
            components: Default::default(),
            quantisation: [None; 4],
            codes: [None; 8],
            restart_interval: 0,
            scan: &[],
        };
        let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
        loop {
            let (marker, after) = (rest.get(..2)?, rest.get(2..)?);
            let (0xff, code) = (marker[0], marker[1]) else { return None };
            if code == 0xff {
                rest = &rest[1..];
                continue;
            }
            let len = be16(after)?;
            let segment = after.get(2..len)?;
            rest = &after[len..];
            match code {
                0xc0 | 0xc1 => this.frame(segment)?,
                0xc4 => this.huffman_tables(segment)?,
                0xdb => this.quantisation_tables(segment)?,
                0xdd => this.restart_interval = be16(segment)?,
                0xda => {
                    this.scan_header(segment)?;
                    this.scan = rest;
                    return Some(this);
                }
                0xe1 if this.exif.is_none() => this.exif = segment.strip_prefix(b"Exif\0\0"),
                // Adobe's segment: only YCbCr is of this kind.
                0xee if segment.starts_with(b"Adobe") && segment.get(11) != Some(&1) => {
                    return None;
                }
                0xe0..=0xef | 0xfe => {}
                _ => return None,
            }
        }
    }

    fn frame(&mut self, segment: &[u8]) -> Option<()> {
        if self.width != 0 || segment.len() != 15 || segment[0] != 8 || segment[5] != 3 {
            return None;
        }
        self.height = be16(&segment[1..])?;
        self.width = be16(&segment[3..])?;
        for (component, fields) in self.components.iter_mut().zip(segment[6..].chunks_exact(3)) {
            component.id = fields[0];
            component.sampling = fields[1];
            component.quantisation = usize::from(fields[2]);
        }
        let [y, cb, cr] = self.components.map(|component| component.sampling);
        self.sampling = match y {
            0x11 => (1, 1),
            0x21 => (2, 1),
            0x22 => (2, 2),
            _ => return None,
        };
        // Other identifiers can mean RGB.
        let ids = self.components.map(|component| component.id);
        let chroma_width = self.width.div_ceil(self.sampling.0);
        let usual = ids == [1, 2, 3] && (cb, cr) == (0x11, 0x11);
        (usual && self.width > 0 && self.height > 0 && chroma_width > 2).then_some(())
    }

    fn huffman_tables(&mut self, mut segment: &'a [u8]) -> Option<()> {
        while !segment.is_empty() {
            let (class, number) = (segment[0] >> 4, usize::from(segment[0] & 15));
            let counts = segment.get(1..17)?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            if class > 1 || number > 3 || total > 256 {
                return None;
            }
            let table = segment.get(1..17 + total)?;
            self.codes[usize::from(class) * 4 + number] = Some(table);
            segment = &segment[17 + total..];
        }
        Some(())
    }

    fn quantisation_tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&kind, values)) = segment.split_first() {
            // Twelve-bit tables belong to other kinds of file.
            if kind > 3 {
                return None;
            }
            let values = values.first_chunk::<64>()?;
            self.quantisation[usize::from(kind)] = Some(values.map(u16::from));
            segment = &segment[65..];
        }
        Some(())
    }

    fn scan_header(&mut self, segment: &[u8]) -> Option<()> {
        if self.width == 0 || segment.len() != 10 || segment[0] != 3 || segment[7..] != [0, 63, 0] {
            return None;
        }
        for (component, fields) in self.components.iter_mut().zip(segment[1..].chunks_exact(2)) {
            (component.dc, component.ac) =
                (usize::from(fields[1] >> 4), usize::from(fields[1] & 15));
            let known = component.dc < 4
                && component.ac < 4
                && fields[0] == component.id
                && component.quantisation < 4;
            if !known
                || self.codes[component.dc].is_none()
                || self.codes[4 + component.ac].is_none()
                || self.quantisation[component.quantisation].is_none()
            {
                return None;
            }
        }
        Some(())
    }

    /// Decodes an area (inside the frame) to RGB.
    ///
    /// `None` for entropy coding that is broken where it was read, and for further scans.
    pub(super) fn decode(&self, area: Area, out: &mut Vec<u8>) -> Option<()> {
        SCRATCH.with_borrow_mut(|scratch| self.decode_with(area, scratch, out))
    }

    fn decode_with(&self, area: Area, scratch: &mut Scratch, out: &mut Vec<u8>) -> Option<()> {
        unstuff(self.scan, &mut scratch.entropy, &mut scratch.segments)?;
        for (codes, table) in scratch.codes.iter_mut().zip(self.codes) {
            if let Some(table) = table {
                codes.compute(table)?;
            }
        }
        let grid = Grid::new(self, area);
        let sizes = [grid.luma_len(self.sampling), grid.chroma_len(), grid.chroma_len()];
        for (plane, size) in scratch.planes.iter_mut().zip(sizes) {
            plane.resize(size, 0);
        }
        let Scratch { entropy, segments, codes, planes, rows } = scratch;
        let scan = Scan { header: self, grid: &grid, entropy, segments, codes, planes };
        pulp::Arch::new().dispatch(scan)?;
        let frame = pixels::Frame {
            size: (self.width, self.height),
            sampling: self.sampling,
            origin: (grid.columns.start * 8, grid.rows.start * 8),
            stride: (grid.columns.end - grid.columns.start) * 8,
        };
        out.resize(area.width * area.height * 3, 0);
        pulp::Arch::new().dispatch(pixels::Convert { frame, planes, area, rows, out });
        if planes[0].capacity() + entropy.capacity() > KEPT {
            *scratch = Scratch::default();
        }
        Some(())
    }
}

/// Which minimum coded units an area needs.
struct Grid {
    across: usize,
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

impl Grid {
    fn new(header: &Header<'_>, area: Area) -> Self {
        let (horizontal, vertical) = header.sampling;
        let across = header.width.div_ceil(8 * horizontal);
        let down = header.height.div_ceil(8 * vertical);
        // Chroma is interpolated from its neighbours, one sample on each side.
        let range = |start: usize, len: usize, sampling: usize, most: usize| {
            let margin = usize::from(sampling == 2);
            let first = (start / sampling).saturating_sub(margin) / 8;
            let last = ((start + len - 1) / sampling + margin) / 8;
            first..(last + 1).min(most)
        };
        Self {
            across,
            columns: range(area.left, area.width, horizontal, across),
            rows: range(area.top, area.height, vertical, down),
        }
    }

    fn chroma_len(&self) -> usize {
        self.columns.len() * self.rows.len() * 64
    }

    fn luma_len(&self, (horizontal, vertical): (usize, usize)) -> usize {
        self.chroma_len() * horizontal * vertical
    }
}

/// Takes out the zeros after `FF` and cuts at restart markers. Each segment's end is kept, and
/// zeros follow the last so that a reader can look ahead.
fn unstuff(scan: &[u8], out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Option<()> {
    out.clear();
    ends.clear();
    let mut rest = scan;
    loop {
        let at = position_of_ff(rest)?;
        out.extend_from_slice(&rest[..at]);
        match rest.get(at + 1)? {
            0 => out.push(0xff),
            0xd0..=0xd7 => {
                ends.push(out.len());
                out.extend_from_slice(&[0; 8]);
            }
            0xff => {
                rest = &rest[at + 1..];
                continue;
            }
            0xd9 => {
                ends.push(out.len());
                out.extend_from_slice(&[0; 16]);
                return Some(());
            }
            _ => return None,
        }
        rest = &rest[at + 2..];
    }
}

fn position_of_ff(bytes: &[u8]) -> Option<usize> {
    let (words, tail) = bytes.as_chunks::<16>();
    for (at, word) in words.iter().enumerate() {
        if word.iter().fold(false, |found, &byte| found | (byte == 0xff)) {
            return word.iter().position(|&byte| byte == 0xff).map(|byte| at * 16 + byte);
        }
    }
    tail.iter().position(|&byte| byte == 0xff).map(|byte| words.len() * 16 + byte)
}

/// Reads the scan and transforms the blocks in the grid.
struct Scan<'a> {
    header: &'a Header<'a>,
    grid: &'a Grid,
    entropy: &'a [u8],
    segments: &'a [usize],
    codes: &'a [Codes; 8],
    planes: &'a mut [Vec<u8>; 3],
}

impl pulp::NullaryFnOnce for Scan<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn call(self) -> Option<()> {
        let Self { header, grid, entropy, segments, codes, planes } = self;
        let mut tables = [(&codes[0], &codes[4], [0u16; 64]); 3];
        for (table, component) in tables.iter_mut().zip(&header.components) {
            let quantisation = header.quantisation[component.quantisation]?;
            *table = (&codes[component.dc], &codes[4 + component.ac], quantisation);
        }
        let interval =
            if header.restart_interval == 0 { usize::MAX } else { header.restart_interval };
        #[cfg(target_arch = "x86_64")]
        let v3 = transform_x86::V3::try_new();
        let mut segment = 0;
        let mut bits = BitReader::new(entropy, 0, *segments.first()?);
        let mut left = interval;
        let mut predictions = [0i32; 3];
        for row in 0..grid.rows.end {
            let wanted_row = grid.rows.contains(&row);
            for column in 0..grid.across {
                if left == 0 {
                    bits.finish()?;
                    segment += 1;
                    bits = BitReader::new(
                        entropy,
                        segments.get(segment - 1)? + 8,
                        *segments.get(segment)?,
                    );
                    predictions = [0; 3];
                    left = interval;
                }
                left -= 1;
                let wanted = wanted_row && grid.columns.contains(&column);
                for (at, (dc, ac, quantisation)) in tables.iter().enumerate() {
                    let sampling = if at == 0 { header.sampling } else { (1, 1) };
                    for block in 0..sampling.0 * sampling.1 {
                        if !wanted {
                            bits.skip_block(dc, ac, &mut predictions[at])?;
                            continue;
                        }
                        let mut values = [0i16; 64];
                        let last =
                            bits.block(dc, ac, quantisation, &mut predictions[at], &mut values)?;
                        let stride = grid.columns.len() * sampling.0 * 8;
                        let x = (column - grid.columns.start) * sampling.0 + block % sampling.0;
                        let y = (row - grid.rows.start) * sampling.1 + block / sampling.0;
                        let out = planes[at].get_mut(y * 8 * stride + x * 8..)?;
                        if last == 0 {
                            inverse_flat(values[0], out, stride);
                            continue;
                        }
                        #[cfg(target_arch = "x86_64")]
                        if let Some(v3) = v3 {
                            transform_x86::inverse(v3, &values, out, stride);
                            continue;
                        }
                        inverse(&values, out, stride);
                    }
                }
            }
        }
        bits.finish()
    }
}

#[cfg(test)]
mod tests;
