//! The driver on plain system calls: epoll, read, writev, recvmsg, sendmsg, with the same offloads.
//!
//! For containers and kernels that refuse io_uring, and as the other side of every measurement.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::clock;
use super::cmsg::Overflow;
use super::driver::{Completion, Driver, Effort, Send, Wait};
use super::lease::{self, Lease, Loans, Pools};
use super::message::{Arrival, Devices, OperationMemory, PAYLOAD_START, receive, received};
use super::portion::{PORTION_MAX, Portion, SEND_BUFFERS};
use super::sys::uninterrupted;
use super::udp::WorkerSockets;
use super::uring::gone;
use super::wake::Waker;
use crate::offload::Part;
use crate::offload::coalesce::Gather;
use crate::offload::stride::Received;
use crate::time::Time;

/// Buffers for TUN reads, for receives, for trains: as many as may be read in one turn, so one device cannot starve another.
const TUN_BUFFERS: u16 = PORTION_MAX;
const RECEIVE_BUFFERS: u16 = PORTION_MAX;

/// Busy turns between two looks at which other devices have become ready.
const TURNS_PER_POLL: u32 = 4;

/// What an epoll event belongs to, and the index of its flag in `ready`.
const TUN: usize = 0;
const V4: usize = 1;
const V6: usize = 2;
const WAKE: usize = 3;

/// [`Driver`] on plain system calls.
pub struct Syscall {
    epoll: Epoll,
    devices: Devices,
    waker: Waker,
    loans: Loans,
    free: Pools,
    tun_portion: Portion,
    receive_portion: Portion,
    queued: Vec<Queued>,
    memory: Box<OperationMemory>,
    /// Edge-triggered: set by an event, cleared by EAGAIN.
    ready: [bool; 4],
    /// Of the receiving sockets, IPv4 first.
    overflows: [Overflow; 2],
    turns_since_poll: u32,
    v6_first: bool,
    now: Time,
    effort: Effort,
}

enum Queued {
    Send(Send),
    Write(Gather),
}

fn watch(epoll: &Epoll, fd: BorrowedFd<'_>, which: usize) -> nix::Result<()> {
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, which as u64))
}

fn watch_sockets(epoll: &Epoll, sockets: &WorkerSockets) -> nix::Result<()> {
    let families = [(&sockets.v4, V4), (&sockets.v6, V6)];
    let mut there = families.into_iter().filter_map(|(family, which)| Some((family.as_ref()?, which)));
    there.try_for_each(|(family, which)| watch(epoll, family.receive.as_fd(), which))
}

