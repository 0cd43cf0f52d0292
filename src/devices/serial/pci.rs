//! `pci-serial`: a serial port behind a PCI function, with its registers in a BAR of ports and its interrupt on INTA.

use std::sync::Arc;

use super::{PORTS, Serial};
use crate::backends::chardev::Chardev;
use crate::backends::table::Claim;
use crate::device::{Cx, Device, Plug};
use crate::error::Result;
use crate::memory::{Backing, HostSlice, Piece};
use crate::object::{ChardevRef, Create, TypeInfo, props};
use crate::pci::pin::Pin;
use crate::pci::regs::{
    CLASS, COMMAND, COMMAND_INTX_DISABLE, COMMAND_IO, DEVICE, INTERRUPT_PIN, REVISION, SUBSYSTEM, SUBSYSTEM_VENDOR,
    VENDOR,
};
use crate::pci::{BarContent, BarKind, Changes, ConfigSpace, PciCore, PciFunction};

/// Red Hat's serial port, which guests know by its class, and its subsystem's ids on virtual machines.
const IDS: (u16, u16) = (0x1b36, 0x0002);
const SUBSYSTEM_IDS: (u16, u16) = (0x1af4, 0x1100);
const REVISION_1: u8 = 1;
/// Serial controller, class 07 subclass 00, interface 02: 16550 (PCI appendix D).
const CLASS_SERIAL: [u8; 3] = [2, 0, 7];
/// INTA, as the register numbers the pins.
const INTA: u8 = 1;

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<PciSerialType>();

props! {
    /// Serial port (16550A) behind a PCI function.
    struct PciSerialProps {
        /// Where its bytes go and come from
        chardev: ChardevRef,
    }
}

struct PciSerialType;

impl Create<Plug, Cx> for PciSerialType {
    const NAME: &'static str = "pci-serial";
    const GROUP: &'static str = "Character devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = PciSerialProps;

    fn create(props: PciSerialProps, cx: &Cx) -> Result<Plug> {
        let chardev = cx.backends.chardevs.claim(props.chardev.as_str(), &cx.id)?;
        Ok(Plug::function(PciSerial::new(cx, chardev)))
    }
}

/// The function.
struct PciSerial {
    id: Arc<str>,
    core: Arc<PciCore>,
    pin: Arc<Pin>,
    serial: Arc<Serial>,
    /// The last: the port lets go of the back end before it is given back.
    chardev: Claim<dyn Chardev>,
}

impl PciSerial {
    fn new(cx: &Cx, chardev: Claim<dyn Chardev>) -> Arc<PciSerial> {
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set_u8(REVISION, REVISION_1);
        config.set(CLASS, &CLASS_SERIAL);
        config.set_u16(SUBSYSTEM_VENDOR, SUBSYSTEM_IDS.0);
        config.set_u16(SUBSYSTEM, SUBSYSTEM_IDS.1);
        config.set_u8(INTERRUPT_PIN, INTA);
        config.allow(COMMAND, &(COMMAND_IO | COMMAND_INTX_DISABLE).to_le_bytes());
        let core = Arc::new(PciCore::new(cx.id.clone(), config, None, None));
        let pin = Arc::new(Pin::new(core.clone(), cx.router.clone()));
        let driven = pin.clone();
        let serial = Serial::new(chardev.back().clone(), move |high| driven.set(high));
        Arc::new(PciSerial { id: cx.id.clone(), core, pin, serial, chardev })
    }
}

impl Device for PciSerial {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
        self.serial.reset();
        self.pin.settle();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("chardev", self.chardev.name().to_string())]
    }

    fn unplug(&self) {
        self.pin.set(false);
    }
}

impl PciFunction for PciSerial {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        (index == 0).then(|| BarContent {
            name: format!("{} BAR0", self.id).into(),
            size: PORTS,
            kind: BarKind::Io,
            prefetchable: false,
            pieces: vec![Piece { range: 0..PORTS, backing: Backing::io(self.serial.clone()) }],
        })
    }

    fn changed(&self, what: Changes) {
        if what.contains(Changes::RESET) {
            self.serial.reset();
        }
        if what.intersects(Changes::INTX_DISABLE | Changes::RESET) {
            self.pin.settle();
        }
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core().with(|config| config.mirror(Some(page.clone())));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::uart::{IER_DLM, LCR, RBR_THR_DLL};
    use super::*;
    use crate::backends::Backends;
    use crate::backends::chardev::testing::Recorder;
    use crate::irq::testing::Recorder as Chip;
    use crate::memory::Space;
    use crate::object::Args;
    use crate::pci::regs::{BAR0, STATUS, STATUS_INTERRUPT};
    use crate::pci::testing::Bench;

    #[test]
    fn a_guest_speaks_by_its_ports_and_hears_by_its_pin() {
        let bench = Bench::new();
        let chip = Arc::new(Chip::default());
        bench.router.set_chip(chip.clone()).unwrap();
        chip.take();
        let backends = Arc::new(Backends::default());
        let recorder = Arc::new(Recorder::default());
        backends.chardevs.add("c0".into(), "null", recorder.clone(), false).unwrap();
        let cx = bench.cx("serial1", &backends);
        let mut args = Args::parse("--device", None, "chardev=c0").unwrap();
        let Plug { device, .. } = TYPE.create(&mut args, &cx).unwrap();
        let function = device.as_function().unwrap().clone();
        drop(device);
        let slot = bench.root.bus().attach(function.clone(), Some("05.0")).unwrap();
        let gsi = function.core().gsi().unwrap();

        bench.write(0, "5", BAR0, 0x1000, 4);
        bench.write(0, "5", COMMAND, u32::from(COMMAND_IO), 2);
        let port = |register: u8, value: u8| bench.memory.write(Space::Pio, 0x1000 + u64::from(register), &[value]);
        port(LCR, 3);
        b"hello".iter().for_each(|byte| port(RBR_THR_DLL, *byte));
        assert_eq!(*recorder.bytes.lock(), b"hello");
        port(IER_DLM, 1);
        recorder.front.get().unwrap().input(b"x");
        assert_eq!(chip.take(), [format!("level {gsi} true")]);
        assert_ne!(function.core().with(|config| config.u16(STATUS)) & STATUS_INTERRUPT, 0);

        bench.write(0, "5", COMMAND, u32::from(COMMAND_IO | COMMAND_INTX_DISABLE), 2);
        assert_eq!(chip.take(), [format!("level {gsi} false")]);
        bench.write(0, "5", COMMAND, u32::from(COMMAND_IO), 2);
        let mut byte = [0];
        bench.memory.read(Space::Pio, 0x1000, &mut byte);
        assert_eq!((&byte, chip.take()), (b"x", vec![format!("level {gsi} true"), format!("level {gsi} false")]));

        assert!(backends.chardevs.claim("c0", "another").is_err());
        drop(slot);
        function.unplug();
        drop(function);
        backends.chardevs.claim("c0", "another").unwrap();
    }
}
