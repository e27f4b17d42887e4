//! When the outbox is fetched, and when the relay may sleep until a writer rings. Pure.

use std::time::Duration;

use super::{Shared, Term};
use crate::change::{Changed, Mono};
use crate::ledger::{Failure, FetchMode, Fetched};
use crate::queue::Offered;
use crate::relay::backfills;
use crate::relay::{Effect, Notice, WakeCause};

/// First wait for writers that may not ring; doubles to [`WRITERS_WAIT_MAX`].
const WRITERS_WAIT: Duration = Duration::from_millis(5);
const WRITERS_WAIT_MAX: Duration = Duration::from_millis(100);
/// Polls while the notification queue of the server is too full to rely on it.
const CROWDED_WAIT: Duration = Duration::from_millis(100);
/// Any login may notify on our channel. So many rings for nothing are followed at once, and one more
/// for each interval that has passed: 50 a second, beside rings that bring changes.
const IDLE_RINGS: u32 = 20;
const IDLE_RING_INTERVAL: Duration = Duration::from_millis(20);

/// What is known of the outbox reader.
#[derive(Debug)]
pub(super) struct Fetch {
    out: bool,
    rung: bool,
    /// The fetch that is out follows a ring.
    by_ring: bool,
    /// Until when rings for nothing have used up what they may.
    idle_rings_until: Mono,
    /// The notification queue of the server is more than half full.
    crowded: bool,
    /// We wrote into the outbox ourselves, and nobody rings for that.
    expected: bool,
    /// The last fetch did not come to the end.
    more: bool,
    /// Fetches that were answered.
    answered: u64,
    next: NextFetch,
}

#[derive(Clone, Copy, Debug)]
enum NextFetch {
    Awake {
        at: Mono,
        cause: WakeCause,
    },
    /// `wait` is the time until the look after this one.
    FallingAsleep {
        at: Mono,
        wait: Duration,
    },
    Asleep {
        poll_at: Mono,
    },
}

impl Fetch {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            out: false,
            rung: false,
            by_ring: false,
            idle_rings_until: now,
            crowded: false,
            expected: false,
            more: false,
            answered: 0,
            next: NextFetch::Awake {
                at: now,
                cause: WakeCause::Poll,
            },
        }
    }

    /// Whether the outbox is known to hold more than was fetched.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// Whether a page is on its way that is known to bring changes.
    pub(super) fn brings_more(&self) -> bool {
        self.out && self.more
    }

    /// Fetches that were answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// When to fetch next; `None` while a fetch is out.
    pub(super) fn wake_at(&self) -> Option<Mono> {
        let at = match self.next {
            NextFetch::Awake { at, .. } | NextFetch::FallingAsleep { at, .. } => at,
            NextFetch::Asleep { poll_at } => poll_at,
        };
        let at = match self.rung {
            true => at.min(self.ring_free_at()),
            false => at,
        };
        (!self.out).then_some(at)
    }

    /// Whether the server's notification queue is too full to rely on it.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded
    }

    /// When a ring may be followed.
    fn ring_free_at(&self) -> Mono {
        self.idle_rings_until
            .before(IDLE_RING_INTERVAL * IDLE_RINGS)
    }

    pub(super) fn ring(&mut self) {
        self.rung = true;
    }

    /// The outbox has rows of our own making.
    pub(super) fn expect(&mut self) {
        self.expected = true;
    }
}

impl Term {
    pub(super) fn drive_fetch(&mut self, shared: &mut Shared<'_>, now: Mono) {
        if self.fetch.out || self.queue.room() == 0 {
            return;
        }
        let rung = self.fetch.rung && self.fetch.ring_free_at() <= now;
        let (mode, cause) = match self.fetch.next {
            _ if rung => (FetchMode::Awake, WakeCause::Notify),
            _ if self.fetch.expected => (FetchMode::Awake, WakeCause::Linger),
            NextFetch::Awake { at, cause } if at <= now => (FetchMode::Awake, cause),
            NextFetch::FallingAsleep { at, .. } if at <= now => {
                (FetchMode::FallingAsleep, WakeCause::Writers)
            }
            // Without a doorbell the bell stays silent, or writers would notify in vain.
            NextFetch::Asleep { poll_at } if poll_at <= now && !shared.settings.doorbell => {
                (FetchMode::Awake, WakeCause::Poll)
            }
            NextFetch::Asleep { poll_at } if poll_at <= now => {
                self.fetch.next = NextFetch::FallingAsleep {
                    at: now,
                    wait: WRITERS_WAIT,
                };
                (FetchMode::FallingAsleep, WakeCause::Poll)
            }
            _ => return,
        };
        self.fetch.by_ring = rung;
        if rung || self.fetch.expected {
            self.fetch.rung &= !rung;
            self.fetch.expected = false;
            self.fetch.next = NextFetch::Awake { at: now, cause };
        }
        self.fetch.out = true;
        shared.tell(Notice::Woken(cause));
        let limit = self.queue.room().min(shared.settings.fetch_max);
        shared.emit(Effect::Fetch { mode, limit });
    }

