//! What only a CD drive has (MMC-6): its tray, its table of contents, what it can do. Its medium is one data track.

use super::blocks::range;
use super::command::{Command, Done, undone};
use super::disk::ScsiDisk;
use super::sense::Sense;

/// The most blocks of a CD: 80 minutes. More is a DVD.
const CD_BLOCKS: u64 = 80 * 60 * 75;
/// Frames of a second, seconds of a minute; the first block's address.
const FRAMES: u32 = 75;
const SECONDS: u32 = 60;
const LEAD_IN: u32 = 150;
/// The track behind the last.
const LEAD_OUT: u8 = 0xaa;
/// A data track whose sub-channel says where it is (ADR and CONTROL).
const DATA_TRACK: u8 = 0x14;

/// START STOP UNIT: power and spinning are not the guest's, the tray is.
pub fn start_stop(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    const LOAD_EJECT: u8 = 1 << 1;
    const START: u8 = 1;
    let flags = command.cdb[4];
    // With a power condition the other bits mean nothing.
    if flags >> 4 == 0 && unit.is_cd() && flags & LOAD_EJECT != 0 {
        unit.move_tray(flags & START == 0)?;
    } else if flags & START == 0 && !unit.is_cd() {
        unit.disk.flush().map_err(|error| undone(error, Sense::WRITE_ERROR))?;
    }
    Ok(0)
}

/// PREVENT ALLOW MEDIUM REMOVAL.
pub fn prevent(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    unit.lock(command.cdb[4] & 1 != 0);
    Ok(0)
}

/// An address as minutes, seconds and frames, or as a number.
fn address(block: u32, msf: bool) -> [u8; 4] {
    if !msf {
        return block.to_be_bytes();
    }
    let at = block.saturating_add(LEAD_IN);
    let minutes = u8::try_from(at / FRAMES / SECONDS).unwrap_or(u8::MAX);
    [0, minutes, (at / FRAMES % SECONDS) as u8, (at % FRAMES) as u8]
}

pub fn read_toc(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    const MSF: u8 = 1 << 1;
    let msf = command.cdb[1] & MSF != 0;
    let (format, start) = (command.cdb[2] & 0xf, command.cdb[6]);
    // Older drivers have the format in the control byte.
    let format = if format == 0 { command.cdb[9] >> 6 } else { format };
    let end = u32::try_from(unit.blocks()).unwrap_or(u32::MAX);
    let mut data = vec![0, 0, 1, 1];
    match format {
        0 => {
            if start > 1 && start != LEAD_OUT {
                return Err(Sense::INVALID_FIELD.into());
            }
            let tracks = [(1, 0), (LEAD_OUT, end)];
            for (track, at) in tracks.into_iter().filter(|(track, _)| *track >= start) {
                data.extend([0, DATA_TRACK, track, 0]);
                data.extend(address(at, msf));
            }
        }
        // One session, which begins with track 1.
        1 => {
            data.extend([0, DATA_TRACK, 1, 0]);
            data.extend(address(0, msf));
        }
        2 => {
            // First track, last track, lead-out, track 1: as the lead-in has them.
            for (point, at) in [(0xa0, None), (0xa1, None), (0xa2, Some(end)), (1, Some(0))] {
                data.extend([1, DATA_TRACK, 0, point, 0, 0, 0]);
                let [_, minutes, seconds, frames] = address(at.unwrap_or(0), true);
                data.extend(match at {
                    None => [0, 1, 0, 0],
                    Some(_) => [0, minutes, seconds, frames],
                });
            }
        }
        _ => return Err(Sense::INVALID_FIELD.into()),
    }
    let len = (data.len() - 2) as u16;
    data[..2].copy_from_slice(&len.to_be_bytes());
    let allocated = usize::from(command.u16(7));
    Ok(command.reply(&data, allocated))
}

/// GET CONFIGURATION: the profiles, and the features that every drive has.
pub fn configuration(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    const CD_ROM: u16 = 0x08;
    const DVD_ROM: u16 = 0x10;
    const ONLY_ONE: u8 = 2;
    const CURRENT: u8 = 1;
    let (wanted, first) = (command.cdb[1] & 3, command.u16(2));
    if wanted == 3 {
        return Err(Sense::INVALID_FIELD.into());
    }
    let profile = match (unit.is_open(), unit.blocks() > CD_BLOCKS) {
        (true, _) => 0,
        (_, true) => DVD_ROM,
        (_, false) => CD_ROM,
    };
    let listed = |of: u16| [(of >> 8) as u8, of as u8, u8::from(of == profile), 0];
    let mut list = listed(DVD_ROM).to_vec();
    list.extend(listed(CD_ROM));
    // Number, version with persistent and current, what follows: profiles; core, ATAPI-like; removable, by tray.
    let features: [(u16, u8, Vec<u8>); 3] = [
        (0, 2 | CURRENT, list),
        (1, 2 << 2 | 2 | CURRENT, vec![0, 0, 0, 8, 1, 0, 0, 0]),
        (3, 2 << 2 | 2 | CURRENT, vec![0x39, 0, 0, 0]),
    ];
    let mut data = vec![0; 8];
    data[6..8].copy_from_slice(&profile.to_be_bytes());
    for (number, flags, body) in features {
        let fits = if wanted == ONLY_ONE { number == first } else { number >= first };
        if fits {
            data.extend(number.to_be_bytes());
            data.extend([flags, body.len() as u8]);
            data.extend(body);
        }
    }
    let len = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    let allocated = usize::from(command.u16(7));
    Ok(command.reply(&data, allocated))
}

/// GET EVENT STATUS NOTIFICATION, of the medium alone, by polling.
pub fn event_status(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    const POLLED: u8 = 1;
    const MEDIA: u8 = 4;
    const NO_EVENT_AVAILABLE: u8 = 1 << 7;
    if command.cdb[1] & POLLED == 0 {
        return Err(Sense::INVALID_FIELD.into());
    }
    let data = match command.cdb[4] & 1 << MEDIA {
        0 => vec![0, 2, NO_EVENT_AVAILABLE, 1 << MEDIA],
        _ => {
            // A medium is there, or the tray is open.
            let status = if unit.is_open() { 1 } else { 2 };
            vec![0, 6, MEDIA, 1 << MEDIA, 0, status, 0, 0]
        }
    };
    let allocated = usize::from(command.u16(7));
    Ok(command.reply(&data, allocated))
}

pub fn mechanism_status(_: &ScsiDisk, command: &mut Command<'_>) -> Done {
    let allocated = usize::from(command.u16(8));
    Ok(command.reply(&[0, 0, 0, 0, 0, 1, 0, 0], allocated))
}

/// READ DISC INFORMATION: complete, one session, one track.
pub fn disc_information(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    if command.cdb[1] & 7 != 0 {
        return Err(Sense::INVALID_FIELD.into());
    }
    range(unit, 0, 0)?;
    let mut data = [0; 34];
    (data[1], data[2], data[3], data[4], data[5], data[6], data[7]) = (32, 0x0e, 1, 1, 1, 1, 0x20);
    let allocated = usize::from(command.u16(7));
    Ok(command.reply(&data, allocated))
}
