//! Deliberately broken variants. Each stands between the relay and the models, so that the product
//! has no hooks for it; each must be caught by the checks.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Outbox rows are deleted, but no claim is kept.
    ClaimsNotPersisted,
    /// A reply that proves nothing counts as proof.
    AmbiguousIsWritten,
    /// 429 counts as proof.
    ThrottledIsWritten,
    /// 400 counts as proof.
    RejectedIsWritten,
    /// The list of pairs that were not written is not read.
    PartialIsWritten,
    /// The end of a claim deletes the outbox rows of its keys, not those that it replaced.
    OutboxDeletedByKey,
    /// Rows are read before the claim, which then deletes all outbox rows of its keys.
    ReadBeforeClaim,
    /// A claim ends when it is made, not when its keys are written.
    SettledBeforeWritten,
    /// The epoch of a leader that was replaced is not noticed.
    FenceIgnored,
    /// A doubtful write is not repeated after the late-write window.
    NoLateWindow,
    /// A new leader takes the claims of the one before as done.
    RecoveredClaimsDropped,
    /// A key that keeps changing is put off again and again.
    NoWaitCap,
    /// A key may be written again at once.
    NoKeyInterval,
    /// A request is called lost while it still runs.
    GivesUpEarly,
    /// Only ids above the last one are fetched.
    FetchMissesLateCommits,
    /// A backfill's position moves on without a claim of its keys.
    BackfillWithoutClaim,
    /// Writers that may have read the bell too early are not looked for.
    NoWritersCheck,
    /// A process trusts its lease for ever.
    TrustForEver,
    /// A resync marker is deleted but nothing is begun for it.
    MarkerWithoutBackfill,
    /// Dead letters are not kept.
    DeadLettersNotWritten,
    /// A failover starts no backfill.
    IdentityIgnored,
    /// A lost reply to COMMIT counts as a rollback.
    LostReplyIsRollback,
    /// A namespace that was gone counts as a failure that passes.
    NamespaceGoneIsThrottled,
    /// Requests are not counted.
    NoBudget,
    /// A key that an audit asks for is looked at like any other, and memory says that it is written.
    AgainIsKey,
    /// An audit finds what has drifted, but nothing comes of it.
    AuditOnlyLooks,
    /// Deletes go, however many, though nobody approved.
    BrakeIgnored,
    /// What was on its way to KV when a backfill began is not looked at again.
    OutdatedNotReadAgain,
    /// The marker of a related row is deleted before all of its keys are recorded.
    MarkerEndsEarly,
    /// A pair of another installation counts as one of ours.
    MarksIgnored,
    /// Pairs of another installation under the names of a sync do not stop it.
    TakenIsFree,
    /// What the leader before had deleted counts no more.
    DeletesForgotten,
}

impl Mutant {
    /// Whether it shows only if deletes are held.
    pub(super) fn is_of_brakes(self) -> bool {
        matches!(self, Self::BrakeIgnored | Self::DeletesForgotten)
    }

    /// Whether it shows only where somebody else writes to KV.
    pub(super) fn is_of_audits(self) -> bool {
        matches!(self, Self::AgainIsKey | Self::AuditOnlyLooks)
    }
}

pub(super) const ALL: [Mutant; 32] = [
    Mutant::ClaimsNotPersisted,
    Mutant::AmbiguousIsWritten,
    Mutant::ThrottledIsWritten,
    Mutant::RejectedIsWritten,
    Mutant::PartialIsWritten,
    Mutant::OutboxDeletedByKey,
    Mutant::ReadBeforeClaim,
    Mutant::SettledBeforeWritten,
    Mutant::FenceIgnored,
    Mutant::NoLateWindow,
    Mutant::RecoveredClaimsDropped,
    Mutant::NoWaitCap,
    Mutant::NoKeyInterval,
    Mutant::GivesUpEarly,
    Mutant::FetchMissesLateCommits,
    Mutant::BackfillWithoutClaim,
    Mutant::NoWritersCheck,
    Mutant::TrustForEver,
    Mutant::MarkerWithoutBackfill,
    Mutant::DeadLettersNotWritten,
    Mutant::IdentityIgnored,
    Mutant::LostReplyIsRollback,
    Mutant::NamespaceGoneIsThrottled,
    Mutant::NoBudget,
    Mutant::AgainIsKey,
    Mutant::AuditOnlyLooks,
    Mutant::BrakeIgnored,
    Mutant::OutdatedNotReadAgain,
    Mutant::MarkerEndsEarly,
    Mutant::MarksIgnored,
    Mutant::TakenIsFree,
    Mutant::DeletesForgotten,
];
