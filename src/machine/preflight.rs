//! What can be found out before anything is allocated: every mistake that the options alone, or the options and the
//! host, show.

use super::back_ends::BackEnds;
use super::fit;
use super::options::{HugePages, RunOptions};
use super::placement::Stay;
use super::places::{self, Place, Places};
use super::ram;
use super::types::{MACHINES, Q35};
use crate::backends::memory::MemoryRef;
use crate::boot::layout::Layout;
use crate::boot::linux::LinuxImage;
use crate::cpu::CpuPlan;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::findings::{Finding, Subject};
use crate::host::limits::memlock::{self, MemlockPlan, Needed, plan_needed};
use crate::host::limits::memory::{PageKind, check_memory};
use crate::host::limits::size_text;
use crate::kvm::Kvm;
use crate::vfio::backend::Spaces;
use crate::vfio::dma::first_reserved;
use crate::vfio::front_end;
use crate::vfio::space::Vfio;

/// What is known before anything is allocated.
pub struct Plan {
    /// The machine's properties.
    pub machine: Q35,
    /// The kernel, found to be one.
    pub image: LinuxImage,
    /// /dev/kvm.
    pub kvm: Kvm,
    /// The guest's CPUs.
    pub cpus: CpuPlan,
    /// Physical address bits of the guest.
    pub phys_bits: u8,
    /// Which places are taken.
    pub taken: Places,
    /// The devices to plug, and where.
    pub places: Vec<Place>,
    /// What they name, to be made before them.
    pub back_ends: BackEnds,
    /// Its place on the host.
    pub stay: Stay,
}

/// Checks the options against each other, then against the host: what is wrong with the command line is said even where
/// no guest could run.
pub fn plan(options: &RunOptions, host: &Host) -> Result<Plan> {
    let Described { machine, back_ends, taken, places } = describe(options, host)?;
    if places.iter().any(|place| place.of_type.name() == front_end::NAME)
        && let Some(warning) = host.acs_overridden()
    {
        crate::log::warn(format_args!("{warning}"));
    }
    let image = LinuxImage::open(&options.kernel, options.initrd.as_deref(), &options.append)?;
    let ram = options.memory.size.0;
    let stay = Stay::begin(options, host)?;
    check_memory(ram, page_kind(options), &host.free_memory())?;
    for_host_devices(&places, &Spaces::default(), options.memory.most(), host)?;
    let kvm = Kvm::open(host)?;
    let host_cpu = kvm.host_cpu()?;
    let phys_bits = u8::try_from(host_cpu.phys_bits()).unwrap_or(u8::MAX);
    let cpus = CpuPlan::new(&host_cpu, &options.cpu, options.smp)?;
    // The layout of the smallest machine: whether the memory fits below the highest address.
    Layout::with_room(ram, options.memory.most() - ram, phys_bits, 0)?;
    Ok(Plan { machine, image, kvm, cpus, phys_bits, taken, places, back_ends, stay })
}

/// What the options alone say.
pub(super) struct Described {
    machine: Q35,
    back_ends: BackEnds,
    taken: Places,
    pub(super) places: Vec<Place>,
}

pub(super) fn describe(options: &RunOptions, host: &Host) -> Result<Described> {
    let mut machine = options.machine.clone();
    let of_type = MACHINES.take_type(&mut machine)?;
    let machine = of_type.create(&mut machine, &())?;
    let back_ends = BackEnds::plan(options)?;
    let (taken, places) = places::plan(&options.devices, host)?;
    let backend = machine.memory_backend.as_ref().map(MemoryRef::as_str);
    options.numa.check(backend)?;
    ram::nodes(options)?;
    back_ends.check_uses(&places, &ram::objects(options, backend))?;
    Ok(Described { machine, back_ends, taken, places })
}

fn page_kind(options: &RunOptions) -> PageKind {
    match options.memory.hugepages {
        HugePages::TwoMiB | HugePages::OneGiB => PageKind::Huge(options.memory.hugepages.page_size()),
        HugePages::Transparent | HugePages::Off => PageKind::Normal,
    }
}

