//! The tables of types: what `-M` and `--device` choose from, and what `help` is made of.

use super::plug::{Cx, Plug};
use crate::error::Result;
use crate::object::{Common, Create, Props, Registry, TypeInfo, props};
use crate::pci::root_port::RootPort;

/// The device types of `--device`, grouped as help lists them.
pub static DEVICES: Registry<Plug, Cx> =
    Registry { what: "device type", option: "--device", key: "driver", common: Common::TABLE, types: &[&ROOT_PORT] };

/// The machine types of `-M`.
pub static MACHINES: Registry<Q35, ()> =
    Registry { what: "machine type", option: "-M", key: "type", common: &[], types: &[&Q35_TYPE] };

static ROOT_PORT: TypeInfo<Plug, Cx> = TypeInfo::of::<RootPortType>();
static Q35_TYPE: TypeInfo<Q35, ()> = TypeInfo::of::<Q35Type>();

props! {
    /// PC with PCI Express: bus pcie.0, ACPI, no firmware.
    pub struct Q35 {
        /// Offer configuration mechanism 1 (ports 0xcf8 and 0xcfc) beside the ECAM, which takes half of the exits
        cf8: bool = "off",
        /// Let the guest read the configuration space of emulated functions without an exit
        #[name = "config-pages"]
        config_pages: bool = "on",
    }
}

struct Q35Type;

impl Create<Q35, ()> for Q35Type {
    const NAME: &'static str = "q35";
    const GROUP: &'static str = "Machines";
    type Props = Q35;

    fn create(props: Q35, (): &()) -> Result<Q35> {
        Ok(props)
    }
}

props! {
    /// PCI Express root port: a slot of its own for one device.
    struct RootPortProps {
        /// Number of the slot that the guest shows to people; 0: the next one that is free
        slot: u16 = "0",
    }
}

struct RootPortType;

impl Create<Plug, Cx> for RootPortType {
    const NAME: &'static str = "pcie-root-port";
    const GROUP: &'static str = "Bridges";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = RootPortProps;

    fn create(props: RootPortProps, cx: &Cx) -> Result<Plug> {
        let slot = if props.slot == 0 { cx.next_slot } else { props.slot };
        let port = RootPort::new(&cx.id, slot, &cx.decode, &cx.router)?;
        let bus = port.bus().clone();
        Ok(Plug { function: port, adds: Some(bus) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_registry;

    #[test]
    fn the_tables_are_sound() {
        check_registry(&DEVICES);
        check_registry(&MACHINES);
    }
}