    pub(super) fn fetched(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        result: Result<Fetched, Failure>,
    ) -> Result<(), Failure> {
        self.fetch.out = false;
        self.fetch.answered += 1;
        let fetched = match result {
            Ok(fetched) => fetched,
            Err(failure) => {
                let wait = self.passing(shared, failure)?;
                self.fetch.next = NextFetch::Awake {
                    at: now + wait,
                    cause: WakeCause::Poll,
                };
                return Ok(());
            }
        };
        self.fetch.more = fetched.more;
        if self.fetch.by_ring && fetched.changes.is_empty() {
            let spent = self.fetch.idle_rings_until.max(now);
            self.fetch.idle_rings_until = spent + IDLE_RING_INTERVAL;
        }
        if let Some(crowded) = fetched.notify_queue_full
            && crowded != self.fetch.crowded
        {
            self.fetch.crowded = crowded;
            shared.tell(Notice::NotifyQueue { full: crowded });
        }
        let (changes, mut coalesced) = (fetched.changes.len(), 0);
        self.expansions.fetched(&fetched.changes, fetched.more);
        for change in fetched.changes {
            match change.what {
                Changed::Key(key) => {
                    let at = now.before(change.age);
                    let offered = self.queue.offer(now, change.sync, key, change.id, at);
                    coalesced += usize::from(offered == Offered::Coalesced);
                }
                Changed::Again(key) => {
                    let at = now.before(change.age);
                    let (sync, id) = (change.sync, change.id);
                    let offered = self.queue.offer(now, sync, key.clone(), id, at);
                    self.queue.insist(sync, &key);
                    coalesced += usize::from(offered == Offered::Coalesced);
                }
                Changed::Related(related) => {
                    let at = now.before(change.age);
                    self.related(change.sync, change.id, related, at);
                }
                Changed::Everything => {
                    backfills::of(&mut self.walks, change.sync).want("resync", vec![change.id]);
                }
            }
        }
        for sync in std::mem::take(&mut self.new_syncs) {
            backfills::of(&mut self.walks, sync).want("new sync", Vec::new());
        }
        let redundant = self.queue.take_redundant();
        self.settle.add_redundant(redundant);
        self.settle.add_redundant(self.expansions.take_redundant());
        if changes > 0 || fetched.ignored > 0 {
            shared.tell(Notice::Fetched {
                changes,
                coalesced,
                ignored: fetched.ignored,
            });
        }
        self.fetch.next = self.after_fetch(shared, now, fetched.more, changes > 0, fetched.writers);
        Ok(())
    }

    /// Awake while changes come; asleep only once a fetch after setting the bell found nothing and
    /// no writer is open that may have read the bell before.
    fn after_fetch(
        &self,
        shared: &mut Shared<'_>,
        now: Mono,
        more: bool,
        found: bool,
        writers: bool,
    ) -> NextFetch {
        let settings = shared.settings;
        if more {
            return NextFetch::Awake {
                at: now,
                cause: WakeCause::Linger,
            };
        }
        if found {
            return NextFetch::Awake {
                at: now + settings.linger,
                cause: WakeCause::Linger,
            };
        }
        let asleep = |shared: &mut Shared<'_>| {
            let poll = shared
                .settings
                .poll_interval
                .mul_f64(0.75 + shared.jitter() / 2.0);
            NextFetch::Asleep {
                poll_at: now + poll,
            }
        };
        if !settings.doorbell {
            return asleep(shared);
        }
        match self.fetch.next {
            NextFetch::FallingAsleep { wait, .. } if writers => NextFetch::FallingAsleep {
                at: now + wait,
                wait: (wait * 2).min(WRITERS_WAIT_MAX),
            },
            NextFetch::FallingAsleep { .. } if self.fetch.crowded => NextFetch::FallingAsleep {
                at: now + CROWDED_WAIT.min(settings.poll_interval),
                wait: WRITERS_WAIT,
            },
            NextFetch::FallingAsleep { .. } => asleep(shared),
            NextFetch::Awake { .. } | NextFetch::Asleep { .. } => NextFetch::FallingAsleep {
                at: now,
                wait: WRITERS_WAIT,
            },
        }
    }
}
