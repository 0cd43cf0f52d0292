//! Network back ends and objects that come and go.

use super::super::message::Failure;
use super::{Command, Kind, nothing, param};
use crate::object::{self, Args};

/// The commands of this file.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "netdev_add",
        doc: "Makes a network back end; the arguments are the properties of `--netdev`",
        params: &[param("type", Kind::String, "Type of the back end"), param("id", Kind::String, "Its name")],
        open: true,
        run: |control, arguments| {
            let text = arguments.into_json().to_string();
            control.add_back_end(object::Kind::Netdev, Args::parse("--netdev", Some("type"), &text)?)?;
            Ok(nothing())
        },
    },
    Command {
        name: "netdev_del",
        doc: "Removes a network back end that no device has",
        params: &[param("id", Kind::String, "Its name")],
        open: false,
        run: |control, arguments| {
            let (netdevs, id) = (control.netdevs(), arguments.text("id"));
            if !netdevs.list().iter().any(|row| &*row.name == id) {
                return Err(Failure::no_device(id));
            }
            netdevs.remove(id)?;
            Ok(nothing())
        },
    },
    Command {
        name: "object-add",
        doc: "Makes an object; the arguments are the properties of `--object`",
        params: &[param("qom-type", Kind::String, "Type of the object"), param("id", Kind::String, "Its name")],
        open: true,
        run: |control, arguments| {
            let text = arguments.into_json().to_string();
            control.add_back_end(object::Kind::Object, Args::parse("--object", Some("qom-type"), &text)?)?;
            Ok(nothing())
        },
    },
    Command {
        name: "object-del",
        doc: "Removes an object that nobody uses; one of type iommufd stays as long as the machine",
        params: &[param("id", Kind::String, "Its name")],
        open: false,
        run: |control, arguments| {
            control.remove_object(arguments.text("id"))?;
            Ok(nothing())
        },
    },
];
