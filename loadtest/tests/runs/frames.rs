//! The server's side of a WebSocket, as far as a server for tests needs it.

/// Takes a masked frame of less than 64 KiB off the beginning; what it says.
pub(crate) fn take_frame(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (head, length) = match *bytes.get(1)? & 127 {
        126 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        short => (2, usize::from(short)),
    };
    let mask: [u8; 4] = bytes.get(head..head + 4)?.try_into().ok()?;
    let payload = bytes.get(head + 4..head + 4 + length)?;
    let packet = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    bytes.drain(..head + 4 + length);
    Some(packet)
}

/// Puts an unmasked frame of less than 64 KiB at the end.
pub(crate) fn push_frame(out: &mut Vec<u8>, packet: &[u8]) {
    out.push(0x81);
    match packet.len() {
        short @ 0..126 => out.push(short as u8),
        long => {
            out.push(126);
            out.extend_from_slice(&(long as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(packet);
}
