//! The bus of a host adapter.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::command::{self, Answer, Command};
use super::disk::ScsiDisk;
use super::sense::Sense;
use crate::device::Device;
use crate::error::{Code, Error, Result};

/// The highest target and logical unit, as QEMU has them.
pub const MAX_TARGET: u8 = 255;
/// See [`MAX_TARGET`].
pub const MAX_LUN: u16 = 16383;

/// Where a unit is; there is one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The target.
    pub target: u8,
    /// The logical unit of the target.
    pub lun: u16,
}

/// What has happened to a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A unit has come.
    Added,
    /// A unit has gone.
    Removed,
}

/// Takes what happens to a bus. Called with no lock of the bus's.
pub type Listener = Arc<dyn Fn(Address, Change) + Send + Sync>;

/// A bus.
pub struct ScsiBus {
    name: Arc<str>,
    /// Whether the adapter tells its guest of units that come and go.
    hotplug: bool,
    units: RwLock<BTreeMap<Address, Arc<ScsiDisk>>>,
    listener: Mutex<Option<Listener>>,
}

impl ScsiBus {
    /// A bus that nothing is on.
    pub fn new(name: &Arc<str>, hotplug: bool) -> Arc<ScsiBus> {
        Arc::new(ScsiBus { name: name.clone(), hotplug, units: RwLock::default(), listener: Mutex::default() })
    }

    /// The name that `bus=` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether units come and go while the guest runs.
    pub fn hotplug(&self) -> bool {
        self.hotplug
    }

    /// Says to the adapter what happens from now on.
    pub fn listen(&self, listener: Listener) {
        *self.listener.lock() = Some(listener);
    }

    /// Puts a unit where it wants to be, or at the first free place: a target of its own, unless the user names one.
    ///
    /// # Errors
    /// [`Code::BadBus`].
    pub(super) fn attach(&self, unit: &Arc<ScsiDisk>, target: Option<u8>, lun: Option<u16>) -> Result<Address> {
        let at = {
            let mut units = self.units.write();
            let free = |at: &Address| !units.contains_key(at);
            let at = match (target, lun) {
                (Some(target), Some(lun)) => Some(Address { target, lun }).filter(free),
                (Some(target), None) => (0..=MAX_LUN).map(|lun| Address { target, lun }).find(free),
                (None, lun) => {
                    let lun = lun.unwrap_or(0);
                    (0..=MAX_TARGET).map(|target| Address { target, lun }).find(free)
                }
            };
            let Some(at) = at else {
                let taken: Vec<String> =
                    units.iter().map(|(at, unit)| format!("{}:{} is {}", at.target, at.lun, unit.id())).collect();
                return Err(Error::new(Code::BadBus, format!("the place on {} is taken", self.name))
                    .evidence(taken.join(", "))
                    .fix("give each unit another scsi-id= or lun=, or leave both out"));
            };
            units.insert(at, unit.clone());
            at
        };
        self.tell(at, Change::Added);
        Ok(at)
    }

    /// Takes a unit off: its last command is done when this returns.
    pub(super) fn detach(&self, at: Address) {
        if self.units.write().remove(&at).is_some() {
            self.tell(at, Change::Removed);
        }
    }

    fn tell(&self, at: Address, change: Change) {
        let listener = self.listener.lock().clone();
        if let Some(listener) = listener {
            listener(at, change);
        }
    }

    /// Whether there is anything at a target.
    pub fn has_target(&self, target: u8) -> bool {
        let range = Address { target, lun: 0 }..=Address { target, lun: u16::MAX };
        self.units.read().range(range).next().is_some()
    }

    /// Has a command done; `None`: nobody is there.
    pub fn execute(&self, at: Address, mut command: Command<'_>) -> Option<Answer> {
        let units = self.units.read();
        let range = Address { target: at.target, lun: 0 }..=Address { target: at.target, lun: u16::MAX };
        let luns: Vec<u16> = units.range(range).map(|(at, _)| at.lun).collect();
        if luns.is_empty() {
            return None;
        }
        Some(match units.get(&at) {
            _ if command.is_report_luns() => command::answer(command::report_luns(&luns, &mut command)),
            Some(unit) => unit.execute(command),
            None => command::answer(command::without_unit(&mut command)),
        })
    }

    /// Every unit of a target is as after power-on, or the one at `lun` only; says whether there is one.
    pub fn reset(&self, target: u8, lun: Option<u16>) -> bool {
        let units = self.units.read();
        let hit = units.iter().filter(|(at, _)| at.target == target && lun.is_none_or(|lun| at.lun == lun));
        hit.map(|(_, unit)| unit.attention(Sense::RESET)).count() > 0
    }
}
