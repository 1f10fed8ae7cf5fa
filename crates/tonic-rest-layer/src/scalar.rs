//! Converts text and JSON numbers to scalar values, as in ProtoJSON.
//!
//! Path variables, query parameters, map keys and JSON strings all use [`Scalar::from_text`], so that a value has the same meaning in
//! path and body.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;

use crate::schema::Kind;
use crate::schema::Schema;
use crate::wire;
use crate::wire::WireType;

/// One value, by its wire type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Cow<'a, [u8]>),
}

/// A value is not valid for its field. Has what was expected, and never the value, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub(crate) struct Mismatch(pub &'static str);

/// ProtoJSON requires parsers to accept base64 with and without padding.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

impl<'a> Scalar<'a> {
    /// Reads a value from text. Fails for `Kind::Message`.
    pub(crate) fn from_text(schema: &Schema, kind: Kind, text: &'a str) -> Result<Scalar<'a>, Mismatch> {
        let expected = Mismatch(expectation(kind));
        match kind {
            Kind::String => Ok(Scalar::Bytes(Cow::Borrowed(text.as_bytes()))),
            Kind::Bytes => decode_base64(text).map(|bytes| Scalar::Bytes(Cow::Owned(bytes))).ok_or(expected),
            Kind::Bool => match text {
                "true" => Ok(Scalar::Varint(1)),
                "false" => Ok(Scalar::Varint(0)),
                _ => Err(expected),
            },
            Kind::Enum(id) => match schema.enumeration(id).number(text) {
                Some(number) => Ok(Scalar::Varint(i64::from(number) as u64)),
                None => Scalar::from_number_text(kind, text)?.check_enum(schema, kind),
            },
            Kind::Double | Kind::Float => match text {
                "NaN" => Ok(Scalar::float(kind, f64::NAN)),
                "Infinity" => Ok(Scalar::float(kind, f64::INFINITY)),
                "-Infinity" => Ok(Scalar::float(kind, f64::NEG_INFINITY)),
                _ => Scalar::from_number_text(kind, text),
            },
            Kind::Message(_) => Err(expected),
            Kind::Int32
            | Kind::Int64
            | Kind::Uint32
            | Kind::Uint64
            | Kind::Sint32
            | Kind::Sint64
            | Kind::Fixed32
            | Kind::Fixed64
            | Kind::Sfixed32
            | Kind::Sfixed64 => Scalar::from_number_text(kind, text),
        }
    }

    /// Reads a value from a JSON string. Stricter than [`Scalar::from_text`]: JSON has its own booleans, and numbers for enums.
    pub(crate) fn from_json_string(schema: &Schema, kind: Kind, text: &'a str) -> Result<Scalar<'a>, Mismatch> {
        let expected = Mismatch(expectation(kind));
        match kind {
            Kind::Bool => Err(expected),
            Kind::Enum(id) => {
                let number = schema.enumeration(id).number(text).ok_or(expected)?;
                Ok(Scalar::Varint(i64::from(number) as u64))
            }
            _ => Scalar::from_text(schema, kind, text),
        }
    }

    /// Fails if this is an unknown number of a closed enum.
    pub(crate) fn check_enum(self, schema: &Schema, kind: Kind) -> Result<Scalar<'a>, Mismatch> {
        match (kind, &self) {
            (Kind::Enum(id), Scalar::Varint(number)) if !schema.enumeration(id).accepts(*number as i32) => {
                Err(Mismatch(expectation(kind)))
            }
            _ => Ok(self),
        }
    }

    /// Reads a number in the grammar of JSON: no plus sign and no leading zeros.
    pub(crate) fn from_number_text(kind: Kind, text: &str) -> Result<Scalar<'a>, Mismatch> {
        let expected = Mismatch(expectation(kind));
        if !is_json_number(text) {
            return Err(expected);
        }
        if matches!(kind, Kind::Double | Kind::Float) {
            return Scalar::from_f64(kind, text.parse().map_err(|_| expected)?);
        }
        // Not via a float, which is inexact beyond 2^53.
        let whole = match text.parse::<i64>() {
            Ok(number) => i128::from(number),
            Err(_) => whole_number(text).ok_or(expected)?,
        };
        match i64::try_from(whole) {
            Ok(number) => Scalar::from_i64(kind, number),
            Err(_) => Scalar::from_u64(kind, u64::try_from(whole).map_err(|_| expected)?),
        }
    }

