//! The table of routes and the vectors in it.
//!
//! KVM_SET_GSI_ROUTING replaces the whole table, so every commit carries the pins' routes too, and a batch of changes
//! costs one commit. The order inside a batch is fixed by the kernel: an irqfd that fires while its GSI has no route, or
//! another's, loses the interrupt or delivers a wrong one. So masked vectors are detached first, then the routes change,
//! then unmasked vectors are attached.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use vm_allocator::IdAllocator;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::level::{Level, Resample};
use super::line::{IrqLine, Wires};
use super::{GSI_COUNT, IOAPIC_PINS, IrqChip, MsiMessage, Route, Target, pin_routes};
use crate::error::{Code, Error, Result};
use crate::guest_error;

/// The machine's interrupt routes. Locks: `state` before the chip's own; no other lock is taken inside.
pub struct Router {
    /// Replaced when the machine starts again on a new VM. Read-locked for the length of one call.
    chip: RwLock<Option<Arc<dyn IrqChip>>>,
    /// Serialises batches: detach, commit and attach of two batches never interleave.
    state: Mutex<State>,
    wires: Wires,
}

struct State {
    gsis: IdAllocator,
    /// The name of the next vector or level-triggered source.
    next_vector: u64,
    /// Sources that the kernel serves alone, by name.
    levels: BTreeMap<u64, Level>,
    /// The vectors that have a GSI.
    routed: BTreeMap<u64, Routed>,
    /// What the chip was last told, without the pins.
    committed: BTreeMap<u32, MsiMessage>,
}

struct Routed {
    gsi: u32,
    message: MsiMessage,
    /// The vector's eventfd, while the irqfd is attached or shall be.
    attached: Option<Arc<EventFd>>,
}

impl Router {
    /// A table without a chip: nothing is delivered before [`Router::set_chip`].
    pub fn new() -> Arc<Router> {
        let gsis = IdAllocator::new(IOAPIC_PINS, GSI_COUNT - 1).unwrap_or_else(|_| unreachable!("a constant range"));
        let state = State {
            gsis,
            next_vector: 0,
            levels: BTreeMap::new(),
            routed: BTreeMap::new(),
            committed: BTreeMap::new(),
        };
        Arc::new(Router { chip: RwLock::new(None), state: Mutex::new(state), wires: Wires::default() })
    }

    /// Connects the routes, and every vector that is unmasked, to a new chip.
    pub fn set_chip(&self, chip: Arc<dyn IrqChip>) -> Result<()> {
        let state = self.state.lock();
        chip.commit_routes(&state.table()).map_err(|error| kvm_refused("set the interrupt routes", &error))?;
        for vector in state.routed.values() {
            if let Some(fd) = &vector.attached {
                chip.attach(vector.gsi, fd, None).map_err(|error| kvm_refused("attach an interrupt", &error))?;
            }
        }
        for level in state.levels.values() {
            chip.attach(level.gsi, &level.trigger, Some(&level.unmask))
                .map_err(|error| kvm_refused("attach a level-triggered interrupt", &error))?;
        }
        *self.chip.write() = Some(chip);
        Ok(())
    }

    /// Disconnects the chip: what fires from now on is lost. The machine is about to be built anew, or is gone.
    pub fn clear_chip(&self) {
        *self.chip.write() = None;
    }

