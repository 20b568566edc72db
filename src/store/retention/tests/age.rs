//! Ages: expiry, and clocks that are set or wrong.

use super::*;

#[test]
fn expires_incidents_except_first_and_last_of_rule() {
    let fixture =
        Fixture::new(StoreSettings { max_age: Duration::from_secs(10), ..generous_settings() });
    let ids: Vec<_> = (0..4).map(|_| fixture.create_closed(10)).collect();
    let only = fixture.create_closed_for_rule("cpu", 10);
    fixture.clock.advance(Duration::from_secs(7));
    assert_eq!(
        evictions(&fixture.store.enforce_limits()),
        [],
        "ten seconds old is not past ten seconds"
    );
    fixture.clock.advance(Duration::from_millis(1));
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(ids[1], StoreLimit::Age)]);
    fixture.clock.advance(Duration::from_secs(10));
    let report = fixture.store.enforce_limits();
    assert_eq!(evictions(&report), [(ids[2], StoreLimit::Age)]);
    assert_eq!(fixture.incident_ids(), [only, ids[3], ids[0]]);
    let log: Vec<String> = fixture.store.take_evicted().iter().map(ToString::to_string).collect();
    assert_eq!(log.len(), 2, "both since the start");
    let expected = format!("incident {} of `memory` removed: max_age (", ids[1]);
    assert!(log[0].starts_with(&expected) && log[0].ends_with(" 0 h old)"), "{}", log[0]);
    assert!(fixture.store.take_evicted().is_empty());
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn setting_wall_clock_at_runtime_expires_nothing() {
    for days in [15, -15, 4000, -4000] {
        let fixture = Fixture::new(StoreSettings { max_age: 14 * DAY, ..generous_settings() });
        let ids: Vec<_> = (0..4).map(|_| fixture.create_closed(10)).collect();
        fixture.clock.step_wall(jiff::SignedDuration::from_hours(24 * days));
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{days}");
        fixture.clock.advance(13 * DAY);
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{days}");
        // An incident that opens after the clock was set is the last of its rule, whatever its name
        // is.
        let last = fixture.create_closed(10);
        fixture.clock.advance(2 * DAY);
        let evicted = evictions(&fixture.store.enforce_limits());
        assert_eq!(
            evicted,
            [(ids[1], StoreLimit::Age), (ids[2], StoreLimit::Age), (ids[3], StoreLimit::Age)]
        );
        fixture.clock.advance(30 * DAY);
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{days}");
        assert!(fixture.store.find(last).is_ok() && fixture.store.find(ids[0]).is_ok());
    }
}

/// Reopens the store in the directory of `fixture` as after a reboot, with the wall clock at
/// `wall`.
fn reopen_after_reboot(
    fixture: Fixture,
    wall: Timestamp,
    settings: StoreSettings,
) -> (Fixture, RetentionReport) {
    let clock = std::sync::Arc::new(crate::base::ManualClock::new(wall));
    let dir = fixture.dir().to_owned();
    let Fixture { temp, store, .. } = fixture;
    drop(store);
    let (store, recovery) =
        crate::store::Store::open(&dir, settings, std::sync::Arc::clone(&clock) as _).unwrap();
    (Fixture { temp, clock, store }, recovery.retention)
}

#[test]
fn wrong_wall_clock_at_start_expires_nothing() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..generous_settings() };
    for wall in ["2026-12-08T04:00:00Z", "2037-01-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
        let fixture = Fixture::new(settings());
        let ids: Vec<_> = (0..4).map(|_| fixture.create_closed(10)).collect();
        let (fixture, report) = reopen_after_reboot(fixture, wall.parse().unwrap(), settings());
        assert_eq!(evictions(&report), [], "{wall}");
        // Correcting the wall clock while the process runs does not matter either.
        let right: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        fixture.clock.step_wall(right.duration_since(crate::base::Clock::wall(&*fixture.clock)));
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{wall}");
        fixture.clock.advance(15 * DAY);
        assert_eq!(
            evictions(&fixture.store.enforce_limits()),
            [(ids[1], StoreLimit::Age), (ids[2], StoreLimit::Age)]
        );
    }
}

#[test]
fn age_accumulates_across_processes() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..generous_settings() };
    let mut fixture = Fixture::new(settings());
    let ids: Vec<_> = (0..3).map(|_| fixture.create_closed(10)).collect();
    for _ in 0..14 {
        fixture.clock.advance(DAY - Duration::from_secs(60));
        assert_eq!(evictions(&fixture.store.enforce_limits()), []);
        let (next, recovery) = fixture.reopen(settings());
        assert_eq!(evictions(&recovery.retention), []);
        // At most an hour without a process, then another boot.
        let wall = crate::base::Clock::wall(&*next.clock);
        let (next, report) = reopen_after_reboot(next, wall, settings());
        assert_eq!(evictions(&report), []);
        fixture = next;
    }
    fixture.clock.advance(Duration::from_secs(3600));
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(ids[1], StoreLimit::Age)]);
}

#[test]
fn missing_age_starts_at_zero() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..generous_settings() };
    for text in [None, Some("{"), Some("[]")] {
        let fixture = Fixture::new(settings());
        for _ in 0..3 {
            fixture.create_closed(10);
        }
        fixture.store.enforce_limits();
        let path = fixture.dir().join("ages.json");
        match text {
            None => fs::remove_file(path).unwrap(),
            Some(text) => fs::write(path, text).unwrap(),
        }
        fixture.clock.advance(20 * DAY);
        let (fixture, recovery) = fixture.reopen(settings());
        assert_eq!(evictions(&recovery.retention), [], "{text:?}");
        fixture.clock.advance(15 * DAY);
        assert_eq!(evictions(&fixture.store.enforce_limits()).len(), 1, "{text:?}");
    }
}
