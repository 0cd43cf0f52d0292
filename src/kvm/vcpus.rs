//! All vCPUs of a VM: made together, started together, stopped together.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use parking_lot::Mutex;

use super::events::VmEvents;
use super::exits::{Counters, ExitCounts};
use super::gate::Gate;
use super::run::Runner;
use super::{Vm, kick, refused, vcpu};
use crate::boot::cpu_state::CpuState;
use crate::cpu::CpuPlan;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// The vCPUs of one VM. Dropping it stops them and waits for their threads.
///
/// Owned by the main loop: a vCPU's own thread must neither join nor drop it.
pub struct VcpuSet {
    /// Made and not yet started.
    idle: Vec<Runner>,
    threads: Vec<JoinHandle<()>>,
    counters: Vec<Arc<Counters>>,
    gate: Arc<Gate>,
    on_thread_start: Arc<dyn Fn(u32) + Send + Sync>,
}

impl VcpuSet {
    /// Makes the vCPUs that `plan` has. The first begins at `start`, or, without it, at the reset vector; the others wait
    /// for the first to start them. Accesses go to `memory`, the VM's end to `events`.
    ///
    /// # Errors
    /// [`crate::error::Code::KvmFailed`] with the request that was refused.
    pub fn new(
        vm: &Arc<Vm>,
        plan: &CpuPlan,
        start: Option<&CpuState>,
        memory: &Arc<Memory>,
        events: &Arc<VmEvents>,
    ) -> Result<VcpuSet> {
        kick::install()?;
        let gate = Arc::<Gate>::default();
        let collected = Arc::new(Mutex::new(()));
        let mut idle = Vec::new();
        let mut counters = Vec::new();
        for (index, apic_id) in (0..).zip(plan.topology().apic_ids()) {
            let mut fd = vcpu::create(vm, plan, apic_id, start.filter(|_| index == 0))?;
            fd.map_coalesced_mmio_ring().map_err(|error| refused("its ring of collected writes (mmap)", error))?;
            let own = Arc::<Counters>::default();
            counters.push(own.clone());
            idle.push(Runner {
                index,
                fd,
                memory: memory.clone(),
                events: events.clone(),
                counters: own,
                gate: gate.clone(),
                collected: collected.clone(),
            });
        }
        Ok(VcpuSet { idle, threads: Vec::new(), counters, gate, on_thread_start: Arc::new(|_| ()) })
    }

    /// Has `call` called first on each vCPU's thread, with the vCPU's number.
    pub fn on_thread_start(&mut self, call: Arc<dyn Fn(u32) + Send + Sync>) {
        self.on_thread_start = call;
    }

    /// Lets the vCPUs run, each on a thread of its own with the name `vcpu0`, `vcpu1` and so on.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`] if a thread cannot be made; none runs then.
    pub fn start(&mut self) -> Result<()> {
        for runner in std::mem::take(&mut self.idle) {
            let (index, first) = (runner.index, self.on_thread_start.clone());
            let body = move || {
                first(index);
                runner.main();
            };
            let spawned = Builder::new().name(format!("vcpu{index}")).spawn(body);
            match spawned {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    self.stop();
                    self.join();
                    return Err(Error::system("start a vCPU's thread", &error));
                }
            }
        }
        Ok(())
    }

    /// Asks every vCPU to leave the guest for good, wherever it is. Returns at once; idempotent.
    pub fn stop(&self) {
        self.gate.stop();
        self.threads.iter().for_each(kick::kick);
    }

    /// Makes every vCPU stand still; when this returns, none runs guest code or a device's code. Idempotent. Before
    /// [`VcpuSet::start`], the vCPUs begin paused.
    pub fn pause(&self) {
        self.gate.pause();
        self.threads.iter().for_each(kick::kick);
        self.gate.wait_settled(self.threads.len());
    }

    /// Lets the vCPUs go on after [`VcpuSet::pause`].
    pub fn resume(&self) {
        self.gate.resume();
    }

    /// Waits until every vCPU's thread has ended: after [`VcpuSet::stop`], none runs guest code or a device's code.
    pub fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic was caught and reported in the thread.
            let _ = thread.join();
        }
    }

    /// Exits to user space so far, of all vCPUs together.
    pub fn exits(&self) -> ExitCounts {
        let mut sum = ExitCounts::default();
        self.counters.iter().for_each(|counters| sum += counters.snapshot());
        sum
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}
