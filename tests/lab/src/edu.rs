//! A driver in user space for QEMU's teaching device (`docs/specs/edu` of QEMU): registers through sysfs `resource0`,
//! DMA to and from this process's memory, INTx by uio_pci_generic.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::pattern;

/// Registers (offsets in BAR 0).
mod reg {
    pub const ID: usize = 0x00;
    /// Reads as the complement of what was written.
    pub const LIVE: usize = 0x04;
    pub const FACTORIAL: usize = 0x08;
    /// Bit 0: computing; bit 7: raise an interrupt when it is done.
    pub const STATUS: usize = 0x20;
    pub const INTERRUPT_STATUS: usize = 0x24;
    pub const INTERRUPT_RAISE: usize = 0x60;
    pub const INTERRUPT_ACKNOWLEDGE: usize = 0x64;
    pub const DMA_SOURCE: usize = 0x80;
    pub const DMA_DESTINATION: usize = 0x88;
    pub const DMA_COUNT: usize = 0x90;
    /// Bit 0: go; bit 1: to memory; bit 2: raise an interrupt when it is done.
    pub const DMA_COMMAND: usize = 0x98;
}

const ID: u32 = 0x0100_00ed;
const STATUS_COMPUTING: u32 = 1;
const STATUS_INTERRUPT: u32 = 0x80;
/// Interrupt cause of a factorial, and of DMA.
const CAUSE_FACTORIAL: u32 = 1;
const CAUSE_DMA: u32 = 0x100;
const DMA_GO: u64 = 1 | 4;
const DMA_TO_MEMORY: u64 = 2;
/// The device's own buffer, as DMA commands address it.
const BUFFER: u64 = 0x4_0000;
const BAR_BYTES: usize = 1 << 20;
const PAGE: usize = 4096;
/// Addresses that the device reaches: 28 bits.
const REACH: u64 = 1 << 28;
/// Interrupts raised by hand.
const RAISED: u32 = 20;
/// Most time that the device may take for anything, ms.
const LIMIT_MS: u16 = 20_000;
/// Offset of the command register, its bus master bit and the one that disables INTx.
const COMMAND: u64 = 4;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// How many interrupts [`run`] reports.
pub fn interrupts(dma: bool) -> u32 {
    RAISED + 1 + if dma { 2 } else { 0 }
}

/// Lets the device in the sysfs folder `device` work; reports `interrupts=N`.
pub fn run(device: &Path, uio: &Path, dma: bool) -> Result<()> {
    let mut edu = Edu::open(device, uio)?;
    ensure!(edu.read(reg::ID)? == ID, "the device is another one: {:#x}", edu.read(reg::ID)?);
    edu.write(reg::LIVE, 0x1234_5678)?;
    ensure!(edu.read(reg::LIVE)? == !0x1234_5678, "the device does not live");

    edu.write(reg::STATUS, STATUS_INTERRUPT)?;
    edu.write(reg::FACTORIAL, 12)?;
    edu.interrupt(CAUSE_FACTORIAL)?;
    ensure!(edu.read(reg::STATUS)? & STATUS_COMPUTING == 0, "it still computes after its interrupt");
    ensure!(edu.read(reg::FACTORIAL)? == 479_001_600, "12! is {}", edu.read(reg::FACTORIAL)?);
    for cause in 2..2 + RAISED {
        edu.write(reg::INTERRUPT_RAISE, cause)?;
        edu.interrupt(cause)?;
    }
    if dma {
        both_ways(&mut edu)?;
    }
    println!("interrupts={}", edu.seen);
    Ok(())
}

