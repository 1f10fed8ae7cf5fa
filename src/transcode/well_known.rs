//! The message types that ProtoJSON writes as a string: Timestamp, Duration, FieldMask.

use prost_reflect::prost::Message;
use prost_reflect::prost_types::Duration;
use prost_reflect::prost_types::FieldMask;
use prost_reflect::prost_types::Timestamp;

use super::scalar::Mismatch;
use super::schema::Shape;
use super::wire::Malformed;

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, the range that `timestamp.proto` allows.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Ten thousand years either way, the range that `duration.proto` allows.
const DURATION_SECONDS: std::ops::RangeInclusive<i64> = -315_576_000_000..=315_576_000_000;

/// Reads the string form into the message's bytes. Any other shape is a mismatch.
pub(super) fn read(shape: Shape, text: &str) -> Result<Vec<u8>, Mismatch> {
    match shape {
        Shape::Timestamp => read_timestamp(text)
            .map(|timestamp| timestamp.encode_to_vec())
            .ok_or(Mismatch("an RFC 3339 time between the years 1 and 9999")),
        Shape::Duration => read_duration(text)
            .map(|duration| duration.encode_to_vec())
            .ok_or(Mismatch("seconds with an `s` behind them, within 315576000000")),
        Shape::FieldMask => {
            read_field_mask(text).map(|mask| mask.encode_to_vec()).ok_or(Mismatch("field paths, separated by commas"))
        }
        _ => Err(Mismatch("another form")),
    }
}

/// Writes the string form of the message, without quotes.
///
/// # Errors
///
/// When the bytes are not such a message, or hold a value that has no string form.
pub(super) fn print(shape: Shape, message: &[u8]) -> Result<String, Malformed> {
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
    // prost's own parser is more lenient than ProtoJSON: it takes a bare date, a space, lower case.
    if !is_rfc3339(text.as_bytes()) {
        return None;
    }
    let timestamp: Timestamp = text.parse().ok()?;
    TIMESTAMP_SECONDS.contains(&timestamp.seconds).then_some(timestamp)
}

/// `YYYY-MM-DDTHH:MM:SS[.f{1,9}](Z|±HH:MM)`, upper case.
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
    head_fits && offset_fits
}

fn read_duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = number.strip_prefix('-').unwrap_or(number).split_once('.').unwrap_or((number, "0"));
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    let digits = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
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

/// Reads lowerCamelCase, as ProtoJSON writes paths, and snake_case too: our own replies spell fields so, and a client
/// that copies a name from a reply into `update_mask` means that field.
fn read_field_mask(text: &str) -> Option<FieldMask> {
    let mut paths = Vec::new();
    for path in text.split(',').filter(|path| !path.is_empty()) {
        let mut snake = String::with_capacity(path.len() + 4);
        for character in path.chars() {
            match character {
                'A'..='Z' => {
                    snake.push('_');
                    snake.push(character.to_ascii_lowercase());
                }
                'a'..='z' | '0'..='9' | '_' | '.' | '*' => snake.push(character),
                _ => return None,
            }
        }
        paths.push(snake);
    }
    Some(FieldMask { paths })
}

fn print_field_mask(mask: &FieldMask) -> Result<String, Malformed> {
    let mut text = String::new();
    for (position, path) in mask.paths.iter().enumerate() {
        if position > 0 {
            text.push(',');
        }
        let start = text.len();
        let mut characters = path.chars();
        while let Some(character) = characters.next() {
            match character {
                '_' => match characters.next() {
                    Some(letter @ 'a'..='z') => text.push(letter.to_ascii_uppercase()),
                    // `address_1` has no lowerCamelCase; as it is, it reads back as itself.
                    _ => {
                        text.truncate(start);
                        text.push_str(path);
                        break;
                    }
                },
                // Would read back as another path.
                'A'..='Z' => return Err(Malformed),
                _ => text.push(character),
            }
        }
        if text[start..].contains('_') && path.contains(|letter: char| letter.is_ascii_uppercase()) {
            return Err(Malformed);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(shape: Shape, text: &str) -> Option<String> {
        let bytes = read(shape, text).ok()?;
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
            "2024-02-30T03:04:05Z",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+01:00",
            "2024-01-02T03:04:05",
            "2024-01-02T03:04:05.Z",
            "2024-01-02T03:04:05.1234567890Z",
            "2024-01-02T03:04:05+24:00",
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

    #[test]
    fn masks_take_both_spellings() {
        assert_eq!(round_trip(Shape::FieldMask, "deviceName,labels").as_deref(), Some("deviceName,labels"));
        assert_eq!(round_trip(Shape::FieldMask, "device_name").as_deref(), Some("deviceName"));
        assert_eq!(round_trip(Shape::FieldMask, "").as_deref(), Some(""));
        assert_eq!(round_trip(Shape::FieldMask, "a b"), None);
    }

    #[test]
    fn a_mask_that_is_read_is_printed() {
        for (text, printed) in [
            ("address_1", "address_1"),
            ("homeAddress_1,a", "home_address_1,a"),
            ("a__b", "a__b"),
            ("a_", "a_"),
            ("_", "_"),
            ("A", "A"),
            ("a.bC_2.d", "a.b_c_2.d"),
        ] {
            let bytes = read(Shape::FieldMask, text).unwrap();
            assert_eq!(print(Shape::FieldMask, &bytes).as_deref(), Ok(printed));
            assert_eq!(read(Shape::FieldMask, printed).unwrap(), bytes, "{text}");
        }
        let odd = FieldMask { paths: vec!["a_1B".to_owned()] };
        assert_eq!(print(Shape::FieldMask, &odd.encode_to_vec()), Err(Malformed));
    }
}
