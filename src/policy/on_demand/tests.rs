use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::*;
use crate::model::CaptureKind;

const SECOND: Duration = Duration::from_secs(1);

fn anchor(seconds: u64) -> TimeAnchor {
    let wall: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
    let zero = TimeAnchor { moment: Moment::from_nanos(0), wall, suspended: Duration::ZERO };
    let moment = Moment::from_nanos(seconds * 1_000_000_000);
    TimeAnchor { moment, wall: zero.wall_at(moment), suspended: Duration::ZERO }
}

type ResponseReceiver = oneshot::Receiver<Result<ProfileResponse, ProfileError>>;

fn submit(
    captures: &mut OnDemandCaptures,
    now: u64,
    kind: ProfileKind,
    in_use: &[EngineInUse],
) -> ResponseReceiver {
    let (reply, answer) = oneshot::channel();
    let client = format!("client {now}");
    captures.submit(anchor(now), ProfileRequest { kind, client, reply }, in_use);
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

fn next_command_text(captures: &mut OnDemandCaptures, now: u64, in_use: &[EngineInUse]) -> String {
    let command =
        captures.urgent_command(in_use).or_else(|| captures.next_command(anchor(now), in_use));
    match command {
        None => "none".into(),
        Some(OnDemandCommand::Snapshot { id, .. }) => format!("snapshot {id}"),
        Some(OnDemandCommand::Start { id, .. }) => format!("start {id}"),
        Some(OnDemandCommand::Stop { id, cut_short }) => {
            format!("stop {id}{}", cut_short.map(|why| format!(": {why}")).unwrap_or_default())
        }
        Some(OnDemandCommand::Encode { id }) => format!("encode {id}"),
        Some(OnDemandCommand::Cancel { id }) => format!("cancel {id}"),
    }
}

/// Starts a CPU capture of 10 s at second 0.
fn start_cpu_capture() -> (OnDemandCaptures, ResponseReceiver) {
    let mut captures = OnDemandCaptures::new(1000);
    let answer = submit(&mut captures, 0, cpu(10), &[]);
    assert_eq!(next_command_text(&mut captures, 0, &[]), "start 1");
    captures.apply_result(anchor(0).moment, OnDemandResult::Started { id: 1, engine: None });
    (captures, answer)
}

fn busy_error(mut answer: ResponseReceiver) -> (String, Option<u64>) {
    match answer.try_recv() {
        Ok(Err(ProfileError::Busy { by, retry_after: wait })) => {
            (by, wait.map(|wait| wait.as_secs()))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn timed_capture_runs_for_its_duration_and_is_returned() {
    let (mut captures, mut answer) = start_cpu_capture();
    assert_eq!(next_command_text(&mut captures, 9, &[]), "none");
    assert_eq!(captures.next_expiry(), Some(anchor(10).moment));
    assert_eq!(next_command_text(&mut captures, 10, &[]), "stop 1");
    assert_eq!(captures.next_expiry(), None, "the stop command is in flight");
    captures.apply_result(anchor(10).moment, OnDemandResult::Stopped { id: 1 });
    assert_eq!(next_command_text(&mut captures, 10, &[]), "encode 1");
    let result = Ok(ProfileResponse { bytes: vec![1, 2, 3], cut_short: None });
    assert_eq!(
        captures.apply_result(anchor(10).moment, OnDemandResult::Finished { id: 1, result }),
        Some(3)
    );
    assert_eq!(answer.try_recv().unwrap().unwrap().bytes, [1, 2, 3]);
    assert!(captures.is_empty());
}

#[test]
fn encoding_blocks_neither_other_captures_nor_shutdown() {
    let (mut captures, mut answer) = start_cpu_capture();
    assert_eq!(next_command_text(&mut captures, 10, &[]), "stop 1");
    captures.apply_result(anchor(10).moment, OnDemandResult::Stopped { id: 1 });
    assert_eq!(next_command_text(&mut captures, 10, &[]), "encode 1");
    captures.apply_result(anchor(10).moment, OnDemandResult::Encoding { id: 1 });
    assert_eq!(
        next_command_text(&mut captures, 10, &[]),
        "none",
        "the encoder thread has the data"
    );
    assert_eq!((captures.next_expiry(), captures.is_empty()), (None, false));
    // The engine is free in the meantime.
    let _second = submit(&mut captures, 11, cpu(5), &[]);
    assert_eq!(next_command_text(&mut captures, 11, &[]), "start 2");
    captures.apply_result(anchor(11).moment, OnDemandResult::Started { id: 2, engine: None });

    captures.shut_down();
    assert_eq!(next_command_text(&mut captures, 12, &[]), "cancel 2");
    captures.apply_result(anchor(12).moment, OnDemandResult::Canceled { id: 2 });
    assert!(captures.is_empty());
    assert!(matches!(answer.try_recv(), Ok(Err(ProfileError::Stopped))));
    let result = Ok(ProfileResponse::default());
    assert_eq!(
        captures.apply_result(anchor(13).moment, OnDemandResult::Finished { id: 1, result }),
        None
    );
}

#[test]
fn second_cpu_capture_is_refused_with_owner_and_end_time() {
    let (mut captures, first) = start_cpu_capture();
    let second = submit(&mut captures, 4, cpu(1), &[]);
    let expected = ("in use by client 0 until 2026-11-23T00:00:10Z".to_owned(), Some(6));
    assert_eq!(busy_error(second), expected);
    // Captures without an engine run beside it.
    let mut snapshot = submit(&mut captures, 4, heap(), &[]);
    assert_eq!(next_command_text(&mut captures, 4, &[]), "snapshot 2");
    assert!(snapshot.try_recv().is_err() && !first.is_terminated());
}

#[test]
fn disconnecting_client_frees_the_engine_at_once() {
    let (mut captures, answer) = start_cpu_capture();
    drop(answer);
    assert_eq!(next_command_text(&mut captures, 1, &[]), "cancel 1");
    captures.apply_result(anchor(1).moment, OnDemandResult::Canceled { id: 1 });
    let _second = submit(&mut captures, 1, cpu(1), &[]);
    assert_eq!(next_command_text(&mut captures, 1, &[]), "start 2");
}

#[test]
fn disconnect_before_start_removes_request() {
    let mut captures = OnDemandCaptures::new(1000);
    drop(submit(&mut captures, 0, cpu(1), &[]));
    assert_eq!(next_command_text(&mut captures, 0, &[]), "none");
    assert!(captures.is_empty());
}

#[test]
fn incident_stops_capture_and_client_gets_partial_data() {
    let (mut captures, _answer) = start_cpu_capture();
    let in_use = incident([CaptureKind::Cpu]);
    let stop = "stop 1: the engine was needed by incident X (memory)";
    assert_eq!(next_command_text(&mut captures, 3, &in_use), stop);
    captures.apply_result(anchor(3).moment, OnDemandResult::Stopped { id: 1 });
    assert!(
        captures.urgent_command(&in_use).is_none(),
        "the incident does not wait for the encoding"
    );
    assert_eq!(next_command_text(&mut captures, 3, &in_use), "encode 1");
    let expected = "in use by incident X (memory), until 2026-11-23T00:01:40Z".to_owned();
    assert_eq!(busy_error(submit(&mut captures, 40, cpu(1), &in_use)), (expected, Some(60)));
}

#[test]
fn incident_with_other_engines_does_not_block_captures() {
    let (mut captures, _answer) = start_cpu_capture();
    let in_use = incident([CaptureKind::Trace, CaptureKind::Heap]);
    assert!(captures.urgent_command(&in_use).is_none());
    let _heap = submit(&mut captures, 1, heap(), &in_use);
    assert_eq!(next_command_text(&mut captures, 1, &in_use), "snapshot 2");
}

#[test]
fn incident_before_start_rejects_waiting_client() {
    let mut captures = OnDemandCaptures::new(1000);
    let answer = submit(&mut captures, 0, cpu(1), &[]);
    assert_eq!(next_command_text(&mut captures, 0, &incident([CaptureKind::Cpu])), "none");
    assert!(busy_error(answer).0.contains("incident X"));
}

#[test]
fn snapshots_beyond_queue_limit_are_refused() {
    let mut captures = OnDemandCaptures::new(1000);
    let answers: Vec<ResponseReceiver> = (0..ProfileClass::Snapshot.max_requests())
        .map(|_| submit(&mut captures, 0, heap(), &[]))
        .collect();
    assert_eq!(busy_error(submit(&mut captures, 0, heap(), &[])).1, None);
    assert_eq!(next_command_text(&mut captures, 0, &[]), "snapshot 1");
    drop(answers);
}

#[test]
fn second_heap_delta_is_refused() {
    let delta =
        || ProfileKind::HeapDelta { duration: SECOND * 5, view: HeapView::InUse, rate: None };
    let mut captures = OnDemandCaptures::new(1000);
    let _first = submit(&mut captures, 0, delta(), &[]);
    assert_eq!(busy_error(submit(&mut captures, 1, delta(), &[])).1, Some(5));
}

#[test]
fn long_captures_do_not_block_snapshots_or_symbol_requests() {
    let threads = |seconds: u32| ProfileKind::ThreadsDelta {
        duration: SECOND * seconds,
        view: ThreadView::Now,
    };
    let mut captures = OnDemandCaptures::new(1000);
    // A client requests as many recordings as it can.
    let mut receivers = Vec::new();
    let mut accepted = 0;
    for _ in 0..100 {
        let delta =
            ProfileKind::HeapDelta { duration: SECOND * 299, view: HeapView::InUse, rate: None };
        let trace = ProfileKind::Trace { duration: SECOND * 299 };
        for kind in [threads(299), delta, trace, cpu(299)] {
            let mut answer = submit(&mut captures, 0, kind, &[]);
            if matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                accepted += 1;
                receivers.push(answer);
            }
        }
    }
    assert_eq!(accepted, 4, "one of each kind");
    assert_eq!(busy_error(submit(&mut captures, 1, threads(1), &[])).1, Some(299));
    let now = ProfileKind::Threads { view: ThreadView::Now, form: ProfileForm::Binary };
    for kind in [heap(), now, ProfileKind::Symbols(vec![1])] {
        let mut answer = submit(&mut captures, 1, kind.clone(), &[]);
        assert!(answer.try_recv().is_err(), "{kind:?} is accepted");
        receivers.push(answer);
    }
    // Symbol requests have a separate limit and do not reduce the others.
    let symbols = || ProfileKind::Symbols(vec![1]);
    receivers.extend(
        (1..ProfileClass::Symbols.max_requests()).map(|_| submit(&mut captures, 1, symbols(), &[])),
    );
    assert!(busy_error(submit(&mut captures, 1, symbols(), &[])).0.contains("symbol requests"));
    assert!(submit(&mut captures, 1, heap(), &[]).try_recv().is_err());
}

#[test]
fn shutdown_cancels_captures_and_replies_to_all_clients() {
    let (mut captures, mut answer) = start_cpu_capture();
    let mut waiting = submit(&mut captures, 1, heap(), &[]);
    captures.shut_down();
    assert_eq!(next_command_text(&mut captures, 1, &[]), "cancel 1");
    captures.apply_result(anchor(1).moment, OnDemandResult::Canceled { id: 1 });
    assert!(captures.is_empty());
    for answer in [&mut answer, &mut waiting] {
        assert!(matches!(answer.try_recv(), Ok(Err(ProfileError::Stopped))));
    }
    let mut late = submit(&mut captures, 2, heap(), &[]);
    assert!(matches!(late.try_recv(), Ok(Err(ProfileError::Stopped))));
}

#[test]
fn daily_quota_limits_captures_but_not_symbol_requests() {
    let day = 24 * 60 * 60;
    let mut captures = OnDemandCaptures::new(2);
    let _answers = [submit(&mut captures, 0, heap(), &[]), submit(&mut captures, 5, heap(), &[])];
    match submit(&mut captures, 900, cpu(1), &[]).try_recv() {
        Ok(Err(ProfileError::QuotaExhausted { limit: 2, until, wait })) => {
            assert_eq!((until.as_str(), wait), ("2026-11-24T00:15:00Z", SECOND * day));
        }
        other => panic!("{other:?}"),
    }
    let mut names = submit(&mut captures, 900, ProfileKind::Symbols(vec![1]), &[]);
    assert!(names.try_recv().is_err(), "the request is accepted");
    assert_eq!(captures.quota.used_count(anchor(900).moment), 2);
}

#[test]
fn failed_captures_are_refunded_and_canceled_ones_are_counted() {
    let mut captures = OnDemandCaptures::new(1000);
    let spent = |captures: &OnDemandCaptures| captures.quota.used_count(anchor(0).moment);
    drop(submit(&mut captures, 0, cpu(1), &[]));
    assert_eq!(next_command_text(&mut captures, 0, &[]), "none");
    assert_eq!(spent(&captures), 0, "the client disconnected before the start");
    let _failed = submit(&mut captures, 0, heap(), &[]);
    assert_eq!(next_command_text(&mut captures, 0, &[]), "snapshot 2");
    let result = Err(ProfileError::Unavailable("no allocator".into()));
    captures.apply_result(anchor(0).moment, OnDemandResult::Finished { id: 2, result });
    assert_eq!(spent(&captures), 0, "it failed");
    let (mut captures, answer) = start_cpu_capture();
    drop(answer);
    assert_eq!(next_command_text(&mut captures, 1, &[]), "cancel 1");
    captures.apply_result(anchor(1).moment, OnDemandResult::Canceled { id: 1 });
    assert_eq!(spent(&captures), 1, "it ran");
}
