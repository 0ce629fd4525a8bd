//! The real drivers on real descriptors, the same assertions on both.
//!
//! A pair of AF_UNIX record sockets stands in for the TUN: like a TUN it has one packet per read and per write. The UDP
//! sockets are the product's own, on loopback. No root needed. Where the kernel refuses io_uring its half is skipped,
//! loudly, or fails if the environment says `CI=true`.
#![allow(clippy::unwrap_used)]

#[path = "ring/overflow.rs"]
mod overflow;
#[path = "packets/mod.rs"]
mod packets;
#[path = "ring/rebind.rs"]
mod rebind;

use std::collections::VecDeque;
use std::io::{IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, recvmsg, send, setsockopt, socketpair, sockopt,
};
use overflow::{
    of_new_sockets_only_what_they_had_no_room_for_is_told, what_a_socket_has_no_room_for_is_told_once,
    what_had_no_room_is_told_beside_all_else_there_is,
};
use packets::{Packet, payload};
use rebind::{
    a_family_comes_and_goes_with_the_sockets, rebinding_again_and_again_under_traffic_loses_no_buffer,
    rebound_it_talks_through_the_new_sockets_and_the_old_port_is_free,
    what_arrives_at_a_clone_of_replaced_sockets_wakes_nobody,
};
use uringvpn::io::driver::{Completion, Driver, Endpoint, Send, Wait};
use uringvpn::io::fake::{Fake, Faults};
use uringvpn::io::lease::Lease;
use uringvpn::io::message::Devices;
use uringvpn::io::ring::{self, Features};
use uringvpn::io::syscall::Syscall;
use uringvpn::io::udp::{self, Steering, UdpRequest, WorkerSockets};
use uringvpn::io::uring::Uring;
use uringvpn::io::wake::Waker;
use uringvpn::offload::Part;
use uringvpn::offload::coalesce::{Coalescer, Gather, Merge};
use uringvpn::offload::stride::Received;
use uringvpn::time::{Span, Time};
use uringvpn::wire::ip::IpView;
use uringvpn::wire::vnet_hdr::VnetHdr;

/// Longer than anything here takes, so that a test that waits in vain fails and does not hang.
const PATIENCE: Duration = Duration::from_secs(60);

type Open = fn(Devices, Waker) -> Box<dyn Driver>;

fn open_uring(devices: Devices, waker: Waker) -> Box<dyn Driver> {
    Box::new(Uring::new(devices, waker, Features::default()).unwrap())
}

/// As on a kernel that has none of the features a ring can do without.
fn open_plain_uring(devices: Devices, waker: Waker) -> Box<dyn Driver> {
    let features = Features { defer_taskrun: false, multishot_read: false };
    assert_eq!(ring::available(features).unwrap(), features);
    Box::new(Uring::new(devices, waker, features).unwrap())
}

fn open_syscall(devices: Devices, waker: Waker) -> Box<dyn Driver> {
    Box::new(Syscall::new(devices, waker).unwrap())
}

/// One test per driver and name; io_uring twice, with and without what it can do without.
macro_rules! on_both_drivers {
    ($($(#[$attribute:meta])* $name:ident)*) => {
        mod uring {
            $(#[test] $(#[$attribute])* fn $name() {
                if super::has_io_uring() {
                    super::$name(super::open_uring);
                }
            })*
        }
        mod plain_uring {
            $(#[test] $(#[$attribute])* fn $name() {
                if super::has_io_uring() {
                    super::$name(super::open_plain_uring);
                }
            })*
        }
        mod syscall {
            $(#[test] fn $name() {
                super::$name(super::open_syscall);
            })*
        }
    };
}

on_both_drivers! {
    a_send_arrives_whole
    a_train_arrives_as_its_datagrams
    a_train_to_a_gro_socket_is_cut_by_its_stride
    the_source_address_asked_for_is_used_and_the_one_sent_to_is_told
    the_traffic_class_of_a_send_is_the_one_received_in_either_family
    sends_leave_in_the_order_they_were_queued
    a_tun_read_is_one_record
    a_gather_write_is_one_record
    more_operations_than_the_table_holds_all_complete
    receiving_goes_on_after_the_buffers_ran_dry
    reading_goes_on_after_the_buffers_ran_dry
    a_failed_read_is_told_and_what_stands_behind_it_is_read
    the_waker_ends_a_wait_for_ever
    a_wait_lasts_until_something_happens
    a_deadline_ends_a_wait
    a_refused_send_can_be_sent_again_in_the_same_turn
    many_refused_sends_can_be_sent_again_in_the_same_turn
    rebound_it_talks_through_the_new_sockets_and_the_old_port_is_free
    rebinding_again_and_again_under_traffic_loses_no_buffer
    a_family_comes_and_goes_with_the_sockets
    what_arrives_at_a_clone_of_replaced_sockets_wakes_nobody
    what_a_socket_has_no_room_for_is_told_once
    what_had_no_room_is_told_beside_all_else_there_is
    of_new_sockets_only_what_they_had_no_room_for_is_told
    dropping_the_driver_frees_port_and_tun_at_once
}

