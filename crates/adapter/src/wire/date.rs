//! Points in time as JavaScript writes them.

/// JavaScript's dates end here, in milliseconds before and after 1970.
const MS_MAX: i64 = 8_640_000_000_000_000;
const MS_PER_DAY: i64 = 86_400_000;

/// What `toISOString` gives; `None` for what JavaScript calls an invalid date.
pub(super) fn iso(ms: i64) -> Option<String> {
    let at = Parts::of(ms)?;
    let year = match at.year {
        0..=9999 => format!("{:04}", at.year),
        _ => format!("{:+07}", at.year),
    };
    let (month, day) = (at.month, at.day);
    Some(format!("{year}-{month:02}-{day:02}T{}.{:03}Z", at.clock(), at.ms))
}

/// What `toString` gives in a process that runs in UTC: the form of a handshake's `time`.
pub(super) fn long(ms: i64) -> Option<String> {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let at = Parts::of(ms)?;
    let weekday = DAYS[ms.div_euclid(MS_PER_DAY).rem_euclid(7) as usize];
    let month = MONTHS[at.month as usize - 1];
    let sign = if at.year < 0 { "-" } else { "" };
    let (day, year, clock) = (at.day, at.year.unsigned_abs(), at.clock());
    let zone = "GMT+0000 (Coordinated Universal Time)";
    Some(format!("{weekday} {month} {day:02} {sign}{year:04} {clock} {zone}"))
}

struct Parts {
    year: i64,
    month: u32,
    day: u32,
    second_of_day: i64,
    ms: i64,
}

impl Parts {
    fn of(ms: i64) -> Option<Self> {
        if !(-MS_MAX..=MS_MAX).contains(&ms) {
            return None;
        }
        let (year, month, day) = civil(ms.div_euclid(MS_PER_DAY));
        let ms_of_day = ms.rem_euclid(MS_PER_DAY);
        Some(Self { year, month, day, second_of_day: ms_of_day / 1000, ms: ms_of_day % 1000 })
    }

    fn clock(&self) -> String {
        let (minutes, second) = (self.second_of_day / 60, self.second_of_day % 60);
        format!("{:02}:{:02}:{second:02}", minutes / 60, minutes % 60)
    }
}

/// Year, month and day of a day counted from 1970, in the Gregorian calendar without a beginning. Years
/// are taken to begin in March, so that the leap day is the last of its year.
fn civil(day: i64) -> (i64, u32, u32) {
    const DAYS_PER_400_YEARS: i64 = 146_097;
    const DAYS_BEFORE_1970: i64 = 719_468; // From March 1st of the year 0.
    let day = day + DAYS_BEFORE_1970;
    let era = day.div_euclid(DAYS_PER_400_YEARS);
    let of_era = day.rem_euclid(DAYS_PER_400_YEARS);
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + i64::from(month <= 2), month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_javascript_does() {
        let check = |ms, expected: &str| assert_eq!(iso(ms).as_deref(), Some(expected));
        check(0, "1970-01-01T00:00:00.000Z");
        check(-1, "1969-12-31T23:59:59.999Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(253_402_300_800_000, "+010000-01-01T00:00:00.000Z");
        check(-62_167_219_200_001, "-000001-12-31T23:59:59.999Z");
        check(MS_MAX, "+275760-09-13T00:00:00.000Z");
        check(-MS_MAX, "-271821-04-20T00:00:00.000Z");
        assert_eq!((iso(MS_MAX + 1), iso(i64::MIN), long(i64::MAX)), (None, None, None));
        let expected = "Tue Nov 14 2023 22:13:20 GMT+0000 (Coordinated Universal Time)";
        assert_eq!(long(1_700_000_000_123).as_deref(), Some(expected));
    }
}
