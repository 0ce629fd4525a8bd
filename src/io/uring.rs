//! The driver on io_uring.
//!
//! One turn is one enter: it submits what the worker queued, waits, and brings what happened. Receiving is multishot from
//! provided buffers; it is armed anew at the start of a turn whenever it ended (buffers ran dry, completion queue full).
//! Sends carry MSG_DONTWAIT and TUN writes never block, so both complete within the enter that submits them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use io_uring::{cqueue, opcode, squeue, types};
use nix::errno::Errno;
use slab::Slab;

use super::clock;
use super::cmsg::{Overflow, RECEIVE_CONTROL_BYTES};
use super::driver::{Completion, Driver, Effort, Send, Wait};
use super::lease::{self, Lease, Loans};
use super::message::{Devices, NAME_BYTES, OperationMemory, received};
use super::portion::{PORTION_MAX, SEND_BUFFERS};
use super::ring::{BufferRing, Features, Ring};
use super::udp::{Sockets, WorkerSockets};
use super::wake::Waker;
use crate::offload::Part;
use crate::offload::coalesce::Gather;
use crate::offload::stride::Received;
use crate::time::Time;

/// Buffers for TUN reads, for receives, for trains. The first two rotate first-in first-out through the cache, so few
/// are better than many; powers of two.
const TUN_BUFFERS: u16 = PORTION_MAX;
const RECEIVE_BUFFERS: u16 = PORTION_MAX;
/// Single TUN reads under way at most: more on one TUN end in kernel threads.
const SINGLE_READS: u16 = 2;
/// Operations under way at most.
const OPERATIONS: usize = 256;
/// Failures one after the other, and nothing received in between, after which receiving is hopeless.
const FAILURES_MAX: u32 = 64;

/// Index of each registered file.
const TUN: u32 = 0;
const WAKE: u32 = 1;
const RECEIVE_V4: u32 = 2;
const RECEIVE_V6: u32 = 3;
const SEND_V4: u32 = 4;
const SEND_V6: u32 = 5;

/// What a completion belongs to: the upper half of its user data; the lower half is the operation's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    TunRead,
    ReceiveV4,
    ReceiveV6,
    Wake,
    Operation,
    Cancel,
}

fn token(kind: Kind, key: usize) -> u64 {
    (kind as u64) << 32 | key as u64
}

fn kind_of(user_data: u64) -> Kind {
    match user_data >> 32 {
        0 => Kind::TunRead,
        1 => Kind::ReceiveV4,
        2 => Kind::ReceiveV6,
        3 => Kind::Wake,
        4 => Kind::Operation,
        5 => Kind::Cancel,
        other => panic!("a completion of kind {other}, which we never submit"),
    }
}

/// What the worker queued, until its completion.
enum Operation {
    Send(Send),
    Write(Gather),
}

/// [`Driver`] on a ring of the calling thread.
pub struct Uring {
    // Order matters: the ring goes before the memory it uses.
    ring: Ring,
    tun_buffers: BufferRing,
    receive_buffers: BufferRing,
    devices: Devices,
    waker: Waker,
    loans: Loans,
    free: Vec<Lease>,
    operations: Slab<Operation>,
    memory: Vec<OperationMemory>,
    /// msghdr of the multishot receives: only the two lengths matter to the kernel.
    receive_header: Box<libc::msghdr>,
    /// One multishot read, or (below Linux 6.7) single ones.
    read_multishot: bool,
    tun_reads_armed: u16,
    receives_armed: [bool; 2],
    /// Of the sockets that are received from, IPv4 first.
    overflows: [Overflow; 2],
    wake_armed: bool,
    /// What is armed still uses sockets that were replaced, or keeps the kernel from closing them.
    stale: bool,
    /// Completions reaped while making room for operations.
    early: Vec<Completion>,
    /// Receives and reads that failed since one succeeded, for reasons that may well come again.
    failures: u32,
    /// What makes going on pointless.
    failure: Option<io::Error>,
    now: Time,
    effort: Effort,
}

