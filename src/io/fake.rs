//! A hostile driver in memory, for tests: everything the kernel may do to us, by chance and reproducibly.
//!
//! Completions come late and out of order (but in order per device), sends are refused (queue full, no route, no
//! segmentation), reads come cut off, receives are truncated or fail, buffers run out, the TUN goes down. Bytes that an
//! operation refers to are looked at only when it completes, and a buffer that comes home is filled with junk, so a
//! worker that touches a buffer too early or keeps it too long shows.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::driver::{Completion, Driver, Effort, Send, Wait};
use super::lease::{self, BUFFER_BYTES, Lease, Loans, Pools};
use super::udp::WorkerSockets;
use crate::offload::Part;
use crate::offload::coalesce::Gather;
use crate::offload::stride::Received;
use crate::time::{Span, Time};

/// Buffers per device and for trains: few, so that running out happens.
const BUFFERS: u16 = 4;

/// How likely each trouble is, in percent per operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A completion is put off to a later turn.
    pub late: u8,
    /// A turn brings nothing from a device although there is something (an ended multishot).
    pub ended: u8,
    /// A TUN read hands over only the packet's first bytes.
    pub short_read: u8,
    /// A receive is cut off.
    pub truncated: u8,
    /// A receive fails without data.
    pub receive_error: u8,
    /// A send fails for a passing reason (ENOBUFS, EAGAIN, ENETUNREACH).
    pub send_error: u8,
    /// The kernel refuses trains (EIO) and takes only single datagrams.
    pub refuses_trains: bool,
    /// A TUN write meets a device that is down (EIO).
    pub tun_down: u8,
    /// The TUN refuses a superpacket (EINVAL). Single packets it takes.
    pub refused_write: u8,
}

/// What somebody sent to us.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The sender.
    pub from: SocketAddr,
    /// Which of our addresses it was sent to, if the kernel says so.
    pub to: Option<IpAddr>,
    /// The datagrams, one behind the other.
    pub bytes: Vec<u8>,
    /// Bytes of each but the last; 0 means one datagram.
    pub stride: u16,
    /// The outer TOS or traffic class byte.
    pub tos: u8,
}

/// One datagram we sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The receiver.
    pub to: SocketAddr,
    /// The UDP payload.
    pub bytes: Vec<u8>,
    /// The outer TOS or traffic class byte.
    pub tos: u8,
}

/// [`Driver`] without a kernel.
pub struct Fake {
    faults: Faults,
    random: u64,
    now: Time,
    loans: Loans,
    free: Pools,
    sends: VecDeque<Send>,
    writes: VecDeque<Gather>,
    /// What the TUN will hand out: vnet header and packet each.
    pub tun_reads: VecDeque<Vec<u8>>,
    /// What the socket will hand out.
    pub receives: VecDeque<Incoming>,
    /// What the socket had no room for, told with what it hands out next.
    pub overflown: u32,
    /// What it has handed out, and whether that was cut off.
    pub handed_out: Vec<(Incoming, bool)>,
    /// What the TUN says to every write instead of taking it.
    pub write_error: Option<Errno>,
    /// How often the sockets were replaced.
    pub rebinds: u32,
    /// What was sent, datagram by datagram.
    pub sent: Vec<Outgoing>,
    /// What was written to the TUN: vnet header and packet each.
    pub written: Vec<Vec<u8>>,
}

thread_local! {
    /// Buffers are never unmapped; thousands of fakes share a few.
    static POOL: RefCell<Vec<Vec<Lease>>> = const { RefCell::new(Vec::new()) };
}

impl Fake {
    /// A driver whose troubles follow from `seed`.
    pub fn new(faults: Faults, seed: u64) -> Fake {
        let pooled = POOL.with_borrow_mut(Vec::pop);
        let leases = pooled.unwrap_or_else(|| lease::map(3 * BUFFERS).expect("memory for a test"));
        Fake {
            faults,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: Time::from_nanos(1_000_000_000),
            loans: Loans::new(usize::from(3 * BUFFERS)),
            free: Pools::sort(leases, BUFFERS, BUFFERS),
            sends: VecDeque::new(),
            writes: VecDeque::new(),
            tun_reads: VecDeque::new(),
            receives: VecDeque::new(),
            overflown: 0,
            handed_out: Vec::new(),
            write_error: None,
            rebinds: 0,
            sent: Vec::new(),
            written: Vec::new(),
        }
    }

    /// It is `now`, unless it is later already.
    pub fn advance_to(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// No more trouble from now on.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
    }

    /// Whether nothing is left to hand out or to complete.
    pub fn is_idle(&self) -> bool {
        self.tun_reads.is_empty()
            && self.receives.is_empty()
            && self.sends.is_empty()
            && self.writes.is_empty()
    }

    /// Buffers that are neither with the worker nor lent.
    pub fn buffers_home(&mut self) -> usize {
        self.bring_home();
        self.free.tun.len() + self.free.receive.len() + self.free.send.len()
    }

    /// How many buffers there are.
    pub const fn buffers_total() -> usize {
        3 * BUFFERS as usize
    }

    fn bring_home(&mut self) {
        let Fake { loans, free, .. } = self;
        loans.collect(|mut lease| {
            // Whoever still reads this buffer reads junk.
            lease[..512].fill(0xa5);
            free.take_home(lease);
        });
    }

