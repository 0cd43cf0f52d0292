//! SRAT and SLIT (ACPI 6.5, sections 5.2.16 and 5.2.17): which processors and which memory are near each other, and how far
//! the others are.
//!
//! The crate's SRAT has no affinity of local APICs, so the tables are put together from raw structures.

use std::ops::Range;

use acpi_tables::sdt::Sdt;

use super::raw_table;

/// Revisions of ACPI 3.0 and later.
const SRAT_REVISION: u8 = 3;
const SLIT_REVISION: u8 = 1;
const LOCAL_APIC_AFFINITY: u8 = 0;
const MEMORY_AFFINITY: u8 = 1;
const ENABLED: u32 = 1 << 0;
/// Memory may come there while the system runs.
const HOT_PLUGGABLE: u32 = 1 << 1;

/// The guest's memory nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NumaInput {
    /// The node of each processor, in the order of the APIC ids.
    pub cpus: Vec<u32>,
    /// The memory of nodes, ascending.
    pub memory: Vec<(u32, Range<u64>)>,
    /// Addresses where memory may come later, and the node that it belongs to if nothing else is said.
    pub room: Option<(u32, Range<u64>)>,
    /// For each node its distances to all.
    pub distances: Option<Vec<Vec<u8>>>,
}

/// The SRAT of processors with these APIC ids.
pub fn srat(input: &NumaInput, apic_ids: &[u32]) -> Sdt {
    let mut contents = Vec::new();
    // A field that was a revision, then eight reserved bytes.
    contents.extend_from_slice(&1u32.to_le_bytes());
    contents.extend_from_slice(&0u64.to_le_bytes());
    for (id, node) in apic_ids.iter().zip(&input.cpus) {
        contents.extend_from_slice(&local_apic(*id as u8, *node));
    }
    for (node, range) in &input.memory {
        contents.extend_from_slice(&memory(*node, range, ENABLED));
    }
    if let Some((node, range)) = &input.room {
        contents.extend_from_slice(&memory(*node, range, ENABLED | HOT_PLUGGABLE));
    }
    raw_table(*b"SRAT", SRAT_REVISION, &contents)
}

/// Processor local APIC affinity (section 5.2.16.1).
fn local_apic(id: u8, node: u32) -> [u8; 16] {
    let [low, high @ ..] = node.to_le_bytes();
    let [a, b, c, d] = ENABLED.to_le_bytes();
    [LOCAL_APIC_AFFINITY, 16, low, id, a, b, c, d, 0, high[0], high[1], high[2], 0, 0, 0, 0]
}

/// Memory affinity (section 5.2.16.2).
fn memory(node: u32, range: &Range<u64>, flags: u32) -> Vec<u8> {
    let mut entry = vec![MEMORY_AFFINITY, 40];
    entry.extend_from_slice(&node.to_le_bytes());
    entry.extend_from_slice(&[0; 2]);
    entry.extend_from_slice(&range.start.to_le_bytes());
    entry.extend_from_slice(&(range.end - range.start).to_le_bytes());
    entry.extend_from_slice(&[0; 4]);
    entry.extend_from_slice(&flags.to_le_bytes());
    entry.extend_from_slice(&[0; 8]);
    entry
}

/// The SLIT.
pub fn slit(distances: &[Vec<u8>]) -> Sdt {
    let mut contents = (distances.len() as u64).to_le_bytes().to_vec();
    distances.iter().for_each(|row| contents.extend_from_slice(row));
    raw_table(*b"SLIT", SLIT_REVISION, &contents)
}

#[cfg(test)]
mod tests {
    use acpi_tables::Aml;

    use super::*;

    fn bytes(table: &Sdt) -> Vec<u8> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        bytes
    }

    #[test]
    fn each_processor_and_each_piece_of_memory_has_its_node() {
        let input = NumaInput {
            cpus: vec![0, 300],
            memory: vec![(0, 0..0xa_0000), (1, 0x10_0000..0x4000_0000)],
            room: Some((1, 1 << 32..2 << 32)),
            distances: None,
        };
        let table = bytes(&srat(&input, &[0, 2]));
        assert_eq!(table.len(), 36 + 12 + 2 * 16 + 3 * 40);
        assert_eq!(table[48..64], [0, 16, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(table[64..80], [0, 16, 44, 2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let second = &table[120..160];
        assert_eq!(second[..6], [1, 40, 1, 0, 0, 0]);
        assert_eq!(second[8..24], [0x10_0000u64.to_le_bytes(), 0x3ff0_0000u64.to_le_bytes()].concat());
        assert_eq!(second[28..32], ENABLED.to_le_bytes());
        assert_eq!(table[188..192], (ENABLED | HOT_PLUGGABLE).to_le_bytes());
    }

    #[test]
    fn distances_are_a_square() {
        let table = bytes(&slit(&[vec![10, 21], vec![31, 10]]));
        assert_eq!(table[36..], [2, 0, 0, 0, 0, 0, 0, 0, 10, 21, 31, 10]);
    }
}
