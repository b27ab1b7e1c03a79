//! The client's address when a proxy stands between.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header::FORWARDED};

use crate::config::{ForwardingHeader, Proxy};

/// The client's address: the peer's own, or, when the peer is a trusted proxy, the last one in the
/// forwarding header that is not a trusted proxy too. Everything before that one was written by
/// somebody nobody vouches for.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, proxy: &Proxy) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted(peer, proxy) {
        return peer;
    }
    let (name, parse): (HeaderName, fn(&str) -> Option<IpAddr>) = match proxy.header {
        ForwardingHeader::XForwardedFor => (HeaderName::from_static("x-forwarded-for"), node),
        ForwardingHeader::Forwarded => (FORWARDED, forwarded_for),
    };
    let mut client = peer;
    // Several headers of one name read as one list (RFC 9110, section 5.3).
    for value in headers.get_all(name).iter().rev() {
        for hop in value.to_str().unwrap_or_default().rsplit(',') {
            // An entry that is no address (`unknown`, `_hidden`) hides what is before it.
            let Some(address) = parse(hop.trim()) else { return client };
            client = address;
            if !trusted(client, proxy) {
                return client;
            }
        }
    }
    client
}

/// Whether `peer` may say who its client is.
pub(crate) fn trusted(peer: IpAddr, proxy: &Proxy) -> bool {
    let peer = peer.to_canonical();
    proxy.trusted.iter().any(|network| network.contains(&peer))
}

/// The `for` parameter of one element of `Forwarded` (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("for").then(|| node(value))?
    })
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(peer: &str, header: ForwardingHeader, lines: &[(&'static str, &str)], client: &str) {
        let trusted = ["10.0.0.0/8", "2001:db8:ffff::/48"];
        let trusted = trusted.map(|network| network.parse().expect("a network")).to_vec();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a header value"));
        }
        let proxy = Proxy { trusted, header };
        let found = client_address(peer.parse().expect("an address"), &headers, &proxy);
        assert_eq!(found.to_string(), client, "{peer} {lines:?}");
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        use ForwardingHeader::{Forwarded, XForwardedFor};
        let xff = "x-forwarded-for";
        check("192.0.2.9", XForwardedFor, &[(xff, "1.2.3.4")], "192.0.2.9");
        check("10.0.0.1", XForwardedFor, &[(xff, "1.2.3.4")], "1.2.3.4");
        check("::ffff:10.0.0.1", XForwardedFor, &[(xff, "1.2.3.4")], "1.2.3.4");
        check("10.0.0.1", XForwardedFor, &[], "10.0.0.1");
        check("10.0.0.1", XForwardedFor, &[("forwarded", "for=1.2.3.4")], "10.0.0.1");
        // What the client wrote itself stands before what the proxies wrote.
        check("10.0.0.1", XForwardedFor, &[(xff, "6.6.6.6, 1.2.3.4, 10.0.0.2")], "1.2.3.4");
        check("10.0.0.1", XForwardedFor, &[(xff, "6.6.6.6"), (xff, "1.2.3.4:99")], "1.2.3.4");
        check("10.0.0.1", XForwardedFor, &[(xff, "6.6.6.6, rubbish, 10.0.0.2")], "10.0.0.2");
        check("10.0.0.1", XForwardedFor, &[(xff, "rubbish")], "10.0.0.1");
        let list = r#"for=6.6.6.6, for="[2001:db8::7]:4711";proto=https, For=10.0.0.2"#;
        check("10.0.0.1", Forwarded, &[("forwarded", list)], "2001:db8::7");
        check("10.0.0.1", Forwarded, &[("forwarded", "for=unknown")], "10.0.0.1");
        check("10.0.0.1", Forwarded, &[("forwarded", "proto=https")], "10.0.0.1");
        check("2001:db8:ffff::1", Forwarded, &[("forwarded", "for=1.2.3.4")], "1.2.3.4");
    }
}
