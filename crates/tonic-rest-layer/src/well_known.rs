//! The messages whose JSON is a string: Timestamp, Duration, FieldMask.

use prost_reflect::prost::Message;
use prost_reflect::prost_types::Duration;
use prost_reflect::prost_types::FieldMask;
use prost_reflect::prost_types::Timestamp;

use crate::scalar::Mismatch;
use crate::schema::Shape;
use crate::wire::Malformed;

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, the range of `timestamp.proto`.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// ±10,000 years, the range of `duration.proto`.
const DURATION_SECONDS: std::ops::RangeInclusive<i64> = -315_576_000_000..=315_576_000_000;

/// Reads the string form of a Timestamp or a Duration, and returns the message's bytes. Fails for other shapes.
pub(crate) fn read(shape: Shape, text: &str) -> Result<Vec<u8>, Mismatch> {
    match shape {
        Shape::Timestamp => read_timestamp(text)
            .map(|timestamp| timestamp.encode_to_vec())
            .ok_or(Mismatch("an RFC 3339 time between the years 1 and 9999")),
        Shape::Duration => read_duration(text)
            .map(|duration| duration.encode_to_vec())
            .ok_or(Mismatch("seconds followed by `s`, between -315576000000 and 315576000000")),
        _ => Err(Mismatch("another form")),
    }
}

/// Writes the string form of the message, without quotes.
///
/// # Errors
///
/// Fails if the bytes are not such a message, or if the value has no string form.
pub(crate) fn print(shape: Shape, message: &[u8]) -> Result<String, Malformed> {
    match shape {
        Shape::Timestamp => {
            let timestamp = Timestamp::decode(message).map_err(|_| Malformed)?;
            let valid = TIMESTAMP_SECONDS.contains(&timestamp.seconds) && (0..1_000_000_000).contains(&timestamp.nanos);
            valid.then(|| timestamp.to_string()).ok_or(Malformed)
        }
        Shape::Duration => {
            let duration = Duration::decode(message).map_err(|_| Malformed)?;
            is_valid_duration(&duration).then(|| duration.to_string()).ok_or(Malformed)
        }
        Shape::FieldMask => print_field_mask(&FieldMask::decode(message).map_err(|_| Malformed)?),
        _ => Err(Malformed),
    }
}

fn read_timestamp(text: &str) -> Option<Timestamp> {
    // prost's parser is more lenient than ProtoJSON: it accepts a date without a time, a space, lower case, and reads :60 as :59.
    if !is_rfc3339(text.as_bytes()) {
        return None;
    }
    let timestamp: Timestamp = text.parse().ok()?;
    TIMESTAMP_SECONDS.contains(&timestamp.seconds).then_some(timestamp)
}

/// Whether the text has the form `YYYY-MM-DDTHH:MM:SS[.f{1,9}](Z|±HH:MM)`, in upper case, with a valid time of day. Seconds are 0 to
/// 59, because a Timestamp cannot represent a leap second. The parser checks the date.
fn is_rfc3339(text: &[u8]) -> bool {
    let Some((head, mut tail)) = text.split_first_chunk::<19>() else { return false };
    let head_fits = head.iter().zip(b"0000-00-00T00:00:00").all(|(byte, pattern)| match pattern {
        b'0' => byte.is_ascii_digit(),
        _ => byte == pattern,
    });
    if let [b'.', fraction @ ..] = tail {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=9).contains(&digits) {
            return false;
        }
        tail = &fraction[digits..];
    }
    let offset_fits = match tail {
        b"Z" => true,
        [b'+' | b'-', h1 @ b'0'..=b'2', h2 @ b'0'..=b'9', b':', b'0'..=b'5', b'0'..=b'9'] => (*h1, *h2) <= (b'2', b'3'),
        _ => false,
    };
    let two = |at: usize| (head[at] - b'0') * 10 + (head[at + 1] - b'0');
    head_fits && offset_fits && two(11) <= 23 && two(14) <= 59 && two(17) <= 59
}

fn read_duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = number.strip_prefix('-').unwrap_or(number).split_once('.').unwrap_or((number, "0"));
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    let digits = |text: &str, max| (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole, 12) || !digits(fraction, 9) {
        return None;
    }
    let duration: Duration = text.parse().ok()?;
    is_valid_duration(&duration).then_some(duration)
}

fn is_valid_duration(duration: &Duration) -> bool {
    let one_sign = duration.seconds.signum() * i64::from(duration.nanos.signum()) >= 0;
    DURATION_SECONDS.contains(&duration.seconds) && duration.nanos.unsigned_abs() < 1_000_000_000 && one_sign
}

