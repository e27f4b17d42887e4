//! The end of a try: what its verdict makes of a key. Pure.

use std::time::Duration;

use super::entry::Trouble;
use super::{Queue, Resolved, Settings, Slot, Verdict};
use crate::change::Mono;

impl Queue {
    /// Ends a try. `jitter` in `0.0..1.0` spreads the next one.
    ///
    /// Returns `None` where the key must be tried again.
    pub fn resolve(
        &mut self,
        now: Mono,
        slot: Slot,
        verdict: Verdict,
        jitter: f64,
    ) -> Option<Resolved> {
        let Settings {
            key_interval,
            backoff,
            quiet,
            leading,
            ..
        } = self.settings;
        let repeats = if leading { quiet } else { Duration::ZERO };
        let entry = self.entry_mut(slot)?;
        if !std::mem::replace(&mut entry.in_flight, false) {
            return None;
        }
        let doubt = entry
            .trouble
            .as_ref()
            .and_then(|trouble| trouble.doubt_until);
        let done = match verdict {
            Verdict::Written { sent_at } => {
                entry.not_before = now + key_interval;
                entry.repeats_until = now + repeats;
                // Sent before the window closed: an older write may still land over this one.
                entry.retry_at = doubt.filter(|until| sent_at < *until);
                entry.retry_at.is_none()
            }
            Verdict::Unchanged => {
                entry.retry_at = doubt;
                doubt.is_none()
            }
            Verdict::Dead => {
                // A write in doubt may still land, over what the key is mended to meanwhile.
                entry.retry_at = doubt.filter(|until| now < *until);
                entry.retry_at.is_none()
            }
            Verdict::Doubt { until } => {
                let trouble = entry
                    .trouble
                    .get_or_insert_with(|| Box::new(Trouble::new(backoff)));
                let wait = trouble.backoff.next(jitter);
                entry.retry_at = Some(now + wait);
                // It may have been written just now.
                entry.not_before = now + key_interval;
                self.set_doubt(slot, Some(doubt.map_or(until, |before| before.max(until))));
                false
            }
            Verdict::Again { at } => {
                entry.retry_at = Some(at);
                false
            }
            Verdict::Held => {
                self.set_held(slot, true);
                false
            }
        };
        self.in_flight -= 1;
        let entry = self.entry_mut(slot)?;
        let outdated = std::mem::take(&mut entry.outdated);
        // A key that is to be tried again still has to be written, whatever is known by then.
        entry.again &= !done;
        if done && outdated {
            entry.retry_at = Some(now);
        }
        let resolved = (done && !outdated).then(|| {
            self.set_doubt(slot, None);
            let entry = self.entry_mut(slot)?;
            entry.trouble = None;
            entry.may_delete = false;
            let since = entry.waiting_since.take();
            Some(Resolved {
                claim: entry.claim.take(),
                waited: since.map(|since| now.since(since)),
            })
        });
        self.put_down(slot, now);
        resolved.flatten()
    }
}
