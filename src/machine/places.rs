//! Where every device goes: ids, buses and addresses, found out from the options alone. What is wrong with them is
//! known before anything of the host is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::beside;
use super::functions::{self, Function};
use super::hotplug::no_hotplug;
use super::types::DEVICES;
use crate::device::{Cx, ISA, PCI, Plug, bus_name};
use crate::devices::isa;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::object::{Args, Common, PciAddr, PciPlace, Props, TypeInfo, did_you_mean};
use crate::pci::{Devfn, Slots, choose_address, host_bridge, pcie_pci_bridge};

/// The bus of the board.
pub const ROOT_BUS: &str = "pcie.0";
/// The board's bus for what has fixed ports.
const ISA_BUS: &str = isa::NAME;
/// The property that orders what firmware boots from.
const BOOTINDEX: &str = "bootindex";
/// Bus numbers are bytes.
const MAX_BUSES: usize = 256;

/// A device that is to be plugged, with everything about it checked that needs no device.
pub struct Place {
    /// Its type.
    pub of_type: &'static TypeInfo<Plug, Cx>,
    /// Its properties; the type's name and the common ones are taken.
    pub args: Args,
    /// Its id: the user's, or one that was made.
    pub id: Arc<str>,
    /// Name of the bus that it goes to.
    pub bus: Arc<str>,
    /// Its address there, if that is a PCI bus; other devices find theirs when they are put there.
    pub addr: Option<Devfn>,
    /// `multifunction=`, if the user gave it.
    pub multifunction: Option<bool>,
    /// The name of the bus that it adds; empty if it adds none.
    pub adds: Arc<str>,
}

/// A bus, with the id of what is at each address.
#[derive(Clone)]
struct Bus {
    name: Arc<str>,
    kind: &'static str,
    /// Its slots, if it is a PCI bus.
    slots: Slots,
    /// The id of the device that adds it.
    owner: Arc<str>,
    functions: BTreeMap<Devfn, Arc<str>>,
}

/// What is taken already.
#[derive(Clone)]
pub struct Places {
    /// In the order in which they come to be; the root bus is the first.
    buses: Vec<Bus>,
    ids: BTreeSet<Arc<str>>,
    /// The types of the devices, by their ids.
    types: BTreeMap<Arc<str>, &'static str>,
    /// Who has which place in the order of booting.
    bootindices: BTreeMap<String, Arc<str>>,
    /// How many lines have been placed, for the ids that are made.
    lines: usize,
}

/// Places `devices` one after the other, as the user wrote them. Of the functions of one device function 0 comes last: a
/// guest that is running looks at the others when it finds that one.
///
/// # Errors
/// [`Code::UnknownType`], [`Code::BadProperty`], [`Code::DuplicateId`], or [`Code::BadBus`] for a bus that does not exist
/// or is of another kind, and for an address that is taken or that the bus does not have.
pub fn plan(devices: &[Args], host: &Host) -> Result<(Places, Vec<Place>)> {
    let bridge = (Devfn::parse(host_bridge::ADDRESS)?, host_bridge::ID.into());
    let functions = BTreeMap::from([bridge]);
    let root = Bus { name: ROOT_BUS.into(), kind: PCI, slots: Slots::Root, owner: ROOT_BUS.into(), functions };
    let isa =
        Bus { name: ISA_BUS.into(), kind: ISA, slots: Slots::One, owner: ISA_BUS.into(), functions: BTreeMap::new() };
    let ids = BTreeSet::from([root.name.clone(), isa.name.clone()]);
    let mut places = Places {
        ids,
        buses: vec![root, isa],
        types: BTreeMap::new(),
        bootindices: BTreeMap::new(),
        lines: devices.len(),
    };
    let mut all = Vec::new();
    for (index, args) in devices.iter().enumerate() {
        all.extend(places.place(index, functions::expand(args.clone(), host)?)?);
    }
    places.check_functions(&all)?;
    Ok((places, all))
}

