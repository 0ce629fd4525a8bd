//! The nonce law seen from outside: what four queues send of many flows is captured on the wire, and no receiver index has a
//! counter twice.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket};

use crate::ends::ours;
use crate::rig::{Family, Host, Rig, inner, outer, wait_until};
use crate::traffic::{Iperf, reaches};

/// Header of IPv4 without options, and of UDP.
const HEADERS_BYTES: usize = 28;

/// Sees every packet on this host.
fn watch(host: &Host) -> OwnedFd {
    host.inside(|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let eyes =
            socket(AddressFamily::Packet, SockType::Datagram, flags, Some(SockProtocol::EthAll)).unwrap();
        setsockopt(&eyes, RcvBufForce, &(64 << 20)).unwrap();
        eyes
    })
}

/// Receiver index and counter of a data message from `from`; `None` for any other packet.
fn data_message(packet: &[u8], from: IpAddr) -> Option<(u32, u64)> {
    let IpAddr::V4(from) = from else { return None };
    let is_ours =
        packet.first() == Some(&0x45) && packet.get(9) == Some(&17) && packet[12..16] == from.octets();
    let message = packet.get(HEADERS_BYTES..).filter(|_| is_ours)?;
    (*message.first_chunk()? == [4, 0, 0, 0]).then_some(())?;
    let index = u32::from_le_bytes(*message.get(4..)?.first_chunk()?);
    Some((index, u64::from_le_bytes(*message.get(8..)?.first_chunk()?)))
}

/// Takes in what `eyes` see until `done`; says how many data messages that were, each with a counter of its own.
fn count(eyes: &OwnedFd, from: IpAddr, done: &AtomicBool) -> usize {
    let (mut seen, mut packet) = (HashSet::new(), vec![0; 1 << 16]);
    loop {
        let last = done.load(Ordering::Relaxed);
        while let Ok(bytes) = recv(eyes.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            if let Some(nonce) = data_message(&packet[..bytes], from) {
                assert!(seen.insert(nonce), "receiver index and counter {nonce:x?} were used twice");
            }
        }
        if last {
            return seen.len();
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn four_queues_use_no_nonce_twice() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    // Trains are cut before the wire, so that every message is seen.
    near.run("ethtool -K to-b tx-udp-segmentation off");
    let (_ends, _keys) = ours(&rig, "--queues 4");
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let (eyes, done) = (watch(far), AtomicBool::new(false));
    let iperf = Iperf::start(far);
    let seen = thread::scope(|scope| {
        let counting = scope.spawn(|| count(&eyes, outer(Family::V4, 1, 1), &done));
        iperf.run(near, inner(Family::V4, 1), "--parallel 8 --bytes 40M");
        iperf.run(near, inner(Family::V4, 1), "--parallel 8 --udp --length 64 --bitrate 2M --time 1");
        done.store(true, Ordering::Relaxed);
        counting.join().unwrap()
    });
    assert!(seen > 20_000, "{seen} messages seen of some 30,000");
}
