use super::*;
use proptest::prelude::*;

fn cron(text: &str, zone: &str) -> Cron {
    Cron::new(text, Some(zone)).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The slots after a time, as the zone's clocks show them.
fn slots(text: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let cron = cron(text, zone);
    let mut slot = at(after);
    (0..count)
        .map(|_| {
            slot = cron.next(slot).unwrap();
            slot.to_zoned(cron.zone.clone()).strftime("%m-%d %H:%M %:z").to_string()
        })
        .collect()
}

#[test]
fn fields_names_steps_ranges_lists_and_nicknames() {
    // 2026-11-24 was a Tuesday.
    let after = "2026-11-24T10:07:30Z";
    for (text, expected) in [
        ("* * * * *", ["11-24 10:08", "11-24 10:09", "11-24 10:10"]),
        ("*/20 * * * *", ["11-24 10:20", "11-24 10:40", "11-24 11:00"]),
        ("10-59/25 * * * *", ["11-24 10:10", "11-24 10:35", "11-24 11:10"]),
        ("5,10 9-11/2 * * *", ["11-24 11:05", "11-24 11:10", "11-25 09:05"]),
        ("7 10 * * *", ["11-25 10:07", "11-26 10:07", "11-27 10:07"]),
        ("0 8 * * MON-FRI", ["11-25 08:00", "11-26 08:00", "11-27 08:00"]),
        ("0 8 * * sat,sun", ["11-28 08:00", "11-29 08:00", "12-05 08:00"]),
        ("0 8 * * 0", ["11-29 08:00", "12-06 08:00", "12-13 08:00"]),
        ("0 8 * * 7", ["11-29 08:00", "12-06 08:00", "12-13 08:00"]),
        ("0 0 1 JAN,dec *", ["12-01 00:00", "01-01 00:00", "12-01 00:00"]),
        // Both days given: either of them, as in every cron since Vixie's.
        ("0 0 26 * FRI", ["11-26 00:00", "11-27 00:00", "12-04 00:00"]),
        ("0 0 ? * FRI", ["11-27 00:00", "12-04 00:00", "12-11 00:00"]),
        ("0 0 31 * *", ["12-31 00:00", "01-31 00:00", "03-31 00:00"]),
        ("0 0 29 2 *", ["02-29 00:00", "02-29 00:00", "02-29 00:00"]),
        ("0 0 L * *", ["11-30 00:00", "12-31 00:00", "01-31 00:00"]),
        ("@hourly", ["11-24 11:00", "11-24 12:00", "11-24 13:00"]),
        ("@daily", ["11-25 00:00", "11-26 00:00", "11-27 00:00"]),
        ("@midnight", ["11-25 00:00", "11-26 00:00", "11-27 00:00"]),
        ("@weekly", ["11-29 00:00", "12-06 00:00", "12-13 00:00"]),
        ("@monthly", ["12-01 00:00", "01-01 00:00", "02-01 00:00"]),
        ("@yearly", ["01-01 00:00", "01-01 00:00", "01-01 00:00"]),
        ("@annually", ["01-01 00:00", "01-01 00:00", "01-01 00:00"]),
    ] {
        let expected = expected.map(|time| format!("{time} +00:00"));
        assert_eq!(slots(text, "UTC", after, 3), expected, "{text}");
    }
}

/// Behaviour at changes of local time, as `docs/reference/syncschedule.md` describes it.
#[test]
fn when_clocks_are_changed() {
    for (zone, text, after, expected) in [
        // Forward, from 2:00 to 3:00: what is in the gap does not happen on that day.
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00:00Z", ["03-30 02:30 +02:00", "03-31 02:30 +02:00"]),
        ("Europe/Berlin", "0 3 * * *", "2026-03-28T12:00:00Z", ["03-29 03:00 +02:00", "03-30 03:00 +02:00"]),
        ("Europe/Berlin", "*/30 * * * *", "2026-03-29T00:30:00Z", ["03-29 03:00 +02:00", "03-29 03:30 +02:00"]),
        ("America/New_York", "30 2 * * *", "2026-03-07T12:00:00Z", ["03-09 02:30 -04:00", "03-10 02:30 -04:00"]),
        // Back, from 3:00 to 2:00: what is shown twice happens twice.
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00:00Z", ["10-25 02:30 +02:00", "10-25 02:30 +01:00"]),
        ("Europe/Berlin", "0 * * * *", "2026-10-24T23:30:00Z", ["10-25 02:00 +02:00", "10-25 02:00 +01:00"]),
        ("Europe/Berlin", "0 3 * * *", "2026-10-24T12:00:00Z", ["10-25 03:00 +01:00", "10-26 03:00 +01:00"]),
        ("America/New_York", "30 1 * * *", "2026-10-31T12:00:00Z", ["11-01 01:30 -04:00", "11-01 01:30 -05:00"]),
        // By half an hour.
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T00:00:00Z", ["10-05 02:15 +11:00", "10-06 02:15 +11:00"]),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T00:00:00Z", ["04-05 01:45 +11:00", "04-05 01:45 +10:30"]),
        // At midnight: there is no 0:00 on that day, or 23:00 twice.
        ("Africa/Cairo", "0 0 * * *", "2026-04-23T00:00:00Z", ["04-25 00:00 +03:00", "04-26 00:00 +03:00"]),
        ("Africa/Cairo", "30 23 * * *", "2026-10-29T12:00:00Z", ["10-29 23:30 +03:00", "10-29 23:30 +02:00"]),
        ("America/Havana", "0 0 * * *", "2026-03-07T12:00:00Z", ["03-09 00:00 -04:00", "03-10 00:00 -04:00"]),
        // A day left out altogether.
        ("Pacific/Apia", "0 12 * * *", "2011-12-29T12:00:00Z", ["12-29 12:00 -10:00", "12-31 12:00 +14:00"]),
        // Zones that are not a whole number of hours from UTC, and those without any change.
        ("Asia/Kathmandu", "0 0 * * *", "2026-11-24T00:00:00Z", ["11-25 00:00 +05:45", "11-26 00:00 +05:45"]),
        ("Asia/Kolkata", "30 9 * * *", "2026-11-24T00:00:00Z", ["11-24 09:30 +05:30", "11-25 09:30 +05:30"]),
        ("Etc/GMT+5", "0 0 * * *", "2026-11-24T00:00:00Z", ["11-24 00:00 -05:00", "11-25 00:00 -05:00"]),
    ] {
        assert_eq!(slots(text, zone, after, 2), expected, "{zone} {text}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_the_field() {
    for (text, zone, expected) in [
        ("banana", "UTC", "schedule"),
        ("* * * *", "UTC", "schedule"),
        ("0 * * * * *", "UTC", "schedule"),
        ("60 * * * *", "UTC", "schedule"),
        ("* 24 * * *", "UTC", "schedule"),
        ("* * 0 * *", "UTC", "schedule"),
        ("* * 32 * *", "UTC", "schedule"),
        ("* * * 13 *", "UTC", "schedule"),
        ("* * * * 8", "UTC", "schedule"),
        ("*/0 * * * *", "UTC", "schedule"),
        ("5-1 * * * *", "UTC", "schedule"),
        ("@every 5m", "UTC", "schedule"),
        ("@reboot", "UTC", "schedule"),
        ("", "UTC", "schedule"),
        ("0 0 30 2 *", "UTC", "never fires"),
        ("0 0 31 4,6,9,11 *", "UTC", "never fires"),
        ("* * * * *", "Mars/Olympus", "timeZone"),
        ("* * * * *", "", "timeZone"),
        ("* * * * *", "Etc/Unknown", "timeZone"),
    ] {
        let error = Cron::new(text, Some(zone)).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?} {zone:?}: {error}");
    }
}

#[test]
fn the_shortest_gap_counts_the_night_too() {
    for (text, minutes) in
        [("*/20 * * * *", 20), ("0 9-17 * * *", 60), ("0 3 * * *", 1440), ("0 0,23 * * *", 60), ("@yearly", 1440)]
    {
        assert_eq!(cron(text, "UTC").shortest_gap(), Duration::from_secs(minutes * 60), "{text}");
    }
}

#[test]
fn three_days_of_minutes_are_counted() {
    let due = cron("* * * * *", "UTC").due(at("2026-11-21T10:00:00Z"), at("2026-11-24T10:00:30Z")).unwrap();
    let expected = (3 * 1440, at("2026-11-24T10:00:00Z"), Some(at("2026-11-24T09:59:00Z")));
    assert_eq!((due.count, due.newest, due.before), expected);
}

fn expressions() -> impl Strategy<Value = String> {
    let field = |values: Range<u32>| {
        let step = values.clone();
        let (one, list) = (values.clone(), values);
        prop_oneof![
            2 => Just("*".to_owned()),
            1 => step.clone().prop_map(|step| format!("*/{}", step.max(1))),
            1 => one.prop_map(|value| value.to_string()),
            1 => prop::collection::vec(list, 1..4).prop_map(|values| {
                values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            }),
        ]
    };
    (field(0..60), field(0..24), field(1..29), field(1..13), field(0..7))
        .prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"))
}

fn zones() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"])
}

