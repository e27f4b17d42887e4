//! Gates: a gate closes after a failure, lets one small probe through after a wait that grows, and
//! opens with the first success. One gate for sending as a whole, one for each sync. Pure.

use std::time::Duration;

use crate::change::Mono;
use crate::queue::backoff::{Backoff, Settings};

/// Why nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockReason {
    /// The API answers with errors or not in time.
    Failing,
    /// No connection to the API can be made.
    Unreachable,
    /// 429.
    Throttled,
    /// 401 or 403.
    Unauthorized,
    /// The free plan's quota of the day is used up.
    Quota,
}

impl BlockReason {
    /// The reason as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Unreachable => "unreachable",
            Self::Throttled => "throttled",
            Self::Unauthorized => "unauthorized",
            Self::Quota => "quota",
        }
    }

    /// What a person can do.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Failing => {
                "nothing is lost and sending resumes by itself; see https://www.cloudflarestatus.com"
            }
            Self::Unreachable => {
                "check DNS, egress rules and certificates between here and kv.api_base_url"
            }
            Self::Throttled => {
                "the token is over its request limit; look for others that use it, or lower \
                 kv.requests_per_5min"
            }
            Self::Unauthorized => {
                "put a token with \"Workers KV Storage: Edit\" for this account into \
                 kv.api_token_file; it is read again by itself"
            }
            Self::Quota => {
                "the free plan's daily quota is used up; it starts anew at 00:00 UTC, or move the \
                 account to a paid plan"
            }
        }
    }
}

/// Why a sync is on hold while the others flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldReason {
    /// Its table cannot be read as configured.
    Relation,
    /// Its namespace does not exist.
    NamespaceGone,
    /// KV answers in a way that the API does not document, or refuses every pair.
    Unexpected,
    /// Another installation of pg2kv has pairs under its names.
    AnotherInstallation,
}

impl HoldReason {
    /// The reason as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relation => "relation",
            Self::NamespaceGone => "namespace_gone",
            Self::Unexpected => "unexpected",
            Self::AnotherInstallation => "another_installation",
        }
    }

    /// What a person can do.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Relation => {
                "compare the table with the configuration: `pg2kv check` names what is missing"
            }
            Self::NamespaceGone => {
                "check kv.namespace_id; once the namespace is there again the sync resumes and \
                 writes every key anew"
            }
            Self::Unexpected => "check kv.api_base_url and kv.account_id with `pg2kv check`",
            Self::AnotherInstallation => {
                "give the sync another `key` or namespace; if this installation is to take the pairs \
                 over, stop the other one and add it to pg2kv.meta.adopted (dba.md, \"Two \
                 installations\"); the sync then resumes by itself"
            }
        }
    }
}

/// Whether something may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// As much as there is.
    Free,
    /// One small try.
    Probe,
    /// Nothing before this moment.
    Closed(Mono),
}

/// A gate with its reason.
#[derive(Debug)]
pub(super) struct Gate<R> {
    closed: Option<Closed<R>>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Closed<R> {
    /// The last failure that counted.
    since: Mono,
    until: Mono,
    reason: R,
    detail: String,
}

impl<R: Copy + PartialEq> Gate<R> {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            closed: None,
            backoff: Backoff::new(settings),
        }
    }

    pub(super) fn pass(&self, now: Mono) -> Pass {
        match &self.closed {
            None => Pass::Free,
            Some(closed) if closed.until <= now => Pass::Probe,
            Some(closed) => Pass::Closed(closed.until),
        }
    }

    /// Closes the gate; returns for how long, and whether that is news.
    pub(super) fn close(
        &mut self,
        now: Mono,
        reason: R,
        detail: String,
        at_least: Option<Duration>,
        jitter: f64,
    ) -> (Duration, bool) {
        let before = self.closed.as_ref().filter(|closed| closed.until > now);
        // Requests that were in flight together fail together: they count as one failure.
        if let Some(before) = before
            && before.reason == reason
            && at_least.is_none()
        {
            return (before.until.since(now), false);
        }
        // Jitter comes on top of what the server asked for, so that not all come back at once.
        let until = now + at_least.unwrap_or_default() + self.backoff.next(jitter);
        // A wait that was asked for is not cut short by a failure of another kind.
        if let Some(before) = before
            && before.until >= until
        {
            return (before.until.since(now), false);
        }
        let news = self
            .closed
            .as_ref()
            .is_none_or(|closed| closed.reason != reason);
        self.closed = Some(Closed {
            since: now,
            until,
            reason,
            detail,
        });
        (until.since(now), news)
    }

    /// Opens the gate after a success of something that began at `began`; returns the reason for
    /// which it was closed.
    ///
    /// What began before the gate closed proves nothing about the time after.
    pub(super) fn open(&mut self, began: Mono) -> Option<R> {
        if self
            .closed
            .as_ref()
            .is_some_and(|closed| began <= closed.since)
        {
            return None;
        }
        self.backoff.reset();
        self.closed.take().map(|closed| closed.reason)
    }

    /// Lets a probe through now.
    pub(super) fn retry_now(&mut self, now: Mono) {
        if let Some(closed) = &mut self.closed {
            closed.until = now;
        }
    }

    /// Why it is closed, and until when.
    pub(super) fn closed(&self) -> Option<(R, &str, Mono)> {
        self.closed
            .as_ref()
            .map(|closed| (closed.reason, closed.detail.as_str(), closed.until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate<BlockReason> {
        Gate::new(Settings {
            initial: Duration::from_millis(200),
            max: Duration::from_secs(30),
        })
    }

    fn at(ms: u64) -> Mono {
        Mono::from_origin(Duration::from_millis(ms))
    }

    fn close(
        gate: &mut Gate<BlockReason>,
        ms: u64,
        reason: BlockReason,
        wait: Option<u64>,
    ) -> u128 {
        let wait = wait.map(Duration::from_secs);
        let (pause, _) = gate.close(at(ms), reason, String::new(), wait, 1.0);
        pause.as_millis()
    }

    #[test]
    fn what_fails_together_counts_once() {
        let mut gate = gate();
        assert_eq!(close(&mut gate, 0, BlockReason::Failing, None), 200);
        for _ in 0..20 {
            assert_eq!(close(&mut gate, 50, BlockReason::Failing, None), 150);
        }
        assert_eq!(gate.pass(at(200)), Pass::Probe);
        assert_eq!(close(&mut gate, 200, BlockReason::Failing, None), 400);
    }

    #[test]
    fn a_wait_that_was_asked_for_is_kept() {
        let mut gate = gate();
        assert_eq!(
            close(&mut gate, 0, BlockReason::Throttled, Some(60)),
            60_200
        );
        close(&mut gate, 10, BlockReason::Failing, None);
        assert_eq!(gate.pass(at(20)), Pass::Closed(at(60_200)));
        assert_eq!(gate.open(at(0)), None, "a request that went before");
        assert_eq!(gate.pass(at(20)), Pass::Closed(at(60_200)));
        assert_eq!(gate.open(at(60_200)), Some(BlockReason::Throttled));
        assert_eq!(gate.pass(at(60_201)), Pass::Free);
    }
}
