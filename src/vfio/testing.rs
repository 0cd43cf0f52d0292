//! Fakes of the two seams.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::dma::Gate;
use super::seams::{DmaLimits, DmaMapper, HostPci, IrqInfo, IrqKind, RegionIndex, RegionInfo};
use crate::error::Result;
use crate::host::reset::{Affected, Alone};
use crate::memory::host::PageSize;
use crate::memory::{HostMem, HostSlice};

/// Remembers what was mapped.
#[derive(Default)]
pub struct MapRecorder {
    pub calls: Mutex<Vec<String>>,
    pub available: Option<u32>,
    /// The errno with which every map is refused.
    pub refuse: Option<i32>,
}

impl MapRecorder {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock())
    }
}

impl DmaMapper for MapRecorder {
    fn map(&self, iova: u64, host: HostSlice, writable: bool) -> io::Result<()> {
        if let Some(errno) = self.refuse {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let access = if writable { "rw" } else { "r" };
        self.calls.lock().push(format!("map {iova:#x}+{:#x} {access}", host.len()));
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        self.calls.lock().push(format!("unmap {iova:#x}+{len:#x}"));
        Ok(())
    }

    fn limits(&self) -> Result<DmaLimits> {
        self.calls.lock().push("limits".into());
        let usable = vec![0..0xfee0_0000, 0xfef0_0000..1 << 48];
        Ok(DmaLimits { page_sizes: 0x4020_1000, usable, available: self.available })
    }
}

/// How the fake device fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failure {
    #[default]
    None,
    /// Reads give ones, writes vanish: it was pulled out.
    Gone,
    /// Every request fails.
    Broken,
}

/// Requests that fail once each, by their number since the schedule was set, with an errno.
#[derive(Debug, Default)]
pub struct Faults {
    pub requests: usize,
    pub refused: BTreeMap<usize, i32>,
}

/// A scripted device. Every request but reads is recorded.
pub struct FakePci {
    pub config: Mutex<Vec<u8>>,
    pub regions: BTreeMap<RegionIndex, RegionInfo>,
    pub memory: Mutex<BTreeMap<(RegionIndex, u64), u8>>,
    pub irqs: BTreeMap<IrqKind, u32>,
    pub calls: Mutex<Vec<String>>,
    pub armed: Mutex<BTreeMap<IrqKind, Vec<i32>>>,
    /// Whether the kernel masks the pin when it fires.
    pub pin_automasked: bool,
    /// Kinds that the kernel refuses to arm.
    pub refuse_arm: BTreeSet<IrqKind>,
    pub alone: Alone,
    /// What a hot reset hits; empty: there is none.
    pub reach: Mutex<Vec<Affected>>,
    pub failure: Mutex<Failure>,
    pub faults: Mutex<Faults>,
    pub gate: Option<Arc<Gate>>,
    /// Whether it is a mistake of ours to arm a second kind of interrupts; it is none after a refusal to disarm.
    pub orderly: bool,
}

impl FakePci {
    /// A device with this configuration space and these BARs, all of them mappable as a whole.
    pub fn new(config: Vec<u8>, bars: &[(u8, u64)]) -> FakePci {
        let region = |size: u64| RegionInfo {
            size,
            readable: true,
            writable: true,
            mappable: std::iter::once(0..size).collect(),
        };
        let mut regions: BTreeMap<_, _> =
            bars.iter().map(|(bar, size)| (RegionIndex::Bar(*bar), region(*size))).collect();
        let space = RegionInfo { size: config.len() as u64, readable: true, writable: true, mappable: vec![] };
        regions.insert(RegionIndex::Config, space);
        FakePci {
            config: Mutex::new(config),
            regions,
            memory: Mutex::default(),
            irqs: BTreeMap::from([(IrqKind::Intx, 1), (IrqKind::Msi, 1), (IrqKind::Msix, 5)]),
            calls: Mutex::default(),
            armed: Mutex::default(),
            pin_automasked: true,
            refuse_arm: BTreeSet::new(),
            alone: Alone::Thorough,
            reach: Mutex::default(),
            failure: Mutex::default(),
            faults: Mutex::default(),
            gate: None,
            orderly: true,
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock())
    }

    pub fn record(&self, call: String) {
        self.calls.lock().push(call);
    }

    fn check(&self) -> io::Result<()> {
        let mut faults = self.faults.lock();
        faults.requests += 1;
        let request = faults.requests - 1;
        if let Some(errno) = faults.refused.remove(&request) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        match *self.failure.lock() {
            Failure::Broken => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(()),
        }
    }
}

impl HostPci for FakePci {
    fn name(&self) -> &str {
        "0000:01:00.0"
    }

    fn region(&self, region: RegionIndex) -> RegionInfo {
        self.regions.get(&region).cloned().unwrap_or_default()
    }

    fn read(&self, region: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.check()?;
        if *self.failure.lock() == Failure::Gone {
            data.fill(0xff);
            return Ok(());
        }
        for (at, byte) in (offset..).zip(data) {
            *byte = match region {
                RegionIndex::Config => self.config.lock().get(at as usize).copied().unwrap_or(0xff),
                _ => self.memory.lock().get(&(region, at)).copied().unwrap_or(at as u8),
            };
        }
        Ok(())
    }

    fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.record(format!("write {region:?} {offset:#x} {data:02x?}"));
        for (at, &byte) in (offset..).zip(data) {
            match region {
                RegionIndex::Config => {
                    if let Some(known) = self.config.lock().get_mut(at as usize) {
                        *known = byte;
                    }
                }
                _ => {
                    self.memory.lock().insert((region, at), byte);
                }
            }
        }
        Ok(())
    }

    fn map(&self, _: RegionIndex, area: Range<u64>) -> io::Result<Arc<HostMem>> {
        self.check()?;
        Ok(Arc::new(HostMem::anonymous(area.end - area.start, PageSize::Small)?))
    }

    fn irq(&self, kind: IrqKind) -> IrqInfo {
        IrqInfo {
            count: self.irqs.get(&kind).copied().unwrap_or(0),
            automasked: kind == IrqKind::Intx && self.pin_automasked,
        }
    }

    fn arm(&self, kind: IrqKind, first: u32, fds: &[Option<&EventFd>]) -> io::Result<()> {
        self.check()?;
        self.record(format!("arm {kind:?} {first} {}", fds.len()));
        if self.refuse_arm.contains(&kind) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let fds = fds.iter().map(|fd| fd.map_or(-1, AsRawFd::as_raw_fd)).collect();
        let mut armed = self.armed.lock();
        let notice = |kind: IrqKind| matches!(kind, IrqKind::Error | IrqKind::Request);
        if !notice(kind) && armed.keys().any(|other| *other != kind && !notice(*other)) {
            assert!(!self.orderly, "VFIO refuses a second kind while one is armed");
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        armed.insert(kind, fds);
        Ok(())
    }

    fn disarm(&self, kind: IrqKind) -> io::Result<()> {
        self.check()?;
        self.record(format!("disarm {kind:?}"));
        self.armed.lock().remove(&kind);
        Ok(())
    }

    fn mask(&self, kind: IrqKind, masked: bool) -> io::Result<()> {
        self.check()?;
        self.record(format!("mask {kind:?} {masked}"));
        Ok(())
    }

    fn unmask_fd(&self, kind: IrqKind, _: &EventFd) -> io::Result<()> {
        self.check()?;
        self.record(format!("unmask by eventfd {kind:?}"));
        Ok(())
    }

    fn reset(&self) -> io::Result<bool> {
        self.check()?;
        self.record("reset".into());
        Ok(self.alone != Alone::Impossible)
    }

    fn resets_alone(&self) -> Alone {
        self.alone
    }

    fn hot_reset_reach(&self) -> io::Result<Vec<Affected>> {
        self.check()?;
        let reach = self.reach.lock().clone();
        if reach.is_empty() { Err(io::Error::from_raw_os_error(libc::ENODEV)) } else { Ok(reach) }
    }

    fn hot_reset(&self) -> io::Result<()> {
        self.check()?;
        self.record("hot reset".into());
        Ok(())
    }

    fn quarantine(&self, reason: &str) {
        self.record(format!("quarantine: {reason}"));
    }

    fn gate(&self) -> Option<&Gate> {
        self.gate.as_deref()
    }
}

/// The configuration space of a function with everything that matters in the tests: power management at 40h, MSI at 50h,
/// express with function-level reset at 70h, MSI-X at b0h (5 vectors, table and pending bits in BAR 3), error reporting,
/// SR-IOV and serial number.
pub fn sample() -> Vec<u8> {
    let mut bytes = vec![0u8; 4096];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, &[0x86, 0x80, 0xd3, 0x10, 0x07, 0x04, 0x10, 0x00, 0x01, 0, 0, 2, 0x10, 0x40, 0x80, 0x8f]);
    put(0x10, &[0x00, 0x00, 0x10, 0xfe]);
    put(0x34, &[0x40]);
    put(0x3c, &[0x0b, 0x01]);
    put(0x40, &[0x01, 0x50, 0x23, 0xc8, 0x03, 0x21, 0, 0]); // power management, in D3hot
    put(0x50, &[0x05, 0x70, 0x80, 0]); // MSI, 64-bit
    put(0x70, &[0x10, 0xb0, 0x02, 0, 0xc0, 0x8c, 0, 0x10]); // express, endpoint, version 2
    put(0x7c, &[0x11, 0x1c, 0x07, 0, 0x40, 0, 0x11, 0x10]);
    put(0x9c, &[0x0e, 0, 0, 0]);
    put(0xb0, &[0x11, 0x00, 4, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]); // MSI-X
    put(0x100, &[0x01, 0x00, 0x02, 0x14]); // AER
    put(0x140, &[0x10, 0x00, 0x01, 0x18]); // SR-IOV
    put(0x148, &[0xff; 16]);
    put(0x180, &[0x03, 0x00, 0x01, 0x00]); // serial number
    bytes
}
