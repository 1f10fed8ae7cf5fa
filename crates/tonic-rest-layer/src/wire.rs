//! The primitives of the protobuf wire format.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

/// The wire type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireType {
    Varint,
    Fixed64,
    Delimited,
    StartGroup,
    EndGroup,
    Fixed32,
}

/// The value of a field on the wire, not yet interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Delimited(&'a [u8]),
}

/// The bytes are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a protobuf message")]
pub(crate) struct Malformed;

/// The maximum depth of groups. Deeper ones are malformed.
const GROUP_DEPTH_MAX: u32 = 100;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: WireType) {
    let bits = match wire_type {
        WireType::Varint => 0,
        WireType::Fixed64 => 1,
        WireType::Delimited => 2,
        WireType::StartGroup => 3,
        WireType::EndGroup => 4,
        WireType::Fixed32 => 5,
    };
    put_varint(out, u64::from(number) << 3 | bits);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_tag(out, number, WireType::Delimited);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Writes a length-delimited field whose length is not known in advance: a nested message, a packed list.
pub(crate) fn put_delimited<E>(
    out: &mut Vec<u8>,
    number: u32,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    put_tag(out, number, WireType::Delimited);
    let start = out.len();
    body(out)?;
    let length = out.len() - start;
    put_varint(out, length as u64);
    // Moves the length in front of the content.
    out[start..].rotate_left(length);
    Ok(())
}

/// Encodes a signed integer so that small negative numbers have short varints.
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

pub(crate) fn take_varint(input: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for (position, &byte) in input.iter().enumerate().take(10) {
        // The tenth byte has only the last bit of 64.
        if position == 9 && byte > 1 {
            return Err(Malformed);
        }
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte < 0x80 {
            *input = &input[position + 1..];
            return Ok(value);
        }
    }
    Err(Malformed)
}

pub(crate) fn take_fixed32(input: &mut &[u8]) -> Result<u32, Malformed> {
    let (head, tail) = input.split_first_chunk().ok_or(Malformed)?;
    *input = tail;
    Ok(u32::from_le_bytes(*head))
}

pub(crate) fn take_fixed64(input: &mut &[u8]) -> Result<u64, Malformed> {
    let (head, tail) = input.split_first_chunk().ok_or(Malformed)?;
    *input = tail;
    Ok(u64::from_le_bytes(*head))
}

/// Reads the next field of a message. `None` at the end. Skips groups, because schemas with groups are rejected.
pub(crate) fn take_field<'a>(input: &mut &'a [u8]) -> Result<Option<(u32, Raw<'a>)>, Malformed> {
    loop {
        if input.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = take_tag(input)?;
        let raw = match wire_type {
            WireType::Varint => Raw::Varint(take_varint(input)?),
            WireType::Fixed64 => Raw::Fixed64(take_fixed64(input)?),
            WireType::Fixed32 => Raw::Fixed32(take_fixed32(input)?),
            WireType::Delimited => Raw::Delimited(take_delimited(input)?),
            WireType::StartGroup => {
                skip_group(input, number)?;
                continue;
            }
            WireType::EndGroup => return Err(Malformed),
        };
        return Ok(Some((number, raw)));
    }
}

fn take_tag(input: &mut &[u8]) -> Result<(u32, WireType), Malformed> {
    let tag = u32::try_from(take_varint(input)?).map_err(|_| Malformed)?;
    let wire_type = match tag & 7 {
        0 => WireType::Varint,
        1 => WireType::Fixed64,
        2 => WireType::Delimited,
        3 => WireType::StartGroup,
        4 => WireType::EndGroup,
        5 => WireType::Fixed32,
        _ => return Err(Malformed),
    };
    if tag >> 3 == 0 { Err(Malformed) } else { Ok((tag >> 3, wire_type)) }
}

fn take_delimited<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(take_varint(input)?).map_err(|_| Malformed)?;
    let (value, rest) = input.split_at_checked(length).ok_or(Malformed)?;
    *input = rest;
    Ok(value)
}

fn skip_group(input: &mut &[u8], number: u32) -> Result<(), Malformed> {
    let mut open = vec![number];
    while let Some(&innermost) = open.last() {
        let (number, wire_type) = take_tag(input)?;
        match wire_type {
            WireType::Varint => drop(take_varint(input)?),
            WireType::Fixed64 => drop(take_fixed64(input)?),
            WireType::Fixed32 => drop(take_fixed32(input)?),
            WireType::Delimited => drop(take_delimited(input)?),
            WireType::StartGroup if open.len() as u32 >= GROUP_DEPTH_MAX => return Err(Malformed),
            WireType::StartGroup => open.push(number),
            WireType::EndGroup if number == innermost => drop(open.pop()),
            WireType::EndGroup => return Err(Malformed),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_their_boundaries() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut input = out.as_slice();
            assert_eq!(take_varint(&mut input), Ok(value));
            assert!(input.is_empty());
        }
        assert_eq!(take_varint(&mut [0xff; 11].as_slice()), Err(Malformed), "longer than ten bytes");
        assert_eq!(take_varint(&mut [0x80].as_slice()), Err(Malformed), "cut off");
    }

    #[test]
    fn zigzag_is_its_own_inverse() {
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn a_length_precedes_its_content() {
        let mut out = vec![9];
        put_delimited::<()>(&mut out, 1, |out| {
            out.extend_from_slice(&[7; 300]);
            Ok(())
        })
        .unwrap();
        assert_eq!(out[..4], [9, 0x0a, 0xac, 0x02]);
        assert_eq!(out[4..], [7; 300]);
    }

    #[test]
    fn groups_are_skipped_and_incomplete_ones_are_rejected() {
        let mut group = [0x0b, 0x10, 0x01, 0x0c, 0x18, 0x05].as_slice();
        assert_eq!(take_field(&mut group), Ok(Some((3, Raw::Varint(5)))));
        assert_eq!(take_field(&mut [0x0b, 0x10, 0x01].as_slice()), Err(Malformed));
        assert_eq!(take_field(&mut [0x0b; 500].as_slice()), Err(Malformed));
    }
}
