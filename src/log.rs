//! Messages that are no errors: on standard error, one line each, and never more than a bounded number of lines for
//! anything that a guest or a device can repeat.

use std::fmt::Arguments;
use std::sync::atomic::{AtomicU32, Ordering};

/// How often one place may report before it only reports at powers of two.
const BURST: u32 = 8;

/// Tells the user something that no command failed for.
pub fn warn(message: Arguments<'_>) {
    eprintln!("passthru: warning: {message}");
}

/// Tells the user something that they have asked to be told (`--verbose`).
pub fn note(message: Arguments<'_>) {
    eprintln!("passthru: {message}");
}

/// Counts the occurrences of one message and says which of them to print.
#[derive(Debug, Default)]
pub struct Limiter(AtomicU32);

impl Limiter {
    /// A limiter that has seen nothing; for a `static`.
    pub const fn new() -> Limiter {
        Limiter(AtomicU32::new(0))
    }

    /// Whether this occurrence is printed: each of the first few, then the ones whose number is a power of two.
    pub fn admit(&self) -> bool {
        let seen = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        seen <= BURST || seen.is_power_of_two()
    }
}

/// Reports, at a bounded rate for each place in the code, what a guest or a device did wrong: the device's name, then
/// a format string and its arguments.
#[macro_export]
macro_rules! guest_error {
    ($device:expr, $($arg:tt)+) => {{
        static LIMITER: $crate::log::Limiter = $crate::log::Limiter::new();
        if LIMITER.admit() {
            $crate::log::warn(format_args!("{}: {}", $device, format_args!($($arg)+)));
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_thinned_to_powers_of_two() {
        let limiter = Limiter::new();
        assert_eq!((0..1000).filter(|_| limiter.admit()).count(), 8 + 6);
    }
}
