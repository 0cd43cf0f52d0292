//! What every device of the machine has in common, whatever bus it sits on.

/// A device that was plugged. Its drop order is its unplug order: leases and mappings go when the last owner goes.
pub trait Device: Send + Sync {
    /// The id that the user gave, or one that the machine made.
    fn id(&self) -> &str;

    /// Puts the device into the state after power-on. Called with every vCPU stopped, at the start and at each guest
    /// reset; bus mastering is off when it returns, so that memory can be used anew.
    fn reset(&self);

    /// Silences the host's side for good: no interrupt, no DMA. Later accesses by the guest read as ones. Idempotent.
    fn unplug(&self) {}
}
