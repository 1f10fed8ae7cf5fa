//! The time of day: the system's clock is set, and the issuer's `Date` says otherwise.
//!
//! `at` is the monotonic clock, and `system` the system's time of day, both in milliseconds; `date` is a `Date` that the guard
//! reads, in seconds, and `agrees` whether the guard believes it; `now` is the guard's time of day afterwards, in milliseconds.

use serde_json::Value;
use serde_json::json;

use crate::NOW;
use crate::file;

const START: i64 = NOW * 1_000;
const HOUR: i64 = 60 * 60 * 1_000;

pub(crate) fn vectors() -> Value {
    let show = |at: i64, system: i64, now: i64| json!({ "at": at, "system": system, "now": now });
    let date = |at: i64, system: i64, date: i64, agrees: bool, now: i64| json!({ "at": at, "system": system, "date": date / 1_000, "agrees": agrees, "now": now });
    let case = |name: &str, steps: &[Value]| json!({ "name": name, "steps": steps });
    let year = 365 * 24 * HOUR;
    file(
        "clocks",
        [
            case("a clock that runs", &[show(0, START, START), show(HOUR, START + HOUR, START + HOUR)]),
            case(
                "set back, it does not move time back",
                &[
                    show(0, START, START),
                    show(HOUR, START, START + HOUR),
                    show(2 * HOUR, START + HOUR, START + 2 * HOUR),
                ],
            ),
            case(
                "set ahead, it moves time ahead until it is corrected",
                &[
                    show(0, START, START),
                    show(1_000, START + HOUR, START + HOUR),
                    show(2_000, START + 2_000, START + 2_000),
                ],
            ),
            case(
                "a clock that was ahead at the start is corrected by two dates",
                &[
                    show(0, START + HOUR, START + HOUR),
                    date(0, START + HOUR, START, false, START + HOUR),
                    date(0, START + HOUR, START, true, START + HOUR),
                    show(0, START, START),
                ],
            ),
            case(
                "a single date that is a year ahead changes nothing",
                &[
                    show(0, START, START),
                    date(0, START, START + year, false, START),
                    date(0, START, START, true, START),
                    date(0, START, START, true, START),
                    date(0, START, START, true, START),
                    date(0, START, START + year, false, START),
                    date(0, START, START + year, false, START),
                ],
            ),
            case(
                "dates that are a little late agree",
                &[
                    show(0, START, START),
                    date(10_000, START + 10_000, START + 6_000, true, START + 10_000),
                    date(20_000, START + 20_000, START + 10_000, false, START + 20_000),
                ],
            ),
            case(
                "the machine sleeps: the monotonic clock stands still",
                &[show(0, START, START), show(0, START + HOUR, START + HOUR)],
            ),
        ],
    )
}
