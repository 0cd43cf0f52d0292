//! Days and dates: seconds since 1970 in UTC to the fields of a clock and back (proleptic Gregorian calendar). Pure.

/// Seconds of a day.
pub const DAY: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01. Years that start in March put the leap day at their end.
const EPOCH_DAYS: i64 = 719_468;

/// A date and a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// The date and time `seconds` after 1970; years repeat after 9999.
    pub fn from_unix(seconds: i64) -> DateTime {
        let of_day = seconds.rem_euclid(DAY);
        let days = seconds.div_euclid(DAY).rem_euclid(25 * ERA_DAYS) + EPOCH_DAYS;
        let (era, of_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March have 31, 30, 31, 30, 31 days, and again: 153 in five.
        let march_month = (5 * of_year + 2) / 153;
        let month = (march_month + 2) % 12 + 1;
        let year = (era * 400 + year_of_era + i64::from(month <= 2)).rem_euclid(10_000);
        // All values are reduced to their ranges above.
        DateTime {
            year: year as u16,
            month: month as u8,
            day: (of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970; `None` if there is no such date or time.
    pub fn to_unix(self) -> Option<i64> {
        let in_range = self.year <= 9999
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        if !in_range {
            return None;
        }
        let march_year = i64::from(self.year) - i64::from(self.month <= 2);
        let march_month = (i64::from(self.month) + 9) % 12;
        let (era, year_of_era) = (march_year.div_euclid(400), march_year.rem_euclid(400));
        let of_year = (153 * march_month + 2) / 5 + i64::from(self.day) - 1;
        let days = era * ERA_DAYS + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - EPOCH_DAYS;
        let seconds = days * DAY + self.second_of_day();
        // A 30th of February has come out as a day of March.
        (DateTime { year: self.year, ..DateTime::from_unix(seconds) } == self).then_some(seconds)
    }

    /// Seconds since midnight.
    pub fn second_of_day(self) -> i64 {
        i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

/// Day of the week, 1 (Sunday) to 7, of the time `seconds` after 1970, a Thursday.
pub fn weekday(seconds: i64) -> u8 {
    ((seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn date(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> DateTime {
        DateTime { year, month, day, hour, minute, second }
    }

    #[test]
    fn known_times() {
        for (seconds, expected, day_of_week) in [
            (0, date(1970, 1, 1, 0, 0, 0), 5),
            (-1, date(1969, 12, 31, 23, 59, 59), 4),
            (951_782_400, date(2000, 2, 29, 0, 0, 0), 3),
            (951_868_800, date(2000, 3, 1, 0, 0, 0), 4),
            (1_709_164_800, date(2024, 2, 29, 0, 0, 0), 5),
            (4_107_542_400, date(2100, 3, 1, 0, 0, 0), 2),
            (253_402_300_799, date(9999, 12, 31, 23, 59, 59), 6),
        ] {
            assert_eq!(DateTime::from_unix(seconds), expected);
            assert_eq!(expected.to_unix(), Some(seconds));
            assert_eq!(weekday(seconds), day_of_week, "{expected:?}");
        }
    }

    #[test]
    fn impossible_dates() {
        for impossible in [
            date(2023, 2, 29, 0, 0, 0),
            date(2100, 2, 29, 0, 0, 0),
            date(2024, 4, 31, 0, 0, 0),
            date(2024, 0, 1, 0, 0, 0),
            date(2024, 13, 1, 0, 0, 0),
            date(2024, 1, 0, 0, 0, 0),
            date(2024, 1, 1, 24, 0, 0),
            date(2024, 1, 1, 0, 60, 0),
            date(2024, 1, 1, 0, 0, 60),
            date(u16::MAX, 1, 1, 0, 0, 0),
        ] {
            assert_eq!(impossible.to_unix(), None, "{impossible:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(seconds in 0i64..253_402_300_800) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), Some(seconds));
        }

        #[test]
        fn every_number_is_a_date(seconds: i64) {
            let date = DateTime::from_unix(seconds);
            prop_assert!(date.to_unix().is_some());
            prop_assert!((1..=7).contains(&weekday(seconds)));
        }
    }
}
