//! The sockets are replaced while the driver runs: the listen port changed.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, send};
use uringvpn::io::driver::{Completion, Driver, Endpoint, Wait};
use uringvpn::io::fake::{Fake, Faults, Incoming};
use uringvpn::io::lease::Lease;
use uringvpn::io::udp::WorkerSockets;
use uringvpn::time::Span;

use super::{Open, Rig, datagrams, open_sockets, sleep_until_woken};

pub(super) fn rebound_it_talks_through_the_new_sockets_and_the_old_port_is_free(open: Open) {
    let mut rig = Rig::new(open);
    for _ in 0..10 {
        let old = rig.port;
        let slot = rig.lend(b"queued before");
        rig.driver.send(datagrams(slot, rig.to_peer(), 13, 13));
        rig.rebind(None);
        assert_eq!(rig.next_sent().1, Ok(()));
        assert_eq!(rig.heard_by_peer(), (b"queued before".to_vec(), rig.address()));
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, old)).expect("the old port is free");
        // Whatever was armed still is.
        rig.peer.send_to(b"to the new port", rig.address()).unwrap();
        let (lease, heard, _) = rig.next_received();
        assert_eq!(heard, [b"to the new port"]);
        rig.driver.lend(lease);
        send(rig.kernel.as_raw_fd(), b"from the TUN", MsgFlags::empty()).unwrap();
        let (lease, read) = rig.next_tun_read();
        assert_eq!(read, b"from the TUN");
        rig.driver.lend(lease);
        rig.turn(Wait::Not);
        sleep_until_woken(&mut rig, 10);
    }
}

/// How many receives and TUN reads the driver brings when nothing is given back; then everything is.
fn buffers_until_dry(rig: &mut Rig) -> (usize, usize) {
    for index in 0..50u32 {
        rig.peer.send_to(&index.to_be_bytes(), rig.address()).unwrap();
        send(rig.kernel.as_raw_fd(), &index.to_be_bytes(), MsgFlags::empty()).unwrap();
    }
    let (mut received, mut read) = (Vec::new(), Vec::new());
    let mut dry = 0;
    while dry < 5 {
        dry += 1;
        let soon = rig.driver.now() + Span::from_millis(5);
        rig.turn(Wait::Until(soon));
        for completion in rig.done.drain(..) {
            match completion {
                Completion::Received { lease, .. } => received.push(lease),
                Completion::TunRead { lease, .. } => read.push(lease),
                _ => continue,
            }
            dry = 0;
        }
    }
    let counts = (received.len(), read.len());
    received.into_iter().chain(read).for_each(|lease| rig.driver.lend(lease));
    counts
}

pub(super) fn rebinding_again_and_again_under_traffic_loses_no_buffer(open: Open) {
    let counts = buffers_until_dry(&mut Rig::new(open));
    let mut rig = Rig::new(open);
    let mut held: VecDeque<Lease> = VecDeque::new();
    let mut heard = 0;
    for round in 0..60u32 {
        let slot = rig.lend(&round.to_be_bytes());
        rig.driver.send(datagrams(slot, rig.to_peer(), 4, 4));
        for index in 0..5u32 {
            rig.peer.send_to(&index.to_be_bytes(), rig.address()).unwrap();
            send(rig.kernel.as_raw_fd(), &index.to_be_bytes(), MsgFlags::empty()).unwrap();
        }
        // None, one, or several between two turns, with datagrams waiting unread at the old sockets.
        (0..round % 4).for_each(|_| rig.rebind(None));
        rig.turn(Wait::Not);
        for completion in std::mem::take(&mut rig.done) {
            match completion {
                Completion::Received { lease, .. } | Completion::TunRead { lease, .. } => {
                    held.push_back(lease)
                }
                Completion::Sent { result, .. } => assert_eq!(result, Ok(())),
                Completion::ReceiveFailed(error) => panic!("{error}"),
                _ => continue,
            }
            heard += 1;
        }
        // Some stay out across a rebind.
        while held.len() > 7 {
            rig.driver.lend(held.pop_front().unwrap());
        }
    }
    assert!(heard > 60, "{heard}");
    held.drain(..).for_each(|lease| rig.driver.lend(lease));
    assert_eq!(buffers_until_dry(&mut rig), counts);
}

pub(super) fn a_family_comes_and_goes_with_the_sockets(open: Open) {
    let mut rig = Rig::new(open);
    for (address, has_v4) in [(Ipv6Addr::LOCALHOST.into(), false), (IpAddr::from(Ipv4Addr::LOCALHOST), true)]
    {
        if UdpSocket::bind((address, 0)).is_err() {
            continue; // a container without IPv6
        }
        rig.rebind(Some(address));
        let (v4, v6) = (rig.to_peer(), Endpoint { remote: (Ipv6Addr::LOCALHOST, 9).into(), local: None });
        for (to, has) in [(v4, has_v4), (v6, !has_v4)] {
            let slot = rig.lend(b"hello");
            rig.driver.send(datagrams(slot, to, 5, 5));
            assert_eq!(rig.next_sent().1.is_ok(), has, "{to:?}");
        }
        UdpSocket::bind((address, 0)).unwrap().send_to(b"hello", (address, rig.port)).unwrap();
        let (lease, heard, _) = rig.next_received();
        assert_eq!(heard, [b"hello"]);
        rig.driver.lend(lease);
    }
}

pub(super) fn what_arrives_at_a_clone_of_replaced_sockets_wakes_nobody(open: Open) {
    let mut rig = Rig::new(open);
    let (sockets, port) = open_sockets(None);
    let clone = sockets.try_clone().unwrap();
    rig.driver.rebind(sockets).unwrap();
    rig.turn(Wait::Not);
    rig.rebind(None);
    rig.turn(Wait::Not);
    assert!(rig.done.is_empty());
    rig.peer.send_to(b"too late", (Ipv4Addr::LOCALHOST, port)).unwrap();
    sleep_until_woken(&mut rig, 1);
    drop(clone);
}

#[test]
fn what_waits_unread_is_lost_with_the_sockets_on_the_fake_too() {
    let mut fake = Fake::new(Faults::default(), 1);
    let from = (Ipv4Addr::LOCALHOST, 9).into();
    fake.receives.push_back(Incoming { from, to: None, bytes: vec![1], stride: 0, tos: 0 });
    fake.rebind(WorkerSockets { v4: None, v6: None }).unwrap();
    let mut done = Vec::new();
    fake.turn(Wait::Not, &mut done).unwrap();
    assert!(done.is_empty() && fake.is_idle() && fake.rebinds == 1);
    assert_eq!(fake.buffers_home(), Fake::buffers_total());
}