impl Syscall {
    /// A driver for the calling thread.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    pub fn new(devices: Devices, waker: Waker) -> io::Result<Syscall> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        watch(&epoll, devices.tun.as_fd(), TUN)?;
        watch(&epoll, waker.as_fd(), WAKE)?;
        watch_sockets(&epoll, &devices.sockets)?;
        let leases = lease::map(TUN_BUFFERS + RECEIVE_BUFFERS + SEND_BUFFERS)?;
        Ok(Syscall {
            epoll,
            devices,
            waker,
            loans: Loans::new(usize::from(TUN_BUFFERS + RECEIVE_BUFFERS + SEND_BUFFERS)),
            free: Pools::sort(leases, TUN_BUFFERS, RECEIVE_BUFFERS),
            tun_portion: Portion::default(),
            receive_portion: Portion::default(),
            queued: Vec::new(),
            memory: Box::new(OperationMemory::new()),
            ready: [true; 4],
            overflows: [Overflow::default(); 2],
            turns_since_poll: 0,
            v6_first: false,
            now: clock::now(),
            effort: Effort::default(),
        })
    }

    fn carry_out_queued(&mut self, done: &mut Vec<Completion>) {
        let mut queued = std::mem::take(&mut self.queued);
        for operation in queued.drain(..) {
            self.effort.enters += 1;
            done.push(match operation {
                Queued::Send(send) => self.carry_out_send(send),
                Queued::Write(gather) => self.carry_out_write(gather),
            });
        }
        self.queued = queued;
    }

    fn carry_out_send(&mut self, send: Send) -> Completion {
        let header = self.memory.prepare_send(&send, &self.loans);
        let socket =
            if send.to.remote.is_ipv4() { &self.devices.sockets.v4 } else { &self.devices.sockets.v6 };
        let result = match socket {
            Some(sockets) => {
                let fd = sockets.sender().as_raw_fd();
                // SAFETY: (O) the header was just prepared and points into lent buffers (L).
                uninterrupted(|| unsafe { libc::sendmsg(fd, header, libc::MSG_DONTWAIT) })
            }
            None => Err(Errno::EAFNOSUPPORT),
        };
        self.loans.end_use(&[send.part]);
        Completion::Sent { send, result: result.map(|_| ()) }
    }

    fn carry_out_write(&mut self, gather: Gather) -> Completion {
        let (iovecs, count) = self.memory.prepare_write(&gather, &self.loans);
        let tun = self.devices.tun.as_raw_fd();
        // SAFETY: (O) the iovecs were just prepared and point into lent buffers (L).
        let result = uninterrupted(|| unsafe { libc::writev(tun, iovecs, count as i32) });
        self.loans.end_use(&gather.parts);
        Completion::Written { gather, result: result.map(|_| ()) }
    }

    fn read_tun(&mut self, done: &mut Vec<Completion>) {
        for _ in 0..self.tun_portion.buffers() {
            if !self.ready[TUN] {
                return;
            }
            let Some(lease) = self.free.tun.pop() else { return };
            let tun = self.devices.tun.as_raw_fd();
            self.effort.enters += 1;
            // SAFETY: (L) the lease is ours and BUFFER_BYTES long.
            match uninterrupted(|| unsafe { libc::read(tun, lease.as_ptr().cast(), lease::BUFFER_BYTES) }) {
                Ok(bytes) => {
                    self.tun_portion.note(bytes as u32);
                    done.push(Completion::TunRead { lease, bytes: bytes as u32 });
                }
                Err(error) => {
                    self.free.tun.push(lease);
                    // Other errors concern one packet; those behind it announce themselves no second time.
                    self.ready[TUN] = error != Errno::EAGAIN && !gone(error);
                    match error {
                        Errno::EAGAIN => {}
                        error if gone(error) => done.push(Completion::TunGone),
                        error => done.push(Completion::ReceiveFailed(error)),
                    }
                    return;
                }
            }
        }
    }

    fn receive(&mut self, which: usize, done: &mut Vec<Completion>) {
        let socket = if which == V4 { &self.devices.sockets.v4 } else { &self.devices.sockets.v6 };
        let Some(socket) = socket else { return };
        let fd = socket.receive.as_raw_fd();
        let realtime_offset = clock::realtime_offset();
        for _ in 0..self.receive_portion.buffers() {
            if !self.ready[which] {
                return;
            }
            let Some(mut lease) = self.free.receive.pop() else { return };
            self.effort.enters += 1;
            let overflow = &mut self.overflows[usize::from(which == V6)];
            match receive_into(fd, &mut lease, overflow, realtime_offset, self.now) {
                Ok(Some(received)) => {
                    self.receive_portion.note(received.bytes);
                    done.push(Completion::Received { lease, received });
                }
                Ok(None) => self.free.receive.push(lease),
                Err(error) => {
                    self.free.receive.push(lease);
                    match error {
                        Errno::EAGAIN => self.ready[which] = false,
                        error => done.push(Completion::ReceiveFailed(error)),
                    }
                    return;
                }
            }
        }
    }

    fn poll(&mut self, wait: Wait) -> io::Result<()> {
        let timeout = match wait {
            Wait::Not => EpollTimeout::ZERO,
            Wait::Forever => EpollTimeout::NONE,
            Wait::Until(deadline) => {
                let millis = deadline.since(clock::now()).as_nanos().div_ceil(1_000_000);
                EpollTimeout::try_from(millis.min(60_000) as u32).unwrap_or(EpollTimeout::ZERO)
            }
        };
        self.turns_since_poll = 0;
        let mut events = [EpollEvent::empty(); 4];
        self.effort.enters += 1;
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => events[..count].iter().for_each(|event| self.ready[event.data() as usize] = true),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn read_ready(&mut self, done: &mut Vec<Completion>) {
        self.read_tun(done);
        // Both families share the buffers: take turns at being first.
        self.v6_first = !self.v6_first;
        let [first, second] = if self.v6_first { [V6, V4] } else { [V4, V6] };
        self.receive(first, done);
        self.receive(second, done);
        if std::mem::take(&mut self.ready[WAKE]) {
            self.waker.clear();
            done.push(Completion::Woken);
        }
    }
}

impl Driver for Syscall {
    fn now(&self) -> Time {
        self.now
    }

    fn clock(&self) -> Time {
        clock::now()
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
        self.queued.push(Queued::Send(send));
    }

    fn write(&mut self, gather: Gather) {
        self.loans.begin_use(&gather.parts);
        self.queued.push(Queued::Write(gather));
    }

    fn rebind(&mut self, sockets: WorkerSockets) -> io::Result<()> {
        let old = std::mem::replace(&mut self.devices.sockets, sockets);
        // Closing them would not do: a clone elsewhere keeps them in the epoll, and they would go on telling.
        for family in [&old.v4, &old.v6].into_iter().flatten() {
            self.epoll.delete(&family.receive)?;
        }
        watch_sockets(&self.epoll, &self.devices.sockets)?;
        (self.ready[V4], self.ready[V6]) = (true, true);
        self.overflows = [Overflow::default(); 2];
        Ok(())
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        let Syscall { loans, free, .. } = self;
        loans.collect(|lease| free.take_home(lease));
        self.carry_out_queued(done);
        self.now = clock::now();
        self.read_ready(done);
        self.turns_since_poll += 1;
        if done.is_empty() {
            self.poll(wait)?;
            self.now = clock::now();
            self.read_ready(done);
        } else if self.turns_since_poll >= TURNS_PER_POLL {
            // A device that is always ready must not keep us from hearing of the others.
            self.poll(Wait::Not)?;
        }
        Ok(())
    }

    fn take_effort(&mut self) -> Effort {
        std::mem::take(&mut self.effort)
    }
}

fn receive_into(
    fd: i32,
    lease: &mut Lease,
    overflow: &mut Overflow,
    realtime_offset: i64,
    now: Time,
) -> Result<Option<Received>, Errno> {
    let arrival = receive(fd, &mut lease[PAYLOAD_START..])?;
    let Arrival { bytes, truncated, .. } = arrival;
    Ok(received(arrival.address(), arrival.control(), bytes, truncated, overflow, realtime_offset, now))
}
