//! vfio-pci: a host function on a bus of the guest. The registers that decide about addresses and interrupts are the
//! emulated ones of [`PciCore`]; everything else is the hardware's, as [`super::config`] divides them.
//!
//! Order between the hardware and the memory map: what is switched on (decoding, power) is written to the hardware before
//! the BARs are mapped, what is switched off after they are unmapped. VFIO revokes mappings of a device that does not
//! decode, and a guest that touches a revoked mapping cannot go on.
//!
//! Bus mastering is switched on only while all of the guest's RAM is mapped ([`super::dma::Gate`]): a guest's write of the
//! bit waits for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::backend::Wish;
use super::bars::{self, Part};
use super::config::{self, Abilities, Attachment, Division};
use super::dma::{Gate, PeerToPeer};
use super::irq::Interrupts;
use super::notices::Notices;
use super::page::QuietPage;
use super::reset;
use super::rom::{Rom, RomSource};
use super::seams::{BARS, HostPci, IrqKind, RegionIndex, RegionInfo};
use super::space::Vfio;
use super::trap::BarTrap;
use super::uapi;
use super::vga;
use crate::bdf::Bdf;
use crate::boot_trace::{self, phases};
use crate::device::{Device, ErrorReport, NoticeFd, Policy};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::host::Host;
use crate::host::limits::descriptors;
use crate::host::quirks::{self, Kind};
use crate::host::reset::Alone;
use crate::irq::Router;
use crate::memory::{Backing, HostSlice, Piece};
use crate::pci::bar::ROM_INDEX;
use crate::pci::vga::RANGES;
use crate::pci::view::BarUse;
use crate::pci::{
    BarContent, BarKind, BarSpec, Changes, ConfigSpace, Msi, MsiSpec, Msix, MsixSpec, PciCore, PciFunction, regs,
};

/// The smallest configuration space (PCI 6.1).
const MIN_CONFIG: u64 = 256;
/// Bits of the command register that go to VFIO. It keeps the pin's disable bit to itself, and masks the pin by it. The
/// reporting of errors (SERR#) stays as the host set it.
const COMMAND_FORWARDED: u16 =
    COMMAND_DECODE | regs::COMMAND_BUS_MASTER | regs::COMMAND_PARITY | regs::COMMAND_INTX_DISABLE;
/// Those whose order matters.
const COMMAND_DECODE: u16 = regs::COMMAND_IO | regs::COMMAND_MEMORY;

/// What the user can choose.
#[derive(Debug, Clone, Default)]
pub struct VfioPciOptions {
    /// The device's id.
    pub id: String,
    /// By which of the kernel's interfaces it is to be opened.
    pub wish: Wish,
    /// Whether other devices may reach the BARs (`p2p=`).
    pub p2p: PeerToPeer,
    /// Where the expansion ROM comes from (`rom=`).
    pub rom: RomSource,
    /// Whether every access of the BARs traps (`x-no-mmap`), to see what a driver does.
    pub no_mmap: bool,
    /// Whether it answers at the legacy ranges of VGA (`x-vga`).
    pub vga: bool,
    /// What is done when the host says something of it.
    pub policy: Policy,
    /// Where in the guest's topology it goes.
    pub attachment: Attachment,
}

/// A passed-through function. Fields drop in their order: interrupts, the BARs' mappings, then the device.
pub struct VfioPci {
    id: String,
    core: PciCore,
    division: Division,
    interrupts: Interrupts,
    notices: Notices,
    policy: Policy,
    bars: [Option<BarContent>; 7],
    rom: Option<Rom>,
    /// The legacy ranges of VGA, if it has them.
    vga: Option<[BarContent; RANGES]>,
    /// What the hardware was last told. Held during the write, so that two vCPUs' writes reach it in this order.
    hardware: Mutex<Hardware>,
    /// The host's bit of the command register that reports errors.
    serr: u16,
    /// Registers that the guest reads without an exit.
    page: QuietPage,
    /// Nothing has used the device since the kernel reset it when it was opened.
    fresh: AtomicBool,
    /// What the kernel's reset of this function alone is worth.
    alone: Alone,
    /// It was not, or perhaps not thoroughly, reset alone: it is to be with its slot or bus.
    wants_hot_reset: AtomicBool,
    /// When it was last reset (since 1970), and what came of it. Innermost: nothing is called with it held.
    last_reset: Mutex<Option<(Duration, String)>>,
    /// It was unplugged: the guest finds nothing any more.
    gone: AtomicBool,
    host: Arc<dyn HostPci>,
}

