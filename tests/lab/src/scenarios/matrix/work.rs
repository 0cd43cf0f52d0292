//! What each kind of device has to do, and what must come of it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use serde_json::json;

use super::rows::Row;
use super::screenshot::Picture;
use crate::l1::{L1, Session};
use crate::scenario::Lab;
use crate::{edu, pattern, setup};

/// The shell's side of it.
pub const SCRIPT: &str = include_str!("work.sh");
/// How often the teaching device's module raises an interrupt: a number in work.sh.
const MESSAGES: &str = "20";
/// Limit of one piece of work.
const LIMIT: Duration = Duration::from_secs(120);
/// How much of the drive's pattern is read, MiB.
const READ_MIB: usize = 4;
/// How long a card may take to show what was written to its console.
const SHOWN_LIMIT: Duration = Duration::from_secs(20);
/// What is played: 8192 frames, and silence that pushes the last of them through QEMU's buffers.
const TONE_BYTES: usize = 32 << 10;
const SILENCE_BYTES: usize = 24 << 10;
const TONE_SEED: u64 = 0x70ae;
/// File with the tone, in the guest and in L1.
pub const GUEST_TONE: &str = "/tone";
const HOST_TONE: &str = "/share/tone";

/// The kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Link, pings, a file whose checksum is known.
    Nic,
    /// A pattern is read; data is written, read back, and there the next time.
    Drive,
    /// Samples are played that L0 must receive one by one.
    Sound,
    /// Registers, DMA both ways and INTx of QEMU's teaching device, by a program of the lab's; its MSI, by a module.
    Edu,
    /// The console shows colours and text that a screenshot on L0 must have; of each colour so many bits.
    Display { bits: u32 },
}

/// Who works.
pub enum At<'a> {
    Guest(&'a mut Session),
    /// L1, with its own driver.
    Host,
}

impl At<'_> {
    /// Runs one line that may use [`SCRIPT`].
    pub fn ok(&mut self, l1: &mut L1, line: &str) -> Result<String> {
        match self {
            At::Guest(session) => session.ok(l1, line, LIMIT),
            At::Host => {
                let output = l1.sh_within(&format!(". /share/work.sh; {line}"), LIMIT)?;
                ensure!(output.code == 0, "`{line}` in L1 {}", crate::l1::describe(&output));
                Ok(output.stdout)
            }
        }
    }
}

/// What one piece of work leaves to be seen by the next.
#[derive(Debug, Default)]
pub struct Seen {
    /// Sum of what was last written to a drive.
    wrote: Option<String>,
    /// How often a tone has been played.
    played: usize,
    /// How often something was shown.
    shown: usize,
}

/// A device that is to work.
#[derive(Debug)]
pub struct Device<'a> {
    pub row: &'a Row,
    /// Its id on L0.
    pub id: &'a str,
    /// Its folder in sysfs; shell text.
    pub sysfs: &'a str,
}

/// Samples that no two places have alike, and silence.
pub fn tone() -> Vec<u8> {
    let mut bytes = pattern::bytes(TONE_SEED, TONE_BYTES);
    bytes.resize(TONE_BYTES + SILENCE_BYTES, 0);
    bytes
}

/// Puts into L1 what the work there needs.
pub fn provide(l1: &L1) -> Result<()> {
    let share = l1.folder().join("share");
    std::fs::write(share.join("work.sh"), SCRIPT)?;
    std::fs::write(share.join("tone"), tone())?;
    Ok(())
}

impl Work {
    /// QEMU's arguments for what stands behind the device on L0.
    pub fn backend(self, id: &str) -> String {
        match self {
            Work::Nic => format!("-netdev user,id={id}n"),
            Work::Drive => format!("-drive file={{drive}},format=raw,if=none,id={id}d,snapshot=on"),
            Work::Sound => format!("-audiodev wav,id={id}a,path={id}.wav"),
            Work::Edu | Work::Display { .. } => String::new(),
        }
    }

