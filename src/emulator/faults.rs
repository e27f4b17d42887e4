//! Scripted faults: which request meets one, when its effect lands, and what comes back.
//!
//! Owns their vocabulary (also as JSON) and the list in which they wait. A fault says two things
//! that are independent of each other: when the request takes effect ([`Effect`]) and what the
//! client gets ([`Reply`]). Knows nothing of how either is done.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::route::Operation;

/// A fault that waits for requests.
///
/// As JSON, with every member but `reply` optional:
/// `{"match": {"operation": "bulk_write", "key_prefix": "user:"}, "skip": 1, "count": 2,
/// "delay_ms": 50, "effect": {"after_ms": 300}, "reply": "hang"}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The requests that it is for.
    #[serde(default, rename = "match")]
    pub matcher: Matcher,
    /// Matching requests that pass unharmed first.
    #[serde(default)]
    pub skip: u64,
    /// Requests that meet it before it is used up; `None` is without end.
    #[serde(default)]
    pub count: Option<u64>,
    /// Milliseconds before anything else happens to the request.
    #[serde(default)]
    pub delay_ms: u64,
    /// When the request takes effect. Left out: `now` with the replies `served` and `partial`,
    /// `never` with any other.
    #[serde(default)]
    pub effect: Option<Effect>,
    /// What the client gets.
    pub reply: Reply,
}

/// When a request takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// As usual, before the reply.
    Now,
    /// Not at all.
    Never,
    /// This many milliseconds later, whatever has become of the client by then. Late writes do not
    /// count against the pace of their keys: they were accepted before.
    AfterMs(u64),
}

/// What the client gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The usual reply. Needs the effect `now`.
    Served,
    /// A bulk reply that lists a share of the keys as unsuccessful. Needs the effect `now`.
    Partial(PartialReply),
    /// None, until the client gives up.
    Hang,
    /// None; the connection is reset.
    Reset,
    /// 200 with bytes that are not JSON.
    Garbage,
    /// 200 and half of the body that its `content-length` promises, then the connection ends.
    Truncated,
    /// 200 with `success: false`.
    SuccessFalse,
    /// 524 with an HTML page, as Cloudflare's edge sends it.
    EdgeTimeout,
    /// 307 to another place.
    Redirect {
        /// The `location` header.
        location: String,
    },
    /// Any status.
    Status(StatusReply),
}

/// A reply with a chosen status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusReply {
    /// HTTP status.
    pub status: u16,
    /// `retry-after` in seconds.
    #[serde(default)]
    pub retry_after: Option<u64>,
    /// The body; left out: an error envelope with the usual code of the status.
    #[serde(default)]
    pub body: Option<String>,
    /// Its type; left out: `application/json`.
    #[serde(default)]
    pub content_type: Option<String>,
}

/// A bulk reply that does not say yes to every key.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialReply {
    /// Share of the keys that are listed, from 0 to 1; where a key prefix is matched, of the keys
    /// that have it. Any share above 0 lists at least one.
    pub share: f64,
    /// Whether the listed keys are written all the same.
    #[serde(default)]
    pub written: bool,
    /// HTTP status; from 400 on the envelope says `success: false`.
    #[serde(default = "ok")]
    pub status: u16,
}

fn ok() -> u16 {
    200
}

/// Which requests a fault is for: those that pass every test that is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matcher {
    /// HTTP method, in capitals.
    pub method: Option<String>,
    /// Text within the path.
    pub path: Option<String>,
    /// Operation.
    pub operation: Option<Operation>,
    /// Beginning of a key that the request names, in its path or among those of a bulk body.
    pub key_prefix: Option<String>,
    /// Probability from 0 to 1 that a request which passes the other tests is met.
    pub probability: Option<f64>,
    /// Seed of the draws for `probability` and of the choice of keys for a partial reply.
    pub seed: u64,
}

/// What of a request the matchers see.
pub(super) struct Subject<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) operation: Operation,
}

/// A fault is impossible, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FaultError(&'static str);

impl Fault {
    /// A fault with a reply, for every request, without end.
    pub fn new(reply: Reply) -> Self {
        let matcher = Matcher::default();
        Self {
            matcher,
            skip: 0,
            count: None,
            delay_ms: 0,
            effect: None,
            reply,
        }
    }

    /// A status without effect.
    pub fn status(status: u16) -> Self {
        Self::new(Reply::Status(StatusReply {
            status,
            ..StatusReply::default()
        }))
    }

    /// The usual reply, later.
    pub fn delay(by: Duration) -> Self {
        Self {
            delay_ms: millis(by),
            ..Self::new(Reply::Served)
        }
    }

    /// Takes effect at once; the client never hears of it.
    pub fn apply_then_hang() -> Self {
        Self::new(Reply::Hang).effect(Effect::Now)
    }

    /// Takes effect `late`; the client never hears of it.
    pub fn hang_then_apply(late: Duration) -> Self {
        Self::new(Reply::Hang).effect(Effect::AfterMs(millis(late)))
    }

    /// Lists a share of the keys as unsuccessful and does not write them.
    pub fn partial(share: f64) -> Self {
        Self::new(Reply::Partial(PartialReply {
            share,
            written: false,
            status: 200,
        }))
    }

    /// Lists a share of the keys as unsuccessful, and has written them.
    pub fn partial_but_written(share: f64) -> Self {
        Self::new(Reply::Partial(PartialReply {
            share,
            written: true,
            status: 200,
        }))
    }

