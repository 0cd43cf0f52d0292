//! The slot of a PCI Express port: its hot-plug registers and when they interrupt (PCIe 6.7 and 7.5.3.9 to 7.5.3.11).
//!
//! A card that is put in is announced by Presence Detect Changed and the attention button. The guest switches the slot's
//! power on, the link comes up, and it looks behind the port. It is asked for a card by the attention button; its answer
//! is power and power indicator off. Before software has written the slot's control register, power follows presence, as
//! after power-on.
//!
//! Events interrupt by the port's MSI, once when the first one comes (PCIe 6.7.3.4). While software has MSI off they
//! interrupt by the port's pin, which is asserted as long as there is an enabled event and the command register allows it.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::PciCore;
use super::regs;
use crate::irq::{IrqLine, Router};

/// Registers from the start of the PCI Express capability.
pub(super) const LINK_STATUS: u16 = 0x12;
/// Slot capabilities.
pub(super) const CAPABILITIES: u16 = 0x14;
/// Slot control; the status register is the other half of the dword.
pub const CONTROL: u16 = 0x18;
pub(super) const STATUS: u16 = 0x1a;

/// Slot capabilities of a slot with hot-plug: attention button, power controller, attention and power indicator, cards
/// may go without a word (surprise), hot-plug capable.
pub(super) const HOT_PLUG: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6;

/// Slot control: what software can write. All enable bits, both indicators, the power controller.
pub(super) const CONTROL_WRITABLE: u16 = 0x17ff;
const CONTROL_INTERRUPT: u16 = 1 << 5;
const ATTENTION_OFF: u16 = 3 << 6;
const POWER_INDICATOR: u16 = 3 << 8;
const POWER_ON: u16 = 1 << 8;
const POWER_BLINKS: u16 = 2 << 8;
const POWER_OFF: u16 = 3 << 8;
const POWERED_OFF: u16 = 1 << 10;
const CONTROL_LINK: u16 = 1 << 12;

/// Slot status: events, which software clears by writing ones, and presence.
pub(super) const STATUS_EVENTS: u16 = BUTTON | 1 << 1 | PRESENCE_CHANGED | COMPLETED | LINK_CHANGED;
const BUTTON: u16 = 1 << 0;
const PRESENCE_CHANGED: u16 = 1 << 3;
const COMPLETED: u16 = 1 << 4;
const PRESENT: u16 = 1 << 6;
const LINK_CHANGED: u16 = 1 << 8;
/// The events whose enable bits are at the same places in the control register.
const SAME_PLACE: u16 = 0x1f;

/// What the guest says by the control register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Power and power indicator are off: the card may be taken out.
    PoweredOff,
    /// It had begun to give the card up (the power indicator blinked) and keeps it.
    Kept,
    /// It has switched the card on and is done with it (the power indicator is on after blinking).
    TakenIn,
}

/// The registers at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Registers {
    control: u16,
    status: u16,
    link: bool,
}

/// What the guest is doing while the power indicator blinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Transition {
    /// Nothing: it does not blink.
    #[default]
    None,
    /// It takes a card in: the indicator was off.
    In,
    /// It gives a card up: the indicator was on.
    Out,
}

impl Registers {
    /// After power-on.
    fn at_reset(occupied: bool) -> Registers {
        let control = ATTENTION_OFF | if occupied { POWER_ON } else { POWER_OFF | POWERED_OFF };
        Registers { control, status: if occupied { PRESENT } else { 0 }, link: occupied }
    }

    fn powered(self) -> bool {
        self.control & POWERED_OFF == 0
    }

    fn occupied(self) -> bool {
        self.status & PRESENT != 0
    }

    /// Whether an enabled event wants the software's attention. An interrupt is sent whenever this becomes true.
    fn interrupts(self) -> bool {
        let link = self.control & CONTROL_LINK != 0 && self.status & LINK_CHANGED != 0;
        self.control & CONTROL_INTERRUPT != 0 && (self.control & self.status & SAME_PLACE != 0 || link)
    }

