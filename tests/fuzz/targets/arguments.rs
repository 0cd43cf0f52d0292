//! The argument grammar: what a user (or a program on the control socket) can write after `--device`, `-M`, `-m`, `--smp`
//! and `--cpu`. Everything is taken or refused with a message; nothing is long.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passthru::error::Error;
use passthru::machine::options::{cpu, memory, serial, smp};
use passthru::machine::types::{DEVICES, MACHINES};
use passthru::object::Args;

/// A message shows what the user wrote, shortened.
const MAX_MESSAGE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (option, text) = text.split_at_checked(1).unwrap_or_default();
    let done = match option {
        "d" => Args::parse("--device", Some("driver"), text)
            .and_then(|mut args| DEVICES.take_type(&mut args).and_then(|of_type| of_type.check(&args))),
        "M" => Args::parse("-M", Some("type"), text)
            .and_then(|mut args| MACHINES.take_type(&mut args).and_then(|of_type| of_type.create(&mut args, &())))
            .map(drop),
        "m" => Args::parse("-m", Some("size"), text).and_then(memory::parse).map(drop),
        "s" => Args::parse("--smp", Some("cpus"), text).and_then(smp::parse).map(drop),
        "c" => Args::parse("--cpu", Some("model"), text).and_then(cpu::parse).map(drop),
        _ => serial::parse(text).map(drop),
    };
    if let Err(error) = done {
        check(&error, text);
    }
});

/// The message is for people: it has an end, and no Rust dump in it.
fn check(error: &Error, text: &str) {
    let message = error.to_string();
    assert!(message.len() <= MAX_MESSAGE + text.len(), "{} bytes", message.len());
    assert!(text.contains("Error(") || !message.contains("Error("), "{message}");
}
