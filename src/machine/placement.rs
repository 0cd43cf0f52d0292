//! The guest's place on the host: what [`crate::placement`] is asked, and how its plan is carried out.

use std::sync::Arc;

use super::options::{HugePages, RunOptions};
use super::preflight::describe;
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::threads::run_on;
use crate::host::topology::CpuSet;
use crate::host::{Host, Lease};
use crate::placement::{self, Choice, Plan, Request};
use crate::vfio::front_end;

/// Which CPUs and memory nodes of `host` a guest with these options gets.
///
/// # Errors
/// What is wrong with the options themselves; [`crate::error::Code::NoPlace`].
pub fn place(options: &RunOptions, host: &Host) -> Result<Plan> {
    let mut topology = host.topology();
    // Who adds pages must not count those that others are going to take; any other user takes what is free.
    if nix::unistd::geteuid().is_root() {
        topology.leave_claimed(host, options.name.as_deref());
    }
    placement::plan(&request(options, host)?, &topology)
}

fn request(options: &RunOptions, host: &Host) -> Result<Request> {
    let places = describe(options, host)?.places;
    let passed = places.iter().filter(|place| place.of_type.name() == front_end::NAME);
    let near = passed.filter_map(|place| host.device(front_end::address_of(&place.args)?).ok()?.numa_node);
    let page = match options.memory.hugepages {
        HugePages::TwoMiB | HugePages::OneGiB => Some(options.memory.hugepages.page_size()),
        HugePages::Transparent | HugePages::Off => None,
    };
    Ok(Request {
        choice: options.placement.clone(),
        vcpus: options.smp.cpus(),
        threads: options.smp.threads(),
        near: near.collect(),
        memory: options.memory.size.0,
        page,
    })
}

/// The guest's stay on the host: where its threads run, and what is changed for it until it ends.
pub struct Stay {
    plan: Arc<Plan>,
    lease: Lease,
    /// Whether root moves the interrupts, in passthru-interrupts@.service: a service's user may not.
    interrupts_by_root: bool,
}

impl Stay {
    /// Makes room for the guest by its options: huge pages that are missing, where they are to be added; and lets this
    /// thread run on all of the guest's CPUs, and with it whatever it starts from now on, which is mostly what takes the
    /// guest's memory.
    ///
    /// # Errors
    /// [`Code::NoPlace`], [`Code::HugePages`], [`Code::JournalUnusable`].
    pub fn begin(options: &RunOptions, host: &Host) -> Result<Stay> {
        let plan = match (&options.placement, options.memory.grow_pool) {
            (Choice::Off, false) => Plan::default(),
            _ => place(options, host)?,
        };
        for note in plan.notes.iter().filter(|_| options.verbose) {
            crate::log::note(format_args!("placement: {note}"));
        }
        let mut lease = Lease::new(host);
        if options.memory.grow_pool {
            lease.reserve(&plan.pages, options.name.as_deref())?;
        }
        let all = plan.all();
        if !all.is_empty() {
            run_on(&all).map_err(|error| {
                Error::new(Code::NoPlace, format!("this process may not run on CPUs {all}"))
                    .evidence(explain_io(&error))
                    .evidence("a control group may keep it from some (cpuset.cpus, `AllowedCPUs=` in a systemd unit)")
                    .fix("`passthru plan` shows what is planned; list other CPUs, or leave --cpu-placement out")
            })?;
        }
        let interrupts_by_root = host.service_folder().is_some() && !nix::unistd::geteuid().is_root();
        Ok(Stay { plan: Arc::new(plan), lease, interrupts_by_root })
    }

    /// What each vCPU's thread is to do first.
    pub fn on_vcpu(&self) -> Arc<dyn Fn(u32) + Send + Sync> {
        let plan = self.plan.clone();
        Arc::new(move |index| {
            let Some(&cpu) = plan.vcpus.get(index as usize) else { return };
            // It was among those that the process may run on a moment ago.
            if let Err(error) = run_on(&CpuSet::from_iter([cpu])) {
                crate::log::warn(format_args!("vcpu{index} cannot run on CPU {cpu}: {}", explain_io(&error)));
            }
        })
    }

    /// The vCPUs run: the main thread leaves their CPUs to them.
    pub fn settle(&self) {
        if !self.plan.emulator.is_empty()
            && let Err(error) = run_on(&self.plan.emulator)
        {
            let cpus = &self.plan.emulator;
            crate::log::warn(format_args!("the main thread cannot run on CPUs {cpus}: {}", explain_io(&error)));
        }
    }

    /// Lets the interrupts of a device go beside the guest.
    pub fn place_interrupts(&mut self, device: Bdf) {
        if !self.plan.interrupts.is_empty() && !self.interrupts_by_root {
            self.lease.place_interrupts(device, &self.plan.interrupts);
        }
    }
}
