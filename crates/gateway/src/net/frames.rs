//! Where a client's WebSocket messages begin and end (RFC 6455, section 5.2), found by the headers of
//! their frames alone.

/// Follows the frame headers in a stream of bytes that is cut anywhere, from the client's first frame
/// on. A client that sends frames before it has been told that it may is not followed correctly, and
/// only itself the worse for it.
#[derive(Debug, Default)]
pub(crate) struct ClientFrames {
    header: [u8; 14],
    header_bytes: u8,
    payload_left: u64,
    /// The message goes on in a further frame.
    unfinished: bool,
    messages: u8,
}

impl ClientFrames {
    /// Whether the stream stands between two messages.
    pub(crate) fn between(&self) -> bool {
        self.header_bytes == 0 && self.payload_left == 0 && !self.unfinished
    }

    /// How many messages have ended, of the first 255.
    pub(crate) fn messages(&self) -> u8 {
        self.messages
    }

    /// Takes the next bytes of the stream. Returns the first end of a message in them.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut first_end = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.payload_left > 0 {
                let left = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
                let step = left.min(bytes.len() - at);
                self.payload_left -= step as u64;
                at += step;
            } else {
                self.header[usize::from(self.header_bytes)] = bytes[at];
                self.header_bytes += 1;
                at += 1;
                if self.header_bytes == self.header_len() {
                    self.payload_left = self.payload_len();
                    self.header_bytes = 0;
                    let [first, ..] = self.header;
                    let (fin, control) = (first & 0x80 != 0, first & 0x08 != 0);
                    if !control {
                        self.unfinished = !fin;
                    }
                }
            }
            if self.between() {
                first_end.get_or_insert(at);
                self.messages = self.messages.saturating_add(1);
            }
        }
        first_end
    }

    /// How long the header is, as far as its first bytes tell.
    fn header_len(&self) -> u8 {
        if self.header_bytes < 2 {
            return 2;
        }
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + extended + mask
    }

    fn payload_len(&self) -> u64 {
        let [_, second, a, b, c, d, e, f, g, h, ..] = self.header;
        match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([a, b])),
            127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            short => u64::from(short),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FINAL: u8 = 0x81;
    const FRAGMENT: u8 = 0x01;
    const PING: u8 = 0x89;

    fn frame(first: u8, payload: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload {
            0..126 => bytes.push(bit | payload as u8),
            126..65536 => {
                bytes.push(bit | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(if masked { &[1, 2, 3, 4][..] } else { &[] });
        bytes.resize(bytes.len() + payload, 0xff);
        bytes
    }

    fn sizes() -> impl Strategy<Value = usize> {
        prop_oneof![0..3usize, 120..130usize, 65530..65540usize, 0..70000usize]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn ends_are_found_wherever_the_stream_is_cut(
            payloads in prop::collection::vec((0..3usize, sizes(), any::<bool>()), 1..6),
            cuts in prop::collection::vec(1..5000usize, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            let mut unfinished = false;
            for (kind, payload, masked) in payloads {
                let first = [FINAL, FRAGMENT, PING][kind];
                stream.extend(frame(first, payload, masked));
                unfinished = first == FRAGMENT || first == PING && unfinished;
                if !unfinished {
                    ends.push(stream.len());
                }
            }
            let mut frames = ClientFrames::default();
            let mut at = 0;
            for cut in cuts.into_iter().cycle() {
                prop_assert_eq!(frames.between(), ends.contains(&at));
                if at == stream.len() {
                    break;
                }
                let next = stream.len().min(at + cut);
                let expected = ends.iter().find(|end| **end > at && **end <= next);
                let found = frames.advance(&stream[at..next]);
                prop_assert_eq!(found.map(|end| at + end), expected.copied());
                at = next;
            }
        }
    }
}
