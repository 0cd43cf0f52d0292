//! The CPUs of interrupts (kernel: Documentation/core-api/irq/irq-affinity.rst).

use serde::{Deserialize, Serialize};

use super::{Lease, Returned, store};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::topology::CpuSet;
use crate::host::{Host, read};

/// Numbers above do not exist: the kernel's limit on x86 is NR_VECTORS + 64 * NR_CPUS.
const MAX_IRQ: u32 = 1 << 20;

/// An interrupt that goes to other CPUs than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moved {
    number: u32,
    /// Where it went.
    former: String,
    /// Where it goes.
    given: String,
}

impl Moved {
    pub(super) fn check(&self) -> Result<(), String> {
        let lists = [&self.former, &self.given];
        let good =
            self.number < MAX_IRQ && lists.iter().all(|list| CpuSet::parse(list).is_some_and(|it| !it.is_empty()));
        good.then_some(()).ok_or_else(|| format!("interrupt {} cannot go where it says", self.number))
    }

    /// Lets it go where it went. The number of an interrupt that was freed may be another device's by now: only one that
    /// still goes where it was sent is touched.
    pub(super) fn undo(&self, host: &Host) -> Result<Option<Returned>> {
        let (former, given) = (CpuSet::parse(&self.former), CpuSet::parse(&self.given));
        let Some(former) = former.filter(|former| given.is_some() && Some(former) != given.as_ref()) else {
            return Ok(None);
        };
        if affinity(host, self.number) != given {
            return Ok(None);
        }
        write(host, self.number, &former).map_err(|error| refused(self.number, &error))?;
        Ok(Some(Returned::Interrupt { number: self.number, cpus: former }))
    }
}

/// Moves all interrupts of a device that go elsewhere.
pub(super) fn place(lease: &mut Lease, device: Bdf, cpus: &CpuSet) -> Result<()> {
    let host = lease.host.clone();
    let moving: Vec<(u32, CpuSet)> = host
        .interrupts_of(device)
        .into_iter()
        .filter_map(|number| Some((number, affinity(&host, number)?)))
        .filter(|(_, now)| now != cpus)
        .collect();
    if moving.is_empty() {
        return Ok(());
    }
    // Those that were freed since, as a driver of the guest's does that is loaded again, need no way back.
    lease.record.interrupts.retain(|moved| host.proc(format!("irq/{}", moved.number)).exists());
    for (number, former) in &moving {
        // Of what is moved twice, the oldest place is the one to go back to.
        if !lease.record.interrupts.iter().any(|moved| moved.number == *number) {
            let (former, given) = (former.to_string(), cpus.to_string());
            lease.record.interrupts.push(Moved { number: *number, former, given });
        }
    }
    if let Err(error) = store::write(&host, &lease.record) {
        lease.record.interrupts.retain(|moved| moving.iter().all(|(number, _)| moved.number != *number));
        return Err(left(device, cpus, error.evidence_lines().join("; ")));
    }
    for (number, _) in &moving {
        write(&host, *number, cpus).map_err(|error| {
            left(device, cpus, format!("{}: {}", file(&host, *number).display(), explain_io(&error)))
        })?;
    }
    Ok(())
}

impl Host {
    /// The interrupts by which VFIO hears of a device, and nobody of another one.
    fn interrupts_of(&self, device: Bdf) -> Vec<u32> {
        let folder = self.device_path(device);
        let mut numbers: Vec<u32> =
            read::names(folder.join("msi_irqs")).iter().filter_map(|name| name.parse().ok()).collect();
        if numbers.is_empty() {
            numbers.extend(read::number::<u32>(folder.join("irq")).filter(|number| *number > 0));
        }
        let name = device.to_string();
        // A handler has a folder of its name beside the files.
        let handlers = |number: &u32| {
            let at = self.proc(format!("irq/{number}"));
            read::names(&at).into_iter().filter(|name| at.join(name).is_dir()).collect::<Vec<_>>()
        };
        let ours = |handler: &String| handler.starts_with("vfio-") && handler.contains(&name);
        numbers.retain(|number| {
            let handlers = handlers(number);
            !handlers.is_empty() && handlers.iter().all(ours)
        });
        numbers
    }
}

fn file(host: &Host, number: u32) -> std::path::PathBuf {
    host.proc(format!("irq/{number}/smp_affinity_list"))
}

fn affinity(host: &Host, number: u32) -> Option<CpuSet> {
    CpuSet::parse(&read::text(file(host, number))?)
}

fn write(host: &Host, number: u32, cpus: &CpuSet) -> std::io::Result<()> {
    host.effects().write_quickly(&file(host, number), &format!("{cpus}\n"))
}

fn left(device: Bdf, cpus: &CpuSet, why: String) -> Error {
    Error::new(Code::InterruptsStay, format!("the interrupts of {device} do not go to CPUs {cpus}"))
        .evidence(why)
        .fix("run it as root; the guest works all the same")
}

fn refused(number: u32, error: &std::io::Error) -> Error {
    Error::new(Code::InterruptsStay, format!("interrupt {number} does not go back to its former CPUs"))
        .evidence(format!("/proc/irq/{number}/smp_affinity_list: {}", explain_io(error)))
}
