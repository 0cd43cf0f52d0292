//! What devices tell the machine: a guest in trouble, a balloon, a port; a disk's errors are in [`super::hotplug`].

use std::sync::Arc;

use serde_json::json;

use super::options::action::{OnPanic, OnWatchdog};
use super::{End, Machine};
use crate::device::{Balloon, GuestEvent, Word};
use crate::monitor::control::{Control, Status};
use crate::monitor::device_data;

/// Bytes of a page of the balloon.
const PAGE: u64 = 4096;

impl Machine {
    /// Does what comes of a device's word.
    pub(super) fn hear(&mut self, id: &Arc<str>, word: Word) {
        match word {
            Word::PortOpen(open) => self.monitor.event("VSERPORT_CHANGE", Some(json!({ "id": &**id, "open": open }))),
            Word::BalloonChanged => {
                if let Some(actual) = self.balloon_size() {
                    self.monitor.event("BALLOON_CHANGE", Some(json!({ "actual": actual })));
                }
            }
            Word::MemoryChanged => self.memory_changed(id),
            Word::Guest(event) => self.guest_says(event),
            Word::Watchdog => self.watchdog_barks(id),
            Word::IoError(error) => self.disk_failed(id, error),
        }
    }

    /// As QEMU's event of the same name says it.
    fn memory_changed(&mut self, id: &Arc<str>) {
        let device = self.plugged.device(id);
        let Some(size) = device.as_ref().and_then(|device| device.pluggable_memory()).map(|memory| memory.plugged())
        else {
            return;
        };
        let mut data = device_data(id);
        let path = data["path"].take();
        let mut event = json!({ "size": size, "qom-path": path });
        if !data["device"].is_null() {
            event["id"] = data["device"].take();
        }
        self.monitor.event("MEMORY_DEVICE_SIZE_CHANGE", Some(event));
    }

    fn guest_says(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::CrashLoaded => self.monitor.event("GUEST_CRASHLOADED", Some(json!({ "action": "run" }))),
            GuestEvent::Shutdown => {
                self.monitor.event("GUEST_PVSHUTDOWN", None);
                self.wish = Some(End::Shutdown);
            }
            // A guest that stands still has said so before.
            GuestEvent::Panicked if self.status != Status::Running => {}
            GuestEvent::Panicked => {
                let action = match self.actions.panic {
                    OnPanic::Pause => "pause",
                    OnPanic::Shutdown | OnPanic::ExitFailure => "poweroff",
                    OnPanic::None => "run",
                };
                self.monitor.event("GUEST_PANICKED", Some(json!({ "action": action })));
                match self.actions.panic {
                    OnPanic::Pause => self.pause(Status::GuestPanicked),
                    OnPanic::Shutdown | OnPanic::ExitFailure => self.wish = Some(End::Panicked),
                    OnPanic::None => {}
                }
            }
        }
    }

    fn watchdog_barks(&mut self, id: &Arc<str>) {
        // A guest that stands still cannot feed it.
        if self.status != Status::Running {
            return;
        }
        let action = self.actions.watchdog;
        self.monitor.event("WATCHDOG", Some(json!({ "action": action.name() })));
        crate::log::warn(format_args!("{id}: the guest has not written to its watchdog in time: {}", action.name()));
        match action {
            OnWatchdog::Reset => self.wish = Some(End::Reset { by_guest: true }),
            OnWatchdog::Shutdown => self.power_button(),
            OnWatchdog::Poweroff => self.wish = Some(End::Watchdog),
            OnWatchdog::Pause => self.pause(Status::Watchdog),
            OnWatchdog::Debug | OnWatchdog::None => {}
        }
    }

    /// Bytes of memory that the guest has beside its balloon; `None`: there is no balloon.
    pub(super) fn balloon_size(&self) -> Option<u64> {
        let inside = self.plugged.with_balloon(|balloon| u64::from(balloon.actual()) * PAGE)?;
        Some(self.ram.saturating_sub(inside))
    }

    /// Asks the guest to have no more than so many bytes; `None`: there is no balloon.
    pub(super) fn inflate(&self, bytes: u64) -> Option<()> {
        let pages = self.ram.saturating_sub(bytes) / PAGE;
        self.plugged.with_balloon(|balloon: &dyn Balloon| balloon.set_target(u32::try_from(pages).unwrap_or(u32::MAX)))
    }
}
