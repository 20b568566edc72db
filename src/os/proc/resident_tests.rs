//! Tests with mappings as listed by the kernel, and with those of this process.

use super::*;

fn kinds(smaps: &str) -> MappingKinds {
    let mut walk = MappingWalk::default();
    assert!(smaps.lines().all(|line| walk.add_line(line.as_bytes())));
    walk.finish()
}

fn kib(kib: u64) -> Bytes {
    Bytes(kib << 10)
}

#[test]
fn mappings_are_summed_by_kind() {
    let found = kinds(
        "55d0c0000000-55d0c0100000 r-xp 00001000 08:01 42   /usr/bin/a service\n\
         Size:               1024 kB\n\
         Rss:                 800 kB\n\
         Pss:                 800 kB\n\
         55d0c1000000-55d0c1100000 rw-p 00000000 00:00 0    [heap]\n\
         Rss:                 100 kB\n\
         7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \n\
         Rss:                 200 kB\n\
         7f0000100000-7f0004000000 ---p 00000000 00:00 0 \n\
         Rss:                   0 kB\n\
         7f0004000000-7f0008000000 rw-p 00000000 00:00 0 \n\
         Rss:               65536 kB\n\
         7f0009001000-7f0009002000 ---p 00000000 00:00 0 \n\
         Rss:                   0 kB\n\
         7f0009002000-7f0009202000 rw-p 00000000 00:00 0 \n\
         Rss:                  16 kB\n\
         7f000a000000-7f0040000000 rw-p 00000000 00:00 0 \n\
         Rss:              870400 kB\n\
         7f0050000000-7f0050100000 rw-s 00000000 00:01 7    /dev/shm/queue\n\
         Rss:                 512 kB\n\
         7f0050200000-7f0050300000 rw-s 00000000 00:01 9    /memfd:jit (deleted)\n\
         Rss:                 256 kB\n\
         7f0060000000-7f0060100000 rw-p 00000000 00:00 0    [anon: glibc: pthread stack: 17]\n\
         Rss:                   8 kB\n\
         7ffc00000000-7ffc00100000 rw-p 00000000 00:00 0    [stack]\n\
         Rss:                  40 kB\n\
         VmFlags: rd wr mr\n",
    );
    assert_eq!(found.files, kib(800));
    assert_eq!(found.malloc, kib(100 + 200 + 65536));
    assert_eq!(found.stacks, kib(16 + 8 + 40));
    assert_eq!(found.anonymous, kib(870_400));
    assert_eq!(found.shared, kib(512 + 256));
    let largest = found.largest.map(|large| (large.start, large.resident, large.kind));
    assert_eq!(
        largest,
        [
            (0x7f00_0a00_0000, kib(870_400), MappingKind::Anonymous),
            (0x7f00_0400_0000, kib(65536), MappingKind::Malloc),
            (0x55d0_c000_0000, kib(800), MappingKind::File),
        ]
    );
    assert!(!found.is_partial);
}

#[test]
fn number_of_mappings_is_bounded() {
    let mut walk = MappingWalk::default();
    let lines = (0..).map(|n| format!("{:x}-{:x} rw-p 00000000 00:00 0 ", n << 12, (n + 1) << 12));
    assert_eq!(lines.take_while(|line| walk.add_line(line.as_bytes())).count(), MAX_MAPPINGS);
    assert!(walk.finish().is_partial);
}

#[test]
#[cfg(all(target_os = "linux", not(miri)))]
fn written_memory_increases_anonymous_rss() {
    const LENGTH: usize = 64 << 20;
    let mut reader = ResidentReader::with_buffer();
    let before = reader.read().unwrap();
    let written = std::hint::black_box(vec![1u8; LENGTH]);
    let after = reader.read().unwrap();
    drop(written);
    let anonymous = |resident: &ResidentMemory| resident.kinds.unwrap().anonymous.get();
    let enough = (LENGTH / 2) as u64;
    assert!(after.anonymous.get() >= before.anonymous.get() + enough, "{before:?} {after:?}");
    assert!(anonymous(&after) >= anonymous(&before) + enough, "{before:?} {after:?}");
    let kinds = after.kinds.unwrap();
    assert!(kinds.files > Bytes(0) && kinds.stacks > Bytes(0), "{kinds:?}");
    assert!(kinds.largest[0].resident.get() >= enough, "{kinds:?}");
}
