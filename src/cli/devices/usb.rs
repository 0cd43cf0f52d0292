//! The USB devices as a list by buses.

use crate::cli::style::Style;
use crate::host::usb::UsbDevice;

/// Columns of a device's bus and ports.
const NAME: usize = 10;

/// Every device, those behind hubs further to the right.
pub(in crate::cli) fn usb(devices: &[UsbDevice], style: Style) -> String {
    let mut out = String::new();
    for device in devices {
        let root = !device.name.contains('-');
        let indent = if root { 0 } else { 2 + 2 * device.depth() };
        let head = format!("{}{:NAME$} ", " ".repeat(indent), device.name);
        let column = head.chars().count();
        out += &format!("{head}{}\n", style.cut(column, &title(device)));
        let more = " ".repeat(column);
        let mut line = |text: &str| out += &format!("{more}{}\n", style.wrap(column, &more, text));
        line(&facts(device));
        if !device.claims.is_empty() {
            let names: Vec<String> = device.claims.iter().map(ToString::to_string).collect();
            line(&format!("claimed for guests as {}", names.join(", ")));
        }
        for used in &device.uses {
            line(&format!("used: {used}"));
        }
    }
    if devices.is_empty() {
        out += "the host has no USB devices\n";
    }
    out
}

/// `0781:5581 SanDisk Ultra`.
fn title(device: &UsbDevice) -> String {
    let words = [device.maker.as_deref(), device.title.as_deref()];
    let words: Vec<&str> = words.into_iter().flatten().collect();
    format!("{:04x}:{:04x} {}", device.vendor, device.product, words.join(" ")).trim_end().to_owned()
}

fn facts(device: &UsbDevice) -> String {
    let mut facts = Vec::new();
    match device.drivers.is_empty() {
        true => facts.push("no driver".to_owned()),
        false => facts.push(device.drivers.join(" and ")),
    }
    if let Some(speed) = &device.speed {
        facts.push(format!("{speed} Mbit/s"));
    }
    if let Some(serial) = device.serial.as_ref().filter(|_| device.name.contains('-')) {
        facts.push(format!("serial {serial}"));
    }
    facts.push(format!("/dev/bus/usb/{:03}/{:03}", device.bus, device.number));
    if let Some(controller) = device.controller.filter(|_| !device.name.contains('-')) {
        facts.push(format!("controller {}", controller.short()));
    }
    facts.join(", ")
}
