//! Ctrl-A t: when each line was sent, in front of it. Pure.

use std::time::Duration;

/// Where in a line the output is.
#[derive(Debug, Default)]
pub(super) struct Times {
    inside: bool,
}

impl Times {
    /// `data` with the time, counted from the start, at the beginning of each line.
    pub(super) fn mark(&mut self, data: &[u8], since: Duration) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len());
        for &byte in data {
            if !self.inside {
                let (seconds, millis) = (since.as_secs(), since.subsec_millis());
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                out.extend_from_slice(format!("[{hours:02}:{minutes:02}:{:02}.{millis:03}] ", seconds % 60).as_bytes());
            }
            out.push(byte);
            self.inside = byte != b'\n';
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_one_time_however_it_comes() {
        let mut times = Times::default();
        let at = Duration::from_millis(3_723_045);
        let out = [&b"a"[..], b"b\n", b"\n", b"c"].map(|piece| times.mark(piece, at)).concat();
        assert_eq!(String::from_utf8(out).unwrap(), "[01:02:03.045] ab\n[01:02:03.045] \n[01:02:03.045] c");
    }
}
