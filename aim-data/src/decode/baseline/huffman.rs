//! Huffman codes and the bits they are read from.

/// Bits looked up at once. Codes are at most 16 bits, nearly all that occur are shorter; four tables of this many bits
/// stay in the first-level cache beside the pixels.
const LOOK: u32 = 10;

/// Natural order of the coefficients in a scan's zigzag order.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// A table of codes, with what it was made from.
///
/// An entry of the fast table says all about a code that fits into the bits looked at:
/// `run << 16 | size of the number after it << 8 | bits of both`. 0: the code itself is longer. The number is taken from
/// the bits by arithmetic: a branch on whether it was looked up as well would be guessed wrong too often.
pub(super) struct Codes {
    source: Vec<u8>,
    fast: Box<[u32; 1 << LOOK]>,
    /// For codes of each length: one past the largest, left-aligned to 16 bits, and what to add to
    /// a code to get its place among the symbols.
    limits: [u32; 18],
    offsets: [i32; 17],
    symbols: [u8; 256],
}

/// A run that ends the block.
const END: u32 = 64;

impl Default for Codes {
    fn default() -> Self {
        Self {
            source: Vec::new(),
            fast: Box::new([0; 1 << LOOK]),
            limits: [0; 18],
            offsets: [0; 17],
            symbols: [0; 256],
        }
    }
}

impl Codes {
    /// Builds the table from a segment's 16 counts and the symbols after them, unless it has it.
    pub(super) fn compute(&mut self, table: &[u8]) -> Option<()> {
        if self.source == table {
            return Some(());
        }
        self.source.clear();
        let (counts, symbols) = table.split_at_checked(16)?;
        self.fast.fill(0);
        self.symbols = [0; 256];
        self.symbols.get_mut(..symbols.len())?.copy_from_slice(symbols);
        let (mut code, mut place) = (0u32, 0u32);
        for length in 1..=16u32 {
            let count = u32::from(counts[length as usize - 1]);
            self.offsets[length as usize] = place as i32 - code as i32;
            if code + count > 1 << length {
                return None;
            }
            if length <= LOOK {
                for number in 0..count {
                    let symbol = symbols[(place + number) as usize];
                    self.enter(code + number, length, symbol);
                }
            }
            code += count;
            place += count;
            self.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        self.limits[17] = u32::MAX;
        self.source.extend_from_slice(table);
        Some(())
    }

    /// Fills the entries that begin with a code.
    fn enter(&mut self, code: u32, length: u32, symbol: u8) {
        let spare = LOOK - length;
        let first = (code << spare) as usize;
        self.fast[first..first + (1 << spare)].fill(entry(symbol, length));
    }
}

/// What a table says of a symbol whose code has that length.
fn entry(symbol: u8, length: u32) -> u32 {
    if symbol == 0 {
        // The end of a block, or a difference of 0 among DC codes, which look at the value.
        return END << 16 | length;
    }
    let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
    run << 16 | size << 8 | (length + size)
}

impl Codes {
    /// The entry of a code that the fast table does not hold.
    #[cold]
    fn long(&self, bits: u64) -> Option<u32> {
        let code = (bits >> 48) as u32;
        let length = (LOOK + 1..=16).find(|&at| code < self.limits[at as usize])?;
        let place = (code >> (16 - length)) as i32 + self.offsets[length as usize];
        self.symbols.get(usize::try_from(place).ok()?).map(|&symbol| entry(symbol, length))
    }
}

/// A number of `size` bits as JPEG writes it: the lower half stands for negative ones.
#[inline(always)]
fn extend(bits: i32, size: u32) -> i32 {
    // All ones where the first of the bits is 0: no branch, since it is as good as random.
    let negative = ((bits << 1) >> size) - 1;
    bits + (negative & (1 - (1 << size)))
}

/// Reads bits of one segment, most significant first.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    /// Bits not read yet, at the top, and how many.
    bits: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize, end: usize) -> Self {
        Self { bytes, at, end, bits: 0, count: 0 }
    }

    /// Makes at least 56 bits available; past the end they are zeros, or the next segment's. Done before every code: a
    /// branch on how many are left would be guessed wrong too often.
    #[inline(always)]
    fn refill(&mut self) -> Option<()> {
        let word = self.bytes.get(self.at..)?.first_chunk::<8>()?;
        self.bits |= u64::from_be_bytes(*word) >> self.count;
        self.at += (63 - self.count as usize) >> 3;
        self.count |= 56;
        Some(())
    }

    #[inline(always)]
    fn consume(&mut self, count: u32) {
        self.bits <<= count;
        self.count -= count;
    }

    /// `None` when more bits were read than there are.
    #[inline(always)]
    pub(super) fn finish(&self) -> Option<()> {
        (self.at <= self.end + self.count as usize / 8).then_some(())
    }

    /// Run and number behind the next code; 32 bits are available.
    #[inline(always)]
    fn next(&mut self, codes: &Codes) -> Option<(u32, i32)> {
        let mut entry = codes.fast[(self.bits >> (64 - LOOK)) as usize];
        if entry == 0 {
            // By value, so that the reader can stay in registers.
            entry = codes.long(self.bits)?;
        }
        let (both, size) = (entry & 0xff, entry >> 8 & 0xff);
        // The number ends where both end.
        let number = (self.bits >> (64 - both)) as u32 & ((1 << size) - 1);
        self.consume(both);
        Some((entry >> 16, extend(number as i32, size)))
    }

    #[inline(always)]
    fn difference(&mut self, dc: &Codes, prediction: &mut i32) -> Option<()> {
        self.refill()?;
        let (run, value) = self.next(dc)?;
        // A size above 15 cannot be: it would show as a run.
        (run == 0 || run == END).then_some(())?;
        *prediction = prediction.wrapping_add(value);
        Some(())
    }

    /// Reads a block, dequantised and in natural order, into zeros. Returns the place in the
    /// zigzag order of its last coefficient.
    #[inline(always)]
    pub(super) fn block(
        &mut self,
        dc: &Codes,
        ac: &Codes,
        quantisation: &[u16; 64],
        prediction: &mut i32,
        values: &mut [i16; 64],
    ) -> Option<usize> {
        self.difference(dc, prediction)?;
        values[0] = (*prediction as i16).wrapping_mul(quantisation[0] as i16);
        let (mut at, mut last) = (1, 0);
        while at < 64 {
            self.refill()?;
            let (run, value) = self.next(ac)?;
            at += run as usize;
            if at > 63 {
                // Anything but the end mark has gone too far.
                (run == END).then_some(())?;
                break;
            }
            let product = (value as i16).wrapping_mul(quantisation[at] as i16);
            values[usize::from(ZIGZAG[at] & 63)] = product;
            last = at;
            at += 1;
        }
        Some(last)
    }

    /// Reads past a block.
    #[inline(always)]
    pub(super) fn skip_block(
        &mut self,
        dc: &Codes,
        ac: &Codes,
        prediction: &mut i32,
    ) -> Option<()> {
        self.difference(dc, prediction)?;
        let mut at = 1;
        while at < 64 {
            self.refill()?;
            let (run, _) = self.next(ac)?;
            if run == END {
                return Some(());
            }
            at += run + 1;
        }
        (at == 64).then_some(())
    }
}
