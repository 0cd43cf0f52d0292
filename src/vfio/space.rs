//! Every VFIO descriptor of one machine: containers, the groups in them, and the DMA space of each container.
//!
//! Nothing is opened before the first device is. A group joins the first container that the kernel lets it join, so
//! devices share one set of mappings wherever their IOMMUs can; a container that has lost its last group is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use vfio_ioctls::VfioError;

use super::container::Container;
use super::device::{Handle, VfioDevice, group_of};
use super::dma::{DmaSpace, PeerToPeer, Pinning};
use super::hot_reset::HotResets;
use super::seams::GroupSink;
use super::uapi::group_descriptor;
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::check::VfioStep;
use crate::memory::{HostMem, Listening, Memory, Stage};

/// The machine's VFIO context; one per machine.
pub struct Vfio {
    host: Host,
    memory: Arc<Memory>,
    /// Serialises opening and closing of devices. Taken before the layout lock (through [`Memory::listen`] and the
    /// end of a [`Listening`]), never inside it: whoever drops a [`VfioDevice`] must not hold that lock.
    state: Mutex<State>,
    hot_resets: HotResets,
}

#[derive(Default)]
struct State {
    domains: Vec<Domain>,
    /// How RAM is pinned in the DMA spaces that are still to come.
    pinning: Pinning,
    /// Exceptions for BARs, for the DMA spaces that are still to come.
    policies: Vec<(Weak<HostMem>, PeerToPeer)>,
    /// KVM's list of groups, of the present virtual machine.
    kvm: Option<Arc<dyn GroupSink>>,
}

/// A container, what is in it, and its DMA space. Fields drop in this order: unmap, then groups, then the container.
struct Domain {
    /// Absent for the moment between the first group's joining and the replay of the layout.
    listening: Option<Listening>,
    dma: Arc<DmaSpace>,
    groups: BTreeMap<u32, Group>,
    container: Arc<Container>,
}

/// A group that some device of ours is open in.
struct Group {
    /// A second descriptor, for KVM; the crate keeps the first to itself.
    fd: OwnedFd,
    devices: BTreeSet<Bdf>,
}

impl Vfio {
    /// A context without any descriptor. `memory` is what devices will reach by DMA.
    pub fn new(host: Host, memory: Arc<Memory>) -> Arc<Vfio> {
        Arc::new(Vfio { host, memory, state: Mutex::default(), hot_resets: HotResets::default() })
    }

    /// Sets how guest RAM is pinned for the devices that are opened from now on.
    pub fn set_pinning(&self, pinning: Pinning) {
        self.state.lock().pinning = pinning;
    }

    /// Whether vCPUs that wait for RAM to be mapped are let go, because they are to stop.
    pub fn release_waiters(&self, released: bool) {
        let state = self.state.lock();
        state.domains.iter().for_each(|domain| domain.dma.gate().release(released));
    }

    /// Opens a PCI function for the guest. All of the guest's memory that there is now is mapped for it when this
    /// returns, or will be when its [`super::dma::Gate`] opens, and what comes later follows.
    ///
    /// # Errors
    /// [`Code::Quarantined`], what keeps the device from being handed out ([`Host::ready`]), [`Code::Asleep`], the kernel's
    /// refusal of a request explained ([`Host::vfio_error`]), or that of mapping the guest's memory ([`Code::Memlock`],
    /// [`Code::ReservedIova`], [`Code::DmaLimit`], [`Code::DmaFailed`]).
    pub fn open(self: &Arc<Self>, bdf: Bdf) -> Result<Arc<VfioDevice>> {
        let sysfs = self.host.device_path(bdf);
        let Some(group) = group_of(&sysfs) else {
            let why = self.host.ready(bdf).err();
            return Err(why.unwrap_or_else(|| Error::new(Code::DeviceAbsent, format!("{bdf} has vanished"))));
        };
        if let Ok(device) = self.host.device(bdf) {
            self.host.refuse_quarantined(&device)?;
        }
        // Until it is open: from then on the kernel keeps it awake.
        let _awake = self.host.wake(bdf)?;
        let mut state = self.state.lock();
        if state.has(bdf) {
            return Err(Error::new(Code::Busy, format!("{bdf} is given to this guest twice")));
        }
        let (handle, at) = self.open_in_some_container(&mut state, &sysfs, group, bdf)?;
        if let Err(error) = self.join(&mut state, at, &handle) {
            match state.domain_of(group) {
                Some(_) => self.leave(&mut state, handle),
                None => state.close_last_of_group(at, handle),
            }
            return Err(error);
        }
        let gate = state.domains[at].dma.gate().clone();
        state.tell_devices();
        drop(state);
        Ok(Arc::new(VfioDevice::new(handle, gate, self.clone())))
    }