fn has_io_uring() -> bool {
    let Err(error) = ring::available(Features::default()) else { return true };
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "no io_uring ({error}), and CI=true forbids skipping"
    );
    // Straight to the descriptor: the test harness would swallow what a passing test prints.
    let name = thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: no io_uring ({error}): {name}");
    false
}

/// One worker's sockets on a port of the kernel's choice.
fn open_sockets(address: Option<IpAddr>) -> (WorkerSockets, u16) {
    let request = UdpRequest {
        address,
        port: 0,
        workers: 1,
        gro: true,
        gso: true,
        buffer_bytes: 4 << 20,
        steering: Steering::SourcePort,
        steer: true,
        fwmark: 0,
        patience: udp::BUSY_PATIENCE,
    };
    let mut group = udp::open(&request).unwrap();
    (group.workers.remove(0), group.port)
}

/// A driver and the other ends of its descriptors.
struct Rig {
    driver: Box<dyn Driver>,
    waker: Waker,
    /// The kernel's end of the stand-in for the TUN.
    kernel: OwnedFd,
    /// Somebody to talk to.
    peer: UdpSocket,
    port: u16,
    done: VecDeque<Completion>,
}

impl Rig {
    fn new(open: Open) -> Rig {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (tun, kernel) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let (sockets, port) = open_sockets(None);
        let devices = Devices { tun, sockets };
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        setsockopt(&peer, sockopt::RcvBuf, &(1 << 20)).unwrap();
        let waker = Waker::new().unwrap();
        let driver = open(devices, waker.clone());
        let mut rig = Rig { driver, waker, kernel, peer, port, done: VecDeque::new() };
        // Arms whatever receives; may report a wake that nobody asked for.
        rig.turn(Wait::Not);
        rig.done.clear();
        rig
    }

