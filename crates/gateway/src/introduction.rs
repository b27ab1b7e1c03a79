//! How clients introduced themselves, for peers that ask (Node: `remoteSocket.handshake`).

use std::{sync::Arc, time::UNIX_EPOCH};

use antiphon_adapter::wire::Handshake;
use http::{HeaderMap, HeaderName, header};
use socketioxide::{
    SocketIo,
    socket::{Sid, Socket},
};
use socketioxide_core::Value;

use crate::{events::Adapter, payload, sessions::Session};

/// What came with a CONNECT packet is kept up to this size. It is there for as long as the socket, and peers get
/// it with each list of sockets.
const AUTH_BYTES_MAX: usize = 4096;

/// Headers that hold secrets. Node shows them to every server of the cluster; here they stay on this node.
const SECRETS: [HeaderName; 3] =
    [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];

/// What came with the CONNECT packet, in JSON.
#[derive(Clone)]
struct Auth(Arc<str>);

/// Keeps what came with the CONNECT packet, if it is an object that peers can read.
pub(crate) fn keep_auth(socket: &Socket<Adapter>, auth: Option<&Value>, max_depth: usize) {
    let Some(Value::Str(text, None)) = auth else { return };
    if text.len() <= AUTH_BYTES_MAX && payload::is_readable_object(text, max_depth) {
        socket.extensions.insert(Auth(text.as_str().into()));
    }
}

/// How the client `sid` of the namespace at `path` introduced itself; `None` if it has left.
pub(crate) fn handshake(io: &SocketIo<Adapter>, path: &str, sid: Sid) -> Option<Handshake> {
    let socket = io.of(path)?.get_socket(sid)?;
    let request = socket.req_parts();
    let session = request.extensions.get::<Arc<Session>>()?;
    let uri = &request.uri;
    let issued = session.opened.duration_since(UNIX_EPOCH).unwrap_or_default();
    let auth = socket.extensions.get::<Auth>();
    Some(Handshake {
        headers: headers(&request.headers),
        issued_ms: i64::try_from(issued.as_millis()).unwrap_or(i64::MAX),
        address: session.client.to_string(),
        xdomain: request.headers.contains_key(header::ORIGIN),
        // TLS ends at the balancer.
        secure: false,
        url: uri.path_and_query().map_or_else(String::new, ToString::to_string),
        query: form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect(),
        auth: auth.map_or_else(|| "{}".to_owned(), |Auth(json)| json.to_string()),
    })
}

/// As Node has them: by name, in lower case, with several values in one.
fn headers(map: &HeaderMap) -> Vec<(String, String)> {
    let shared = map.keys().filter(|name| !SECRETS.contains(name));
    let values = |name| {
        let values = map.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect::<Vec<_>>().join(", ")
    };
    shared.map(|name| (name.as_str().to_owned(), values(name))).collect()
}
