use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn anchor(seconds: u64) -> TimeAnchor {
    let wall: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
    let zero = TimeAnchor { moment: Moment::from_nanos(0), wall, suspended: Duration::ZERO };
    let moment = Moment::from_nanos(seconds * 1_000_000_000);
    TimeAnchor { moment, wall: zero.wall_at(moment), suspended: Duration::ZERO }
}

type Answer = oneshot::Receiver<Result<ProfileResponse, ProfileError>>;

fn ask(
    streams: &mut OnDemandCaptures,
    now: u64,
    take: ProfileKind,
    taken: &[EngineInUse],
) -> Answer {
    let (reply, answer) = oneshot::channel();
    let who = format!("client {now}");
    streams.ask(anchor(now), ProfileRequest { take, who, reply }, taken);
    answer
}

fn cpu(seconds: u32) -> ProfileKind {
    ProfileKind::Cpu { duration: SECOND * seconds, frequency: None, mode: None }
}

fn heap() -> ProfileKind {
    ProfileKind::Heap { view: HeapView::InUse, form: ProfileForm::Binary }
}

fn incident(kinds: impl Into<CaptureSet>) -> [EngineInUse; 1] {
    let until = Some(anchor(100).moment);
    [EngineInUse { kinds: kinds.into(), by: "incident X (memory)".into(), until }]
}

fn job(streams: &mut OnDemandCaptures, now: u64, taken: &[EngineInUse]) -> String {
    let job = streams.urgent_job(taken).or_else(|| streams.next_job(anchor(now), taken));
    match job {
        None => "none".into(),
        Some(OnDemandCommand::Look { id, .. }) => format!("look {id}"),
        Some(OnDemandCommand::Start { id, .. }) => format!("start {id}"),
        Some(OnDemandCommand::Stop { id, cut_short }) => {
            format!("stop {id}{}", cut_short.map(|why| format!(": {why}")).unwrap_or_default())
        }
        Some(OnDemandCommand::Encode { id }) => format!("encode {id}"),
        Some(OnDemandCommand::Drop { id }) => format!("drop {id}"),
    }
}

/// Starts a CPU capture of 10 s at second 0.
fn running() -> (OnDemandCaptures, Answer) {
    let mut streams = OnDemandCaptures::new(1000);
    let answer = ask(&mut streams, 0, cpu(10), &[]);
    assert_eq!(job(&mut streams, 0, &[]), "start 1");
    streams.done(anchor(0).moment, OnDemandResult::Started { id: 1, engine: None });
    (streams, answer)
}

