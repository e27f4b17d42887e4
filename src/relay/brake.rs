//! The mass-delete brake of one sync: a mistake in Postgres must not empty the edge. Pure.
//!
//! Owns how many pairs were let go lately, how many keys the sync has, and whether a person said
//! that deletes may go. Knows no key: those that are held wait in the queue, under their claims.
//!
//! **Invariant:** a closed brake opens by approval, or when nothing is left to be deleted; never by
//! time alone or by a restart, since a mistake does not become right by waiting. So the ledger has
//! what was deleted lately, written by the transaction that ends the claims of these deletes.

use std::collections::VecDeque;
use std::time::Duration;

use crate::change::Mono;
use crate::ledger::DeleteFacts;

/// Parts of the window that are counted and forgotten as a whole.
const BUCKETS: u32 = 10;

/// When deletes of a sync are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// More pairs than this share of the sync's keys (0 to 1) …
    pub share: f64,
    /// … and more than this many; 0 switches the brake off …
    pub count: u64,
    /// … deleted within this time.
    pub window: Duration,
}

/// The brake of one sync.
#[derive(Debug)]
pub(super) struct Brake {
    settings: Settings,
    /// Pairs let go, by the start of their part of the window; at most `BUCKETS + 1` of them.
    lately: VecDeque<(Mono, u64)>,
    /// Those of them whose claims are over: whoever leads next finds the others in the claims.
    settled: VecDeque<(Mono, u64)>,
    /// The ledger has other numbers of them.
    unsaved: bool,
    /// Keys of the sync, about; `None` until its first backfill is done.
    keys: Option<u64>,
    approved_until: Option<Mono>,
    closed: bool,
    /// Orphans in KV that the sweep to come will find, about.
    ahead: u64,
    /// Rows that the walk found whose sweep is to come or under way.
    walked: Option<u64>,
}

impl Brake {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            lately: VecDeque::new(),
            settled: VecDeque::new(),
            unsaved: false,
            keys: None,
            approved_until: None,
            closed: false,
            ahead: 0,
            walked: None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Orphans that the sweep to come will find, about.
    pub(super) fn ahead(&self) -> u64 {
        self.ahead
    }

    /// Takes in what the leader before left: what it had deleted lately, and that deletes are held.
    pub(super) fn resume(&mut self, now: Mono, read_at: Mono, facts: &DeleteFacts) {
        for (age, pairs) in &facts.lately {
            self.settled.push_back((now.before(*age), *pairs));
        }
        self.lately = self.settled.clone();
        self.closed = facts.held && self.settings.count > 0;
        self.learn(now, read_at, facts);
    }

    /// Takes in what the ledger says; `read_at` is when it was asked. Returns whether that opened
    /// the brake.
    pub(super) fn learn(&mut self, now: Mono, read_at: Mono, facts: &DeleteFacts) -> bool {
        self.keys = facts.keys;
        self.approved_until = facts.approved_for.map(|time| read_at + time);
        let opens = self.closed && self.is_approved(now);
        if opens {
            self.open();
            self.lately.clear();
            self.settled.clear();
            self.unsaved = true;
        }
        opens
    }

    /// Whether so many more pairs may be deleted, all or none. If not, the brake is closed.
    ///
    /// `listed`: the pairs are known to stand in KV. Before the first backfill of a sync others may
    /// never have been written, so their deletes harm nobody and say nothing about a mistake.
    pub(super) fn admit(&mut self, now: Mono, pairs: u64, listed: bool) -> bool {
        if self.settings.count == 0 || self.is_approved(now) || (self.keys.is_none() && !listed) {
            return true;
        }
        self.closed |= self.is_too_much(now, pairs);
        if !self.closed {
            self.count(now, pairs);
        }
        !self.closed
    }

    /// Whether so many pairs may be deleted that no row has anything to do with. Unlike
    /// [`Self::admit`] a no closes nothing: deletes of rows go on.
    pub(super) fn lets(&self, now: Mono, pairs: u64) -> bool {
        self.settings.count == 0
            || self.is_approved(now)
            || !(self.closed || self.exceeds(now, pairs))
    }

