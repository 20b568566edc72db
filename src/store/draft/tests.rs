use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::{DiskReserve, StoreSettings};
use crate::model::CaptureKind;
use crate::store::IncidentDir;
use crate::store::file_system::FsFeature;
use crate::store::fixture::{Fixture, generous_settings};

/// Runs `test` with unnamed files and with named ones.
fn with_unnamed_and_named_files(settings: &StoreSettings, test: impl Fn(&Fixture, IncidentDir)) {
    for unnamed in [true, false] {
        let fixture = Fixture::new(settings.clone());
        if !unnamed {
            fixture.store.inner.root.file_system().disable(FsFeature::UnnamedFiles);
        }
        let incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        let part_file = incident.path().join(".draft-0.part");
        let draft = incident.draft(CaptureKind::Cpu, fixture.manifest().opened).unwrap();
        assert_eq!(part_file.exists(), !unnamed, "the file system does not do what is tested");
        drop(draft);
        test(&fixture, incident);
    }
}

fn file_names(incident: &IncidentDir) -> Vec<String> {
    let entries = std::fs::read_dir(incident.path()).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn commit_creates_complete_private_file_with_next_number() {
    with_unnamed_and_named_files(&generous_settings(), |_, incident| {
        let taken_at = incident.manifest().opened;
        // Sizes around the buffer size, where writes are split differently.
        for (seq, size) in
            [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 << 20].iter().enumerate()
        {
            let content: Vec<u8> = (0..*size).map(|at| (at * 7 % 251) as u8).collect();
            let mut draft = incident.draft(CaptureKind::Heap, taken_at).unwrap();
            let (head, tail) = content.split_at(size / 3);
            draft.write_all(head).unwrap();
            draft.write_all(tail).unwrap();
            assert_eq!(draft.bytes().get() as usize, *size);
            let artifact = draft.commit().unwrap();
            assert_eq!(artifact.file, format!("orders_eu-1.{:03}.memory.pprof", seq + 1));
            assert_eq!(artifact.bytes.get() as usize, *size);
            let path = incident.path().join(&artifact.file);
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(artifact.sha256, hex(Hash::hash(&content)));
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);
        }
    });
}

#[test]
fn dropped_draft_leaves_no_file_and_releases_space() {
    with_unnamed_and_named_files(&generous_settings(), |fixture, incident| {
        let taken_at = incident.manifest().opened;
        let mut draft = incident.draft(CaptureKind::Trace, taken_at).unwrap();
        draft.write_all(&vec![1; 1 << 20]).unwrap();
        assert_eq!(fixture.store.inner.lock_usage().reserved_bytes, 1 << 20);
        drop(draft);
        assert_eq!(file_names(&incident), ["incident.json"]);
        assert_eq!(fixture.store.inner.lock_usage().reserved_bytes, 0);
    });
}

#[test]
fn numbers_follow_commit_order_and_skip_existing_names() {
    with_unnamed_and_named_files(&generous_settings(), |_, incident| {
        let taken_at = incident.manifest().opened;
        let planted = incident.path().join("orders_eu-1.001.cpu.pprof");
        std::fs::write(&planted, "somebody else's").unwrap();
        let first = incident.draft(CaptureKind::Heap, taken_at).unwrap();
        let second = incident.draft(CaptureKind::Cpu, taken_at).unwrap();
        assert_eq!(second.commit().unwrap().file, "orders_eu-1.002.cpu.pprof");
        assert_eq!(first.commit().unwrap().file, "orders_eu-1.003.memory.pprof");
        assert_eq!(std::fs::read(planted).unwrap(), b"somebody else's");
    });
}

#[test]
fn write_is_rejected_one_byte_above_max_bytes() {
    // The manifest counts too; the directory is scanned again before a write is rejected.
    let settings = StoreSettings { max_bytes: Bytes::kib(256), ..generous_settings() };
    with_unnamed_and_named_files(&settings, |_, incident| {
        let manifest = std::fs::metadata(incident.path().join("incident.json")).unwrap().len();
        let available = (256 << 10) - manifest as usize;
        let taken_at = incident.manifest().opened;
        let mut fits = incident.draft(CaptureKind::Heap, taken_at).unwrap();
        fits.write_all(&vec![1; available]).unwrap();
        fits.flush().unwrap();
        let mut over = incident.draft(CaptureKind::Cpu, taken_at).unwrap();
        over.write_all(b"x").unwrap();
        let error = over.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("max_bytes"), "{error}");
        assert!(over.write(b"more").is_err() && over.flush().is_err());
        assert!(matches!(over.commit(), Err(Error::Incomplete { .. })));
        fits.commit().unwrap();
        assert_eq!(file_names(&incident), ["incident.json", "orders_eu-1.001.memory.pprof"]);
    });
}

#[test]
fn write_is_rejected_when_min_free_space_is_reached() {
    let settings = StoreSettings {
        min_free_space: DiskReserve::Bytes(Bytes(u64::MAX)),
        ..generous_settings()
    };
    with_unnamed_and_named_files(&settings, |_, incident| {
        let mut draft = incident.draft(CaptureKind::Heap, incident.manifest().opened).unwrap();
        draft.write_all(b"x").unwrap();
        let error = draft.commit().unwrap_err();
        assert!(matches!(error, Error::Full { limit: StoreLimit::MinFreeSpace, .. }), "{error}");
        assert_eq!(file_names(&incident), ["incident.json"]);
    });
}

#[test]
fn write_evicts_oldest_closed_incidents() {
    let settings = StoreSettings { max_bytes: Bytes::kib(400), ..generous_settings() };
    with_unnamed_and_named_files(&settings, |fixture, incident| {
        let mut kept = vec![
            fixture.create_closed(100 << 10),
            fixture.create_closed(100 << 10),
            fixture.create_closed(100 << 10),
        ];
        let mut draft = incident.draft(CaptureKind::Heap, incident.manifest().opened).unwrap();
        draft.write_all(&vec![1; 180 << 10]).unwrap();
        kept.remove(0);
        kept.reverse();
        kept.push(incident.id());
        assert_eq!(fixture.incident_ids(), kept);
        draft.write_all(&vec![1; 100 << 10]).unwrap();
        kept.remove(1);
        assert_eq!(fixture.incident_ids(), kept);
        draft.commit().unwrap();
    });
}
