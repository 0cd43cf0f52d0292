//! The board: the devices of the machine that sit in no slot, at the ports where every PC has them.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::options::SerialOption;
use crate::backends::chardev::stdio::{RoomSignal, Stdio};
use crate::backends::chardev::{CharSink, Null, Output};
use crate::boot::layout::{PM_BASE, RESET_PORT};
use crate::devices::pm::{AcpiPm, PM_PORTS};
use crate::devices::power::{PowerEvent, PowerSender};
use crate::devices::reset::{KEYBOARD_COMMAND_PORT, KeyboardReset, ResetControl};
use crate::devices::rtc::{RTC_BASE, RTC_IRQ, RTC_PORTS, Rtc};
use crate::devices::serial::{COM1_BASE, COM1_IRQ, PORTS, Serial};
use crate::error::{Error, Result};
use crate::event_loop::EventLoop;
use crate::irq::{IrqLine, Router};
use crate::kvm::{VmEvent, VmEvents};
use crate::memory::{Backing, IoHandler, Layout, Memory, PRIORITY_OVERLAY, PRIORITY_PLATFORM, Region, Space};

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
    sink: Arc<dyn CharSink>,
    stdio: Option<Rc<Stdio>>,
}

impl Board {
    /// Makes the devices, puts them in the port space, and connects them: input and the alarm clock to the main loop,
    /// power off and reset to `events`.
    pub fn new(
        memory: &Memory,
        router: &Arc<Router>,
        event_loop: &mut EventLoop,
        events: &Arc<VmEvents>,
        serial: &SerialOption,
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
            console: Console::new(serial, router.line(COM1_IRQ), event_loop)?,
            rtc,
            pm: Arc::new(AcpiPm::new(router.line(SCI_IRQ), power.clone())),
            reset_control: Arc::new(ResetControl::new(power.clone())),
            power,
        };
        memory.update(|layout| board.place(layout))?;
        Ok(board)
    }

    fn place(&self, layout: &mut Layout) {
        let mut put = |name: &'static str, base: u16, len: u64, priority: i8, device: Arc<dyn IoHandler>| {
            let region = Region::whole(name, len, priority, Backing::io(device));
            layout.add(Space::Pio, u64::from(base), region);
        };
        if let Some(console) = &self.console {
            put("serial port", COM1_BASE, PORTS, PRIORITY_PLATFORM, console.serial.clone());
        }
        put("RTC", RTC_BASE, RTC_PORTS, PRIORITY_PLATFORM, self.rtc.clone());
        put("ACPI power management", PM_BASE, PM_PORTS, PRIORITY_PLATFORM, self.pm.clone());
        let keyboard = Arc::new(KeyboardReset::new(self.power.clone()));
        put("keyboard controller's reset", KEYBOARD_COMMAND_PORT, 1, PRIORITY_PLATFORM, keyboard);
        // It lies among the ports of PCI's configuration mechanism 1.
        put("reset control", RESET_PORT, 1, PRIORITY_OVERLAY, self.reset_control.clone());
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

    /// The reader of the terminal, for job control.
    pub fn stdio(&self) -> Option<Rc<Stdio>> {
        self.console.as_ref()?.stdio.clone()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Some(console) = &self.console
            && !console.sink.flush(FLUSH_LIMIT)
        {
            crate::log::warn(format_args!("the last output of the serial port was not read in time and is lost"));
        }
    }
}

impl Console {
    fn new(option: &SerialOption, line: IrqLine, event_loop: &mut EventLoop) -> Result<Option<Console>> {
        let sink: Arc<dyn CharSink> = match option {
            SerialOption::None => return Ok(None),
            SerialOption::Null => Arc::new(Null),
            SerialOption::File(path) => Arc::new(Output::file(path)?),
            SerialOption::Stdio => Arc::new(Output::stdout()?),
        };
        let room = RoomSignal::new().map_err(|error| Error::system("make an eventfd", &error))?;
        let on_room = room.clone();
        let serial = Serial::new(sink.clone(), line, move || on_room.raise());
        let stdio = if *option == SerialOption::Stdio {
            let quit = |event_loop: &mut EventLoop| event_loop.stop();
            let stdio = Stdio::attach(event_loop, io::stdin(), serial.clone(), room, sink.clone(), quit)
                .map_err(|error| Error::system("read standard input", &error))?;
            Some(Rc::new(stdio))
        } else {
            None
        };
        Ok(Some(Console { serial, sink, stdio }))
    }
}

/// The signals that end the process in an orderly way; those of job control stop and continue it.
pub fn on_signal(event_loop: &mut EventLoop, signal: Signal, stdio: Option<&Stdio>) {
    match (signal, stdio) {
        (Signal::SIGTSTP | Signal::SIGCONT, Some(stdio)) => {
            if let Err(error) = stdio.job_control(event_loop, signal) {
                crate::log::warn(format_args!("the terminal cannot be used any more: {error}"));
            }
        }
        (Signal::SIGTSTP, None) => crate::terminal::suspend(),
        (Signal::SIGCONT, None) => {}
        _ => event_loop.stop(),
    }
}
