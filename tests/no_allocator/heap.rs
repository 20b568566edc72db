//! Without the allocator there is no profile, and the error contains the line to add.

use jiff::Timestamp;
use marple::internals::heap;

#[test]
fn missing_allocator_error_has_line_to_add() {
    assert!(!heap::is_installed());
    let error = heap::snapshot(Timestamp::now()).unwrap_err();
    assert!(matches!(error, heap::Error::NotInstalled));
    assert!(error.to_string().contains(
        "#[global_allocator] static A: marple::Allocator<std::alloc::System> = \
         marple::Allocator::new(std::alloc::System);"
    ));
}

#[test]
fn start_warns_if_rules_capture_heap_without_allocator() {
    use std::time::{Duration, Instant};

    let home = tempfile::tempdir().unwrap();
    let settings = marple::Settings { dir: home.path().join("captures"), ..Default::default() };
    let agent = marple::Builder::from_settings(settings).start().unwrap();
    let start = Instant::now();
    let warning = loop {
        let status = agent.handle().status().wait(Duration::from_secs(60)).unwrap();
        let mut warnings = status.warnings.into_iter();
        if let Some(said) = warnings.find(|entry| entry.topic == "heap") {
            break said.text;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no warning");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(warning.contains("global_allocator"), "{warning}");
}
