//! Cron schedules: five fields, or `@hourly` and its like. Times are UTC.

use std::time::Duration;

use stdx::Timestamp;

/// Which minutes, hours, days, months and weekdays match, as bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether day and weekday both restrict: then either suffices, as cron has it.
    either_day: bool,
    /// Set for `@every 90s`, which has no fields.
    every: Option<Duration>,
}

const MINUTE: Duration = Duration::from_secs(60);
/// No schedule that ever comes waits longer: 29 February, across a century.
const HORIZON_DAYS: u64 = 366 * 9;
const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl Schedule {
    pub fn parse(text: &str) -> Option<Self> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(period) = text.strip_prefix("@every ") {
            let every = Some(duration(period)?);
            return Some(Self { minutes: 0, hours: 0, days: 0, months: 0, weekdays: 0, either_day: false, every });
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else { return None };
        let free = |field: &str| field.starts_with(['*', '?']);
        let sunday_too = |bits: u64| if bits & (1 << 7) != 0 { bits | 1 } else { bits };
        Some(Self {
            minutes: bits(minutes, 0, 59, &[])?,
            hours: bits(hours, 0, 23, &[])?,
            days: bits(days, 1, 31, &[])?,
            months: bits(months, 1, 12, &MONTHS)?,
            weekdays: sunday_too(bits(weekdays, 0, 7, &WEEKDAYS)?),
            either_day: !free(days) && !free(weekdays),
            every: None,
        })
    }

    /// The first time after `time`. `None` when there is none, as for 30 February.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        if let Some(every) = self.every {
            return Some(Timestamp::from_secs(time.as_secs()) + every);
        }
        let mut minute = Timestamp::from_secs(time.as_secs().div_euclid(60) * 60) + MINUTE;
        let end = minute + Duration::from_secs(HORIZON_DAYS * 86_400);
        while minute < end {
            let day = minute.as_secs().div_euclid(86_400);
            let second = minute.as_secs().rem_euclid(86_400);
            if !self.matches_day(day) {
                minute = Timestamp::from_secs((day + 1) * 86_400);
            } else if self.hours & (1 << (second / 3600)) == 0 {
                minute = Timestamp::from_secs(day * 86_400 + (second / 3600 + 1) * 3600);
            } else if self.minutes & (1 << (second % 3600 / 60)) == 0 {
                minute = minute + MINUTE;
            } else {
                return Some(minute);
            }
        }
        None
    }

    fn matches_day(&self, days_since_epoch: i64) -> bool {
        let (month, day) = month_and_day(days_since_epoch);
        // 1 January 1970 was a Thursday.
        let weekday = (days_since_epoch + 4).rem_euclid(7);
        let by_day = self.days & (1 << day) != 0;
        let by_weekday = self.weekdays & (1 << weekday) != 0;
        let matches = if self.either_day { by_day || by_weekday } else { by_day && by_weekday };
        self.months & (1 << month) != 0 && matches
    }
}

/// The civil month and day of a day since the epoch (Hinnant's algorithm).
fn month_and_day(days_since_epoch: i64) -> (i64, i64) {
    let z = days_since_epoch + 719_468;
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    (if shifted < 10 { shifted + 3 } else { shifted - 9 }, day)
}

/// A list of `*`, `N`, `A-B`, each with an optional `/STEP`, as bits.
fn bits(field: &str, low: u64, high: u64, names: &[&str]) -> Option<u64> {
    let number = |text: &str| -> Option<u64> {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        // Names of months count from one, those of weekdays from zero, as their fields do.
        named.map(|at| at as u64 + low).or_else(|| text.parse().ok())
    };
    let mut bits = 0;
    for part in field.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u64>().ok().filter(|step| *step > 0)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (low, high),
            Some((first, last)) => (number(first)?, number(last)?),
            None if step.is_some() => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        if first < low || last > high || first > last {
            return None;
        }
        for value in (first..=last).step_by(step.unwrap_or(1) as usize) {
            bits |= 1 << value;
        }
    }
    Some(bits)
}

/// A Go duration of whole hours, minutes and seconds, such as `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = 0;
    let mut digits = String::new();
    for letter in text.trim().chars() {
        match letter {
            '0'..='9' => digits.push(letter),
            'h' | 'm' | 's' => {
                let unit = match letter {
                    'h' => 3600,
                    'm' => 60,
                    _ => 1,
                };
                total += digits.parse::<u64>().ok()? * unit;
                digits.clear();
            }
            _ => return None,
        }
    }
    (digits.is_empty() && total > 0).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule).unwrap_or_else(|| panic!("{schedule}"));
        schedule.next_after(Timestamp::parse(after).unwrap()).map(Timestamp::rfc3339).unwrap_or_default()
    }

    #[test]
    fn finds_the_next_time() {
        let cases = [
            ("*/15 * * * *", "2026-11-24T10:07:30Z", "2026-11-24T10:15:00Z"),
            ("0 0 1 1 *", "2026-11-24T10:07:30Z", "2027-01-01T00:00:00Z"),
            ("30 8 * * MON-FRI", "2026-11-27T09:00:00Z", "2026-11-30T08:30:00Z"),
            ("0 0 29 2 *", "2026-11-24T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 12 13 * FRI", "2026-11-10T13:00:00Z", "2026-11-13T12:00:00Z"),
            ("0 0 * * 7", "2026-11-24T00:00:00Z", "2026-11-29T00:00:00Z"),
            ("@hourly", "2026-12-31T23:00:00Z", "2027-01-01T00:00:00Z"),
            ("0 0 1 jan *", "2026-11-24T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", "2026-11-24T00:00:00Z", "2026-11-24T01:30:00Z"),
            ("0 0 30 2 *", "2026-11-24T00:00:00Z", ""),
        ];
        for (schedule, after, expected) in cases {
            assert_eq!(next(schedule, after), expected, "{schedule}");
        }
    }

    #[test]
    fn refuses_what_is_no_schedule() {
        for text in ["", "* * * *", "61 * * * *", "5-1 * * * *", "*/0 * * * *", "@sometimes"] {
            assert_eq!(Schedule::parse(text), None, "{text}");
        }
    }
}
