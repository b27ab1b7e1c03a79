//! MessagePack, token by token, as notepack 3.0.1 reads and writes it.

use std::borrow::Cow;

use rmp::{Marker, encode};

use super::WireError;

/// Why writing markers cannot fail.
const IN_MEMORY: &str = "a Vec takes all that is written to it";

/// One value, or the head of an array or a map whose content follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token<'a> {
    Nil,
    /// JavaScript's `undefined`, as notepack 2 wrote it.
    Undefined,
    Bool(bool),
    Integer(i64),
    /// An integer beyond `i64::MAX`.
    Unsigned(u64),
    /// JSON's `-0`. MessagePack has no such integer: it is written as a 32-bit float.
    NegativeZero,
    Float(f64),
    /// A string, which should be UTF-8.
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Array(u32),
    Map(u32),
    /// Milliseconds since 1970. JavaScript prints some of them as `null`.
    Date(i64),
    /// What notepack does not know. It makes an array of the type and the bytes of it.
    Ext(i8, &'a [u8]),
}

/// Reads tokens from a frame. It never reads ahead and allocates nothing, so that what a frame claims
/// about its size costs nothing.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(frame: &'a [u8]) -> Self {
        Self { rest: frame }
    }

    pub(super) fn token(&mut self) -> Result<Token<'a>, WireError> {
        let [marker] = self.bytes()?;
        Ok(match Marker::from_u8(marker) {
            Marker::Null => Token::Nil,
            Marker::True => Token::Bool(true),
            Marker::False => Token::Bool(false),
            Marker::FixPos(number) => Token::Integer(number.into()),
            Marker::FixNeg(number) => Token::Integer(number.into()),
            Marker::U8 => Token::Integer(u8::from_be_bytes(self.bytes()?).into()),
            Marker::U16 => Token::Integer(u16::from_be_bytes(self.bytes()?).into()),
            Marker::U32 => Token::Integer(u32::from_be_bytes(self.bytes()?).into()),
            Marker::U64 => {
                let number = u64::from_be_bytes(self.bytes()?);
                i64::try_from(number).map_or(Token::Unsigned(number), Token::Integer)
            }
            Marker::I8 => Token::Integer(i8::from_be_bytes(self.bytes()?).into()),
            Marker::I16 => Token::Integer(i16::from_be_bytes(self.bytes()?).into()),
            Marker::I32 => Token::Integer(i32::from_be_bytes(self.bytes()?).into()),
            Marker::I64 => Token::Integer(i64::from_be_bytes(self.bytes()?)),
            Marker::F32 => match f32::from_be_bytes(self.bytes()?) {
                zero if zero == 0.0 && zero.is_sign_negative() => Token::NegativeZero,
                number => Token::Float(number.into()),
            },
            Marker::F64 => Token::Float(f64::from_be_bytes(self.bytes()?)),
            Marker::FixStr(size) => Token::Str(self.take(size.into())?),
            Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let size = self.length(marker - Marker::Str8.to_u8())?;
                Token::Str(self.take(size)?)
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let size = self.length(marker - Marker::Bin8.to_u8())?;
                Token::Bin(self.take(size)?)
            }
            Marker::FixArray(size) => Token::Array(size.into()),
            Marker::Array16 => Token::Array(u16::from_be_bytes(self.bytes()?).into()),
            Marker::Array32 => Token::Array(u32::from_be_bytes(self.bytes()?)),
            Marker::FixMap(size) => Token::Map(size.into()),
            Marker::Map16 => Token::Map(u16::from_be_bytes(self.bytes()?).into()),
            Marker::Map32 => Token::Map(u32::from_be_bytes(self.bytes()?)),
            Marker::FixExt1 => self.ext(1, true)?,
            Marker::FixExt2 => self.ext(2, true)?,
            Marker::FixExt4 => self.ext(4, true)?,
            Marker::FixExt8 => self.ext(8, true)?,
            Marker::FixExt16 => self.ext(16, true)?,
            Marker::Ext8 | Marker::Ext16 | Marker::Ext32 => {
                let size = self.length(marker - Marker::Ext8.to_u8())?;
                self.ext(size, false)?
            }
            Marker::Reserved => return Err(WireError::Syntax),
        })
    }

    /// Passes over the next value, however deep it nests.
    pub(super) fn skip(&mut self) -> Result<(), WireError> {
        let token = self.token()?;
        self.skip_content(token)
    }

    /// Passes over what follows `token`, if it is the head of something.
    pub(super) fn skip_content(&mut self, token: Token<'_>) -> Result<(), WireError> {
        let mut open = content(token);
        while open > 0 {
            open = (open - 1).saturating_add(content(self.token()?));
        }
        Ok(())
    }

    /// The number of elements of the array that is next.
    pub(super) fn array(&mut self) -> Result<u32, WireError> {
        match self.token()? {
            Token::Array(size) => Ok(size),
            _ => Err(WireError::Shape),
        }
    }

    /// The key of a map that is next. JavaScript turns whatever it is into a string.
    pub(super) fn key(&mut self) -> Result<Cow<'a, str>, WireError> {
        self.token()?.to_text()
    }

    /// Nothing may follow: notepack throws, and Node ends, at trailing bytes.
    pub(super) fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(size).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A length in one, two or four bytes: the three markers for it follow one another.
    fn length(&mut self, width: u8) -> Result<usize, WireError> {
        Ok(match width {
            0 => u8::from_be_bytes(self.bytes()?).into(),
            1 => u16::from_be_bytes(self.bytes()?).into(),
            _ => u32::from_be_bytes(self.bytes()?) as usize,
        })
    }

    /// What notepack's decoder makes of extensions: dates, and three kinds that notepack 2 wrote as type 0.
    fn ext(&mut self, size: usize, fixed: bool) -> Result<Token<'a>, WireError> {
        let kind = i8::from_be_bytes(self.bytes()?);
        let data = self.take(size)?;
        Ok(match (kind, fixed, data) {
            (0, false, _) => Token::Bin(data),
            (0, true, [_]) => Token::Undefined,
            (0, true, &[a, b, c, d, e, f, g, h]) => {
                Token::Date(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
            (-1, true, &[a, b, c, d]) => {
                Token::Date(i64::from(u32::from_be_bytes([a, b, c, d])) * 1000)
            }
            (-1, true, &[a, b, c, d, e, f, g, h]) => {
                let both = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                timestamp((both & 0x3_ffff_ffff) as i64, (both >> 34) as u32)
            }
            (-1, false, &[a, b, c, d, ref seconds @ ..]) => {
                let seconds = seconds.try_into().map_err(|_| WireError::Shape)?;
                timestamp(i64::from_be_bytes(seconds), u32::from_be_bytes([a, b, c, d]))
            }
            (-1, false, _) => return Err(WireError::Shape),
            _ => Token::Ext(kind, data),
        })
    }
}

