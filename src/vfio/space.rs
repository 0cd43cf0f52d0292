//! Every VFIO descriptor of one machine: containers with the groups in them, address spaces of iommufd with the devices in
//! them, and the DMA space of each.
//!
//! Nothing is opened before the first device is. A group joins the first container that the kernel lets it join, so
//! devices share one set of mappings wherever their IOMMUs can; devices that are opened by their own nodes share one IOAS
//! whatever their IOMMUs are. A domain that has lost its last device is closed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use vfio_ioctls::VfioError;

use super::backend::{Backend, Choice, DeviceReport, Present, Spaces, Wish, choose};
use super::container::Container;
use super::device::{Handle, Seat, Target, VfioDevice, group_of};
use super::dma::{DmaSpace, PeerToPeer, Pinning};
use super::hot_reset::HotResets;
use super::inherited;
use super::ioas::Ioas;
use super::seams::GroupSink;
use super::token::{Alias, VfToken};
use super::uapi::group_descriptor;
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
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
    /// Told of devices whose interrupts VFIO has begun to deliver.
    on_interrupts: OnceLock<Arc<dyn Fn(Bdf) + Send + Sync>>,
}

#[derive(Default)]
struct State {
    domains: Vec<Domain>,
    /// How RAM is pinned in the DMA spaces that are still to come.
    pinning: Pinning,
    /// Exceptions for BARs, for the DMA spaces that are still to come.
    policies: Vec<(Weak<HostMem>, PeerToPeer)>,
    /// KVM's list of groups and devices, of the present virtual machine.
    kvm: Option<Arc<dyn GroupSink>>,
    /// The objects `iommufd`: a descriptor of /dev/iommu each.
    iommufds: BTreeMap<Arc<str>, OwnedFd>,
}

/// An address space, what is in it, and its DMA space. Fields drop in this order: unmap, then groups or devices, then the
/// address space.
struct Domain {
    /// Absent for the moment between the first device's joining and the replay of the layout.
    listening: Option<Listening>,
    dma: Arc<DmaSpace>,
    members: BTreeMap<Seat, Member>,
    space: Space,
}

/// What the kernel calls the address space.
enum Space {
    /// For groups.
    Container(Arc<Container>),
    /// For devices with nodes of their own; with the object that it was made of.
    Ioas(Arc<Ioas>, Option<Arc<str>>),
}

/// A group that some device of ours is open in, or a device that is open by itself.
struct Member {
    /// A second descriptor, for KVM; the crate keeps the first to itself.
    fd: OwnedFd,
    group: u32,
    /// With the reason for its back end.
    devices: BTreeMap<Bdf, String>,
}

impl Domain {
    fn new(space: Space, pinning: Pinning) -> Domain {
        let dma = Arc::new(match &space {
            Space::Container(container) => DmaSpace::with(container.clone(), pinning),
            Space::Ioas(ioas, _) => DmaSpace::with(ioas.clone(), pinning),
        });
        Domain { listening: None, dma, members: BTreeMap::new(), space }
    }

    fn backend(&self) -> Backend {
        match self.space {
            Space::Container(_) => Backend::Type1,
            Space::Ioas(..) => Backend::Iommufd,
        }
    }
}

impl Vfio {
    /// A context without any descriptor. `memory` is what devices will reach by DMA.
    pub fn new(host: Host, memory: Arc<Memory>) -> Arc<Vfio> {
        Arc::new(Vfio {
            host,
            memory,
            state: Mutex::default(),
            hot_resets: HotResets::default(),
            on_interrupts: OnceLock::new(),
        })
    }

    /// Sets how guest RAM is pinned for the devices that are opened from now on.
    pub fn set_pinning(&self, pinning: Pinning) {
        self.state.lock().pinning = pinning;
    }

    /// Has `tell` called with each device whose interrupts VFIO has begun to deliver; the first call counts. It is called on
    /// a vCPU's thread with locks held, and may only post a task.
    pub fn tell_of_interrupts(&self, tell: Arc<dyn Fn(Bdf) + Send + Sync>) {
        let _ = self.on_interrupts.set(tell);
    }

    /// Who is to be told.
    pub fn on_interrupts(&self) -> Option<Arc<dyn Fn(Bdf) + Send + Sync>> {
        self.on_interrupts.get().cloned()
    }

