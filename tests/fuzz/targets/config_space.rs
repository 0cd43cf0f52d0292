//! A device with a hostile configuration space in the hands of a hostile guest.
#![no_main]

use std::sync::Arc;

use fuzz::device::HostileDevice;
use fuzz::guest::{Guest, STEP};
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

// Description, number of steps, the steps, then the configuration space.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let device = HostileDevice::describe(&mut input);
    let steps = usize::from(input.u8());
    let steps = input.take(steps * STEP);
    let device = device.with_config(input.rest());
    if let Some(guest) = Guest::plug(Arc::new(device)) {
        guest.run(&mut Input::new(steps));
    }
});
