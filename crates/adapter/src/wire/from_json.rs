//! JSON text to MessagePack, in one pass and without a tree.
//!
//! MessagePack announces how many values a container has, and JSON does not. So the head of a container is
//! written as the single byte that is enough for fifteen values, and set when the container ends. Those that
//! turn out larger are noted, and one walk from the end makes room for all of their heads at last.

use std::{borrow::Cow, collections::VecDeque};

use bytes::Bytes;

use super::{Limits, WireError, msgpack, text};

/// Writes the value that `json` is, with attachments in place of their placeholders.
///
/// Without attachments an object that looks like a placeholder is an object like any other, as it is for
/// socket.io-parser.
pub(super) fn write_json(
    out: &mut Vec<u8>,
    json: &str,
    attachments: Option<&VecDeque<Bytes>>,
    limits: &Limits,
) -> Result<(), WireError> {
    let attachments = attachments.filter(|attachments| !attachments.is_empty());
    if attachments.is_some_and(|attachments| attachments.len() > limits.attachments_max) {
        return Err(WireError::TooManyAttachments);
    }
    let mut transcoder =
        Transcoder { json, at: 0, out, large: Vec::new(), attachments, written: 0, limits };
    transcoder.value(limits.containers_max())?;
    transcoder.space();
    if transcoder.at < json.len() {
        return Err(WireError::Trailing);
    }
    transcoder.widen_heads();
    Ok(())
}

struct Transcoder<'a> {
    json: &'a str,
    at: usize,
    out: &'a mut Vec<u8>,
    large: Vec<Large>,
    attachments: Option<&'a VecDeque<Bytes>>,
    /// How many attachments the output has.
    written: usize,
    limits: &'a Limits,
}

/// A container whose head needs more than the one byte at `at`.
struct Large {
    at: usize,
    kind: Kind,
    size: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Array,
    Map,
}

/// A place to which the output can go back.
#[derive(Clone, Copy)]
struct Mark {
    out: usize,
    large: usize,
    written: usize,
}

/// What the members of an object said of an attachment. The last of equal keys counts.
#[derive(Default)]
struct Placeholder {
    is_one: bool,
    index: Option<f64>,
}