/// No ring, and what was meant for it.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: io::Error,
    /// For another driver.
    pub devices: Devices,
    /// For another driver.
    pub waker: Waker,
}

/// What the kernel may refuse.
struct Resources {
    ring: Ring,
    tun_buffers: BufferRing,
    receive_buffers: BufferRing,
    free: Vec<Lease>,
}

impl Resources {
    fn acquire(devices: &Devices, waker: &Waker, wanted: Features) -> io::Result<Resources> {
        let ring = Ring::new(wanted)?;
        register_files(&ring, devices, waker)?;
        let mut tun_buffers = BufferRing::register(&ring, 0, 0, TUN_BUFFERS)?;
        let mut receive_buffers = BufferRing::register(&ring, 1, TUN_BUFFERS, RECEIVE_BUFFERS)?;
        let mut free = Vec::with_capacity(usize::from(SEND_BUFFERS));
        for lease in lease::map(TUN_BUFFERS + RECEIVE_BUFFERS + SEND_BUFFERS)? {
            go_home(lease, &mut tun_buffers, &mut receive_buffers, &mut free);
        }
        Ok(Resources { ring, tun_buffers, receive_buffers, free })
    }
}

impl Uring {
    /// Sets up a ring for the calling thread, which must be the one that uses it: (S). It has those of the `wanted` features
    /// that the kernel has.
    ///
    /// # Errors
    /// What [`super::ring::available`] refuses; EMFILE when RLIMIT_NOFILE is below six; ENOMEM.
    pub fn new(devices: Devices, waker: Waker, wanted: Features) -> Result<Uring, Refused> {
        match Resources::acquire(&devices, &waker, wanted) {
            Ok(resources) => Ok(Uring::with(resources, devices, waker)),
            Err(error) => Err(Refused { error, devices, waker }),
        }
    }

    fn with(resources: Resources, devices: Devices, waker: Waker) -> Uring {
        let Resources { ring, tun_buffers, receive_buffers, free } = resources;
        Uring {
            read_multishot: ring.features.multishot_read,
            ring,
            tun_buffers,
            receive_buffers,
            devices,
            waker,
            loans: Loans::new(usize::from(TUN_BUFFERS + RECEIVE_BUFFERS + SEND_BUFFERS)),
            free,
            operations: Slab::with_capacity(OPERATIONS),
            memory: (0..OPERATIONS).map(|_| OperationMemory::new()).collect(),
            receive_header: Box::new(receive_header()),
            tun_reads_armed: 0,
            receives_armed: [false; 2],
            overflows: [Overflow::default(); 2],
            wake_armed: false,
            stale: false,
            early: Vec::with_capacity(OPERATIONS),
            failures: 0,
            failure: None,
            now: clock::now(),
            effort: Effort::default(),
        }
    }

