//! MessagePack to the JSON text that Node would send to a client, and attachments. Numbers are printed
//! more exactly than Node prints them: see the documentation of `wire`.

use std::collections::VecDeque;

use bytes::Bytes;
use socketioxide_core::Value;

use super::{
    Limits, WireError, date,
    msgpack::{Reader, Token},
    text,
};

/// How the text of a placeholder begins. In JSON text it stands for nothing else: in a string its quotes
/// would be escaped.
pub(super) const PLACEHOLDER: &str = r#"{"_placeholder":true,"num":"#;

/// Reads the value that is next in `reader`, which reads from `frame`, and which may open `depth`
/// containers within one another.
pub(super) fn read_json(
    reader: &mut Reader<'_>,
    frame: &Bytes,
    depth: usize,
    limits: &Limits,
) -> Result<(String, VecDeque<Bytes>), WireError> {
    let mut printer = Printer {
        reader,
        frame,
        // Mostly a little less than the frame.
        text: String::with_capacity(frame.len()),
        attachments: VecDeque::new(),
        attachments_max: limits.attachments_max,
        has_lookalike: false,
    };
    let token = printer.reader.token()?;
    printer.value(token, depth)?;
    // With attachments, clients take such an object for a placeholder: JavaScript closes its connection at
    // `true`, and Python, which takes any true value, receives nothing more.
    if printer.has_lookalike && !printer.attachments.is_empty() {
        return Err(WireError::Placeholder);
    }
    Ok((printer.text, printer.attachments))
}

/// Text and attachments as socketioxide holds them.
pub(super) fn to_value((text, attachments): (String, VecDeque<Bytes>)) -> Value {
    Value::Str(text.into(), (!attachments.is_empty()).then_some(attachments))
}

struct Printer<'a, 'b> {
    reader: &'b mut Reader<'a>,
    frame: &'b Bytes,
    text: String,
    attachments: VecDeque<Bytes>,
    attachments_max: usize,
    has_lookalike: bool,
}

impl Printer<'_, '_> {
    fn value(&mut self, token: Token<'_>, depth: usize) -> Result<(), WireError> {
        match token {
            Token::Nil | Token::Undefined => self.text.push_str("null"),
            Token::Bool(true) => self.text.push_str("true"),
            Token::Bool(false) => self.text.push_str("false"),
            Token::Integer(integer) => text::push_integer(&mut self.text, integer),
            Token::Unsigned(integer) => text::push_integer(&mut self.text, integer),
            Token::NegativeZero => self.text.push_str("-0"),
            Token::Float(number) => text::push_float(&mut self.text, number),
            Token::Str(bytes) => text::push_string(&mut self.text, &text::from_utf8(bytes)),
            Token::Bin(bytes) => self.attachment(bytes)?,
            Token::Array(size) => {
                self.array(size, depth.checked_sub(1).ok_or(WireError::TooDeep)?)?
            }
            Token::Map(size) => self.map(size, depth.checked_sub(1).ok_or(WireError::TooDeep)?)?,
            Token::Date(ms) => match date::iso(ms) {
                Some(iso) => text::push_string(&mut self.text, &iso),
                None => self.text.push_str("null"),
            },
            Token::Ext(kind, bytes) => {
                self.text.push('[');
                text::push_integer(&mut self.text, kind);
                self.text.push(',');
                self.attachment(bytes)?;
                self.text.push(']');
            }
        }
        Ok(())
    }

    fn array(&mut self, size: u32, depth: usize) -> Result<(), WireError> {
        self.text.push('[');
        for index in 0..size {
            if index > 0 {
                self.text.push(',');
            }
            let token = self.reader.token()?;
            self.value(token, depth)?;
        }
        self.text.push(']');
        Ok(())
    }

    fn map(&mut self, size: u32, depth: usize) -> Result<(), WireError> {
        self.text.push('{');
        let start = self.text.len();
        for _ in 0..size {
            let key = self.reader.key()?;
            let token = self.reader.token()?;
            if token == Token::Undefined {
                continue; // As `JSON.stringify` does.
            }
            self.has_lookalike |=
                key == "_placeholder" && !matches!(token, Token::Nil | Token::Bool(false));
            if self.text.len() > start {
                self.text.push(',');
            }
            text::push_string(&mut self.text, &key);
            self.text.push(':');
            self.value(token, depth)?;
        }
        self.text.push('}');
        Ok(())
    }

