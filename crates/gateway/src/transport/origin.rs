//! Which web pages may connect.

use http::{HeaderMap, header};

use crate::config::AllowedOrigins;

/// The origins that may connect. A browser names the page's origin in its request; other clients need
/// not, and some name the server's own.
#[derive(Debug, Clone)]
pub struct Origins(AllowedOrigins);

impl Origins {
    /// As configured.
    pub fn new(allowed: &AllowedOrigins) -> Self {
        Self(allowed.clone())
    }

    /// Whether a request with these headers may go on.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let AllowedOrigins::List(list) = &self.0 else { return true };
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let listed = |one: &String| origin.as_bytes().eq_ignore_ascii_case(one.as_bytes());
        list.iter().any(listed) || is_own(origin.to_str().unwrap_or_default(), headers)
    }
}

/// Whether the origin is the server itself, as the client calls it. TLS ends at a balancer, so that the
/// scheme says nothing; a port that is usual for it may be left out on either side.
fn is_own(origin: &str, headers: &HeaderMap) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let port = match scheme {
        "http" | "ws" => ":80",
        "https" | "wss" => ":443",
        _ => return false,
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let bare =
        |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
    !host.is_empty() && bare(host) == bare(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_origins_and_the_servers_own_may_connect() {
        let list = ["https://app.example", "null", "file://"].map(str::to_owned).to_vec();
        let origins = Origins::new(&AllowedOrigins::List(list));
        let check = |origin: &str, host: &str, allowed: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().expect("a header value"));
            headers.insert(header::HOST, host.parse().expect("a header value"));
            assert_eq!(origins.allow(&headers), allowed, "{origin} at {host}");
        };
        check("https://APP.example", "chat.example", true);
        check("https://other.example", "chat.example", false);
        check("https://chat.example", "chat.example", true);
        check("https://chat.example:443", "CHAT.example", true);
        check("https://chat.example:444", "chat.example", false);
        check("http://chat.example:5000", "chat.example:5000", true);
        check("null", "chat.example", true);
        check("file://", "chat.example", true);
        check("gopher://chat.example", "chat.example", false);
        assert!(origins.allow(&HeaderMap::new()), "a client that is no web page");
    }
}
