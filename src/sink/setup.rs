//! What a client of the API needs to know before it opens a socket, checked once.
//!
//! Owns the checks of addresses, ids and certificates and the limits of the HTTP client. Knows
//! nothing of requests.

use std::error::Error as StdError;
use std::fmt;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Proxy, Url};

use super::token::{TokenError, TokenSource};
use crate::secret_file;

/// Where the Workers KV REST API stands.
pub const CLOUDFLARE_API_BASE_URL: &str = "https://api.cloudflare.com/client/v4";

/// An idle connection is closed by us after this time, which is before servers and proxies commonly
/// do it: a request that meets a connection as it closes is in doubt.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// A live HTTP/2 connection that does not answer a ping in this time is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Largest file of root certificates in bytes; the system's own has about 250,000.
const ROOTS_MAX_BYTES: u64 = 16 << 20;
const USER_AGENT: &str = concat!("pg2kv/", env!("CARGO_PKG_VERSION"));

/// How to reach the API. `Debug` shows neither the token nor the proxy, whose URL may hold a
/// password.
pub struct Settings {
    /// [`CLOUDFLARE_API_BASE_URL`], or a stand-in for it.
    pub api_base_url: String,
    /// Account id; `None` leaves `/accounts/{id}` out of the path, which Cloudflare's local
    /// simulator wants.
    pub account: Option<String>,
    /// The API token.
    pub token: TokenSource,
    /// For name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// For a request as a whole, from connecting to the last byte of the reply. Where it runs out
    /// before `connect_timeout` the request counts as ambiguous, so it should be the longer one.
    pub request_timeout: Duration,
    /// URL of an HTTP proxy. The environment (`HTTPS_PROXY` and its kin) is never asked.
    pub proxy: Option<String>,
    /// PEM file of certificate authorities to trust *instead of* the system's.
    pub root_certificate: Option<PathBuf>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("api_base_url", &self.api_base_url)
            .field("account", &self.account)
            .field("proxy", &self.proxy.is_some())
            .field("root_certificate", &self.root_certificate)
            .finish_non_exhaustive()
    }
}

/// Why a [`KvClient`](super::kv::KvClient) cannot be made. Each says what to change.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The base URL is no URL of an API.
    #[error("api_base_url is not a URL to use: {0}; normally it is {CLOUDFLARE_API_BASE_URL}")]
    BaseUrl(&'static str),
    /// The token would travel in the clear.
    #[error(
        "api_base_url is http:// to {host}, which would show the API token to the network; use \
         https://, or a loopback address (127.0.0.1, [::1], localhost) for a local server"
    )]
    Plaintext {
        /// The host.
        host: String,
    },
    /// Not an account id.
    #[error(
        "the account id must have 32 hexadecimal digits (0-9, a-f); it stands in the address of \
         Cloudflare's dashboard"
    )]
    Account,
    /// Not a namespace id.
    #[error(
        "the namespace id must have 32 hexadecimal digits (0-9, a-f); `wrangler kv namespace list` \
         prints it"
    )]
    Namespace,
    /// There is no token to use.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The proxy is no URL.
    #[error("the proxy is not a URL to use; it must look like http://host:port")]
    Proxy,
    /// The token would travel in the clear to the proxy.
    #[error(
        "api_base_url is http://, and through the proxy it would show the API token; remove the proxy, \
         which a loopback address does not need, or use https://"
    )]
    PlaintextThroughProxy,
    /// The file of certificate authorities cannot be read.
    #[error("cannot read the root certificates in {path}")]
    RootCertificate {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The TLS library does not start.
    #[error(
        "cannot set up TLS; install the system's root certificates (package ca-certificates) or \
         set root_certificate"
    )]
    Tls(#[source] reqwest::Error),
}

/// Id of a KV namespace: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(String);

