//! Trying again: how often, and how long to wait.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::error::FetchError;

/// No wait is longer, whoever asks for it.
const LONGEST_WAIT: Duration = Duration::from_hours(24);

/// How often what failed by accident is tried again. What brings new bytes begins the count anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// So often after the first time.
    pub times: u32,
    /// The wait before the first repetition; each one doubles it, and chance takes off up to half.
    pub first_wait: Duration,
    /// No wait is longer, unless a server asks for it.
    pub longest_wait: Duration,
    /// A server that asks for a longer wait than this is not waited for.
    pub patience: Duration,
}

impl Default for Retry {
    /// Five times, after 1, 2, 4, 8 and 8 seconds; up to five minutes where a server says so.
    fn default() -> Self {
        Self {
            times: 5,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(8),
            patience: Duration::from_mins(5),
        }
    }
}

impl Retry {
    /// The wait before repetition `count`, which counts from 0: with chance in it, so that many clients that were cut
    /// off together do not come back together.
    pub(crate) fn wait(&self, count: u32) -> Duration {
        let whole = self.first_wait.saturating_mul(1 << count.min(16)).min(self.longest_wait);
        // RandomState is seeded anew for each hasher; its hash of nothing is a random number.
        let chance = RandomState::new().hash_one(count) % 512;
        whole.mul_f64(1.0 - chance as f64 / 1024.0)
    }
}

/// Waits, unless the caller wishes to stop.
pub(crate) fn sleep(wait: Duration, stop: &AtomicBool) -> Result<(), FetchError> {
    let end = Instant::now() + wait.min(LONGEST_WAIT);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(FetchError::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// How long a server asks to be left alone: `Retry-After` in seconds or as a date, else the `RateLimit` header's
/// `t=` where nothing remains (`r=0`).
pub(crate) fn asked_wait(retry_after: Option<&str>, rate_limit: Option<&str>) -> Option<Duration> {
    if let Some(text) = retry_after.map(str::trim) {
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        if let Ok(date) = httpdate::parse_http_date(text) {
            return Some(date.duration_since(SystemTime::now()).unwrap_or_default());
        }
    }
    let number = |name: &str| -> Option<u64> {
        rate_limit?.split(';').find_map(|part| part.trim().strip_prefix(name)?.trim().parse().ok())
    };
    (number("r=")? == 0).then(|| number("t=")).flatten().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_end_somewhere() {
        let retry = Retry::default();
        for (count, longest) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (40, 8)] {
            let (wait, longest) = (retry.wait(count), Duration::from_secs(longest));
            assert!(wait <= longest && wait >= longest / 2, "{count}: {wait:?}");
        }
    }

    #[test]
    fn what_a_server_asks_for() {
        let check = |after: Option<&str>, limit: Option<&str>, expected: Option<u64>| {
            assert_eq!(asked_wait(after, limit), expected.map(Duration::from_secs), "{after:?} {limit:?}");
        };
        check(Some("3"), None, Some(3));
        check(Some("soon"), None, None);
        check(Some("Wed, 21 Oct 2015 07:28:00 GMT"), None, Some(0));
        check(None, Some("\"api\";r=0;t=55"), Some(55));
        check(None, Some("\"api\";r=12;t=55"), None);
        check(Some("3"), Some("\"api\";r=0;t=55"), Some(3));
        check(None, None, None);
    }
}