/// Registers of the hardware that follow the emulated ones in an order.
#[derive(Default)]
struct Hardware {
    command: u16,
    power: u8,
}

impl VfioPci {
    /// Opens a host function and describes it to the guest.
    ///
    /// # Errors
    /// Those of [`Vfio::open`] and [`VfioPci::new`].
    pub fn open(vfio: &Arc<Vfio>, bdf: Bdf, router: &Arc<Router>, options: VfioPciOptions) -> Result<Arc<VfioPci>> {
        let p2p = options.p2p;
        let device = VfioPci::new(vfio.open(bdf, &options.wish)?, router, options)?;
        device.make_vectors(&Host::real())?;
        if let Some(tell) = vfio.on_interrupts() {
            device.interrupts.on_change(Box::new(move || tell(bdf)));
        }
        if p2p != PeerToPeer::Auto {
            let pieces = device.bars.iter().flatten().flat_map(|bar| &bar.pieces);
            for mem in pieces.filter_map(|piece| piece.backing.host()) {
                vfio.set_peer_policy(mem.mem(), p2p);
            }
        }
        Ok(device)
    }

    /// Makes the eventfds of all vectors, so that a lack of descriptors is an error now and not a guest without
    /// interrupts later.
    fn make_vectors(&self, host: &Host) -> Result<()> {
        let msix = self.core.msix().map_or(0, |msix| usize::from(msix.spec().vectors));
        let msi = self.core.msi().map_or(0, Msi::vectors);
        descriptors::make_room(host, (msix + msi) as u64)?;
        self.core.msi().map_or(Ok(()), Msi::prepare)?;
        self.core.msix().map_or(Ok(()), |msix| msix.prepare())
    }

