//! What a message carries, at fixed offsets: whose it is, its number, and when it was due.
//!
//! `<run>.<sender>.<number>.<planned>.xxxx…`: 8, 8, 8 and 16 digits of lower-case hex. Fixed widths let a
//! receiver read millions a second without looking for anything.

/// Bytes in front of the padding; the smallest payload there is.
pub const HEAD_BYTES: usize = 44;

/// Tells the messages of one run from those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run([u8; 8]);

impl Run {
    /// The run of this number.
    pub fn new(id: u32) -> Self {
        Self(hex8(id))
    }
}

/// What a message says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The stream it belongs to: one for each sender.
    pub stream: u32,
    /// Its place in the stream, from 0.
    pub number: u32,
    /// When it should have been sent, in microseconds since the run began.
    pub planned_us: u64,
}

/// Appends a message of `bytes` bytes.
pub fn write(out: &mut Vec<u8>, run: Run, head: Head, bytes: usize) {
    let start = out.len();
    out.extend_from_slice(&run.0);
    for field in [head.stream, head.number] {
        out.push(b'.');
        out.extend_from_slice(&hex8(field));
    }
    out.push(b'.');
    out.extend_from_slice(&hex8((head.planned_us >> 32) as u32));
    out.extend_from_slice(&hex8(head.planned_us as u32));
    out.push(b'.');
    out.resize(start + bytes.max(HEAD_BYTES), b'x');
}

/// Reads a message of this run; `None` is anything else.
#[inline]
pub fn read(run: Run, text: &[u8]) -> Option<Head> {
    let text: &[u8; HEAD_BYTES] = text.first_chunk()?;
    let dots = text[8] == b'.' && text[17] == b'.' && text[26] == b'.' && text[43] == b'.';
    if !dots || text[..8] != run.0 {
        return None;
    }
    let field = |at: usize| unhex8(*text[at..].first_chunk()?);
    let (stream, number) = (field(9)?, field(18)?);
    let planned_us = u64::from(field(27)?) << 32 | u64::from(field(35)?);
    Some(Head { stream, number, planned_us })
}

const ONES: u64 = 0x0101_0101_0101_0101;

fn hex8(value: u32) -> [u8; 8] {
    std::array::from_fn(|i| b"0123456789abcdef"[(value >> (28 - 4 * i)) as usize & 15])
}

/// Eight digits at a time, as one number of eight bytes.
#[inline]
fn unhex8(digits: [u8; 8]) -> Option<u32> {
    let text = u64::from_be_bytes(digits);
    let letters = (text >> 6) & ONES;
    let nibbles = (text & (ONES * 0x0f)) + letters * 9;
    // Anything but a digit does not come back when it is written again.
    let above_nine = ((nibbles + ONES * 6) >> 4) & ONES;
    let again = nibbles + ONES * u64::from(b'0') + above_nine * 0x27;
    if again != text || nibbles & (ONES * 0xf0) != 0 {
        return None;
    }
    let pairs = (nibbles | nibbles >> 4) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((fours | fours >> 16) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(run: u32, stream: u32, number: u32, planned_us: u64, bytes in 0usize..200) {
            let (mut text, head) = (Vec::new(), Head { stream, number, planned_us });
            write(&mut text, Run::new(run), head, bytes);
            prop_assert_eq!(text.len(), bytes.max(HEAD_BYTES));
            prop_assert_eq!(read(Run::new(run), &text), Some(head));
            prop_assert_eq!(read(Run::new(run ^ 1), &text), None);
        }

        #[test]
        fn eight_digits_are_read_as_the_standard_library_reads_them(digits: [u8; 8]) {
            let lower = digits.iter().all(|d| d.is_ascii_digit() || (b'a'..=b'f').contains(d));
            let expected = std::str::from_utf8(&digits).ok().filter(|_| lower);
            prop_assert_eq!(unhex8(digits), expected.and_then(|d| u32::from_str_radix(d, 16).ok()));
        }

        #[test]
        fn one_wrong_byte_is_not_a_digit(value: u32, at in 0usize..8, byte: u8) {
            let mut digits = hex8(value);
            digits[at] = byte;
            let valid = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            prop_assert_eq!(unhex8(digits).is_some(), valid);
        }
    }
}