fn busy(mut answer: Answer) -> (String, Option<u64>) {
    match answer.try_recv() {
        Ok(Err(ProfileError::Busy { by, wait })) => (by, wait.map(|wait| wait.as_secs())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_profile_runs_its_time_and_is_handed_over() {
    let (mut streams, mut answer) = running();
    assert_eq!(job(&mut streams, 9, &[]), "none");
    assert_eq!(streams.next_expiry(), Some(anchor(10).moment));
    assert_eq!(job(&mut streams, 10, &[]), "stop 1");
    assert_eq!(streams.next_expiry(), None, "it is under way");
    streams.done(anchor(10).moment, OnDemandResult::Stopped { id: 1 });
    assert_eq!(job(&mut streams, 10, &[]), "encode 1");
    let result = Ok(ProfileResponse { bytes: vec![1, 2, 3], cut_short: None });
    assert_eq!(
        streams.done(anchor(10).moment, OnDemandResult::Finished { id: 1, result }),
        Some(3)
    );
    assert_eq!(answer.try_recv().unwrap().unwrap().bytes, [1, 2, 3]);
    assert!(streams.is_empty());
}

#[test]
fn an_encoding_holds_nobody_up_and_a_shutdown_does_not_wait_for_it() {
    let (mut streams, mut answer) = running();
    assert_eq!(job(&mut streams, 10, &[]), "stop 1");
    streams.done(anchor(10).moment, OnDemandResult::Stopped { id: 1 });
    assert_eq!(job(&mut streams, 10, &[]), "encode 1");
    streams.done(anchor(10).moment, OnDemandResult::Encoding { id: 1 });
    assert_eq!(job(&mut streams, 10, &[]), "none", "it is no longer the capture thread's");
    assert_eq!((streams.next_expiry(), streams.is_empty()), (None, false));
    // The engine is free in the meantime.
    let _second = ask(&mut streams, 11, cpu(5), &[]);
    assert_eq!(job(&mut streams, 11, &[]), "start 2");
    streams.done(anchor(11).moment, OnDemandResult::Started { id: 2, engine: None });

    streams.shut();
    assert_eq!(job(&mut streams, 12, &[]), "drop 2");
    streams.done(anchor(12).moment, OnDemandResult::Dropped { id: 2 });
    assert!(streams.is_empty());
    assert!(matches!(answer.try_recv(), Ok(Err(ProfileError::Failed(_)))));
    let result = Ok(ProfileResponse::default());
    assert_eq!(streams.done(anchor(13).moment, OnDemandResult::Finished { id: 1, result }), None);
}

#[test]
fn the_second_is_told_who_has_the_engine_and_until_when() {
    let (mut streams, first) = running();
    let second = ask(&mut streams, 4, cpu(1), &[]);
    let told = ("in use by client 0 until 2026-11-23T00:00:10Z".to_owned(), Some(6));
    assert_eq!(busy(second), told);
    // Captures without an engine run beside it.
    let mut snapshot = ask(&mut streams, 4, heap(), &[]);
    assert_eq!(job(&mut streams, 4, &[]), "look 2");
    assert!(snapshot.try_recv().is_err() && !first.is_terminated());
}

#[test]
fn who_goes_away_frees_the_engine_at_once() {
    let (mut streams, answer) = running();
    drop(answer);
    assert_eq!(job(&mut streams, 1, &[]), "drop 1");
    streams.done(anchor(1).moment, OnDemandResult::Dropped { id: 1 });
    let _second = ask(&mut streams, 1, cpu(1), &[]);
    assert_eq!(job(&mut streams, 1, &[]), "start 2");
}

#[test]
fn who_goes_away_before_his_turn_costs_nothing() {
    let mut streams = OnDemandCaptures::new(1000);
    drop(ask(&mut streams, 0, cpu(1), &[]));
    assert_eq!(job(&mut streams, 0, &[]), "none");
    assert!(streams.is_empty());
}

#[test]
fn an_incident_takes_the_engine_and_the_client_gets_what_there_is() {
    let (mut streams, _answer) = running();
    let taken = incident([CaptureKind::Cpu]);
    let stop = "stop 1: the engine went to incident X (memory)";
    assert_eq!(job(&mut streams, 3, &taken), stop);
    streams.done(anchor(3).moment, OnDemandResult::Stopped { id: 1 });
    assert!(streams.urgent_job(&taken).is_none(), "the incident does not wait for the encoding");
    assert_eq!(job(&mut streams, 3, &taken), "encode 1");
    let told = "in use by incident X (memory), until 2026-11-23T00:01:40Z".to_owned();
    assert_eq!(busy(ask(&mut streams, 40, cpu(1), &taken)), (told, Some(60)));
}

#[test]
fn an_incident_that_wants_other_engines_is_not_in_the_way() {
    let (mut streams, _answer) = running();
    let taken = incident([CaptureKind::Trace, CaptureKind::Heap]);
    assert!(streams.urgent_job(&taken).is_none());
    let _heap = ask(&mut streams, 1, heap(), &taken);
    assert_eq!(job(&mut streams, 1, &taken), "look 2");
}

#[test]
fn an_incident_that_comes_before_the_start_turns_the_client_away() {
    let mut streams = OnDemandCaptures::new(1000);
    let answer = ask(&mut streams, 0, cpu(1), &[]);
    assert_eq!(job(&mut streams, 0, &incident([CaptureKind::Cpu])), "none");
    assert!(busy(answer).0.contains("incident X"));
}

#[test]
fn snapshots_wait_for_their_turn_and_there_is_a_last_one() {
    let mut streams = OnDemandCaptures::new(1000);
    let answers: Vec<Answer> =
        (0..ProfileClass::Snapshot.most()).map(|_| ask(&mut streams, 0, heap(), &[])).collect();
    assert_eq!(busy(ask(&mut streams, 0, heap(), &[])).1, None);
    assert_eq!(job(&mut streams, 0, &[]), "look 1");
    drop(answers);
}

#[test]
fn one_delta_at_a_time() {
    let delta =
        || ProfileKind::HeapDelta { duration: SECOND * 5, view: HeapView::InUse, rate: None };
    let mut streams = OnDemandCaptures::new(1000);
    let _first = ask(&mut streams, 0, delta(), &[]);
    assert_eq!(busy(ask(&mut streams, 1, delta(), &[])).1, Some(5));
}

#[test]
fn long_captures_leave_room_for_short_requests() {
    let threads = |seconds: u32| ProfileKind::ThreadsDelta {
        duration: SECOND * seconds,
        view: ThreadView::Now,
    };
    let mut streams = OnDemandCaptures::new(1000);
    // A client requests as many recordings as it can.
    let mut kept = Vec::new();
    let mut accepted = 0;
    for _ in 0..100 {
        let delta =
            ProfileKind::HeapDelta { duration: SECOND * 299, view: HeapView::InUse, rate: None };
        let trace = ProfileKind::Trace { duration: SECOND * 299 };
        for take in [threads(299), delta, trace, cpu(299)] {
            let mut answer = ask(&mut streams, 0, take, &[]);
            if matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                accepted += 1;
                kept.push(answer);
            }
        }
    }
    assert_eq!(accepted, 4, "one of each kind");
    assert_eq!(busy(ask(&mut streams, 1, threads(1), &[])).1, Some(299));
    let now = ProfileKind::Threads { view: ThreadView::Now, form: ProfileForm::Binary };
    for take in [heap(), now, ProfileKind::Symbols(vec![1])] {
        let mut answer = ask(&mut streams, 1, take.clone(), &[]);
        assert!(answer.try_recv().is_err(), "{take:?} is accepted");
        kept.push(answer);
    }
    // Symbol requests have a separate limit and do not reduce the others.
    let symbols = || ProfileKind::Symbols(vec![1]);
    kept.extend((1..ProfileClass::Symbols.most()).map(|_| ask(&mut streams, 1, symbols(), &[])));
    assert!(busy(ask(&mut streams, 1, symbols(), &[])).0.contains("symbol requests"));
    assert!(ask(&mut streams, 1, heap(), &[]).try_recv().is_err());
}

#[test]
fn a_shutdown_ends_all_and_answers_all() {
    let (mut streams, mut answer) = running();
    let mut waiting = ask(&mut streams, 1, heap(), &[]);
    streams.shut();
    assert_eq!(job(&mut streams, 1, &[]), "drop 1");
    streams.done(anchor(1).moment, OnDemandResult::Dropped { id: 1 });
    assert!(streams.is_empty());
    for answer in [&mut answer, &mut waiting] {
        assert!(matches!(answer.try_recv(), Ok(Err(ProfileError::Failed(_)))));
    }
    let mut late = ask(&mut streams, 2, heap(), &[]);
    assert!(matches!(late.try_recv(), Ok(Err(ProfileError::Failed(_)))));
}

#[test]
fn a_day_has_so_many_captures_and_names_are_none() {
    let day = 24 * 60 * 60;
    let mut streams = OnDemandCaptures::new(2);
    let _answers = [ask(&mut streams, 0, heap(), &[]), ask(&mut streams, 5, heap(), &[])];
    match ask(&mut streams, 900, cpu(1), &[]).try_recv() {
        Ok(Err(ProfileError::Spent { limit: 2, until, wait })) => {
            assert_eq!((until.as_str(), wait), ("2026-11-24T00:15:00Z", SECOND * day));
        }
        other => panic!("{other:?}"),
    }
    let mut names = ask(&mut streams, 900, ProfileKind::Symbols(vec![1]), &[]);
    assert!(names.try_recv().is_err(), "it is taken on");
    assert_eq!(streams.allowance.spent(anchor(900).moment), 2);
}

#[test]
fn what_came_to_nothing_is_not_counted_and_what_was_cut_off_is() {
    let mut streams = OnDemandCaptures::new(1000);
    let spent = |streams: &OnDemandCaptures| streams.allowance.spent(anchor(0).moment);
    drop(ask(&mut streams, 0, cpu(1), &[]));
    assert_eq!(job(&mut streams, 0, &[]), "none");
    assert_eq!(spent(&streams), 0, "he went before his turn");
    let _failed = ask(&mut streams, 0, heap(), &[]);
    assert_eq!(job(&mut streams, 0, &[]), "look 2");
    let result = Err(ProfileError::Absent("no allocator".into()));
    streams.done(anchor(0).moment, OnDemandResult::Finished { id: 2, result });
    assert_eq!(spent(&streams), 0, "it failed");
    let (mut streams, answer) = running();
    drop(answer);
    assert_eq!(job(&mut streams, 1, &[]), "drop 1");
    streams.done(anchor(1).moment, OnDemandResult::Dropped { id: 1 });
    assert_eq!(spent(&streams), 1, "it ran");
}
