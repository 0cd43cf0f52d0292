//! `passthru ctl`: a running guest is asked and told, by its control socket.

pub(super) mod client;
mod metrics;
pub(super) mod status;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::monitor::folder::{Folders, SOCKET};
use crate::monitor::message;
use crate::object;
use client::{Client, LIMIT};

/// The command that everything about a guest comes by.
pub(super) const QUERY: &str = "x-query-vm";
/// How much longer than the guest's own time its answer to `device_del` is waited for.
const GRACE: Duration = Duration::from_secs(15);

/// Ask and tell a running guest
///
/// Guests are found by their names, which `passthru list` shows: that of the VM file, or of `--name`. Users reach their own
/// guests, root those of /run/passthru/vm, among them all services.
#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    /// Name of the guest
    name: String,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
enum CtlCommand {
    /// Show its state: IOMMU, interrupts, BARs, exits by cause, memory mapped for DMA, last reset and error of each device
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Plug a device in, behind a pcie-root-port that has nothing behind it
    #[command(name = "device_add")]
    DeviceAdd {
        /// As `passthru run --device` takes it; the id is needed to take the device out again
        #[arg(value_name = "TYPE[,KEY=VALUE...]")]
        device: String,
    },
    /// Ask the guest for a device, and wait until it is out
    #[command(name = "device_del")]
    DeviceDel {
        /// Id of the device
        id: String,
        /// How long the guest has to give it up, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=MAX_TIMEOUT))]
        timeout: u64,
        /// Take it away then, whatever the guest does
        #[arg(long)]
        force: bool,
    },
    /// Press the power button: the guest's system shuts down if it listens
    Powerdown,
    /// Reset the machine, as its reset button does
    Reset,
    /// End the process at once, as if the power had failed
    Quit,
    /// Print what happens, an event a line, until the guest ends
    Events {
        /// Print each event as JSON, as QMP has it
        #[arg(long)]
        json: bool,
    },
    /// Print its state as Prometheus reads it (text format 0.0.4)
    Metrics,
}

/// The longest time that a guest can be given for a device, in seconds.
const MAX_TIMEOUT: u64 = 86_400;

pub(super) fn execute(args: &CtlArgs, host: &Host) -> Result<()> {
    let mut guest = find(&args.name, &Folders::of_process(host))?;
    let nothing = json!({});
    match &args.command {
        CtlCommand::Status { json } => {
            let vm = guest.run(QUERY, &nothing, Some(LIMIT))?;
            if *json { output::print_json(&vm) } else { output::print(&status::text(&vm, message::now().as_secs())) }
        }
        CtlCommand::Metrics => output::print(&metrics::text(&guest.run(QUERY, &nothing, Some(LIMIT))?)),
        CtlCommand::DeviceAdd { device } => {
            let arguments = properties(device)?;
            // All of the guest's memory may have to be mapped for it: that takes as long as it takes.
            guest.run("device_add", &arguments, None).map(drop)
        }
        CtlCommand::DeviceDel { id, timeout, force } => device_del(&mut guest, id, *timeout, *force),
        CtlCommand::Powerdown => guest.run("system_powerdown", &nothing, Some(LIMIT)).map(drop),
        CtlCommand::Reset => guest.run("system_reset", &nothing, Some(LIMIT)).map(drop),
        CtlCommand::Quit => guest.run("quit", &nothing, Some(LIMIT)).map(drop),
        CtlCommand::Events { json } => {
            while let Some(event) = guest.event(None) {
                output::print(&if *json { format!("{event}\n") } else { told(&event) })?;
            }
            Ok(())
        }
    }
}

/// Connects with the guest of this name.
fn find(name: &str, folders: &Folders) -> Result<Client> {
    let all = folders.all();
    for (_, folder) in all.iter().filter(|(known, _)| known == name) {
        if let Some(client) = Client::connect(name, &folder.join(SOCKET))? {
            return Ok(client);
        }
    }
    let names = object::did_you_mean(name, all.iter().map(|(known, _)| known.as_str()));
    Err(Error::new(Code::NoSuchGuest, format!("no guest called {name} runs{names}"))
        .fix("`passthru list` shows the guests that run and that you may reach"))
}

/// A `--device` argument as that of QMP's `device_add`.
fn properties(device: &str) -> Result<Value> {
    let given = object::Args::parse("device_add", Some("driver"), device)?;
    Ok(given.entries().map(|(key, value)| (key.to_owned(), Value::from(value))).collect())
}

