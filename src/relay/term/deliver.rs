//! From documents to proof: cuts requests, and does with each answer what the policy says. Pure.

use std::time::Duration;

use super::deletes::Deletion;
use super::prepare::Item;
use super::settle::Fate;
use super::{Shared, Term};
use crate::change::{
    Answer, Batch, Document, Expiration, KvName, Mono, Poison, PoisonReason, Rendered, SyncId,
};
use crate::queue::seen::Content;
use crate::queue::{Slot, Verdict};
use crate::relay::holds::{BlockReason, HoldReason, Pass};
use crate::relay::policy::{self, ForKeys, ForSending, ForSync};
use crate::relay::{Effect, Notice, RequestId, backfills};

/// Fewest pairs that a batch shrinks to.
const PAIRS_MIN: usize = 50;
/// Single pairs of one sync refused in a row before the cause is sought elsewhere than in them.
const REJECTED_IN_A_ROW_MAX: u32 = 20;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Sent {
    sync: SyncId,
    slots: Vec<Slot>,
    pub(super) at: Mono,
    /// Of its documents.
    pub(super) bytes: usize,
}

/// What goes into a body.
enum Sendable {
    Put(Document),
    Delete(KvName),
}

/// Documents to be written, cut into requests by their weight.
struct Puts {
    parts: Vec<(Vec<Slot>, Vec<Document>)>,
    /// Of the last part.
    bytes: usize,
    bytes_max: usize,
    /// Documents that may still come.
    left: usize,
}

impl Puts {
    fn new(bytes_max: usize, left: usize) -> Self {
        Self {
            parts: Vec::new(),
            bytes: 0,
            bytes_max,
            left,
        }
    }

    fn push(&mut self, slot: Slot, document: Document) {
        let weight = document.weight();
        if self.parts.is_empty() || self.bytes + weight > self.bytes_max {
            let part = (Vec::with_capacity(self.left), Vec::with_capacity(self.left));
            self.parts.push(part);
            self.bytes = 0;
        }
        self.bytes += weight;
        self.left = self.left.saturating_sub(1);
        if let Some((slots, documents)) = self.parts.last_mut() {
            slots.push(slot);
            documents.push(document);
        }
    }
}

impl Term {
    pub(super) fn rendered(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        items: Vec<Item>,
        rendered: Vec<Rendered>,
    ) {
        let mut unchanged = 0;
        let mut puts = Puts::new(shared.settings.body_max_bytes, items.len());
        let mut deletes: Vec<Deletion> = Vec::new();
        let mut rendered = rendered.into_iter();
        for item in items {
            let slot = item.slot;
            // A walk may take a key within its interval: claimed now, it is written when it may be.
            if self.queue.not_before(slot) > now {
                rendered.next();
                self.again(shared, now, slot, now);
                continue;
            }
            let mut renewed = false;
            let (content, names_it) = match rendered.next() {
                // The byte limit was reached before this key.
                None => {
                    self.again(shared, now, slot, now);
                    continue;
                }
                Some(Rendered::Poison(poison)) => {
                    self.bury(shared, now, sync, slot, poison);
                    continue;
                }
                Some(Rendered::Large) => {
                    self.large.push_back((sync, Item::claimed(slot)));
                    continue;
                }
                Some(Rendered::Nothing) => {
                    unchanged += 1;
                    self.forget(shared, now, sync, slot);
                    continue;
                }
                Some(Rendered::Put(document)) => {
                    // KV may have dropped what was written; and a change starts its time again.
                    renewed = matches!(document.expiration, Some(Expiration::After(_)));
                    let content = Content::Present(document.hash);
                    (content, Sendable::Put(document))
                }
                Some(Rendered::Delete(name)) => (Content::Absent, Sendable::Delete(name)),
            };
            let listed = item.listed.map(Content::Present);
            let known = match listed {
                Some(listed) => listed == content,
                None if renewed => false,
                None => self
                    .queue
                    .key(slot)
                    .is_some_and(|key| self.seen.is(sync, key, content)),
            };
            if known && !self.queue.must_write(slot) {
                unchanged += 1;
                self.clear_letter(sync, slot);
                self.resolve(shared, now, slot, Verdict::Unchanged);
                continue;
            }
            match names_it {
                Sendable::Put(document) => {
                    self.queue.let_delete(slot, false);
                    puts.push(slot, document);
                }
                Sendable::Delete(name) => deletes.push(Deletion {
                    slot,
                    name,
                    listed: listed.is_some(),
                }),
            }
        }
        if unchanged > 0 {
            shared.tell(Notice::Unchanged {
                sync,
                keys: unchanged,
            });
        }
        for (slots, documents) in puts.parts {
            self.send(shared, now, sync, slots, Batch::Put(documents));
        }
        let (slots, names) = self.braked(shared, now, sync, deletes);
        self.send(shared, now, sync, slots, Batch::Delete(names));
    }

