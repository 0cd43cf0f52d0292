//! A block of registers as a table: accesses of any width that cover registers in part, whole, or several at once.

/// One register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<R> {
    /// Offset of its first byte.
    pub offset: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub len: u64,
    /// Which one it is.
    pub register: R,
}

impl<R> Field<R> {
    /// A row of a table.
    pub const fn new(offset: u64, len: u64, register: R) -> Field<R> {
        Field { offset, len, register }
    }
}

/// The bytes that a register and an access have in common: where they begin in the register and in the access, and how
/// many they are.
fn overlap<R>(field: &Field<R>, offset: u64, len: usize) -> Option<(usize, usize, usize)> {
    let end = offset.saturating_add(len as u64).min(field.offset + field.len);
    let start = offset.max(field.offset);
    let count = end.checked_sub(start).filter(|count| *count > 0)?;
    Some(((start - field.offset) as usize, (start - offset) as usize, count as usize))
}

/// Reads `data.len()` bytes at `offset`: `get` gives a register's value. What no register covers reads as ones.
pub fn read<R: Copy>(table: &[Field<R>], offset: u64, data: &mut [u8], get: impl Fn(R) -> u64) {
    data.fill(0xff);
    for field in table {
        if let Some((from, to, count)) = overlap(field, offset, data.len()) {
            let value = get(field.register).to_le_bytes();
            data[to..to + count].copy_from_slice(&value[from..from + count]);
        }
    }
}

/// Writes `data` at `offset`: `set` is called once for each register that is covered, in the table's order, with its new
/// value. The bytes that a partial access leaves out keep what `get` says.
pub fn write<R: Copy, S>(
    table: &[Field<R>],
    offset: u64,
    data: &[u8],
    state: &mut S,
    get: impl Fn(&S, R) -> u64,
    mut set: impl FnMut(&mut S, R, u64),
) {
    for field in table {
        if let Some((to, from, count)) = overlap(field, offset, data.len()) {
            let mut value = match count as u64 == field.len {
                true => [0; 8],
                false => get(state, field.register).to_le_bytes(),
            };
            value[to..to + count].copy_from_slice(&data[from..from + count]);
            set(state, field.register, u64::from_le_bytes(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[Field<usize>] =
        &[Field::new(0, 4, 0), Field::new(4, 1, 1), Field::new(6, 2, 2), Field::new(8, 8, 3), Field::new(16, 2, 4)];

    #[test]
    fn partial_and_straddling_accesses_reach_the_right_bytes() {
        let mut state = [0u64; 5];
        let mut put = |offset, data: &[u8]| {
            write(
                TABLE,
                offset,
                data,
                &mut state,
                |state, index| state[index],
                |state, index, value| state[index] = value,
            );
        };
        put(8, &[1, 2, 3, 4]);
        put(12, &[5, 6, 7, 8]);
        put(2, &[9, 9, 9, 9]);
        put(20, &[1]);
        assert_eq!(state, [0x0909_0000, 9, 0, 0x0807_0605_0403_0201, 0]);
    }

    proptest! {
        /// One access is the same as one for each of its bytes.
        #[test]
        fn an_access_is_its_bytes(offset in 0u64..24, data in prop::collection::vec(any::<u8>(), 1..9)) {
            let apply = |parts: &[(u64, &[u8])]| {
                let mut state = [0x1122_3344_5566_7788u64; 5];
                for (offset, data) in parts {
                    write(TABLE, *offset, data, &mut state, |s, index| s[index], |s, index, value| s[index] = value);
                }
                let mut seen = [0; 24];
                read(TABLE, 0, &mut seen, |index| state[index]);
                seen
            };
            let bytes: Vec<(u64, &[u8])> = data.chunks(1).enumerate().map(|(at, byte)| (offset + at as u64, byte)).collect();
            prop_assert_eq!(apply(&[(offset, &data)]), apply(&bytes));
        }
    }
}