    /// Opens the device in the container that has its group, else in the first that takes it, else in a new one. Gives
    /// the domain's index.
    fn open_in_some_container(
        &self,
        state: &mut State,
        sysfs: &std::path::Path,
        group: u32,
        bdf: Bdf,
    ) -> Result<(Handle, usize)> {
        let explain = |error: VfioError| self.explain(bdf, error);
        if let Some(at) = state.domain_of(group) {
            return Ok((Handle::open(&state.domains[at].container, sysfs, group, bdf).map_err(explain)?, at));
        }
        for (at, domain) in state.domains.iter().enumerate() {
            match Handle::open(&domain.container, sysfs, group, bdf) {
                Ok(handle) => return Ok((handle, at)),
                // Another IOMMU, or one with other abilities: its devices need page tables of their own.
                Err(VfioError::GroupSetContainer) => {}
                Err(error) => return Err(explain(error)),
            }
        }
        let container = Arc::new(Container::open().map_err(explain)?);
        let handle = Handle::open(&container, sysfs, group, bdf).map_err(explain)?;
        let dma = Arc::new(DmaSpace::with(container.clone(), state.pinning.clone()));
        for (bar, policy) in &state.policies {
            if let Some(bar) = bar.upgrade() {
                dma.set_policy(&bar, *policy);
            }
        }
        state.domains.push(Domain { listening: None, dma, groups: BTreeMap::new(), container });
        Ok((handle, state.domains.len() - 1))
    }

    /// Counts the device in, and brings a new group to KVM and a new container to the layout.
    fn join(&self, state: &mut State, at: usize, handle: &Handle) -> Result<()> {
        let kvm = state.kvm.clone();
        let group = handle.group();
        let Some(domain) = state.domains.get_mut(at) else { return Ok(()) };
        match domain.groups.get_mut(&group) {
            Some(known) => {
                known.devices.insert(handle.bdf());
            }
            None => {
                let node = self.host.group_node(group);
                let fd = group_descriptor(&node)
                    .map_err(|error| Error::system(format!("find the descriptor of {}", node.display()), &error))?;
                if let Some(kvm) = kvm {
                    kvm.add_group(fd.as_fd())?;
                }
                domain.groups.insert(group, Group { fd, devices: BTreeSet::from([handle.bdf()]) });
                domain.dma.group_joined();
            }
        }
        if domain.listening.is_none() {
            domain.listening = Some(self.memory.listen(Stage::Dma, domain.dma.clone())?);
        }
        Ok(())
    }

    /// Closes a device. With the last of a group, the group leaves KVM's list and the container; with the last group of
    /// a container, everything is unmapped first and the container closed.
    fn leave(&self, state: &mut State, handle: Handle) {
        let number = handle.group();
        let kvm = state.kvm.clone();
        let Some(at) = state.domain_of(number) else { return handle.close() };
        let Some(group) = state.domains.get_mut(at).and_then(|domain| domain.groups.get_mut(&number)) else { return };
        group.devices.remove(&handle.bdf());
        if !group.devices.is_empty() {
            handle.close();
        } else {
            if let Some(kvm) = kvm {
                kvm.del_group(group.fd.as_fd());
            }
            if let Some(domain) = state.domains.get_mut(at) {
                domain.groups.remove(&number);
            }
            state.close_last_of_group(at, handle);
        }
        state.tell_devices();
    }

    /// A device's Drop.
    pub(super) fn close(&self, handle: Handle) {
        self.leave(&mut self.state.lock(), handle);
    }

    /// Gives the list of a new virtual machine every group that is open, and every one that will be; `None` when the
    /// machine is taken down, and its list with it.
    ///
    /// # Errors
    /// KVM's refusal of a group; the list then has those before it.
    pub fn set_kvm(&self, kvm: Option<Arc<dyn GroupSink>>) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(kvm) = &kvm {
            for group in state.domains.iter().flat_map(|domain| domain.groups.values()) {
                kvm.add_group(group.fd.as_fd())?;
            }
        }
        state.kvm = kvm;
        Ok(())
    }

    /// The guest addresses that every IOMMU in use can map, ascending; all if there is no device.
    pub fn usable(&self) -> Result<Vec<Range<u64>>> {
        let state = self.state.lock();
        let mut usable: Vec<_> = std::iter::once(0..u64::MAX).collect();
        for domain in &state.domains {
            usable = intersect(&usable, &domain.dma.usable()?);
        }
        Ok(usable)
    }

    /// Sets whether other devices may reach the BAR behind this mapping.
    pub fn set_peer_policy(&self, bar: &Arc<HostMem>, policy: PeerToPeer) {
        let mut state = self.state.lock();
        for domain in &state.domains {
            domain.dma.set_policy(bar, policy);
        }
        state.policies.retain(|(known, _)| known.strong_count() > 0);
        state.policies.push((Arc::downgrade(bar), policy));
    }

    /// The host that the devices are of.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn hot_resets(&self) -> &HotResets {
        &self.hot_resets
    }

    /// Every group that is open, by number, with a descriptor of its own.
    pub(super) fn group_descriptors(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        let state = self.state.lock();
        let groups = state.domains.iter().flat_map(|domain| &domain.groups);
        groups.map(|(id, group)| Ok((*id, group.fd.try_clone()?))).collect()
    }

    /// How many devices are open.
    pub fn devices(&self) -> usize {
        self.state.lock().devices()
    }

    /// How many ranges the IOMMUs map for the guest, all together.
    pub fn mappings(&self) -> usize {
        self.state.lock().domains.iter().map(|domain| domain.dma.mappings()).sum()
    }

    /// What the crate's error is in the user's terms.
    fn explain(&self, bdf: Bdf, error: VfioError) -> Error {
        let Some((step, answer)) = refusal(error) else {
            return Error::new(Code::DeviceFailed, format!("{bdf} cannot be used"))
                .evidence("it is no PCI device of VFIO's");
        };
        self.host.ready(bdf).err().unwrap_or_else(|| self.host.vfio_error(bdf, step, &answer))
    }
}