    /// A card came or went. Who puts one in presses the button too: Linux listens to presence only where there is none.
    fn presence(&mut self, occupied: bool) {
        if occupied != self.occupied() {
            self.status = self.status & !PRESENT | PRESENCE_CHANGED | if occupied { PRESENT | BUTTON } else { 0 };
        }
        self.follow_link();
    }

    /// The link is up when there is a card and power.
    fn follow_link(&mut self) {
        let link = self.powered() && self.occupied();
        if link != self.link {
            self.link = link;
            self.status |= LINK_CHANGED;
        }
    }

    /// Software has written the control register, whose value was `before`.
    fn commanded(&mut self, before: Registers, transition: &mut Transition) -> Option<Answer> {
        self.status |= COMPLETED;
        self.follow_link();
        let indicator = |at: Registers| at.control & POWER_INDICATOR;
        let off = |at: Registers| !at.powered() && indicator(at) == POWER_OFF;
        let began = *transition;
        *transition = match (indicator(before), indicator(*self)) {
            (POWER_BLINKS, POWER_BLINKS) => began,
            (POWER_ON, POWER_BLINKS) => Transition::Out,
            (_, POWER_BLINKS) => Transition::In,
            _ => Transition::None,
        };
        if !self.occupied() {
            None
        } else if off(*self) && !off(before) {
            Some(Answer::PoweredOff)
        } else if self.powered() && indicator(*self) == POWER_ON {
            match began {
                Transition::In => Some(Answer::TakenIn),
                Transition::Out => Some(Answer::Kept),
                Transition::None => None,
            }
        } else {
            None
        }
    }
}

type Listener = Box<dyn Fn(Answer) + Send + Sync>;

/// The slot of one port.
pub struct ExpressSlot {
    core: Arc<PciCore>,
    hotplug: bool,
    /// Held from a change of the registers until the interrupt that announces it was sent. Inside it: the core's
    /// registers, MSI, the line. Outside it: the decode mutex, for a guest's writes.
    state: Mutex<State>,
    router: Arc<Router>,
    /// The pin's source on its wire, from the first time that it is asserted on.
    line: OnceLock<IrqLine>,
    /// Told of the guest's answers, on its vCPU's thread, with the decode mutex held.
    listener: RwLock<Option<Listener>>,
}

#[derive(Default)]
struct State {
    /// Software has taken the control register over.
    commanded: bool,
    transition: Transition,
}

impl ExpressSlot {
    /// The slot of the port whose registers are `core`, empty.
    pub(super) fn new(core: Arc<PciCore>, router: &Arc<Router>, hotplug: bool) -> Arc<ExpressSlot> {
        let (state, listener) = (Mutex::default(), RwLock::new(None));
        let slot = ExpressSlot { core, hotplug, state, router: router.clone(), line: OnceLock::new(), listener };
        slot.reset(false);
        Arc::new(slot)
    }

    /// The port's registers.
    pub(super) fn core(&self) -> &Arc<PciCore> {
        &self.core
    }

    /// Whether devices can come and go while the guest runs.
    pub fn hotplug(&self) -> bool {
        self.hotplug
    }

    /// Calls `f` with each answer of the guest's from now on. It must not wait for anything.
    pub fn listen(&self, f: impl Fn(Answer) + Send + Sync + 'static) {
        *self.listener.write() = Some(Box::new(f));
    }

    /// Whether what is in the slot has power.
    pub fn powered(&self) -> bool {
        !self.hotplug || self.read().powered()
    }

    /// Whether the guest is at taking a card in: it may not listen to the button before it is done.
    pub fn is_taken_in(&self) -> bool {
        self.state.lock().transition == Transition::In
    }

    /// Presses the attention button: asks the guest for the card.
    pub fn press_button(&self) {
        let _state = self.state.lock();
        self.change(|registers| registers.status |= BUTTON);
    }