    /// Gives the driver sockets on another port, of all families or of `address` only.
    fn rebind(&mut self, address: Option<IpAddr>) {
        let (sockets, port) = open_sockets(address);
        self.driver.rebind(sockets).unwrap();
        self.port = port;
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn to_peer(&self) -> Endpoint {
        Endpoint { remote: self.peer.local_addr().unwrap(), local: None }
    }

    fn turn(&mut self, wait: Wait) {
        let mut done = Vec::new();
        self.driver.turn(wait, &mut done).unwrap();
        self.done.extend(done);
    }

    /// The next completion that `take` takes; gives up buffers that others brought.
    fn next<T>(&mut self, mut take: impl FnMut(Completion) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            while let Some(completion) = self.done.pop_front() {
                if let Some(taken) = take(completion) {
                    return taken;
                }
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain");
            let soon = self.driver.now() + Span::from_millis(20);
            self.turn(Wait::Until(soon));
        }
    }

    fn next_sent(&mut self) -> (Send, Result<(), Errno>) {
        self.next(|completion| match completion {
            Completion::Sent { send, result } => Some((send, result)),
            _ => None,
        })
    }

    fn next_tun_read(&mut self) -> (Lease, Vec<u8>) {
        self.next(|completion| match completion {
            Completion::TunRead { lease, bytes } => {
                let read = lease[..bytes as usize].to_vec();
                Some((lease, read))
            }
            _ => None,
        })
    }

    /// The datagrams of the next receive, and what the kernel said about them.
    fn next_received(&mut self) -> (Lease, Vec<Vec<u8>>, Received) {
        self.next(|completion| match completion {
            Completion::Received { lease, received } => {
                assert!(!received.truncated);
                let datagrams = received.datagrams().map(|range| lease[range].to_vec()).collect();
                Some((lease, datagrams, received))
            }
            _ => None,
        })
    }

    /// Lends a buffer that holds `bytes` and returns its slot.
    fn lend(&mut self, bytes: &[u8]) -> u16 {
        let mut buffer = self.driver.send_buffer().expect("a free buffer");
        buffer[..bytes.len()].copy_from_slice(bytes);
        let slot = buffer.slot();
        self.driver.lend(buffer);
        slot
    }

    fn heard_by_peer(&self) -> (Vec<u8>, SocketAddr) {
        let mut bytes = vec![0; 70_000];
        let (length, from) = self.peer.recv_from(&mut bytes).unwrap();
        bytes.truncate(length);
        (bytes, from)
    }
}

fn datagrams(slot: u16, to: Endpoint, bytes: u32, segment_bytes: u16) -> Send {
    let count = bytes.div_ceil(segment_bytes.into()) as u16;
    let part = Part { slot, start: 0, len: bytes };
    Send {
        peer: 7,
        to,
        tos: 0,
        part,
        segment_bytes,
        datagrams: count,
        started: Time::from_nanos(9),
        sealed: Time::from_nanos(9),
    }
}

/// Datagram `index` of `count` equal ones in one buffer.
fn single(slot: u16, to: Endpoint, index: u32, bytes: u16) -> Send {
    let part = Part { slot, start: index * u32::from(bytes), len: bytes.into() };
    Send { part, datagrams: 1, ..datagrams(slot, to, bytes.into(), bytes) }
}

fn a_send_arrives_whole(open: Open) {
    let mut rig = Rig::new(open);
    for bytes in [1, 1472, 30_000, 65_507] {
        let sent = payload(bytes, bytes as u32);
        let slot = rig.lend(&sent);
        let send = datagrams(slot, rig.to_peer(), bytes as u32, bytes as u16);
        rig.driver.send(send);
        let (told, result) = rig.next_sent();
        assert_eq!((told.peer, told.part, told.started, result), (7, send.part, send.started, Ok(())));
        let (heard, from) = rig.heard_by_peer();
        assert!(heard == sent, "{bytes} bytes");
        assert_eq!(from, rig.address());
    }
}

fn a_train_arrives_as_its_datagrams(open: Open) {
    let mut rig = Rig::new(open);
    let sent = payload(4 * 1000 + 300, 1);
    let slot = rig.lend(&sent);
    rig.driver.send(datagrams(slot, rig.to_peer(), 4300, 1000));
    assert_eq!(rig.next_sent().1, Ok(()));
    for datagram in sent.chunks(1000) {
        assert!(rig.heard_by_peer().0 == datagram);
    }
}

fn a_train_to_a_gro_socket_is_cut_by_its_stride(open: Open) {
    let mut rig = Rig::new(open);
    let sent = payload(4 * 1000 + 300, 1);
    let slot = rig.lend(&sent);
    let to_itself = Endpoint { remote: rig.address(), local: None };
    rig.driver.send(datagrams(slot, to_itself, 4300, 1000));
    let mut heard = Vec::new();
    while heard.len() < 5 {
        let (lease, datagrams, _) = rig.next_received();
        heard.extend(datagrams);
        rig.driver.lend(lease);
    }
    assert!(heard.iter().map(Vec::as_slice).eq(sent.chunks(1000)));
}

fn the_source_address_asked_for_is_used_and_the_one_sent_to_is_told(open: Open) {
    let mut rig = Rig::new(open);
    let source: IpAddr = [127, 0, 0, 2].into();
    let slot = rig.lend(b"from there");
    let to = Endpoint { local: Some(source), ..rig.to_peer() };
    rig.driver.send(datagrams(slot, to, 10, 10));
    assert_eq!(rig.next_sent().1, Ok(()));
    assert_eq!(rig.heard_by_peer().1, SocketAddr::new(source, rig.port));

    rig.peer.send_to(b"to there", SocketAddr::new([127, 0, 0, 3].into(), rig.port)).unwrap();
    let (_lease, datagrams, received) = rig.next_received();
    assert_eq!((datagrams, received.to), (vec![b"to there".to_vec()], Some([127, 0, 0, 3].into())));
}

fn the_traffic_class_of_a_send_is_the_one_received_in_either_family(open: Open) {
    let mut rig = Rig::new(open);
    let loopbacks = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    // A container may have no IPv6.
    for loopback in loopbacks.into_iter().filter(|address| UdpSocket::bind((*address, 0)).is_ok()) {
        // A train with everything a send can ask for, and single datagrams; the class of one is not left to the next.
        for (bytes, tos) in [(4300, 0xb9), (300, 0x02), (300, 0)] {
            let slot = rig.lend(&payload(bytes as usize, 1));
            let to_itself = Endpoint { remote: (loopback, rig.port).into(), local: Some(loopback) };
            rig.driver.send(Send { tos, ..datagrams(slot, to_itself, bytes, 1000) });
            let (lease, heard, received) = rig.next_received();
            assert_eq!((heard[0].len(), received.tos), (1000.min(bytes as usize), tos), "{loopback}");
            rig.driver.lend(lease);
        }
    }
}

fn sends_leave_in_the_order_they_were_queued(open: Open) {
    let mut rig = Rig::new(open);
    let sent = payload(60 * 50, 3);
    let slot = rig.lend(&sent);
    let to = rig.to_peer();
    // Trains and single datagrams in turn.
    for index in (0..60).step_by(3) {
        let train = Part { slot, start: index * 50, len: 100 };
        rig.driver.send(Send { part: train, datagrams: 2, ..single(slot, to, index, 50) });
        rig.driver.send(single(slot, to, index + 2, 50));
    }
    for datagram in sent.chunks(50) {
        rig.turn(Wait::Not);
        assert!(rig.heard_by_peer().0 == datagram);
    }
}

fn a_tun_read_is_one_record(open: Open) {
    let mut rig = Rig::new(open);
    for bytes in [20, 1500, 65_551, 40] {
        let record = payload(bytes, 5);
        send(rig.kernel.as_raw_fd(), &record, MsgFlags::empty()).unwrap();
        let (lease, read) = rig.next_tun_read();
        assert!(read == record, "{bytes} bytes");
        rig.driver.lend(lease);
    }
}

/// One superpacket of the TCP segments in `payloads`, lying in a lent buffer.
fn gather(driver: &mut dyn Driver, payloads: &[Vec<u8>]) -> Gather {
    let mut coalescer = Coalescer::new(Merge { tcp: true, udp: true });
    let mut buffer = driver.send_buffer().expect("a free buffer");
    let mut packet = Packet::tcp(false, payloads[0].clone());
    let mut start = 0;
    for (index, _) in payloads.iter().enumerate() {
        let bytes = packet.bytes();
        buffer[start..start + bytes.len()].copy_from_slice(&bytes);
        let place = Part { slot: buffer.slot(), start: start as u32, len: bytes.len() as u32 };
        coalescer.push(&bytes, &IpView::parse(&bytes).unwrap(), place, Time::default());
        start += bytes.len();
        packet = packet.next(payloads.get(index + 1).cloned().unwrap_or_default());
    }
    driver.lend(buffer);
    let gathers: Vec<Gather> = coalescer.drain().collect();
    assert_eq!(gathers.len(), 1);
    gathers.into_iter().next().unwrap()
}

fn a_gather_write_is_one_record(open: Open) {
    let mut rig = Rig::new(open);
    let payloads: Vec<_> = (0..40).map(|index| payload(if index == 39 { 77 } else { 1200 }, index)).collect();
    let gather = gather(&mut *rig.driver, &payloads);
    let bytes = gather.bytes();
    rig.driver.write(gather);
    let (written, result) = rig.next(|completion| match completion {
        Completion::Written { gather, result } => Some((gather, result)),
        _ => None,
    });
    assert_eq!((written.packets, result), (40, Ok(())));
    let mut record = vec![0; 80_000];
    let length = recv(rig.kernel.as_raw_fd(), &mut record, MsgFlags::empty()).unwrap();
    assert_eq!(length, bytes);
    let (vnet, packet) = VnetHdr::parse(&record[..length]).unwrap();
    assert_eq!((vnet.gso_size, IpView::parse(packet).unwrap().total_bytes as usize), (1200, packet.len()));
    assert!(packet[20 + 32..] == payloads.concat());
}

fn more_operations_than_the_table_holds_all_complete(open: Open) {
    const COUNT: u32 = 300;
    let mut rig = Rig::new(open);
    let sent = payload(COUNT as usize * 10, 11);
    let slot = rig.lend(&sent);
    let to = rig.to_peer();
    for index in 0..COUNT {
        rig.driver.send(single(slot, to, index, 10));
    }
    for index in 0..COUNT {
        let (told, result) = rig.next_sent();
        assert_eq!((told.part.start, result), (index * 10, Ok(())));
    }
    for datagram in sent.chunks(10) {
        assert!(rig.heard_by_peer().0 == datagram);
    }
}

/// Keeps buffers until no more come, then gives them back, until `count` things came; `next` brings a thing.
fn starve_and_feed(rig: &mut Rig, count: usize, take: impl Fn(Completion) -> Option<(Lease, Vec<u8>)>) {
    let mut came = Vec::new();
    let mut held = Vec::new();
    let began = Instant::now();
    let mut dry = 0;
    while came.len() < count {
        assert!(began.elapsed() < PATIENCE, "{} of {count} came", came.len());
        let soon = rig.driver.now() + Span::from_millis(10);
        rig.turn(Wait::Until(soon));
        let before = held.len();
        for (lease, bytes) in rig.done.drain(..).filter_map(&take) {
            came.push(bytes);
            held.push(lease);
        }
        if held.len() == before {
            dry += 1;
            held.drain(..).for_each(|lease| rig.driver.lend(lease));
        }
    }
    assert!(dry > 0, "{count} did not use up the buffers");
    for (index, bytes) in came.iter().enumerate() {
        assert_eq!(bytes[..], (index as u32).to_be_bytes());
    }
}

fn receiving_goes_on_after_the_buffers_ran_dry(open: Open) {
    let mut rig = Rig::new(open);
    for index in 0..50u32 {
        rig.peer.send_to(&index.to_be_bytes(), rig.address()).unwrap();
    }
    starve_and_feed(&mut rig, 50, |completion| match completion {
        Completion::Received { lease, received } => {
            let bytes = lease[received.datagrams().next()?].to_vec();
            Some((lease, bytes))
        }
        _ => None,
    });
}

fn reading_goes_on_after_the_buffers_ran_dry(open: Open) {
    let mut rig = Rig::new(open);
    for index in 0..50u32 {
        send(rig.kernel.as_raw_fd(), &index.to_be_bytes(), MsgFlags::empty()).unwrap();
    }
    starve_and_feed(&mut rig, 50, |completion| match completion {
        Completion::TunRead { lease, bytes } => {
            let read = lease[..bytes as usize].to_vec();
            Some((lease, read))
        }
        _ => None,
    });
}

fn a_failed_read_is_told_and_what_stands_behind_it_is_read(open: Open) {
    let mut rig = Rig::new(open);
    let unread = gather(&mut *rig.driver, &[payload(100, 1), payload(100, 2)]);
    rig.driver.write(unread);
    rig.turn(Wait::Not);
    rig.done.clear();
    for record in [b"first", b"then "] {
        send(rig.kernel.as_raw_fd(), record, MsgFlags::empty()).unwrap();
    }
    // Who closes with something unread resets: the next read says so, once, and then comes what was sent before, as far as
    // it was not read when it came.
    let (other, _) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    drop(std::mem::replace(&mut rig.kernel, other));
    let (mut errors, mut records) = (Vec::new(), Vec::new());
    while errors.is_empty() || records.len() < 2 {
        rig.next(|completion| match completion {
            Completion::ReceiveFailed(error) => {
                errors.push(error);
                Some(())
            }
            Completion::TunRead { lease, bytes } => {
                records.push(lease[..bytes as usize].to_vec());
                Some(())
            }
            _ => None,
        });
    }
    assert_eq!((errors, records), (vec![Errno::ECONNRESET], vec![b"first".to_vec(), b"then ".to_vec()]));
}

/// Sleeps in `turns` turns at most until a bell that rings after 30 ms.
fn sleep_until_woken(rig: &mut Rig, turns: usize) {
    let began = Instant::now();
    let waker = rig.waker.clone();
    let ringer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        waker.wake();
    });
    for _ in 0..turns {
        rig.turn(Wait::Forever);
        if !rig.done.is_empty() {
            break;
        }
    }
    assert!(matches!(rig.done.pop_front(), Some(Completion::Woken)), "nothing after {:?}", began.elapsed());
    assert!(began.elapsed() >= Duration::from_millis(25), "woken after {:?}", began.elapsed());
    ringer.join().unwrap();
}

