//! The layout of the table of names, shared by the build script that writes it and the code that reads it.
//!
//! ```text
//! u32 number of entries, little endian
//! entries, ascending by key: u32 key, u32 offset of the name in the text
//! the text: for each name a u8 length and that many bytes of UTF-8
//! ```

/// Bytes of one entry.
pub const ENTRY: usize = 8;
/// Bytes of the count.
pub const HEADER: usize = 4;