    /// Sends, unless sending was blocked meanwhile: then the documents would grow old, so the keys
    /// are read anew later.
    pub(super) fn send(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        slots: Vec<Slot>,
        batch: Batch,
    ) {
        if batch.is_empty() {
            return;
        }
        if let Pass::Closed(until) = self.sending.pass(now) {
            for slot in slots {
                self.again(shared, now, slot, until);
            }
            return;
        }
        let request = RequestId(self.next_id());
        self.requests.insert(
            request,
            Sent {
                sync,
                slots,
                at: now,
                bytes: batch.weight(),
            },
        );
        self.syncs[usize::from(sync.0)].busy += 1;
        shared.budget.spend(now);
        let trusted_until = self.lease.trusted_until;
        shared.emit(Effect::Write {
            request,
            sync,
            batch,
            trusted_until,
        });
    }

    pub(super) fn answered(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        request: RequestId,
        batch: Batch,
        answer: Answer,
        until_midnight: Duration,
    ) {
        let Some(Sent {
            sync, slots, at, ..
        }) = self.requests.remove(&request)
        else {
            return;
        };
        self.syncs[usize::from(sync.0)].busy -= 1;
        let policy = policy::of(&answer.outcome);
        if let Some(limit) = answer.limit {
            shared.budget.observe(now, limit);
        }
        let detail = answer.detail.clone();
        shared.tell(Notice::Answered {
            sync,
            pairs: slots.len(),
            took: now.since(at),
            answer,
        });
        self.sending_after(
            shared,
            now,
            at,
            policy.sending,
            detail.clone(),
            until_midnight,
        );
        let hold_until = match policy.sync {
            ForSync::Healthy => {
                self.proven(shared, sync, at);
                now
            }
            ForSync::Unchanged => now,
            ForSync::Hold(reason) => self.hold(shared, now, sync, reason, detail.clone(), None),
        };
        match policy.keys {
            ForKeys::Written { doubted } => {
                self.written(shared, now, (sync, at), slots, batch, doubted);
            }
            ForKeys::Doubt => {
                for slot in slots {
                    self.doubt(shared, now, sync, slot);
                }
            }
            ForKeys::Again => {
                let at = match self.sending.pass(now) {
                    Pass::Closed(until) => until.max(hold_until),
                    Pass::Free | Pass::Probe => hold_until,
                };
                for slot in slots {
                    self.again(shared, now, slot, at);
                }
            }
            ForKeys::Halve => self.halve(shared, now, sync, slots, detail),
        }
    }

    pub(super) fn written(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        (sync, sent_at): (SyncId, Mono),
        slots: Vec<Slot>,
        batch: Batch,
        mut doubted: Vec<usize>,
    ) {
        let contents: Vec<Content> = match &batch {
            Batch::Put(documents) => documents.iter().map(|d| Content::Present(d.hash)).collect(),
            Batch::Delete(names) => names.iter().map(|_| Content::Absent).collect(),
        };
        let mut waited = Vec::new();
        let (mut count, mut settled) = (0, 0);
        doubted.sort_unstable();
        for (position, (slot, content)) in slots.into_iter().zip(contents).enumerate() {
            if doubted.binary_search(&position).is_ok() {
                self.doubt(shared, now, sync, slot);
                continue;
            }
            count += 1;
            if let Some(key) = self.queue.key(slot).cloned() {
                if self.queue.is_in_doubt(slot) || sent_at <= self.seen_since {
                    self.seen.forget(sync, &key);
                } else {
                    self.seen.note(sync, &key, content);
                }
            }
            self.clear_letter(sync, slot);
            if let Some(done) = self.resolve(shared, now, slot, Verdict::Written { sent_at }) {
                settled += 1;
                waited.extend(done.waited);
            }
        }
        let (puts, deletes) = match batch {
            Batch::Put(_) => (count, 0),
            Batch::Delete(_) => {
                // The transaction that ends their claims has the number too.
                if self.syncs[usize::from(sync.0)].brake.settle(now, settled) {
                    self.settle.note_deletes();
                }
                (0, count)
            }
        };
        shared.tell(Notice::Written {
            sync,
            puts,
            deletes,
            waited,
        });
    }

