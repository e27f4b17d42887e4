//! One table: what a request came to → what happens to its keys, to sending, to its sync, and what a
//! person can do. Pure.

use std::time::Duration;

use super::holds::{BlockReason, HoldReason};
use crate::change::{NotSentReason, Outcome};

/// The longest that a server may make us wait.
/// Source: the API blocks for five minutes once its limit is passed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What happens to the keys of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ForKeys {
    /// All are proven, but for the listed positions, which are in doubt.
    Written { doubted: Vec<usize> },
    /// All are in doubt.
    Doubt,
    /// None was applied: read and send them again when sending is allowed.
    Again,
    /// None was applied and the content is to blame: halve until the poison stands alone.
    Halve,
}

/// What happens to sending as a whole, since every sync shares one token and one API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForSending {
    /// It works.
    Healthy,
    /// It works, but the body was too much for the time given.
    Unchanged,
    /// Wait, longer with each failure, and at least as long as given.
    Block {
        reason: BlockReason,
        at_least: Option<Duration>,
        smaller: bool,
    },
    /// Wait until the quota starts anew at 00:00 UTC.
    BlockUntilMidnight,
}

/// What happens to the sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForSync {
    /// Its namespace takes writes.
    Healthy,
    /// Nothing follows.
    Unchanged,
    /// Wait, longer with each failure; the others flow.
    Hold(HoldReason),
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) keys: ForKeys,
    pub(super) sending: ForSending,
    pub(super) sync: ForSync,
}

pub(super) fn of(outcome: &Outcome) -> Policy {
    use ForKeys as K;
    use ForSending as S;
    use ForSync as Y;
    let block = |reason, at_least, smaller| S::Block {
        reason,
        at_least,
        smaller,
    };
    let (keys, sending, sync) = match outcome {
        Outcome::Written => (
            K::Written {
                doubted: Vec::new(),
            },
            S::Healthy,
            Y::Healthy,
        ),
        Outcome::Partial(doubted) => (
            K::Written {
                doubted: doubted.clone(),
            },
            S::Healthy,
            Y::Healthy,
        ),
        Outcome::Ambiguous(_) => (
            K::Doubt,
            block(BlockReason::Failing, None, true),
            Y::Unchanged,
        ),
        Outcome::NotSent(NotSentReason::Fenced) => (K::Again, S::Unchanged, Y::Unchanged),
        Outcome::NotSent(_) => (
            K::Again,
            block(BlockReason::Unreachable, None, false),
            Y::Unchanged,
        ),
        Outcome::Rejected => (K::Halve, S::Unchanged, Y::Unchanged),
        Outcome::Throttled(wait) => {
            let wait = wait.map(|wait| wait.min(RETRY_AFTER_MAX));
            (
                K::Again,
                block(BlockReason::Throttled, wait, false),
                Y::Unchanged,
            )
        }
        Outcome::Unauthorized => (
            K::Again,
            block(BlockReason::Unauthorized, None, false),
            Y::Unchanged,
        ),
        Outcome::NamespaceGone => (K::Again, S::Healthy, Y::Hold(HoldReason::NamespaceGone)),
        Outcome::QuotaExhausted => (K::Again, S::BlockUntilMidnight, Y::Unchanged),
        Outcome::Unexpected => (K::Again, S::Healthy, Y::Hold(HoldReason::Unexpected)),
    };
    Policy {
        keys,
        sending,
        sync,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::AmbiguousReason;

    #[test]
    fn only_proof_counts_as_written() {
        let outcomes = [
            Outcome::Ambiguous(AmbiguousReason::Timeout),
            Outcome::Ambiguous(AmbiguousReason::Broken),
            Outcome::Ambiguous(AmbiguousReason::ServerError),
            Outcome::Ambiguous(AmbiguousReason::EdgeError),
            Outcome::Ambiguous(AmbiguousReason::BadReply),
            Outcome::NotSent(NotSentReason::Dns),
            Outcome::NotSent(NotSentReason::Fenced),
            Outcome::Rejected,
            Outcome::Throttled(None),
            Outcome::Unauthorized,
            Outcome::NamespaceGone,
            Outcome::QuotaExhausted,
            Outcome::Unexpected,
        ];
        for outcome in outcomes {
            let keys = of(&outcome).keys;
            assert!(!matches!(keys, ForKeys::Written { .. }), "{outcome:?}");
            let doubtful = matches!(outcome, Outcome::Ambiguous(_));
            assert_eq!(keys == ForKeys::Doubt, doubtful, "{outcome:?}");
        }
    }

    #[test]
    fn a_server_cannot_make_us_wait_for_ever() {
        let policy = of(&Outcome::Throttled(Some(Duration::from_secs(86_400))));
        let ForSending::Block { at_least, .. } = policy.sending else {
            panic!("{policy:?}")
        };
        assert_eq!(at_least, Some(Duration::from_secs(300)));
    }
}
