//! Engine.IO as far as a client needs it: the two protocols, their handshake, and the payloads of polling.

use std::ops::Range;

/// A longer answer is refused: no server here sends what does not fit.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The revision of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eio {
    /// Clients up to Socket.IO 2: the client pings.
    V3,
    /// Clients since Socket.IO 3: the server pings.
    V4,
}

impl Eio {
    /// As it stands in the query.
    pub fn number(self) -> u8 {
        match self {
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }
}

/// What packets travel in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One WebSocket from the start.
    WebSocket,
    /// HTTP requests, never upgraded.
    Polling,
}

impl Transport {
    /// As it stands in the query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Polling => "polling",
        }
    }
}

/// What a server says when it opens a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) sid: String,
    pub(super) ping_interval_ms: u64,
    pub(super) ping_timeout_ms: u64,
}

/// Reads an open packet, without its leading `0`.
pub(super) fn read_open(text: &[u8]) -> Option<Open> {
    let value: serde_json::Value = serde_json::from_slice(text).ok()?;
    Some(Open {
        sid: value.get("sid")?.as_str()?.to_owned(),
        ping_interval_ms: value.get("pingInterval")?.as_u64()?,
        ping_timeout_ms: value.get("pingTimeout")?.as_u64()?,
    })
}

/// Appends a packet to the body of a POST.
pub(super) fn append_packet(eio: Eio, body: &mut Vec<u8>, packet: &[u8]) {
    match eio {
        Eio::V4 => {
            if !body.is_empty() {
                body.push(0x1e);
            }
        }
        Eio::V3 => {
            // Everything a client here sends is ASCII, so that characters are bytes.
            body.extend_from_slice(packet.len().to_string().as_bytes());
            body.push(b':');
        }
    }
    body.extend_from_slice(packet);
}

/// Takes the first packet off the body of an answer. `None`: nothing that a server may send.
pub(super) fn first_packet(eio: Eio, body: &[u8]) -> Option<(Range<usize>, usize)> {
    match eio {
        Eio::V4 => {
            let end = body.iter().position(|byte| *byte == 0x1e).unwrap_or(body.len());
            Some((0..end, (end + 1).min(body.len())))
        }
        Eio::V3 => {
            let colon = body.iter().take(12).position(|byte| *byte == b':')?;
            let characters: usize = std::str::from_utf8(&body[..colon]).ok()?.parse().ok()?;
            let start = colon + 1;
            let end = start + utf16_length(&body[start..], characters)?;
            Some((start..end, end))
        }
    }
}

/// How many bytes so many of JavaScript's characters take.
fn utf16_length(bytes: &[u8], characters: usize) -> Option<usize> {
    let (mut at, mut seen) = (0, 0);
    while seen < characters {
        let (length, units) = match bytes.get(at)? {
            0..=0x7f => (1, 1),
            0x80..=0xdf => (2, 1),
            0xe0..=0xef => (3, 1),
            0xf0..=0xff => (4, 2),
        };
        at += length;
        seen += units;
    }
    (at <= bytes.len()).then_some(at)
}

/// The head of an HTTP answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The body, which begins behind the head and is all there; of a chunked one the chunks are joined.
    pub(super) body: Vec<u8>,
    /// Bytes of the answer.
    pub(super) length: usize,
    pub(super) keep_alive: bool,
    pub(super) accept: Option<Vec<u8>>,
}

/// Reads an answer. `Ok(None)`: it is not all there yet. `Err`: it is not HTTP.
pub(super) fn read_answer(bytes: &[u8]) -> Result<Option<Answer>, ()> {
    if bytes.len() as u64 > ANSWER_BYTES_MAX {
        return Err(());
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = answer.parse(bytes).map_err(drop)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    };
    let text = |name| header(name).and_then(|value| std::str::from_utf8(value).ok());
    let status = answer.code.ok_or(())?;
    let rest = &bytes[head..];
    let chunked = text("transfer-encoding").is_some_and(|te| te.eq_ignore_ascii_case("chunked"));
    let (body, length) = if status == 101 || status == 204 {
        (Vec::new(), 0)
    } else if chunked {
        match join_chunks(rest)? {
            Some(joined) => joined,
            None => return Ok(None),
        }
    } else {
        let length: usize = text("content-length").unwrap_or("0").trim().parse().map_err(drop)?;
        match rest.get(..length) {
            Some(body) => (body.to_vec(), length),
            None => return Ok(None),
        }
    };
    Ok(Some(Answer {
        status,
        body,
        length: head + length,
        keep_alive: !text("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")),
        accept: header("sec-websocket-accept").map(<[u8]>::to_vec),
    }))
}

fn join_chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let httparse::Status::Complete((head, size)) =
            httparse::parse_chunk_size(&bytes[at..]).map_err(drop)?
        else {
            return Ok(None);
        };
        if size > ANSWER_BYTES_MAX {
            return Err(());
        }
        let (start, end) = (at + head, at + head + size as usize);
        let Some(chunk) = bytes.get(start..end + 2).map(|_| &bytes[start..end]) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        at = end + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_packets(eio: Eio, body: &str, expected: &[&str]) {
        let (mut at, mut packets) = (0, Vec::new());
        while at < body.len() {
            let (packet, next) = first_packet(eio, &body.as_bytes()[at..]).expect("a packet");
            packets.push(&body[at + packet.start..at + packet.end]);
            at += next;
        }
        assert_eq!(packets, expected);
    }

    #[test]
    fn packets_of_both_protocols() {
        check_packets(Eio::V4, "2\x1e42[\"a\"]", &["2", "42[\"a\"]"]);
        check_packets(Eio::V4, "6", &["6"]);
        check_packets(Eio::V3, "2:405:4aé😀1:6", &["40", "4aé😀", "6"]);
    }

    #[test]
    fn what_is_written_is_read() {
        for eio in [Eio::V3, Eio::V4] {
            let mut body = Vec::new();
            append_packet(eio, &mut body, b"40");
            append_packet(eio, &mut body, b"42[\"a\"]");
            check_packets(eio, std::str::from_utf8(&body).unwrap(), &["40", "42[\"a\"]"]);
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for body in ["9:40", ":40", "x:40", "40", "99999999999999999999:4"] {
            assert_eq!(first_packet(Eio::V3, body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn answers_with_a_length_and_in_chunks() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellorest";
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                        2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\nrest";
        for (bytes, keep_alive) in [(&plain[..], true), (&chunked[..], false)] {
            let answer = read_answer(bytes).unwrap().unwrap();
            assert_eq!((answer.status, &answer.body[..]), (200, &b"hello"[..]));
            assert_eq!(&bytes[answer.length..], b"rest");
            assert_eq!(answer.keep_alive, keep_alive);
            for cut in 0..answer.length {
                assert_eq!(read_answer(&bytes[..cut]), Ok(None), "cut at {cut}");
            }
        }
        assert_eq!(read_answer(b"garbage\r\n\r\n"), Err(()));
    }
}