impl<'a> Token<'a> {
    /// The string that JavaScript's `String()` makes of a simple value. Numbers are doubles there,
    /// and bytes that are no UTF-8 become U+FFFD.
    pub(super) fn to_text(self) -> Result<Cow<'a, str>, WireError> {
        let number = match self {
            Token::Str(bytes) => return Ok(super::text::from_utf8(bytes)),
            Token::Nil => return Ok(Cow::Borrowed("null")),
            Token::Undefined => return Ok(Cow::Borrowed("undefined")),
            Token::Bool(true) => return Ok(Cow::Borrowed("true")),
            Token::Bool(false) => return Ok(Cow::Borrowed("false")),
            Token::Integer(integer) => integer as f64,
            Token::Unsigned(integer) => integer as f64,
            Token::NegativeZero => 0.0,
            Token::Float(number) => number,
            _ => return Err(WireError::Shape),
        };
        Ok(Cow::Owned(ryu_js::Buffer::new().format(number).to_owned()))
    }

    /// Whether JavaScript takes it for true.
    pub(super) fn is_truthy(self) -> bool {
        match self {
            Token::Nil | Token::Undefined | Token::Bool(false) => false,
            Token::Integer(0) | Token::NegativeZero => false,
            Token::Float(number) => number != 0.0 && !number.is_nan(),
            Token::Str(bytes) => !bytes.is_empty(),
            _ => true,
        }
    }
}

/// How many values belong to a token.
fn content(token: Token<'_>) -> u64 {
    match token {
        Token::Array(size) => size.into(),
        Token::Map(size) => u64::from(size) * 2,
        _ => 0,
    }
}

/// `new Date(seconds * 1e3 + nanoseconds / 1e6)`, which cuts fractions of a millisecond off, toward 1970.
fn timestamp(seconds: i64, nanoseconds: u32) -> Token<'static> {
    let nanoseconds_in_all = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Token::Date(i64::try_from(nanoseconds_in_all / 1_000_000).unwrap_or(i64::MAX))
}

pub(super) fn write_array(out: &mut Vec<u8>, size: usize) {
    encode::write_array_len(out, size as u32).expect(IN_MEMORY);
}

pub(super) fn write_map(out: &mut Vec<u8>, size: usize) {
    encode::write_map_len(out, size as u32).expect(IN_MEMORY);
}

pub(super) fn write_str(out: &mut Vec<u8>, text: &str) {
    encode::write_str(out, text).expect(IN_MEMORY);
}

pub(super) fn write_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    encode::write_bin(out, bytes).expect(IN_MEMORY);
}

pub(super) fn write_nil(out: &mut Vec<u8>) {
    encode::write_nil(out).expect(IN_MEMORY);
}

pub(super) fn write_bool(out: &mut Vec<u8>, value: bool) {
    encode::write_bool(out, value).expect(IN_MEMORY);
}