    /// Describes an open function to the guest: its registers, and its BARs, mapped once and for all.
    ///
    /// # Errors
    /// [`Code::DeviceFailed`] if it is a bridge or its configuration space cannot be read, [`Code::NoReset`] if it does
    /// not answer.
    pub fn new(host: Arc<dyn HostPci>, router: &Arc<Router>, options: VfioPciOptions) -> Result<Arc<VfioPci>> {
        let VfioPciOptions { id, wish: _, p2p: _, rom, no_mmap, vga, policy, attachment } = options;
        let vga = vga.then(|| vga::ranges(&host, &id)).transpose()?;
        let image = read_config(&*host)?;
        let source = config::image(&image);
        if source.layout() != regs::HEADER_ENDPOINT {
            return Err(Error::new(Code::DeviceFailed, format!("{} is a bridge", host.name()))
                .fix("pass the devices behind it through, not the bridge"));
        }
        reset::check(&*host)?;
        let regions: [RegionInfo; BARS] = std::array::from_fn(|bar| host.region(RegionIndex::Bar(bar as u8)));
        let rom = match rom {
            RomSource::Off => None,
            RomSource::Auto if has_quirk(&source, Kind::NoRom) => {
                guest_error!(
                    host.name(),
                    "its expansion ROM is hidden, because it is known to hang guests; rom=file: shows one"
                );
                None
            }
            RomSource::Auto => Rom::of_device(&*host)?,
            RomSource::File(path) => {
                Some(Rom::of_file(&path, host.name(), source.u16(regs::VENDOR), source.u16(regs::DEVICE))?)
            }
        };
        let specs = bars::specs(&source, &regions, rom.as_ref().map(Rom::size));
        let msix = msix_spec(&source, &*host, &specs);
        let abilities = Abilities {
            msi: host.irq(IrqKind::Msi).count > 0,
            msix: msix.is_some(),
            intx: deliverable_pin(&*host) && !has_quirk(&source, Kind::NoIntx),
            attachment,
        };
        let (mut space, division) = config::plan(&image, abilities);
        let msi = division.msi.map(|at| {
            // A device whose register says more than VFIO has read there gets what VFIO delivers.
            let spec = MsiSpec::from_control(source.u16(at + 2)).at_most(host.irq(IrqKind::Msi).count);
            Msi::at(&mut space, at, spec, router, &id)
        });
        let msix = division.msix.zip(msix).map(|(at, spec)| Msix::at(&mut space, at, spec, router, &id));
        let alone = host.resets_alone();
        let mut device = VfioPci {
            core: PciCore::new(id.as_str(), space, msi, msix.clone()),
            division,
            interrupts: Interrupts::new(host.clone(), router.clone()),
            notices: Notices::arm(&*host, &source),
            policy,
            bars: Default::default(),
            rom,
            vga,
            hardware: Mutex::new(Hardware { command: source.u16(regs::COMMAND), power: 0 }),
            serr: source.u16(regs::COMMAND) & regs::COMMAND_SERR,
            page: QuietPage::default(),
            fresh: AtomicBool::new(true),
            alone,
            wants_hot_reset: AtomicBool::new(alone != Alone::Thorough),
            last_reset: Mutex::default(),
            gone: AtomicBool::new(false),
            host,
            id,
        };
        device.bars = std::array::from_fn(|index| {
            let spec = specs[index]?;
            let pieces = match (index, device.rom.as_ref(), regions.get(index)) {
                (ROM_INDEX, Some(rom), _) => vec![rom.piece()],
                (_, _, Some(region)) => device.pieces(index as u8, spec.kind, region, msix.as_ref(), no_mmap),
                _ => return None,
            };
            let name =
                if index == ROM_INDEX { format!("{} ROM", device.id) } else { format!("{} BAR{index}", device.id) };
            let BarSpec { size, kind, prefetchable } = spec;
            Some(BarContent { name: name.into(), size, kind, prefetchable, pieces })
        });
        // VFIO switches it off when the device is opened; what no driver of the host did for us is not relied on.
        if source.u16(regs::COMMAND) & regs::COMMAND_BUS_MASTER != 0 {
            device.sync_command(false);
        }
        Ok(Arc::new(device))
    }

    /// The pieces of a BAR, with what can be mapped mapped.
    fn pieces(
        &self,
        bar: u8,
        kind: BarKind,
        region: &RegionInfo,
        msix: Option<&Arc<Msix>>,
        no_mmap: bool,
    ) -> Vec<Piece> {
        let mut region = region.clone();
        if kind == BarKind::Io || no_mmap {
            region.mappable.clear();
        }
        let trap = Arc::new(BarTrap::new(bar, &self.host, msix.cloned()));
        let spec = msix.map(|msix| msix.spec());
        if !region.mappable.is_empty() && spec.is_some_and(|spec| bars::loses_registers(bar, &spec)) {
            let name = self.host.name();
            crate::log::warn(format_args!(
                "{name}: registers of BAR {bar} share a page with its MSI-X table and are slow"
            ));
        }
        let parts = bars::parts(bar, &region, spec.as_ref()).into_iter();
        let piece = |(range, part): (std::ops::Range<u64>, Part)| {
            let mapped = match part {
                Part::Trapped => None,
                Part::Mapped => match self.host.map(RegionIndex::Bar(bar), range.clone()) {
                    Ok(mem) => Some(Backing::Device(mem.slice())),
                    Err(error) => {
                        let name = self.host.name();
                        guest_error!(name, "BAR {bar} cannot be mapped and is slow: {}", explain_io(&error));
                        None
                    }
                },
            };
            let backing = mapped.unwrap_or_else(|| Backing::Io { io: trap.clone(), offset: range.start });
            Piece { range, backing }
        };
        parts.map(piece).collect()
    }

    /// The host's address.
    pub fn host_name(&self) -> &str {
        self.host.name()
    }