    /// They are deleted, without claims. Returns whether the ledger is to know.
    pub(super) fn spend(&mut self, now: Mono, pairs: u64) -> bool {
        self.count(now, pairs);
        self.settle(now, pairs)
    }

    /// The claims of so many deleted keys are over. Returns whether the ledger is to know.
    pub(super) fn settle(&mut self, now: Mono, pairs: u64) -> bool {
        let counts = self.settings.count > 0 && self.keys.is_some() && !self.is_approved(now);
        if counts && pairs > 0 {
            add(&mut self.settled, &self.settings, now, pairs);
            self.unsaved = true;
        }
        self.unsaved
    }

    /// What the ledger is to know, where it knows something else: how long ago how many pairs were
    /// deleted within the window.
    pub(super) fn save(&mut self, now: Mono) -> Option<Vec<(Duration, u64)>> {
        std::mem::take(&mut self.unsaved).then(|| {
            forget_old(&mut self.settled, &self.settings, now);
            let settled = self.settled.iter();
            settled
                .map(|(at, pairs)| (now.since(*at), *pairs))
                .collect()
        })
    }

    /// The ledger did not take it.
    pub(super) fn not_saved(&mut self) {
        self.unsaved = true;
    }

    /// A walk found so many rows: the keys that are missing among them are orphans in KV. The brake
    /// closes before the first of them is deleted, if they are too many.
    pub(super) fn foresee(&mut self, now: Mono, rows: u64) {
        self.walked = Some(rows);
        let missing = self.keys.unwrap_or(0).saturating_sub(rows);
        let hold = self.settings.count > 0
            && !self.is_approved(now)
            && (self.closed || self.is_too_much(now, missing));
        self.ahead = if hold { missing } else { 0 };
        self.closed |= hold && missing > 0;
    }

    /// The sweep is done too: KV has a key for each row that was walked, and no others.
    pub(super) fn swept(&mut self) {
        self.keys = self.walked.take().or(self.keys);
    }

    /// Nothing of the sync waits to be deleted any more.
    pub(super) fn open(&mut self) {
        self.closed = false;
        self.ahead = 0;
    }

    fn is_approved(&self, now: Mono) -> bool {
        self.approved_until.is_some_and(|until| now < until)
    }

    fn is_too_much(&mut self, now: Mono, pairs: u64) -> bool {
        forget_old(&mut self.lately, &self.settings, now);
        self.exceeds(now, pairs)
    }

    fn exceeds(&self, now: Mono, pairs: u64) -> bool {
        let lately = self.lately.iter();
        let gone: u64 = lately
            .filter(|(began, _)| now.since(*began) <= self.settings.window)
            .map(|(_, pairs)| pairs)
            .sum();
        let pairs = gone.saturating_add(pairs);
        let share = self.keys.unwrap_or(0) as f64 * self.settings.share;
        pairs > self.settings.count && pairs as f64 > share
    }

    fn count(&mut self, now: Mono, pairs: u64) {
        add(&mut self.lately, &self.settings, now, pairs);
    }
}

fn add(to: &mut VecDeque<(Mono, u64)>, settings: &Settings, now: Mono, pairs: u64) {
    match to.back_mut() {
        Some((began, count)) if now.since(*began) < settings.window / BUCKETS => *count += pairs,
        _ => to.push_back((now, pairs)),
    }
}

