//! A guest under control while it runs: a shell in it, and the VMM's control socket.
//!
//! ```ignore
//! let mut guest = lab.l1.live(&Guest::new().device("pcie-root-port,id=port1"))?;
//! guest.plug(lab.l1, "nic0", NIC, "port1")?;
//! guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
//! guest.device_del(lab.l1, "nic0")?;
//! guest.power_off(lab.l1)?.success()?;
//! ```

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Ended, Guest, L1, session::Session};
use crate::agent::protocol::{Answer, Op};
use crate::report;

/// For a command in the guest that names no limit.
const SHELL_LIMIT: Duration = Duration::from_secs(90);
/// For an answer on the control socket.
const QMP_LIMIT: Duration = Duration::from_secs(60);
/// For a command that maps all of the guest's memory.
const MAPPING_LIMIT: Duration = Duration::from_secs(180);
/// For a guest's answer to an unplug request: Linux alone waits 5 s after the button.
const UNPLUG_LIMIT: Duration = Duration::from_secs(60);

/// A running guest.
pub struct Live {
    shell: Session,
    qmp: u64,
}

impl L1 {
    /// Starts a guest and waits until it is up. Its own script runs before the shell.
    pub fn live(&mut self, guest: &Guest) -> Result<Live> {
        let socket = format!("/tmp/qmp{}", self.scripts + 1);
        let mut shell =
            Session::launch(self, guest.clone().option(&format!("--qmp unix:{socket},server=on,wait=off")))?;
        let op = Op::QmpOpen { path: socket, timeout_ms: millis(QMP_LIMIT)? };
        let qmp = match self.ask(op, QMP_LIMIT) {
            Ok(Answer::Session(number)) => number,
            Ok(other) => bail!("the agent answered {other:?}"),
            Err(error) => {
                return Err(error.context(format!("the VMM says:\n{}", report::tail(&shell.job().text(), 30))));
            }
        };
        shell.listens(self)?;
        Ok(Live { shell, qmp })
    }
}

impl Live {
    /// The guest's shell.
    pub fn shell(&mut self) -> &mut Session {
        &mut self.shell
    }

    /// Runs shell text, of several lines too, in the guest; it must succeed. Returns what it wrote.
    pub fn sh(&mut self, l1: &mut L1, text: &str) -> Result<String> {
        let quoted = text.replace('\\', "\\\\").replace('\n', "\\n").replace('\'', "'\\''");
        self.shell.ok(l1, &format!("eval \"$(printf '%b' '{quoted}')\""), SHELL_LIMIT)
    }

    /// Starts one line of shell text in the guest; gives the number that [`Live::end`] takes.
    pub fn begin(&mut self, l1: &mut L1, line: &str) -> Result<u32> {
        self.shell.send(l1, line)
    }

    /// Waits until a line that was started has ended.
    pub fn end(&mut self, l1: &mut L1, number: u32) -> Result<()> {
        self.shell.wait(l1, number, SHELL_LIMIT)
    }

    /// Value of the last line `LAB key=value` on the console.
    pub fn value(&self, key: &str) -> Result<String> {
        Ended { code: 0, text: self.shell.job().text() }.value(key).map(str::to_owned)
    }

    /// Runs a command on the control socket.
    pub fn qmp(&self, l1: &mut L1, command: &str, arguments: Value) -> Result<Value> {
        let timeout_ms = millis(QMP_LIMIT)?;
        let op = Op::QmpRun { session: self.qmp, command: command.into(), arguments, timeout_ms };
        match l1.ask(op, QMP_LIMIT)? {
            Answer::Json(value) => Ok(value.unwrap_or_default()),
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// Sends a command on the control socket; gives the number that [`Live::qmp_end`] takes.
    pub fn qmp_begin(&self, l1: &mut L1, command: &str, arguments: Value) -> Result<u64> {
        let op = Op::QmpBegin { session: self.qmp, command: command.into(), arguments };
        match l1.ask(op, QMP_LIMIT)? {
            Answer::Json(Some(number)) => number.as_u64().context("this is no number"),
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// Waits for what a command that was sent returns.
    pub fn qmp_end(&self, l1: &mut L1, number: u64) -> Result<Value> {
        let op = Op::QmpEnd { session: self.qmp, number, timeout_ms: millis(MAPPING_LIMIT)? };
        match l1.ask(op, MAPPING_LIMIT)? {
            Answer::Json(value) => Ok(value.unwrap_or_default()),
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// Runs a command that must fail; gives the error.
    pub fn qmp_fails(&self, l1: &mut L1, command: &str, arguments: Value) -> Result<String> {
        match self.qmp(l1, command, arguments.clone()) {
            Ok(value) => bail!("{command} {arguments} should fail, but returned {value}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// The next event of that name, if it has come or comes in time; all others stay.
    pub fn event_within(&self, l1: &mut L1, name: &str, limit: Duration) -> Result<Option<Value>> {
        let op = Op::QmpEvent { session: self.qmp, name: name.into(), timeout_ms: millis(limit)? };
        match l1.ask(op, limit)? {
            Answer::Json(value) => Ok(value),
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// Waits for an event and gives its data.
    pub fn event(&self, l1: &mut L1, name: &str) -> Result<Value> {
        let event = self.event_within(l1, name, UNPLUG_LIMIT)?;
        let event = event.with_context(|| {
            format!("the event {name} did not come; the console:\n{}", report::tail(&self.shell.job().text(), 30))
        })?;
        Ok(event["data"].clone())
    }

    /// Plugs a device; the arguments are those of `--device`.
    pub fn device_add(&self, l1: &mut L1, arguments: Value) -> Result<()> {
        let number = self.qmp_begin(l1, "device_add", arguments)?;
        self.qmp_end(l1, number).map(drop)
    }

    /// Plugs a function of the host behind a root port.
    pub fn plug(&self, l1: &mut L1, id: &str, bdf: &str, port: &str) -> Result<()> {
        self.device_add(l1, json!({ "driver": "vfio-pci", "id": id, "host": bdf, "bus": port }))
    }

    /// Asks the guest for a device and waits until it is out.
    pub fn device_del(&self, l1: &mut L1, id: &str) -> Result<()> {
        self.qmp(l1, "device_del", json!({ "id": id }))?;
        let data = self.event(l1, "DEVICE_DELETED")?;
        ensure!(data["device"] == id, "another device is out: {data}");
        Ok(())
    }

    /// The counts of `x-query-resources`.
    pub fn resources(&self, l1: &mut L1) -> Result<Value> {
        self.qmp(l1, "x-query-resources", json!({}))
    }

    /// Exits by writes to trapped memory so far.
    pub fn mmio_writes(&self, l1: &mut L1) -> Result<u64> {
        let vm = self.qmp(l1, "x-query-vm", json!({}))?;
        vm["exits"]["mmio-write"].as_u64().with_context(|| format!("no exits in {vm}"))
    }

    /// Ends the VMM by its control socket, and waits for its end.
    pub fn quit(mut self, l1: &mut L1) -> Result<Ended> {
        self.qmp(l1, "quit", json!({}))?;
        l1.ended(self.shell().job())
    }

    /// Switches the guest off from inside and waits for the VMM's end.
    pub fn power_off(self, l1: &mut L1) -> Result<Ended> {
        self.shell.power_off(l1)
    }
}

fn millis(limit: Duration) -> Result<u64> {
    Ok(u64::try_from(limit.as_millis())?)
}
