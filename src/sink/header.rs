//! Reads the reply headers that say how long to wait. Pure.
//!
//! A header that does not follow its grammar reads as absent: it is a hint, never a proof.

use std::time::Duration;

use crate::change::RateLimit;

/// `Retry-After`: whole seconds, or an HTTP date, which is taken against the reply's own `Date`
/// header. So the local clock, which may be wrong, has no part in it.
pub(super) fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = unix_seconds(value)?;
    let now = unix_seconds(date?.trim())?;
    Some(Duration::from_secs(until.saturating_sub(now)))
}

/// `Ratelimit: "default";r=50;t=30`, or several of them with commas between: the scarcest counts.
pub(super) fn rate_limit(value: &str) -> Option<RateLimit> {
    value.split(',').filter_map(one_limit).min_by_key(|limit| {
        (limit.remaining, std::cmp::Reverse(limit.reset)) // equally scarce: the one that lasts
    })
}

fn one_limit(item: &str) -> Option<RateLimit> {
    let parameter = |name: &str| {
        item.split(';').skip(1).find_map(|part| {
            let (key, value) = part.split_once('=')?;
            (key.trim() == name).then(|| value.trim().parse::<u64>().ok())?
        })
    };
    Some(RateLimit {
        remaining: parameter("r")?,
        reset: Duration::from_secs(parameter("t")?),
    })
}

/// Unix seconds of an HTTP date such as `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that RFC 9110
/// lets servers send. Moments before 1970 read as absent.
fn unix_seconds(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, date) = date.split_once(", ")?;
    let mut parts = date.split(' ');
    let day: u64 = number(parts.next()?, 2, 1..=31)?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = number(parts.next()?, 4, 1970..=9999)?;
    let mut clock = parts.next()?.split(':');
    let hour: u64 = number(clock.next()?, 2, 0..=23)?;
    let minute: u64 = number(clock.next()?, 2, 0..=59)?;
    let second: u64 = number(clock.next()?, 2, 0..=60)?; // 60: a leap second
    if parts.next()? != "GMT" || parts.next().is_some() || clock.next().is_some() {
        return None;
    }
    // Years are counted from March, so that the leap day is the last day of a year.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    const DAYS_BEFORE_1970: u64 = 719_469;
    let days = days.checked_sub(DAYS_BEFORE_1970)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn number(text: &str, digits: usize, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| range.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_unix_seconds() {
        for (date, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
            ("Wed, 01 Mar 2000 00:00:00 GMT", Some(951_868_800)),
            ("Mon, 23 Nov 2026 12:13:38 GMT", Some(1_795_436_018)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("06 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("", None),
        ] {
            assert_eq!(unix_seconds(date), expected, "{date:?}");
        }
    }

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(retry_after("30", None), seconds(30));
        assert_eq!(retry_after(" 0 ", date), seconds(0));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:50:07 GMT", date),
            seconds(30)
        );
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:00 GMT", date),
            seconds(0),
            "in the past"
        );
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:50:07 GMT", None),
            None,
            "no Date to compare"
        );
        assert_eq!(retry_after("-1", date), None);
        assert_eq!(retry_after("1.5", date), None);
        assert_eq!(retry_after("soon", date), None);
    }

    #[test]
    fn rate_limit_takes_the_scarcest() {
        let limit = |remaining, seconds| {
            Some(RateLimit {
                remaining,
                reset: Duration::from_secs(seconds),
            })
        };
        assert_eq!(rate_limit(r#""default";r=50;t=30"#), limit(50, 30));
        assert_eq!(rate_limit(r#""default"; r=50 ; t=30"#), limit(50, 30));
        assert_eq!(
            rate_limit(r#""burst";r=90;t=9, "default";r=7;t=240"#),
            limit(7, 240)
        );
        assert_eq!(rate_limit(r#""a";r=7;t=1, "b";r=7;t=9"#), limit(7, 9));
        assert_eq!(rate_limit(r#""default";r=50"#), None);
        assert_eq!(rate_limit(r#""default";r=x;t=30"#), None);
        assert_eq!(rate_limit(""), None);
    }
}