fn the_waker_ends_a_wait_for_ever(open: Open) {
    let mut rig = Rig::new(open);
    (0..3).for_each(|_| sleep_until_woken(&mut rig, 10));
}

fn a_wait_lasts_until_something_happens(open: Open) {
    let mut rig = Rig::new(open);
    (0..3).for_each(|_| sleep_until_woken(&mut rig, 1));
}

fn a_deadline_ends_a_wait(open: Open) {
    let mut rig = Rig::new(open);
    rig.turn(Wait::Not);
    let deadline = rig.driver.now() + Span::from_millis(30);
    let began = Instant::now();
    rig.turn(Wait::Until(deadline));
    assert!(rig.done.is_empty(), "{:?}", rig.done);
    assert!((25..60_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert!(rig.driver.now() >= deadline);
    // A deadline that has passed does not wait, nor for ever.
    rig.turn(Wait::Until(deadline));
}

/// An address that no host has: sending from it fails at once.
const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));

/// Queues datagrams of 10 bytes from `FOREIGN`, and each again when it was refused.
fn send_again_from_elsewhere(driver: &mut dyn Driver, slots: &[u16], to: Endpoint, count: u32) {
    for slot in slots {
        for index in 0..count {
            driver.send(single(*slot, Endpoint { local: Some(FOREIGN), ..to }, index, 10));
        }
    }
    let mut again = 0;
    let mut done = Vec::new();
    while again < slots.len() as u32 * count {
        driver.turn(Wait::Not, &mut done).unwrap();
        for completion in done.drain(..) {
            if let Completion::Sent { send, result } = completion {
                assert!(result.is_err(), "sent from {FOREIGN}");
                driver.send(Send { to, ..send });
                again += 1;
            }
        }
    }
}

