//! How many keys the queue still takes. Pure.

use super::Queue;
use crate::change::KV_NAME_MAX_BYTES;

/// Keys that only wait out their interval and take no room, for each key of `keys_max`.
const COOLING_SHARE: usize = 4;

impl Queue {
    /// Distinct keys that may still be added.
    ///
    /// Keys that wait for a person take no room from the others, or these would wait too. Nor do
    /// those that only wait out their interval, of which little is kept, or they would bound the keys
    /// that are written in that time. Both have their limits: as many as `keys_max` of the one, and
    /// [`COOLING_SHARE`] times as many of the other.
    ///
    /// There is none either once the keys have as many bytes as the names of so many pairs may have:
    /// longer keys make no pair, so they must not take more than others do.
    pub fn room(&self) -> usize {
        let keys_max = self.settings.keys_max;
        let held = self.held.iter().sum::<usize>().min(keys_max);
        if self.key_bytes >= (keys_max + held).saturating_mul(KV_NAME_MAX_BYTES) {
            return 0;
        }
        let free = keys_max.saturating_mul(COOLING_SHARE);
        let cooling = self.cooling.len().saturating_sub(free);
        keys_max.saturating_sub(self.active() - held + cooling)
    }
}
