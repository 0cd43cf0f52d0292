//! Passthrough of host PCI functions by VFIO (kernel: include/uapi/linux/vfio.h, Documentation/driver-api/vfio.rst).
pub mod bars;
pub mod config;
pub mod container;
pub mod device;
pub mod dma;
pub mod irq;
pub mod reset;
pub mod rom;
pub mod seams;
pub mod space;
#[cfg(test)]
pub(crate) mod testing;
mod uapi;