    /// Why guest RAM could not be mapped for devices that are open.
    ///
    /// # Errors
    /// The refusal, if there was one.
    pub fn check_mapped(&self) -> Result<()> {
        let state = self.state.lock();
        state.domains.iter().filter_map(|domain| domain.dma.gate().outcome()).collect()
    }

    /// Whether vCPUs that wait for RAM to be mapped are let go, because they are to stop.
    pub fn release_waiters(&self, released: bool) {
        let state = self.state.lock();
        state.domains.iter().for_each(|domain| domain.dma.gate().release(released));
    }

    /// Opens a PCI function for the guest, by the back end that `wish` and the kernel make possible. All of the guest's
    /// memory that there is now is mapped for it when this returns, or will be when its [`super::dma::Gate`] opens, and
    /// what comes later follows.
    ///
    /// # Errors
    /// [`Code::Quarantined`], what keeps the device from being handed out ([`Host::ready`]), [`Code::Asleep`], the kernel's
    /// refusal of a request explained ([`Host::vfio_error`]), or that of mapping the guest's memory ([`Code::Memlock`],
    /// [`Code::ReservedIova`], [`Code::DmaLimit`], [`Code::DmaFailed`]); [`Code::NoIommufd`], [`Code::MixedBackends`],
    /// [`Code::BadDescriptor`], [`Code::UnknownObject`] for what was wished for and cannot be.
    pub fn open(self: &Arc<Self>, bdf: Bdf, wish: &Wish) -> Result<Arc<VfioDevice>> {
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
        let what = Target { bdf, group, sysfs: &sysfs, token: wish.token };
        let (handle, at, why) = match choose(bdf, wish, state.present(group))? {
            Choice::Fixed(Backend::Type1, why) => {
                let (handle, at) = self.open_in_some_container(&mut state, &what)?;
                (handle, at, why)
            }
            Choice::Fixed(Backend::Iommufd, why) => {
                let (handle, at) = self.open_in_an_ioas(&mut state, &what, wish)?;
                (handle, at, why)
            }
            Choice::Try => self.open_by_either(&mut state, &what, wish)?,
        };
        let seat = handle.seat();
        if let Err(error) = self.join(&mut state, at, &handle, why) {
            match state.domain_of(seat) {
                Some(_) => self.leave(&mut state, handle),
                None => state.close_last_of_domain(at, handle),
            }
            return Err(error);
        }
        let gate = state.domains[at].dma.gate().clone();
        state.tell_devices();
        drop(state);
        Ok(Arc::new(VfioDevice::new(handle, gate, self.clone())))
    }

    /// The function whose node the process was given as a descriptor.
    ///
    /// # Errors
    /// [`Code::BadDescriptor`].
    pub fn device_of_descriptor(&self, number: i32) -> Result<Bdf> {
        inherited::device_of(&self.host, number)
    }

    /// Makes an object `iommufd` known, for [`Wish::object`]: the process's descriptor `number`, or one that is opened
    /// now.
    ///
    /// # Errors
    /// [`Code::BadDescriptor`], or why /dev/iommu cannot be opened ([`Code::NoIommufd`], [`Code::NotPermitted`]).
    pub fn add_iommufd(&self, id: Arc<str>, number: Option<i32>) -> Result<()> {
        let file = match number {
            Some(number) => inherited::take_iommufd(&self.host, number)?,
            None => self.open_iommufd().map_err(|error| self.host.iommufd_error(&error))?,
        };
        self.state.lock().iommufds.insert(id, file.into());
        Ok(())
    }

    /// By its own node if that and /dev/iommu can be opened and take the device, else by its group.
    fn open_by_either(&self, state: &mut State, what: &Target<'_>, wish: &Wish) -> Result<(Handle, usize, String)> {
        let refused = match self.find_nodes(state, what) {
            Ok(()) => match self.open_in_an_ioas(state, what, wish) {
                Ok((handle, at)) => return Ok((handle, at, "the kernel has iommufd and the device's node".to_owned())),
                // The kernel may still take its group; where it has no groups this error is the whole truth.
                Err(error) if !self.host.group_node(what.group).exists() => return Err(error),
                Err(error) => error.cause().to_owned(),
            },
            Err(why) => why,
        };
        let (handle, at) = self.open_in_some_container(state, what)?;
        Ok((handle, at, refused))
    }

