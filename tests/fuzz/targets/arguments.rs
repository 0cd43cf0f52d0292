//! The argument grammar: what a user (or a program on the control socket) can write after `--device`, `-M`, `-m`, `--smp`
//! and `--cpu`, and the keys that a user presses at a console. Everything is taken or refused with a message; nothing is long.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passthru::backends::chardev::mux::keys::{Action, Keys};
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
        "k" => return keys(text.as_bytes()),
        _ => serial::parse(text).map(drop),
    };
    if let Err(error) = done {
        check(&error, text);
    }
});

/// However a terminal cuts its input, the front end gets no byte that was not pressed, and no more of them.
fn keys(pressed: &[u8]) {
    let sent = |parts: &[&[u8]]| -> (Vec<u8>, usize) {
        let mut keys = Keys::default();
        let (mut sent, mut others) = (Vec::new(), 0);
        for part in parts {
            for action in keys.feed(part) {
                match action {
                    Action::Send(bytes) => sent.extend(bytes),
                    // Whoever runs it ends there.
                    Action::Quit => return (sent, others),
                    _ => others += 1,
                }
            }
        }
        (sent, others)
    };
    let whole = sent(&[pressed]);
    assert!(whole.0.len() + 2 * whole.1 <= pressed.len(), "{pressed:?} sends {whole:?}");
    for cut in 0..pressed.len().min(16) {
        let (front, back) = pressed.split_at(cut);
        assert_eq!(sent(&[front, back]), whole, "{pressed:?} cut at {cut}");
    }
}

/// The message is for people: it has an end, and no Rust dump in it.
fn check(error: &Error, text: &str) {
    let message = error.to_string();
    assert!(message.len() <= MAX_MESSAGE + text.len(), "{} bytes", message.len());
    assert!(text.contains("Error(") || !message.contains("Error("), "{message}");
}