    /// The state after power-on. The port's core is in that state already.
    pub(super) fn reset(&self, occupied: bool) {
        let mut state = self.state.lock();
        *state = State::default();
        self.write(Registers::at_reset(occupied));
        self.drive_pin(self.read());
    }

    /// A card came or went.
    pub(super) fn set_presence(&self, occupied: bool) {
        let state = self.state.lock();
        if state.commanded {
            self.change(|registers| registers.presence(occupied));
        } else {
            let events = self.read().status & STATUS_EVENTS;
            let enables = self.read().control & CONTROL_WRITABLE & !(POWER_INDICATOR | POWERED_OFF | ATTENTION_OFF);
            let mut registers = Registers::at_reset(occupied);
            registers.status |= events;
            registers.control |= enables;
            self.write(registers);
            self.drive_pin(registers);
        }
    }

    /// The offsets of the slot's control and status registers.
    fn registers(&self) -> Option<Range<u16>> {
        self.core.express().map(|at| at + CONTROL..at + STATUS + 2)
    }

    /// A guest's write to the port, done by `write`; whether it took the power of what is behind away.
    pub(super) fn written<R>(&self, off: u16, len: usize, write: impl FnOnce() -> R) -> (R, bool) {
        let touches = |range: Range<u16>| off < range.end && usize::from(range.start) < usize::from(off) + len;
        let Some(range) = self.registers().filter(|range| self.hotplug && touches(range.clone())) else {
            let result = write();
            if self.hotplug {
                // The command register and MSI's decide whether the pin is used.
                let _state = self.state.lock();
                self.drive_pin(self.read());
            }
            return (result, false);
        };
        let mut state = self.state.lock();
        let before = self.read();
        let result = write();
        let mut answer = None;
        if touches(range.start..range.start + 2) {
            state.commanded = true;
            let mut after = self.read();
            answer = after.commanded(before, &mut state.transition);
            self.write(after);
        }
        let after = self.read();
        self.announce(before, after);
        drop(state);
        if let (Some(answer), Some(listener)) = (answer, &*self.listener.read()) {
            listener(answer);
        }
        (result, before.powered() && !after.powered())
    }

    fn change(&self, f: impl FnOnce(&mut Registers)) {
        let before = self.read();
        let mut after = before;
        f(&mut after);
        self.write(after);
        self.announce(before, after);
    }

    /// Sends the interrupt; what it announces stands in the registers, and in the page that the guest reads.
    fn announce(&self, before: Registers, after: Registers) {
        if !before.interrupts()
            && after.interrupts()
            && let Some(msi) = self.core.msi()
        {
            msi.fire(0);
        }
        self.drive_pin(after);
    }

    /// Brings the pin, and the bit that reports it, to what the registers ask for.
    fn drive_pin(&self, registers: Registers) {
        let pending = self.hotplug && registers.interrupts();
        let allowed = self.core.with(|config| {
            let status = config.u16(regs::STATUS) & !regs::STATUS_INTERRUPT;
            config.set_u16(regs::STATUS, if pending { status | regs::STATUS_INTERRUPT } else { status });
            config.u16(regs::COMMAND) & regs::COMMAND_INTX_DISABLE == 0
        });
        let asserted = pending && allowed && !self.core.msi().is_some_and(|msi| msi.enabled());
        match (self.line.get(), self.core.gsi()) {
            (Some(line), _) => line.set(asserted),
            (None, Some(gsi)) if asserted => self.line.get_or_init(|| self.router.line(gsi)).set(true),
            _ => {}
        }
    }

    fn read(&self) -> Registers {
        let Some(at) = self.core.express() else { return Registers::default() };
        self.core.with(|config| Registers {
            control: config.u16(at + CONTROL),
            status: config.u16(at + STATUS),
            link: config.u16(at + LINK_STATUS) & super::root_port::LINK_UP != 0,
        })
    }

