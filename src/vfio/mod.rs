//! Passthrough of host PCI functions by VFIO (kernel: include/uapi/linux/vfio.h, Documentation/driver-api/vfio.rst).
pub mod bars;
pub mod config;
pub mod container;
pub mod device;
pub mod dma;
pub mod seams;
pub mod space;
mod uapi;
pub mod irq;
pub mod reset;
pub mod rom;
#[cfg(test)]
pub(crate) mod testing;