    /// Whether the nodes that iommufd needs are there, else what is missing, for people.
    fn find_nodes(&self, state: &State, what: &Target<'_>) -> Result<(), String> {
        let iommu = self.host.dev("iommu");
        let absent = |path: &Path, error: &io::Error| format!("{}: {}", path.display(), explain_io(error));
        if state.ioas_of(None).is_none() {
            self.open_iommufd().map_err(|error| absent(&iommu, &error))?;
        }
        let Some(node) = self.host.device_node(what.bdf) else {
            return Err("the kernel's VFIO has no device nodes".to_owned());
        };
        open_node(&node).map(drop).map_err(|error| absent(&node, &error))
    }

    fn open_iommufd(&self) -> io::Result<File> {
        open_node(&self.host.dev("iommu"))
    }

    /// Opens the device by its node, in the IOAS of the iommufd that is wished for. Gives the domain's index.
    fn open_in_an_ioas(&self, state: &mut State, what: &Target<'_>, wish: &Wish) -> Result<(Handle, usize)> {
        let at = match state.ioas_of(wish.object.as_ref()) {
            Some(at) => at,
            None => self.add_ioas(state, wish.object.as_ref())?,
        };
        let opened = self.node_of(what.bdf, wish).and_then(|node| match state.domains.get(at).map(|d| &d.space) {
            Some(Space::Ioas(ioas, _)) => Handle::bind(ioas, node, what).map_err(|error| self.explain(what, error)),
            _ => Err(Error::new(Code::DeviceFailed, "the address space is none of iommufd's")),
        });
        match opened {
            Ok(handle) => Ok((handle, at)),
            Err(error) => {
                // One that was made for this device alone goes with it.
                state.domains.retain(|domain| domain.listening.is_some() || !domain.members.is_empty());
                Err(error)
            }
        }
    }

    /// The device's open node.
    fn node_of(&self, bdf: Bdf, wish: &Wish) -> Result<File> {
        if let Some(number) = wish.fd {
            return inherited::take_device(&self.host, number);
        }
        let Some(node) = self.host.device_node(bdf) else {
            return Err(self.host.no_device_node(bdf));
        };
        open_node(&node).map_err(|error| self.host.vfio_error(bdf, VfioStep::OpenNode, &error))
    }

    /// A new IOAS of the object, or of /dev/iommu, without a device.
    fn add_ioas(&self, state: &mut State, object: Option<&Arc<str>>) -> Result<usize> {
        let file = match object {
            None => self.open_iommufd().map_err(|error| self.host.iommufd_error(&error))?,
            Some(id) => match state.iommufds.get(id) {
                Some(fd) => fd.try_clone().map_err(|error| Error::system("duplicate a descriptor", &error))?.into(),
                None => {
                    let hint = crate::object::did_you_mean(id, state.iommufds.keys().map(|known| &**known));
                    let cause = format!("there is no object `{id}` of type iommufd{hint}");
                    let fix = format!("add `--object iommufd,id={id}`");
                    return Err(Error::new(Code::UnknownObject, cause).fix(fix));
                }
            },
        };
        let ioas = Ioas::new(file).map_err(|error| {
            Error::new(Code::DeviceFailed, "iommufd makes no address space")
                .evidence(format!("IOMMU_IOAS_ALLOC: {}", explain_io(&error)))
        })?;
        Ok(state.add_domain(Space::Ioas(Arc::new(ioas), object.cloned())))
    }

    /// Opens the device in the container that has its group, else in the first that takes it, else in a new one. Gives
    /// the domain's index.
    fn open_in_some_container(&self, state: &mut State, what: &Target<'_>) -> Result<(Handle, usize)> {
        let explain = |error: VfioError| self.explain(what, error);
        let alias = what.token.map(|token| self.alias(what, token)).transpose()?;
        let home = state.domain_of(Seat::Group(what.group));
        for (at, domain) in state.domains.iter().enumerate() {
            let Space::Container(container) = &domain.space else { continue };
            if home.is_some_and(|home| home != at) {
                continue;
            }
            match Handle::open(container, what, alias.as_ref()) {
                Ok(handle) => return Ok((handle, at)),
                // Another IOMMU, or one with other abilities: its devices need page tables of their own.
                Err(VfioError::GroupSetContainer) if home.is_none() => {}
                Err(error) => return Err(explain(error)),
            }
        }
        let container = Arc::new(Container::open().map_err(explain)?);
        let handle = Handle::open(&container, what, alias.as_ref()).map_err(explain)?;
        Ok((handle, state.add_domain(Space::Container(container))))
    }