    /// A source on the wire of a GSI below [`IOAPIC_PINS`].
    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        self.wires.source(self, gsi)
    }

    /// A source on the same wire that signals by eventfd and hears of the end of interrupt by another, for devices whose
    /// interrupts the kernel handles.
    ///
    /// # Errors
    /// [`Code::SystemFailed`] if the process may not have another file descriptor, [`Code::KvmFailed`] if KVM refuses.
    pub fn resample(self: &Arc<Self>, gsi: u32) -> Result<Resample> {
        Resample::new(self, gsi)
    }

    pub(super) fn connect_level(&self, level: Level) -> Result<u64> {
        let chip = self.chip.read().clone();
        let mut state = self.state.lock();
        if let Some(chip) = chip {
            chip.attach(level.gsi, &level.trigger, Some(&level.unmask))
                .map_err(|error| kvm_refused("attach a level-triggered interrupt", &error))?;
        }
        let id = state.next_vector;
        state.next_vector += 1;
        state.levels.insert(id, level);
        Ok(id)
    }

    pub(super) fn disconnect_level(&self, id: u64) {
        let chip = self.chip.read().clone();
        let Some(level) = self.state.lock().levels.remove(&id) else { return };
        if let Some(chip) = chip
            && let Err(error) = chip.detach(level.gsi, &level.trigger)
        {
            guest_error!("interrupts", "the kernel refused to detach GSI {}: {error}", level.gsi);
        }
    }

    /// A new vector, masked.
    ///
    /// # Errors
    /// [`Code::SystemFailed`] if the process may not have another file descriptor.
    pub fn vector(self: &Arc<Self>, owner: impl Into<Arc<str>>) -> Result<MsiVector> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| Error::system("make an eventfd", &error))?;
        let mut state = self.state.lock();
        let id = state.next_vector;
        state.next_vector += 1;
        Ok(MsiVector { router: self.clone(), id, owner: owner.into(), fd: Arc::new(fd) })
    }

    /// Changes several vectors at once: `None` masks, a message unmasks with that message.
    ///
    /// Costs one commit of the routes, and none if no route changes. A vector that cannot be connected (no GSI is left,
    /// or the kernel refuses) stays masked and is reported: what a guest asks for is never an error.
    pub fn batch(&self, edits: &[(&MsiVector, Option<MsiMessage>)]) {
        let chip = self.chip.read().clone();
        let mut state = self.state.lock();
        for (vector, message) in edits {
            match message {
                None => state.mask(vector.id, chip.as_deref()),
                Some(message) => state.set_message(vector, *message),
            }
        }
        if let Err(error) = state.commit(chip.as_deref()) {
            guest_error!("interrupts", "the kernel refused the routes: {error}");
        }
        for (vector, message) in edits {
            if message.is_some() {
                state.unmask(vector, chip.as_deref());
            }
        }
    }

    pub(super) fn set_level(&self, gsi: u32, high: bool) {
        if let Some(chip) = &*self.chip.read()
            && let Err(error) = chip.set_level(gsi, high)
        {
            guest_error!("interrupts", "the kernel refused a level of GSI {gsi}: {error}");
        }
    }

    /// How many eventfds the chip injects interrupts for.
    pub fn irqfds(&self) -> usize {
        let state = self.state.lock();
        state.routed.values().filter(|vector| vector.attached.is_some()).count() + state.levels.len()
    }

    /// How many GSIs vectors hold.
    pub fn routes_in_use(&self) -> usize {
        self.state.lock().routed.len()
    }
}

fn kvm_refused(doing: &str, error: &io::Error) -> Error {
    Error::new(Code::KvmFailed, format!("could not {doing}")).evidence(crate::error::explain_io(error))
}

impl State {
    fn table(&self) -> Vec<Route> {
        let messages = self.committed.iter().map(|(&gsi, &message)| Route { gsi, target: Target::Msi(message) });
        pin_routes().into_iter().chain(messages).collect()
    }

    fn mask(&mut self, id: u64, chip: Option<&dyn IrqChip>) {
        let Some(vector) = self.routed.get_mut(&id) else { return };
        let Some(fd) = vector.attached.take() else { return };
        if let Some(chip) = chip
            && let Err(error) = chip.detach(vector.gsi, &fd)
        {
            guest_error!("interrupts", "the kernel refused to detach GSI {}: {error}", vector.gsi);
        }
    }

    fn set_message(&mut self, vector: &MsiVector, message: MsiMessage) {
        if let Some(known) = self.routed.get_mut(&vector.id) {
            known.message = message;
            return;
        }
        match self.gsis.allocate_id() {
            Ok(gsi) => {
                self.routed.insert(vector.id, Routed { gsi, message, attached: None });
            }
            Err(_) => guest_error!(vector.owner, "no GSI is left for an interrupt: all {GSI_COUNT} are in use"),
        }
    }

    fn unmask(&mut self, vector: &MsiVector, chip: Option<&dyn IrqChip>) {
        let Some(routed) = self.routed.get_mut(&vector.id) else { return };
        if routed.attached.is_some() {
            return;
        }
        if let Some(chip) = chip
            && let Err(error) = chip.attach(routed.gsi, &vector.fd, None)
        {
            return guest_error!(vector.owner, "the kernel refused to attach GSI {}: {error}", routed.gsi);
        }
        routed.attached = Some(vector.fd.clone());
    }

    /// Tells the chip the table if it differs from the last one.
    fn commit(&mut self, chip: Option<&dyn IrqChip>) -> io::Result<()> {
        let wanted: BTreeMap<u32, MsiMessage> = self.routed.values().map(|v| (v.gsi, v.message)).collect();
        if wanted == self.committed {
            return Ok(());
        }
        self.committed = wanted;
        chip.map_or(Ok(()), |chip| chip.commit_routes(&self.table()))
    }
}

/// A message-signalled interrupt: an eventfd that, while unmasked, KVM turns into a message without user space.
pub struct MsiVector {
    router: Arc<Router>,
    id: u64,
    owner: Arc<str>,
    fd: Arc<EventFd>,
}

impl MsiVector {
    /// Signals the interrupt. While masked it stays pending.
    pub fn fire(&self) {
        // EAGAIN means that the counter is at its maximum: the interrupt is pending already.
        let _ = self.fd.write(1);
    }

    /// What signals the interrupt: for VFIO, vhost and other kernel or process peers.
    pub fn eventfd(&self) -> &EventFd {
        &self.fd
    }

    /// Whether the interrupt was signalled while masked. Meaningless while unmasked, when KVM consumes the eventfd.
    pub fn is_pending(&self) -> bool {
        // Taken out and put back: an unmasking in between attaches an irqfd that sees the second step.
        match self.fd.read() {
            Ok(count) => self.fd.write(count).is_ok(),
            Err(_) => false,
        }
    }