    /// What is checked, for the documentation.
    #[cfg(test)]
    pub fn about(self) -> &'static str {
        match self {
            Work::Nic => "link, pings, a file by TCP with its checksum",
            Work::Drive => "a pattern read; data written, read back, and there the next time",
            Work::Sound => "samples played, compared with what L0 received; interrupts counted",
            Work::Edu => "factorials, DMA both ways, INTx counted by uio_pci_generic, MSI by a module of the lab's",
            Work::Display { .. } => "the console on the card, compared with a screenshot on L0",
        }
    }

    /// Lets the device work once.
    pub fn check(self, lab: &mut Lab, device: &Device, mut at: At, seen: &mut Seen) -> Result<()> {
        let Device { row: Row { driver, modules, .. }, id, sysfs } = device;
        match self {
            Work::Nic => {
                let port = lab.server.port;
                let said = at.ok(lab.l1, &format!("nic {sysfs} {driver} {port} {modules}"))?;
                ensure!(value(&said, "ping")? == "4", "pings were lost: {} of 4 came back", value(&said, "ping")?);
                ensure!(value(&said, "tcp")? == lab.server.sum, "wrong data over TCP");
            }
            Work::Drive => {
                let said = at.ok(lab.l1, &format!("drive {sysfs} {driver} {modules}"))?;
                ensure!(value(&said, "read")? == setup::drive_sum(READ_MIB), "the drive's pattern reads wrong");
                if let Some(before) = &seen.wrote {
                    ensure!(value(&said, "again")? == before, "what was written before is not there any more");
                }
                let wrote = value(&said, "wrote")?;
                ensure!(wrote == value(&said, "reread")?, "it does not read back what was written");
                seen.wrote = Some(wrote.to_owned());
            }
            Work::Sound => {
                let file = if matches!(at, At::Host) { HOST_TONE } else { GUEST_TONE };
                let said = at.ok(lab.l1, &format!("sound {sysfs} {driver} {file} {modules}"))?;
                let interrupts: u64 = value(&said, "interrupts")?.parse()?;
                ensure!(interrupts > 0, "it was played without an interrupt");
                seen.played += 1;
                let played = times_played(&lab.l1.folder().join(format!("{id}.wav")))?;
                ensure!(played == seen.played, "L0 received the samples {played} times, not {} times", seen.played);
            }
            Work::Edu => {
                // The host's IOMMU keeps the device off the memory of a program there.
                let dma = !matches!(at, At::Host);
                let options = if dma { "" } else { "--no-dma" };
                let said = at.ok(lab.l1, &format!("edu {sysfs} /images/{} {options}", setup::name::EDU_MSI))?;
                let interrupts: u32 = value(&said, "interrupts")?.parse()?;
                ensure!(interrupts == edu::interrupts(dma), "{interrupts} interrupts came by the pin");
                for key in ["msi", "counted"] {
                    let count = value(&said, key)?;
                    ensure!(count == MESSAGES, "of {MESSAGES} interrupts by MSI {count} came ({key})");
                }
            }
            Work::Display { bits } => {
                seen.shown += 1;
                at.ok(lab.l1, &format!("display {sysfs} {driver} {} {modules}", seen.shown))?;
                let shown = shows(lab.l1, id, seen.shown, bits);
                at.ok(lab.l1, "display_end")?;
                shown?;
            }
        }
        Ok(())
    }
}

/// How often the tone stands in what L0's sound card was given.
fn times_played(file: &Path) -> Result<usize> {
    let bytes = std::fs::read(file)?;
    let tone = pattern::bytes(TONE_SEED, TONE_BYTES);
    let starts = bytes.windows(16).enumerate().filter(|(_, window)| *window == &tone[..16]);
    Ok(starts.filter(|(at, _)| bytes.get(*at..*at + TONE_BYTES) == Some(&tone[..])).count())
}

/// Waits until the card with that id shows the picture `turn`.
fn shows(l1: &mut L1, id: &str, turn: usize, bits: u32) -> Result<()> {
    let file = format!("{id}-{turn}.ppm");
    let end = Instant::now() + SHOWN_LIMIT;
    loop {
        l1.l0().monitor()?.run("screendump", json!({ "filename": file, "device": id }))?;
        let result = Picture::read(&l1.folder().join(&file)).and_then(|picture| picture.compare(turn, bits));
        if result.is_ok() || Instant::now() > end {
            return result.with_context(|| format!("the screenshot {file}"));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Value of the line `key=value`.
fn value<'a>(said: &'a str, key: &str) -> Result<&'a str> {
    let find = |line: &'a str| line.split_once('=').filter(|(name, _)| *name == key).map(|(_, value)| value.trim());
    said.lines().find_map(find).with_context(|| format!("`{key}` was not reported:\n{said}"))
}
