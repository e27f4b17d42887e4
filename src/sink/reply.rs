//! What a reply of the Workers KV REST API means. Pure.
//!
//! Knows nothing of connections, tokens or retries. [`decode`] and its kin for reads are the one
//! table from reply to [`Outcome`]; what to do about an outcome is the relay's table.
//!
//! **Invariant:** [`Outcome::Written`], and the positions left out of [`Outcome::Partial`], are
//! proven by the reply: it says so itself, and its numbers agree with what was sent. Names within
//! a batch are distinct (see [`crate::document`]), so pairs can be counted by name; were they not,
//! the numbers would not agree and the batch would be in doubt.
//!
//! The sentences made here hold status and error codes, never the server's own message: those
//! repeat keys.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::header;
use super::listing::Position;
use crate::change::owner::Mark;
use crate::change::{AmbiguousReason, Answer, Batch, KvName, Outcome};

/// What came back for a request, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`.
    pub retry_after: Option<&'a str>,
    /// `Date`, by which a `Retry-After` that is a date is understood.
    pub date: Option<&'a str>,
    /// `Ratelimit`.
    pub rate_limit: Option<&'a str>,
    /// The body.
    pub body: Body<'a>,
}

/// The body of a [`Reply`].
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It did not come to its end: in time, over an unbroken connection, or within the cap.
    Cut(AmbiguousReason),
}

/// What the reply to a bulk request means for the pairs of `batch`.
pub fn decode(reply: &Reply<'_>, batch: &Batch) -> Answer {
    let envelope = Envelope::parse(reply.body);
    let told = envelope
        .as_ref()
        .map_or(Told::Nothing, |envelope| told(envelope, batch));
    let in_doubt = |positions: Vec<usize>| {
        let what = format!(
            "{} of {} pairs were not written",
            positions.len(),
            batch.len()
        );
        answer(reply, Outcome::Partial(positions), &what)
    };
    if (200..=299).contains(&reply.status) {
        return match (success(reply, envelope.as_ref()), told) {
            (Err(answer), _) => answer,
            (Ok(()), Told::Unproven(positions)) if positions.is_empty() => {
                let what = format!("{} pairs accepted", batch.len());
                answer(reply, Outcome::Written, &what)
            }
            (Ok(()), Told::Unproven(positions)) => in_doubt(positions),
            (Ok(()), Told::Nothing | Told::Contradiction) => bad_reply(
                reply,
                "the reply says success, but its numbers do not account for the pairs sent",
            ),
        };
    }
    match told {
        // A part is written all the same. A result that lists every pair adds nothing to the
        // status, which says why.
        Told::Unproven(positions) if (1..batch.len()).contains(&positions.len()) => {
            in_doubt(positions)
        }
        Told::Unproven(positions) if positions.is_empty() && reply.status < 500 => bad_reply(
            reply,
            "the reply is an error, but its result says that all is written",
        ),
        Told::Contradiction if reply.status < 500 => bad_reply(
            reply,
            "the reply is an error, but its result says that pairs are written",
        ),
        _ => refusal(reply, envelope.as_ref()),
    }
}

/// What the reply to a read means: [`Outcome::Written`] stands for "well". Reads change nothing, so
/// an [`Outcome::Ambiguous`] says only why there is no result.
pub fn decode_read(reply: &Reply<'_>) -> Answer {
    let envelope = Envelope::parse(reply.body);
    match reply.status {
        200..=299 => match success(reply, envelope.as_ref()) {
            Ok(()) => answer(
                reply,
                Outcome::Written,
                "the token and the namespace are good",
            ),
            Err(answer) => answer,
        },
        _ => refusal(reply, envelope.as_ref()),
    }
}

