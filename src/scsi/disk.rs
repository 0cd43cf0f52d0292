//! A unit: a disk or a CD drive.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::bus::{Address, ScsiBus};
use super::command::{self, Answer, Command, Who, op};
use super::sense::Sense;
use crate::device::{Device, Unit};
use crate::devices::disk::Disk;
use crate::error::Result;

/// What a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Disk,
    Cd,
}

/// What the user says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub kind: Kind,
    /// Bytes of a block.
    pub block: u32,
    /// Bytes of a block of the medium, if the user says.
    pub physical: Option<u32>,
    /// Bytes that are given back at once, if the user says.
    pub granularity: Option<u32>,
    pub vendor: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    /// The name of the unit for the guest (VPD page 83h).
    pub device_id: String,
    /// Its world wide name, if it has one.
    pub wwn: Option<u64>,
    /// 0: not said, 1: no disk that turns, else turns per minute.
    pub rotation: u16,
    /// The wanted address.
    pub target: Option<u8>,
    pub lun: Option<u16>,
}

/// A unit.
pub struct ScsiDisk {
    pub(super) options: Options,
    /// The bytes.
    pub(super) disk: Disk,
    bus: Arc<ScsiBus>,
    at: OnceLock<Address>,
    state: Mutex<State>,
}

/// What changes.
#[derive(Default)]
struct State {
    /// What the next command is told instead of being done.
    attention: Option<Sense>,
    /// The medium must not be taken out.
    locked: bool,
    /// The tray is open.
    open: bool,
}

impl ScsiDisk {
    /// A unit for this bus.
    pub fn new(disk: Disk, options: Options, bus: Arc<ScsiBus>) -> Arc<ScsiDisk> {
        let state = State { attention: Some(Sense::RESET), ..State::default() };
        Arc::new(ScsiDisk { options, disk, bus, at: OnceLock::new(), state: Mutex::new(state) })
    }

    /// Whether it knows this row of the table.
    fn knows(&self, who: Who) -> bool {
        who == Who::All || (who == Who::Cd) == self.is_cd()
    }

    pub(super) fn is_cd(&self) -> bool {
        self.options.kind == Kind::Cd
    }

    /// Has a command done.
    pub(super) fn execute(&self, mut command: Command<'_>) -> Answer {
        let code = command.cdb[0];
        // These tell of an attention themselves, or are answered in spite of it (SPC-4 5.6.3).
        if !matches!(code, op::INQUIRY | op::REQUEST_SENSE)
            && let Some(sense) = self.take_attention()
        {
            return Answer::Check(sense);
        }
        match command::find(code).filter(|row| self.knows(row.who)) {
            None => Answer::Check(Sense::UNKNOWN_COMMAND),
            Some(row) if row.medium && self.state.lock().open => Answer::Check(Sense::NO_MEDIUM),
            Some(row) => command::answer((row.run)(self, &mut command)),
        }
    }

    /// The next command is told this.
    pub(super) fn attention(&self, sense: Sense) {
        self.state.lock().attention = Some(sense);
    }

    pub(super) fn take_attention(&self) -> Option<Sense> {
        self.state.lock().attention.take()
    }

    /// Bytes of a block.
    pub(super) fn block(&self) -> u64 {
        u64::from(self.options.block)
    }

    /// Number of blocks; a part of one at the end is not there.
    pub(super) fn blocks(&self) -> u64 {
        self.disk.info().len / self.block()
    }

    /// Whether it cannot be written.
    pub(super) fn read_only(&self) -> bool {
        self.is_cd() || self.disk.info().read_only
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.lock().open
    }

    pub(super) fn is_locked(&self) -> bool {
        self.state.lock().locked
    }

    pub(super) fn lock(&self, locked: bool) {
        self.state.lock().locked = locked;
    }

    /// Opens or closes the tray; refused while it is locked.
    pub(super) fn move_tray(&self, open: bool) -> Result<(), Sense> {
        let mut state = self.state.lock();
        if open && state.locked {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        if state.open && !open {
            state.attention = Some(Sense::MEDIUM_CHANGED);
        }
        state.open = open;
        Ok(())
    }
}

impl Device for ScsiDisk {
    fn id(&self) -> &str {
        self.disk.id()
    }

    fn reset(&self) {
        self.disk.reset();
        *self.state.lock() = State { attention: Some(Sense::RESET), ..State::default() };
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = self.disk.facts();
        if self.is_cd() {
            facts.push(("tray", if self.is_open() { "open" } else { "closed" }.into()));
        }
        facts
    }
}

impl Unit for ScsiDisk {
    fn addr(&self) -> String {
        self.at.get().map_or_else(String::new, |at| format!("0:{}:{}", at.target, at.lun))
    }

    fn attach(self: Arc<Self>) -> Result<()> {
        let at = self.bus.attach(&self, self.options.target, self.options.lun)?;
        // Attached once in its life.
        let _ = self.at.set(at);
        Ok(())
    }

    fn detach(&self) {
        if let Some(at) = self.at.get() {
            self.bus.detach(*at);
        }
    }
}
