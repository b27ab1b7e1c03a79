//! The bytes of WebSocket (RFC 6455): the answer to a handshake, frames in and out. Pure.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// What a server appends to the client's key before hashing it (RFC 6455, 1.3).
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the largest message may take; Node's `maxHttpBufferSize`.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1_000_000;

/// No client's request is that long.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;

/// What came is not what a client of the load test sends: its connection is closed.
#[derive(Debug, PartialEq)]
pub(crate) struct Unexpected;

/// The answer to a request whose head begins `bytes`, and the head's length; `None` if the head is not
/// there in full.
pub(crate) fn accept(bytes: &[u8]) -> Result<Option<(String, usize)>, Unexpected> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(|_| Unexpected)? else {
        return if bytes.len() < HEAD_BYTES_MAX { Ok(None) } else { Err(Unexpected) };
    };
    let path = request.path.ok_or(Unexpected)?;
    if !path.starts_with("/socket.io/?") || !path.contains("EIO=4") {
        return Err(Unexpected);
    }
    // A request of the polling transport has none.
    let key = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("sec-websocket-key"));
    let mut hash = sha1_smol::Sha1::from(key.ok_or(Unexpected)?.value);
    hash.update(ACCEPT_GUID.as_bytes());
    let accept = STANDARD.encode(hash.digest().bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Ok(Some((answer, length)))
}

/// Appends a text frame.
pub(crate) fn write_text(frames: &mut Vec<u8>, payload: &[u8]) {
    frames.push(0x81);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => frames.push(length),
        (_, Ok(length)) => {
            frames.push(126);
            frames.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            frames.push(127);
            frames.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frames.extend_from_slice(payload);
}

/// Where the payload of the text frame at the beginning of `bytes` is, unmasked; the frame ends where
/// the payload does. `None` if the frame is not there in full.
///
/// A client of the load test sends nothing but unfragmented text, and ends a connection with a close
/// frame, which is as good a reason to close it as any.
pub(crate) fn read_text(bytes: &mut [u8]) -> Result<Option<Range<usize>>, Unexpected> {
    let &[first, second, ref rest @ ..] = &*bytes else { return Ok(None) };
    let (fin_and_text, masked) = (first == 0x81, second & 0x80 != 0);
    if !fin_and_text || !masked {
        return Err(Unexpected);
    }
    let (length, mask_at) = match (second & 0x7f, rest) {
        (126, &[a, b, ..]) => (u16::from_be_bytes([a, b]).into(), 4),
        (127, &[a, b, c, d, e, f, g, h, ..]) => {
            let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            (usize::try_from(length).map_err(|_| Unexpected)?, 10)
        }
        (126 | 127, _) => return Ok(None),
        (length, _) => (length.into(), 2),
    };
    if length > PAYLOAD_BYTES_MAX {
        return Err(Unexpected);
    }
    let payload = mask_at + 4..mask_at + 4 + length;
    if bytes.len() < payload.end {
        return Ok(None);
    }
    let (head, body) = bytes.split_at_mut(payload.start);
    let mask = &head[mask_at..];
    if mask != [0; 4] {
        for (at, byte) in body[..length].iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
    }
    Ok(Some(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame around `payload`.
    fn masked(payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = Vec::new();
        write_text(&mut frame, payload);
        let payload_at = frame.len() - payload.len();
        frame[1] |= 0x80;
        for (at, byte) in frame[payload_at..].iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
        frame.splice(payload_at..payload_at, mask);
        frame
    }

    #[test]
    fn a_frame_of_any_length_is_read_once_it_is_there_in_full() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, PAYLOAD_BYTES_MAX] {
            let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut frame = masked(&payload);
            let whole = frame.len();
            for cut in [0, 1, 2, 5, whole - 1].into_iter().filter(|cut| *cut < whole) {
                assert_eq!(read_text(&mut frame[..cut]), Ok(None), "{cut} of {whole} bytes");
            }
            frame.extend_from_slice(b"next");
            let found = read_text(&mut frame).unwrap().unwrap();
            assert_eq!(found.end, whole);
            assert!(frame[found] == payload, "{length} bytes");
        }
    }

    #[test]
    fn what_is_not_a_short_masked_text_is_refused() {
        let binary = [0x82, 0x80, 0, 0, 0, 0];
        let fragment = [0x01, 0x80, 0, 0, 0, 0];
        let close = [0x88, 0x80, 0, 0, 0, 0];
        let unmasked = [0x81, 0x01, b'2', 0, 0, 0];
        for mut frame in [binary, fragment, close, unmasked] {
            assert_eq!(read_text(&mut frame), Err(Unexpected), "{frame:02x?}");
        }
        assert_eq!(read_text(&mut masked(&vec![0; PAYLOAD_BYTES_MAX + 1])), Err(Unexpected));
    }

    #[test]
    fn the_answer_to_the_handshake_of_the_rfc() {
        let request = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n\
                        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nmore";
        assert_eq!(accept(&request[..40]), Ok(None));
        let (answer, length) = accept(request).unwrap().unwrap();
        assert!(answer.contains("Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert_eq!(&request[length..], b"more");
        let polling = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\n\r\n";
        assert_eq!(accept(polling), Err(Unexpected));
    }
}