    fn attachment(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        if self.attachments.len() == self.attachments_max {
            return Err(WireError::TooManyAttachments);
        }
        self.text.push_str(PLACEHOLDER);
        text::push_integer(&mut self.text, self.attachments.len());
        self.text.push('}');
        self.attachments.push_back(self.frame.slice_ref(bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { frame_bytes_max: 1 << 20, depth_max: 3, rooms_max: 3, attachments_max: 2 };

    fn read(bytes: &[u8]) -> Result<(String, Vec<Bytes>), WireError> {
        let frame = Bytes::copy_from_slice(bytes);
        let (text, attachments) = read_json(&mut Reader::new(&frame), &frame, 3, &LIMITS)?;
        Ok((text, attachments.into()))
    }

    #[test]
    fn numbers_are_printed_as_they_were_sent() {
        let check = |bytes: &[u8], text: &str| {
            assert_eq!(read(bytes).map(|read| read.0).as_deref(), Ok(text), "{bytes:02x?}");
        };
        check(&[0xcf, 255, 255, 255, 255, 255, 255, 255, 255], "18446744073709551615");
        check(&[0xcf, 127, 255, 255, 255, 255, 255, 255, 255], "9223372036854775807");
        check(&[0xd3, 128, 0, 0, 0, 0, 0, 0, 0], "-9223372036854775808");
        check(&[0xd3, 0xff, 0xdf, 255, 255, 255, 255, 255, 255], "-9007199254740993");
        check(&[0xca, 0x80, 0, 0, 0], "-0");
        check(&[0xcb, 0x80, 0, 0, 0, 0, 0, 0, 0], "-0.0");
        check(&[0xcb, 0x40, 0x24, 0, 0, 0, 0, 0, 0], "10.0");
        check(&[0xca, 0x41, 0x20, 0, 0], "10.0");
        check(&[0xca, 0x3d, 0xcc, 0xcc, 0xcd], "0.10000000149011612");
        check(&[0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0], "null");
    }

    #[test]
    fn values_are_printed_as_node_prints_them() {
        let check = |bytes: &[u8], text: &str| {
            assert_eq!(read(bytes).map(|read| read.0).as_deref(), Ok(text), "{bytes:02x?}");
        };
        check(&[0xa2, 0xff, b'a'], "\"\u{fffd}a\"");
        check(&[0x92, 0xd4, 0, 0, 0xc0], "[null,null]");
        check(&[0x83, 0xa1, b'a', 0xd4, 0, 0, 1, 2, 0xc0, 0xc2], r#"{"1":2,"null":false}"#);
        check(&[0xd6, 0xff, 0, 0, 0, 1], "\"1970-01-01T00:00:01.000Z\"");
        check(&[0xd7, 0, 127, 255, 255, 255, 255, 255, 255, 255], "null");
        check(&[0xd4, 0xfb, 9], r#"[-5,{"_placeholder":true,"num":0}]"#);
    }

    #[test]
    fn what_would_close_clients_is_refused() {
        let check = |bytes: &[u8], error| assert_eq!(read(bytes), Err(error), "{bytes:02x?}");
        check(&[0x91, 0x91, 0x91, 0x90], WireError::TooDeep);
        check(&[0x93, 0xc4, 0, 0xc4, 0, 0xc4, 0], WireError::TooManyAttachments);
        check(b"\x92\x81\xac_placeholder\xc3\xc4\x00", WireError::Placeholder);
        check(b"\x92\xc4\x00\x81\xac_placeholder\x01", WireError::Placeholder);
        check(b"\x92\xc4\x00\x81\xac_placeholder\x90", WireError::Placeholder);
        assert!(read(b"\x92\xc4\x00\x81\xac_placeholder\xc2").is_ok());
        assert!(read(b"\x92\xc4\x00\x81\xac_placeholder\xc0").is_ok());
        check(&[0x81, 0x90, 1], WireError::Shape);
        let lookalike = read(b"\x81\xac_placeholder\xc3").map(|read| read.0);
        assert_eq!(lookalike.as_deref(), Ok(r#"{"_placeholder":true}"#));
    }
}
