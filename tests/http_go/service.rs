//! The marple service under test.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use marple::config::HttpSettings;

use crate::support::host::{Host, settings};
use crate::support::web;

/// A service that keeps 64 MiB allocated and uses a fraction of a core.
pub(crate) struct Service {
    pub(crate) url: String,
    is_burning: &'static AtomicBool,
    _blocks: Vec<Vec<u8>>,
    _host: Host,
}

impl Service {
    pub(crate) fn start() -> Self {
        let (host, url) = web::serve_with(HttpSettings::default(), settings());
        let kept = allocate_64_mib();
        let burning: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
        thread::Builder::new()
            .name("burner".into())
            .spawn(|| {
                while burning.load(Ordering::Relaxed) {
                    black_box(burn_briefly(Instant::now() + Duration::from_millis(20)));
                }
            })
            .unwrap();
        Self { url, is_burning: burning, _blocks: kept, _host: host }
    }

    pub(crate) fn pprof_url(&self, path: &str) -> String {
        format!("{}/debug/pprof/{path}", self.url)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.is_burning.store(false, Ordering::Relaxed);
    }
}

#[inline(never)]
fn allocate_64_mib() -> Vec<Vec<u8>> {
    let kept: Vec<_> = (0..64).map(|_| black_box(vec![1; 1 << 20])).collect();
    // Without a use after the call, a release build tail-calls `collect` and this frame is missing.
    black_box(&kept);
    kept
}

#[inline(never)]
pub(crate) fn burn_briefly(until: Instant) -> u64 {
    let mut n = 1_u64;
    while Instant::now() < until {
        for _ in 0..20_000 {
            n = black_box(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    n
}

#[inline(never)]
pub(crate) fn grow_during_request() -> Vec<u8> {
    black_box(vec![2; 1 << 20])
}
