//! Devices that come and go while the guest runs: the effects around [`super::unplug`]'s table, and what the host says of
//! its devices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use serde_json::{Value, json};

use super::inbox::Task;
use super::plug::Made;
use super::unplug::{Action, Event, SlotState, Waiting, step};
use super::{Machine, preflight};
use crate::device::{ErrorReport, IoError, Notice, OnError};
use crate::error::{Code, Error, Result};
use crate::monitor::control::{Control, Status, Ticket};
use crate::monitor::device_data;
use crate::monitor::message::{self, Failure};
use crate::object::Args;
use crate::pci::slot::Answer;

/// The slots in which a request waits for the guest, by the name of their bus.
pub type Unplugs = BTreeMap<Arc<str>, Waiting>;

/// What a guest that runs is shown when its memory is mapped for it: a driver that starts a device never waits then, and
/// a refusal is one of the request, not the guest's end.
#[derive(Default)]
pub struct Plugs {
    waiting: Vec<Plugging>,
    /// The last that was given out.
    ticket: Ticket,
}

/// The devices of one line, made and in no place yet.
struct Plugging {
    made: Vec<Made>,
    ticket: Ticket,
}

impl Machine {
    /// Plugs what a `--device` line means, as at the start. A failure leaves nothing behind. The first device of an IOMMU
    /// has to wait until the guest's memory is mapped: the outcome then goes to the control socket, with the ticket.
    pub(super) fn plug(&mut self, args: Args) -> Result<Option<Ticket>> {
        let before = self.places.clone();
        let placed = self.places.plan_hot(args, &self.host, |bus| self.plugged.hotplug(bus));
        let made: Result<Vec<Made>> = placed.and_then(|mut places| {
            preflight::for_host_devices(&places, &self.vfio.spaces(), self.most, &self.host)?;
            places.iter_mut().map(|place| self.plugged.make(place)).collect()
        });
        match made {
            Err(error) => {
                self.places = before;
                Err(error)
            }
            Ok(made) => match mapped(&made) {
                Some(outcome) => self.show(made, outcome).map(|()| None),
                None => {
                    self.plugs.ticket += 1;
                    self.plugs.waiting.push(Plugging { made, ticket: self.plugs.ticket });
                    Ok(Some(self.plugs.ticket))
                }
            },
        }
    }

    /// Puts devices where the guest finds them, if its memory was mapped for them; else gives them back.
    fn show(&mut self, made: Vec<Made>, mapped: Result<()>) -> Result<()> {
        let ids: Vec<_> = made.iter().map(Made::id).collect();
        let shown = mapped.and_then(|()| {
            made.into_iter().zip(&ids).try_for_each(|(made, id)| {
                self.plugged.attach_hot(made)?;
                self.watch(id)
            })
        });
        if shown.is_err() {
            for id in &ids {
                self.withdraw(id);
                self.places.free(id);
            }
        }
        shown
    }

    /// The guest's memory is mapped, or cannot be: answers who waits for that. Where a device that the guest has already
    /// cannot reach it, the guest ends.
    fn memory_settled(&mut self) -> Result<()> {
        for Plugging { made, ticket } in std::mem::take(&mut self.plugs.waiting) {
            match mapped(&made) {
                Some(outcome) => {
                    let done = self.show(made, outcome).map_err(Failure::from);
                    self.monitor.answer(ticket, &done);
                }
                None => self.plugs.waiting.push(Plugging { made, ticket }),
            }
        }
        self.vfio.check_mapped()
    }

    /// Listens to the guest's answers in every slot, and to the host about every device.
    pub(super) fn watch_all(&mut self) -> Result<()> {
        for slot in self.plugged.slots() {
            let (inbox, name) = (self.inbox.clone(), slot.0.clone());
            slot.1.listen(move |answer| inbox.post(Task::Slot(name.clone(), answer)));
        }
        self.plugged.ids().iter().try_for_each(|id| self.watch(id))
    }

    fn watch(&mut self, id: &Arc<str>) -> Result<()> {
        let Some(function) = self.plugged.device(id) else { return Ok(()) };
        for notice in function.notices()? {
            let (inbox, of) = (self.inbox.clone(), id.clone());
            let token = self.event_loop.add(notice.watch, EpollFlags::EPOLLIN, move |_, _| {
                // Emptied, or the loop would spin; EAGAIN cannot be, it was readable.
                let _ = notice.fd.read();
                inbox.post(Task::Notice(of.clone(), notice.notice));
            });
            let token = token.map_err(|error| Error::system("wait for the host's notices", &error))?;
            self.plugged.keep_token(id, token);
        }
        Ok(())
    }

