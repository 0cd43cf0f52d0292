//! The properties that every virtio device on PCI has.

use crate::error::{Code, Error, Result};
use crate::object::OnOffAuto;
use crate::virtio::feature;

/// Declares the properties of a virtio device: its own, then those of every virtio device on PCI, which
/// [`PciOptions`] are made of. The own ones end with a comma.
macro_rules! virtio_props {
    (
        $(#[doc = $summary:literal])+
        $vis:vis struct $Name:ident { $($own:tt)* }
    ) => {
        $crate::object::props! {
            $(#[doc = $summary])+
            $vis struct $Name {
                $($own)*
                /// Number of MSI-X vectors; 0: the pin alone; by default one for each queue and one for the configuration
                vectors: Option<$crate::object::Int<0, 1025>>,
                /// Offer suppression of interrupts and kicks by index
                #[name = "event_idx"]
                event_idx: bool = "on",
                /// Offer descriptor tables of a request's own
                #[name = "indirect_desc"]
                indirect_desc: bool = "on",
                /// Leave out the registers from before virtio 1.0; by default behind a port, where a device has none
                #[name = "disable-legacy"]
                disable_legacy: $crate::object::OnOffAuto = "auto",
                /// Leave out the registers of virtio 1.0
                #[name = "disable-modern"]
                disable_modern: bool = "off",
            }
        }

        impl $Name {
            fn pci(&self) -> $crate::virtio::pci::PciOptions {
                $crate::virtio::pci::PciOptions {
                    vectors: self.vectors.map(|vectors| vectors.get() as u16),
                    event_idx: self.event_idx,
                    indirect_desc: self.indirect_desc,
                    disable_legacy: self.disable_legacy,
                    disable_modern: self.disable_modern,
                }
            }
        }
    };
}
pub(crate) use virtio_props;

/// What the user says of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciOptions {
    /// Number of MSI-X vectors, if the user says.
    pub vectors: Option<u16>,
    /// Whether EVENT_IDX is offered.
    pub event_idx: bool,
    /// Whether INDIRECT_DESC is offered.
    pub indirect_desc: bool,
    /// Whether the legacy interface is left out; auto: behind a port.
    pub disable_legacy: OnOffAuto,
    /// Whether the modern interface is left out.
    pub disable_modern: bool,
}

impl Default for PciOptions {
    /// As where the user says nothing.
    fn default() -> PciOptions {
        PciOptions {
            vectors: None,
            event_idx: true,
            indirect_desc: true,
            disable_legacy: OnOffAuto::Auto,
            disable_modern: false,
        }
    }
}

/// The interfaces that a device has: one at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interfaces {
    /// Ports, from before virtio 1.0.
    pub legacy: bool,
    /// That of virtio 1.0.
    pub modern: bool,
}

impl PciOptions {
    /// Whether there is an interface as the user wants it.
    ///
    /// # Errors
    /// [`Code::BadProperty`].
    pub fn check(&self) -> Result<()> {
        match self.disable_modern && self.disable_legacy == OnOffAuto::On {
            true => Err(no_interface("both interfaces of the device are switched off")),
            false => Ok(()),
        }
    }

    /// The interfaces of a device: as in QEMU, it has both where it is no PCI Express endpoint. `has_legacy`: whether there
    /// is a legacy interface for devices of its kind.
    ///
    /// # Errors
    /// [`Code::BadProperty`]: none is left.
    pub(super) fn interfaces(&self, behind_port: bool, has_legacy: bool) -> Result<Interfaces> {
        let legacy = match self.disable_legacy {
            OnOffAuto::On => false,
            OnOffAuto::Auto => has_legacy && !behind_port,
            OnOffAuto::Off if has_legacy => true,
            OnOffAuto::Off => return Err(no_interface("the device has no legacy interface")),
        };
        match (legacy, !self.disable_modern) {
            (false, false) if has_legacy => {
                Err(no_interface("behind a port a device has no legacy interface by itself")
                    .fix("write disable-legacy=off, too"))
            }
            (false, false) => Err(no_interface("the device has the modern interface only")),
            (legacy, modern) => Ok(Interfaces { legacy, modern }),
        }
    }

    /// The features of the transport and the rings that are offered.
    pub(super) fn features(&self, interfaces: Interfaces) -> u64 {
        let offered = [
            (self.event_idx, feature::EVENT_IDX),
            (self.indirect_desc, feature::INDIRECT_DESC),
            (interfaces.modern, feature::VERSION_1),
        ];
        offered.into_iter().filter(|(on, _)| *on).fold(0, |features, (_, feature)| features | feature)
    }
}

fn no_interface(cause: &str) -> Error {
    Error::new(Code::BadProperty, cause)
        .evidence("disable-legacy leaves out the interface before virtio 1.0, disable-modern that of virtio 1.0")
        .fix("leave disable-modern=on or disable-legacy= out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_those_that_qemu_has() {
        use OnOffAuto::{Auto, Off, On};
        let table = [
            // disable-legacy, disable-modern, behind a port, legacy exists: legacy, modern
            (Auto, false, false, true, Some((true, true))),
            (Auto, false, true, true, Some((false, true))),
            (Auto, false, false, false, Some((false, true))),
            (Off, false, true, true, Some((true, true))),
            (Off, false, false, false, None),
            (On, false, false, true, Some((false, true))),
            (Auto, true, false, true, Some((true, false))),
            (Off, true, true, true, Some((true, false))),
            (Auto, true, true, true, None),
            (Auto, true, false, false, None),
            (On, true, false, true, None),
        ];
        for (disable_legacy, disable_modern, port, exists, expected) in table {
            let options = PciOptions { disable_legacy, disable_modern, ..PciOptions::default() };
            let found = options.interfaces(port, exists);
            assert_eq!(found.map(|it| (it.legacy, it.modern)).ok(), expected, "{options:?} {port} {exists}");
        }
        let none = PciOptions { disable_legacy: On, disable_modern: true, ..PciOptions::default() };
        assert_eq!(none.check().unwrap_err().code(), Code::BadProperty);
    }

    #[test]
    fn features_follow_the_interfaces() {
        let options = PciOptions { indirect_desc: false, ..PciOptions::default() };
        let both = Interfaces { legacy: true, modern: true };
        assert_eq!(options.features(both), feature::EVENT_IDX | feature::VERSION_1);
        assert_eq!(options.features(Interfaces { modern: false, ..both }), feature::EVENT_IDX);
    }
}