impl Places {
    /// Places a device that is plugged into the running machine; `hotplug` says which buses take one. On an error the
    /// places are to be forgotten.
    ///
    /// # Errors
    /// Those of [`plan`]; [`Code::NoHotplug`] for a bus, or a device, that cannot be plugged now.
    pub fn plan_hot(&mut self, args: Args, host: &Host, hotplug: impl Fn(&str) -> bool) -> Result<Vec<Place>> {
        let functions = functions::expand(args, host)?;
        self.lines += 1;
        let before = self.clone();
        let placed = self.place(self.lines - 1, functions)?;
        for place in &placed {
            if place.of_type.adds_bus() == Some(PCI) {
                let cause = format!("Device '{}' does not support hotplugging", place.of_type.name());
                return Err(Error::new(Code::NoHotplug, cause).evidence(place.args.written()));
            }
            if !hotplug(&place.bus) {
                return Err(no_hotplug(&place.bus).evidence(place.args.written()));
            }
            let Some(addr) = place.addr else { continue };
            let bus = before.buses.iter().find(|bus| bus.name == place.bus);
            let zero = bus.and_then(|bus| bus.functions.get(&Devfn::new(addr.slot(), 0)?));
            if let Some(holder) = zero {
                // The guest looks at the other functions of a slot only when function 0 comes.
                let cause = format!(
                    "PCI: slot {} function 0 already occupied by {holder}, new func {} cannot be exposed to guest.",
                    addr.slot(),
                    place.id
                );
                return Err(Error::new(Code::BadBus, cause).evidence(place.args.written()));
            }
            self.check_alone(place)?;
        }
        Ok(placed)
    }

    /// A device has gone: its id and its address are free, and its bus is not there any more.
    pub fn free(&mut self, id: &str) {
        self.ids.remove(id);
        self.types.remove(id);
        self.bootindices.retain(|_, holder| &**holder != id);
        self.buses.retain(|bus| &*bus.owner != id);
        for bus in &mut self.buses {
            bus.functions.retain(|_, at| &**at != id);
        }
    }

    /// Places what one line means: function 0 chooses the slot, the others go there too.
    fn place(&mut self, index: usize, functions: Vec<Function>) -> Result<Vec<Place>> {
        let mut placed = Vec::new();
        let mut first: Option<(Arc<str>, Devfn)> = None;
        for Function { number, args } in functions {
            let beside = first.as_ref().zip(number).map(|((id, devfn), number)| {
                let addr = PciAddr { device: devfn.slot(), function: number };
                (Arc::from(format!("{id}.{number}")), addr)
            });
            let place = self.place_one(index, args, beside)?;
            let addr = place.addr.filter(|_| number.is_some());
            if first.is_none() && addr.is_some_and(|addr| addr.function() != 0) {
                return Err(Error::new(Code::BadBus, "all functions of a device start with function 0 of a slot")
                    .evidence(place.args.written())
                    .fix("write addr= with the slot only"));
            }
            first = first.or(addr.map(|addr| (place.id.clone(), addr)));
            placed.push(place);
        }
        placed.reverse();
        Ok(placed)
    }

    /// Whether a guest will find every function: it looks for the others only where there is a function 0 that says so.
    fn check_functions(&self, all: &[Place]) -> Result<()> {
        for place in all {
            let Some(bus) = self.buses.iter().find(|bus| bus.name == place.bus) else { continue };
            let Some(addr) = place.addr else { continue };
            let slot = || bus.functions.iter().filter(|(devfn, _)| devfn.slot() == addr.slot());
            let names = || slot().map(|(devfn, id)| format!("{devfn} is {id}"));
            if slot().all(|(devfn, _)| devfn.function() != 0) {
                let error =
                    Error::new(Code::BadBus, format!("slot {:02x} of bus {} has no function 0", addr.slot(), bus.name));
                return Err(names().fold(error.evidence(place.args.written()), Error::evidence).fix(
                    "a guest looks for a slot's other functions only if it finds function 0: put a device there",
                ));
            }
            self.check_alone(place)?;
        }
        Ok(())
    }