/// A page goes into the device and comes back to another place.
fn both_ways(edu: &mut Edu) -> Result<()> {
    let memory: MmapRegion = MmapRegion::new(2 * PAGE)?;
    let data = pattern::bytes(0xed0, PAGE);
    memory.get_slice(0, PAGE)?.copy_from(&data);
    memory.get_slice(PAGE, PAGE)?.copy_from(&[0x55_u8; PAGE]);
    let address = memory.as_ptr() as u64;
    let (from, to) = (physical(address)?, physical(address + PAGE as u64)?);
    ensure!(from < REACH && to < REACH, "the device does not reach {from:#x} and {to:#x}");
    edu.copy(from, BUFFER, DMA_GO)?;
    edu.copy(BUFFER, to, DMA_GO | DMA_TO_MEMORY)?;
    let mut back = vec![0_u8; PAGE];
    memory.get_slice(PAGE, PAGE)?.copy_to(&mut back);
    ensure!(physical(address + PAGE as u64)? == to, "the kernel has moved the page meanwhile");
    ensure!(back == data, "other data came back by DMA");
    Ok(())
}

/// Physical address behind a page of this process (kernel document `admin-guide/mm/pagemap`).
fn physical(address: u64) -> Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / PAGE as u64 * 8)?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry & PRESENT != 0 && entry & FRAME != 0, "the kernel does not say where a page is");
    Ok((entry & FRAME) * PAGE as u64)
}

struct Edu {
    registers: MmapRegion,
    config: File,
    uio: File,
    /// Interrupts so far.
    seen: u32,
    /// What uio_pci_generic had counted last.
    counted: u32,
}

impl Edu {
    fn open(device: &Path, uio: &Path) -> Result<Self> {
        let open = |path: &Path| {
            OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())
        };
        let registers = MmapRegion::from_file(FileOffset::new(open(&device.join("resource0"))?, 0), BAR_BYTES)?;
        let mut edu = Self { registers, config: open(&device.join("config"))?, uio: open(uio)?, seen: 0, counted: 0 };
        edu.unmask()?;
        Ok(edu)
    }

    fn read(&self, register: usize) -> Result<u32> {
        Ok(self.registers.get_ref::<u32>(register)?.load())
    }

    fn write(&self, register: usize, value: u32) -> Result<()> {
        self.registers.get_ref::<u32>(register)?.store(value);
        Ok(())
    }

    /// The bus master bit on, INTx enabled: uio_pci_generic has disabled it when one came.
    fn unmask(&mut self) -> Result<()> {
        let mut command = [0; 2];
        self.config.read_exact_at(&mut command, COMMAND)?;
        let command = (u16::from_le_bytes(command) | COMMAND_BUS_MASTER) & !COMMAND_INTX_DISABLE;
        self.config.write_all_at(&command.to_le_bytes(), COMMAND)?;
        Ok(())
    }

    /// Waits for one interrupt, which must have `cause`, and acknowledges it.
    fn interrupt(&mut self, cause: u32) -> Result<()> {
        let ready = poll(&mut [PollFd::new(self.uio.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LIMIT_MS))?;
        ensure!(
            ready == 1,
            "no interrupt came for {cause:#x}; the device says {:#x}",
            self.read(reg::INTERRUPT_STATUS)?
        );
        let mut count = [0; 4];
        self.uio.read_exact(&mut count)?;
        let count = u32::from_ne_bytes(count);
        ensure!(self.seen == 0 || count == self.counted + 1, "{} interrupts for one", count - self.counted);
        let status = self.read(reg::INTERRUPT_STATUS)?;
        ensure!(status == cause, "an interrupt for {status:#x} instead of {cause:#x}");
        self.write(reg::INTERRUPT_ACKNOWLEDGE, status)?;
        (self.seen, self.counted) = (self.seen + 1, count);
        self.unmask()
    }

    /// One page by DMA.
    fn copy(&mut self, from: u64, to: u64, command: u64) -> Result<()> {
        let registers = [
            (reg::DMA_SOURCE, from),
            (reg::DMA_DESTINATION, to),
            (reg::DMA_COUNT, PAGE as u64),
            (reg::DMA_COMMAND, command),
        ];
        for (register, value) in registers {
            self.registers.get_ref::<u64>(register)?.store(value);
        }
        self.interrupt(CAUSE_DMA)?;
        // The interrupt is raised by the same timer that ends the transfer, just before the busy bit falls.
        for _ in 0..100 {
            if self.registers.get_ref::<u64>(reg::DMA_COMMAND)?.load() & 1 == 0 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("the transfer does not end")
    }
}
