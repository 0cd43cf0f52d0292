//! How the machine starts: where things are in guest-physical memory, what is put there, and in which state the
//! first vCPU begins.
//!
//! No firmware runs. The kernel is entered the way a boot loader would: a bzImage by the 64-bit entry of the Linux
//! boot protocol, an ELF vmlinux by its PVH note, or by the 64-bit entry where it has none.
//!
//! - [`layout`]: the address map, every fixed address in one place.
//! - [`linux`]: [`linux::LinuxImage`], read from open files at every start of the guest; [`bzimage`], [`elf`] and
//!   [`initrd`] plan, [`zero_page`] and [`pvh`] describe the machine to the kernel, [`e820`] its memory.
//! - [`cpu_state`]: the registers at the entry point as plain data; [`paging`] is the identity map for them.
//! - [`acpi`]: the tables.
//!
//! Everything plans first (data in, data out) and writes to guest memory last.

pub mod acpi;
pub mod bzimage;
pub mod cpu_state;
pub mod e820;
pub mod elf;
pub mod initrd;
pub mod layout;
pub mod linux;
pub mod paging;
pub mod pvh;
mod source;
pub mod zero_page;