    pub(crate) fn from_bool(kind: Kind, value: bool) -> Result<Scalar<'a>, Mismatch> {
        if kind == Kind::Bool { Ok(Scalar::Varint(value.into())) } else { Err(Mismatch(expectation(kind))) }
    }

    pub(crate) fn from_i64(kind: Kind, value: i64) -> Result<Scalar<'a>, Mismatch> {
        let expected = Mismatch(expectation(kind));
        match kind {
            Kind::Int32 | Kind::Enum(_) | Kind::Sint32 | Kind::Sfixed32 => {
                let value = i32::try_from(value).map_err(|_| expected)?;
                Ok(match kind {
                    Kind::Sint32 => Scalar::Varint(wire::zigzag(value.into())),
                    Kind::Sfixed32 => Scalar::Fixed32(value as u32),
                    _ => Scalar::Varint(i64::from(value) as u64),
                })
            }
            Kind::Int64 => Ok(Scalar::Varint(value as u64)),
            Kind::Sint64 => Ok(Scalar::Varint(wire::zigzag(value))),
            Kind::Sfixed64 => Ok(Scalar::Fixed64(value as u64)),
            Kind::Uint32 | Kind::Uint64 | Kind::Fixed32 | Kind::Fixed64 => {
                Scalar::from_u64(kind, u64::try_from(value).map_err(|_| expected)?)
            }
            Kind::Double | Kind::Float => Ok(Scalar::float(kind, value as f64)),
            Kind::Bool | Kind::String | Kind::Bytes | Kind::Message(_) => Err(expected),
        }
    }

    pub(crate) fn from_u64(kind: Kind, value: u64) -> Result<Scalar<'a>, Mismatch> {
        let expected = Mismatch(expectation(kind));
        match kind {
            Kind::Uint64 => Ok(Scalar::Varint(value)),
            Kind::Fixed64 => Ok(Scalar::Fixed64(value)),
            Kind::Uint32 => Ok(Scalar::Varint(u32::try_from(value).map_err(|_| expected)?.into())),
            Kind::Fixed32 => Ok(Scalar::Fixed32(u32::try_from(value).map_err(|_| expected)?)),
            Kind::Double | Kind::Float => Ok(Scalar::float(kind, value as f64)),
            _ => Scalar::from_i64(kind, i64::try_from(value).map_err(|_| expected)?),
        }
    }

    /// Reads a value of a float kind. Integers are read from their text, because the parser's float may be inexact.
    pub(crate) fn from_f64(kind: Kind, value: f64) -> Result<Scalar<'a>, Mismatch> {
        let expected = Mismatch(expectation(kind));
        match kind {
            Kind::Double if value.is_finite() => Ok(Scalar::float(kind, value)),
            Kind::Float if (value as f32).is_finite() => Ok(Scalar::float(kind, value)),
            _ => Err(expected),
        }
    }

    fn float(kind: Kind, value: f64) -> Scalar<'a> {
        if kind == Kind::Float { Scalar::Fixed32((value as f32).to_bits()) } else { Scalar::Fixed64(value.to_bits()) }
    }

    /// Writes the value as the field `number`.
    pub(crate) fn put(&self, out: &mut Vec<u8>, number: u32) {
        let wire_type = match self {
            Scalar::Varint(_) => WireType::Varint,
            Scalar::Fixed64(_) => WireType::Fixed64,
            Scalar::Fixed32(_) => WireType::Fixed32,
            Scalar::Bytes(_) => WireType::Delimited,
        };
        wire::put_tag(out, number, wire_type);
        self.put_bare(out);
    }

    /// Writes the value without a tag, as in a packed list.
    pub(crate) fn put_bare(&self, out: &mut Vec<u8>) {
        match self {
            Scalar::Varint(value) => wire::put_varint(out, *value),
            Scalar::Fixed64(value) => out.extend_from_slice(&value.to_le_bytes()),
            Scalar::Fixed32(value) => out.extend_from_slice(&value.to_le_bytes()),
            Scalar::Bytes(value) => {
                wire::put_varint(out, value.len() as u64);
                out.extend_from_slice(value);
            }
        }
    }
}

/// What a field of this kind accepts, for error messages.
pub(crate) fn expectation(kind: Kind) -> &'static str {
    match kind {
        Kind::Double | Kind::Float => "a number within range, or \"NaN\", \"Infinity\", \"-Infinity\"",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a 32-bit integer",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a 64-bit integer, as a number or a string",
        Kind::Uint32 | Kind::Fixed32 => "an unsigned 32-bit integer",
        Kind::Uint64 | Kind::Fixed64 => "an unsigned 64-bit integer, as a number or a string",
        Kind::Bool => "true or false",
        Kind::String => "a string",
        Kind::Bytes => "base64",
        Kind::Enum(_) => "the name or the number of an enum value",
        Kind::Message(_) => "an object",
    }
}

/// Decodes either alphabet, padded or not.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if text.contains(['-', '_']) { URL_SAFE.decode(text).ok() } else { STANDARD.decode(text).ok() }
}

