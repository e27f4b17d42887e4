//! The network client: one batch in, one answer out.
//!
//! Owns the HTTP client, its limits, and what an error of the network proves about the request.
//! Knows nothing of JSON, retries or the database.
//!
//! **Invariant:** [`Outcome::NotSent`] is only said where no byte of the request can have left:
//! before there was a connection. Whatever breaks later is [`Outcome::Ambiguous`].

use std::error::Error as StdError;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use secrecy::ExposeSecret;

use super::listing::Position;
use super::reply::{self, Body, ListPage, Listed, Reply};
use super::setup::{NamespaceId, Settings, SetupError, base_url, http_client, namespaces_url};
use super::token::{TokenError, TokenSource};
use super::wire;
use crate::change::{
    AmbiguousReason, Answer, Batch, KV_VALUE_MAX_BYTES, KvName, NotSentReason, Outcome,
};

/// Largest reply to a bulk request or a listing in bytes. 10,000 unwritten names of 512 bytes, and
/// a page of 1,000 pairs with all the metadata they may have, stay below it.
const REPLY_MAX_BYTES: usize = 8 << 20;
/// Most pairs on a page of a listing.
/// Source: Workers KV API, list keys.
const LIST_MAX_PAIRS: usize = 1_000;
/// Fewest pairs that a listing can be asked for, which makes the cheapest read.
/// Source: Workers KV API, list keys.
const LIST_MIN_PAIRS: usize = 10;

/// What came of reading the token again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenReload {
    /// There is another token; requests carry it from now on.
    Changed,
    /// It is the same.
    Same,
    /// There is none to use, and the old one stays; one sentence says why.
    Failed(String),
}

/// A client of the Workers KV REST API for one account and token.
///
/// It pools connections and is cheap to share behind an `Arc`. It sends each request at most once.
pub struct KvClient {
    http: reqwest::Client,
    /// `{base}/accounts/{id}/storage/kv/namespaces`
    namespaces_url: String,
    host: String,
    source: TokenSource,
    /// `Bearer …`, marked sensitive.
    authorization: RwLock<HeaderValue>,
}

