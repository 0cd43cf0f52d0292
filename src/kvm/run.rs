//! The run loop: one thread for each vCPU, in the guest most of the time, answering what KVM could not.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::Mutex;

use super::events::{VmEvent, VmEvents};
use super::exits::{Counters, Kind};
use super::gate::{Gate, Pass};
use super::kick::Armed;
use crate::error::{Code, Error, explain_io};
use crate::memory::{Memory, Space};

/// What a vCPU thread needs.
pub(super) struct Runner {
    /// Number of the processor, for people.
    pub(super) index: u32,
    pub(super) fd: VcpuFd,
    pub(super) memory: Arc<Memory>,
    pub(super) events: Arc<VmEvents>,
    pub(super) counters: Arc<Counters>,
    /// Set before the thread is called back.
    pub(super) gate: Arc<Gate>,
    /// Held while writes are taken out of the ring of collected ones, which all vCPUs of the VM share.
    pub(super) collected: Arc<Mutex<()>>,
}

const NO_MEMORY: &str = "the guest reached memory that the host could not provide";

/// What to do after an exit that was no access.
enum Next {
    Again,
    Interrupted,
    End(VmEvent),
    Fail(Failure),
}

/// Why the guest cannot go on.
enum Failure {
    Entry { reason: u64, cpu: u32 },
    Internal,
    Memory { address: u64, len: u64 },
    Crash,
    Unexpected,
    System(kvm_ioctls::Error),
}

/// A port access: all elements of a string instruction go to the same port, one after the other.
struct PortAccess {
    port: u16,
    write: bool,
    /// Writable for a read only.
    data: *mut u8,
    len: usize,
}

impl Runner {
    /// Runs until stopped, or until the VM ends; reports the latter. A panic in a device's code ends the VM too.
    pub(super) fn main(mut self) {
        // Unwind safety: what a panic left half done is not used again, the VM ends.
        match catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(None) => {}
            Ok(Some(event)) => self.events.post(event),
            Err(panic) => self.events.post(VmEvent::Failed(
                Error::new(Code::GuestFailed, format!("a fault in passthru itself ended the guest: {}", text(&*panic)))
                    .evidence(format!("panic in the thread of vCPU {}", self.index)),
            )),
        }
        self.gate.ended();
    }

    fn run(&mut self) -> Option<VmEvent> {
        let immediate_exit = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the byte is in the run page, which is mapped as long as `self.fd` exists, and `armed` ends before it.
        let armed = unsafe { Armed::new(immediate_exit) };
        loop {
            match self.gate.pass() {
                Pass::Run => {}
                // Tells a guest with KVM's clock that it stood still, so that its watchdogs do not bark. A guest without
                // one has no flag to set.
                Pass::Resumed => drop(self.fd.kvmclock_ctrl()),
                Pass::Stop => return None,
            }
            match self.step() {
                Next::Again => {}
                Next::Interrupted => armed.clear(),
                Next::End(event) => return Some(event),
                Next::Fail(failure) => return Some(VmEvent::Failed(self.explain(failure))),
            }
        }
    }

    /// Enters the guest once and answers what made it come back.
    fn step(&mut self) -> Next {
        let count = |kind| self.counters.count(kind);
        let access = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                PortAccess { port, write: false, data: data.as_mut_ptr(), len: data.len() }
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                PortAccess { port, write: true, data: data.as_ptr().cast_mut(), len: data.len() }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(Kind::MmioRead);
                self.memory.read(Space::Mmio, address, data);
                return Next::Again;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(Kind::MmioWrite);
                self.memory.write(Space::Mmio, address, data);
                return Next::Again;
            }
            // EINTR: called back. EAGAIN: an application processor got its INIT or SIPI, and runs with the next entry.
            Err(error) if error.errno() == libc::EINTR => {
                count(Kind::Interrupted);
                return Next::Interrupted;
            }
            Err(error) if error.errno() == libc::EAGAIN => {
                count(Kind::Interrupted);
                return Next::Again;
            }
            other => {
                count(Kind::Other);
                return rare(other);
            }
        };
        self.access_port(access);
        Next::Again
    }

    fn access_port(&mut self, PortAccess { port, write, data, len }: PortAccess) {
        self.counters.count(if write { Kind::IoWrite } else { Kind::IoRead });
        self.replay_collected();
        // SAFETY: the last exit was KVM_EXIT_IO, for which the kernel filled this member of the union.
        let size = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io.size };
        let size = usize::from(size).max(1);
        let port = u64::from(port);
        if write {
            // SAFETY: `data` and `len` are the slice of the run page that kvm-ioctls gave for this exit. The page is mapped
            // as long as `self.fd` exists, and nobody writes to it outside of KVM_RUN but this thread.
            let data = unsafe { std::slice::from_raw_parts(data, len) };
            data.chunks(size).for_each(|element| self.memory.write(Space::Pio, port, element));
        } else {
            // SAFETY: as above; kvm-ioctls gave the slice as a mutable one, and no other reference to it is alive.
            let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
            data.chunks_mut(size).for_each(|element| self.memory.read(Space::Pio, port, element));
        }
    }

    /// Does the port writes that KVM has collected ([`super::Vm::collect_writes`]), in their order.
    fn replay_collected(&mut self) {
        let _guard = self.collected.lock();
        while let Ok(Some(entry)) = self.fd.coalesced_mmio_read() {
            let len = (entry.len as usize).min(entry.data.len());
            self.memory.write(Space::Pio, entry.phys_addr, &entry.data[..len]);
        }
    }

    /// The error for a guest that cannot go on, with the evidence that the processor and KVM left.
    fn explain(&mut self, failure: Failure) -> Error {
        let failed = |cause: &str| Error::new(Code::GuestFailed, cause);
        let run = self.fd.get_kvm_run();
        let error = match failure {
            Failure::Entry { reason, cpu } => failed("the processor refused to enter the guest")
                .evidence(format!("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}, on host CPU {cpu}")),
            Failure::Internal => {
                // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, for which the kernel filled this member.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                let data: Vec<String> =
                    internal.data.iter().take(internal.ndata as usize).map(|word| format!("{word:#x}")).collect();
                let what = match internal.suberror {
                    kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "KVM could not emulate an instruction of the guest",
                    kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM could not deliver an event to the guest",
                    _ => "KVM failed inside",
                };
                failed(what).evidence(format!(
                    "KVM_EXIT_INTERNAL_ERROR, suberror {}, data {}",
                    internal.suberror,
                    data.join(" ")
                ))
            }
            Failure::Memory { address, len } => {
                failed(NO_MEMORY).evidence(format!("KVM_EXIT_MEMORY_FAULT at {address:#x}, {len:#x} bytes"))
            }
            Failure::Crash => failed("the guest reported its crash").evidence("KVM_EXIT_SYSTEM_EVENT"),
            Failure::Unexpected => failed("KVM came back for a reason that passthru does not know")
                .evidence(format!("exit reason {}", run.exit_reason)),
            Failure::System(error) => {
                // What older kernels answer in the place of KVM_EXIT_MEMORY_FAULT.
                let memory = [libc::EFAULT, libc::EHWPOISON].contains(&error.errno());
                failed(if memory { NO_MEMORY } else { "KVM could not run the guest" })
                    .evidence(format!("KVM_RUN: {}", explain_io(&error.into())))
            }
        };
        let place = match self.fd.get_regs() {
            Ok(regs) => format!("vCPU {} at rip {:#x}", self.index, regs.rip),
            Err(_) => format!("vCPU {}", self.index),
        };
        error.evidence(place)
    }
}

