//! `e1000e`: an Intel 82574L network controller, which guests without virtio have a driver for. A function as any other for
//! the guest; packets go to and come from a network back end by a thread of its own.
//!
//! | file | what |
//! |---|---|
//! | `regs` | names of registers and bits |
//! | `registers` | the registers as a state machine; which says what is to be done |
//! | `causes` | interrupt causes and masks, and what they make of MSI-X, MSI and the pin |
//! | `nvm`, `phy`, `stats` | the memory of ids, the way to the cable, the counters |
//! | `ring` | where descriptors are |
//! | `transmit`, `offload` | packets that go; their checksums, and segments of TCP |
//! | `receive`, `filter` | packets that come; which of them the driver wants |
//! | `function`, `front_end` | the PCI function and its thread; the device type |
//!
//! What is there of the controller: both transmit rings and the first receive ring, legacy, extended and packet split
//! descriptors, checksums and TCP segmentation of what goes, VLAN tags and filters, MSI-X, MSI, INTx. Interrupts are not
//! held back (a driver masks them while it polls), a link is there as long as its back end is, firmware, flash and
//! wake-up are not there.

mod causes;
mod filter;
mod front_end;
mod function;
mod nvm;
mod offload;
mod phy;
mod receive;
mod registers;
mod regs;
mod ring;
mod stats;
#[cfg(test)]
mod tests;
mod transmit;

pub use front_end::TYPE;
