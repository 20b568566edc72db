use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::{DiskReserve, StoreSettings};
use crate::model::CaptureKind;
use crate::store::IncidentDir;
use crate::store::file_system::FsFeature;
use crate::store::fixture::{Fixture, roomy};

/// Runs `test` with unnamed files and with named ones.
fn both_ways(settings: &StoreSettings, test: impl Fn(&Fixture, IncidentDir)) {
    for unnamed in [true, false] {
        let it = Fixture::new(settings.clone());
        if !unnamed {
            it.store.shared.root.file_system().pretend_without(FsFeature::Unnamed);
        }
        let incident = it.store.begin("memory", it.manifest()).unwrap();
        let part = incident.path().join(".draft-0.part");
        let draft = incident.draft(CaptureKind::Cpu, it.manifest().opened).unwrap();
        assert_eq!(part.exists(), !unnamed, "the file system does not do what is tested");
        drop(draft);
        test(&it, incident);
    }
}

fn files(incident: &IncidentDir) -> Vec<String> {
    let entries = std::fs::read_dir(incident.path()).unwrap();
    let mut names: Vec<_> =
        entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_commit_makes_a_whole_private_file_under_the_next_number() {
    both_ways(&roomy(), |_, incident| {
        let taken = incident.manifest().opened;
        // Sizes around the buffer size, where writes are split differently.
        for (seq, size) in [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 << 20].iter().enumerate() {
            let content: Vec<u8> = (0..*size).map(|at| (at * 7 % 251) as u8).collect();
            let mut draft = incident.draft(CaptureKind::Heap, taken).unwrap();
            let (head, tail) = content.split_at(size / 3);
            draft.write_all(head).unwrap();
            draft.write_all(tail).unwrap();
            assert_eq!(draft.bytes().get() as usize, *size);
            let artifact = draft.commit().unwrap();
            assert_eq!(artifact.file, format!("orders_eu-1.{:03}.memory.pprof", seq + 1));
            assert_eq!(artifact.bytes.get() as usize, *size);
            let path = incident.path().join(&artifact.file);
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(artifact.sha256, hex(Sha256::new().chain_update(&content)));
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);
        }
    });
}

#[test]
fn a_draft_that_is_dropped_was_never_there() {
    both_ways(&roomy(), |it, incident| {
        let taken = incident.manifest().opened;
        let mut draft = incident.draft(CaptureKind::Trace, taken).unwrap();
        draft.write_all(&vec![1; 1 << 20]).unwrap();
        assert_eq!(it.store.shared.ledger().reserved, 1 << 20);
        drop(draft);
        assert_eq!(files(&incident), ["incident.json"]);
        assert_eq!(it.store.shared.ledger().reserved, 0);
    });
}

#[test]
fn numbers_are_given_in_the_order_of_commits_and_taken_names_passed_over() {
    both_ways(&roomy(), |_, incident| {
        let taken = incident.manifest().opened;
        let planted = incident.path().join("orders_eu-1.001.cpu.pprof");
        std::fs::write(&planted, "somebody else's").unwrap();
        let first = incident.draft(CaptureKind::Heap, taken).unwrap();
        let second = incident.draft(CaptureKind::Cpu, taken).unwrap();
        assert_eq!(second.commit().unwrap().file, "orders_eu-1.002.cpu.pprof");
        assert_eq!(first.commit().unwrap().file, "orders_eu-1.003.memory.pprof");
        assert_eq!(std::fs::read(planted).unwrap(), b"somebody else's");
    });
}

#[test]
fn a_write_past_max_bytes_is_refused_at_the_byte() {
    // The manifest counts too; the directory is scanned again before a write is rejected.
    let settings = StoreSettings { max_bytes: Bytes::kib(256), ..roomy() };
    both_ways(&settings, |_, incident| {
        let manifest = std::fs::metadata(incident.path().join("incident.json")).unwrap().len();
        let room = (256 << 10) - manifest as usize;
        let taken = incident.manifest().opened;
        let mut fits = incident.draft(CaptureKind::Heap, taken).unwrap();
        fits.write_all(&vec![1; room]).unwrap();
        fits.flush().unwrap();
        let mut over = incident.draft(CaptureKind::Cpu, taken).unwrap();
        over.write_all(b"x").unwrap();
        let error = over.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("max_bytes"), "{error}");
        assert!(over.write(b"more").is_err() && over.flush().is_err());
        assert!(matches!(over.commit(), Err(Error::Incomplete { .. })));
        fits.commit().unwrap();
        assert_eq!(files(&incident), ["incident.json", "orders_eu-1.001.memory.pprof"]);
    });
}

#[test]
fn a_write_into_the_room_of_others_is_refused() {
    let settings = StoreSettings { keep_free: DiskReserve::Bytes(Bytes(u64::MAX)), ..roomy() };
    both_ways(&settings, |_, incident| {
        let mut draft = incident.draft(CaptureKind::Heap, incident.manifest().opened).unwrap();
        draft.write_all(b"x").unwrap();
        let error = draft.commit().unwrap_err();
        assert!(matches!(error, Error::Full { bound: StoreLimit::Free, .. }), "{error}");
        assert_eq!(files(&incident), ["incident.json"]);
    });
}

#[test]
fn a_write_makes_room_by_removing_the_oldest_closed_incidents() {
    let settings = StoreSettings { max_bytes: Bytes::kib(400), ..roomy() };
    both_ways(&settings, |it, incident| {
        let mut kept = vec![it.closed(100 << 10), it.closed(100 << 10), it.closed(100 << 10)];
        let mut draft = incident.draft(CaptureKind::Heap, incident.manifest().opened).unwrap();
        draft.write_all(&vec![1; 180 << 10]).unwrap();
        kept.remove(0);
        kept.reverse();
        kept.push(incident.id());
        assert_eq!(it.ids(), kept);
        draft.write_all(&vec![1; 100 << 10]).unwrap();
        kept.remove(1);
        assert_eq!(it.ids(), kept);
        draft.commit().unwrap();
    });
}