    /// Forgets a pending interrupt: the device was reset.
    pub fn clear(&self) {
        // EAGAIN: nothing was pending.
        let _ = self.fd.read();
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        let chip = self.router.chip.read().clone();
        let mut state = self.router.state.lock();
        state.mask(self.id, chip.as_deref());
        // The GSI's route stays in the kernel's table until the next commit: nothing is attached to it.
        if let Some(routed) = state.routed.remove(&self.id)
            && state.gsis.free_id(routed.gsi).is_err()
        {
            guest_error!(self.owner, "GSI {} was not leased", routed.gsi);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Recorder;
    use super::*;
    use proptest::prelude::*;

    fn message(data: u32) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data }
    }

    fn setup() -> (Arc<Router>, Arc<Recorder>) {
        let router = Router::new();
        let chip = Arc::new(Recorder::default());
        router.set_chip(chip.clone()).unwrap();
        chip.take();
        (router, chip)
    }

    #[test]
    fn a_batch_detaches_routes_once_and_attaches() {
        let (router, chip) = setup();
        let vectors: Vec<_> = (0..3).map(|_| router.vector("t").unwrap()).collect();
        assert!(chip.take().is_empty(), "a vector costs nothing before it is unmasked");
        router.batch(&[(&vectors[0], Some(message(1))), (&vectors[1], Some(message(2)))]);
        assert_eq!(chip.take(), ["routes 2", "attach 24 edge", "attach 25 edge"]);
        router.batch(&[(&vectors[0], None), (&vectors[2], Some(message(3)))]);
        assert_eq!(chip.take(), ["detach 24", "routes 3", "attach 26 edge"]);
        router.batch(&[(&vectors[0], Some(message(1)))]);
        assert_eq!(chip.take(), ["attach 24 edge"], "the route was still there");
        router.batch(&[(&vectors[0], Some(message(1)))]);
        assert!(chip.take().is_empty(), "nothing changed");
    }

    #[test]
    fn what_fires_while_masked_is_pending_until_cleared() {
        let (router, _chip) = setup();
        let vector = router.vector("t").unwrap();
        assert!(!vector.is_pending());
        vector.fire();
        assert!(vector.is_pending());
        vector.clear();
        assert!(!vector.is_pending());
    }

    #[test]
    fn a_new_chip_gets_every_route_and_every_unmasked_vector() {
        let (router, _old) = setup();
        let vectors: Vec<_> = (0..2).map(|_| router.vector("t").unwrap()).collect();
        router.batch(&[(&vectors[0], Some(message(1))), (&vectors[1], Some(message(2)))]);
        router.batch(&[(&vectors[1], None)]);
        let chip = Arc::new(Recorder::default());
        router.set_chip(chip.clone()).unwrap();
        assert_eq!(chip.take(), ["routes 2", "attach 24 edge"]);
        assert_eq!(chip.routes.lock().len(), pin_routes().len() + 2);
    }

    #[test]
    fn exhausted_gsis_mask_and_never_fail() {
        let (router, chip) = setup();
        let vectors: Vec<_> = (0..4).map(|_| router.vector("t").unwrap()).collect();
        {
            let mut state = router.state.lock();
            while state.gsis.allocate_id().is_ok() {}
        }
        router.batch(&vectors.iter().map(|vector| (vector, Some(message(1)))).collect::<Vec<_>>());
        assert_eq!(router.routes_in_use(), 0);
        assert!(chip.attached.lock().is_empty());
    }

    proptest! {
        /// A guest that reprograms vectors in a loop leaks no GSI and no irqfd, and the table is what it last asked for.
        #[test]
        fn reprogramming_leaks_nothing(steps in prop::collection::vec((0usize..4, prop::option::of(0u32..5), any::<bool>()), 0..60)) {
            let (router, chip) = setup();
            let mut vectors: Vec<_> = (0..4).map(|_| (router.vector("t").unwrap(), None)).collect();
            for (index, data, recreate) in steps {
                if recreate {
                    vectors[index] = (router.vector("t").unwrap(), None);
                }
                let wanted = data.map(message);
                vectors[index].1 = wanted;
                router.batch(&[(&vectors[index].0, wanted)]);
                let unmasked = vectors.iter().filter(|(_, message)| message.is_some()).count();
                prop_assert_eq!(chip.attached.lock().len(), unmasked);
                prop_assert!(router.routes_in_use() <= vectors.len());
                for (vector, wanted) in &vectors {
                    if let Some(wanted) = wanted {
                        let gsi = router.state.lock().routed[&vector.id].gsi;
                        let expected = Route { gsi, target: Target::Msi(*wanted) };
                        prop_assert!(chip.routes.lock().contains(&expected));
                    }
                }
            }
            drop(vectors);
            prop_assert_eq!(router.routes_in_use(), 0);
            prop_assert!(chip.attached.lock().is_empty());
        }
    }
}