/// Whether the reply to a read of one value holds it (as its body) or says that there is none.
///
/// # Errors
/// The [`Answer`] of any other reply.
pub fn decode_value(reply: &Reply<'_>) -> Result<bool, Answer> {
    const KEY_NOT_FOUND: i64 = 10_009;
    match (reply.status, reply.body) {
        (200, Body::Whole(_)) => return Ok(true),
        (200..=299, Body::Cut(reason)) => {
            return Err(answer(
                reply,
                Outcome::Ambiguous(reason),
                "the value did not come whole",
            ));
        }
        _ => {}
    }
    match Envelope::parse(reply.body) {
        Some(envelope) if reply.status == 404 && envelope.has(&[KEY_NOT_FOUND]) => Ok(false),
        envelope => Err(refusal(reply, envelope.as_ref())),
    }
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPage {
    /// Up to 1,000 pairs in the order of their names.
    pub pairs: Vec<Listed>,
    /// The position of the next page, as text; `None` after the last one.
    pub next: Option<String>,
}

/// A pair of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: KvName,
    /// What pg2kv left in its metadata; `None` where something else wrote it.
    pub mark: Option<Mark>,
}

/// The page that the reply to a listing holds. It was asked for at `position`.
///
/// # Errors
/// The [`Answer`] of a reply that holds no page, or one that does not take the listing further.
pub fn decode_list(reply: &Reply<'_>, position: Option<&Position>) -> Result<ListPage, Answer> {
    let checked = decode_read(reply);
    let Body::Whole(body) = reply.body else {
        return Err(checked);
    };
    if checked.outcome != Outcome::Written {
        return Err(checked);
    }
    let undocumented = || bad_reply(reply, "the listing does not have the documented form");
    let page: Page<'_> = serde_json::from_slice(body).map_err(|_| undocumented())?;
    let pairs = page
        .result
        .into_iter()
        .map(Entry::listed)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(undocumented)?;
    let cursor = page
        .result_info
        .and_then(|info| info.cursor)
        .filter(|cursor| !cursor.is_empty());
    let next = Position::advance(
        position,
        pairs.iter().map(|pair| pair.name.as_str()),
        cursor,
    )
    .map_err(|what| bad_reply(reply, what))?;
    Ok(ListPage { pairs, next })
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    result: Vec<Entry<'a>>,
    result_info: Option<PageInfo>,
}

#[derive(Deserialize)]
struct PageInfo {
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    name: String,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

impl Entry<'_> {
    fn listed(self) -> Option<Listed> {
        let mark = self.metadata.and_then(|metadata| mark(metadata.get()));
        Some(Listed {
            name: KvName::new(self.name).ok()?,
            mark,
        })
    }
}

/// What pg2kv wrote, or `None` where the metadata is someone else's.
fn mark(metadata: &str) -> Option<Mark> {
    #[derive(Deserialize)]
    struct Metadata {
        pg2kv: String, // the member that `document` names METADATA_MARK_MEMBER
    }
    Mark::parse(&serde_json::from_str::<Metadata>(metadata).ok()?.pg2kv)
}

#[derive(Deserialize)]
struct Envelope<'a> {
    success: bool,
    errors: Option<Vec<ApiError>>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    error_chain: Option<Vec<ChainedError>>,
}

#[derive(Deserialize)]
struct ChainedError {
    #[serde(default)]
    code: i64,
}

impl<'a> Envelope<'a> {
    fn parse(body: Body<'a>) -> Option<Self> {
        match body {
            Body::Whole(body) => serde_json::from_slice(body).ok(),
            Body::Cut(_) => None,
        }
    }

    fn errors(&self) -> impl Iterator<Item = &ApiError> {
        self.errors.iter().flatten()
    }

    fn codes(&self) -> impl Iterator<Item = i64> {
        self.errors().flat_map(|error| {
            let chain = error
                .error_chain
                .iter()
                .flatten()
                .map(|chained| chained.code);
            std::iter::once(error.code).chain(chain)
        })
    }

    fn has(&self, codes: &[i64]) -> bool {
        self.codes().any(|code| codes.contains(&code))
    }
}

