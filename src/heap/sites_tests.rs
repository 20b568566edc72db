use super::segment::BlockRecord;
use super::sites::*;

#[test]
fn site_is_keyed_by_stack_and_size() {
    let sites = SiteTable::new();
    let id = |stack, size| sites.intern(stack, size).map(|(id, _)| id);
    let a = id(1, 64);
    let b = id(1, 65);
    let c = id(2, 64);
    assert!(a != b && b != c && a != c && a.is_some());
    assert_eq!(sites.intern(1, 64), Some((a.unwrap(), false)));
    let block = BlockRecord { site: a.unwrap(), size: 64, weight: 2.5 };
    (0..3).for_each(|_| sites.count(block.site, block.amount()));
    let site = sites.hold(a.unwrap().number).unwrap();
    assert_eq!((site.stack, site.size), (1, 64));
    assert_eq!((site.allocated.objects(), site.allocated.bytes()), (8, 480));
}

#[test]
fn sizes_share_one_site_when_table_is_filling_up() {
    let sites = SiteTable::new();
    let id = |stack, size| sites.intern(stack, size).map(|(id, _)| id);
    let ids: Vec<_> = (1..=MAX_SITES).map(|size| id(1, size)).collect();
    assert!(ids.iter().all(Option::is_some));
    assert_eq!(ids[ids.len() - 1], ids[ids.len() - 2], "all sizes have one site");
    assert_ne!(id(2, 64), id(1, MAX_SITES), "each stack has its site");
    assert_eq!(id(1, 64), ids[63], "existing sites keep their blocks");
    assert!((3..).take(MAX_SITES as usize).any(|stack| sites.intern(stack, 1).is_none()));
    assert_eq!(sites.evict(), None, "every site is referenced");
}

#[test]
fn sites_without_live_blocks_are_evicted_and_still_counted() {
    let sites = SiteTable::new();
    let one = |site| BlockRecord { site, size: 64, weight: 1.0 }.amount();
    // Every fourth block stays alive.
    let mut kept = Vec::new();
    let mut evictions = 0;
    for stack in 1..=4 * MAX_SITES as u32 {
        let (site, is_new) = loop {
            if let Some(found) = sites.intern(stack, 64) {
                break found;
            }
            let evicted_stack = sites.evict().unwrap();
            assert_ne!(evicted_stack % 16, 0, "the stack of a live block was evicted");
            evictions += 1;
        };
        assert!(is_new);
        sites.count(site, one(site));
        if stack % 16 == 0 {
            kept.push((stack, site));
        } else {
            sites.release(site);
        }
    }
    assert!(evictions >= 3 * MAX_SITES);
    let mut sum = sites.evicted_amount();
    let mut live = 0;
    for number in 1..sites.end() {
        let Some(site) = sites.hold(number) else { continue };
        live += u64::from(site.stack % 16 == 0);
        sum.add(site.allocated);
    }
    assert_eq!(live, kept.len() as u64);
    assert_eq!(sum.objects(), 4 * MAX_SITES as i64, "the sum includes every counted block");
    for &(stack, site) in &kept {
        assert_eq!(sites.hold(site.number).map(|row| (row.id, row.stack)), Some((site, stack)));
    }
}

#[test]
fn recently_used_site_is_not_evicted() {
    let sites = SiteTable::new();
    let (often, _) = sites.intern(1, 64).unwrap();
    sites.count(often, BlockRecord { site: often, size: 64, weight: 1.0 }.amount());
    sites.release(often);
    for stack in 2..=3 * MAX_SITES as u32 {
        while sites.intern(stack, 64).map(|(site, _)| sites.release(site)).is_none() {
            sites.evict().unwrap();
        }
        if stack % 64 == 0 {
            let (found, is_new) = sites.intern(1, 64).unwrap();
            assert!(!is_new && found == often, "evicted at {stack}");
            sites.release(found);
        }
    }
}