fn device_del(guest: &mut Client, id: &str, timeout: u64, force: bool) -> Result<()> {
    let arguments = json!({ "id": id, "timeout": timeout * 1000, "force": force });
    guest.run("device_del", &arguments, Some(LIMIT))?;
    let end = Instant::now() + Duration::from_secs(timeout) + GRACE;
    while let Some(event) = guest.event(Some(end)) {
        match (event["event"].as_str(), is_about(&event, id)) {
            (Some("DEVICE_DELETED"), true) => return Ok(()),
            (Some("DEVICE_UNPLUG_GUEST_ERROR"), true) => {
                return Err(Error::new(Code::CommandRefused, format!("the guest keeps {id}"))
                    .evidence(format!("it did not give the device up within {timeout} s, or said that it will not"))
                    .fix("give it more time with --timeout, or take the device away with --force"));
            }
            _ => {}
        }
    }
    Err(Error::new(Code::ControlFailed, format!("{id} is not out after {timeout} s and nobody says why")))
}

/// Whether an event is about the device `id`. One whose id was made has no member `device`, but its path ends with it.
fn is_about(event: &Value, id: &str) -> bool {
    let path = event["data"]["path"].as_str().and_then(|path| path.rsplit('/').next());
    path == Some(id)
}

/// An event for people: its time of day (UTC), its name and its data.
fn told(event: &Value) -> String {
    let seconds = event["timestamp"]["seconds"].as_u64().unwrap_or_default() % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let data = event["data"].as_object().into_iter().flatten();
    let data: String = data.map(|(name, value)| format!(" {name}={value}")).collect();
    format!("{hours:02}:{minutes:02}:{seconds:02} {}{data}\n", event["event"].as_str().unwrap_or("?"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a guest with a NIC says to [`QUERY`].
    pub(in crate::cli) fn vm() -> Value {
        json!({
            "name": "router", "pid": 77, "version": "0.1.0", "status": "running",
            "since": 1_700_000_000, "restarts": 1,
            "exits": { "mmio-read": 12, "port-write": 3 },
            "dma": [{ "iommu": "type1", "mappings": 2, "bytes": 268_435_456 }],
            "devices": [
                { "id": "rp1", "type": "pcie-root-port", "bus": "pcie.0", "addr": "01.0", "bars": [] },
                { "id": "nic0", "type": "vfio-pci", "bus": "rp1", "addr": "00.0", "host": "0000:01:00.0",
                  "interrupts": "msix", "iommu": "type1", "last-reset": "done", "last-reset-at": "1700000050",
                  "bars": [
                    { "bar": 0, "mapped": [{ "start": 0, "end": 8192 }], "trapped": [{ "start": 8192, "end": 12288 }] },
                    { "bar": 3, "mapped": [{ "start": 0, "end": 4096 }], "trapped": [] },
                  ] },
            ],
            "resources": { "descriptors": 40, "irqfds": 3 },
        })
    }

    #[test]
    fn a_device_s_words_become_arguments() {
        assert_eq!(
            properties("vfio-pci,host=01:00.0,id=nic0").unwrap(),
            json!({ "driver": "vfio-pci", "host": "01:00.0", "id": "nic0" })
        );
        assert_eq!(properties(r#"{"driver":"vfio-pci","rombar":0}"#).unwrap()["rombar"], "0");
        assert!(properties("{").is_err());
    }

    #[test]
    fn an_event_is_about_its_device_named_or_not() {
        for id in ["nic0", "vfio-pci#3"] {
            let event = json!({ "event": "DEVICE_DELETED", "data": crate::monitor::device_data(id) });
            assert!(is_about(&event, id) && !is_about(&event, "nic"), "{event}");
        }
        assert!(!is_about(&json!({}), "nic0"));
    }

    #[test]
    fn events_are_told_in_a_line() {
        let event = json!({ "event": "DEVICE_DELETED", "data": { "device": "nic0" },
            "timestamp": { "seconds": 1_700_000_000, "microseconds": 5 } });
        assert_eq!(told(&event), "22:13:20 DEVICE_DELETED device=\"nic0\"\n");
        assert_eq!(told(&json!({})), "00:00:00 ?\n");
    }
}
