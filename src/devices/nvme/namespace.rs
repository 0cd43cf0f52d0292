//! Namespaces, and the bus that they are on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::RwLock;

use super::status::Status;
use crate::device::{Device, Unit};
use crate::devices::disk::Disk;
use crate::error::{Code, Error, Result};

/// The most namespaces, as in QEMU.
pub const MAX_NAMESPACES: u32 = 256;

/// A namespace: a disk with a number.
pub struct Namespace {
    pub(super) disk: Disk,
    /// Bytes of a block.
    pub(super) block: u32,
    /// Its globally unique names: 0 and all zeros are none.
    pub(super) eui64: u64,
    pub(super) uuid: [u8; 16],
    /// Weak: the bus keeps it.
    bus: Weak<NvmeBus>,
    wanted: Option<u32>,
    number: OnceLock<u32>,
}

impl Namespace {
    /// A namespace for this bus; `wanted`: its number, if the user says.
    pub fn new(
        disk: Disk,
        block: u32,
        names: (u64, [u8; 16]),
        wanted: Option<u32>,
        bus: &Arc<NvmeBus>,
    ) -> Arc<Namespace> {
        let (eui64, uuid) = names;
        let bus = Arc::downgrade(bus);
        Arc::new(Namespace { disk, block, eui64, uuid, bus, wanted, number: OnceLock::new() })
    }

    /// Number of blocks; a part of one at the end is not there.
    pub(super) fn blocks(&self) -> u64 {
        self.disk.info().len / u64::from(self.block)
    }

    /// The bytes of so many blocks.
    pub(super) fn range(&self, first: u64, count: u64) -> Result<Range<u64>, Status> {
        let block = u64::from(self.block);
        match first.checked_add(count) {
            // As large as the node, in bytes.
            Some(end) if end <= self.blocks() => Ok(first * block..end * block),
            _ => Err(Status::OUT_OF_RANGE),
        }
    }
}

impl Device for Namespace {
    fn id(&self) -> &str {
        self.disk.id()
    }

    fn reset(&self) {
        self.disk.reset();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        self.disk.facts()
    }
}

impl Unit for Namespace {
    fn addr(&self) -> String {
        self.number.get().map(u32::to_string).unwrap_or_default()
    }

    fn attach(self: Arc<Self>) -> Result<()> {
        let none = || Error::new(Code::BadBus, "the controller has gone");
        let number = self.bus.upgrade().ok_or_else(none)?.attach(&self, self.wanted)?;
        // Attached once in its life.
        let _ = self.number.set(number);
        Ok(())
    }

    fn detach(&self) {
        if let (Some(number), Some(bus)) = (self.number.get(), self.bus.upgrade()) {
            bus.namespaces.write().remove(number);
        }
    }
}

/// The bus of a controller. Namespaces are there before the guest starts, and stay.
pub struct NvmeBus {
    name: Arc<str>,
    namespaces: RwLock<BTreeMap<u32, Arc<Namespace>>>,
}

impl NvmeBus {
    /// A bus without namespaces.
    pub fn new(name: &Arc<str>) -> Arc<NvmeBus> {
        Arc::new(NvmeBus { name: name.clone(), namespaces: RwLock::default() })
    }

    /// The name that `bus=` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self, namespace: &Arc<Namespace>, wanted: Option<u32>) -> Result<u32> {
        let mut namespaces = self.namespaces.write();
        let number = match wanted {
            Some(number) => Some(number).filter(|number| !namespaces.contains_key(number)),
            None => (1..=MAX_NAMESPACES).find(|number| !namespaces.contains_key(number)),
        };
        let number = number.ok_or_else(|| {
            let taken: Vec<String> =
                namespaces.iter().map(|(nsid, of)| format!("{nsid} is {}", of.disk.id())).collect();
            Error::new(Code::BadBus, format!("the namespace's number is taken on {}", self.name))
                .evidence(taken.join(", "))
                .fix("give each namespace another nsid=, or leave it out")
        })?;
        namespaces.insert(number, namespace.clone());
        Ok(number)
    }

    /// The namespace with this number.
    pub(super) fn find(&self, number: u32) -> Option<Arc<Namespace>> {
        self.namespaces.read().get(&number).cloned()
    }

    /// All namespaces.
    pub(super) fn all(&self) -> Vec<(u32, Arc<Namespace>)> {
        self.namespaces.read().iter().map(|(number, namespace)| (*number, namespace.clone())).collect()
    }
}
