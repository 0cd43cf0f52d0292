//! The messages by which driver and device speak about ports (virtio 5.3.6.2). Pure.

/// The events (VIRTIO_CONSOLE_DEVICE_READY and so on).
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const DEVICE_REMOVE: u16 = 2;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// Bytes of a message without the name that may follow: port, event, value.
pub const LEN: usize = 8;

/// What the driver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromDriver {
    /// It can take messages, or has failed.
    DeviceReady(bool),
    /// It has set up this port, or has failed to.
    PortReady(u32, bool),
    /// A program of the guest's has opened this port, or closed it.
    PortOpen(u32, bool),
}

impl FromDriver {
    /// `None`: it is none that a device understands.
    pub fn parse(message: [u8; LEN]) -> Option<FromDriver> {
        let [a, b, c, d, event_low, event_high, value_low, value_high] = message;
        let port = u32::from_le_bytes([a, b, c, d]);
        let on = u16::from_le_bytes([value_low, value_high]) != 0;
        match u16::from_le_bytes([event_low, event_high]) {
            event::DEVICE_READY => Some(FromDriver::DeviceReady(on)),
            event::PORT_READY => Some(FromDriver::PortReady(port, on)),
            event::PORT_OPEN => Some(FromDriver::PortOpen(port, on)),
            _ => None,
        }
    }
}

/// What the device says of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToDriver {
    /// There is one more.
    Add,
    /// It is gone.
    Remove,
    /// It is a console.
    Console,
    /// Somebody is at its other end, or nobody any more.
    Open(bool),
    /// What it is called.
    Name(String),
}

impl ToDriver {
    /// The message about the port with this number.
    pub fn bytes(&self, port: u32) -> Vec<u8> {
        let (event, value): (u16, u16) = match self {
            ToDriver::Add => (event::DEVICE_ADD, 1),
            ToDriver::Remove => (event::DEVICE_REMOVE, 1),
            ToDriver::Console => (event::CONSOLE_PORT, 1),
            ToDriver::Open(open) => (event::PORT_OPEN, u16::from(*open)),
            ToDriver::Name(_) => (event::PORT_NAME, 1),
        };
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        if let ToDriver::Name(name) = self {
            bytes.extend(name.bytes());
            // QEMU ends it so, although its length would say it.
            bytes.push(0);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_little_endian() {
        assert_eq!(FromDriver::parse([0, 0, 0, 0, 0, 0, 1, 0]), Some(FromDriver::DeviceReady(true)));
        assert_eq!(FromDriver::parse([2, 1, 0, 0, 3, 0, 0, 0]), Some(FromDriver::PortReady(258, false)));
        assert_eq!(FromDriver::parse([1, 0, 0, 0, 6, 0, 1, 0]), Some(FromDriver::PortOpen(1, true)));
        assert_eq!(FromDriver::parse([1, 0, 0, 0, 1, 0, 1, 0]), None, "only the device adds ports");
        assert_eq!(ToDriver::Add.bytes(1), [1, 0, 0, 0, 1, 0, 1, 0]);
        assert_eq!(ToDriver::Remove.bytes(1), [1, 0, 0, 0, 2, 0, 1, 0]);
        assert_eq!(ToDriver::Console.bytes(0), [0, 0, 0, 0, 4, 0, 1, 0]);
        assert_eq!(ToDriver::Open(false).bytes(3), [3, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(ToDriver::Name("ab".into()).bytes(1), [1, 0, 0, 0, 7, 0, 1, 0, b'a', b'b', 0]);
    }
}
