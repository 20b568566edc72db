use super::filter::*;

#[test]
fn address_is_present_until_last_remove() {
    let filter = AddressFilter::<DEFAULT_COUNTERS>::new();
    assert!(!filter.may_contain(0x7f00_1230));
    filter.add(0x7f00_1230);
    filter.add(0x7f00_1230);
    filter.remove(0x7f00_1230);
    assert!(filter.may_contain(0x7f00_1230));
    filter.remove(0x7f00_1230);
    assert!(!filter.may_contain(0x7f00_1230));
}

#[test]
fn nearby_addresses_share_counter_distant_ones_rarely() {
    let filter = AddressFilter::<DEFAULT_COUNTERS>::new();
    filter.add(0x7f00_1230);
    let near = (0x7f00_0000..0x7f00_2000).step_by(16);
    let matching: Vec<_> = near.filter(|&address| filter.may_contain(address)).collect();
    let first = matching[0];
    let last = matching[matching.len() - 1];
    assert!((first..=last).contains(&0x7f00_1230), "{matching:x?}");
    assert_eq!(matching.len(), (last - first) / 16 + 1, "one run: {matching:x?}");
    assert!(
        [15, 16].contains(&matching.len()),
        "a piece holds as many blocks of 16: {matching:x?}"
    );
    for step in [4096, 1 << 20, 16 << 20, 20 << 20, 64 << 20, 1 << 30] {
        let matching = (1..1000).filter(|n| filter.may_contain(0x7f00_1230 + n * step)).count();
        assert!(matching <= 2, "{matching} of 1000 blocks {step} bytes apart");
    }
}

#[test]
fn saturated_counter_never_returns_to_zero() {
    let filter = AddressFilter::<DEFAULT_COUNTERS>::new();
    (0..300).for_each(|_| filter.add(64));
    (0..300).for_each(|_| filter.remove(64));
    assert!(filter.may_contain(64));
}