    /// A guest's write to the emulated registers and, as far as it is theirs, to the hardware's.
    fn write_registers(&self, off: u16, data: &[u8]) -> Changes {
        self.fresh.store(false, Ordering::Relaxed);
        let what = self.core.write(off, data);
        if what.contains(Changes::RESET) {
            // `changed` resets the hardware, when nothing is mapped any more.
            self.page.end();
            return what;
        }
        let mut kept = data.to_vec();
        self.division.keep_reporting(off, &mut kept);
        for part in self.division.forwarded(off, data.len()) {
            let at = off.saturating_add(part.start as u16);
            self.write_hardware(at, kept.get(part).unwrap_or_default());
        }
        let touches = |register: u16| off < register + 2 && usize::from(register) < usize::from(off) + data.len();
        if touches(regs::COMMAND) {
            self.sync_command(false);
        }
        // Switched on: its bytes must be there before it is mapped, and now the hardware decodes.
        if let Some(rom) = self.rom.as_ref().filter(|_| what.contains(Changes::DECODE))
            && self.core.placements()[ROM_INDEX].is_some()
        {
            rom.load(&*self.host);
        }
        if let Some(control) = self.division.power.map(|at| at + regs::POWER_CONTROL).filter(|at| touches(*at)) {
            self.write_power(control, off, data);
        }
        what
    }

    fn write_hardware(&self, off: u16, data: &[u8]) {
        if let Err(error) = self.host.write(RegionIndex::Config, u64::from(off), data) {
            guest_error!(self.host.name(), "register {off:#x} cannot be written: {}", explain_io(&error));
        }
    }

    /// Brings the hardware's command register to the emulated one. Before the memory map follows, decoding is only
    /// switched on; after it, off as well.
    fn sync_command(&self, mapped: bool) {
        let mut hardware = self.hardware.lock();
        let keep = if mapped { 0 } else { hardware.command & COMMAND_DECODE };
        let mut command = self.core.command() & COMMAND_FORWARDED | self.serr | keep;
        if self.host.gate().is_some_and(|gate| !gate.is_open()) {
            // Pinning failed, or the vCPUs are being stopped: the guest does not live to miss it.
            command &= !regs::COMMAND_BUS_MASTER;
        }
        if command != hardware.command {
            self.write_hardware(regs::COMMAND, &command.to_le_bytes());
            hardware.command = command;
        }
    }

    /// The guest wrote to the power management's control register: all but a way out of D0 goes to the hardware now.
    fn write_power(&self, control: u16, off: u16, data: &[u8]) {
        let mut hardware = self.hardware.lock();
        let wanted = self.core.power_state();
        for (at, &byte) in (off..).zip(data).filter(|(at, _)| (control..control + 2).contains(at)) {
            if at == control {
                if wanted == 0 {
                    hardware.power = 0;
                }
                self.write_hardware(at, &[byte & !(regs::POWER_STATE as u8) | hardware.power]);
            } else {
                self.write_hardware(at, &[byte]);
            }
        }
    }

    /// After the BARs were unmapped: the way out of D0.
    fn sync_power(&self) {
        let Some(at) = self.division.power else { return };
        let mut hardware = self.hardware.lock();
        let wanted = self.core.power_state();
        if wanted == hardware.power {
            return;
        }
        let control = at + regs::POWER_CONTROL;
        let mut low = [0];
        if self.host.read(RegionIndex::Config, u64::from(control), &mut low).is_ok() {
            self.write_hardware(control, &[low[0] & !(regs::POWER_STATE as u8) | wanted]);
            hardware.power = wanted;
        }
    }

    /// Resets the hardware; its DMA and its interrupts end.
    fn reset_hardware(&self) -> reset::Outcome {
        self.interrupts.off();
        let mut hardware = self.hardware.lock();
        let outcome = self.outcome(reset::reset(&*self.host));
        *hardware = Hardware::default();
        outcome
    }