    /// splitmix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn strikes(&mut self, percent: u8) -> bool {
        self.next_random() % 100 < u64::from(percent)
    }

    fn complete_sends(&mut self, done: &mut Vec<Completion>) {
        while !self.sends.is_empty() && !self.strikes(self.faults.late) {
            let Some(send) = self.sends.pop_front() else { break };
            let result = self.carry_out_send(&send);
            self.loans.end_use(&[send.part]);
            done.push(Completion::Sent { send, result });
        }
    }

    fn carry_out_send(&mut self, send: &Send) -> Result<(), Errno> {
        if send.datagrams > 1 && self.faults.refuses_trains {
            return Err(Errno::EIO);
        }
        if self.strikes(self.faults.send_error) {
            let errors = [Errno::ENOBUFS, Errno::EAGAIN, Errno::ENETUNREACH, Errno::EPERM];
            return Err(errors[self.next_random() as usize % errors.len()]);
        }
        let bytes = self.loans.bytes(send.part).to_vec();
        let stride = if send.datagrams > 1 { usize::from(send.segment_bytes) } else { bytes.len().max(1) };
        let (to, tos) = (send.to.remote, send.tos);
        self.sent.extend(bytes.chunks(stride).map(|datagram| Outgoing { to, bytes: datagram.to_vec(), tos }));
        Ok(())
    }

    fn complete_writes(&mut self, done: &mut Vec<Completion>) {
        while !self.writes.is_empty() && !self.strikes(self.faults.late) {
            let Some(gather) = self.writes.pop_front() else { break };
            let result = if let Some(error) = self.write_error {
                Err(error)
            } else if self.strikes(self.faults.tun_down) {
                Err(Errno::EIO)
            } else if gather.packets > 1 && self.strikes(self.faults.refused_write) {
                Err(Errno::EINVAL)
            } else {
                Ok(())
            };
            if result.is_ok() {
                let mut bytes = gather.head().to_vec();
                gather.parts.iter().for_each(|part| bytes.extend(self.loans.bytes(*part)));
                self.written.push(bytes);
            }
            self.loans.end_use(&gather.parts);
            done.push(Completion::Written { gather, result });
        }
    }

    fn read_tun(&mut self, done: &mut Vec<Completion>) {
        while !self.tun_reads.is_empty() && !self.strikes(self.faults.ended) {
            let Some(mut lease) = self.free.tun.pop() else { break };
            let Some(read) = self.tun_reads.pop_front() else { break };
            let mut bytes = read.len().min(BUFFER_BYTES);
            if self.strikes(self.faults.short_read) {
                bytes = self.next_random() as usize % (bytes + 1);
            }
            lease[..bytes].copy_from_slice(&read[..bytes]);
            done.push(Completion::TunRead { lease, bytes: bytes as u32 });
        }
    }

    fn receive(&mut self, done: &mut Vec<Completion>) {
        while !self.receives.is_empty() && !self.strikes(self.faults.ended) {
            if self.strikes(self.faults.receive_error) {
                done.push(Completion::ReceiveFailed(Errno::ECONNREFUSED));
                continue;
            }
            let Some(mut lease) = self.free.receive.pop() else { break };
            let Some(incoming) = self.receives.pop_front() else { break };
            let truncated = self.strikes(self.faults.truncated);
            let Incoming { from, to, ref bytes, stride, tos } = incoming;
            let length = if truncated { bytes.len() / 2 } else { bytes.len() };
            let start = super::message::PAYLOAD_START;
            lease[start..start + length].copy_from_slice(&bytes[..length]);
            let (start, bytes) = (start as u32, length as u32);
            let overflown = std::mem::take(&mut self.overflown);
            let at = self.now;
            let received = Received { from, to, start, bytes, stride, tos, truncated, overflown, at };
            self.handed_out.push((incoming, truncated));
            done.push(Completion::Received { lease, received });
        }
    }
}

impl Driver for Fake {
    fn now(&self) -> Time {
        self.now
    }

    fn clock(&self) -> Time {
        self.now
    }

    fn send_buffer(&mut self) -> Option<Lease> {
        self.free.send.pop()
    }

    fn lend(&mut self, lease: Lease) {
        self.loans.lend(lease);
    }

    fn lent(&self, part: Part) -> &[u8] {
        self.loans.bytes(part)
    }

    fn send(&mut self, send: Send) {
        self.loans.begin_use(&[send.part]);
        self.sends.push_back(send);
    }

    fn write(&mut self, gather: Gather) {
        self.loans.begin_use(&gather.parts);
        self.writes.push_back(gather);
    }

    /// There are no sockets to replace; what waited at them is lost.
    fn rebind(&mut self, _sockets: WorkerSockets) -> io::Result<()> {
        self.rebinds += 1;
        self.receives.clear();
        self.overflown = 0;
        Ok(())
    }

    /// Never sleeps: a wait lets time pass.
    fn turn(&mut self, _wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        self.bring_home();
        self.now = self.now + Span::from_nanos(1 + self.next_random() % 1_000_000);
        // Devices report in any order; each of them in its own.
        let first = self.next_random() % 4;
        for step in 0..4 {
            match (first + step) % 4 {
                0 => self.complete_sends(done),
                1 => self.complete_writes(done),
                2 => self.read_tun(done),
                _ => self.receive(done),
            }
        }
        Ok(())
    }

    fn take_effort(&mut self) -> Effort {
        Effort { enters: 1, rearms: 0 }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.bring_home();
        let Pools { tun, receive, send, .. } = &mut self.free;
        let mut leases: Vec<_> = [tun, receive, send].into_iter().flat_map(std::mem::take).collect();
        // A worker that was dropped with leases in hand leaves the pool short; such a pool is not used again.
        if leases.len() == Fake::buffers_total() {
            leases.sort_by_key(Lease::slot);
            POOL.with_borrow_mut(|pool| pool.push(leases));
        }
    }
}
