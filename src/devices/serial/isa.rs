//! `isa-serial`: one of a PC's four serial ports, or one at ports and an interrupt that the user chooses.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{PORTS, Serial};
use crate::backends::chardev::Chardev;
use crate::backends::table::Claim;
use crate::device::{AnyDevice, Cx, Device, ISA, Plug, Unit, UnitBus};
use crate::devices::isa::{IRQS, IsaBus, IsaPorts};
use crate::error::{Code, Error, Result};
use crate::object::{ChardevRef, Create, Int, TypeInfo, props};

/// First port and interrupt of COM1 to COM4.
const COM: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<IsaSerialType>();

props! {
    /// Serial port (16550A) of a PC.
    struct IsaSerialProps {
        /// Where its bytes go and come from
        chardev: ChardevRef,
        /// Which of COM1 to COM4 it is, from 0; by default the first that is free
        index: Option<Int<0, 3>>,
        /// Its first port, in the place of that of index
        iobase: Option<Int<0x100, 0x3f8>>,
        /// Its interrupt, in the place of that of index
        irq: Option<Int<3, 12>>,
    }
}

struct IsaSerialType;

impl Create<Plug, Cx> for IsaSerialType {
    const NAME: &'static str = "isa-serial";
    const GROUP: &'static str = "Character devices";
    const BUS: Option<&'static str> = Some(ISA);
    type Props = IsaSerialProps;

    fn check(props: &IsaSerialProps) -> Result<()> {
        match props.irq.is_none_or(|irq| IRQS.map(u64::from).contains(&irq.get())) {
            true => Ok(()),
            false => Err(Error::new(Code::BadProperty, "irq= is 3, 4, 5, 7, 10, 11 or 12")),
        }
    }

    fn create(props: IsaSerialProps, cx: &Cx) -> Result<Plug> {
        let Some(UnitBus::Isa(bus)) = &cx.bus else {
            return Err(Error::new(Code::BadBus, format!("{} needs an {ISA} bus", cx.id)));
        };
        let free = || COM.iter().position(|(port, _)| bus.is_free(*port));
        let index = props.index.map(|index| index.get() as usize).or_else(free);
        let Some((port, irq)) = index.map(|index| COM[index]).or(props.iobase.map(|_| COM[0])) else {
            return Err(Error::new(Code::BadBus, "COM1 to COM4 are taken").fix("choose others by iobase= and irq="));
        };
        let port = props.iobase.map_or(port, |iobase| iobase.get() as u16);
        let irq = props.irq.map_or(irq, |irq| irq.get() as u8);
        let chardev = cx.backends.chardevs.claim(props.chardev.as_str(), &cx.id)?;
        let line = bus.line(irq);
        let serial = Serial::new(chardev.back().clone(), move |high| line.set(high));
        let unit = IsaSerial { id: cx.id.clone(), bus: bus.clone(), port, serial, ports: Mutex::default(), chardev };
        Ok(Plug { device: AnyDevice::Unit(Arc::new(unit)), adds: None })
    }
}

/// The port.
struct IsaSerial {
    id: Arc<str>,
    bus: Arc<IsaBus>,
    port: u16,
    /// While it is on its bus.
    ports: Mutex<Option<IsaPorts>>,
    serial: Arc<Serial>,
    /// The last: the port lets go of the back end before it is given back.
    chardev: Claim<dyn Chardev>,
}

impl Device for IsaSerial {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.serial.reset();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("chardev", self.chardev.name().to_string())]
    }
}

impl Unit for IsaSerial {
    fn addr(&self) -> String {
        format!("{:#x}", self.port)
    }

    fn attach(self: Arc<Self>) -> Result<()> {
        let ports = self.bus.attach(&self.id, self.port, PORTS as u16, self.serial.clone())?;
        *self.ports.lock() = Some(ports);
        Ok(())
    }

    fn detach(&self) {
        let ports = self.ports.lock().take();
        drop(ports);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::Backends;
    use crate::backends::chardev::testing::Recorder;
    use crate::memory::Space;
    use crate::object::Args;
    use crate::pci::testing::Bench;

    #[test]
    fn the_ports_of_a_pc_one_after_the_other() {
        let bench = Bench::new();
        let bus = IsaBus::new(bench.memory.clone(), bench.router.clone());
        bus.keep(0x3f8, 8, "serial0");
        let backends = Arc::new(Backends::default());
        let make = |name: &'static str, more: &str| {
            let recorder = Arc::new(Recorder::default());
            backends.chardevs.add(name.into(), "null", recorder.clone(), false).unwrap();
            let mut cx = bench.cx(name, &backends);
            cx.bus = Some(UnitBus::Isa(bus.clone()));
            let mut args = Args::parse("--device", None, &format!("chardev={name}{more}")).unwrap();
            let AnyDevice::Unit(unit) = TYPE.create(&mut args, &cx)?.device else { panic!("no unit") };
            unit.clone().attach()?;
            Ok::<_, Error>((unit, recorder))
        };
        let (second, recorder) = make("c1", "").unwrap();
        assert_eq!(second.addr(), "0x2f8");
        bench.memory.write(Space::Pio, 0x2f8, b"x");
        assert_eq!(*recorder.bytes.lock(), b"x");
        assert_eq!(make("c2", "").unwrap().0.addr(), "0x3e8");
        assert_eq!(make("c3", ",iobase=0x200,irq=5").unwrap().0.addr(), "0x200");
        assert_eq!(make("c4", ",index=0").map(drop).unwrap_err().code(), Code::BadBus);
        assert_eq!(make("c5", ",irq=6").map(drop).unwrap_err().code(), Code::BadProperty);
        second.detach();
        assert_eq!(make("c6", "").unwrap().0.addr(), "0x2f8");
    }
}
