//! Which names the pages answer to. Owns the defence against DNS rebinding: a page of somebody else
//! whose name suddenly points here would otherwise read the status in an operator's browser.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::text;

/// Names that may stand in `Host`, besides addresses and `localhost`.
#[derive(Clone, Debug)]
pub(super) struct Hosts(Arc<[String]>);

impl Hosts {
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.into())
    }

    /// An address cannot be made to point elsewhere; a name can.
    fn allow(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::HOST).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let Ok(authority) = value.to_str().unwrap_or_default().parse::<Authority>() else {
            return false;
        };
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.0.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

pub(super) async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    if hosts.allow(request.headers()) {
        return next.run(request).await;
    }
    text(
        StatusCode::MISDIRECTED_REQUEST,
        "this host name is not known here; open the page by address, or add the name to ops.hosts\n",
    )
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
}