    fn write(&self, registers: Registers) {
        let Some(at) = self.core.express() else { return };
        self.core.with(|config| {
            if self.hotplug {
                config.set_u16(at + CONTROL, registers.control);
            }
            let events = if self.hotplug { registers.status } else { registers.status & PRESENT };
            config.set_u16(at + STATUS, events);
            config.set_u16(at + LINK_STATUS, if registers.link { super::root_port::LINK_UP } else { 0 });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::PciFunction;
    use super::super::root_port::RootPort;
    use super::super::testing::{Bench, Fake, one_bar};
    use super::*;
    use crate::irq::testing::Recorder;

    const ENABLES: u16 = CONTROL_INTERRUPT | BUTTON | PRESENCE_CHANGED | CONTROL_LINK;

    struct Port {
        bench: Bench,
        chip: Arc<Recorder>,
        port: Arc<RootPort>,
        at: u16,
        answers: Arc<Mutex<Vec<Answer>>>,
    }

    impl Port {
        fn new() -> Port {
            let bench = Bench::new();
            let chip = Arc::new(Recorder::default());
            bench.router.set_chip(chip.clone()).unwrap();
            chip.take();
            let port = RootPort::new("rp1", 1, &bench.decode, &bench.router).unwrap();
            bench.plug(port.clone(), "1");
            bench.write(0, "1", 0x18, 0x01_01_00, 4);
            let at = port.core().express().unwrap();
            let answers = Arc::new(Mutex::new(Vec::new()));
            let sink = answers.clone();
            port.slot().listen(move |answer| sink.lock().push(answer));
            Port { bench, chip, port, at, answers }
        }

        fn control(&self, value: u16) {
            self.bench.write(0, "1", self.at + CONTROL, u32::from(value), 2);
        }

        fn status(&self) -> u16 {
            (self.bench.read32(0, "1", self.at + CONTROL) >> 16) as u16
        }

        fn clear(&self) {
            self.bench.write(0, "1", self.at + STATUS, 0xffff, 2);
        }

        /// A driver that listens to an empty slot.
        fn driven() -> Port {
            let port = Port::new();
            let msi = port.port.core().msi().unwrap().place().0;
            port.bench.write(0, "1", msi + 4, 0xfee0_0000, 4);
            port.bench.write(0, "1", msi + 2, 1, 2);
            port.control(ENABLES | ATTENTION_OFF | POWER_OFF | POWERED_OFF);
            port.clear();
            port
        }

        fn plug(&self) {
            let nic = Fake::new("nic0", one_bar(0, 0x1000), &self.bench.memory);
            self.bench.plug_behind("1", nic, "0");
        }
    }

    #[test]
    fn before_software_commands_it_power_follows_presence() {
        let port = Port::new();
        assert_eq!((port.status(), port.port.slot().powered()), (0, false));
        port.plug();
        assert_eq!((port.status(), port.port.slot().powered()), (PRESENT, true));
        assert_eq!(port.bench.read32(1, "0", 0), 0x5678_1234);
    }

    #[test]
    fn a_card_that_comes_is_announced_and_reached_when_it_has_power() {
        let port = Port::driven();
        port.plug();
        assert_eq!(port.status(), PRESENT | PRESENCE_CHANGED | BUTTON);
        assert_eq!(port.bench.read32(1, "0", 0), u32::MAX, "no power yet");
        port.clear();
        port.control(ENABLES | ATTENTION_OFF | POWER_BLINKS);
        assert_eq!(port.status(), PRESENT | LINK_CHANGED | COMPLETED);
        assert_eq!(port.bench.read32(1, "0", 0), 0x5678_1234);
    }

    #[test]
    fn power_and_indicator_off_is_the_answer_and_blinking_then_on_a_refusal() {
        let port = Port::driven();
        port.plug();
        port.control(ENABLES | ATTENTION_OFF | POWER_BLINKS);
        assert!(port.port.slot().is_taken_in());
        port.control(ENABLES | ATTENTION_OFF | POWER_ON);
        assert!(!port.port.slot().is_taken_in());
        assert_eq!(std::mem::take(&mut *port.answers.lock()), [Answer::TakenIn]);
        port.clear();
        port.port.slot().press_button();
        assert_eq!(port.status() & BUTTON, BUTTON);
        port.control(ENABLES | ATTENTION_OFF | POWER_BLINKS);
        port.control(ENABLES | ATTENTION_OFF | POWER_ON);
        assert_eq!(*port.answers.lock(), [Answer::Kept]);
        port.control(ENABLES | ATTENTION_OFF | POWER_BLINKS | POWERED_OFF);
        assert_eq!(port.bench.read32(1, "0", 0), u32::MAX, "off");
        port.control(ENABLES | ATTENTION_OFF | POWER_OFF | POWERED_OFF);
        assert_eq!(*port.answers.lock(), [Answer::Kept, Answer::PoweredOff]);
    }

    #[test]
    fn an_interrupt_is_sent_when_the_condition_becomes_true() {
        let quiet = Registers { control: ENABLES, status: 0, link: false };
        assert!(!quiet.interrupts());
        for event in [BUTTON, PRESENCE_CHANGED, LINK_CHANGED] {
            let raised = Registers { status: event, ..quiet };
            assert!(raised.interrupts(), "{event:#x}");
            assert!(!Registers { control: raised.control & !CONTROL_INTERRUPT, ..raised }.interrupts());
        }
        assert!(!Registers { status: COMPLETED, ..quiet }.interrupts(), "not enabled");
    }

    /// PCIe 6.7.3.4: the wire is asserted whenever, and as long as, three conditions hold.
    #[test]
    fn without_msi_the_pin_is_asserted_as_long_as_there_is_an_enabled_event() {
        let port = Port::new();
        let interrupt_status = || port.bench.read32(0, "1", regs::COMMAND) >> 16 & u32::from(regs::STATUS_INTERRUPT);
        port.control(ENABLES | ATTENTION_OFF | POWER_OFF | POWERED_OFF);
        port.clear();
        assert!(port.chip.take().is_empty());
        port.plug();
        assert_eq!((port.chip.take(), interrupt_status()), (vec!["level 20 true".to_owned()], 8));
        port.port.slot().press_button();
        assert!(port.chip.take().is_empty(), "it is asserted already");
        port.bench.write(0, "1", regs::COMMAND, u32::from(regs::COMMAND_INTX_DISABLE), 2);
        assert_eq!((port.chip.take(), interrupt_status()), (vec!["level 20 false".to_owned()], 8));
        port.bench.write(0, "1", regs::COMMAND, 0, 2);
        assert_eq!(port.chip.take(), ["level 20 true"]);
        port.control(ENABLES & !CONTROL_INTERRUPT | ATTENTION_OFF | POWER_OFF | POWERED_OFF);
        assert_eq!(port.chip.take(), ["level 20 false"]);
        port.control(ENABLES | ATTENTION_OFF | POWER_OFF | POWERED_OFF);
        port.clear();
        assert_eq!((port.chip.take(), interrupt_status()), (vec!["level 20 true".into(), "level 20 false".into()], 0));
        port.port.slot().press_button();
        crate::device::Device::reset(&*port.port);
        assert_eq!(port.chip.take(), ["level 20 true", "level 20 false"]);
    }

    #[test]
    fn the_pin_is_still_while_msi_is_on() {
        let port = Port::driven();
        port.plug();
        assert!(port.chip.take().iter().all(|call| !call.starts_with("level")));
        let msi = port.port.core().msi().unwrap().place().0;
        port.bench.write(0, "1", msi + 2, 0, 2);
        assert_eq!(port.chip.take().last().unwrap(), "level 20 true");
        port.bench.write(0, "1", msi + 2, 1, 2);
        assert_eq!(port.chip.take().iter().filter(|call| *call == "level 20 false").count(), 1);
    }

    #[test]
    fn a_reset_gives_power_to_what_is_there() {
        let port = Port::driven();
        port.plug();
        assert!(!port.port.slot().powered());
        crate::device::Device::reset(&*port.port);
        assert!(port.port.slot().powered());
        assert_eq!(port.status(), PRESENT);
    }
}