/// What of [`plan`] can be found out without opening or changing anything, each as a finding of its own. `kernel`:
/// whether the options name one.
///
/// # Errors
/// What is wrong with the options themselves.
pub fn examine(options: &RunOptions, kernel: bool, host: &Host) -> Result<Vec<Finding>> {
    let described = describe(options, host)?;
    let ram = options.memory.size.0;
    let free = match options.memory.grow_pool {
        true => host.free_memory().with_growing_pool(options.memory.hugepages.page_size()),
        false => host.free_memory(),
    };
    let memory = check_memory(ram, page_kind(options), &free);
    let enough = format!("the guest's {} of memory are available", size_text(ram));
    let mut findings = vec![Finding::of(Subject::Host, Code::NoMemory, enough, memory)];
    if kernel {
        let image = LinuxImage::open(&options.kernel, options.initrd.as_deref(), &options.append);
        let well = format!("{} can be booted", options.kernel.display());
        findings.push(Finding::of(Subject::Session, Code::NotAKernel, well, image));
    }
    let most = options.memory.most();
    if let Some(plan) = lock_plan(&described.places, &Spaces::default(), most, host).transpose() {
        findings.push(Finding::of(Subject::Session, Code::Memlock, "the guest's memory may be locked", plan));
    }
    findings.extend(fit::findings(options, &described.places, host));
    Ok(findings)
}

/// Raises the process's limits as far as these devices need it, where there are the address spaces `present`.
///
/// # Errors
/// [`Code::Memlock`] if the guest's memory may not be locked.
pub fn for_host_devices(places: &[Place], present: &Spaces, ram: u64, host: &Host) -> Result<()> {
    if let Some(plan) = lock_plan(places, present, ram, host)? {
        raise_descriptor_limit();
        memlock::apply(plan)?;
    }
    Ok(())
}

/// What to do about the limit of locked memory; `None`: no device needs any.
fn lock_plan(places: &[Place], present: &Spaces, ram: u64, host: &Host) -> Result<Option<MemlockPlan>> {
    let mut wishes = places.iter().filter(|place| place.of_type.name() == front_end::NAME).peekable();
    if wishes.peek().is_none() {
        return Ok(None);
    }
    let has_iommufd = host.dev("iommu").exists();
    let mut spaces = present.clone();
    for place in wishes {
        spaces.add(&front_end::wish_of(&place.args)?, has_iommufd);
    }
    // What containers have pinned is in the process's count; what iommufd has is in no count that can be read.
    let new_containers = spaces.containers() - present.containers();
    let needed = Needed { type1: ram.saturating_mul(new_containers), iommufd: ram.saturating_mul(spaces.ioas()) };
    plan_needed(needed, &host.lock_rights()).map(Some)
}

/// Every vector of a device's MSI-X is a descriptor, and another while the guest uses it: up to 4096 for one device, and
/// many systems begin with 1024 for a process.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        crate::log::warn(format_args!("the limit of open files stays as it is: {error}"));
    }
}

/// Whether the guest's memory lies where the IOMMUs can map it.
pub fn check_reserved(layout: &Layout, vfio: &Vfio) -> Result<()> {
    let usable = vfio.usable()?;
    let room = Some(&layout.room).filter(|room| !room.is_empty());
    for range in std::iter::once(&layout.low_ram).chain(&layout.high_ram).chain(room) {
        if let Some(reserved) = first_reserved(&usable, range.clone()) {
            let cause =
                format!("the IOMMU cannot map guest memory at {:#x} to {:#x}", reserved.start, reserved.end - 1);
            let has: Vec<_> =
                usable.iter().map(|range| format!("{:#x} to {:#x}", range.start, range.end - 1)).collect();
            return Err(Error::new(Code::ReservedIova, cause)
                .evidence(format!("it can map {}", has.join(", ")))
                .fix("give the guest less memory, so that it ends below the range"));
        }
    }
    Ok(())
}
