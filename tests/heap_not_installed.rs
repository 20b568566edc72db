//! Without the allocator there is no profile, and the error says what line to add.

use jiff::Timestamp;
use marple::heap;

#[test]
fn the_error_says_which_line_to_add() {
    assert!(!heap::installed());
    let error = heap::snapshot(Timestamp::now()).unwrap_err();
    assert!(matches!(error, heap::Error::NotInstalled));
    assert!(error.to_string().contains(
        "#[global_allocator] static A: marple::Allocator<std::alloc::System> = \
         marple::Allocator::new(std::alloc::System);"
    ));
}