fn forget_old(of: &mut VecDeque<(Mono, u64)>, settings: &Settings, now: Mono) {
    while let Some((began, _)) = of.front()
        && now.since(*began) > settings.window
    {
        of.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::SyncId;

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(seconds))
    }

    fn facts(keys: Option<u64>, approved_for: Option<u64>) -> DeleteFacts {
        DeleteFacts {
            sync: SyncId(0),
            keys,
            approved_for: approved_for.map(Duration::from_secs),
            held: false,
            lately: Vec::new(),
        }
    }

    /// More than 30 % and more than 100 in 10 minutes.
    fn brake(keys: Option<u64>) -> Brake {
        let mut brake = Brake::new(Settings {
            share: 0.3,
            count: 100,
            window: Duration::from_secs(600),
        });
        assert!(!brake.learn(at(0), at(0), &facts(keys, None)));
        brake
    }

    #[test]
    fn closes_once_both_limits_are_passed() {
        let mut large = brake(Some(10_000));
        assert!(large.admit(at(1), 3_000, false), "count passed, share not");
        assert!(!large.admit(at(1), 1, false));
        let mut small = brake(Some(50));
        assert!(small.admit(at(1), 100, false), "share passed, count not");
        assert!(!small.admit(at(1), 1, false));
        assert!(!small.admit(at(100_000), 1, false), "not by time alone");
    }

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let mut brake = brake(Some(0));
        for minute in 0..100 {
            assert!(brake.admit(at(minute * 60), 9, false), "{minute}");
            assert!(brake.lately.len() <= 12);
        }
        assert!(!brake.admit(at(6_000), 30, false));
    }

    #[test]
    fn an_approval_lets_everything_go_until_it_ends() {
        let mut brake = brake(Some(1_000));
        assert!(!brake.admit(at(1), 1_000, false));
        assert!(brake.learn(at(2), at(2), &facts(Some(1_000), Some(60))));
        assert!(brake.admit(at(61), 5_000, true));
        assert!(!brake.is_closed());
        assert!(brake.admit(at(63), 300, true), "counted anew");
        assert!(!brake.admit(at(63), 1, true));
        assert!(!brake.learn(at(64), at(64), &facts(Some(1_000), None)));
        assert!(brake.is_closed());
    }

    #[test]
    fn a_walk_that_finds_too_few_rows_closes_it_before_the_first_delete() {
        let mut brake = brake(Some(1_000));
        brake.foresee(at(1), 700);
        assert!(!brake.is_closed());
        brake.foresee(at(2), 0);
        assert!(brake.is_closed());
        assert_eq!(brake.ahead(), 1_000);
        // The rows were put back and walked again.
        brake.foresee(at(3), 1_000);
        assert_eq!(brake.ahead(), 0);
    }

    #[test]
    fn a_finished_backfill_counts_the_keys() {
        let mut brake = brake(None);
        brake.foresee(at(1), 1_000);
        brake.swept();
        brake.foresee(at(2), 0);
        assert_eq!(brake.ahead(), 1_000);
    }

    #[test]
    fn a_sync_that_was_never_walked_may_only_delete_what_was_never_seen() {
        let mut brake = brake(None);
        assert!(brake.admit(at(1), 5_000, false));
        assert!(brake.admit(at(1), 100, true));
        assert!(!brake.admit(at(1), 1, true));
    }

    #[test]
    fn a_new_leader_knows_what_was_deleted_and_what_is_held() {
        let mut before = brake(Some(100));
        assert!(before.admit(at(1), 60, false));
        assert_eq!(before.save(at(1)), None, "their claims are there");
        before.settle(at(2), 60);
        let left = before.save(at(12));
        assert_eq!(left, Some(vec![(Duration::from_secs(10), 60)]));
        assert_eq!(before.save(at(12)), None);
        before.not_saved();
        assert_eq!(before.save(at(12)), left);

        let mut found = facts(Some(100), None);
        found.lately = left.unwrap_or_default();
        let mut next = brake(Some(100));
        next.resume(at(5_000), at(5_000), &found);
        assert!(next.admit(at(5_000), 40, false));
        assert!(!next.admit(at(5_000), 1, false));

        found.held = true;
        let mut next = brake(Some(100));
        next.resume(at(5_000), at(5_000), &found);
        assert!(!next.admit(at(5_000), 1, false), "begins held");
        found.approved_for = Some(Duration::from_secs(60));
        let mut next = brake(Some(100));
        next.resume(at(5_000), at(5_000), &found);
        assert!(next.admit(at(5_000), 500, false), "approved meanwhile");
        assert_eq!(next.save(at(5_000)), Some(Vec::new()));
    }

    #[test]
    fn a_count_of_zero_switches_it_off() {
        let mut brake = brake(Some(10));
        brake.settings.count = 0;
        assert!(brake.admit(at(1), 1_000_000, true));
        brake.foresee(at(1), 0);
        assert!(!brake.is_closed());
    }
}
