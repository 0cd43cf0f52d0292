//! Shell text for guests: bring a device up, use it, report `LAB key=value`.

/// Waits for `condition`, 20 s at most.
fn until(condition: &str) -> String {
    format!("i=0; until {condition} || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done")
}

/// Reboots once the console has sent all lines: what its buffer holds is lost with the machine.
pub const REBOOT: &str = "stty -hupcl; reboot -f";

/// Brings the first Ethernet interface up with an address of QEMU's user network.
pub fn nic_up(driver: &str) -> String {
    format!(
        "modprobe {driver}\n{}\n\
         ip link set eth0 up\n\
         ip addr add 10.0.2.15/24 dev eth0\n\
         ip route add default via 10.0.2.2\n{}\n\
         echo LAB mac=$(cat /sys/class/net/eth0/address)",
        until("[ -e /sys/class/net/eth0 ]"),
        until("[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]")
    )
}

/// Pings the gateway; reports `ping=RECEIVED`.
pub fn ping(count: u32) -> String {
    format!(
        "ping -c {count} -i 0.2 -W 5 10.0.2.2 > /tmp/ping\n\
         echo LAB ping=$(sed -n 's/.* \\([0-9]*\\) packets received.*/\\1/p' /tmp/ping)"
    )
}

/// Fetches all that a server on L0 sends; reports `tcp=SHA256`.
pub fn fetch(port: u16) -> String {
    format!("echo LAB tcp=$(nc 10.0.2.2 {port} < /dev/null | sha256sum | cut -d ' ' -f 1)")
}

/// Brings the NVMe drive up.
pub fn nvme_up() -> String {
    format!("modprobe nvme\n{}", until("[ -b /dev/nvme0n1 ]"))
}

/// How much of the drive is read where it must hold what the host has read, MiB. Emulated processors need a second for the sum
/// of each 16 MiB.
pub const READ_MIB: u32 = 16;

/// Writes the SHA-256 of the drive's first `mib` MiB.
pub fn sum_of_drive(mib: u32) -> String {
    format!("dd if=/dev/nvme0n1 bs=1M count={mib} iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1")
}

/// Reads the drive's first `mib` MiB; reports `nvme_read=SHA256`.
pub fn nvme_read(mib: u32) -> String {
    format!("echo LAB nvme_read=$({})", sum_of_drive(mib))
}

/// Writes 8 MiB of random data behind the first 128 MiB and reads them back; reports
/// `nvme_wrote=SHA256` and `nvme_reread=SHA256`.
pub fn nvme_write() -> String {
    "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null\n\
     dd if=/tmp/data of=/dev/nvme0n1 bs=1M seek=128 oflag=direct 2>/dev/null\n\
     sync\n\
     echo LAB nvme_wrote=$(sha256sum < /tmp/data | cut -d ' ' -f 1)\n\
     echo LAB nvme_reread=$(dd if=/dev/nvme0n1 bs=1M skip=128 count=8 iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
        .to_owned()
}

/// Host's command for the sum of what [`nvme_write`] wrote.
pub const HOST_SUM_OF_WRITTEN: &str =
    "dd if=/dev/nvme0n1 bs=1M skip=128 count=8 iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1";