    /// Whether what is to be the only function of its slot is.
    fn check_alone(&self, place: &Place) -> Result<()> {
        let bus = self.buses.iter().find(|bus| bus.name == place.bus);
        let Some((bus, addr)) = bus.zip(place.addr) else { return Ok(()) };
        let slot = || bus.functions.iter().filter(|(devfn, _)| devfn.slot() == addr.slot());
        if place.multifunction != Some(false) || addr.function() != 0 || slot().count() < 2 {
            return Ok(());
        }
        let error = Error::new(
            Code::BadBus,
            format!("{} is not to have other functions, and slot {:02x} has", place.id, addr.slot()),
        );
        Err(slot()
            .map(|(devfn, id)| format!("{devfn} is {id}"))
            .fold(error.evidence(place.args.written()), Error::evidence)
            .fix("leave multifunction=off out"))
    }

    /// `beside`: id and address of a function that goes where its device's first one is.
    fn place_one(&mut self, index: usize, mut args: Args, beside: Option<(Arc<str>, PciAddr)>) -> Result<Place> {
        let of_type = DEVICES.take_type(&mut args)?;
        let common = Common::parse(&mut args)?;
        let on_pci = of_type.bus() == Some(PCI);
        let place = on_pci.then(|| PciPlace::parse(&mut args)).transpose()?;
        let (wanted, multifunction) = place.map_or((None, None), |place| (place.addr, place.multifunction));
        of_type.check(&args)?;
        let written = |error: Error| error.evidence(args.written());
        let (id, wanted): (Arc<str>, _) = match (beside, &common.id) {
            (Some((id, addr)), _) => (id, Some(addr)),
            (None, Some(id)) => (id.as_str().into(), wanted),
            // The character that no id of the user's can have keeps the two apart.
            (None, None) => (format!("{}#{}", of_type.name(), index + 1).into(), wanted),
        };
        if !self.ids.insert(id.clone()) {
            return Err(written(Error::new(Code::DuplicateId, format!("the id `{id}` is used twice"))));
        }
        if let Some(index) = args.peek(BOOTINDEX)
            && let Some(holder) = self.bootindices.insert(index.to_owned(), id.clone())
        {
            let cause = format!("the bootindex {index} is that of {holder} already");
            return Err(written(Error::new(Code::BootindexTaken, cause)));
        }
        beside::check(of_type.name(), self.types.iter().map(|(id, of_type)| (*of_type, &**id))).map_err(written)?;
        self.types.insert(id.clone(), of_type.name());
        let at = self.find(common.bus.as_deref(), of_type).map_err(written)?;
        let addr = on_pci.then(|| self.occupy(at, wanted, &id)).transpose();
        let addr = addr.map_err(|error| written(error.evidence(self.list())))?;
        let bus = self.buses.get(at).map(|bus| bus.name.clone()).unwrap_or_default();
        let mut adds: Arc<str> = "".into();
        if let Some(kind) = of_type.adds_bus() {
            // The others have no number.
            let numbered = self.buses.iter().filter(|bus| bus.kind == PCI).count();
            if kind == PCI && numbered >= MAX_BUSES {
                return Err(written(Error::new(Code::BadBus, format!("there cannot be more than {MAX_BUSES} buses"))));
            }
            let unnamed = (0..).map(|count| format!("{}.{count}", kind.to_lowercase()));
            let mut unnamed = unnamed.filter(|name| self.buses.iter().all(|bus| *bus.name != **name));
            let name = match common.id {
                None if kind != PCI => unnamed.next().unwrap_or_default(),
                _ => bus_name(kind, &id),
            };
            adds = Arc::from(name);
            let conventional = of_type.name() == pcie_pci_bridge::NAME;
            let slots = if conventional { Slots::Conventional } else { Slots::One };
            self.buses.push(Bus { name: adds.clone(), kind, slots, owner: id.clone(), functions: BTreeMap::new() });
        }
        Ok(Place { of_type, args, id, bus, addr, multifunction, adds })
    }