/// What the result of a bulk request tells about its pairs.
enum Told {
    /// Not that any pair is written.
    Nothing,
    /// These positions are not proven written; all others are.
    Unproven(Vec<usize>),
    /// That some are written, but its numbers do not add up to the pairs sent.
    Contradiction,
}

fn told(envelope: &Envelope<'_>, batch: &Batch) -> Told {
    #[derive(Deserialize)]
    struct Bulk {
        successful_key_count: Option<u64>,
        unsuccessful_keys: Option<Vec<String>>,
    }
    let Some(Ok(bulk)) = envelope
        .result
        .map(|raw| serde_json::from_str::<Bulk>(raw.get()))
    else {
        return Told::Nothing;
    };
    if bulk.successful_key_count.is_none() && bulk.unsuccessful_keys.is_none() {
        return Told::Nothing;
    }
    let listed: HashSet<&str> = bulk
        .unsuccessful_keys
        .iter()
        .flatten()
        .map(|key| &**key)
        .collect();
    let positions: Vec<usize> = (0..batch.len())
        .filter(|position| !listed.is_empty() && listed.contains(name_at(batch, *position)))
        .collect();
    let written = batch.len() - positions.len();
    let counted = bulk
        .successful_key_count
        .is_none_or(|count| count == written as u64);
    if counted && positions.len() == listed.len() {
        Told::Unproven(positions)
    } else if bulk.successful_key_count == Some(0) {
        Told::Nothing
    } else {
        Told::Contradiction
    }
}

fn name_at(batch: &Batch, position: usize) -> &str {
    match batch {
        Batch::Put(documents) => documents[position].name.as_str(),
        Batch::Delete(names) => names[position].as_str(),
    }
}

/// `Ok` where a 2xx reply is what it should be: complete, and saying success itself.
fn success(reply: &Reply<'_>, envelope: Option<&Envelope<'_>>) -> Result<(), Answer> {
    match (reply.body, envelope) {
        (Body::Cut(reason), _) => Err(answer(
            reply,
            Outcome::Ambiguous(reason),
            "the reply did not come whole",
        )),
        (_, None) => Err(bad_reply(
            reply,
            "the reply is not one of the Cloudflare API",
        )),
        (_, Some(envelope)) if !envelope.success => Err(bad_reply(
            reply,
            &format!("the reply says failure{}", codes_note(envelope)),
        )),
        _ => Ok(()),
    }
}

/// The table of replies that are not 2xx: by status first, by code second, because the same code
/// means different things in different products of Cloudflare.
fn refusal(reply: &Reply<'_>, envelope: Option<&Envelope<'_>>) -> Answer {
    use AmbiguousReason::{BadReply, EdgeError, ServerError, Timeout};
    use Outcome::{
        Ambiguous, NamespaceGone, QuotaExhausted, Rejected, Throttled, Unauthorized, Unexpected,
    };
    let has = |codes: &[i64]| envelope.is_some_and(|envelope| envelope.has(codes));
    let throttled = || {
        let wait = reply
            .retry_after
            .and_then(|value| header::retry_after(value, reply.date));
        (Throttled(wait), "too many requests")
    };
    let (outcome, what) = match reply.status {
        300..=399 => (
            Unexpected,
            "a redirect, which is not followed; check api_base_url",
        ),
        400..=599 if has(codes::QUOTA) => (
            QuotaExhausted,
            "the free plan's quota of the day is used up; it starts anew at 00:00 UTC",
        ),
        520..=527 | 530 => (
            Ambiguous(EdgeError),
            "Cloudflare's edge did not reach the API",
        ),
        500..=599 => (Ambiguous(ServerError), "the API failed"),
        401 | 403 => (Unauthorized, BAD_TOKEN),
        408 => (Ambiguous(Timeout), "the API did not wait for the request"),
        413 => (Rejected, "too large"),
        429 => throttled(),
        400..=499 => match (reply.body, envelope) {
            (Body::Cut(reason), _) => (Ambiguous(reason), "the reply did not come whole"),
            (_, None) => (
                Unexpected,
                "not a reply of the Cloudflare API; check api_base_url",
            ),
            (_, Some(envelope)) if envelope.blames_token() => (Unauthorized, BAD_TOKEN),
            _ if has(codes::THROTTLED) => throttled(),
            _ if has(codes::NAMESPACE) => (NamespaceGone, NO_NAMESPACE),
            _ if has(codes::ROUTE) => (
                Unexpected,
                "the API does not know the path; check the account id and api_base_url",
            ),
            _ if reply.status == 400 => (Rejected, "the content was refused"),
            _ if reply.status == 404 => (NamespaceGone, NO_NAMESPACE),
            _ => (Unexpected, "not a documented reply"),
        },
        _ => (Ambiguous(BadReply), "not a status of HTTP"),
    };
    let note = envelope.map(codes_note).unwrap_or_default();
    answer(reply, outcome, &format!("{what}{note}"))
}

