//! Which names a server answers to, and which pages may ask it. Owns the defence against a page of
//! somebody else in an operator's browser: one whose name suddenly points here (DNS rebinding), and one that
//! sends a request without reading the reply.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// Names that may stand in `Host`, besides addresses and `localhost`.
#[derive(Clone, Debug)]
pub(crate) struct Hosts(Arc<[String]>);

impl Hosts {
    pub(crate) fn new(names: &[String]) -> Self {
        Self(names.into())
    }

    /// Whether the request was meant for this server. An address cannot be made to point elsewhere; a name
    /// can.
    pub(crate) fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(authority) = host(headers) else {
            return false;
        };
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.0.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// Whether the request comes from no page, or from one of this server.
pub(crate) fn same_origin(headers: &HeaderMap) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return true,
        (Some(origin), None) => origin
            .to_str()
            .ok()
            .and_then(|text| text.parse::<Uri>().ok()),
        (Some(_), Some(_)) => None,
    };
    let origin = origin.and_then(|origin| origin.into_parts().authority);
    origin.is_some() && origin == host(headers)
}

/// The one `Host` of the request.
fn host(headers: &HeaderMap) -> Option<Authority> {
    let mut values = headers.get_all(header::HOST).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn addresses_localhost_and_named_hosts_are_allowed() {
        let hosts = Hosts::new(&["status.example.com".to_owned()]);
        let allows = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            hosts.allow(&headers)
        };
        for host in [
            "127.0.0.1:9464",
            "10.1.2.3",
            "[::1]:9464",
            "localhost:8080",
            "LOCALHOST",
            "Status.example.com:80",
        ] {
            assert!(allows(host), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "status.example.com.evil.example",
            "",
            "a b",
        ] {
            assert!(!allows(host), "{host}");
        }
        assert!(!hosts.allow(&HeaderMap::new()));
    }

    #[test]
    fn a_page_of_another_server_is_told_by_its_origin() {
        let same = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:8787"));
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            same_origin(&headers)
        };
        assert!(same("http://127.0.0.1:8787"));
        for other in ["null", "http://127.0.0.1:3000", "https://evil.example", ""] {
            assert!(!same(other), "{other}");
        }
        assert!(same_origin(&HeaderMap::new()));
    }
}
