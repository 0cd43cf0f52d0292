//! What the fuzz targets share: bytes that become decisions, a device of the host made of them, and the seeds that each
//! target starts from.
//!
//! A target is a file in `targets/` and a `[[bin]]` in Cargo.toml; its seeds are a row of [`seeds::TARGETS`]. Run them all
//! with `cargo lab fuzz`.

pub mod device;
pub mod disk;
pub mod driver;
pub mod guest;
pub mod input;
pub mod machine;
pub mod seeds;
pub mod wire;
