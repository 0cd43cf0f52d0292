//! The reset planner: which reset puts a function into the state after power-on, and whom else it would hit.
//!
//! [`plan`] is pure. It is asked twice: before anything is opened, with what sysfs says ([`Host::reset_plan`], printed by
//! `passthru inspect`), and while a guest runs, with what VFIO says (VFIO_DEVICE_GET_PCI_HOT_RESET_INFO).
//!
//! A function-level reset hits nobody else and is taken wherever there is one; the reset of a slot or a bus is taken only
//! if all that it hits is ours. (Kernel: drivers/pci/pci.c, `pci_reset_fn_methods` and `pci_reset_bus`; PCIe 6.6.)
//!
//! A change of the power state comes last, and only where no slot or bus can be reset: the specification lets a function
//! keep more than its configuration through it, and some keep everything. QEMU's e1000e does: left receiving by a guest
//! that was killed, it writes into the memory of the next one as soon as that switches bus mastering on (seen in the lab).

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::quirks::{self, Kind};
use super::{Host, PciDevice, read};
use crate::bdf::Bdf;

/// A way in which the kernel can reset one function, by the name that the attribute `reset_method` has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Code of the kernel for this very device.
    DeviceSpecific,
    /// The firmware's method `_RST`.
    Acpi,
    /// Function-level reset (PCIe 6.6.2).
    Flr,
    /// The same for conventional functions (Advanced Features capability).
    AfFlr,
    /// Through D3hot and back to D0 (PCIe 5.3.1.4).
    Pm,
    /// Reset of the bus above, which this function has for itself.
    Bus,
    /// The same below a CXL port.
    CxlBus,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 7] =
        [Method::DeviceSpecific, Method::Acpi, Method::Flr, Method::AfFlr, Method::Pm, Method::Bus, Method::CxlBus];

    /// The method of this name; `None`: one that is not known yet.
    pub fn parse(name: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Method::DeviceSpecific => "device_specific",
            Method::Acpi => "acpi",
            Method::Flr => "flr",
            Method::AfFlr => "af_flr",
            Method::Pm => "pm",
            Method::Bus => "bus",
            Method::CxlBus => "cxl_bus",
        }
    }

    /// Whether it needs a bus on which there is no other function. The kernel lists it for each function of a card that
    /// it saw before the others, and then refuses it.
    fn needs_the_bus_alone(self) -> bool {
        matches!(self, Method::Bus | Method::CxlBus)
    }

    /// Whether a hot reset is better. What has no No_Soft_Reset bit loses its configuration between D3hot and D0, but nothing
    /// says what else it loses (PCIe 5.3.1.4). A function that is `alone` on its bus and has only this one of `methods` was
    /// not given the bus's, by the kernel or by its owner.
    fn gives_way(self, methods: &[Method], alone: impl FnOnce() -> bool) -> bool {
        self == Method::Pm && (!alone() || methods.iter().any(|method| method.needs_the_bus_alone()))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a hot reset resets: everything in a slot that can be plugged, else everything behind a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The functions of one slot.
    Slot,
    /// All that is behind the bridge above.
    Bus,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Slot => "slot",
            Scope::Bus => "bus",
        })
    }
}

/// A function that a hot reset hits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// Its address.
    pub bdf: Bdf,
    /// Whether it is ours: on vfio-pci before the start, in a group of this process while a guest runs.
    pub owned: bool,
    /// Its driver, where that is known.
    pub driver: Option<String>,
}

/// What is known about the resets of a function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ResetFacts {
    /// The kernel's methods for the function alone, in the order in which it tries them; `None`: it does not say (before
    /// Linux 5.15).
    pub methods: Option<Vec<Method>>,
    /// Methods that are known not to work on this device.
    pub distrusted: Vec<Method>,
    /// What a hot reset would be; `None`: there is no bridge above, it is a virtual function, or it does not survive one.
    pub scope: Option<Scope>,
    /// All functions that a hot reset hits, the function itself among them.
    pub affected: Vec<Affected>,
}

