//! How long a request waits for a rate: pure.

use std::time::Duration;

/// Without other requests this much of a second can be had at once (as QEMU's buckets).
const BURST: Duration = Duration::from_millis(100);

/// A rate, and how much of it is spent.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Units in a second; 0: without limit.
    rate: u64,
    /// When all that was let through would have come by the rate.
    spent_until: Duration,
}

impl Bucket {
    /// So many units in a second; 0: without limit.
    pub fn new(rate: u64) -> Bucket {
        Bucket { rate, spent_until: Duration::ZERO }
    }

    /// Spends `units` at the time `now`, which never goes back, and says how long the request has to wait.
    pub fn spend(&mut self, units: u64, now: Duration) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Rest is not saved up beyond the burst.
        let before = self.spent_until.max(now.saturating_sub(BURST));
        self.spent_until = before.saturating_add(cost);
        before.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_is_kept_after_the_burst() {
        let mut bucket = Bucket::new(100);
        let at = |millis| Duration::from_millis(millis);
        let waits: Vec<_> = (0..13).map(|_| bucket.spend(1, at(1000))).collect();
        assert!(waits[..11].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[11..], [at(10), at(20)]);
        assert_eq!(bucket.spend(1, at(1100)), Duration::ZERO);
        assert_eq!(Bucket::new(0).spend(u64::MAX, at(0)), Duration::ZERO);
        let mut slow = Bucket::new(1);
        slow.spend(u64::MAX, at(0));
        assert!(slow.spend(u64::MAX, at(0)) > Duration::from_secs(1 << 30));
    }

    proptest! {
        /// In any time no more comes through than the rate, a burst and one request.
        #[test]
        fn no_more_than_the_rate(rate in 1u64..10_000, requests in prop::collection::vec((0u64..500, 0u64..50), 1..60)) {
            let mut bucket = Bucket::new(rate);
            let mut now = Duration::from_secs(1);
            let (mut sum, mut largest) = (0, 0);
            for (units, pause) in requests {
                now += Duration::from_millis(pause);
                let wait = bucket.spend(units, now);
                largest = largest.max(units);
                sum += units;
                now += wait;
                let most = (now - Duration::from_secs(1) + BURST).as_secs_f64() * rate as f64 + largest as f64 + 1.0;
                prop_assert!(sum as f64 <= most, "{sum} of {most}");
            }
        }
    }
}
