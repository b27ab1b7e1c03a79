//! Where a client's WebSocket frames begin and end (RFC 6455, section 5.2), found by their headers
//! alone.

/// Follows the frame headers in a stream of bytes that is cut anywhere.
///
/// It trusts the lengths that the client states. A client that lies about them only confuses the
/// parser that reads the same bytes after it, and is closed for that.
#[derive(Debug, Default)]
pub(crate) struct ClientFrames {
    header: [u8; 14],
    header_bytes: u8,
    payload_left: u64,
}

impl ClientFrames {
    /// Whether the stream stands between two frames.
    pub(crate) fn between(&self) -> bool {
        self.header_bytes == 0 && self.payload_left == 0
    }

    /// Takes the next bytes of the stream. Returns the end of the first frame that ends in them.
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
                }
            }
            if self.between() {
                first_end.get_or_insert(at);
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

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x81];
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
            payloads in prop::collection::vec((sizes(), any::<bool>()), 1..6),
            cuts in prop::collection::vec(1..5000usize, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for (payload, masked) in payloads {
                stream.extend(frame(payload, masked));
                ends.push(stream.len());
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
