//! A TCP server on L0 that sends the same bytes to everyone who connects. L2 reaches it
//! through its NIC as 10.0.2.2, the gateway of QEMU's user network.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::thread;

use anyhow::Result;

use crate::pattern;

/// How much is sent: what the issue asks for.
const LENGTH: usize = 4 << 20;
const SEED: u64 = 0x5eed;

/// A running server; it lives as long as the program.
pub struct Server {
    pub port: u16,
    /// SHA-256 of what it sends.
    pub sum: String,
}

/// Starts a server on the loopback interface.
pub fn start() -> Result<Server> {
    let data = Arc::new(pattern::bytes(SEED, LENGTH));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let sum = pattern::sha256(&data);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let data = Arc::clone(&data);
            thread::spawn(move || {
                let mut stream = stream;
                // A guest that goes away shows in its checksum.
                let _ = stream.write_all(&data);
            });
        }
    });
    Ok(Server { port, sum })
}