    /// When something has to be done though nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.unplugs.values().filter_map(|waiting| waiting.deadline).min()
    }

    /// Does what came from other threads, and what the clock asks for.
    pub(super) fn do_tasks(&mut self) -> Result<()> {
        for task in self.inbox.take() {
            match task {
                Task::Slot(bus, answer) => {
                    let event = match answer {
                        Answer::PoweredOff => Event::PoweredOff,
                        Answer::Kept => Event::Kept,
                        Answer::TakenIn => Event::TakenIn,
                    };
                    self.unplug_step(&bus, event)?;
                }
                Task::Notice(id, Notice::Request) => self.wanted_back(&id)?,
                Task::Notice(id, Notice::Error) => self.device_failed(&id)?,
                Task::Mapped => self.memory_settled()?,
                Task::Told(id, word) => self.hear(&id, word),
                Task::Interrupts(device) => self.stay.place_interrupts(device),
                Task::Committed(job, len, error) => {
                    self.jobs.remove(&job);
                    let done = if error.is_none() { len } else { 0 };
                    let mut data = json!({ "device": job, "type": "commit", "len": len, "offset": done, "speed": 0 });
                    if let (Some(error), Some(members)) = (error, data.as_object_mut()) {
                        members.insert("error".into(), error.into());
                    }
                    self.monitor.event("BLOCK_JOB_COMPLETED", Some(data));
                }
            }
        }
        self.each_unplug(Event::Tick)
    }

    /// Completes every pending removal: the guest is about to start anew, without these devices.
    pub(super) fn finish_unplugs(&mut self) {
        // Only a request can be refused.
        let _ = self.each_unplug(Event::Reset);
    }

    fn each_unplug(&mut self, event: Event) -> Result<()> {
        let buses: Vec<_> = self.unplugs.keys().cloned().collect();
        buses.iter().try_for_each(|bus| self.unplug_step(bus, event))
    }

    /// Asks for the device with this id.
    pub(super) fn unplug(&mut self, id: &str, timeout: Option<Duration>, force: bool) -> Result<()> {
        if self.plugged.goes_at_once(id) {
            self.take_away(&[id.into()]);
            return Ok(());
        }
        let Some((bus, slot)) = self.plugged.slot_of(id) else {
            return Err(no_hotplug(&self.plugged.bus_of(id).unwrap_or_default()));
        };
        let slot = match (slot.powered(), slot.is_taken_in()) {
            (false, _) => SlotState::Off,
            (true, true) => SlotState::TakingIn,
            (true, false) => SlotState::On,
        };
        self.unplug_step(&bus, Event::Asked { timeout, force, slot })
    }

    fn unplug_step(&mut self, bus: &Arc<str>, event: Event) -> Result<()> {
        let waiting = self.unplugs.remove(bus);
        let (next, action) = step(waiting, event, Instant::now());
        self.unplugs.extend(next.map(|next| (bus.clone(), next)));
        let ids = self.plugged.ids_on(bus);
        match action {
            None => {}
            Some(Action::Press) => {
                if let Some((_, slot)) = self.plugged.slots().into_iter().find(|(name, _)| name == bus) {
                    slot.press_button();
                }
            }
            Some(Action::Remove) => self.take_away(&ids),
            Some(Action::GuestError) => {
                for id in ids {
                    self.monitor.event("DEVICE_UNPLUG_GUEST_ERROR", Some(device_data(&id)));
                }
            }
            Some(Action::Busy) => {
                let id = ids.first().cloned().unwrap_or_default();
                let cause = format!("Device {id} is already in the process of unplug");
                return Err(Error::new(Code::UnplugPending, cause).fix("wait for the event DEVICE_DELETED"));
            }
        }
        Ok(())
    }

    /// Takes a device off its bus, with what the event loop waited for on its behalf.
    fn withdraw(&mut self, id: &str) {
        for token in self.plugged.remove(id) {
            self.event_loop.remove(token);
        }
    }

    /// Takes devices out at once: off the bus and out of the memory map, then silenced, then closed.
    fn take_away(&mut self, ids: &[Arc<str>]) {
        for id in self.plugged.with_units(ids).iter().rev() {
            self.withdraw(id);
            self.root.hide_unreachable_pages();
            self.places.free(id);
            self.errors.remove(id);
            self.monitor.event("DEVICE_DELETED", Some(device_data(id)));
        }
    }

    /// The host wants a device back: the guest is asked, and when its time is over the device goes.
    fn wanted_back(&mut self, id: &Arc<str>) -> Result<()> {
        let Some(function) = self.plugged.device(id) else { return Ok(()) };
        let timeout = function.policy().request_timeout;
        let slot = self.plugged.slot_of(id);
        let pending = slot.as_ref().and_then(|(bus, _)| self.unplugs.get(bus)).copied();
        if pending.is_some_and(Waiting::is_certain) {
            // The kernel repeats itself every few seconds until it has the device.
            return Ok(());
        }
        let mut data = device_data(id);
        if let Some(members) = data.as_object_mut() {
            members.insert("host".into(), function.report_error().host.into());
            members.insert("timeout".into(), json!(timeout.as_millis() as u64));
        }
        drop(function);
        self.monitor.event("VFIO_DEVICE_REQUEST", Some(data));
        match slot {
            Some((bus, _)) if pending.is_some() => self.unplug_step(&bus, Event::WantedBack { timeout }),
            Some(_) => self.unplug(id, Some(timeout).filter(|timeout| !timeout.is_zero()), true),
            // No slot, nobody to ask: the guest reads ones from here on.
            None => {
                self.take_away(std::slice::from_ref(id));
                Ok(())
            }
        }
    }

    /// The back end of a disk could not do a request.
    pub(super) fn disk_failed(&mut self, id: &Arc<str>, error: IoError) {
        let IoError { node, write, full, action, reason } = error;
        let data = json!({
            "device": "", "qom-path": format!("/machine/peripheral/{id}"), "qdev": &**id, "node-name": &*node,
            "operation": if write { "write" } else { "read" }, "action": action, "nospace": full, "reason": reason,
        });
        self.monitor.event("BLOCK_IO_ERROR", Some(data));
        // The device may have gone meanwhile, and somebody may have let the guest go on.
        if action == "stop" && self.plugged.device(id).is_some() {
            self.pause(Status::IoError);
        }
    }

    /// The kernel has found an uncorrectable error of a device.
    fn device_failed(&mut self, id: &Arc<str>) -> Result<()> {
        let Some(function) = self.plugged.device(id) else { return Ok(()) };
        let (policy, report) = (function.policy().on_error, function.report_error());
        drop(function);
        let mut data = device_data(id);
        if let Some(members) = data.as_object_mut() {
            members.insert("host".into(), report.host.clone().into());
            members.insert("registers".into(), registers(&report));
            members.insert("policy".into(), policy.name().into());
        }
        self.errors.insert(id.clone(), (message::now().as_secs(), described(&report)));
        crate::log::warn(format_args!("{id} ({}) had an uncorrectable error: {}", report.host, policy.name()));
        self.monitor.event("VFIO_DEVICE_ERROR", Some(data));
        match policy {
            OnError::Pause => self.pause(Status::IoError),
            OnError::Reset => Control::reset(self),
            OnError::Detach => match self.plugged.slot_of(id) {
                Some(_) => self.unplug(id, None, true)?,
                None => self.take_away(std::slice::from_ref(id)),
            },
            OnError::Poweroff => {
                let cause = format!("{id} ({}) had an uncorrectable error", report.host);
                let error = Error::new(Code::DeviceError, cause).fix("on-error= of the device says what happens then");
                return Err(lines(&report).fold(error, Error::evidence));
            }
            OnError::Ignore => {}
        }
        Ok(())
    }
}

/// Whether the guest's memory is mapped for all of them; `None`: not yet.
fn mapped(made: &[Made]) -> Option<Result<()>> {
    made.iter().map(Made::mapped).collect()
}

fn registers(report: &ErrorReport) -> Value {
    report
        .registers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The registers for people.
fn lines(report: &ErrorReport) -> impl Iterator<Item = String> {
    report.registers.iter().map(|(name, value)| match value {
        Some(value) => format!("{name}: {value:#x}"),
        None => format!("{name}: unreadable"),
    })
}

fn described(report: &ErrorReport) -> String {
    let registers: Vec<String> = lines(report).collect();
    format!("uncorrectable ({})", registers.join(", "))
}

/// QEMU's words for it, which programs look for.
pub(super) fn no_hotplug(bus: &str) -> Error {
    Error::new(Code::NoHotplug, format!("Bus '{bus}' does not support hotplugging"))
        .fix("give the guest a `pcie-root-port,id=NAME` for each device that is to come later, and name it with bus=")
}