impl fmt::Debug for KvClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvClient")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl KvClient {
    /// Checks the settings and reads the token; connects to nothing yet.
    ///
    /// # Errors
    /// [`SetupError`], which says what to change.
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        let base = base_url(&settings.api_base_url)?;
        let namespaces_url = namespaces_url(&base, settings.account.as_deref())?;
        let authorization = RwLock::new(authorization(&settings.token)?);
        let http = http_client(&settings, base.scheme() == "https")?;
        let host = base.host_str().unwrap_or_default().to_owned();
        Ok(Self {
            http,
            namespaces_url,
            host,
            source: settings.token,
            authorization,
        })
    }

    /// Writes or deletes the pairs of the batch with one request.
    ///
    /// A batch over a limit of the API is [`Outcome::Rejected`] without a status: nothing is sent,
    /// and its halves are smaller. Encoding blocks for about a millisecond per megabyte. The batch
    /// keeps no contents once the body has them.
    // Cancel-safety: dropping the future abandons the request, which is then as ambiguous as one
    // that timed out.
    pub async fn send(&self, namespace: &NamespaceId, batch: &mut Batch) -> Answer {
        let (method, path, body) = match batch {
            Batch::Put(documents) => (Method::PUT, "bulk", wire::encode_put(documents)),
            Batch::Delete(names) => (Method::POST, "bulk/delete", wire::encode_delete(names)),
        };
        let body = match body {
            Ok(body) => body,
            Err(error) => return not_replied(Outcome::Rejected, error.to_string()),
        };
        batch.drop_contents();
        match self
            .request(method, namespace, path, Some(body), REPLY_MAX_BYTES)
            .await
        {
            Ok(received) => reply::decode(&received.reply(), batch),
            Err(answer) => answer,
        }
    }

    /// A page of up to 1,000 pairs whose names begin with `prefix`: the first one, or that at `position`,
    /// which is [`ListPage::next`] of the page before. Every listing ends, if need be with an error.
    ///
    /// # Errors
    /// The [`Answer`] that came instead of a page, or instead of one that takes the listing further.
    pub async fn list(
        &self,
        namespace: &NamespaceId,
        prefix: &str,
        position: Option<&str>,
    ) -> Result<ListPage, Answer> {
        let position = position.map(Position::parse);
        let mut path = format!(
            "keys?limit={LIST_MAX_PAIRS}&prefix={}",
            percent_encoded(prefix)
        );
        if let Some(position) = &position {
            path.push_str("&cursor=");
            path.push_str(&percent_encoded(position.cursor()));
        }
        let received = self
            .request(Method::GET, namespace, &path, None, REPLY_MAX_BYTES)
            .await?;
        reply::decode_list(&received.reply(), position.as_ref())
    }

    /// What a listing says of one pair, or `None` where it has none of this name.
    ///
    /// # Errors
    /// The [`Answer`] that came instead.
    pub async fn look(
        &self,
        namespace: &NamespaceId,
        name: &KvName,
    ) -> Result<Option<Listed>, Answer> {
        // Names come in their order, so the one that is the prefix itself is the first.
        let prefix = percent_encoded(name.as_str());
        let path = format!("keys?limit={LIST_MIN_PAIRS}&prefix={prefix}");
        let received = self
            .request(Method::GET, namespace, &path, None, REPLY_MAX_BYTES)
            .await?;
        let page = reply::decode_list(&received.reply(), None)?;
        Ok(page.pairs.into_iter().find(|pair| pair.name == *name))
    }

    /// The value of a pair, or `None` where there is no such pair.
    ///
    /// # Errors
    /// The [`Answer`] that came instead.
    pub async fn get(
        &self,
        namespace: &NamespaceId,
        name: &KvName,
    ) -> Result<Option<Bytes>, Answer> {
        let path = format!("values/{}", percent_encoded(name.as_str()));
        let received = self
            .request(Method::GET, namespace, &path, None, KV_VALUE_MAX_BYTES)
            .await?;
        let found = reply::decode_value(&received.reply())?;
        Ok(if found { received.body.ok() } else { None })
    }

    /// The cheapest authorised read: [`Outcome::Written`] says that the token is good and that the
    /// namespace is there, [`Outcome::Unauthorized`] and [`Outcome::NamespaceGone`] which is not.
    pub async fn probe(&self, namespace: &NamespaceId) -> Answer {
        let path = format!("keys?limit={LIST_MIN_PAIRS}");
        match self
            .request(Method::GET, namespace, &path, None, REPLY_MAX_BYTES)
            .await
        {
            Ok(received) => reply::decode_read(&received.reply()),
            Err(answer) => answer,
        }
    }

    /// Reads the token again; requests that are under way keep the one they went out with.
    ///
    /// Reads a small local file and blocks that long.
    pub fn reload_token(&self) -> TokenReload {
        let fresh = match authorization(&self.source) {
            Ok(fresh) => fresh,
            Err(error) => {
                let cause = error
                    .source()
                    .map_or_else(String::new, |cause| format!(": {cause}"));
                return TokenReload::Failed(format!("{error}{cause}"));
            }
        };
        let mut current = self
            .authorization
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if *current == fresh {
            return TokenReload::Same;
        }
        *current = fresh;
        TokenReload::Changed
    }

    async fn request(
        &self,
        method: Method,
        namespace: &NamespaceId,
        path: &str,
        body: Option<Bytes>,
        reply_max_bytes: usize,
    ) -> Result<Received, Answer> {
        let url = format!("{}/{}/{path}", self.namespaces_url, namespace.as_str());
        let authorization = self
            .authorization
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut request = self
            .http
            .request(method, url)
            .header(AUTHORIZATION, authorization);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let mut response = request.send().await.map_err(|error| self.failed(&error))?;
        let mut body = BytesMut::new();
        let body = loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > reply_max_bytes => {
                    break Err(AmbiguousReason::BadReply);
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break Ok(body.freeze()),
                Err(error) if error.is_timeout() => break Err(AmbiguousReason::Timeout),
                Err(_) => break Err(AmbiguousReason::Broken),
            }
        };
        let status = response.status().as_u16();
        Ok(Received {
            status,
            headers: std::mem::take(response.headers_mut()),
            body,
        })
    }

    /// What an error before the head of a reply proves.
    fn failed(&self, error: &reqwest::Error) -> Answer {
        let cause = root_cause(error);
        let host = &self.host;
        if !error.is_connect() {
            let reason = if error.is_timeout() {
                AmbiguousReason::Timeout
            } else {
                AmbiguousReason::Broken
            };
            let detail = format!("no reply of {host}: {cause}");
            return not_replied(Outcome::Ambiguous(reason), detail);
        }
        let (reason, what) = if error.is_dns() {
            (NotSentReason::Dns, "cannot resolve")
        } else if is_tls(error) {
            (NotSentReason::Tls, "no trusted TLS connection to")
        } else {
            (NotSentReason::Connect, "cannot connect to")
        };
        not_replied(Outcome::NotSent(reason), format!("{what} {host}: {cause}"))
    }
}