    /// A path that has the token in its name, in a folder of passthru's or, for a user who cannot have one there, among the
    /// temporary files.
    fn alias(&self, what: &Target<'_>, token: VfToken) -> Result<Alias> {
        let make = |parent: &Path| Alias::new(parent, what.sysfs, what.bdf, token);
        let own = self.host.token_folder().and_then(|folder| make(&folder).ok());
        own.map_or_else(|| make(&std::env::temp_dir()), Ok)
            .map_err(|error| Error::system("make a folder for temporary files", &error))
    }

    /// Counts the device in, and brings a new member to KVM and a new domain to the layout.
    fn join(&self, state: &mut State, at: usize, handle: &Handle, why: String) -> Result<()> {
        let kvm = state.kvm.clone();
        let (seat, group) = (handle.seat(), handle.group());
        let Some(domain) = state.domains.get_mut(at) else { return Ok(()) };
        match domain.members.get_mut(&seat) {
            Some(known) => {
                known.devices.insert(handle.bdf(), why);
            }
            None => {
                let fd = match seat {
                    Seat::Device(bdf) => handle
                        .descriptor()
                        .map_err(|error| Error::system(format!("duplicate the descriptor of {bdf}"), &error))?,
                    Seat::Group(group) => {
                        let node = self.host.group_node(group);
                        group_descriptor(&node).map_err(|error| {
                            Error::system(format!("find the descriptor of {}", node.display()), &error)
                        })?
                    }
                };
                if let Some(kvm) = kvm {
                    kvm.add_group(fd.as_fd())?;
                }
                let devices = BTreeMap::from([(handle.bdf(), why)]);
                domain.members.insert(seat, Member { fd, group, devices });
                domain.dma.group_joined();
            }
        }
        if domain.listening.is_none() {
            domain.listening = Some(self.memory.listen(Stage::Dma, domain.dma.clone())?);
        }
        Ok(())
    }

    /// Closes a device. With the last of a group, the group leaves KVM's list and the container; with the last member of
    /// a domain, everything is unmapped first and the domain closed.
    fn leave(&self, state: &mut State, handle: Handle) {
        let seat = handle.seat();
        let kvm = state.kvm.clone();
        let Some(at) = state.domain_of(seat) else { return handle.close() };
        let Some(member) = state.domains.get_mut(at).and_then(|domain| domain.members.get_mut(&seat)) else { return };
        member.devices.remove(&handle.bdf());
        if !member.devices.is_empty() {
            handle.close();
        } else {
            if let Some(kvm) = kvm {
                kvm.del_group(member.fd.as_fd());
            }
            if let Some(domain) = state.domains.get_mut(at) {
                domain.members.remove(&seat);
            }
            state.close_last_of_domain(at, handle);
        }
        state.tell_devices();
    }

    /// A device's Drop.
    pub(super) fn close(&self, handle: Handle) {
        self.leave(&mut self.state.lock(), handle);
    }

