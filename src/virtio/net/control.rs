//! The control queue: what the driver asks of the device while it runs (virtio 5.1.6.5).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST,
};

use super::config::bit;
use crate::virtio::{Chain, Served};

/// The answers (VIRTIO_NET_OK, VIRTIO_NET_ERR).
const OK: u8 = 0;
const FAILED: u8 = 1;

/// What the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Which packets it wants; it gets all of them in any case, which the specification allows.
    Filter,
    /// So many pairs of queues get packets.
    Pairs(u16),
}

/// Serves one request of a driver that has agreed on `features`; `act` says whether it could be done.
pub fn serve(features: u64, mut chain: Chain<'_>, act: impl FnOnce(Request) -> bool) -> Served {
    let total = chain.writable.len();
    let Some(mut answer) = chain.writable.split_last(1) else { return Served::Malformed("a command has no answer") };
    let Some([class, command]) = chain.readable.read_array() else {
        return Served::Malformed("a command has no header");
    };
    let done = parse(features, class, command, || chain.readable.read_array()).is_some_and(act);
    answer.write(&[if done { OK } else { FAILED }]);
    Served::Done(u32::try_from(total).unwrap_or(u32::MAX))
}

/// The request; `None`: it is none that was offered.
fn parse(features: u64, class: u8, command: u8, mut word: impl FnMut() -> Option<[u8; 2]>) -> Option<Request> {
    match (u32::from(class), u32::from(command)) {
        (VIRTIO_NET_CTRL_RX, command) if command <= VIRTIO_NET_CTRL_RX_NOBCAST && features & bit::CTRL_RX != 0 => {
            Some(Request::Filter)
        }
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if features & bit::MQ != 0 => {
            Some(Request::Pairs(u16::from_le_bytes(word()?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_agreed_on_is_known() {
        let word = || Some([2, 0]);
        assert_eq!(parse(bit::MQ, 4, 0, word), Some(Request::Pairs(2)));
        assert_eq!(parse(bit::MQ, 4, 0, || None), None);
        assert_eq!(parse(0, 4, 0, word), None);
        assert_eq!(parse(bit::CTRL_RX, 0, 1, word), Some(Request::Filter));
        assert_eq!(parse(bit::CTRL_RX, 0, 6, word), None);
        assert_eq!(parse(u64::MAX, 9, 0, word), None);
    }
}