/// A reply as it came in.
struct Received {
    status: u16,
    headers: HeaderMap,
    body: Result<Bytes, AmbiguousReason>,
}

impl Received {
    fn reply(&self) -> Reply<'_> {
        const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
        let text = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        Reply {
            status: self.status,
            retry_after: text(RETRY_AFTER),
            date: text(DATE),
            rate_limit: text(RATELIMIT),
            body: match &self.body {
                Ok(body) => Body::Whole(body),
                Err(reason) => Body::Cut(*reason),
            },
        }
    }
}

fn not_replied(outcome: Outcome, detail: String) -> Answer {
    Answer {
        outcome,
        limit: None,
        status: None,
        detail,
    }
}

/// The innermost error: what the system, the TLS library or the HTTP library said. The outer ones
/// repeat the URL, which may hold a key.
fn root_cause(error: &reqwest::Error) -> String {
    chain(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn is_tls(error: &reqwest::Error) -> bool {
    chain(error).any(|error| error.is::<rustls::Error>())
}

/// The causes of an error from the outside in, without the error itself. An I/O error that wraps
/// another error does not name it as its source, so it is opened here.
fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&error| {
        match error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

/// Everything but unreserved characters (RFC 3986, section 2.3) is encoded, so that a key is one
/// segment of a path whatever stands in it. The dot segments `.` and `..` are no names.
fn percent_encoded(text: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, ENCODED).to_string()
}

fn authorization(source: &TokenSource) -> Result<HeaderValue, TokenError> {
    let token = source.read()?;
    let header = format!("Bearer {}", token.expose_secret());
    let mut header = HeaderValue::try_from(header).map_err(|_| TokenError::NotAscii {
        place: "the API token".to_owned(),
    })?;
    header.set_sensitive(true); // shown as `Sensitive` by `Debug`, and kept out of HTTP/2's index
    Ok(header)
}

#[cfg(test)]
mod tests {
    use reqwest::Url;

    use super::*;

    #[test]
    fn keys_are_one_path_segment_whatever_they_hold() {
        for (key, expected) in [
            ("user:42", "user%3A42"),
            ("a/b", "a%2Fb"),
            ("../x", "..%2Fx"),
            ("%2e%2e", "%252e%252e"),
            ("50% ?#&+", "50%25%20%3F%23%26%2B"),
            ("\u{0}\u{1f}\u{7f}", "%00%1F%7F"),
            ("\u{e9}\u{1f600}", "%C3%A9%F0%9F%98%80"),
            ("A-z_0.9~", "A-z_0.9~"),
        ] {
            assert_eq!(percent_encoded(key), expected, "{key:?}");
            let url = format!("https://h/values/{}", percent_encoded(key));
            assert_eq!(
                Url::parse(&url).unwrap().as_str(),
                url,
                "the URL parser changes nothing"
            );
        }
    }
}
