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
                /// QEMU's word: off would be the interface before virtio 1.0, which there is not
                #[name = "disable-legacy"]
                disable_legacy: $crate::object::OnOffAuto = "auto",
                /// QEMU's word: on would leave no interface at all
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
    /// Off asks for what there is not.
    pub disable_legacy: OnOffAuto,
    /// On asks for nothing at all.
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

impl PciOptions {
    /// Whether there is an interface as the user wants it.
    ///
    /// # Errors
    /// [`Code::BadProperty`].
    pub fn check(&self) -> Result<()> {
        if self.disable_modern {
            return Err(Error::new(Code::BadProperty, "virtio devices have the interface of virtio 1.0 and no other")
                .fix("leave disable-modern=on out"));
        }
        if self.disable_legacy == OnOffAuto::Off {
            return Err(Error::new(Code::BadProperty, "virtio devices have no legacy interface")
                .fix("leave disable-legacy=off out: every guest since Linux 4.0 has drivers for virtio 1.0"));
        }
        Ok(())
    }

    /// The features of the rings that are offered.
    pub(super) fn features(&self) -> u64 {
        let offered = [(self.event_idx, feature::EVENT_IDX), (self.indirect_desc, feature::INDIRECT_DESC)];
        offered.into_iter().filter(|(on, _)| *on).fold(0, |features, (_, feature)| features | feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_not_is_refused() {
        let options = PciOptions { indirect_desc: false, disable_legacy: OnOffAuto::On, ..PciOptions::default() };
        options.check().unwrap();
        assert_eq!(options.features(), feature::EVENT_IDX);
        let legacy = PciOptions { disable_legacy: OnOffAuto::Off, ..options };
        assert_eq!(legacy.check().unwrap_err().code(), Code::BadProperty);
        let nothing = PciOptions { disable_modern: true, ..options };
        assert_eq!(nothing.check().unwrap_err().code(), Code::BadProperty);
    }
}
