//! Sockets by inode, as listed in `/proc/self/net` for the network namespace.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::counts::DescriptorCounts;
use crate::base::{log, spare};

/// Maximum number of bytes read of one list: 100,000 sockets.
const MAX_BYTES: u64 = 16 << 20;

/// Counts each socket of `inodes` in `targets`. Returns the number of sockets that are in no list.
pub(crate) fn resolve(mut inodes: HashSet<u64>, targets: &mut DescriptorCounts) -> u64 {
    if inodes.is_empty() {
        return 0;
    }
    for (kind, list) in [("tcp", "tcp6"), ("tcp", "tcp"), ("udp", "udp6"), ("udp", "udp")] {
        // The kernel lists listening sockets first.
        let mut listening = HashSet::new();
        for_each_line(list, |line| {
            let Some(row) = SocketRow::parse(line) else { return };
            if inodes.remove(&row.inode) {
                targets.add(kind, &row.describe(kind == "tcp", &mut listening));
            }
        });
    }
    for_each_line("unix", |line| {
        let mut fields = line.split_ascii_whitespace().skip(6);
        let Some(inode) = fields.next().and_then(|inode| inode.parse().ok()) else { return };
        if inodes.remove(&inode) {
            let path = fields.next().map_or("unnamed".into(), log::escape);
            targets.add("unix", &path);
        }
    });
    inodes.len() as u64
}

/// Calls `take` with each line of `/proc/self/net/{list}` except the header.
fn for_each_line(list: &str, mut on_line: impl FnMut(&str)) {
    let path = format!("/proc/self/net/{list}");
    let Ok(file) = spare::open_with_retry(|| File::open(&path)) else { return };
    let mut lines = BufReader::new(file.take(MAX_BYTES));
    let mut line = Vec::new();
    let mut is_first = true;
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        if !std::mem::take(&mut is_first) {
            on_line(String::from_utf8_lossy(&line).trim_end());
        }
        line.clear();
    }
}

/// A socket of an internet protocol.
struct SocketRow {
    local: SocketAddr,
    peer: SocketAddr,
    state: u8,
    inode: u64,
}

impl SocketRow {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = parse_address(fields.next()?)?;
        let peer = parse_address(fields.next()?)?;
        let state = u8::from_str_radix(fields.next()?, 16).ok()?;
        let inode = fields.nth(5)?.parse().ok()?;
        Some(Self { local, peer, state, inode })
    }

    /// Returns the peer and state as text. Accepted connections omit the peer's port, which differs
    /// for each.
    fn describe(&self, is_tcp: bool, listening: &mut HashSet<u16>) -> String {
        const TCP_LISTEN: u8 = 10;
        let Self { local, peer, .. } = self;
        let state = if is_tcp { format!(", {}", state_name(self.state)) } else { String::new() };
        if is_tcp && self.state == TCP_LISTEN {
            listening.insert(local.port());
            return format!("at {local}{state}");
        }
        if peer.port() == 0 {
            format!("at {local}{state}")
        } else if listening.contains(&local.port()) {
            format!("accepted at {local} from {}{state}", peer.ip())
        } else {
            format!("to {peer}{state}")
        }
    }
}

/// Parses an address in the kernel's format: 32-bit words in hexadecimal, each in the machine's
/// byte order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0_u8; 16];
    let words = address.len() / 8;
    for (at, chunk) in bytes.chunks_exact_mut(4).enumerate().take(words) {
        let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let address = match words {
        1 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        4 => IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

fn state_name(state: u8) -> &'static str {
    match state {
        1 => "established",
        2 => "connecting",
        3 => "half open",
        4 | 5 => "closed locally, waiting for the peer (FIN_WAIT)",
        6 => "in TIME_WAIT",
        7 => "closed",
        8 => "closed by the peer, not locally (CLOSE_WAIT)",
        9 => "closing, waiting for the last acknowledgement",
        10 => "listening",
        11 => "closing",
        _ => "in an unknown state",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_rows_are_parsed_and_described() {
        let line = "   0: 0100007F:1F90 0200000A:1538 08 00000000:00000000 00:00000000 00000000  1000        0 4711 1 x";
        if cfg!(target_endian = "little") {
            let row = SocketRow::parse(line).unwrap();
            assert_eq!(row.inode, 4711);
            let mut listening = HashSet::new();
            let text = row.describe(true, &mut listening);
            assert_eq!(text, "to 10.0.0.2:5432, closed by the peer, not locally (CLOSE_WAIT)");
            listening.insert(8080);
            let text = row.describe(true, &mut listening);
            assert_eq!(
                text,
                "accepted at 127.0.0.1:8080 from 10.0.0.2, closed by the peer, not locally \
                 (CLOSE_WAIT)"
            );
            let mapped = parse_address("0000000000000000FFFF00000100007F:0050").unwrap();
            assert_eq!(mapped.to_string(), "127.0.0.1:80");
        }
        for line in [
            "",
            "  sl  local_address rem_address",
            "0: x:1 y:2 01",
            "0: 01:02 03:04 0A 1 2 3 4 5 6",
        ] {
            assert!(SocketRow::parse(line).is_none(), "{line}");
        }
    }
}
