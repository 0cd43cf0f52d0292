//! The board: the devices of the machine that sit in no slot, at the ports where every PC has them.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::Signal;

use crate::backends::chardev::{Chardev, stdio};
use crate::backends::table::Claim;
use crate::boot::layout::PM_BASE;
use crate::devices::pm::{AcpiPm, PM_PORTS};
use crate::devices::power::{PowerEvent, PowerSender};
use crate::devices::reset::{KEYBOARD_COMMAND_PORT, KeyboardReset, ResetControl};
use crate::devices::rtc::{RTC_BASE, RTC_IRQ, RTC_PORTS, Rtc};
use crate::devices::serial::{COM1_BASE, COM1_IRQ, PORTS, Serial};
use crate::error::{Error, Result};
use crate::event_loop::EventLoop;
use crate::irq::{IrqLine, Router};
use crate::kvm::{VmEvent, VmEvents};
use crate::memory::{Backing, IoHandler, Layout, Memory, PRIORITY_PLATFORM, Region, Space};

/// Index ports of a Super I/O chip, which the machine does not have: Linux's serial driver writes to each of them 20 times
/// to find one.
pub const SILENT_PORTS: [u16; 2] = [0x2e, 0x4e];
/// The SCI: the interrupt of the power management registers, as the FADT and the MADT have it.
const SCI_IRQ: u32 = 9;
/// How long the end of the process waits for a slow reader of the serial port's output.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// The devices of the board.
pub struct Board {
    console: Option<Console>,
    rtc: Arc<Rtc>,
    pm: Arc<AcpiPm>,
    reset_control: Arc<ResetControl>,
    power: PowerSender,
}

/// The serial port and what it is connected to.
struct Console {
    serial: Arc<Serial>,
    chardev: Claim<dyn Chardev>,
}

impl Board {
    /// Makes the devices, puts them in the port space, and connects them: input and the alarm clock to the main loop,
    /// power off and reset to `events`.
    pub fn new(
        memory: &Memory,
        router: &Arc<Router>,
        event_loop: &mut EventLoop,
        events: &Arc<VmEvents>,
        serial: Option<Claim<dyn Chardev>>,
    ) -> Result<Board> {
        let sender = events.clone();
        let power = PowerSender::new(move |event| {
            sender.post(match event {
                PowerEvent::Shutdown => VmEvent::Shutdown,
                PowerEvent::Reset => VmEvent::Reset,
            });
        });
        let rtc = Rtc::new(router.line(RTC_IRQ)).map_err(|error| Error::system("make the RTC's timer", &error))?;
        rtc.attach(event_loop).map_err(|error| Error::system("wait for the RTC's timer", &error))?;
        let board = Board {
            console: serial.map(|chardev| Console::new(chardev, router.line(COM1_IRQ))),
            rtc,
            pm: Arc::new(AcpiPm::new(router.line(SCI_IRQ), power.clone())),
            reset_control: Arc::new(ResetControl::new(power.clone())),
            power,
        };
        memory.update(|layout| board.place(layout))?;
        Ok(board)
    }

    fn place(&self, layout: &mut Layout) {
        let mut put = |name: &'static str, base: u16, len: u64, device: Arc<dyn IoHandler>| {
            let region = Region::whole(name, len, PRIORITY_PLATFORM, Backing::io(device));
            layout.add(Space::Pio, u64::from(base), region);
        };
        if let Some(console) = &self.console {
            put("serial port", COM1_BASE, PORTS, console.serial.clone());
        }
        put("RTC", RTC_BASE, RTC_PORTS, self.rtc.clone());
        put("ACPI power management", PM_BASE, PM_PORTS, self.pm.clone());
        let keyboard = Arc::new(KeyboardReset::new(self.power.clone()));
        put("keyboard controller's reset", KEYBOARD_COMMAND_PORT, 1, keyboard);
    }

    /// The reset control register, which lies among the ports of PCI's configuration mechanism 1.
    pub fn reset_control(&self) -> Arc<dyn IoHandler> {
        self.reset_control.clone()
    }

    /// Presses the power button.
    pub fn power_button(&self) {
        self.pm.power_button();
    }

    /// Whether there is a serial port.
    pub fn has_serial(&self) -> bool {
        self.console.is_some()
    }

    /// Puts every device into its state after power-on and listens for power events again. No vCPU runs.
    pub fn reset(&self) {
        if let Some(console) = &self.console {
            console.serial.reset();
        }
        self.rtc.reset();
        self.pm.reset();
        self.reset_control.reset();
        self.power.rearm();
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Some(console) = &self.console
            && !console.chardev.flush(FLUSH_LIMIT)
        {
            crate::log::warn(format_args!("the last output of the serial port was not read in time and is lost"));
        }
    }
}

impl Console {
    fn new(chardev: Claim<dyn Chardev>, line: IrqLine) -> Console {
        Console { serial: Serial::new(chardev.back().clone(), move |high| line.set(high)), chardev }
    }
}

/// The main loop: it yields when an event comes from the guest, and stops when a signal or the terminal ends the process.
pub fn event_loop(events: &Arc<VmEvents>, signals: &Rc<Signals>) -> Result<EventLoop> {
    let signals = signals.clone();
    let mut event_loop = EventLoop::new(move |event_loop, signal| signals.take(event_loop, signal))
        .map_err(|error| Error::system("make the main loop", &error))?;
    event_loop
        .add(events.clone(), EpollFlags::EPOLLIN, |event_loop, _| event_loop.yield_now())
        .map_err(|error| Error::system("wait for the guest's events", &error))?;
    Ok(event_loop)
}

/// What the signals meet. They are waited for before most of it is there.
#[derive(Default)]
pub struct Signals {
    /// SIGTERM asks for the guest's end and does not bring it.
    asks: Cell<bool>,
    asked: Cell<bool>,
}

impl Signals {
    /// From now on SIGTERM only asks, and [`Signals::asked`] says so; the other signals still end the process.
    pub fn let_sigterm_ask(&self) {
        self.asks.set(true);
    }

    /// Whether the guest's end was asked for since the last call.
    pub fn asked(&self) -> bool {
        self.asked.take()
    }

    /// The signals of job control stop and continue the process, all others end it.
    fn take(&self, event_loop: &mut EventLoop, signal: Signal) {
        match signal {
            Signal::SIGTSTP | Signal::SIGCONT => {
                if let Err(error) = stdio::job_control(event_loop, signal) {
                    crate::log::warn(format_args!("the terminal cannot be used any more: {error}"));
                }
            }
            Signal::SIGTERM if self.asks.get() => {
                self.asked.set(true);
                event_loop.yield_now();
            }
            _ => event_loop.stop(),
        }
    }
}
