//! Where threads run: the calling one, and the main one of another process.

use std::io;

use nix::sched::{CpuSet as Mask, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::topology::CpuSet;
use super::{Host, read};

/// Lets the calling thread, and those that it starts, run on these CPUs only.
///
/// # Errors
/// The kernel's; `InvalidInput` if it lets the thread run on a part of them only, because its control group has no more.
pub fn run_on(cpus: &CpuSet) -> io::Result<()> {
    let this = Pid::from_raw(0);
    let mut mask = Mask::new();
    for cpu in cpus.iter() {
        mask.set(cpu as usize)?;
    }
    sched_setaffinity(this, &mask)?;
    // The kernel leaves out what the control group forbids (cpuset.cpus), without a word.
    if sched_getaffinity(this)? == mask { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The CPUs that a process's main thread may run on; `None`: there is no such process.
pub fn cpus_of(host: &Host, pid: u64) -> Option<CpuSet> {
    let status = read::lines(host.proc(format!("{pid}/status")));
    status.iter().find_map(|line| CpuSet::parse(line.strip_prefix("Cpus_allowed_list:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_where_it_may() {
        let allowed = Host::real().topology().allowed;
        let one: CpuSet = allowed.first().into_iter().collect();
        let seen = std::thread::spawn(move || {
            run_on(&one).unwrap();
            let absent: CpuSet = [1023].into_iter().collect();
            (run_on(&absent).is_err(), run_on(&one.with(&absent)).is_err(), run_on(&CpuSet::default()).is_err())
        });
        assert_eq!(seen.join().unwrap(), (true, true, true));
    }
}
