//! `--serial`: where the guest's serial ports go. The first is the board's own; each further one is a device `isa-serial`.

use serde_json::json;

use crate::backends::chardev::shorthand::{self, Target};
use crate::error::{Code, Error, Result};
use crate::object::Args;

/// The id of the back end that is made for the port, as QEMU has it, and the port's own name.
pub const ID: &str = "serial0";

/// Reads the option.
pub fn parse(text: &str) -> Result<Target> {
    shorthand::parse("--serial", text, ID)
}

/// The ports that a PC has.
const PORTS: usize = 4;

/// Ports after the first: their back ends and their devices. `device_key`: the key of a device's type.
///
/// # Errors
/// [`Code::Usage`]: a fifth port, or a monitor on a port that is not the first.
pub fn more(texts: &[String], device_key: &'static str) -> Result<(Vec<Args>, Vec<Args>)> {
    let (mut chardevs, mut devices) = (Vec::new(), Vec::new());
    for (index, text) in texts.iter().enumerate().skip(1) {
        let refused =
            |why: &str, fix: &str| Err(Error::new(Code::Usage, why).evidence(format!("--serial {text}")).fix(fix));
        if index >= PORTS {
            return refused("a PC has four serial ports", "take `--device pci-serial` for more");
        }
        let id = format!("serial{index}");
        let chardev = match shorthand::parse("--serial", text, &id)? {
            Target::None => continue,
            Target::Named(id) => id.to_string(),
            Target::New(new) if new.monitor => {
                return refused("only the first serial port shares its back end", "give the monitor one by --monitor");
            }
            Target::New(new) => {
                chardevs.push(new.args);
                id.clone()
            }
        };
        let device =
            json!({ device_key: "isa-serial", "chardev": chardev, "index": index, "id": format!("com{}", index + 1) });
        devices.push(Args::parse("--device", Some(device_key), &device.to_string())?);
    }
    Ok((chardevs, devices))
}

/// The name of the port's back end, if there is a port.
pub fn back_end(target: &Target) -> Option<String> {
    match target {
        Target::None => None,
        Target::Named(id) => Some(id.to_string()),
        Target::New(_) => Some(ID.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_port_is_a_device() {
        let texts: Vec<String> = ["stdio", "none", "file:/log", "chardev:c0"].map(str::to_owned).into();
        let (chardevs, devices) = more(&texts, "driver").unwrap();
        assert_eq!(chardevs.len(), 1);
        assert_eq!((chardevs[0].peek("id"), chardevs[0].peek("path")), (Some("serial2"), Some("/log")));
        let shown: Vec<_> = devices.iter().map(|device| (device.peek("chardev"), device.peek("index"))).collect();
        assert_eq!(shown, [(Some("serial2"), Some("2")), (Some("c0"), Some("3"))]);
        assert_eq!(more(&texts[..1], "driver").unwrap(), (Vec::new(), Vec::new()));
        for texts in [vec!["stdio", "mon:pty"], vec!["null"; 5], vec!["stdio", "nowhere"]] {
            let texts: Vec<String> = texts.into_iter().map(str::to_owned).collect();
            assert_eq!(more(&texts, "driver").unwrap_err().code(), Code::Usage);
        }
    }
}
