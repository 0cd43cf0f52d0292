//! Reproducible test data in which no two blocks are alike (xorshift64*).

use sha2::{Digest, Sha256};

/// `len` bytes that depend on `seed`, which must not be 0.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        data.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    data.truncate(len);
    data
}

/// SHA-256 as `sha256sum` prints it.
pub fn sha256(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_reproducible_and_depends_on_the_seed() {
        assert_eq!(bytes(1, 1003), bytes(1, 1003));
        assert_eq!(bytes(1, 1003).len(), 1003);
        assert_ne!(bytes(1, 64), bytes(2, 64));
    }

    #[test]
    fn digest_is_the_known_one() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
