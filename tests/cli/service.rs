//! What a service manager is told, by a socket that stands in for one.

use std::os::unix::net::UnixDatagram;

use super::golden::passthru;

#[test]
fn a_service_manager_is_told_why_the_start_failed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_nonblocking(true).expect("not blocking");
    let words = ["run", "--kernel", "/nowhere/vmlinuz", "--serial", "none"];
    let output = passthru().args(words).env("NOTIFY_SOCKET", &path).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let mut message = [0; 4096];
    let length = manager.recv(&mut message).expect("a message has come");
    let message = String::from_utf8_lossy(&message[..length]);
    assert!(message.starts_with("STATUS=PT023: ") && message.contains("/nowhere/vmlinuz"), "{message}");
    assert!(manager.recv(&mut [0; 64]).is_err(), "and nothing else: it was never ready");
}