    /// Gives the list of a new virtual machine every group and device that is open, and every one that will be; `None` when the
    /// machine is taken down, and its list with it.
    ///
    /// # Errors
    /// KVM's refusal of one; the list then has those before it.
    pub fn set_kvm(&self, kvm: Option<Arc<dyn GroupSink>>) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(kvm) = &kvm {
            for member in state.members() {
                kvm.add_group(member.fd.as_fd())?;
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

    /// Every group that is open by its node, by number, with a descriptor of its own.
    pub(super) fn group_descriptors(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        let state = self.state.lock();
        let groups = state.domains.iter().flat_map(|domain| &domain.members).filter_map(|(seat, member)| match seat {
            Seat::Group(id) => Some((*id, &member.fd)),
            Seat::Device(_) => None,
        });
        groups.map(|(id, fd)| Ok((id, fd.try_clone()?))).collect()
    }

    /// The address spaces that there are.
    pub fn spaces(&self) -> Spaces {
        let state = self.state.lock();
        let ioas = state.domains.iter().filter_map(|domain| match &domain.space {
            Space::Ioas(_, object) => Some(object.clone()),
            Space::Container(_) => None,
        });
        let containers = state.domains.iter().filter(|domain| domain.backend() == Backend::Type1).count();
        Spaces::new(containers as u64, ioas.collect())
    }

    /// How many devices are open.
    pub fn devices(&self) -> usize {
        self.state.lock().devices()
    }

    /// How many ranges the IOMMUs map for the guest, all together.
    pub fn mappings(&self) -> usize {
        self.state.lock().domains.iter().map(|domain| domain.dma.mappings()).sum()
    }

    /// For each address space the kernel's interface, how many ranges are mapped, and how many bytes.
    pub fn address_spaces(&self) -> Vec<(Backend, usize, u64)> {
        let state = self.state.lock();
        let view = |domain: &Domain| (domain.backend(), domain.dma.mappings(), domain.dma.mapped_bytes());
        state.domains.iter().map(view).collect()
    }

    /// What every device is opened by, and why.
    pub fn describe(&self) -> Vec<DeviceReport> {
        let state = self.state.lock();
        let reports = state.domains.iter().enumerate().flat_map(|(address_space, domain)| {
            let mappings = domain.dma.mappings();
            let object = match &domain.space {
                Space::Ioas(_, object) => object.as_deref().map(str::to_owned),
                Space::Container(_) => None,
            };
            domain.members.values().flat_map(move |member| {
                let object = object.clone();
                member.devices.iter().map(move |(bdf, why)| DeviceReport {
                    host: bdf.to_string(),
                    backend: domain.backend(),
                    why: why.clone(),
                    group: member.group,
                    object: object.clone(),
                    address_space,
                    mappings,
                })
            })
        });
        reports.collect()
    }

    /// What the crate's error is in the user's terms.
    fn explain(&self, what: &Target<'_>, error: VfioError) -> Error {
        let bdf = what.bdf;
        let Some((step, answer)) = refusal(error) else {
            return Error::new(Code::DeviceFailed, format!("{bdf} cannot be used"))
                .evidence("it is no PCI device of VFIO's");
        };
        let token = || self.host.token_error(bdf, step, &answer, what.token.is_some());
        self.host.ready(bdf).err().or_else(token).unwrap_or_else(|| self.host.vfio_error(bdf, step, &answer))
    }
}

fn open_node(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

impl State {
    fn members(&self) -> impl Iterator<Item = &Member> {
        self.domains.iter().flat_map(|domain| domain.members.values())
    }

    fn domain_of(&self, seat: Seat) -> Option<usize> {
        self.domains.iter().position(|domain| domain.members.contains_key(&seat))
    }

    /// The domain that is an IOAS of this object, or of the /dev/iommu that nobody named.
    fn ioas_of(&self, wanted: Option<&Arc<str>>) -> Option<usize> {
        self.domains
            .iter()
            .position(|domain| matches!(&domain.space, Space::Ioas(_, object) if object.as_ref() == wanted))
    }

    fn add_domain(&mut self, space: Space) -> usize {
        let domain = Domain::new(space, self.pinning.clone());
        for (bar, policy) in &self.policies {
            if let Some(bar) = bar.upgrade() {
                domain.dma.set_policy(&bar, *policy);
            }
        }
        self.domains.push(domain);
        self.domains.len() - 1
    }

    /// What is there already, as far as it decides about a device of `group`.
    fn present(&self, group: u32) -> Present {
        let with = |backend: Backend| self.domains.iter().filter(move |domain| domain.backend() == backend);
        let here = |domain: &Domain| domain.members.values().any(|member| member.group == group);
        Present {
            group: self.domains.iter().find(|domain| here(domain)).map(Domain::backend),
            only_type1: with(Backend::Type1).next().is_some() && with(Backend::Iommufd).next().is_none(),
        }
    }

    /// Closes the only device of a member that is not counted any more, and its domain if that has no other member.
    fn close_last_of_domain(&mut self, at: usize, handle: Handle) {
        match self.domains.get_mut(at) {
            Some(domain) if domain.members.is_empty() => {
                domain.listening = None;
                handle.close();
                // With the container the kernel takes the group out of it; an IOAS is destroyed when no device is in it.
                self.domains.remove(at);
            }
            _ => handle.close_with_group(),
        }
    }

    fn has(&self, bdf: Bdf) -> bool {
        self.members().any(|member| member.devices.contains_key(&bdf))
    }

    fn devices(&self) -> usize {
        self.members().map(|member| member.devices.len()).sum()
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
        VfioError::VfioDeviceBindIommufd(error) => (VfioStep::BindIommufd, error.into()),
        VfioError::VfioDeviceAttachIommufdPt(error) => (VfioStep::AttachIoas, error.into()),
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
            (VfioError::VfioDeviceBindIommufd(sys(libc::EPERM)), Some(VfioStep::BindIommufd)),
            (VfioError::VfioDeviceAttachIommufdPt(sys(libc::EADDRINUSE)), Some(VfioStep::AttachIoas)),
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