    /// KV has what the key's rows say, so a dead letter from before is outdated.
    fn clear_letter(&mut self, sync: SyncId, slot: Slot) {
        if self.syncs[usize::from(sync.0)].may_have_dead_letters
            && let Some(key) = self.queue.key(slot).cloned()
        {
            self.settle.decide(sync, key, Fate::Cleared);
        }
    }

    /// Halves a refused batch; a single pair goes to the dead letters.
    ///
    /// The halves are read anew and wait their turn like any batch, so that many poisoned pairs can
    /// neither pass the request budget nor the number of requests in flight.
    pub(super) fn halve(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        slots: Vec<Slot>,
        detail: String,
    ) {
        if slots.len() > 1 {
            self.take_apart(sync, slots.into_iter().map(Item::claimed).collect());
            return;
        }
        for slot in slots {
            let poison = Poison::new(PoisonReason::Rejected, detail.clone());
            self.bury(shared, now, sync, slot, poison);
        }
        let state = &mut self.syncs[usize::from(sync.0)];
        state.rejected_in_a_row += 1;
        if state.rejected_in_a_row > REJECTED_IN_A_ROW_MAX {
            // Dead letters go on at the pace of the hold's probes: it may be the rows after all.
            let detail = format!("KV refuses every pair of this sync: {detail}");
            self.hold(shared, now, sync, HoldReason::Unexpected, detail, None);
        }
    }

    pub(super) fn sending_after(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        began: Mono,
        sending: ForSending,
        detail: String,
        until_midnight: Duration,
    ) {
        let (reason, at_least) = match sending {
            ForSending::Healthy => {
                if self.sending.open(began).is_some() {
                    shared.tell(Notice::Unblocked);
                }
                let grown = self.pairs + (self.pairs / 4).max(1);
                self.pairs = grown.min(shared.settings.pairs_max);
                return;
            }
            ForSending::Unchanged => return,
            ForSending::Block {
                reason,
                at_least,
                smaller,
            } => {
                if smaller {
                    self.pairs = (self.pairs / 2).max(PAIRS_MIN.min(shared.settings.pairs_max));
                }
                (reason, at_least)
            }
            ForSending::BlockUntilMidnight => (BlockReason::Quota, Some(until_midnight)),
        };
        let jitter = shared.jitter();
        let (pause, news) = self
            .sending
            .close(now, reason, detail.clone(), at_least, jitter);
        if reason == BlockReason::Unauthorized {
            shared.emit(Effect::ReloadToken);
        }
        if news {
            shared.tell(Notice::Blocked {
                reason,
                pause,
                detail,
            });
        }
    }

    pub(super) fn hold(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        reason: HoldReason,
        detail: String,
        hint: Option<String>,
    ) -> Mono {
        let jitter = shared.jitter();
        let state = &mut self.syncs[usize::from(sync.0)];
        if reason == HoldReason::NamespaceGone && state.lost_at.replace(now).is_none() {
            // Whatever stood in the namespace may be gone with it. The ledger must know before the
            // namespace is back, or a crash in between would lose this.
            backfills::of(&mut self.walks, sync).want("the namespace was gone", Vec::new());
        }
        let gate = &mut self.syncs[usize::from(sync.0)].gate;
        let (pause, news) = gate.close(now, reason, detail.clone(), None, jitter);
        if news {
            let hint = hint.unwrap_or_else(|| reason.hint().to_owned());
            shared.tell(Notice::Held {
                sync,
                reason,
                detail,
                hint,
            });
        }
        now + pause
    }

    /// A request of the sync that was sent at `sent_at` did what it should.
    pub(super) fn proven(&mut self, shared: &mut Shared<'_>, sync: SyncId, sent_at: Mono) {
        let state = &mut self.syncs[usize::from(sync.0)];
        state.rejected_in_a_row = 0;
        if state.lost_at.is_some_and(|at| sent_at > at) {
            state.lost_at = None;
        }
        if state.gate.open(sent_at).is_some() {
            shared.tell(Notice::Resumed { sync });
        }
    }

    /// A page of names could not be listed; returns when to try again.
    pub(super) fn list_failed(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        began: Mono,
        answer: &Answer,
    ) -> Mono {
        let policy = policy::of(&answer.outcome);
        let detail = answer.detail.clone();
        self.sending_after(
            shared,
            now,
            began,
            policy.sending,
            detail.clone(),
            Duration::ZERO,
        );
        let held = match policy.sync {
            ForSync::Hold(reason) => self.hold(shared, now, sync, reason, detail, None),
            ForSync::Healthy | ForSync::Unchanged => now + shared.settings.backoff.initial,
        };
        match self.sending.pass(now) {
            Pass::Closed(until) => until.max(held),
            Pass::Free | Pass::Probe => held,
        }
    }
}