const BAD_TOKEN: &str = "the API token is refused; it must be active and have \"Workers KV \
                         Storage: Edit\" on this account";
const NO_NAMESPACE: &str = "there is no such namespace; check its id and the account id";

/// Error codes of the API, by what they mean whatever 4xx status they come with.
mod codes {
    /// Daily limit of the free plan.
    pub(super) const QUOTA: &[i64] = &[10_048];
    /// Too many requests, from the gateway and from KV.
    pub(super) const THROTTLED: &[i64] = &[971, 10_022, 10_046];
    /// Namespace not found, or not a namespace id.
    pub(super) const NAMESPACE: &[i64] = &[10_010, 10_011, 10_013];
    /// No such route, no such account, no bulk endpoint, namespace full: nothing that another
    /// batch would do better, so bisecting for one bad pair must not begin.
    pub(super) const ROUTE: &[i64] = &[
        7_000, 7_003, 10_002, 10_003, 10_004, 10_005, 10_006, 10_015, 10_016, 10_020, 10_025,
        10_035, 10_045,
    ];
    /// The request is not authenticated or the token lacks a permission. 6003 (request headers)
    /// stands for itself too: the headers are the same each time except for the token.
    pub(super) const TOKEN: &[i64] = &[
        6_003, 6_100, 6_101, 6_102, 6_103, 6_104, 6_105, 6_106, 6_107, 6_108, 6_109, 6_110, 6_111,
        6_112, 9_103, 9_106, 9_107, 9_109, 10_000, 10_017, 10_026, 10_031, 10_037,
    ];
    /// "Unable to authenticate request" from the gateway, but a failed validation from others:
    /// here the message decides.
    pub(super) const TOKEN_BY_MESSAGE: i64 = 10_001;
}

impl Envelope<'_> {
    fn blames_token(&self) -> bool {
        self.has(codes::TOKEN)
            || self.errors().any(|error| {
                let message = error.message.to_ascii_lowercase();
                error.code == codes::TOKEN_BY_MESSAGE && message.contains("unable to authenticate")
            })
    }
}

/// ` (code 10012)`: at most four of them.
fn codes_note(envelope: &Envelope<'_>) -> String {
    const SHOWN_MAX: usize = 4;
    let mut note = String::new();
    for (index, code) in envelope.codes().take(SHOWN_MAX).enumerate() {
        let before = if index == 0 { " (code " } else { ", " };
        let _ = write!(note, "{before}{code}"); // a String takes everything
    }
    if !note.is_empty() {
        note.push(')');
    }
    note
}

fn bad_reply(reply: &Reply<'_>, what: &str) -> Answer {
    answer(reply, Outcome::Ambiguous(AmbiguousReason::BadReply), what)
}

fn answer(reply: &Reply<'_>, outcome: Outcome, what: &str) -> Answer {
    Answer {
        outcome,
        limit: reply.rate_limit.and_then(header::rate_limit),
        status: Some(reply.status),
        detail: format!("HTTP {}: {what}", reply.status),
    }
}

#[cfg(test)]
mod tests;