    /// The same with another effect.
    #[must_use]
    pub fn effect(self, effect: Effect) -> Self {
        Self {
            effect: Some(effect),
            ..self
        }
    }

    /// The same for some requests only.
    #[must_use]
    pub fn on(self, matcher: Matcher) -> Self {
        Self { matcher, ..self }
    }

    /// The same for one operation only.
    #[must_use]
    pub fn on_operation(mut self, operation: Operation) -> Self {
        self.matcher.operation = Some(operation);
        self
    }

    /// The same for requests that name a key with this beginning.
    #[must_use]
    pub fn on_key_prefix(mut self, prefix: &str) -> Self {
        self.matcher.key_prefix = Some(prefix.to_owned());
        self
    }

    /// The same, used up after `count` requests.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self {
            count: Some(count),
            ..self
        }
    }

    /// The same after `skip` matching requests.
    #[must_use]
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// When the request takes effect, the default resolved.
    pub(super) fn resolved_effect(&self) -> Effect {
        self.effect.unwrap_or(match self.reply {
            Reply::Served | Reply::Partial(_) => Effect::Now,
            _ => Effect::Never,
        })
    }

    fn check(&self) -> Result<(), FaultError> {
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let is_status = |status: u16| (200..=599).contains(&status);
        match &self.reply {
            Reply::Served | Reply::Partial(_) if self.resolved_effect() != Effect::Now => Err(
                FaultError("the replies `served` and `partial` need the effect `now`"),
            ),
            Reply::Partial(partial) if !is_share(partial.share) => {
                Err(FaultError("`share` must be from 0 to 1"))
            }
            Reply::Partial(PartialReply { status, .. })
            | Reply::Status(StatusReply { status, .. })
                if !is_status(*status) =>
            {
                Err(FaultError("`status` must be from 200 to 599"))
            }
            _ if !self.matcher.probability.is_none_or(is_share) => {
                Err(FaultError("`probability` must be from 0 to 1"))
            }
            _ => Ok(()),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A fault in the list, with what it has seen.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    /// Its number, as the list gave it.
    pub id: u64,
    /// The fault as it was set.
    pub fault: Fault,
    /// Requests that passed its matcher.
    pub matched: u64,
    /// Requests that met it.
    pub met: u64,
    #[serde(skip)]
    rng: fastrand::Rng,
}

/// The faults of an emulator. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<List>>);

#[derive(Debug, Default)]
struct List {
    waiting: Vec<Waiting>,
    last_id: u64,
}

/// A fault that a request has met.
pub(super) struct Met {
    pub(super) id: u64,
    pub(super) fault: Fault,
    /// Seed for choices within the reply.
    pub(super) seed: u64,
}

impl Faults {
    /// Adds a fault behind those that wait already; a request meets the first that matches.
    ///
    /// # Errors
    /// A share or status out of range, or a reply that its effect makes impossible.
    pub fn add(&self, fault: Fault) -> Result<u64, FaultError> {
        fault.check()?;
        Ok(self.lock().push(fault))
    }

    /// Adds several: all of them, or none and an error.
    pub(super) fn add_all(&self, faults: Vec<Fault>) -> Result<Vec<u64>, FaultError> {
        faults.iter().try_for_each(Fault::check)?;
        let mut list = self.lock();
        Ok(faults.into_iter().map(|fault| list.push(fault)).collect())
    }

    /// The faults in order, those that are used up included.
    pub fn list(&self) -> Vec<Waiting> {
        self.lock().waiting.clone()
    }

    /// Removes one; says whether it was there.
    pub fn remove(&self, id: u64) -> bool {
        let mut list = self.lock();
        let before = list.waiting.len();
        list.waiting.retain(|waiting| waiting.id != id);
        list.waiting.len() < before
    }

    /// Removes all.
    pub fn clear(&self) {
        self.lock().waiting.clear();
    }

    /// Finds the fault that a request meets, and counts it. `keys` tells whether the request names
    /// a key with a beginning; it is asked only where a matcher has one, since it reads the body.
    pub(super) fn meet(&self, subject: &Subject<'_>, keys: impl Fn(&str) -> bool) -> Option<Met> {
        let mut list = self.lock();
        list.waiting
            .iter_mut()
            .find_map(|waiting| waiting.meet(subject, &keys))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn push(&mut self, fault: Fault) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        let rng = fastrand::Rng::with_seed(fault.matcher.seed);
        self.waiting.push(Waiting {
            id,
            fault,
            matched: 0,
            met: 0,
            rng,
        });
        id
    }
}

impl Waiting {
    fn meet(&mut self, subject: &Subject<'_>, keys: impl Fn(&str) -> bool) -> Option<Met> {
        let Fault {
            matcher,
            skip,
            count,
            ..
        } = &self.fault;
        let fits = count.is_none_or(|count| self.met < count)
            && matcher
                .method
                .as_ref()
                .is_none_or(|method| method == subject.method)
            && matcher
                .path
                .as_ref()
                .is_none_or(|text| subject.path.contains(text))
            && matcher
                .operation
                .is_none_or(|operation| operation == subject.operation)
            && matcher
                .key_prefix
                .as_ref()
                .is_none_or(|prefix| keys(prefix))
            && matcher
                .probability
                .is_none_or(|probability| self.rng.f64() < probability);
        if !fits {
            return None;
        }
        self.matched += 1;
        if self.matched <= *skip {
            return None;
        }
        self.met += 1;
        Some(Met {
            id: self.id,
            fault: self.fault.clone(),
            seed: self.rng.u64(..),
        })
    }
}