impl NamespaceId {
    /// Checks the form.
    ///
    /// # Errors
    /// [`SetupError::Namespace`].
    pub fn new(id: impl Into<String>) -> Result<Self, SetupError> {
        let id = id.into();
        if is_hex_id(&id) {
            Ok(Self(id))
        } else {
            Err(SetupError::Namespace)
        }
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_hex_id(id: &str) -> bool {
    id.len() == 32
        && id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(crate) fn base_url(text: &str) -> Result<Url, SetupError> {
    let url = Url::parse(text.trim_end_matches('/'))
        .map_err(|_| SetupError::BaseUrl("it does not parse"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(SetupError::BaseUrl("it must begin with https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SetupError::BaseUrl(
            "it must not hold a user name or password",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(SetupError::BaseUrl("it must not hold a `?` or `#`"));
    }
    let host = url.host_str().unwrap_or_default();
    if url.scheme() == "http" && !is_loopback(host) {
        return Err(SetupError::Plaintext {
            host: host.to_owned(),
        });
    }
    Ok(url)
}

fn is_loopback(host: &str) -> bool {
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

pub(super) fn namespaces_url(base: &Url, account: Option<&str>) -> Result<String, SetupError> {
    let base = base.as_str().trim_end_matches('/');
    match account {
        None => Ok(format!("{base}/storage/kv/namespaces")),
        Some(account) if is_hex_id(account) => {
            Ok(format!("{base}/accounts/{account}/storage/kv/namespaces"))
        }
        Some(_) => Err(SetupError::Account),
    }
}

pub(super) fn http_client(settings: &Settings, https: bool) -> Result<reqwest::Client, SetupError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .https_only(https)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(settings.connect_timeout)
        .timeout(settings.request_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT);
    if let Some(proxy) = &settings.proxy {
        if !https {
            return Err(SetupError::PlaintextThroughProxy);
        }
        builder = builder.proxy(http_proxy(proxy).ok_or(SetupError::Proxy)?);
    }
    if let Some(path) = &settings.root_certificate {
        builder = builder.tls_certs_only(root_certificates(path)?);
    }
    builder.build().map_err(SetupError::Tls)
}

/// The scheme is asked for, because without one `host:port` and `user:password` look the same.
fn http_proxy(text: &str) -> Option<Proxy> {
    let url = Url::parse(text).ok()?;
    let usable = matches!(url.scheme(), "http" | "https") && url.has_host();
    usable.then(|| Proxy::all(url).ok())?
}

fn root_certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, SetupError> {
    let failed = |source: Box<dyn StdError + Send + Sync>| SetupError::RootCertificate {
        path: path.display().to_string(),
        source,
    };
    let mut pem = Vec::new();
    secret_file::open(path)
        .and_then(|file| file.take(ROOTS_MAX_BYTES).read_to_end(&mut pem))
        .map_err(|error| failed(error.into()))?;
    let certificates =
        reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?;
    if certificates.is_empty() {
        return Err(failed("the file holds no certificate in PEM form".into()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_thirty_two_lowercase_hex_digits() {
        let good = "0123456789abcdef0123456789abcdef";
        assert_eq!(NamespaceId::new(good).unwrap().as_str(), good);
        for bad in [
            "",
            "0123",
            &good.to_uppercase(),
            &format!("{good}0"),
            "../../../../../../../../../../a",
        ] {
            assert!(
                matches!(NamespaceId::new(bad), Err(SetupError::Namespace)),
                "{bad}"
            );
        }
    }

    #[test]
    fn loopback_is_told_from_the_network() {
        for host in ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"] {
            assert!(base_url(&format!("http://{host}:80/v4/")).is_ok(), "{host}");
        }
        for host in [
            "localhost.example.com",
            "127.0.0.1.example.com",
            "10.0.0.1",
            "[::2]",
        ] {
            let refused = base_url(&format!("http://{host}/v4"));
            assert!(
                matches!(refused, Err(SetupError::Plaintext { .. })),
                "{host}"
            );
            assert!(base_url(&format!("https://{host}/v4")).is_ok(), "{host}");
        }
    }
}