    /// The index of the bus that `bus=` names, or of the first one of the kind that the type goes on.
    fn find(&self, name: Option<&str>, of_type: &TypeInfo<Plug, Cx>) -> Result<usize> {
        let (kind, type_name) = (of_type.bus().unwrap_or(PCI), of_type.name());
        let other_kind = |name: &str, other: &str| {
            let article = if other == ISA { "an" } else { "a" };
            let cause = format!("{type_name} needs a {kind} bus, and {name} is {article} {other} bus");
            Error::new(Code::BadBus, cause).evidence(self.list())
        };
        let comes_before = |error: Error| {
            let adds = DEVICES.types.iter().find(|other| other.adds_bus() == Some(kind));
            let adds = adds.map_or("pcie-root-port", |other| other.name());
            error
                .evidence(self.list())
                .fix(format!("a device that adds a bus, such as `{adds},id=NAME`, comes before the devices on it"))
        };
        match name {
            None => self.buses.iter().position(|bus| bus.kind == kind).ok_or_else(|| {
                comes_before(Error::new(Code::BadBus, format!("there is no {kind} bus for {type_name}")))
            }),
            Some(name) => match self.buses.iter().position(|bus| &*bus.name == name) {
                Some(at) if self.buses[at].kind == kind => Ok(at),
                Some(at) => Err(other_kind(name, self.buses[at].kind)),
                None => {
                    let hint = did_you_mean(name, self.buses.iter().map(|bus| &*bus.name));
                    Err(comes_before(Error::new(Code::BadBus, format!("there is no bus `{name}`{hint}"))))
                }
            },
        }
    }

    /// Gives `id` an address of the bus with this index.
    fn occupy(&mut self, at: usize, wanted: Option<PciAddr>, id: &Arc<str>) -> Result<Devfn> {
        let none = || Error::new(Code::BadBus, "the address is on no bus");
        let Bus { name, functions, slots, .. } = self.buses.get_mut(at).ok_or_else(none)?;
        let wanted = wanted.map(|addr| Devfn::new(addr.device, addr.function).ok_or_else(none)).transpose()?;
        let taken = functions.iter().map(|(devfn, id)| (*devfn, &**id)).collect();
        let devfn = choose_address(name, *slots, &taken, wanted)?;
        functions.insert(devfn, id.clone());
        Ok(devfn)
    }

