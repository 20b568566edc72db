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

type ResponseReceiver = oneshot::Receiver<Result<ProfileResponse, ProfileError>>;

fn submit(
    streams: &mut OnDemandCaptures,
    now: u64,
    take: ProfileKind,
    taken: &[EngineInUse],
) -> ResponseReceiver {
    let (reply, answer) = oneshot::channel();
    let who = format!("client {now}");
    streams.submit(anchor(now), ProfileRequest { kind: take, client: who, reply }, taken);
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

fn next_command_text(streams: &mut OnDemandCaptures, now: u64, taken: &[EngineInUse]) -> String {
    let job = streams.urgent_command(taken).or_else(|| streams.next_command(anchor(now), taken));
    match job {
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
    let mut streams = OnDemandCaptures::new(1000);
    let answer = submit(&mut streams, 0, cpu(10), &[]);
    assert_eq!(next_command_text(&mut streams, 0, &[]), "start 1");
    streams.apply_result(anchor(0).moment, OnDemandResult::Started { id: 1, engine: None });
    (streams, answer)
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
    let (mut streams, mut answer) = start_cpu_capture();
    assert_eq!(next_command_text(&mut streams, 9, &[]), "none");
    assert_eq!(streams.next_expiry(), Some(anchor(10).moment));
    assert_eq!(next_command_text(&mut streams, 10, &[]), "stop 1");
    assert_eq!(streams.next_expiry(), None, "the stop command is in flight");
    streams.apply_result(anchor(10).moment, OnDemandResult::Stopped { id: 1 });
    assert_eq!(next_command_text(&mut streams, 10, &[]), "encode 1");
    let result = Ok(ProfileResponse { bytes: vec![1, 2, 3], cut_short: None });
    assert_eq!(
        streams.apply_result(anchor(10).moment, OnDemandResult::Finished { id: 1, result }),
        Some(3)
    );
    assert_eq!(answer.try_recv().unwrap().unwrap().bytes, [1, 2, 3]);
    assert!(streams.is_empty());
}

#[test]
fn encoding_blocks_neither_other_captures_nor_shutdown() {
    let (mut streams, mut answer) = start_cpu_capture();
    assert_eq!(next_command_text(&mut streams, 10, &[]), "stop 1");
    streams.apply_result(anchor(10).moment, OnDemandResult::Stopped { id: 1 });
    assert_eq!(next_command_text(&mut streams, 10, &[]), "encode 1");
    streams.apply_result(anchor(10).moment, OnDemandResult::Encoding { id: 1 });
    assert_eq!(next_command_text(&mut streams, 10, &[]), "none", "the encoder thread has the data");
    assert_eq!((streams.next_expiry(), streams.is_empty()), (None, false));
    // The engine is free in the meantime.
    let _second = submit(&mut streams, 11, cpu(5), &[]);
    assert_eq!(next_command_text(&mut streams, 11, &[]), "start 2");
    streams.apply_result(anchor(11).moment, OnDemandResult::Started { id: 2, engine: None });

    streams.shut_down();
    assert_eq!(next_command_text(&mut streams, 12, &[]), "cancel 2");
    streams.apply_result(anchor(12).moment, OnDemandResult::Canceled { id: 2 });
    assert!(streams.is_empty());
    assert!(matches!(answer.try_recv(), Ok(Err(ProfileError::Stopped))));
    let result = Ok(ProfileResponse::default());
    assert_eq!(
        streams.apply_result(anchor(13).moment, OnDemandResult::Finished { id: 1, result }),
        None
    );
}

#[test]
fn second_cpu_capture_is_refused_with_owner_and_end_time() {
    let (mut streams, first) = start_cpu_capture();
    let second = submit(&mut streams, 4, cpu(1), &[]);
    let expected = ("in use by client 0 until 2026-11-23T00:00:10Z".to_owned(), Some(6));
    assert_eq!(busy_error(second), expected);
    // Captures without an engine run beside it.
    let mut snapshot = submit(&mut streams, 4, heap(), &[]);
    assert_eq!(next_command_text(&mut streams, 4, &[]), "snapshot 2");
    assert!(snapshot.try_recv().is_err() && !first.is_terminated());
}

#[test]
fn disconnecting_client_frees_the_engine_at_once() {
    let (mut streams, answer) = start_cpu_capture();
    drop(answer);
    assert_eq!(next_command_text(&mut streams, 1, &[]), "cancel 1");
    streams.apply_result(anchor(1).moment, OnDemandResult::Canceled { id: 1 });
    let _second = submit(&mut streams, 1, cpu(1), &[]);
    assert_eq!(next_command_text(&mut streams, 1, &[]), "start 2");
}

#[test]
fn disconnect_before_start_removes_request() {
    let mut streams = OnDemandCaptures::new(1000);
    drop(submit(&mut streams, 0, cpu(1), &[]));
    assert_eq!(next_command_text(&mut streams, 0, &[]), "none");
    assert!(streams.is_empty());
}

#[test]
fn incident_stops_capture_and_client_gets_partial_data() {
    let (mut streams, _answer) = start_cpu_capture();
    let taken = incident([CaptureKind::Cpu]);
    let stop = "stop 1: the engine was needed by incident X (memory)";
    assert_eq!(next_command_text(&mut streams, 3, &taken), stop);
    streams.apply_result(anchor(3).moment, OnDemandResult::Stopped { id: 1 });
    assert!(
        streams.urgent_command(&taken).is_none(),
        "the incident does not wait for the encoding"
    );
    assert_eq!(next_command_text(&mut streams, 3, &taken), "encode 1");
    let expected = "in use by incident X (memory), until 2026-11-23T00:01:40Z".to_owned();
    assert_eq!(busy_error(submit(&mut streams, 40, cpu(1), &taken)), (expected, Some(60)));
}

#[test]
fn incident_with_other_engines_does_not_block_captures() {
    let (mut streams, _answer) = start_cpu_capture();
    let taken = incident([CaptureKind::Trace, CaptureKind::Heap]);
    assert!(streams.urgent_command(&taken).is_none());
    let _heap = submit(&mut streams, 1, heap(), &taken);
    assert_eq!(next_command_text(&mut streams, 1, &taken), "snapshot 2");
}

#[test]
fn incident_before_start_rejects_waiting_client() {
    let mut streams = OnDemandCaptures::new(1000);
    let answer = submit(&mut streams, 0, cpu(1), &[]);
    assert_eq!(next_command_text(&mut streams, 0, &incident([CaptureKind::Cpu])), "none");
    assert!(busy_error(answer).0.contains("incident X"));
}

#[test]
fn snapshots_beyond_queue_limit_are_refused() {
    let mut streams = OnDemandCaptures::new(1000);
    let answers: Vec<ResponseReceiver> = (0..ProfileClass::Snapshot.max_requests())
        .map(|_| submit(&mut streams, 0, heap(), &[]))
        .collect();
    assert_eq!(busy_error(submit(&mut streams, 0, heap(), &[])).1, None);
    assert_eq!(next_command_text(&mut streams, 0, &[]), "snapshot 1");
    drop(answers);
}

#[test]
fn second_heap_delta_is_refused() {
    let delta =
        || ProfileKind::HeapDelta { duration: SECOND * 5, view: HeapView::InUse, rate: None };
    let mut streams = OnDemandCaptures::new(1000);
    let _first = submit(&mut streams, 0, delta(), &[]);
    assert_eq!(busy_error(submit(&mut streams, 1, delta(), &[])).1, Some(5));
}

#[test]
fn long_captures_do_not_block_snapshots_or_symbol_requests() {
    let threads = |seconds: u32| ProfileKind::ThreadsDelta {
        duration: SECOND * seconds,
        view: ThreadView::Now,
    };
    let mut streams = OnDemandCaptures::new(1000);
    // A client requests as many recordings as it can.
    let mut receivers = Vec::new();
    let mut accepted = 0;
    for _ in 0..100 {
        let delta =
            ProfileKind::HeapDelta { duration: SECOND * 299, view: HeapView::InUse, rate: None };
        let trace = ProfileKind::Trace { duration: SECOND * 299 };
        for take in [threads(299), delta, trace, cpu(299)] {
            let mut answer = submit(&mut streams, 0, take, &[]);
            if matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                accepted += 1;
                receivers.push(answer);
            }
        }
    }
    assert_eq!(accepted, 4, "one of each kind");
    assert_eq!(busy_error(submit(&mut streams, 1, threads(1), &[])).1, Some(299));
    let now = ProfileKind::Threads { view: ThreadView::Now, form: ProfileForm::Binary };
    for take in [heap(), now, ProfileKind::Symbols(vec![1])] {
        let mut answer = submit(&mut streams, 1, take.clone(), &[]);
        assert!(answer.try_recv().is_err(), "{take:?} is accepted");
        receivers.push(answer);
    }
    // Symbol requests have a separate limit and do not reduce the others.
    let symbols = || ProfileKind::Symbols(vec![1]);
    receivers.extend(
        (1..ProfileClass::Symbols.max_requests()).map(|_| submit(&mut streams, 1, symbols(), &[])),
    );
    assert!(busy_error(submit(&mut streams, 1, symbols(), &[])).0.contains("symbol requests"));
    assert!(submit(&mut streams, 1, heap(), &[]).try_recv().is_err());
}

#[test]
fn shutdown_cancels_captures_and_replies_to_all_clients() {
    let (mut streams, mut answer) = start_cpu_capture();
    let mut waiting = submit(&mut streams, 1, heap(), &[]);
    streams.shut_down();
    assert_eq!(next_command_text(&mut streams, 1, &[]), "cancel 1");
    streams.apply_result(anchor(1).moment, OnDemandResult::Canceled { id: 1 });
    assert!(streams.is_empty());
    for answer in [&mut answer, &mut waiting] {
        assert!(matches!(answer.try_recv(), Ok(Err(ProfileError::Stopped))));
    }
    let mut late = submit(&mut streams, 2, heap(), &[]);
    assert!(matches!(late.try_recv(), Ok(Err(ProfileError::Stopped))));
}

#[test]
fn daily_quota_limits_captures_but_not_symbol_requests() {
    let day = 24 * 60 * 60;
    let mut streams = OnDemandCaptures::new(2);
    let _answers = [submit(&mut streams, 0, heap(), &[]), submit(&mut streams, 5, heap(), &[])];
    match submit(&mut streams, 900, cpu(1), &[]).try_recv() {
        Ok(Err(ProfileError::QuotaExhausted { limit: 2, until, wait })) => {
            assert_eq!((until.as_str(), wait), ("2026-11-24T00:15:00Z", SECOND * day));
        }
        other => panic!("{other:?}"),
    }
    let mut names = submit(&mut streams, 900, ProfileKind::Symbols(vec![1]), &[]);
    assert!(names.try_recv().is_err(), "the request is accepted");
    assert_eq!(streams.quota.used_count(anchor(900).moment), 2);
}

#[test]
fn failed_captures_are_refunded_and_canceled_ones_are_counted() {
    let mut streams = OnDemandCaptures::new(1000);
    let spent = |streams: &OnDemandCaptures| streams.quota.used_count(anchor(0).moment);
    drop(submit(&mut streams, 0, cpu(1), &[]));
    assert_eq!(next_command_text(&mut streams, 0, &[]), "none");
    assert_eq!(spent(&streams), 0, "the client disconnected before the start");
    let _failed = submit(&mut streams, 0, heap(), &[]);
    assert_eq!(next_command_text(&mut streams, 0, &[]), "snapshot 2");
    let result = Err(ProfileError::Unavailable("no allocator".into()));
    streams.apply_result(anchor(0).moment, OnDemandResult::Finished { id: 2, result });
    assert_eq!(spent(&streams), 0, "it failed");
    let (mut streams, answer) = start_cpu_capture();
    drop(answer);
    assert_eq!(next_command_text(&mut streams, 1, &[]), "cancel 1");
    streams.apply_result(anchor(1).moment, OnDemandResult::Canceled { id: 1 });
    assert_eq!(spent(&streams), 1, "it ran");
}
