//! A line on the terminal that says how far something is; nothing where standard error is none.

use std::cell::RefCell;

use indicatif::{ProgressBar, ProgressStyle};

/// The end is about known.
const BAR: &str =
    "{prefix} {wide_bar} {percent}%  {human_pos} of about {human_len}, {per_sec}, ETA {eta}";
/// It is not.
const COUNT: &str = "{spinner} {prefix}  {human_pos}, {per_sec}";
const TEXT: &str = "{spinner} {msg}";

/// The line. It is gone when this is dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    /// What it counts now: a rate must not mix two things.
    counts: RefCell<String>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            bar: ProgressBar::new_spinner(),
            counts: RefCell::default(),
        }
    }

    /// Whether there is a terminal that shows it.
    pub(super) fn is_seen(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// A few words in place of numbers.
    pub(super) fn say(&self, text: String) {
        self.counts.borrow_mut().clear();
        self.wake();
        self.bar.set_style(style(TEXT));
        self.bar.set_message(text);
        self.bar.tick();
    }

    /// How much is done of what, of so much in all where that is known.
    pub(super) fn show(&self, what: &str, done: u64, all: Option<u64>) {
        if *self.counts.borrow() != what {
            what.clone_into(&mut self.counts.borrow_mut());
            self.bar.set_prefix(what.to_owned());
            self.bar.reset();
        }
        self.wake();
        // An estimate that was passed says nothing of the end.
        match all.filter(|all| *all >= done && *all > 0) {
            Some(all) => {
                self.bar.set_length(all);
                self.bar.set_style(style(BAR));
            }
            None => self.bar.set_style(style(COUNT)),
        }
        self.bar.set_position(done);
        self.bar.tick();
    }

    /// Makes room for other lines; what comes next is shown again.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn wake(&self) {
        if self.bar.is_finished() {
            self.bar.reset();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    use super::{BAR, COUNT, TEXT};

    #[test]
    fn the_templates_are_in_order() {
        for template in [BAR, COUNT, TEXT] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
