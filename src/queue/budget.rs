//! The request budget of one API token, pure.
//!
//! The API counts requests over five minutes and blocks every call for the next five once the count
//! is passed. A bucket that refills would let twice the limit through in one such window, so the
//! times of the requests of the last window are kept: 1,200 of them at the default limit.

use std::collections::VecDeque;
use std::time::Duration;

use crate::change::{Mono, RateLimit};

/// The window that the API counts over.
/// Source: Cloudflare API, rate limits.
pub const WINDOW: Duration = Duration::from_secs(300);

/// Limits of a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Requests in a window; 0 means no limit of our own.
    pub requests_per_window: u32,
    /// Of these, kept back for audits, and for people who use the same token.
    pub reserve_requests: u32,
}

/// Counts what was sent, and says when the next request may go.
#[derive(Debug)]
pub struct Budget {
    settings: Settings,
    sent: VecDeque<Mono>,
    /// Requests that the reserve paid for.
    from_reserve: VecDeque<Mono>,
    /// What the server said is left, until when; counted down by our own requests since.
    server: Option<(u64, Mono)>,
}

impl Budget {
    /// A budget of which nothing is used.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            sent: VecDeque::new(),
            from_reserve: VecDeque::new(),
            server: None,
        }
    }

    /// Counts one request that goes out now.
    pub fn spend(&mut self, now: Mono) {
        self.forget_old(now);
        if self.settings.requests_per_window > 0 {
            self.sent.push_back(now);
        }
        self.count_down();
    }

    /// Counts one request that could have waited: the reserve pays for it while it can.
    pub fn spend_spare(&mut self, now: Mono) {
        self.forget_old(now);
        if self.settings.requests_per_window > 0 {
            if self.reserve_left() > 0 {
                self.from_reserve.push_back(now);
            } else {
                self.sent.push_back(now);
            }
        }
        self.count_down();
    }

    fn count_down(&mut self) {
        if let Some((left, _)) = &mut self.server {
            *left = left.saturating_sub(1);
        }
    }

    /// Takes in what the server says is left. The smaller of its count and ours holds, because
    /// others may use the same token.
    pub fn observe(&mut self, now: Mono, limit: RateLimit) {
        self.server = Some((limit.remaining, now + limit.reset));
    }

    /// Requests that may still go in this window, without the reserve.
    pub fn left(&mut self, now: Mono) -> u64 {
        self.forget_old(now);
        self.own_left()
            .min(self.server.map_or(u64::MAX, |(left, _)| left))
    }

    /// Whether more than half is left, so that requests need not be saved.
    pub fn is_ample(&mut self, now: Mono) -> bool {
        self.left(now) > u64::from(self.usable()) / 2
    }

    /// When a request that can wait may go, `now` at the earliest: while the reserve has one left, or
    /// more than three quarters of the rest is. So it takes nothing from what is in use, and at most
    /// a quarter of what a burst after a quiet time could have.
    pub fn spare_at(&mut self, now: Mono) -> Mono {
        self.forget_old(now);
        if let Some((left, until)) = self.server
            && left <= u64::from(self.settings.reserve_requests)
        {
            return until;
        }
        if self.reserve_left() > 0 || self.own_left() > u64::from(self.usable()) * 3 / 4 {
            return now;
        }
        let oldest = [&self.from_reserve, &self.sent].map(|sent| sent.front().copied());
        let frees = oldest.into_iter().flatten().min();
        frees.map_or(now, |at| at + WINDOW).max(now)
    }

    fn reserve_left(&self) -> usize {
        (self.settings.reserve_requests as usize).saturating_sub(self.from_reserve.len())
    }

    fn own_left(&self) -> u64 {
        match self.settings.requests_per_window {
            0 => u64::MAX,
            _ => u64::from(self.usable()).saturating_sub(self.sent.len() as u64),
        }
    }

    /// Requests in a window, without the reserve.
    fn usable(&self) -> u32 {
        self.settings
            .requests_per_window
            .saturating_sub(self.settings.reserve_requests)
    }

    /// When the next request may go, `now` at the earliest.
    ///
    /// While more than half is left a request goes at once. Below that, what is left is spread over
    /// the time until the window frees more, so that batches fill up instead of the budget running
    /// dry: after a burst, a dry budget would stop everything for minutes.
    pub fn ready_at(&mut self, now: Mono) -> Mono {
        let left = self.left(now);
        if left == 0 {
            let own = self
                .sent
                .front()
                .filter(|_| self.own_left() == 0)
                .map(|oldest| *oldest + WINDOW);
            let server = self
                .server
                .filter(|(left, _)| *left == 0)
                .map(|(_, until)| until);
            return own.into_iter().chain(server).max().unwrap_or(now).max(now);
        }
        let (Some(oldest), Some(last)) = (self.sent.front(), self.sent.back()) else {
            return now;
        };
        let half = f64::from(self.usable()) / 2.0;
        // Full from three quarters of a half on, so that the wait does not set in all at once.
        let scarcity = (4.0 * (1.0 - left as f64 / half)).clamp(0.0, 1.0);
        let frees = (*oldest + WINDOW).since(now);
        (*last + frees.mul_f64(scarcity / left as f64)).max(now)
    }

    fn forget_old(&mut self, now: Mono) {
        for sent in [&mut self.sent, &mut self.from_reserve] {
            while sent.front().is_some_and(|at| now.since(*at) >= WINDOW) {
                sent.pop_front();
            }
        }
        if self.server.is_some_and(|(_, until)| until <= now) {
            self.server = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        requests_per_window: 1_200,
        reserve_requests: 60,
    };

    fn at(ms: u64) -> Mono {
        Mono::from_origin(Duration::from_millis(ms))
    }

    /// Sends whenever allowed; returns the moments.
    fn run(budget: &mut Budget, until: Mono) -> Vec<Mono> {
        let mut sent = Vec::new();
        let mut now = at(0);
        loop {
            now = budget.ready_at(now);
            if now >= until {
                return sent;
            }
            assert!(budget.left(now) > 0, "allowed with nothing left");
            budget.spend(now);
            sent.push(now);
        }
    }

    #[test]
    fn no_window_ever_holds_more_than_the_limit() {
        let sent = run(&mut Budget::new(SETTINGS), at(3_600_000));
        for (index, start) in sent.iter().enumerate() {
            let in_window = sent[index..]
                .iter()
                .take_while(|at| at.since(*start) < WINDOW)
                .count();
            assert!(
                in_window <= 1_140,
                "{in_window} requests within five minutes"
            );
        }
        let per_second = sent.len() as f64 / 3_600.0;
        assert!(
            per_second > 3.6,
            "only {per_second:.2} requests a second of 4 were used"
        );
    }

    #[test]
    fn a_burst_does_not_run_it_dry() {
        let sent = run(&mut Budget::new(SETTINGS), at(3_600_000));
        let longest = sent.windows(2).map(|two| two[1].since(two[0])).max();
        assert!(
            longest < Some(Duration::from_secs(2)),
            "nothing could be sent for {longest:?}"
        );
    }

    #[test]
    fn plenty_left_means_no_wait() {
        let mut budget = Budget::new(SETTINGS);
        for _ in 0..570 {
            assert_eq!(budget.ready_at(at(5)), at(5));
            budget.spend(at(5));
        }
        budget.spend(at(5));
        assert!(budget.ready_at(at(5)) > at(5));
    }

    #[test]
    fn the_server_may_know_less_is_left() {
        let mut budget = Budget::new(SETTINGS);
        let limit = RateLimit {
            remaining: 1,
            reset: Duration::from_secs(30),
        };
        budget.observe(at(0), limit);
        assert_eq!(budget.left(at(0)), 1);
        budget.spend(at(0));
        assert_eq!(budget.ready_at(at(1)), at(30_000));
        assert_eq!(budget.left(at(30_000)), 1_139);
    }

    #[test]
    fn what_can_wait_takes_nothing_from_what_is_in_use() {
        let mut budget = Budget::new(SETTINGS);
        // Writes go on as fast as they may; an audit asks for all that it can get.
        let (mut writes, mut audits, mut now) = (Vec::new(), Vec::new(), at(0));
        while now < at(1_200_000) {
            if budget.ready_at(now) <= now {
                budget.spend(now);
                writes.push(now);
            }
            if budget.spare_at(now) <= now {
                budget.spend_spare(now);
                audits.push(now);
            }
            let next = budget.ready_at(now).min(budget.spare_at(now));
            assert!(next > now || budget.left(now) > 0);
            now = next.max(now);
        }
        let alone = run(&mut Budget::new(SETTINGS), at(1_200_000)).len();
        let lost = alone.saturating_sub(writes.len());
        assert!(
            lost <= 1_140 / 4,
            "{lost} of {alone} writes, at the start only"
        );
        let mut all = [writes, audits].concat();
        all.sort();
        for (index, start) in all.iter().enumerate() {
            let window = all[index..]
                .iter()
                .take_while(|at| at.since(*start) < WINDOW);
            assert!(window.count() <= 1_200);
        }
        assert!(
            all.len() >= alone + 3 * 60,
            "the reserve is there to be used"
        );
    }

    #[test]
    fn what_can_wait_leaves_to_others_what_the_server_counts_down() {
        let mut budget = Budget::new(SETTINGS);
        assert_eq!(budget.spare_at(at(0)), at(0));
        let reset = Duration::from_secs(30);
        budget.observe(
            at(0),
            RateLimit {
                remaining: 61,
                reset,
            },
        );
        budget.spend_spare(at(0));
        assert_eq!(budget.spare_at(at(1)), at(30_000));
        assert_eq!(budget.ready_at(at(1)), at(1), "a write may go");
    }

    #[test]
    fn no_limit_of_our_own() {
        let mut budget = Budget::new(Settings {
            requests_per_window: 0,
            reserve_requests: 0,
        });
        for _ in 0..10_000 {
            budget.spend(at(1));
        }
        assert_eq!(budget.ready_at(at(1)), at(1));
        assert!(budget.sent.is_empty());
    }
}