    /// Ends everything that is armed after the sockets were replaced. Also what does not use them: below Linux 6.13 the
    /// kernel closes a replaced file only when all that was submitted before has ended. Nothing is lost, since a packet
    /// or a wake-up that was not delivered still waits where it was.
    fn end_armed(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any());
        self.push(cancel.build(), token(Kind::Cancel, 0))?;
        self.effort.enters += 1;
        self.ring.enter(0, None)?;
        self.reap(done);
        // A read that is just running is not found or ends later; the next turn tries again.
        self.stale = self.tun_reads_armed > 0 || self.receives_armed.contains(&true) || self.wake_armed;
        if !self.stale {
            // Not before: until here the old sockets could still tell.
            self.overflows = [Overflow::default(); 2];
        }
        Ok(())
    }

    /// Arms whatever receives and is not armed, as far as there are buffers for it.
    fn arm(&mut self) -> io::Result<()> {
        self.tun_buffers.top_up();
        self.receive_buffers.top_up();
        if self.tun_buffers.available > 0 {
            self.arm_tun()?;
        }
        if self.receive_buffers.available > 0 {
            self.arm_receives()?;
        }
        if !self.wake_armed {
            let poll = opcode::PollAdd::new(types::Fixed(WAKE), libc::POLLIN as u32);
            self.push(poll.build(), token(Kind::Wake, 0))?;
            self.wake_armed = true;
        }
        Ok(())
    }

    fn arm_tun(&mut self) -> io::Result<()> {
        let group = self.tun_buffers.group();
        if self.read_multishot {
            if self.tun_reads_armed == 0 {
                // io-uring 0.7.15 loses this flag in ReadMulti::build; the index would then be taken for a descriptor.
                let read = opcode::ReadMulti::new(types::Fixed(TUN), 0, group)
                    .build()
                    .flags(squeue::Flags::FIXED_FILE);
                self.push(read, token(Kind::TunRead, 0))?;
                self.tun_reads_armed = 1;
                self.effort.rearms += 1;
            }
            return Ok(());
        }
        while self.tun_reads_armed < SINGLE_READS.min(self.tun_buffers.available) {
            let read = opcode::Read::new(types::Fixed(TUN), std::ptr::null_mut(), lease::BUFFER_BYTES as u32)
                .buf_group(group)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT);
            self.push(read, token(Kind::TunRead, 0))?;
            self.tun_reads_armed += 1;
        }
        Ok(())
    }

    fn arm_receives(&mut self) -> io::Result<()> {
        let have = [self.devices.sockets.v4.is_some(), self.devices.sockets.v6.is_some()];
        for (family, (file, kind)) in
            [(RECEIVE_V4, Kind::ReceiveV4), (RECEIVE_V6, Kind::ReceiveV6)].into_iter().enumerate()
        {
            if have[family] && !self.receives_armed[family] {
                let header = &raw const *self.receive_header;
                let receive =
                    opcode::RecvMsgMulti::new(types::Fixed(file), header, self.receive_buffers.group());
                self.push(receive.build(), token(kind, 0))?;
                self.receives_armed[family] = true;
                self.effort.rearms += 1;
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, user_data: u64) -> io::Result<()> {
        // SAFETY: (L) buffers are lent or provided; (O) the rest lies in `memory` or `receive_header`, which
        // live and stay put until the ring is dropped.
        unsafe { self.ring.push(&entry.user_data(user_data), &mut self.effort.enters) }
    }

    /// A free operation slot; reaps when all are taken, which ends the operations since they complete at submission.
    /// False if the ring has failed, which the next turn says.
    fn make_room(&mut self) -> bool {
        while self.operations.len() == OPERATIONS && self.failure.is_none() {
            let mut early = std::mem::take(&mut self.early);
            self.effort.enters += 1;
            self.failure = self.ring.enter(1, None).err();
            self.reap(&mut early);
            self.early = early;
        }
        self.failure.is_none()
    }

    /// Queues the operation `key`. That it was not submitted is said by the next turn.
    fn submit(&mut self, entry: squeue::Entry, key: usize) {
        if let Err(error) = self.push(entry, token(Kind::Operation, key)) {
            self.failure = Some(error);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.now = clock::now();
        let mut realtime_offset = None;
        while let Some((user_data, result, flags)) = self.ring.next() {
            match kind_of(user_data) {
                Kind::Operation => done.push(self.end_operation(user_data as u32 as usize, result)),
                Kind::TunRead => done.extend(self.end_tun_read(result, flags)),
                kind @ (Kind::ReceiveV4 | Kind::ReceiveV6) => {
                    let offset = *realtime_offset.get_or_insert_with(clock::realtime_offset);
                    done.extend(self.end_receive(kind, result, flags, offset));
                }
                Kind::Wake => {
                    self.wake_armed = false;
                    // Cancelled, it has not rung, or rings again when armed anew.
                    if result >= 0 {
                        self.waker.clear();
                        done.push(Completion::Woken);
                    }
                }
                Kind::Cancel => {}
            }
        }
        self.ring.reaped();
    }

    fn end_operation(&mut self, key: usize, result: i32) -> Completion {
        let result = if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(()) };
        match self.operations.remove(key) {
            Operation::Send(send) => {
                self.loans.end_use(&[send.part]);
                Completion::Sent { send, result }
            }
            Operation::Write(gather) => {
                self.loans.end_use(&gather.parts);
                Completion::Written { gather, result }
            }
        }
    }

    fn end_tun_read(&mut self, result: i32, flags: u32) -> Option<Completion> {
        if !cqueue::more(flags) {
            self.tun_reads_armed -= 1;
        }
        let lease = cqueue::buffer_select(flags).map(|slot| self.tun_buffers.take(slot, result));
        match (result, lease) {
            (bytes @ 0.., Some(lease)) => {
                self.failures = 0;
                Some(Completion::TunRead { lease, bytes: bytes as u32 })
            }
            (result, lease) => {
                if let Some(lease) = lease {
                    self.tun_buffers.give_back(lease);
                }
                let error = Errno::from_raw(-result);
                if gone(error) {
                    return Some(Completion::TunGone);
                }
                self.failed("TUN read", error)
            }
        }
    }

    fn end_receive(
        &mut self,
        kind: Kind,
        result: i32,
        flags: u32,
        realtime_offset: i64,
    ) -> Option<Completion> {
        let family = usize::from(kind == Kind::ReceiveV6);
        if !cqueue::more(flags) {
            self.receives_armed[family] = false;
        }
        let lease = cqueue::buffer_select(flags).map(|slot| self.receive_buffers.take(slot, result));
        match (result, lease) {
            (bytes @ 0.., Some(lease)) => {
                match self.received(family, &lease, bytes as usize, realtime_offset) {
                    Some(received) => {
                        self.failures = 0;
                        Some(Completion::Received { lease, received })
                    }
                    None => {
                        self.receive_buffers.give_back(lease);
                        Some(Completion::ReceiveFailed(Errno::EPROTO))
                    }
                }
            }
            (result, lease) => {
                if let Some(lease) = lease {
                    self.receive_buffers.give_back(lease);
                }
                self.failed("receive", Errno::from_raw(-result))
            }
        }
    }

    /// What the worker hears of a receive or read that brought nothing. It is armed anew, and what the kernel cannot do
    /// at all would fail again and again, so that many failures in a row end the driver. A single one may concern one
    /// packet only: drivers/net/tun.c `tun_put_user` says EINVAL to a superpacket it cannot describe.
    fn failed(&mut self, what: &str, error: Errno) -> Option<Completion> {
        // Out of buffers is how a multishot says that it must be armed again. Cancelled, it is armed again on other sockets.
        if matches!(error, Errno::ENOBUFS | Errno::ECANCELED | Errno::EAGAIN | Errno::UnknownErrno) {
            return None;
        }
        if matches!(error, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EFAULT | Errno::ENOTSOCK) {
            self.failures += 1;
        }
        if self.failures >= FAILURES_MAX {
            self.failure =
                Some(io::Error::other(format!("io_uring: {what}: {error}; `--io syscall` does without")));
        }
        Some(Completion::ReceiveFailed(error))
    }

    fn received(
        &mut self,
        family: usize,
        lease: &Lease,
        bytes: usize,
        realtime_offset: i64,
    ) -> Option<Received> {
        let out = types::RecvMsgOut::parse(lease.get(..bytes)?, &self.receive_header).ok()?;
        received(
            out.name_data(),
            out.control_data(),
            out.payload_data().len(),
            out.is_payload_truncated(),
            &mut self.overflows[family],
            realtime_offset,
            self.now,
        )
    }
}

impl Driver for Uring {
    fn now(&self) -> Time {
        self.now
    }

    fn clock(&self) -> Time {
        clock::now()
    }

    fn send_buffer(&mut self) -> Option<Lease> {
        self.free.pop()
    }

    fn lend(&mut self, lease: Lease) {
        self.loans.lend(lease);
    }

    fn lent(&self, part: Part) -> &[u8] {
        self.loans.bytes(part)
    }

    fn send(&mut self, send: Send) {
        if !self.make_room() {
            return;
        }
        self.loans.begin_use(&[send.part]);
        let key = self.operations.insert(Operation::Send(send));
        let header = self.memory[key].prepare_send(&send, &self.loans);
        let file = types::Fixed(if send.to.remote.is_ipv4() { SEND_V4 } else { SEND_V6 });
        let entry = opcode::SendMsg::new(file, header).flags(libc::MSG_DONTWAIT as u32).build();
        self.submit(entry, key);
    }

    fn write(&mut self, gather: Gather) {
        if !self.make_room() {
            return;
        }
        self.loans.begin_use(&gather.parts);
        let key = self.operations.vacant_key();
        let (iovecs, count) = self.memory[key].prepare_write(&gather, &self.loans);
        self.operations.insert(Operation::Write(gather));
        let entry = opcode::Writev::new(types::Fixed(TUN), iovecs, count as u32).build();
        self.submit(entry, key);
    }

    fn rebind(&mut self, sockets: WorkerSockets) -> io::Result<()> {
        self.ring.replace_files(RECEIVE_V4, &socket_files(&sockets))?;
        self.devices.sockets = sockets;
        self.stale = true;
        Ok(())
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        // The worker has not heard of these yet and may want to send their buffers again.
        if self.early.is_empty() {
            let Uring { loans, tun_buffers, receive_buffers, free, .. } = self;
            loans.collect(|lease| go_home(lease, tun_buffers, receive_buffers, free));
        }
        done.append(&mut self.early);
        if self.stale {
            self.end_armed(done)?;
        }
        if !self.stale {
            self.arm()?;
        }
        let (want, timeout) = match wait {
            _ if self.stale || !done.is_empty() => (0, None),
            Wait::Not => (0, None),
            Wait::Forever => (1, None),
            Wait::Until(deadline) => (1, Some(deadline.since(clock::now()))),
        };
        self.effort.enters += 1;
        self.ring.enter(want, timeout)?;
        self.reap(done);
        self.failure.take().map_or(Ok(()), Err)
    }

    fn take_effort(&mut self) -> Effort {
        std::mem::take(&mut self.effort)
    }
}

/// Registers the descriptors at the indices named above.
fn register_files(ring: &Ring, devices: &Devices, waker: &Waker) -> io::Result<()> {
    let [receive_v4, receive_v6, send_v4, send_v6] = socket_files(&devices.sockets);
    let (tun, wake) = (devices.tun.as_raw_fd(), waker.as_fd().as_raw_fd());
    ring.register_files(&[tun, wake, receive_v4, receive_v6, send_v4, send_v6])
}

/// The sockets in the order of their indices, from `RECEIVE_V4` on.
fn socket_files(sockets: &WorkerSockets) -> [RawFd; 4] {
    // A missing family leaves its places empty: no receive is armed there, and a send fails (EBADF).
    let pair = |sockets: &Option<Sockets>| match sockets {
        Some(sockets) => [sockets.receive.as_raw_fd(), sockets.sender().as_raw_fd()],
        None => [-1; 2],
    };
    let [receive_v4, send_v4] = pair(&sockets.v4);
    let [receive_v6, send_v6] = pair(&sockets.v6);
    [receive_v4, receive_v6, send_v4, send_v6]
}

fn go_home(lease: Lease, tun: &mut BufferRing, receive: &mut BufferRing, free: &mut Vec<Lease>) {
    if tun.owns(lease.slot()) {
        tun.give_back(lease);
    } else if receive.owns(lease.slot()) {
        receive.give_back(lease);
    } else {
        free.push(lease);
    }
}

fn receive_header() -> libc::msghdr {
    // SAFETY: (R) all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = NAME_BYTES as u32;
    header.msg_controllen = RECEIVE_CONTROL_BYTES;
    header
}

/// Whether a TUN read failed because the device is no more.
pub(super) fn gone(error: Errno) -> bool {
    matches!(error, Errno::EBADFD | Errno::EBADF | Errno::ENODEV)
}