    /// A device that did not come back is told of and quarantined; the guest goes on without it.
    fn outcome(&self, done: Result<reset::Outcome>) -> reset::Outcome {
        let what = match &done {
            Ok(reset::Outcome::Reset) => "done".to_owned(),
            Ok(reset::Outcome::Unsupported(why)) => format!("not possible: {why}"),
            Err(error) => format!("failed: {}", error.cause()),
        };
        *self.last_reset.lock() = Some((SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), what));
        done.unwrap_or_else(|error| {
            if error.code() == Code::NoReset {
                self.host.quarantine(&format!("after a reset: {}", error.evidence_lines().join("; ")));
            }
            crate::log::warn(format_args!("{error}"));
            reset::Outcome::Reset
        })
    }

    fn keeps_its_state(&self, outcome: reset::Outcome) {
        if let reset::Outcome::Unsupported(why) = outcome {
            guest_error!(self.host.name(), "it is not reset and keeps the state of its last use: {why}");
        }
    }
}

fn read_config(host: &dyn HostPci) -> Result<Vec<u8>> {
    let size = host.region(RegionIndex::Config).size.min(config::SIZE as u64);
    let refuse = |why: String| {
        Error::new(Code::DeviceFailed, format!("the configuration space of {} cannot be read", host.name()))
            .evidence(why)
    };
    if size < MIN_CONFIG {
        return Err(refuse(format!("VFIO says that it has {size} bytes")));
    }
    let mut image = vec![0; size as usize];
    host.read(RegionIndex::Config, 0, &mut image).map_err(|error| refuse(explain_io(&error)))?;
    Ok(image)
}

/// What is known to be wrong with devices of its kind.
fn quirks_of(source: &ConfigSpace) -> impl Iterator<Item = Kind> {
    let class = source.u8(regs::CLASS + 2);
    quirks::of(source.u16(regs::VENDOR), source.u16(regs::DEVICE), class).map(|quirk| quirk.kind)
}

fn has_quirk(source: &ConfigSpace, kind: Kind) -> bool {
    quirks_of(source).any(|known| known == kind)
}

/// Whether the pin's interrupt can reach the guest. One that the kernel did not mask when it fires would flood the host.
fn deliverable_pin(host: &dyn HostPci) -> bool {
    let pin = host.irq(IrqKind::Intx);
    if pin.count > 0 && !pin.automasked {
        guest_error!(host.name(), "its INTx is hidden: the kernel does not mask it when it fires");
    }
    pin.count > 0 && pin.automasked
}

/// The device's MSI-X, if VFIO can deliver it and a guest can reach its table.
fn msix_spec(source: &ConfigSpace, host: &dyn HostPci, specs: &[Option<BarSpec>; 7]) -> Option<MsixSpec> {
    let mut spec = MsixSpec::parse(source, source.find(regs::CAP_MSIX)?);
    for kind in quirks_of(source) {
        if let Kind::PendingBitsAt(offset) = kind {
            spec.pending_offset = offset;
        }
    }
    let deliverable = host.irq(IrqKind::Msix).count;
    spec.vectors = spec.vectors.min(u16::try_from(deliverable).unwrap_or(u16::MAX));
    let fits = bars::table_fits(&spec, specs);
    if spec.vectors > 0 && !fits {
        guest_error!(host.name(), "its MSI-X is hidden: the table is in no BAR of it");
    }
    (spec.vectors > 0 && fits).then_some(spec)
}