/// Reads paths in lowerCamelCase, as in ProtoJSON. With `snake_case`, also reads proto names, because clients copy names from replies
/// into `update_mask`. Fails for paths without a lowerCamelCase form, because they could not be printed.
pub(crate) fn read_field_mask(text: &str, snake_case: bool) -> Result<Vec<u8>, Mismatch> {
    const EXPECTED: Mismatch = Mismatch("field paths in lowerCamelCase, separated by commas");
    let mut paths = Vec::new();
    for path in text.split(',').filter(|path| !path.is_empty()) {
        let mut snake = String::with_capacity(path.len() + 4);
        for character in path.chars() {
            match character {
                'A'..='Z' => {
                    snake.push('_');
                    snake.push(character.to_ascii_lowercase());
                }
                '_' if !snake_case => return Err(EXPECTED),
                'a'..='z' | '0'..='9' | '_' | '.' | '*' => snake.push(character),
                _ => return Err(EXPECTED),
            }
        }
        camel_case(&snake, &mut String::new()).map_err(|Malformed| EXPECTED)?;
        paths.push(snake);
    }
    Ok(FieldMask { paths }.encode_to_vec())
}

fn print_field_mask(mask: &FieldMask) -> Result<String, Malformed> {
    let mut text = String::new();
    for (position, path) in mask.paths.iter().enumerate() {
        if position > 0 {
            text.push(',');
        }
        camel_case(path, &mut text)?;
    }
    Ok(text)
}

/// Appends a path in lowerCamelCase. Fails if it would not be read back as the same path (ProtoJSON, FieldMask): `fooBar`,
/// `foo__bar`, `foo_3`, `foo_`.
fn camel_case(path: &str, text: &mut String) -> Result<(), Malformed> {
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '_' => match characters.next() {
                Some(letter @ 'a'..='z') => text.push(letter.to_ascii_uppercase()),
                _ => return Err(Malformed),
            },
            'A'..='Z' => return Err(Malformed),
            _ => text.push(character),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(shape: Shape, text: &str) -> Option<String> {
        let bytes = match shape {
            Shape::FieldMask => read_field_mask(text, false).ok()?,
            _ => read(shape, text).ok()?,
        };
        Some(print(shape, &bytes).unwrap())
    }

    #[test]
    fn times_are_strict_and_bounded() {
        for text in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "2024-01-02T03:04:05.120Z"] {
            assert_eq!(round_trip(Shape::Timestamp, text).as_deref(), Some(text));
        }
        assert_eq!(round_trip(Shape::Timestamp, "2024-01-02T03:04:05+01:00").as_deref(), Some("2024-01-02T02:04:05Z"));
        for text in [
            "2024-01-02",
            "2024-01-02 03:04:05Z",
            "2024-01-02t03:04:05z",
            "2024-01-02T03:04:60Z",
            "2016-12-31T23:59:60Z",
            "2016-12-31T15:59:60-08:00",
            "2024-01-02T03:60:05Z",
            "2024-01-02T24:00:00Z",
            "2024-01-02T23:59:99Z",
            "2024-00-02T03:04:05Z",
            "2024-13-02T03:04:05Z",
            "2024-01-00T03:04:05Z",
            "2024-01-32T03:04:05Z",
            "2023-02-29T03:04:05Z",
            "1900-02-29T03:04:05Z",
            "2024-02-30T03:04:05Z",
            "2024-04-31T03:04:05Z",
            "9999-12-31T23:59:59-00:01",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+01:00",
            "2024-01-02T03:04:05",
            "2024-01-02T03:04:05.Z",
            "2024-01-02T03:04:05.1234567890Z",
            "2024-01-02T03:04:05+24:00",
            "2024-01-02T03:04:05+00:60",
            "2024-01-02T03:04:05-0800",
            "é024-01-02T03:04:05Z",
            "",
        ] {
            assert_eq!(round_trip(Shape::Timestamp, text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_strict_and_bounded() {
        for text in ["0s", "1.500s", "-1.000000001s", "-0.500s", "315576000000s"] {
            assert_eq!(round_trip(Shape::Duration, text).as_deref(), Some(text));
        }
        for text in [
            "1",
            "s",
            "1.s",
            ".5s",
            "--1s",
            "-",
            "-s",
            "1e3s",
            "315576000001s",
            "1.1234567890s",
            "99999999999999999999s",
        ] {
            assert_eq!(round_trip(Shape::Duration, text), None, "{text}");
        }
    }

    /// As in protobuf's conformance suite. Proto names need the option.
    #[test]
    fn a_mask_is_in_lower_camel_case_and_round_trips() {
        assert_eq!(round_trip(Shape::FieldMask, "deviceName,labels").as_deref(), Some("deviceName,labels"));
        assert_eq!(round_trip(Shape::FieldMask, "a.bC.d,*").as_deref(), Some("a.bC.d,*"));
        assert_eq!(round_trip(Shape::FieldMask, "").as_deref(), Some(""));
        for text in ["a b", "foo,bar_bar", "foo__bar", "a_1", "é"] {
            assert_eq!(round_trip(Shape::FieldMask, text), None, "{text}");
        }
        assert_eq!(read_field_mask("device_name", true), read_field_mask("deviceName", false));
        for text in ["foo__bar", "foo_3_bar", "a_", "_"] {
            assert!(read_field_mask(text, true).is_err(), "{text}");
        }
        for path in ["fooBar", "foo_3_bar", "foo__bar", "foo_", "a_1B"] {
            let mask = FieldMask { paths: vec![path.to_owned()] };
            assert_eq!(print(Shape::FieldMask, &mask.encode_to_vec()), Err(Malformed), "{path}");
        }
    }
}
