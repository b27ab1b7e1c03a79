//! JSON text below the level of values: strings and numbers as JavaScript writes and reads them.

use std::borrow::Cow;

use super::WireError;

/// Writes `text` as a JSON string, escaped as `JSON.stringify` does.
pub(super) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut written = 0;
    let bytes = if is_plain(text) { &[] } else { text.as_bytes() };
    for (at, byte) in bytes.iter().copied().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0..0x20 => "\\u00",
            _ => continue,
        };
        out.push_str(&text[written..at]);
        out.push_str(escape);
        if escape == "\\u00" {
            for digit in [byte >> 4, byte & 0xf] {
                out.extend(char::from_digit(digit.into(), 16));
            }
        }
        written = at + 1;
    }
    out.push_str(&text[written..]);
    out.push('"');
}

/// Whether nothing in it has to be escaped. Without a way out of the loop, the compiler looks at many bytes at a time.
fn is_plain(text: &str) -> bool {
    let escaped = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    !text.as_bytes().iter().fold(false, |found, byte| found | escaped(byte))
}

/// Text out of bytes; what is no UTF-8 becomes U+FFFD. The usual case first, which the library does faster.
pub(super) fn from_utf8(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Writes the shortest text that reads back as the same double and is not an integer. NaN and infinity
/// become `null`, as in `JSON.stringify`.
pub(super) fn push_float(out: &mut String, number: f64) {
    if !number.is_finite() {
        out.push_str("null");
        return;
    }
    // ryu_js leaves the sign of zero out.
    if number == 0.0 && number.is_sign_negative() {
        out.push('-');
    }
    let mut buffer = ryu_js::Buffer::new();
    let shortest = buffer.format_finite(number);
    out.push_str(shortest);
    if number.fract() == 0.0 && !shortest.contains('e') {
        out.push_str(".0");
    }
}

/// Writes an integer with all its digits.
pub(super) fn push_integer(out: &mut String, integer: impl itoa::Integer) {
    out.push_str(itoa::Buffer::new().format(integer));
}

/// The string that `body`, the text between two quotes, stands for.
///
/// Half of a surrogate pair, as a cut-off emoji leaves it, becomes U+FFFD, as it does wherever JavaScript
/// writes UTF-8.
pub(super) fn unescape(body: &str) -> Result<Cow<'_, str>, WireError> {
    let Some(first) = body.find('\\') else { return Ok(Cow::Borrowed(body)) };
    let mut out = String::with_capacity(body.len());
    out.push_str(&body[..first]);
    let mut rest = &body[first..];
    while let Some(escape) = rest.strip_prefix('\\') {
        let (unescaped, after) = unescape_one(escape)?;
        out.push(unescaped);
        let plain = after.find('\\').unwrap_or(after.len());
        out.push_str(&after[..plain]);
        rest = &after[plain..];
    }
    Ok(Cow::Owned(out))
}

/// What the escape after a backslash stands for, and the text after it.
fn unescape_one(escape: &str) -> Result<(char, &str), WireError> {
    let kind = escape.bytes().next().ok_or(WireError::Syntax)?;
    let unescaped = match kind {
        b'"' | b'\\' | b'/' => kind.into(),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unescape_unicode(&escape[1..]),
        _ => return Err(WireError::Syntax),
    };
    Ok((unescaped, &escape[1..]))
}

fn unescape_unicode(digits: &str) -> Result<(char, &str), WireError> {
    let (unit, after) = code_unit(digits).ok_or(WireError::Syntax)?;
    if let 0xd800..0xdc00 = unit
        && let Some((low @ 0xdc00..0xe000, after)) = after.strip_prefix("\\u").and_then(code_unit)
    {
        let code = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
        return Ok((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), after));
    }
    Ok((char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), after))
}

fn code_unit(text: &str) -> Option<(u32, &str)> {
    let (digits, after) = text.split_at_checked(4)?;
    let all_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    all_hex.then(|| Some((u32::from_str_radix(digits, 16).ok()?, after)))?
}

/// Whether brackets nest at most `max` deep. The text need not be well-formed.
pub(super) fn nests_within(text: &str, max: usize) -> bool {
    let mut depth = 0_usize;
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > max {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_javascript_does() {
        let mut out = String::new();
        push_string(&mut out, "é🦀\u{0}\u{1f}\u{7f}\u{2028}\"\\/\u{8}\u{c}\n\r\t");
        assert_eq!(out, "\"é🦀\\u0000\\u001f\u{7f}\u{2028}\\\"\\\\/\\b\\f\\n\\r\\t\"");
    }

    #[test]
    fn escapes_are_read() {
        let check = |body, text| assert_eq!(unescape(body).as_deref(), Ok(text), "{body}");
        check("", "");
        check("plain é", "plain é");
        check(r#"\"\\\/\b\f\n\r\ta"#, "\"\\/\u{8}\u{c}\n\r\ta");
        check(r"\u00e9\u0041x\ud83e\udd80", "éAx🦀");
        check(r"\ud83e", "\u{fffd}");
        check(r"\ud83ex", "\u{fffd}x");
        check(r"\udd80\ud83e\ud83e\udd80", "\u{fffd}\u{fffd}🦀");
        check(r"\ud83e\u0041\ud83e\n", "\u{fffd}A\u{fffd}\n");
        for bad in [r"\", r"\x", r"\u", r"\u12", r"\u12g4", r"\u+123", r"\u00é", r"\é"] {
            assert_eq!(unescape(bad), Err(WireError::Syntax), "{bad}");
        }
    }

    #[test]
    fn floats_are_written_as_javascript_does_but_never_as_integers() {
        let check = |number: f64, text: &str| {
            let mut out = String::new();
            push_float(&mut out, number);
            assert_eq!(out, text);
            let again = text.parse().map_or(true, |again: f64| again.to_bits() == number.to_bits());
            assert!(again, "{text}");
        };
        check(0.0, "0.0");
        check(-0.0, "-0.0");
        check(10.0, "10.0");
        check(1e21, "1e+21");
        check(1e20, "100000000000000000000.0");
        check(1e-7, "1e-7");
        check(1e-6, "0.000001");
        check(-1.5, "-1.5");
        check(5e-324, "5e-324");
        check(f64::NAN, "null");
        check(f64::NEG_INFINITY, "null");
    }

    #[test]
    fn nesting_is_counted_outside_of_strings() {
        assert!(nests_within(r#"["[[[\"[[[","\\",[]]"#, 2));
        assert!(!nests_within(r#"{"a":[[]]}"#, 2));
        assert!(nests_within("]]]][", 1));
    }
}