proptest! {
    /// The test checks every minute by local time alone.
    #[test]
    fn slots_are_the_minutes_at_which_the_clocks_match(text in expressions(), zone in zones(), start in 1_700_000_000_i64..1_900_000_000, minutes in 1_i64..3000) {
        let cron = cron(&text, zone);
        let (start, end) = (from_seconds(start), from_seconds(start + minutes * 60));
        let matches = |time: Timestamp| {
            let clock = time.to_zoned(cron.zone.clone());
            let pattern = &cron.pattern.pattern;
            let weekday = Weekday::from_days_from_sunday(clock.weekday().to_sunday_zero_offset() as u32);
            clock.second() == 0
                && pattern.minute_match(clock.minute() as u32).unwrap()
                && pattern.hour_match(clock.hour() as u32).unwrap()
                && pattern.month_match(clock.month() as u32).unwrap()
                && pattern.day_match(clock.year().into(), clock.month() as u32, clock.day() as u32, weekday).unwrap()
        };
        let first = start.as_second().div_euclid(60) + 1;
        let expected: Vec<Timestamp> =
            (first..=end.as_second().div_euclid(60)).map(|minute| from_seconds(minute * 60)).filter(|time| matches(*time)).collect();
        let mut found = Vec::new();
        let mut slot = start;
        while let Some(next) = cron.next(slot).filter(|next| *next <= end) {
            found.push(next);
            slot = next;
        }
        prop_assert_eq!(&found, &expected);
        let due = cron.due(start, end);
        prop_assert_eq!(due.map_or(0, |due| due.count as usize), expected.len());
        prop_assert_eq!(due.map(|due| due.newest), expected.last().copied());
        prop_assert_eq!(due.and_then(|due| due.before), expected.iter().rev().nth(1).copied());
    }

    #[test]
    fn no_text_does_harm(text in ".{0,40}", zone in "[A-Za-z/_+-]{0,20}") {
        Cron::new(&text, Some(&zone)).ok();
    }

    #[test]
    fn nothing_made_of_crons_own_characters_does_harm(text in "[0-9*/,LW#?@A-Z +-]{1,60}") {
        Cron::new(&text, None).ok();
    }
}
