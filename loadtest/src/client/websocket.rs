//! WebSocket frames: written masked, read in place.

/// A longer one ends the connection: no server here sends what does not fit.
const FRAME_BYTES_MAX: u64 = 64 << 20;

/// Bytes of the key that [`upgrade_request`] sends. RFC 6455 has it random so that caches
/// between client and server are found out; there are none here. This is the RFC's own example.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What a server makes of [`KEY`].
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Kinds of frames.
pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// What is at the beginning of some bytes from a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// A whole frame.
    Frame { kind: u8, payload: &'a [u8], length: usize },
    /// The beginning of a frame; so many bytes are it, or of its head if that is not known.
    Partial { length: usize },
    /// Nothing that a server may send, or fragments, which none of ours sends.
    Bad,
}

/// Reads one frame.
#[inline]
pub(super) fn read(bytes: &[u8]) -> Step<'_> {
    let &[first, second, ..] = bytes else { return Step::Partial { length: 2 } };
    // Whole (FIN), not compressed, not masked, and of a kind there is.
    let kind = first & 15;
    if first & 0xf0 != 0x80 || second & 0x80 != 0 || !matches!(kind, 1 | 2 | 8..=10) {
        return Step::Bad;
    }
    let (head, payload) = match second {
        126 => match bytes[2..].first_chunk() {
            Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
            None => return Step::Partial { length: 4 },
        },
        127 => match bytes[2..].first_chunk() {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Step::Partial { length: 10 },
        },
        short => (2, u64::from(short)),
    };
    if payload > FRAME_BYTES_MAX {
        return Step::Bad;
    }
    let length = head + payload as usize;
    match bytes.get(head..length) {
        Some(payload) => Step::Frame { kind, payload, length },
        None => Step::Partial { length },
    }
}

/// Appends a frame; `fill` appends its payload. Any mask is as good as another to a server that is not
/// attacked through a proxy, which is what the RFC has unpredictable ones for.
pub(super) fn write(out: &mut Vec<u8>, kind: u8, mask: [u8; 4], fill: impl FnOnce(&mut Vec<u8>)) {
    const HEAD_MAX: usize = 14;
    let start = out.len();
    out.resize(start + HEAD_MAX, 0);
    fill(out);
    let length = out.len() - start - HEAD_MAX;
    let mut head = [0; HEAD_MAX];
    head[0] = 0x80 | kind;
    let used = if length < 126 {
        head[1] = 0x80 | length as u8;
        2
    } else if let Ok(length) = u16::try_from(length) {
        head[1] = 0x80 | 126;
        head[2..4].copy_from_slice(&length.to_be_bytes());
        4
    } else {
        head[1] = 0x80 | 127;
        head[2..10].copy_from_slice(&(length as u64).to_be_bytes());
        10
    };
    head[used..used + 4].copy_from_slice(&mask);
    out[start..start + used + 4].copy_from_slice(&head[..used + 4]);
    out.drain(start + used + 4..start + HEAD_MAX);
    let payload = &mut out[start + used + 4..];
    let mut chunks = payload.chunks_exact_mut(4);
    for chunk in &mut chunks {
        chunk.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    chunks.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// The request that turns an HTTP connection into a WebSocket.
pub(super) fn upgrade_request(host: &str, path_and_query: &str) -> Vec<u8> {
    format!(
        "GET {path_and_query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
    .into_bytes()
}

/// Whether the server's answer to the key is right.
pub(super) fn accepts(answer: Option<&[u8]>) -> bool {
    answer == Some(ACCEPT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a server would write: not masked.
    fn server_frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write(&mut frame, kind, [0; 4], |out| out.extend_from_slice(payload));
        let mask = match frame[1] & 127 {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        frame[1] &= 127;
        frame.drain(mask..mask + 4);
        frame
    }

    proptest! {
        #[test]
        fn a_frame_is_read_whole_and_only_whole(size in prop_oneof![0usize..300, 65_000usize..66_000], extra: Vec<u8>) {
            let payload: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let mut bytes = server_frame(TEXT, &payload);
            let length = bytes.len();
            for cut in [0, 1, 2, 3, 5, 9, length - 1].into_iter().filter(|cut| *cut < length) {
                let needs = match read(&bytes[..cut]) {
                    Step::Partial { length: needs } => needs,
                    other => panic!("{other:?}"),
                };
                prop_assert!(needs > cut && needs <= length);
            }
            bytes.extend(extra);
            prop_assert_eq!(read(&bytes), Step::Frame { kind: TEXT, payload: &payload, length });
        }

        #[test]
        fn anything_is_read_without_panic(bytes: Vec<u8>) {
            read(&bytes);
        }

        #[test]
        fn masking_is_undone_by_masking(payload: Vec<u8>, mask: [u8; 4]) {
            let mut frame = Vec::new();
            write(&mut frame, TEXT, mask, |out| out.extend_from_slice(&payload));
            let body = frame.len() - payload.len();
            prop_assert_eq!(&frame[body - 4..body], &mask);
            let plain: Vec<u8> =
                frame[body..].iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
            prop_assert_eq!(plain, payload);
        }
    }

    #[test]
    fn masked_compressed_and_fragmented_frames_are_refused() {
        for bad in [[0x81, 0x80], [0xc1, 0], [0x01, 0], [0x80, 0], [0x83, 0]] {
            assert_eq!(read(&bad), Step::Bad, "{bad:x?}");
        }
    }
}