impl PciFunction for VfioPci {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        self.bars.get(index)?.clone()
    }

    fn legacy_vga(&self) -> Option<[BarContent; RANGES]> {
        self.vga.clone()
    }

    fn config_read(&self, off: u16, data: &mut [u8]) {
        if self.gone.load(Ordering::Acquire) {
            return data.fill(0xff);
        }
        self.core.read(off, data);
        if self.division.reads_hardware(off, data.len()) {
            let mut hardware = [0xff; 4];
            let hardware = &mut hardware[..data.len().min(4)];
            if self.host.read(RegionIndex::Config, u64::from(off), hardware).is_err() {
                hardware.fill(0xff);
            }
            self.division.merge(off, hardware, data);
        }
    }

    fn before_write(&self, off: u16, data: &[u8]) {
        let masters = off == regs::COMMAND && data.first().is_some_and(|low| low & regs::COMMAND_BUS_MASTER as u8 != 0);
        if let Some(gate) = self.host.gate().filter(|_| masters && !self.core.bus_master()) {
            let _span = boot_trace::phase(phases::BUS_MASTER).what(|| self.host.name().to_owned()).once();
            gate.wait();
        }
    }

    fn config_write(&self, off: u16, data: &[u8]) -> Changes {
        if self.gone.load(Ordering::Acquire) {
            return Changes::empty();
        }
        let what = self.write_registers(off, data);
        self.page.after_write(off, data.len(), &*self.host, &self.core, &self.division);
        what
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        !self.gone.load(Ordering::Acquire) && self.page.show(page, &*self.host, &self.core, &self.division)
    }

    fn page_is_current(&self) -> bool {
        self.page.is_current()
    }

    fn hide_page(&self) {
        self.page.end();
    }

    fn changed(&self, what: Changes) {
        if self.gone.load(Ordering::Acquire) {
            return;
        }
        if what.contains(Changes::RESET) {
            self.page.end();
            let outcome = self.reset_hardware();
            return self.keeps_its_state(outcome);
        }
        if what.intersects(Changes::DECODE | Changes::BUS_MASTER) {
            self.sync_command(true);
        }
        if what.contains(Changes::POWER) {
            self.sync_power();
        }
        self.interrupts.follow(&self.core);
    }
}

impl Device for VfioPci {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
        if self.fresh.swap(false, Ordering::Relaxed) {
            // The kernel has reset it at the opening; only what it left switched on goes off.
            self.sync_command(true);
        } else {
            let unsupported = matches!(self.reset_hardware(), reset::Outcome::Unsupported(_));
            self.wants_hot_reset.store(unsupported || self.alone == Alone::Doubtful, Ordering::Relaxed);
        }
    }

    fn reset_shared(&self) {
        if !self.wants_hot_reset.swap(false, Ordering::Relaxed) {
            return;
        }
        match reset::hot(&*self.host) {
            // The kernel's reset of the function alone, which has been, is all that there is.
            Ok(reset::Outcome::Unsupported(_)) if self.alone == Alone::Doubtful => {}
            // Linux answers ENOTTY if the link of the port does not come up, which QEMU's ports never tell it of. The
            // function has had its own reset, which is what it would have got without this one.
            Err(error) if self.alone == Alone::Doubtful && error.code() == Code::DeviceFailed => {}
            done => {
                let outcome = self.outcome(done);
                self.keeps_its_state(outcome);
            }
        }
    }

    fn mapped(&self) -> Option<Result<()>> {
        self.host.gate().map_or(Some(Ok(())), Gate::outcome)
    }

    fn notices(&self) -> Result<Vec<NoticeFd>> {
        let watch = |(notice, fd): (_, Arc<_>)| {
            let watch = uapi::watch(&fd).map_err(|error| Error::system("copy an eventfd", &error))?;
            Ok(NoticeFd { notice, watch, fd })
        };
        self.notices.fds().into_iter().map(watch).collect()
    }

    fn policy(&self) -> Policy {
        self.policy
    }

    fn report_error(&self) -> ErrorReport {
        self.notices.report(&*self.host)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("host", self.host.name().to_owned()), ("interrupts", self.interrupts.mode().to_string())];
        facts.extend(self.host.facts());
        if let Some((time, what)) = &*self.last_reset.lock() {
            facts.push(("last-reset", what.clone()));
            facts.push(("last-reset-at", time.as_secs().to_string()));
        }
        facts
    }

    fn bars(&self) -> Vec<BarUse> {
        let bars = self.bars.iter().enumerate();
        bars.filter_map(|(index, bar)| Some(BarUse::of(index, bar.as_ref()?))).collect()
    }

    fn unplug(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            self.page.end();
            self.notices.off(&*self.host);
            // What cannot be reset alone is reset by the kernel when the last function of its slot or bus is closed; but not
            // where it believes in a reset that leaves the function as it is, with the addresses of this guest.
            self.reset_hardware();
            if self.alone == Alone::Doubtful {
                // A failure is nobody's business any more: the function was reset alone.
                let _ = reset::hot_alone(&*self.host);
            }
        }
    }
}

impl Drop for VfioPci {
    fn drop(&mut self) {
        self.unplug();
    }
}

#[cfg(test)]
mod tests;