impl<'a> Transcoder<'a> {
    /// The next value; `depth` is how many containers may still open.
    fn value(&mut self, depth: usize) -> Result<(), WireError> {
        self.space();
        match self.peek() {
            Some(b'"') => {
                let string = self.string()?;
                msgpack::write_str(self.out, &string);
                Ok(())
            }
            Some(b'{') => self.object(depth.checked_sub(1).ok_or(WireError::TooDeep)?),
            Some(b'[') => self.array(depth.checked_sub(1).ok_or(WireError::TooDeep)?),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => self.word(),
            None => Err(WireError::Truncated),
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), WireError> {
        let start = self.open();
        let mut size = 0;
        if !self.closes(b']') {
            loop {
                self.value(depth)?;
                size += 1;
                if self.ends_with(b']')? {
                    break;
                }
            }
        }
        self.close(start, Kind::Array, size);
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<(), WireError> {
        let start = self.open();
        let mut size = 0;
        let mut placeholder = Placeholder::default();
        if !self.closes(b'}') {
            loop {
                size += usize::from(self.member(depth, &mut placeholder)?);
                if self.ends_with(b'}')? {
                    break;
                }
            }
        }
        match self.attachments {
            Some(attachments) if placeholder.is_one => {
                self.back_to(start);
                self.attachment(attachments, placeholder)
            }
            _ => {
                self.close(start, Kind::Map, size);
                Ok(())
            }
        }
    }

    /// One member of an object; `false` if it was left out.
    fn member(&mut self, depth: usize, object: &mut Placeholder) -> Result<bool, WireError> {
        let start = self.mark();
        self.space();
        let key = self.string()?;
        msgpack::write_str(self.out, &key);
        self.space();
        self.expect(b':')?;
        self.space();
        let value_at = self.at;
        self.value(depth)?;
        if self.attachments.is_some() {
            let value = &self.json[value_at..self.at];
            match &*key {
                "_placeholder" => object.is_one = value == "true",
                "num" => object.index = value.parse().ok(),
                "__proto__" => {
                    // It would end Node; see the documentation of `wire`.
                    self.back_to(start);
                    return Ok(false);
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn attachment(
        &mut self,
        attachments: &VecDeque<Bytes>,
        placeholder: Placeholder,
    ) -> Result<(), WireError> {
        let index = placeholder.index.filter(|index| *index >= 0.0 && index.fract() == 0.0);
        let bytes = index.and_then(|index| attachments.get(index as usize));
        let bytes = bytes.ok_or(WireError::Placeholder)?;
        // Many placeholders may name one attachment, so both are checked here.
        if self.written == self.limits.attachments_max {
            return Err(WireError::TooManyAttachments);
        }
        if self.out.len() + bytes.len() > self.limits.frame_bytes_max {
            return Err(WireError::TooLarge);
        }
        self.written += 1;
        msgpack::write_bin(self.out, bytes);
        Ok(())
    }

    fn number(&mut self) -> Result<(), WireError> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        let leading_zero = self.peek() == Some(b'0');
        let digits = self.digits()?;
        if leading_zero && digits > 1 {
            return Err(WireError::Syntax);
        }
        let mut is_whole = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
            is_whole = false;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
            is_whole = false;
        }
        let written = &self.json[start..self.at];
        if !is_whole {
            msgpack::write_float(self.out, double(written)?);
        } else if written == "-0" {
            msgpack::write_negative_zero(self.out);
        } else if let Ok(integer) = written.parse() {
            msgpack::write_integer(self.out, integer);
        } else if let Ok(integer) = written.parse() {
            msgpack::write_unsigned(self.out, integer);
        } else {
            msgpack::write_float(self.out, double(written)?);
        }
        Ok(())
    }

    /// Passes over at least one digit and tells how many there were.
    fn digits(&mut self) -> Result<usize, WireError> {
        let rest = &self.json.as_bytes()[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count == 0 { Err(WireError::Syntax) } else { Ok(count) }
    }

    fn word(&mut self) -> Result<(), WireError> {
        let rest = &self.json.as_bytes()[self.at..];
        if rest.starts_with(b"true") {
            self.at += 4;
            msgpack::write_bool(self.out, true);
        } else if rest.starts_with(b"false") {
            self.at += 5;
            msgpack::write_bool(self.out, false);
        } else if rest.starts_with(b"null") {
            self.at += 4;
            msgpack::write_nil(self.out);
        } else {
            return Err(WireError::Syntax);
        }
        Ok(())
    }

    fn string(&mut self) -> Result<Cow<'a, str>, WireError> {
        self.expect(b'"')?;
        let start = self.at;
        let mut bytes = self.json.as_bytes()[start..].iter();
        loop {
            match bytes.next() {
                Some(b'"') => break,
                Some(b'\\') => {
                    bytes.next();
                }
                Some(0..0x20) => return Err(WireError::Syntax),
                Some(_) => {}
                None => return Err(WireError::Truncated),
            }
        }
        let end = self.json.len() - bytes.len();
        self.at = end;
        text::unescape(&self.json[start..end - 1])
    }

    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), WireError> {
        match self.peek() {
            Some(next) if next == byte => self.at += 1,
            Some(_) => return Err(WireError::Syntax),
            None => return Err(WireError::Truncated),
        }
        Ok(())
    }

    /// Whether the container ends here, without content.
    fn closes(&mut self, end: u8) -> bool {
        self.space();
        let closes = self.peek() == Some(end);
        self.at += usize::from(closes);
        closes
    }

    /// After a value of a container: whether it was the last.
    fn ends_with(&mut self, end: u8) -> Result<bool, WireError> {
        if self.closes(end) {
            return Ok(true);
        }
        self.expect(b',')?;
        Ok(false)
    }

    fn mark(&self) -> Mark {
        Mark { out: self.out.len(), large: self.large.len(), written: self.written }
    }

    fn back_to(&mut self, mark: Mark) {
        self.out.truncate(mark.out);
        self.large.truncate(mark.large);
        self.written = mark.written;
    }

    /// Passes over the opening bracket and leaves a byte for the head.
    fn open(&mut self) -> Mark {
        let mark = self.mark();
        self.at += 1;
        self.out.push(0);
        mark
    }

    fn close(&mut self, start: Mark, kind: Kind, size: usize) {
        if size > 15 {
            self.large.push(Large { at: start.out, kind, size });
            return;
        }
        self.out[start.out] = match kind {
            Kind::Array => rmp::Marker::FixArray(size as u8).to_u8(),
            Kind::Map => rmp::Marker::FixMap(size as u8).to_u8(),
        };
    }

    /// Makes room for the heads of large containers, from the end, so that each byte moves once.
    fn widen_heads(&mut self) {
        // They were noted as they ended: inner ones before those around them.
        self.large.sort_unstable_by_key(|large| large.at);
        let mut heads = Vec::new();
        let mut end = self.out.len();
        let wider = self.large.iter().map(|large| large.head(&mut heads) - 1).sum::<usize>();
        self.out.resize(end + wider, 0);
        let mut to = self.out.len();
        for large in self.large.iter().rev() {
            let content = large.at + 1..end;
            to -= content.len();
            end = large.at;
            self.out.copy_within(content, to);
            let head = large.head(&mut heads);
            to -= head;
            self.out[to..to + head].copy_from_slice(&heads);
        }
    }
}

/// The double that is nearest to a number; beyond all doubles, infinity.
fn double(number: &str) -> Result<f64, WireError> {
    number.parse().map_err(|_| WireError::Syntax)
}

impl Large {
    /// Writes the head into `buffer`, alone, and tells its size.
    fn head(&self, buffer: &mut Vec<u8>) -> usize {
        buffer.clear();
        match self.kind {
            Kind::Array => msgpack::write_array(buffer, self.size),
            Kind::Map => msgpack::write_map(buffer, self.size),
        }
        buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { frame_bytes_max: 1 << 22, depth_max: 3, rooms_max: 3, attachments_max: 2 };

    fn write(json: &str, attachments: &[&'static [u8]]) -> Result<Vec<u8>, WireError> {
        let attachments = attachments.iter().map(|bytes| Bytes::from_static(bytes)).collect();
        let mut out = b"before".to_vec();
        write_json(&mut out, json, Some(&attachments), &LIMITS)?;
        Ok(out.split_off(6))
    }

    #[test]
    fn malformed_text_is_refused() {
        let check = |json, error| assert_eq!(write(json, &[]), Err(error), "{json}");
        for json in ["", "[", "[1", "[1,", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "\"", "\"\\"] {
            check(json, WireError::Truncated);
        }
        for json in
            ["]", "[1 2]", "[,1]", "[1,]", "{1:2}", "{\"a\" 1}", "{\"a\":1,}", "{\"a\":}", "nul"]
        {
            check(json, WireError::Syntax);
        }
        for json in ["01", "-", "-x", "1.", ".5", "1e", "1e+", "+1", "NaN", "\"\n\"", r#""\x""#] {
            check(json, WireError::Syntax);
        }
        for json in ["1 2", "[]]", "nulll", "-0 x", "00x", "1.5.5"] {
            let error = write(json, &[]);
            assert!(matches!(error, Err(WireError::Trailing | WireError::Syntax)), "{json}");
        }
        check("[[[[[]]]]]", WireError::TooDeep);
        check(r#"[{"a":[{"b":{}}]}]"#, WireError::TooDeep);
        assert!(write("[[[[]]]]", &[]).is_ok());
    }

    #[test]
    fn numbers_are_integers_or_doubles_as_they_are_written() {
        let check =
            |json, bytes: &[u8]| assert_eq!(write(json, &[]).as_deref(), Ok(bytes), "{json}");
        let integers = [
            ("0", &[0][..]),
            ("-32", &[0xe0]),
            ("9007199254740993", &[0xcf, 0, 0x20, 0, 0, 0, 0, 0, 1]),
            ("9223372036854775807", &[0xcf, 127, 255, 255, 255, 255, 255, 255, 255]),
            ("18446744073709551615", &[0xcf, 255, 255, 255, 255, 255, 255, 255, 255]),
            ("-9223372036854775808", &[0xd3, 128, 0, 0, 0, 0, 0, 0, 0]),
            ("-0", &[0xca, 0x80, 0, 0, 0]),
        ];
        integers.into_iter().for_each(|(json, bytes)| check(json, bytes));
        let doubles = [
            ("-0.0", -0.0),
            ("10.0", 10.0),
            ("1e2", 100.0),
            ("12.8E1", 128.0),
            ("0.1", 0.1),
            ("1e-400", 0.0),
            ("1e400", f64::INFINITY),
            ("18446744073709551616", 18_446_744_073_709_551_616.0),
            ("-9223372036854775809", -9_223_372_036_854_775_808.0),
        ];
        for (json, double) in doubles {
            check(json, &[&[0xcb][..], &f64::to_be_bytes(double)].concat());
        }
        let long = "9".repeat(100_000);
        check(&long, &[0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn placeholders_become_attachments() {
        let check = |json: &str, bytes: Result<&[u8], WireError>| {
            assert_eq!(write(json, &[b"one", b"two"]).as_deref(), bytes.as_deref(), "{json}");
        };
        check(r#"{"_placeholder":true,"num":1}"#, Ok(b"\xc4\x03two"));
        check(r#"{"num":1e0, "_placeholder" : true , "more":[1]}"#, Ok(b"\xc4\x03two"));
        check(r#"{"_pl\u0061ceholder":true,"num":7,"num":0}"#, Ok(b"\xc4\x03one"));
        check(r#"{"_placeholder":1,"num":1}"#, Ok(b"\x82\xac_placeholder\x01\xa3num\x01"));
        for index in ["2", "-1", "0.5", "1e400", "\"0\"", "null"] {
            let json = format!(r#"[{{"_placeholder":true,"num":{index}}}]"#);
            check(&json, Err(WireError::Placeholder));
        }
        check(r#"{"_placeholder":true}"#, Err(WireError::Placeholder));
        let member = r#"{"a":1,"__proto__":[1,{"_placeholder":true,"num":0}],"b":2}"#;
        check(member, Ok(b"\x82\xa1a\x01\xa1b\x02"));
        assert_eq!(write("0", &[b"", b"", b""]), Err(WireError::TooManyAttachments));
    }

    #[test]
    fn one_attachment_named_often_does_not_fill_the_memory() {
        static LARGE: [u8; 1 << 20] = [0; 1 << 20];
        let often =
            |times| format!("[{}]", vec![r#"{"_placeholder":true,"num":0}"#; times].join(","));
        assert!(write(&often(2), &[&LARGE]).is_ok());
        assert_eq!(write(&often(5), &[&LARGE]), Err(WireError::TooManyAttachments));
        let mut out = vec![0; 3 << 20];
        let attachments = [Bytes::from_static(&LARGE)].into();
        let written = write_json(&mut out, &often(2), Some(&attachments), &LIMITS);
        assert_eq!(written, Err(WireError::TooLarge));
    }

    #[test]
    fn heads_of_any_size_find_their_place() {
        for size in [0, 15, 16, 65535, 65536] {
            let inner = format!("[{}]", vec!["1"; size].join(","));
            let mut expected = Vec::new();
            msgpack::write_array(&mut expected, size);
            expected.resize(expected.len() + size, 1);
            assert_eq!(write(&inner, &[]), Ok(expected.clone()));

            let twenty = format!("{{\"k\":[{}],\"_\":0}}", vec![&*inner; 20].join(","));
            let mut all = b"\x82\xa1k\xdc\x00\x14".to_vec();
            (0..20).for_each(|_| all.extend(&expected));
            all.extend(b"\xa1_\x00");
            assert!(write(&twenty, &[]) == Ok(all), "twenty of {size}");
        }
    }

    #[test]
    fn large_containers_that_are_left_out_leave_nothing() {
        let large = format!("[{}1]", "1,".repeat(20));
        let json =
            format!(r#"[{{"__proto__":{large}}},{{"a":{large},"_placeholder":true,"num":1}}]"#);
        assert_eq!(write(&json, &[b"", b"two"]).as_deref(), Ok(&b"\x92\x80\xc4\x03two"[..]));
    }
}
