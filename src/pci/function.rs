//! [`PciCore`]: the emulated registers of one function, and what a write to them changed.

use std::sync::Arc;

use parking_lot::Mutex;

use super::bar::{self, BarSpecs, Placements};
use super::bridge::Bridge;
use super::config::ConfigSpace;
use super::regs::{
    ADVANCED_CAP, ADVANCED_CONTROL, BAR0, BRIDGE_CONTROL, BRIDGE_CONTROL_RESET, CAP_ADVANCED, CAP_EXPRESS, CAP_POWER,
    COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, EXPRESS_DEVICE_CAP,
    EXPRESS_DEVICE_CAP_FLR, EXPRESS_DEVICE_CONTROL, EXPRESS_DEVICE_CONTROL_FLR, HEADER_BRIDGE, HEADER_MULTI_FUNCTION,
    HEADER_TYPE, INTERRUPT_PIN, POWER_CONTROL, POWER_STATE,
};
use super::{Changes, Msi, Msix};
use crate::error::Result;

/// The end of the part of the header that can hold address registers.
const HEADER_END: u16 = 0x40;

/// The registers of one function and the capabilities that act.
///
/// A function with hardware behind it keeps the values of all emulated registers here and decides itself which bits of a
/// read come from the hardware instead.
pub struct PciCore {
    name: Arc<str>,
    msi: Option<Msi>,
    msix: Option<Arc<Msix>>,
    /// Offsets of the capabilities that the core acts on.
    power: Option<u16>,
    express: Option<u16>,
    advanced: Option<u16>,
    /// Held from a write to the end of what follows from it in `msi` and `msix`, so that they never contradict the
    /// registers. Nothing of other modules but the interrupt router is called with it.
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    bars: BarSpecs,
    /// The interrupt input that the pin is wired to, from the place that the function was attached to.
    gsi: Option<u32>,
}

/// What follows from the registers and is compared before and after a write.
#[derive(PartialEq)]
struct Effects {
    command: u16,
    power: u16,
    placements: Placements,
    bridge: Option<Bridge>,
    secondary_reset: bool,
}

impl PciCore {
    /// The core of a function that `name` names to people. The values in `config` are those after power-on; where it has
    /// an MSI or MSI-X capability it was made with [`Msi`] or [`Msix`]. BARs are defined at the attachment.
    pub fn new(
        name: impl Into<Arc<str>>,
        mut config: ConfigSpace,
        msi: Option<Msi>,
        msix: Option<Arc<Msix>>,
    ) -> PciCore {
        config.seal();
        PciCore {
            name: name.into(),
            msi,
            msix,
            power: config.find(CAP_POWER),
            express: config.find(CAP_EXPRESS),
            advanced: config.find(CAP_ADVANCED),
            state: Mutex::new(State { config, bars: BarSpecs::default(), gsi: None }),
        }
    }

    /// The name that it was made with.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The MSI capability.
    pub fn msi(&self) -> Option<&Msi> {
        self.msi.as_ref()
    }

