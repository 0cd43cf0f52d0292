//! The device types `virtio-serial-pci`, `virtconsole` and `virtserialport`: their properties, and how they are made.

use super::port::{Options, Port};
use super::{Serial, SerialBus};
use crate::device::{Adds, AnyDevice, Cx, Plug, SERIAL, UnitBus};
use crate::error::{Code, Error, Result};
use crate::object::{ChardevRef, Create, Int, TypeInfo, props};
use crate::virtio::pci::{self, virtio_props};

/// The rows of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<SerialType>();
pub static CONSOLE: TypeInfo<Plug, Cx> = TypeInfo::of::<ConsoleType>();
pub static PORT: TypeInfo<Plug, Cx> = TypeInfo::of::<PortType>();

/// The longest name of a port: what a driver has room for beside the message's header.
const MAX_NAME: usize = 255;

virtio_props! {
    /// A bus for consoles and serial ports of virtio.
    struct SerialProps {
        /// How many ports it can have
        #[name = "max_ports"]
        max_ports: Int<1, 511> = "31",
    }
}

struct SerialType;

impl Create<Plug, Cx> for SerialType {
    const NAME: &'static str = "virtio-serial-pci";
    const GROUP: &'static str = "Character devices";
    const BUS: Option<&'static str> = Some("PCI");
    const ADDS_BUS: Option<&'static str> = Some(SERIAL);
    type Props = SerialProps;

    fn check(props: &SerialProps) -> Result<()> {
        props.pci().check()
    }

    fn create(props: SerialProps, cx: &Cx) -> Result<Plug> {
        let max_ports = props.max_ports.get();
        let bus = SerialBus::new(cx.adds.clone(), cx.id.clone(), max_ports as u32);
        let mut options = props.pci();
        // As in QEMU: with one for each queue a device without ports would have as many as a fast disk.
        options.vectors = options.vectors.or(Some(max_ports as u16 + 1));
        let plug = pci::plug(Serial::new(cx.id.clone(), bus.clone()), &options, cx)?;
        Ok(Plug { adds: Some(Adds::Units(UnitBus::Serial(bus))), ..plug })
    }
}

props! {
    /// A console on a virtio serial bus.
    struct ConsoleProps {
        /// Where its bytes go and come from
        chardev: ChardevRef,
        /// Its number on the bus; by default the first that is free
        nr: Option<Int<0, 510>>,
        /// The name that the guest finds it by
        name: Option<String>,
    }
}

props! {
    /// A serial port on a virtio serial bus.
    struct PortProps {
        /// Where its bytes go and come from
        chardev: ChardevRef,
        /// Its number on the bus; by default the first that is free; 0 is kept for a console
        nr: Option<Int<1, 510>>,
        /// The name that the guest finds it by: /dev/virtio-ports/NAME in Linux
        name: Option<String>,
    }
}

fn check_name(name: Option<&str>) -> Result<()> {
    match name.is_none_or(|name| (1..=MAX_NAME).contains(&name.len())) {
        true => Ok(()),
        false => Err(Error::new(Code::BadProperty, format!("a port's name has 1 to {MAX_NAME} bytes"))),
    }
}

/// Makes a port for the bus that it goes to.
fn plug(cx: &Cx, chardev: &ChardevRef, number: Option<u64>, name: Option<String>, console: bool) -> Result<Plug> {
    let Some(UnitBus::Serial(bus)) = &cx.bus else {
        return Err(Error::new(Code::BadBus, format!("{} needs a {SERIAL}", cx.id)));
    };
    let chardev = cx.backends.chardevs.claim(chardev.as_str(), &cx.id)?;
    let options = Options { id: cx.id.clone(), number: number.map(|number| number as u32), name, console };
    let port = Port::new(options, bus.clone(), cx.tell.clone(), chardev);
    Ok(Plug { device: AnyDevice::Unit(port), adds: None })
}

struct ConsoleType;

impl Create<Plug, Cx> for ConsoleType {
    const NAME: &'static str = "virtconsole";
    const GROUP: &'static str = "Character devices";
    const BUS: Option<&'static str> = Some(SERIAL);
    type Props = ConsoleProps;

    fn check(props: &ConsoleProps) -> Result<()> {
        check_name(props.name.as_deref())
    }

    fn create(props: ConsoleProps, cx: &Cx) -> Result<Plug> {
        plug(cx, &props.chardev, props.nr.map(|nr| nr.get()), props.name, true)
    }
}

struct PortType;

impl Create<Plug, Cx> for PortType {
    const NAME: &'static str = "virtserialport";
    const GROUP: &'static str = "Character devices";
    const BUS: Option<&'static str> = Some(SERIAL);
    type Props = PortProps;

    fn check(props: &PortProps) -> Result<()> {
        check_name(props.name.as_deref())
    }

    fn create(props: PortProps, cx: &Cx) -> Result<Plug> {
        plug(cx, &props.chardev, props.nr.map(|nr| nr.get()), props.name, false)
    }
}