/// An integer in as few bytes as it takes, without a sign where there is none.
pub(super) fn write_integer(out: &mut Vec<u8>, number: i64) {
    encode::write_sint(out, number).expect(IN_MEMORY);
}

/// The same for integers without a sign.
pub(super) fn write_unsigned(out: &mut Vec<u8>, number: u64) {
    encode::write_uint(out, number).expect(IN_MEMORY);
}

/// [`Token::NegativeZero`], which notepack reads as `-0`.
pub(super) fn write_negative_zero(out: &mut Vec<u8>) {
    encode::write_f32(out, -0.0).expect(IN_MEMORY);
}

/// A number that has a fraction or an exponent in JSON, even if its value is an integer.
pub(super) fn write_float(out: &mut Vec<u8>, number: f64) {
    encode::write_f64(out, number).expect(IN_MEMORY);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(bytes: &[u8]) -> Result<Token<'_>, WireError> {
        let mut reader = Reader::new(bytes);
        let token = reader.token()?;
        reader.end()?;
        Ok(token)
    }

    #[test]
    fn extensions_mean_what_notepack_says() {
        let check = |bytes: &[u8], token| assert_eq!(only(bytes), token, "{bytes:02x?}");
        check(&[0xd4, 0, 0], Ok(Token::Undefined));
        check(&[0xd7, 0, 0, 0, 0, 0, 0, 0, 0, 5], Ok(Token::Date(5)));
        check(&[0xc7, 2, 0, 1, 2], Ok(Token::Bin(&[1, 2])));
        check(&[0xc8, 0, 1, 0, 7], Ok(Token::Bin(&[7])));
        check(&[0xc9, 0, 0, 0, 1, 0, 7], Ok(Token::Bin(&[7])));
        check(&[0xd6, 0xff, 0xff, 0xff, 0xff, 0xff], Ok(Token::Date(4_294_967_295_000)));
        check(&[0xd7, 0xff, 0, 0, 0, 0, 0, 0, 0, 1], Ok(Token::Date(1000)));
        check(&[0xd4, 5, 1], Ok(Token::Ext(5, &[1])));
        check(&[0xd5, 0, 1, 2], Ok(Token::Ext(0, &[1, 2])));
        check(&[0xc7, 1, 0xff, 0], Err(WireError::Shape));
        check(&[0xc7, 5, 0xff, 0, 0, 0, 0, 0], Err(WireError::Shape));
        check(&[0xd4, 0], Err(WireError::Truncated));
        check(&[0xc1], Err(WireError::Syntax));
        check(&[], Err(WireError::Truncated));
        check(&[0xc0, 0xc0], Err(WireError::Trailing));
    }

    #[test]
    fn integers_have_the_shortest_form_and_are_exact() {
        let check = |number: i128, first: u8, size: usize| {
            let mut out = Vec::new();
            match i64::try_from(number) {
                Ok(number) => write_integer(&mut out, number),
                Err(_) => write_unsigned(&mut out, number as u64),
            }
            assert_eq!((out[0], out.len()), (first, size), "{number}");
            let read = match only(&out) {
                Ok(Token::Integer(integer)) => i128::from(integer),
                Ok(Token::Unsigned(integer)) => i128::from(integer),
                other => panic!("{other:?}"),
            };
            assert_eq!(read, number);
        };
        check(0, 0, 1);
        check(-32, 0xe0, 1);
        check(128, 0xcc, 2);
        check(4_294_967_296, 0xcf, 9);
        check((1 << 53) + 1, 0xcf, 9);
        check(i64::MAX.into(), 0xcf, 9);
        check(1 << 63, 0xcf, 9);
        check(u64::MAX.into(), 0xcf, 9);
        check(-2_147_483_649, 0xd3, 9);
        check(i64::MIN.into(), 0xd3, 9);
    }

    #[test]
    fn strings_of_numbers_are_those_of_javascript() {
        let check = |token: Token<'_>, text| {
            assert_eq!(token.to_text().as_deref(), Ok(text), "{token:?}");
        };
        check(Token::Integer(-5), "-5");
        check(Token::Integer(9_007_199_254_740_993), "9007199254740992");
        check(Token::Unsigned(u64::MAX), "18446744073709552000");
        check(Token::NegativeZero, "0");
        check(Token::Float(-0.0), "0");
        check(Token::Float(10.0), "10");
        check(Token::Float(f64::INFINITY), "Infinity");
    }

    #[test]
    fn claims_cost_nothing() {
        for claim in [&[0xdd, 0xff, 0xff, 0xff, 0xff][..], &[0xdf, 0xff, 0xff, 0xff, 0xff, 1, 1]] {
            assert_eq!(Reader::new(claim).skip(), Err(WireError::Truncated));
        }
        let deep = vec![0x91; 1 << 20];
        assert_eq!(Reader::new(&deep).skip(), Err(WireError::Truncated));
    }
}