    /// The MSI-X capability.
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref()
    }

    /// Offset of the PCI Express capability.
    pub fn express(&self) -> Option<u16> {
        self.express
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.state.lock().config.u16(COMMAND)
    }

    /// Whether the guest allows the function to write to memory.
    pub fn bus_master(&self) -> bool {
        self.command() & COMMAND_BUS_MASTER != 0
    }

    /// Whether the guest forbids the function its INTx.
    pub fn intx_disabled(&self) -> bool {
        self.command() & COMMAND_INTX_DISABLE != 0
    }

    /// The power state that the guest chose: 0 (D0) to 3 (D3hot).
    pub fn power_state(&self) -> u8 {
        self.power_of(&self.state.lock().config) as u8
    }

    /// The GSI of the interrupt pin: known from the attachment on, if the function has a pin.
    pub fn gsi(&self) -> Option<u32> {
        self.state.lock().gsi
    }

    /// The interrupt pin, 0 for INTA, if the function has one.
    pub fn pin(&self) -> Option<u8> {
        self.with(|config| config.u8(INTERRUPT_PIN)).checked_sub(1).filter(|pin| *pin < 4)
    }

    /// The BARs as they were described at the attachment.
    pub fn bars(&self) -> BarSpecs {
        self.state.lock().bars
    }

    /// Where the BARs are by this function's own registers, whatever the bridges above it forward.
    pub fn placements(&self) -> Placements {
        let state = self.state.lock();
        self.placed(&state)
    }

    /// The bridge's registers, if the function is one.
    pub fn bridge(&self) -> Option<Bridge> {
        let state = self.state.lock();
        Bridge::read(&state.config, self.power_of(&state.config) == 0)
    }

    /// Looks at or changes the registers from the owner's side. What the guest reads from a mirror is current when this
    /// returns, so an interrupt that announces the change comes after it. Must not be used for registers that decide
    /// about decoding or interrupts: those follow only [`PciCore::write`] and [`PciCore::reset`].
    pub fn with<R>(&self, f: impl FnOnce(&mut ConfigSpace) -> R) -> R {
        f(&mut self.state.lock().config)
    }

    /// A guest's read: the emulated value of every byte.
    pub fn read(&self, off: u16, data: &mut [u8]) {
        let mut state = self.state.lock();
        if let Some(msi) = &self.msi
            && msi.shows_pending(off, data.len())
        {
            msi.refresh(&mut state.config);
        }
        state.config.read(off, data);
    }

    /// A guest's write, with all that follows from it inside the core: MSI and MSI-X are switched, a function-level reset
    /// is done.
    pub fn write(&self, off: u16, data: &[u8]) -> Changes {
        let mut state = self.state.lock();
        let before = self.effects(&state);
        state.config.write(off, data);
        let mut what = Changes::empty();
        if self.asks_for_reset(&state.config, off, data) {
            self.reset_registers(&mut state);
            what |= Changes::RESET;
        }
        what |= self.compare(&before, &self.effects(&state));
        what | self.follow_interrupts(&state)
    }

    /// Puts every register into the state after power-on; interrupts are off, BARs answer nowhere.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        self.reset_registers(&mut state);
        self.follow_interrupts(&state);
    }

    /// Whether a write to these bytes can change what [`Changes::DECODE`], `POWER`, `RESET` or `SECONDARY_RESET` stand
    /// for.
    pub fn affects_decoding(&self, off: u16, len: usize) -> bool {
        let touches = |start: u16, end: u16| off < end && usize::from(start) < usize::from(off) + len;
        let capability = |at: Option<u16>, reg: u16| at.is_some_and(|at| touches(at + reg, at + reg + 2));
        touches(COMMAND, COMMAND + 2)
            || touches(BAR0, HEADER_END)
            || capability(self.power, POWER_CONTROL)
            || capability(self.express, EXPRESS_DEVICE_CONTROL)
            || capability(self.express, super::slot::CONTROL)
            || capability(self.advanced, ADVANCED_CONTROL)
    }

    /// Defines the BARs. Done once, by the bus.
    pub(super) fn define_bars(&self, bars: BarSpecs) -> Result<()> {
        let mut state = self.state.lock();
        bar::define(&mut state.config, &bars, &self.name)?;
        state.bars = bars;
        Ok(())
    }

    pub(super) fn set_gsi(&self, gsi: Option<u32>) {
        self.state.lock().gsi = gsi;
    }

    /// Says in function 0's header whether the device has more functions.
    pub(super) fn set_multi_function(&self, on: bool) {
        self.with(|config| {
            let layout = config.layout();
            config.set_u8(HEADER_TYPE, if on { layout | HEADER_MULTI_FUNCTION } else { layout });
        });
    }

    fn power_of(&self, config: &ConfigSpace) -> u16 {
        self.power.map_or(0, |at| config.u16(at + POWER_CONTROL) & POWER_STATE)
    }

    fn placed(&self, state: &State) -> Placements {
        let powered = self.power_of(&state.config) == 0;
        bar::decode(&bar::Registers::read(&state.config, powered), &state.bars)
    }

    fn effects(&self, state: &State) -> Effects {
        let config = &state.config;
        let power = self.power_of(config);
        Effects {
            command: config.u16(COMMAND),
            power,
            placements: self.placed(state),
            bridge: Bridge::read(config, power == 0),
            secondary_reset: config.layout() == HEADER_BRIDGE && config.u16(BRIDGE_CONTROL) & BRIDGE_CONTROL_RESET != 0,
        }
    }

    fn compare(&self, before: &Effects, after: &Effects) -> Changes {
        let flipped = before.command ^ after.command;
        let decode = flipped & (COMMAND_IO | COMMAND_MEMORY) != 0
            || before.placements != after.placements
            || before.bridge != after.bridge;
        [
            (decode, Changes::DECODE),
            (flipped & COMMAND_BUS_MASTER != 0, Changes::BUS_MASTER),
            (flipped & COMMAND_INTX_DISABLE != 0, Changes::INTX_DISABLE),
            (before.power != after.power, Changes::POWER),
            // The reset begins with the bit; what is behind the bridge is as after power-on when it ends.
            (!before.secondary_reset && after.secondary_reset, Changes::SECONDARY_RESET),
        ]
        .into_iter()
        .filter(|(changed, _)| *changed)
        .fold(Changes::empty(), |what, (_, change)| what | change)
    }

    fn follow_interrupts(&self, state: &State) -> Changes {
        let mut what = Changes::empty();
        what.set(Changes::MSI, self.msi.as_ref().is_some_and(|msi| msi.follow(&state.config)));
        what.set(Changes::MSIX, self.msix.as_ref().is_some_and(|msix| msix.follow(&state.config)));
        what
    }

    /// Whether the write starts a function-level reset that the capabilities offer.
    fn asks_for_reset(&self, config: &ConfigSpace, off: u16, data: &[u8]) -> bool {
        let written =
            |at: u16| at.checked_sub(off).and_then(|index| data.get(usize::from(index))).copied().unwrap_or(0);
        let express = self.express.is_some_and(|at| {
            config.u32(at + EXPRESS_DEVICE_CAP) & EXPRESS_DEVICE_CAP_FLR != 0
                && u16::from(written(at + EXPRESS_DEVICE_CONTROL + 1)) << 8 & EXPRESS_DEVICE_CONTROL_FLR != 0
        });
        let advanced = self
            .advanced
            .is_some_and(|at| config.u8(at + ADVANCED_CAP) & 2 != 0 && written(at + ADVANCED_CONTROL) & 1 != 0);
        express || advanced
    }

    fn reset_registers(&self, state: &mut State) {
        state.config.reset();
        if let Some(msix) = &self.msix {
            msix.reset();
        }
    }
}

#[cfg(test)]
mod tests;