/// The exact value of a JSON number. `None` if it is not an integer, or too large for `i128`.
fn whole_number(text: &str) -> Option<i128> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let shift = exponent.parse::<i64>().ok()?.checked_sub(fraction.len() as i64)?;
    // Trailing zeros of the digits compensate a negative exponent.
    let shift = shift.checked_add((digits.len() - significant.len()) as i64)?;
    let value = significant.trim_start_matches('0').parse::<i128>().ok()?;
    let value = value.checked_mul(10_i128.checked_pow(u32::try_from(shift).ok()?)?)?;
    Some(if unsigned.len() < text.len() { -value } else { value })
}

/// `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?` (RFC 8259 §6).
fn is_json_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::PrintStyle;

    fn read(kind: Kind, text: &str) -> Result<Scalar<'_>, Mismatch> {
        let schema = Schema::new(&prost_reflect::DescriptorPool::new(), PrintStyle::default());
        Scalar::from_text(&schema, kind, text)
    }

    #[test]
    fn integers_outside_their_range_are_rejected() {
        assert_eq!(read(Kind::Int32, "2147483647"), Ok(Scalar::Varint(2_147_483_647)));
        assert!(read(Kind::Int32, "2147483648").is_err());
        assert_eq!(read(Kind::Int64, "-9223372036854775808"), Ok(Scalar::Varint(1 << 63)));
        assert!(read(Kind::Int64, "9223372036854775808").is_err());
        assert_eq!(read(Kind::Uint64, "18446744073709551615"), Ok(Scalar::Varint(u64::MAX)));
        assert!(read(Kind::Uint64, "18446744073709551616").is_err());
        assert!(read(Kind::Uint32, "-1").is_err());
        assert_eq!(read(Kind::Int64, "9007199254740993"), Ok(Scalar::Varint(9_007_199_254_740_993)));
    }

    #[test]
    fn numbers_follow_the_json_grammar() {
        for text in ["+1", "01", "", " 1", "1 ", "0x1", "1_000", "inf", "nan", "1.", ".5", "--1", "1e", "1e+"] {
            assert!(read(Kind::Int32, text).is_err(), "{text}");
            assert!(read(Kind::Double, text).is_err(), "{text}");
        }
        assert_eq!(read(Kind::Int32, "1e2"), Ok(Scalar::Varint(100)));
        assert_eq!(read(Kind::Int32, "100.0"), Ok(Scalar::Varint(100)));
        assert!(read(Kind::Int32, "1.5").is_err());
        assert!(read(Kind::Float, "3.5e38").is_err());
        assert!(read(Kind::Double, "1e999").is_err());
    }

    #[test]
    fn integers_are_exact_or_rejected() {
        for text in ["9007199254740993.0", "9007199254740993e0", "900719925474099.3e1", "90071992547409930.00e-1"] {
            assert_eq!(read(Kind::Int64, text), Ok(Scalar::Varint(9_007_199_254_740_993)), "{text}");
        }
        assert_eq!(read(Kind::Uint64, "1.8446744073709551615e19"), Ok(Scalar::Varint(u64::MAX)));
        assert_eq!(read(Kind::Int64, "-9.223372036854775808e18"), Ok(Scalar::Varint(1 << 63)));
        for text in ["0", "-0", "0.00", "0e99999999999", "-0.0e5"] {
            assert_eq!(read(Kind::Int64, text), Ok(Scalar::Varint(0)), "{text}");
        }
        for text in ["1e-400", "1e400", "1e99999999999", "1e-99999999999", "0.5", "12345e-1", "1e39", "-1e39"] {
            assert!(read(Kind::Int64, text).is_err(), "{text}");
            assert!(read(Kind::Uint64, text).is_err(), "{text}");
        }
        assert!(Scalar::from_f64(Kind::Int64, 1.0).is_err(), "not via a float");
    }

    #[test]
    fn negative_zero_is_kept_in_floats() {
        assert_eq!(read(Kind::Double, "-0"), Ok(Scalar::Fixed64((-0.0_f64).to_bits())));
        assert_eq!(read(Kind::Float, "-0"), Ok(Scalar::Fixed32((-0.0_f32).to_bits())));
    }

    #[test]
    fn booleans_are_true_and_false() {
        assert_eq!(read(Kind::Bool, "true"), Ok(Scalar::Varint(1)));
        for text in ["1", "True", "yes", ""] {
            assert!(read(Kind::Bool, text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_accept_both_base64_alphabets() {
        for text in ["-_8=", "-_8", "+/8=", "+/8"] {
            assert_eq!(read(Kind::Bytes, text), Ok(Scalar::Bytes(Cow::Owned(vec![0xfb, 0xff]))), "{text}");
        }
        assert!(read(Kind::Bytes, "+_8=").is_err());
    }
}