impl State {
    fn domain_of(&self, group: u32) -> Option<usize> {
        self.domains.iter().position(|domain| domain.groups.contains_key(&group))
    }

    /// Closes the only device of a group that is not counted any more, and its container if that has no other group.
    fn close_last_of_group(&mut self, at: usize, handle: Handle) {
        match self.domains.get_mut(at) {
            Some(domain) if domain.groups.is_empty() => {
                domain.listening = None;
                handle.close();
                // With the container the kernel takes the group out of it.
                self.domains.remove(at);
            }
            _ => handle.close_with_group(),
        }
    }

    fn has(&self, bdf: Bdf) -> bool {
        self.domains.iter().flat_map(|domain| domain.groups.values()).any(|group| group.devices.contains(&bdf))
    }

    fn devices(&self) -> usize {
        self.domains.iter().flat_map(|domain| domain.groups.values()).map(|group| group.devices.len()).sum()
    }

    fn tell_devices(&self) {
        let devices = self.devices();
        for domain in &self.domains {
            domain.dma.set_devices(devices);
        }
    }
}

/// The step that failed and the kernel's answer, out of an error of the crate; `None`: it is no vfio-pci device.
fn refusal(error: VfioError) -> Option<(VfioStep, io::Error)> {
    // The crate drops some answers; errno still has them, because only a close that succeeded came after.
    let last = io::Error::last_os_error();
    Some(match error {
        VfioError::OpenContainer(error) => (VfioStep::OpenContainer, error),
        VfioError::VfioApiVersion => (VfioStep::OpenContainer, io::Error::from_raw_os_error(libc::ENODEV)),
        // Without vfio_iommu_type1 the extension is unknown, with the answer 0.
        VfioError::VfioExtension => (VfioStep::SetIommu, io::Error::from_raw_os_error(libc::ENODEV)),
        VfioError::OpenGroup(error, _) => (VfioStep::OpenGroup, error),
        VfioError::GetGroupStatus | VfioError::GroupViable => (VfioStep::GroupStatus, last),
        VfioError::GroupSetContainer => (VfioStep::SetContainer, last),
        VfioError::ContainerSetIOMMU(error) => (VfioStep::SetIommu, error.into()),
        VfioError::GroupGetDeviceFD(error) | VfioError::VfioDeviceGetInfo(error) => (VfioStep::GetDevice, error.into()),
        _ => return None,
    })
}

/// What is in both lists of ascending ranges.
fn intersect(a: &[Range<u64>], b: &[Range<u64>]) -> Vec<Range<u64>> {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| a.start.max(b.start)..a.end.min(b.end)));
    pairs.filter(|range| range.start < range.end).collect()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "tables of ranges")]
mod tests {
    use super::*;

    #[test]
    fn usable_ranges_of_two_iommus_are_those_of_both() {
        assert_eq!(intersect(&[0..10, 20..30], &[5..25]), [5..10, 20..25]);
        assert_eq!(intersect(&[0..10], &[10..20]), []);
    }

    #[test]
    fn errors_of_the_crate_name_their_step() {
        let sys = |errno| vmm_sys_util::errno::Error::new(errno);
        let cases = [
            (VfioError::OpenContainer(io::ErrorKind::NotFound.into()), Some(VfioStep::OpenContainer)),
            (VfioError::OpenGroup(io::ErrorKind::NotFound.into(), "7".into()), Some(VfioStep::OpenGroup)),
            (VfioError::GroupViable, Some(VfioStep::GroupStatus)),
            (VfioError::GroupSetContainer, Some(VfioStep::SetContainer)),
            (VfioError::ContainerSetIOMMU(sys(libc::EPERM)), Some(VfioStep::SetIommu)),
            (VfioError::VfioExtension, Some(VfioStep::SetIommu)),
            (VfioError::GroupGetDeviceFD(sys(libc::ENODEV)), Some(VfioStep::GetDevice)),
            (VfioError::VfioDeviceGetInfoOther, None),
        ];
        for (error, step) in cases {
            let text = error.to_string();
            assert_eq!(refusal(error).map(|(step, _)| step), step, "{text}");
        }
        let (_, answer) = refusal(VfioError::ContainerSetIOMMU(sys(libc::EPERM))).unwrap();
        assert_eq!(answer.raw_os_error(), Some(libc::EPERM));
    }
}
