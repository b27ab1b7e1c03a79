//! Handshake info: how a client introduced itself, kept for remote nodes that ask (Node:
//! `remoteSocket.handshake`) and for the handlers of a Rust application.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use antiphon_adapter::wire;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};

/// Headers that hold secrets. Node shows them to every server of the cluster; here they stay on this node.
const SECRETS: [HeaderName; 3] =
    [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];

/// The head of a client's first request. It is kept for as long as the session, so it is one block of
/// memory: the URI, then names and values in turn, each with a zero byte behind it, which none of them
/// can contain.
#[derive(Debug)]
pub(crate) struct HandshakeInfo(Box<[u8]>);

impl HandshakeInfo {
    pub(crate) fn new(uri: &Uri, headers: &HeaderMap) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        let mut append = |part: &[u8]| {
            bytes.extend_from_slice(part);
            bytes.push(0);
        };
        append(uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes());
        for (name, value) in headers {
            append(name.as_str().as_bytes());
            append(value.as_bytes());
        }
        Self(bytes.into_boxed_slice())
    }

    fn parts(&self) -> (&[u8], impl Iterator<Item = (&[u8], &[u8])>) {
        let mut parts = self.0.split(|byte| *byte == 0);
        let uri = parts.next().unwrap_or_default();
        (uri, std::iter::from_fn(move || Some((parts.next()?, parts.next()?))))
    }

    /// The request again, without a body.
    pub(crate) fn request(&self) -> Request<()> {
        let (uri, headers) = self.parts();
        let mut request = Request::new(());
        *request.uri_mut() = Uri::try_from(uri).unwrap_or_default();
        for (name, value) in headers {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            {
                request.headers_mut().append(name, value);
            }
        }
        request
    }

    /// As Node describes it to other servers: headers by name, in lower case, with several values in one.
    pub(crate) fn describe(
        &self,
        address: IpAddr,
        opened: SystemTime,
        auth: Option<&str>,
    ) -> wire::Handshake {
        let request = self.request();
        let (uri, headers) = (request.uri(), request.headers());
        let issued = opened.duration_since(UNIX_EPOCH).unwrap_or_default();
        wire::Handshake {
            headers: described(headers),
            issued_ms: i64::try_from(issued.as_millis()).unwrap_or(i64::MAX),
            address: address.to_string(),
            xdomain: headers.contains_key(header::ORIGIN),
            // TLS ends at the balancer.
            secure: false,
            url: uri.to_string(),
            query: form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
            auth: auth.unwrap_or("{}").to_owned(),
        }
    }
}

fn described(map: &HeaderMap) -> Vec<(String, String)> {
    let shared = map.keys().filter(|name| !SECRETS.contains(name));
    let values = |name| {
        let values = map.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect::<Vec<_>>().join(", ")
    };
    shared.map(|name| (name.as_str().to_owned(), values(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_static(""));
        headers.append("cookie", HeaderValue::from_static("secret"));
        headers.append("x-b", HeaderValue::from_bytes(b"\xff").expect("opaque bytes"));
        let uri = Uri::from_static("/socket.io/?EIO=4&transport=polling&a=%20b");
        let info = HandshakeInfo::new(&uri, &headers);
        let request = info.request();
        assert_eq!((request.uri(), request.headers()), (&uri, &headers));
        let described = info.describe([127, 0, 0, 1].into(), UNIX_EPOCH, None);
        let header = |name: &str| described.headers.iter().find(|(one, _)| one == name);
        assert_eq!(header("x-a").map(|(_, value)| &**value), Some("1, "));
        assert_eq!(header("cookie"), None);
        assert_eq!(described.url, uri.to_string());
        assert!(described.query.contains(&("a".to_owned(), " b".to_owned())));
    }
}
