//! Level-triggered interrupt lines: a wire that is high while at least one of its sources is.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Router;

/// The wires of the machine, by GSI.
#[derive(Default)]
pub(super) struct Wires(Mutex<BTreeMap<u32, Arc<Wire>>>);

impl Wires {
    pub(super) fn source(&self, router: &Arc<Router>, gsi: u32) -> IrqLine {
        let wire = self.0.lock().entry(gsi).or_insert_with(|| Arc::new(Wire { gsi, high: Mutex::new(0) })).clone();
        IrqLine { router: router.clone(), wire, raised: Mutex::new(false) }
    }
}

/// The lock is held while the chip is told, so that it sees the changes of the level in their order.
struct Wire {
    gsi: u32,
    /// How many sources are high.
    high: Mutex<u32>,
}

/// One source on a wire. Clones are further sources of the same wire; a source that is dropped is low.
pub struct IrqLine {
    router: Arc<Router>,
    wire: Arc<Wire>,
    raised: Mutex<bool>,
}

impl IrqLine {
    /// The GSI that the wire is connected to.
    pub fn gsi(&self) -> u32 {
        self.wire.gsi
    }

    /// Sets the level of this source; the wire stays high while another source is. Devices call this with their own
    /// lock held, so that two threads cannot leave the wire at a stale level.
    pub fn set(&self, high: bool) {
        let mut raised = self.raised.lock();
        if *raised == high {
            return;
        }
        *raised = high;
        let mut count = self.wire.high.lock();
        let before = *count > 0;
        *count = if high { *count + 1 } else { *count - 1 };
        let after = *count > 0;
        if before != after {
            self.router.set_level(self.wire.gsi, after);
        }
    }
}

impl Clone for IrqLine {
    fn clone(&self) -> IrqLine {
        IrqLine { router: self.router.clone(), wire: self.wire.clone(), raised: Mutex::new(false) }
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Recorder;
    use super::*;

    #[test]
    fn a_shared_wire_is_high_while_any_source_is() {
        let router = Router::new();
        let chip = Arc::new(Recorder::default());
        router.set_chip(chip.clone()).unwrap();
        chip.take();
        let a = router.line(9);
        let b = a.clone();
        let c = router.line(9);
        a.set(true);
        a.set(true);
        b.set(true);
        c.set(true);
        a.set(false);
        assert_eq!(chip.take(), ["level 9 true"]);
        drop(b);
        c.set(false);
        assert_eq!(chip.take(), ["level 9 false"]);
    }
}
