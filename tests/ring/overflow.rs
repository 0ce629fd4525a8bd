//! More comes than a socket has room for: the driver tells how much of it the kernel dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Instant;

use uringvpn::io::driver::{Completion, Endpoint, Send, Wait};
use uringvpn::time::Span;

use super::{Open, PATIENCE, Rig, datagrams, payload};

/// A container may have no IPv6.
fn loopbacks() -> impl Iterator<Item = IpAddr> {
    let both = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    both.into_iter().filter(|address| UdpSocket::bind((*address, 0)).is_ok())
}

/// Somebody who sends to the rig.
struct Flood(UdpSocket);

impl Flood {
    fn to(rig: &Rig, loopback: IpAddr) -> Flood {
        let socket = UdpSocket::bind((loopback, 0)).unwrap();
        socket.connect((loopback, rig.port)).unwrap();
        Flood(socket)
    }

    /// Long ones, `count` of them. The socket has room for 4 MiB as the kernel counts, fewer than 64 of them.
    fn send(&self, count: u32) {
        (0..count).for_each(|_| assert!(self.0.send(&[7; 60_000]).is_ok()));
    }
}

/// Takes in what is there: how many datagrams came and how many are told of as dropped.
fn take(rig: &mut Rig) -> [u32; 2] {
    let soon = rig.driver.now() + Span::from_millis(5);
    rig.turn(Wait::Until(soon));
    let mut sums = [0; 2];
    for completion in std::mem::take(&mut rig.done) {
        if let Completion::Received { lease, received } = completion {
            sums[0] += received.datagrams().len() as u32;
            sums[1] += received.overflown;
            rig.driver.lend(lease);
        }
    }
    sums
}

/// The same until nothing more comes, with all armed again.
fn take_all(rig: &mut Rig) -> [u32; 2] {
    let (mut came, mut dropped, mut silent) = (0, 0, 0);
    while silent < 5 {
        let [more_came, more_dropped] = take(rig);
        (came, dropped) = (came + more_came, dropped + more_dropped);
        silent = if more_came > 0 { 0 } else { silent + 1 };
    }
    [came, dropped]
}

/// Sends `count` datagrams at once, then one at a time until each has come or is told of as dropped. How many were.
#[track_caller]
fn overflow(rig: &mut Rig, flood: &Flood, count: u32) -> u32 {
    flood.send(count);
    let (mut sent, mut came, mut dropped) = (count, 0, 0);
    let began = Instant::now();
    while dropped == 0 || came + dropped != sent {
        assert!(began.elapsed() < PATIENCE, "{came} came and {dropped} were dropped of {sent}");
        // The kernel tells with a datagram of those before it.
        flood.0.send(b"more").unwrap();
        sent += 1;
        let [more_came, more_dropped] = take(rig);
        (came, dropped) = (came + more_came, dropped + more_dropped);
    }
    dropped
}

pub(super) fn what_a_socket_has_no_room_for_is_told_once(open: Open) {
    let mut rig = Rig::new(open);
    for loopback in loopbacks() {
        // The sockets of both families have counts of their own.
        for count in [300, 200, 250] {
            let flood = Flood::to(&rig, loopback);
            let dropped = overflow(&mut rig, &flood, count);
            assert!(dropped > count - 120, "{loopback}: {dropped} of {count}");
        }
    }
}

pub(super) fn what_had_no_room_is_told_beside_all_else_there_is(open: Open) {
    let mut rig = Rig::new(open);
    for loopback in loopbacks() {
        Flood::to(&rig, loopback).send(200);
        let before: u32 = take_all(&mut rig).iter().sum();
        let slot = rig.lend(&payload(4300, 1));
        let to_itself = Endpoint { remote: (loopback, rig.port).into(), local: Some(loopback) };
        rig.driver.send(Send { tos: 0xb9, ..datagrams(slot, to_itself, 4300, 1000) });
        let (lease, heard, received) = rig.next_received();
        assert_eq!((before + received.overflown, heard.len()), (200, 5), "{loopback}");
        assert_eq!((received.to, received.tos, received.stride), (Some(loopback), 0xb9, 1000));
        rig.driver.lend(lease);
    }
}

pub(super) fn of_new_sockets_only_what_they_had_no_room_for_is_told(open: Open) {
    let mut rig = Rig::new(open);
    for loopback in loopbacks() {
        // The old count is higher than the new one, then lower.
        for count in [400, 200, 300] {
            let flood = Flood::to(&rig, loopback);
            overflow(&mut rig, &flood, count);
            // What a driver has taken from the old socket by now still comes, and tells the old count.
            assert_eq!(take_all(&mut rig), [0; 2]);
            flood.send(count);
            rig.rebind(None);
            let [_, told] = take_all(&mut rig);
            assert_eq!(told, 0, "{loopback}: told before");
        }
    }
}