/// Exits that are no accesses.
fn rare(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Next {
    match exit {
        // A triple fault: a PC resets itself.
        Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Next::End(VmEvent::Reset),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Next::End(VmEvent::Shutdown),
        Ok(VcpuExit::SystemEvent(..)) => Next::Fail(Failure::Crash),
        Ok(VcpuExit::Intr) => Next::Interrupted,
        Ok(VcpuExit::IrqWindowOpen) => Next::Again,
        Ok(VcpuExit::FailEntry(reason, cpu)) => Next::Fail(Failure::Entry { reason, cpu }),
        Ok(VcpuExit::InternalError) => Next::Fail(Failure::Internal),
        Ok(VcpuExit::MemoryFault { gpa, size, .. }) => Next::Fail(Failure::Memory { address: gpa, len: size }),
        Ok(_) => Next::Fail(Failure::Unexpected),
        Err(error) => Next::Fail(Failure::System(error)),
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(next: Next) -> &'static str {
        match next {
            Next::Again => "again",
            Next::Interrupted => "interrupted",
            Next::End(VmEvent::Reset) => "reset",
            Next::End(VmEvent::Shutdown) => "shutdown",
            Next::End(VmEvent::Failed(_)) => "ended",
            Next::Fail(Failure::Entry { .. }) => "entry",
            Next::Fail(Failure::Internal) => "internal",
            Next::Fail(Failure::Memory { .. }) => "memory",
            Next::Fail(Failure::Crash) => "crash",
            Next::Fail(Failure::Unexpected) => "unexpected",
            Next::Fail(Failure::System(_)) => "system",
        }
    }

    #[test]
    fn every_rare_exit_ends_as_it_should() {
        assert_eq!(name(rare(Ok(VcpuExit::Shutdown))), "reset");
        assert_eq!(name(rare(Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, &[])))), "reset");
        assert_eq!(name(rare(Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, &[])))), "shutdown");
        assert_eq!(name(rare(Ok(VcpuExit::SystemEvent(3, &[])))), "crash");
        assert_eq!(name(rare(Ok(VcpuExit::FailEntry(0x8000_0021, 1)))), "entry");
        assert_eq!(name(rare(Ok(VcpuExit::InternalError))), "internal");
        assert_eq!(name(rare(Ok(VcpuExit::MemoryFault { flags: 0, gpa: 0, size: 0 }))), "memory");
        assert_eq!(name(rare(Ok(VcpuExit::Hlt))), "unexpected");
        assert_eq!(name(rare(Ok(VcpuExit::Unsupported(99)))), "unexpected");
        assert_eq!(name(rare(Err(kvm_ioctls::Error::new(libc::EFAULT)))), "system");
    }

    #[test]
    fn a_panic_with_any_payload_has_a_text() {
        assert_eq!(text(&"plain"), "plain");
        assert_eq!(text(&String::from("formatted")), "formatted");
        assert_eq!(text(&7u32), "no message");
    }
}
