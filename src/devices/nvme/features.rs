//! Features: what a driver can ask for and switch (NVMe 5.21.1).

use super::queue::Command;
use super::shared::Shared;
use super::status::{Outcome, Status};

/// Identifiers.
mod id {
    pub const ARBITRATION: u8 = 0x01;
    pub const TEMPERATURE: u8 = 0x04;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const QUEUES: u8 = 0x07;
    pub const EVENTS: u8 = 0x0b;
    pub const LAST: u8 = 0x0b;
}

/// 70 degrees Celsius: when a temperature is to be warned of.
const WARNING: u32 = 343;

/// The values that a driver has set, by their identifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features([u32; id::LAST as usize + 1]);

impl Default for Features {
    fn default() -> Features {
        let mut values = [0; id::LAST as usize + 1];
        values[usize::from(id::ARBITRATION)] = 7;
        values[usize::from(id::TEMPERATURE)] = WARNING;
        Features(values)
    }
}

/// Numbers of queues, as both commands give them: less one, completion queues in the upper half.
fn queues(shared: &Shared) -> u32 {
    let pairs = u32::from(shared.options.pairs) - 1;
    pairs << 16 | pairs
}

fn is_known(feature: u8) -> bool {
    (id::ARBITRATION..=id::LAST).contains(&feature) && feature != 0x03
}

pub fn get(shared: &Shared, command: &Command) -> Outcome {
    let feature = command.dword(10) as u8;
    let select = command.dword(10) >> 8 & 7;
    if !is_known(feature) {
        return Status::INVALID_FIELD.into();
    }
    let index = usize::from(feature);
    match (select, feature) {
        // What can be done with it: nothing can be saved, four can be changed.
        (3, _) => {
            let changeable = matches!(feature, id::TEMPERATURE | id::WRITE_CACHE | id::QUEUES | id::EVENTS);
            Outcome::Done(u32::from(changeable) << 2)
        }
        (0..=2, id::QUEUES) => Outcome::Done(queues(shared)),
        (0, id::WRITE_CACHE) => Outcome::Done(shared.bus.all().iter().any(|(_, of)| of.disk.write_back()).into()),
        (0, _) => Outcome::Done(shared.features.lock().0[index]),
        (1 | 2, id::WRITE_CACHE) => Outcome::Done(shared.bus.all().iter().any(|(_, of)| of.disk.write_cache()).into()),
        (1 | 2, _) => Outcome::Done(Features::default().0[index]),
        _ => Status::INVALID_FIELD.into(),
    }
}

pub fn set(shared: &Shared, command: &Command) -> Outcome {
    const SAVE: u32 = 1 << 31;
    let feature = command.dword(10) as u8;
    let value = command.dword(11);
    if command.dword(10) & SAVE != 0 {
        return Status::NOT_SAVEABLE.into();
    }
    if !is_known(feature) {
        return Status::INVALID_FIELD.into();
    }
    match feature {
        // As many as asked for or as there are: the driver takes the lesser of both.
        id::QUEUES if value as u16 == u16::MAX || (value >> 16) as u16 == u16::MAX => Status::INVALID_FIELD.into(),
        id::QUEUES => Outcome::Done(queues(shared)),
        id::WRITE_CACHE => {
            for (_, namespace) in shared.bus.all() {
                let disk = &namespace.disk;
                // What was said to be done before must be on the medium, too.
                if value & 1 == 0 && disk.write_back() {
                    match disk.flush() {
                        Ok(()) => {}
                        Err(undone) => return super::io::undone(undone, Status::WRITE_FAULT),
                    }
                }
                disk.set_write_back(value & 1 != 0 && disk.info().write_back);
            }
            Outcome::Done(0)
        }
        id::TEMPERATURE | id::EVENTS => {
            shared.features.lock().0[usize::from(feature)] = value;
            Outcome::Done(0)
        }
        _ => Status::NOT_CHANGEABLE.into(),
    }
}