/// What the kernel's reset of a function alone is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    /// The state after power-on.
    Thorough,
    /// It may leave the function as it is: the slot's or the bus's reset is better.
    Doubtful,
    /// There is none.
    Impossible,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reset", rename_all = "snake_case")]
pub enum Verdict {
    /// VFIO_DEVICE_RESET: the kernel resets this function and nothing else.
    Function {
        /// By this method; `None`: the kernel does not say which.
        method: Option<Method>,
    },
    /// VFIO_DEVICE_PCI_HOT_RESET: this function and others, all of them ours.
    Hot {
        /// What is reset.
        scope: Scope,
        /// The others.
        with: Vec<Bdf>,
    },
    /// There is none: the device keeps the state of its last use.
    None {
        /// Functions that a hot reset would hit and that are not ours; empty: a hot reset is not possible at all.
        blockers: Vec<Affected>,
    },
}

/// Chooses the reset.
pub fn plan(bdf: Bdf, facts: &ResetFacts) -> Verdict {
    let alone = facts.scope.is_some() && facts.affected.iter().all(|other| other.bdf == bdf);
    let function = match &facts.methods {
        None => Some(None),
        // The kernel takes the first that works: if that one is not to be trusted, the rest is of no use.
        Some(methods) => methods.iter().copied().find(|method| alone || !method.needs_the_bus_alone()).map(Some),
    };
    let doubtful = |method: Method| {
        facts.distrusted.contains(&method) || method.gives_way(facts.methods.as_deref().unwrap_or_default(), || alone)
    };
    if let Some(method) = function
        && method.is_none_or(|method| !doubtful(method))
    {
        return Verdict::Function { method };
    }
    let others = || facts.affected.iter().filter(|other| other.bdf != bdf);
    let blockers: Vec<Affected> = others().filter(|other| !other.owned).cloned().collect();
    match facts.scope {
        Some(scope) if blockers.is_empty() && !facts.affected.is_empty() => {
            Verdict::Hot { scope, with: others().map(|other| other.bdf).collect() }
        }
        // Better one that may not do everything than none.
        _ if function.is_some() => Verdict::Function { method: function.flatten() },
        Some(_) => Verdict::None { blockers },
        None => Verdict::None { blockers: Vec::new() },
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Function { method: Some(method) } => write!(f, "{method}, of this function alone"),
            Verdict::Function { method: None } => f.write_str("the kernel's choice, of this function alone"),
            Verdict::Hot { scope, with } if with.is_empty() => write!(f, "hot reset of the {scope}"),
            Verdict::Hot { scope, with } => {
                let names: Vec<String> = with.iter().map(Bdf::to_string).collect();
                write!(f, "hot reset of the {scope}, together with {}", names.join(", "))
            }
            Verdict::None { blockers } if blockers.is_empty() => f.write_str("none: neither alone nor with its bus"),
            Verdict::None { blockers } => {
                let drivers = blockers.iter().map(|other| match &other.driver {
                    Some(driver) => format!("{} (driver {driver})", other.bdf),
                    None => format!("{} (not bound)", other.bdf),
                });
                write!(f, "none: a hot reset would also hit {}", drivers.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// A plan and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResetPlan {
    /// What was known.
    #[serde(flatten)]
    pub facts: ResetFacts,
    /// What follows.
    pub verdict: Verdict,
}

impl Host {
    /// The plan for a function as sysfs shows it: ours is what is on vfio-pci.
    pub fn reset_plan(&self, device: &PciDevice) -> ResetPlan {
        self.reset_plan_among(device, &self.devices())
    }

    /// The same, where `all` functions of the host have been read already.
    pub fn reset_plan_among(&self, device: &PciDevice, all: &[PciDevice]) -> ResetPlan {
        let facts = self.reset_facts(device, all);
        ResetPlan { verdict: plan(device.bdf, &facts), facts }
    }

    /// How the kernel resets a function without its neighbours, as [`plan`] sees it. Asked at each start, hence by as few
    /// files as will do.
    pub fn resets_alone(&self, bdf: Bdf) -> Alone {
        let at = self.device_path(bdf);
        let Some(names) = read::text(at.join("reset_method")) else {
            return if at.join("reset").exists() { Alone::Thorough } else { Alone::Impossible };
        };
        let neighbours = || self.addresses().into_iter().filter(|it| (it.domain, it.bus) == (bdf.domain, bdf.bus));
        let methods: Vec<Method> = names.split_whitespace().filter_map(Method::parse).collect();
        let alone = || neighbours().count() == 1;
        let id = |name: &str| read::hex(at.join(name)).unwrap_or_default();
        match methods.iter().copied().find(|method| !method.needs_the_bus_alone() || alone()) {
            None => Alone::Impossible,
            Some(method) if method.gives_way(&methods, alone) => Alone::Doubtful,
            Some(method) => {
                let (vendor, device, class) = (id("vendor") as u16, id("device") as u16, (id("class") >> 16) as u8);
                if distrusted(vendor, device, class).contains(&method) { Alone::Doubtful } else { Alone::Thorough }
            }
        }
    }

    fn reset_facts(&self, device: &PciDevice, all: &[PciDevice]) -> ResetFacts {
        let at = self.device_path(device.bdf);
        // Where there is no method there is neither attribute; before Linux 5.15 there is `reset` alone.
        let methods = match (at.join("reset_method").exists(), at.join("reset").exists()) {
            (false, true) => None,
            _ => Some(device.reset_methods.iter().filter_map(|name| Method::parse(name)).collect()),
        };
        let distrusted = distrusted(device.vendor, device.device, (device.class >> 16) as u8);
        let bus_reset = device.physfn.is_none() && !distrusted.contains(&Method::Bus);
        let bridge = self.bridge_above(device.bdf).filter(|_| bus_reset);
        let Some((_, folder)) = bridge else { return ResetFacts { methods, distrusted, ..ResetFacts::default() } };
        let scope = if self.in_hotplug_slot(device.bdf) { Scope::Slot } else { Scope::Bus };
        let hit = |other: &&PciDevice| {
            let below =
                read::real(self.device_path(other.bdf)).is_some_and(|path| path != folder && path.starts_with(&folder));
            let same_slot = (other.bdf.bus, other.bdf.device) == (device.bdf.bus, device.bdf.device);
            // What is behind a bridge in the slot has another bus number, and is reset with it.
            below && (scope == Scope::Bus || same_slot || other.bdf.bus != device.bdf.bus)
        };
        let affected = all.iter().filter(hit).map(|other| Affected {
            bdf: other.bdf,
            // VFIO also refuses where a bridge is among them, which never is on vfio-pci.
            owned: other.on_vfio(),
            driver: other.driver.clone(),
        });
        ResetFacts { methods, distrusted, scope: Some(scope), affected: affected.collect() }
    }

    /// The bridge that a function is behind, with its folder in sysfs.
    pub fn bridge_above(&self, bdf: Bdf) -> Option<(Bdf, std::path::PathBuf)> {
        let real = read::real(self.device_path(bdf))?;
        let folder = real.parent()?;
        Some((read::name_of(folder)?.parse().ok()?, folder.to_owned()))
    }

    /// Whether the function's slot can be plugged (attribute `address`, without the function's number).
    fn in_hotplug_slot(&self, bdf: Bdf) -> bool {
        let address = format!("{:04x}:{:02x}:{:02x}", bdf.domain, bdf.bus, bdf.device);
        let slots = self.sys("bus/pci/slots");
        let has = |slot: &Path| read::text(slot.join("address")).as_deref() == Some(address.as_str());
        read::names(&slots).iter().any(|name| has(&slots.join(name)))
    }
}

/// Methods that the table of quirks says not to work; `class`: base class.
fn distrusted(vendor: u16, device: u16, class: u8) -> Vec<Method> {
    let of_kind = |kind: &Kind| match kind {
        Kind::NoFlr => &[Method::Flr, Method::AfFlr][..],
        Kind::NoPmReset => &[Method::Pm],
        Kind::NoBusReset => &[Method::Bus, Method::CxlBus],
        _ => &[],
    };
    quirks::of(vendor, device, class).flat_map(|quirk| of_kind(&quirk.kind)).copied().collect()
}

#[cfg(test)]
mod tests;