/// `count` datagrams from each of two buffers.
fn refused_sends_arrive_after_all(open: Open, count: u32) {
    let mut rig = Rig::new(open);
    let sent = payload(count as usize * 10, 11);
    let slots = [rig.lend(&sent), rig.lend(&sent)];
    let to = rig.to_peer();
    send_again_from_elsewhere(&mut *rig.driver, &slots, to, count);
    for datagram in sent.chunks(10).chain(sent.chunks(10)) {
        rig.turn(Wait::Not);
        assert!(rig.heard_by_peer().0 == datagram);
    }
}

/// The contract of [`Completion::Sent`]: its buffer stays lent until the next turn.
fn a_refused_send_can_be_sent_again_in_the_same_turn(open: Open) {
    refused_sends_arrive_after_all(open, 3);
}

/// As many as need room to be made for: a worker without UDP_SEGMENT whose address has gone.
fn many_refused_sends_can_be_sent_again_in_the_same_turn(open: Open) {
    refused_sends_arrive_after_all(open, 150);
}

#[test]
fn a_refused_send_can_be_sent_again_on_the_fake_too() {
    let mut fake = Fake::new(Faults { send_error: 100, ..Faults::default() }, 1);
    let mut buffer = fake.send_buffer().unwrap();
    buffer[..30].copy_from_slice(&payload(30, 11));
    let slot = buffer.slot();
    fake.lend(buffer);
    let to = Endpoint { remote: (Ipv4Addr::LOCALHOST, 9).into(), local: None };
    send_again_from_elsewhere(&mut fake, &[slot], to, 3);
    fake.heal();
    fake.turn(Wait::Not, &mut Vec::new()).unwrap();
    assert!(fake.sent.iter().map(|sent| &sent.bytes[..]).eq(payload(30, 11).chunks(10)));
}

