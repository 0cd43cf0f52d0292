//! What `host=` means: a name of devices.d stands for an address, and `host=01:00` without a function is one line of the command line that means every function of a device of the host,
//! together in one slot of the guest.

use super::types::DEVICES;
use crate::bdf::DeviceAddr;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::names::DeviceRef;
use crate::object::Args;
use crate::vfio::front_end;

/// Properties that mean one function only, and then the first: a ROM is the card's, and so is its legacy VGA.
const OF_THE_FIRST: [&str; 3] = ["rom", "romfile", "x-vga"];

/// One function of what a line means.
pub struct Function {
    /// Its number in the guest's slot, which is its number on the host; `None`: the line means one function, and says
    /// itself where it goes.
    pub number: Option<u8>,
    /// Its properties.
    pub args: Args,
}

/// The functions that a line means, ascending: the line itself, unless it passes a whole device.
///
/// # Errors
/// [`Code::DeviceAbsent`] if the host has no such device, [`Code::BadProperty`] if its functions cannot go together, those
/// of [`Host::locate`] for a name.
pub fn expand(args: Args, host: &Host) -> Result<Vec<Function>> {
    let args = with_address(args, host)?;
    let whole = || {
        let addr: DeviceAddr = args.peek("host").filter(|_| is_vfio(&args))?.parse().ok()?;
        addr.function.is_none().then_some(addr)
    };
    let Some(addr) = whole() else { return Ok(vec![Function { number: None, args }]) };
    let functions = host.functions(addr).map_err(|error| error.evidence(args.written()))?;
    let one = |bdf: crate::bdf::Bdf| {
        let mut args = args.clone().with("host", &bdf.to_string());
        if bdf.function != 0 {
            OF_THE_FIRST.iter().for_each(|key| drop(args.take(key)));
        }
        args
    };
    match functions.as_slice() {
        [only] => Ok(vec![Function { number: None, args: one(*only) }]),
        [first, ..] if first.function == 0 => {
            Ok(functions.iter().map(|bdf| Function { number: Some(bdf.function), args: one(*bdf) }).collect())
        }
        _ => {
            Err(Error::new(Code::BadProperty, format!("{addr} has no function 0, which a guest would look for first"))
                .evidence(args.written())
                .fix("pass its functions one by one"))
        }
    }
}

fn is_vfio(args: &Args) -> bool {
    args.peek(DEVICES.key) == Some(front_end::NAME)
}

/// The line with the device's address in the place of its name, if it has one.
fn with_address(args: Args, host: &Host) -> Result<Args> {
    let named = args.peek("host").filter(|_| is_vfio(&args)).and_then(|word| word.parse().ok());
    let Some(named @ DeviceRef::Name(_)) = named else { return Ok(args) };
    let addr = host.locate(&named).map_err(|error| error.evidence(args.written()))?;
    Ok(args.with("host", &addr.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    fn expanded(text: &str) -> Result<Vec<String>> {
        let tree = TestTree::new();
        for address in ["0000:01:00.0", "0000:01:00.1", "0000:01:00.3", "0000:02:00.0", "0000:03:00.1", "0000:03:00.2"]
        {
            tree.pci(address).add();
        }
        let names =
            "[[device]]\nname = \"lan\"\naddress = \"02:00.0\"\n[[device]]\nname = \"card\"\naddress = \"01:00\"\n";
        tree.file("etc/passthru/devices.d/names.toml", names);
        let args = Args::parse("--device", Some("driver"), text)?;
        let show = |function: Function| {
            let rom = function.args.peek("rom").map(|rom| format!(" {rom}")).unwrap_or_default();
            format!("{:?} {}{rom}", function.number, function.args.peek("host").unwrap_or("-"))
        };
        Ok(expand(args, &tree.host())?.into_iter().map(show).collect())
    }

    #[test]
    fn a_device_is_all_its_functions() {
        let seen = expanded("vfio-pci,host=01:00,rom=off").unwrap();
        assert_eq!(seen, ["Some(0) 0000:01:00.0 off", "Some(1) 0000:01:00.1", "Some(3) 0000:01:00.3"]);
        assert_eq!(expanded("vfio-pci,host=2:0").unwrap(), ["None 0000:02:00.0"]);
        assert_eq!(expanded("vfio-pci,host=01:00.1").unwrap(), ["None 01:00.1"]);
        assert_eq!(expanded("pcie-root-port").unwrap(), ["None -"]);
    }

    #[test]
    fn a_name_stands_for_an_address() {
        assert_eq!(expanded("vfio-pci,host=lan").unwrap(), ["None 0000:02:00.0"]);
        assert_eq!(expanded("vfio-pci,host=card").unwrap().len(), 3);
        let error = expanded("vfio-pci,host=wan").unwrap_err();
        assert_eq!(error.code(), Code::UnknownName);
        assert!(error.to_string().contains("--device vfio-pci,host=wan"), "{error}");
    }

    #[test]
    fn what_cannot_go_together_is_refused() {
        assert_eq!(expanded("vfio-pci,host=09:00").unwrap_err().code(), Code::DeviceAbsent);
        let error = expanded("vfio-pci,host=03:00").unwrap_err();
        assert_eq!(error.code(), Code::BadProperty);
        assert!(error.to_string().contains("--device vfio-pci,host=03:00"), "{error}");
    }
}
