use std::io;
use std::os::fd::AsFd;

use super::unwatched::{has_not_execed, process_flags};
use super::*;

#[test]
fn descriptor_is_registered_until_guard_is_dropped() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let guard = NotInherited::new(file.as_fd()).unwrap();
    let registered = || SLOTS.iter().any(|slot| slot.load(Relaxed) == file.as_raw_fd());
    assert!(registered());
    drop(guard);
    assert!(!registered());
}

#[test]
fn replaced_descriptor_keeps_number_and_closes_original() {
    let (mut reader, writer) = io::pipe().unwrap();
    let inert = create_inert_fd();
    replace_fd(writer.as_raw_fd(), inert);
    close(inert);
    let mut end = Vec::new();
    io::Read::read_to_end(&mut reader, &mut end).unwrap();
    assert!(end.is_empty(), "the pipe has no writer left");
}

#[cfg(target_os = "linux")]
#[test]
fn process_flags_are_parsed_after_names_with_brackets() {
    let stat = |name: &str, state: &str| format!("7 ({name}) {state} 1 7 7 0 -1 4194368 97 0 0");
    assert_eq!(process_flags(stat("a", "S").as_bytes()), Some(Some(4_194_368)));
    assert_eq!(process_flags(stat(") Z 1 (", "S").as_bytes()), Some(Some(4_194_368)));
    assert_eq!(process_flags(stat("a", "Z").as_bytes()), Some(None));
    assert_eq!(process_flags(b"7 (a"), None);
    assert!(!has_not_execed(u32::MAX >> 1).unwrap());
}
