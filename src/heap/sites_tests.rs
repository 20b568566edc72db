use super::segment::Record;
use super::sites::*;

#[test]
fn a_site_is_a_stack_and_a_size() {
    let sites = Sites::new();
    let (a, b, c) = (sites.intern(1, 64), sites.intern(1, 65), sites.intern(2, 64));
    assert!(a != b && b != c && a != c && a.is_some());
    assert_eq!(sites.intern(1, 64), a);
    let block = Record { site: a.unwrap(), size: 64, weight: 2.5 };
    (0..3).for_each(|_| sites.count(block.site, Amount::of(&block)));
    let (_, site) = sites.iter(1..sites.end()).find(|(id, _)| Some(*id) == a).unwrap();
    assert_eq!((site.stack, site.size), (1, 64));
    assert_eq!((site.allocated.objects(), site.allocated.bytes()), (8, 480));
}

#[test]
fn sizes_share_a_site_when_the_table_fills_up() {
    let sites = Sites::new();
    let ids: Vec<_> = (1..=CAP).map(|size| sites.intern(1, size)).collect();
    assert!(ids.iter().all(Option::is_some));
    assert_eq!(ids[ids.len() - 1], ids[ids.len() - 2], "one site for all sizes");
    assert_ne!(sites.intern(2, 64), sites.intern(1, CAP), "and one for each stack");
    assert_eq!(sites.intern(1, 64), ids[63], "sites that exist keep their blocks");
    assert!((3..).take(CAP as usize).any(|stack| sites.intern(stack, 1).is_none()));
}