    fn list(&self) -> String {
        let mut kinds: Vec<&str> = self.buses.iter().map(|bus| bus.kind).filter(|kind| *kind != ISA).collect();
        kinds.dedup();
        kinds.sort_unstable();
        kinds.dedup();
        let of_kind = |kind: &str| {
            let names = self.buses.iter().filter(|bus| bus.kind == kind).map(|bus| &*bus.name);
            format!("{} ({kind})", names.collect::<Vec<_>>().join(", "))
        };
        let all: Vec<String> = kinds.into_iter().map(of_kind).collect();
        format!("the buses are {} and {ISA_BUS} ({ISA})", all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    /// `id bus addr` of each device, or the first mistake.
    fn placed(devices: &[&str]) -> Result<Vec<String>> {
        let parse = |text: &&str| Args::parse("--device", Some("driver"), text);
        let devices: Vec<Args> = devices.iter().map(parse).collect::<Result<_>>()?;
        let tree = TestTree::new();
        for address in ["0000:05:00.0", "0000:05:00.1", "0000:05:00.4"] {
            tree.pci(address).add();
        }
        let (_, places) = plan(&devices, &tree.host())?;
        Ok(places.iter().map(|place| format!("{} {} {}", place.id, place.bus, place.addr.unwrap())).collect())
    }

    #[test]
    fn devices_go_to_the_first_free_slot_or_where_they_are_told() {
        let seen = placed(&[
            "pcie-root-port,id=rp1",
            "vfio-pci,host=01:00.0,bus=rp1",
            "pcie-root-port,addr=3,slot=7",
            "vfio-pci,host=02:00.0,id=nic0",
            "vfio-pci,host=02:00.1,addr=2.1",
            "pcie-root-port,id=rp2,bus=pcie.0",
            "pcie-root-port,id=rp3,bus=rp2",
        ]);
        let expected = [
            "rp1 pcie.0 01.0",
            "vfio-pci#2 rp1 00.0",
            "pcie-root-port#3 pcie.0 03.0",
            "nic0 pcie.0 02.0",
            "vfio-pci#5 pcie.0 02.1",
            "rp2 pcie.0 04.0",
            "rp3 rp2 00.0",
        ];
        assert_eq!(seen.unwrap(), expected);
    }

    #[test]
    fn devices_go_to_the_first_bus_of_their_kind() {
        let plan = |devices: &[&str]| -> Result<Vec<String>> {
            let parse = |text: &&str| Args::parse("--device", Some("driver"), text);
            let devices: Vec<Args> = devices.iter().map(parse).collect::<Result<_>>()?;
            let (_, places) = plan(&devices, &TestTree::new().host())?;
            Ok(places.iter().map(|place| format!("{} {} {}", place.id, place.bus, place.adds)).collect())
        };
        let seen = plan(&[
            "virtio-scsi-pci",
            "virtio-scsi-pci,id=s",
            "scsi-hd,id=a,drive=d",
            "scsi-hd,id=b,drive=d,bus=s.0",
            "scsi-cd,id=c,drive=d,bus=scsi.0",
        ]);
        let expected = ["virtio-scsi-pci#1 pcie.0 scsi.0", "s pcie.0 s.0", "a scsi.0 ", "b s.0 ", "c scsi.0 "];
        assert_eq!(seen.unwrap(), expected);
        for (devices, cause) in [
            (&["scsi-hd,drive=d"][..], "there is no SCSI bus for scsi-hd"),
            (&["virtio-scsi-pci,id=scsi0", "scsi-hd,drive=d,bus=scsi0"], "there is no bus `scsi0`"),
            (&["virtio-scsi-pci,id=s", "scsi-hd,drive=d,bus=pcie.0"], "pcie.0 is a PCI bus"),
            (
                &["virtio-scsi-pci,id=s", "virtio-rng-pci,bus=s.0"],
                "virtio-rng-pci needs a PCI bus, and s.0 is a SCSI bus",
            ),
            (&["virtio-scsi-pci", "scsi-hd,drive=d,addr=2"], "no property `addr`"),
        ] {
            let error = plan(devices).unwrap_err();
            assert!(error.cause().contains(cause), "{error}");
        }
    }

    #[test]
    fn a_whole_device_fills_one_slot_with_function_0_last() {
        let seen = placed(&[
            "pcie-root-port,id=rp1",
            "vfio-pci,host=05:00,bus=rp1,id=card",
            "vfio-pci,host=05:00",
            "vfio-pci,host=05:00,addr=1f",
            "vfio-pci,host=01:00.0,addr=9.0,multifunction=on",
            "vfio-pci,host=01:00.1,addr=9.1",
        ]);
        let expected = [
            "rp1 pcie.0 01.0",
            "card.4 rp1 00.4",
            "card.1 rp1 00.1",
            "card rp1 00.0",
            "vfio-pci#3.4 pcie.0 02.4",
            "vfio-pci#3.1 pcie.0 02.1",
            "vfio-pci#3 pcie.0 02.0",
            "vfio-pci#4.4 pcie.0 1f.4",
            "vfio-pci#4.1 pcie.0 1f.1",
            "vfio-pci#4 pcie.0 1f.0",
            "vfio-pci#5 pcie.0 09.0",
            "vfio-pci#6 pcie.0 09.1",
        ];
        assert_eq!(seen.unwrap(), expected);
    }

    #[test]
    fn mistakes_are_found_without_a_host() {
        for (devices, code, cause) in [
            (&["vfoi-pci"][..], Code::UnknownType, "there is no device type `vfoi-pci`"),
            (&["vfio-pci,hots=01:00.0"], Code::BadProperty, "no property `hots`, did you mean `host`?"),
            (&["vfio-pci"], Code::BadProperty, "needs a device of the host"),
            (&["pcie-root-port,addr=20"], Code::BadProperty, "cannot have addr=`20`"),
            (&["pcie-root-port,id=a", "pcie-root-port,id=a"], Code::DuplicateId, "`a` is used twice"),
            (&["pcie-root-port,id=pcie.0"], Code::DuplicateId, "`pcie.0` is used twice"),
            (
                &["virtio-blk-pci,drive=a,bootindex=1,id=first", "virtio-blk-pci,drive=b,bootindex=1"],
                Code::BootindexTaken,
                "the bootindex 1 is that of first already",
            ),
            (&["pcie-root-port,bus=rp1"], Code::BadBus, "there is no bus `rp1`"),
            (&["pcie-root-port,bus=isa.0"], Code::BadBus, "isa.0 is an ISA bus"),
            (&["pcie-root-port,addr=0"], Code::BadBus, "taken by host-bridge"),
            (&["pcie-root-port,id=a", "pcie-root-port,bus=a,addr=1"], Code::BadBus, "slot 0 only"),
            (&["vfio-pci,host=01:00.1,addr=5.1"], Code::BadBus, "slot 05 of bus pcie.0 has no function 0"),
            (
                &["vfio-pci,host=01:00.0,addr=5.0,multifunction=off", "vfio-pci,host=01:00.1,addr=5.1"],
                Code::BadBus,
                "is not to have other functions",
            ),
            (&["vfio-pci,host=05:00,addr=5.1"], Code::BadBus, "start with function 0"),
            (&["vfio-pci,host=06:00"], Code::DeviceAbsent, "there is no PCI device at 0000:06:00.0"),
            (&["vfio-pci,host=01:00.0,bus=rp1", "pcie-root-port,id=rp1"], Code::BadBus, "there is no bus `rp1`"),
        ] {
            let error = placed(devices).unwrap_err();
            assert_eq!(error.code(), code, "{devices:?}: {error}");
            assert!(error.cause().contains(cause), "{devices:?}: {error}");
            assert!(error.evidence_lines().iter().any(|line| line.starts_with("--device ")), "{error}");
        }
    }

    #[test]
    fn a_running_machine_takes_devices_behind_free_ports_only() {
        let parse = |text: &str| Args::parse("--device", Some("driver"), text).unwrap();
        let host = TestTree::new().host();
        let (mut places, _) = plan(&[parse("pcie-root-port,id=rp1"), parse("pcie-root-port,id=rp2")], &host).unwrap();
        let add = |places: &mut Places, text: &str| {
            let mut next = places.clone();
            let placed = next.plan_hot(parse(text), &host, |bus| bus == "rp1")?;
            *places = next;
            Ok::<_, Error>(
                placed
                    .iter()
                    .map(|place| format!("{} {} {}", place.id, place.bus, place.addr.unwrap()))
                    .collect::<Vec<_>>(),
            )
        };
        for (text, code, cause) in [
            ("vfio-pci,host=01:00.0", Code::NoHotplug, "Bus 'pcie.0' does not support hotplugging"),
            ("vfio-pci,host=01:00.0,bus=rp2", Code::NoHotplug, "Bus 'rp2' does not support hotplugging"),
            ("pcie-root-port,bus=rp1", Code::NoHotplug, "Device 'pcie-root-port' does not support hotplugging"),
            ("vfio-pci,host=01:00.0,bus=rp3", Code::BadBus, "there is no bus `rp3`"),
            ("vfio-pci,host=01:00.0,bus=rp1,id=rp2", Code::DuplicateId, "the id `rp2` is used twice"),
        ] {
            let error = add(&mut places, text).unwrap_err();
            assert_eq!((error.code(), error.cause().starts_with(cause)), (code, true), "{text}: {error}");
        }
        assert_eq!(add(&mut places, "vfio-pci,host=01:00.0,bus=rp1,id=nic0").unwrap(), ["nic0 rp1 00.0"]);
        assert!(add(&mut places, "vfio-pci,host=02:00.0,bus=rp1").is_err(), "occupied");
        let beside = add(&mut places, "vfio-pci,host=02:00.1,bus=rp1,addr=0.1").unwrap_err();
        assert!(beside.cause().contains("function 0 already occupied by nic0"), "{beside}");
        places.free("nic0");
        assert_eq!(add(&mut places, "vfio-pci,host=01:00.0,bus=rp1,id=nic0").unwrap(), ["nic0 rp1 00.0"]);
    }

    #[test]
    fn functions_of_one_slot_come_together_or_one_by_one_with_function_0_last() {
        let tree = TestTree::new();
        ["0000:05:00.0", "0000:05:00.1"].iter().for_each(|address| tree.pci(address).add());
        let parse = |text: &str| Args::parse("--device", Some("driver"), text).unwrap();
        let (mut places, _) = plan(&[parse("pcie-root-port,id=rp1")], &tree.host()).unwrap();
        let add = |places: &mut Places, text: &str| {
            let mut next = places.clone();
            let placed = next.plan_hot(parse(text), &tree.host(), |_| true)?;
            *places = next;
            Ok::<_, Error>(
                placed.iter().map(|place| format!("{} {}", place.id, place.addr.unwrap())).collect::<Vec<_>>(),
            )
        };
        assert_eq!(add(&mut places, "vfio-pci,host=05:00,bus=rp1,id=card").unwrap(), ["card.1 00.1", "card 00.0"]);
        assert!(add(&mut places, "vfio-pci,host=05:00,bus=rp1").is_err(), "occupied");
        ["card", "card.1"].iter().for_each(|id| places.free(id));
        let second = "vfio-pci,host=05:00.1,bus=rp1,addr=0.1,id=b";
        assert_eq!(add(&mut places, second).unwrap(), ["b 00.1"]);
        let whole = add(&mut places, "vfio-pci,host=05:00,bus=rp1").unwrap_err();
        assert_eq!((whole.code(), whole.cause()), (Code::BadBus, "no slot of bus rp1 is free"));
        let alone = add(&mut places, "vfio-pci,host=05:00.0,bus=rp1,addr=0.0,multifunction=off,id=a").unwrap_err();
        assert_eq!(alone.cause(), "a is not to have other functions, and slot 00 has");
        assert_eq!(add(&mut places, "vfio-pci,host=05:00.0,bus=rp1,addr=0.0,id=a").unwrap(), ["a 00.0"]);
    }

    #[test]
    fn a_full_bus_is_an_error() {
        let error = placed(&["pcie-root-port"; 31]).unwrap_err();
        assert_eq!((error.code(), error.cause()), (Code::BadBus, "no slot of bus pcie.0 is free"));
    }

    #[test]
    fn there_are_as_many_buses_as_numbers() {
        let chain = |ports: usize| -> Vec<String> {
            let port = |n: usize| format!("pcie-root-port,id=p{n},bus=p{}", n - 1);
            std::iter::once("pcie-root-port,id=p0".to_owned()).chain((1..ports).map(port)).collect()
        };
        let words = chain(256);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(placed(&words[..255]).unwrap().len(), 255);
        assert_eq!(placed(&words).unwrap_err().cause(), "there cannot be more than 256 buses");
    }
}