#[test]
fn a_gather_write_is_one_record_on_the_fake_too() {
    let mut fake = Fake::new(Faults::default(), 1);
    let payloads = [payload(1200, 1), payload(1200, 2), payload(77, 3)];
    let gather = gather(&mut fake, &payloads);
    let bytes = gather.bytes();
    fake.write(gather);
    fake.turn(Wait::Not, &mut Vec::new()).unwrap();
    assert_eq!(fake.written.len(), 1);
    assert_eq!(fake.written[0].len(), bytes);
    assert!(fake.written[0][16 + 20 + 32..] == payloads.concat());
}

fn dropping_the_driver_frees_port_and_tun_at_once(open: Open) {
    for _ in 0..10 {
        let mut rig = Rig::new(open);
        rig.peer.send_to(b"work", rig.address()).unwrap();
        let (lease, ..) = rig.next_received();
        rig.driver.lend(lease);
        let Rig { driver, kernel, port, .. } = rig;
        drop(driver);
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
        let mut byte = [0];
        let mut iov = [IoSliceMut::new(&mut byte)];
        let end = recvmsg::<()>(kernel.as_raw_fd(), &mut iov, None, MsgFlags::empty()).unwrap();
        assert_eq!(end.bytes, 0, "the other end is still open");
    }
}
