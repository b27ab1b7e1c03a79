//! The client's side of a WebSocket, as far as benches need it.

use std::net::SocketAddr;

/// The headers that browsers and npm's ws send alike: what a server keeps of a request is part of what
/// a connection costs. The key is the one in RFC 6455; any will do.
pub(crate) fn upgrade_request(server: SocketAddr) -> String {
    format!(
        "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {server}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
}

/// A short text frame. Its mask is zero, which leaves the payload as it is.
pub(crate) fn text_frame(packet: &str) -> Vec<u8> {
    let length = u8::try_from(packet.len()).ok().filter(|length| *length < 126);
    let length = length.expect("what clients send here is short");
    let mut frame = vec![0x81, 0x80 | length, 0, 0, 0, 0];
    frame.extend_from_slice(packet.as_bytes());
    frame
}
