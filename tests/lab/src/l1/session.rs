//! A guest that takes commands: one shell line at a time goes in by its serial port, what the line wrote comes out.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Ended, Guest, Job, L1, Stalled};
use crate::report;

/// How long a guest may take until it listens.
const LIMIT: Duration = Duration::from_secs(240);
/// How long it may take to end once it was told to.
const END_LIMIT: Duration = Duration::from_secs(90);

/// How long a guest that is alive may take for nothing.
const ALIVE_LIMIT: Duration = Duration::from_secs(40);
/// Reads `NUMBER COMMAND` lines. Each one runs beside the others: one that hangs, as in a driver, stops nobody else.
const LOOP: &str = r#"
stty -echo 2> /dev/null
echo "LAB listens."
while read -r n line; do
    (
        eval "$line" > /tmp/out$n 2>&1
        code=$?
        sed "s/^/$n| /" /tmp/out$n
        echo "LAB code$n=$code"
        echo "LAB end$n."
    ) < /dev/null &
done
"#;

/// A running guest that listens.
pub struct Session {
    job: Job,
    /// The pipe in L1 that is the guest's input.
    input: String,
    commands: u32,
    boots: usize,
}

impl Session {
    /// Starts `guest`; it listens when its own script has ended.
    pub(super) fn launch(l1: &mut L1, guest: Guest) -> Result<Self> {
        let command = l1.prepare(&guest.script(LOOP))?;
        let input = format!("/tmp/input{}", l1.scripts);
        // Opened for reading and writing: the guest's input never ends.
        let job = l1.start(&format!("mkfifo {input} && {command} <> {input}"))?;
        Ok(Self { job, input, commands: 0, boots: 0 })
    }

    /// The VMM.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Runs one line of shell text in the guest; it must succeed. Returns what it wrote.
    pub fn ok(&mut self, l1: &mut L1, line: &str, limit: Duration) -> Result<String> {
        let number = self.send(l1, line)?;
        self.wait(l1, number, limit).map_err(|error| error.context(format!("`{line}` in the guest")))?;
        let (code, output) = outcome(&self.job.text(), number);
        ensure!(code == Some(0), "`{line}` in the guest ended with {code:?}:\n{}", report::tail(&output, 30));
        Ok(output)
    }

    /// Waits until a line that was sent has ended.
    pub(super) fn wait(&mut self, l1: &mut L1, number: u32, limit: Duration) -> Result<()> {
        let Err(error) = l1.expect(&self.job, &format!("LAB end{number}."), limit) else { return Ok(()) };
        Err(match self.stall(l1)? {
            Some(evidence) => anyhow::Error::new(Stalled).context(format!("the guest stalled: {error:#}\n{evidence}")),
            None => error,
        })
    }

    /// Reboots the guest and waits until it listens again.
    pub fn reboot(&mut self, l1: &mut L1) -> Result<()> {
        self.send(l1, "reboot -f")?;
        self.listens(l1)
    }

    /// Switches the guest off; returns how the VMM ended.
    pub fn power_off(mut self, l1: &mut L1) -> Result<Ended> {
        self.send(l1, "poweroff -f")?;
        l1.ended_within(&self.job, END_LIMIT)
    }

    /// If the VMM runs and the guest does not even run `true`, beside whatever hangs in it: what its threads do.
    fn stall(&mut self, l1: &mut L1) -> Result<Option<String>> {
        let number = self.send(l1, "true")?;
        if l1.expect(&self.job, &format!("LAB end{number}."), ALIVE_LIMIT).is_ok()
            || l1.wait(&self.job, Duration::ZERO)?.is_some()
        {
            return Ok(None);
        }
        Ok(Some(l1.what_it_does(&self.job)?))
    }

    /// Starts one line; gives its number.
    pub(super) fn send(&mut self, l1: &mut L1, line: &str) -> Result<u32> {
        ensure!(!line.contains('\n'), "one line at a time");
        self.commands += 1;
        // A guest that has ended reads no more, and the shell would wait for a reader.
        l1.ok(&format!("timeout 10 cat > {} <<'LAB-END'\n{} {line}\nLAB-END\n", self.input, self.commands))?;
        Ok(self.commands)
    }

    /// Waits until the guest listens, once more than before.
    pub fn listens(&mut self, l1: &mut L1) -> Result<()> {
        self.boots += 1;
        l1.expect_times(&self.job, "LAB listens.", self.boots, LIMIT)
    }
}

/// Exit code and output of a command, out of all that the guest said.
fn outcome(console: &str, number: u32) -> (Option<i32>, String) {
    let (prefix, code_prefix) = (format!("{number}| "), format!("LAB code{number}="));
    let mut output = String::new();
    let mut code = None;
    for line in console.lines() {
        if let Some(text) = line.strip_prefix(&prefix) {
            output.push_str(text.trim_end_matches('\r'));
            output.push('\n');
        } else if let Some((_, text)) = line.split_once(&code_prefix) {
            code = text.trim().parse().ok();
        }
    }
    (code, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_of_two_commands_are_told_apart() {
        let console =
            "L2 UP\r\n1| a=5\r\n11| b=6\r\n1| c=7\r\nLAB code11=3\r\nLAB end11.\r\nLAB code1=0\r\nLAB end1.\r\n";
        assert_eq!(outcome(console, 1), (Some(0), "a=5\nc=7\n".to_owned()));
        assert_eq!(outcome(console, 11), (Some(3), "b=6\n".to_owned()));
        assert_eq!(outcome(console, 2), (None, String::new()));
    }
}
