//! Limits of one rule (`[store.rule.NAME]`).

use super::*;
use crate::config::RuleStoreSettings;

#[test]
fn rule_limits_evict_only_incidents_of_that_rule() {
    let fixture = Fixture::new(generous_settings());
    let others: Vec<_> = (0..3).map(|_| fixture.create_closed_for_rule("cpu", 1000)).collect();
    let ids: Vec<_> = (0..5).map(|_| fixture.create_closed_for_rule("memory", 1000)).collect();
    let evictions_with = |rule: RuleStoreSettings| {
        let rules = [("Memory".to_owned(), rule)].into();
        fixture.store.set_settings(StoreSettings { rules, ..generous_settings() });
        evictions(&fixture.store.enforce_limits())
    };
    assert_eq!(evictions_with(RuleStoreSettings::default()), []);
    let four = RuleStoreSettings { max_incidents: Some(4), ..RuleStoreSettings::default() };
    assert_eq!(evictions_with(four), [(ids[1], StoreLimit::RuleIncidents)]);
    let size =
        |id| fixture.store.find(id).map(|it| fs::read_dir(it.path).unwrap().count()).unwrap();
    assert_eq!(size(ids[2]), 2);
    let all: u64 = ids[2..].iter().chain([&ids[0]]).map(|&id| stored_bytes(&fixture, id)).sum();
    let less =
        RuleStoreSettings { max_bytes: Some(Bytes(all - 1)), ..RuleStoreSettings::default() };
    assert_eq!(evictions_with(less), [(ids[2], StoreLimit::RuleBytes)]);
    fixture.clock.advance(Duration::from_secs(30));
    let young = RuleStoreSettings { max_age: Some(Duration::from_secs(20)), ..Default::default() };
    let aged: Vec<_> = evictions_with(young).into_iter().map(|(id, _)| id).collect();
    assert_eq!(aged, [ids[3]]);
    let remaining = [ids[4], ids[0], others[2], others[1], others[0]];
    assert_eq!(
        fixture.incident_ids(),
        remaining,
        "the first and the last, and those of the other rule"
    );
}

#[test]
fn write_over_rule_limit_evicts_same_rule() {
    let rule = RuleStoreSettings { max_bytes: Some(Bytes(250_000)), ..Default::default() };
    let fixture = Fixture::new(StoreSettings {
        rules: [("memory".to_owned(), rule)].into(),
        ..generous_settings()
    });
    let other = fixture.create_closed_for_rule("cpu", 200_000);
    let old = fixture.create_closed_for_rule("memory", 100_000);
    let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
    write_profile(&fixture, &mut incident, 200_000).unwrap();
    assert_eq!(fixture.incident_ids(), [incident.id(), other], "{old} was evicted");
    assert!(write_profile(&fixture, &mut incident, 200_000).is_err());
    drop(incident);
    let mut incident = fixture.store.create_incident("cpu", fixture.manifest()).unwrap();
    write_profile(&fixture, &mut incident, 400_000).unwrap();
}

#[test]
fn rule_max_age_can_exceed_store_max_age() {
    let rule = RuleStoreSettings { max_age: Some(Duration::from_secs(1000)), ..Default::default() };
    let rules = [("memory".to_owned(), rule)].into();
    let fixture = Fixture::new(StoreSettings {
        max_age: Duration::from_secs(10),
        rules,
        ..generous_settings()
    });
    let kept: Vec<_> = (0..3).map(|_| fixture.create_closed_for_rule("memory", 10)).collect();
    let expired: Vec<_> = (0..3).map(|_| fixture.create_closed_for_rule("cpu", 10)).collect();
    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(expired[1], StoreLimit::Age)]);
    assert!(kept.iter().all(|id| fixture.store.find(*id).is_ok()));
}

fn stored_bytes(fixture: &Fixture, id: IncidentId) -> u64 {
    let files = fs::read_dir(fixture.store.find(id).unwrap().path).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}
