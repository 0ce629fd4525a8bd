//! The UDP sockets: per worker and family one that receives, and, steered by source port, for workers above 0 one that
//! only sends.
//!
//! The receiving sockets of a family share the listen port (SO_REUSEPORT) and are steered by a program of
//! [`super::steer`]; [`Steering`] says which. Steered by source port, the peer needs several ports of ours to spread us
//! over its workers: worker i sends from a port whose low byte is that of the listen port plus i, worker 0 from the
//! listen port itself. Steered by receiver index, everything leaves from the listen port.
//!
//! Every receiving socket delivers, as control messages, the GRO segment size, the local address (IP_PKTINFO,
//! IPV6_PKTINFO), the traffic class (IP_TOS, IPV6_TCLASS), the kernel's receive time (SCM_TIMESTAMPNS: CLOCK_REALTIME
//! as a `timespec`) and, once it has dropped something, how often so far (SO_RXQ_OVFL).
//!
//! Source: socket(7), udp(7), ip(7), ipv6(7), linux/udp.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, socket};
use thiserror::Error;

pub use super::mailer::Mailer;
use super::{clock, steer, sys};
use crate::offload::train::TRAIN_SEGMENTS_SAFE;
use crate::stats::offloads::Offload;
use crate::time::Span;

/// Workers one group can have: as many as a TUN has queues, and as there are values of a port's low byte.
pub const WORKERS_MAX: usize = 256;

/// Train lengths to try. linux/udp.h UDP_MAX_SEGMENTS was 64, newer kernels say 128; from the top down.
const TRAIN_SEGMENTS_PROBED: [u16; 3] = [128, TRAIN_SEGMENTS_SAFE, 2];

/// Where send ports are looked for: the kernel's default net.ipv4.ip_local_port_range.
const SEND_PORTS: Range<u16> = 32768..61000;

/// How long it is worth waiting for a taken port: the ring of a process that was killed holds its sockets for a moment, on
/// a machine with much else to do for longer.
pub const BUSY_PATIENCE: Span = Span::from_secs(3);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How often a free port is drawn until it is free in both families.
const PORT_DRAWS: usize = 32;

/// What decides which worker receives a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// The sender's port: [`steer::spread_by_source_port`]. Workers above 0 send from ports of their own.
    SourcePort,
    /// The receiver index of WireGuard's transport messages: [`steer::spread_by_receiver_index`]. All send from the
    /// listen port, where WireGuard peers, and NATs between, expect us.
    ReceiverIndex,
}

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpRequest {
    /// Address to receive on and send from; `None` is every address of both families.
    pub address: Option<IpAddr>,
    /// Listen port; 0 lets the kernel choose one that is free in both families.
    pub port: u16,
    /// Workers, 1 to [`WORKERS_MAX`].
    pub workers: usize,
    /// Whether to receive trains whole (UDP_GRO).
    pub gro: bool,
    /// Whether to look for UDP_SEGMENT.
    pub gso: bool,
    /// Kernel memory per socket and direction, in bytes as getsockopt(SO_RCVBUF) reports it (twice the number
    /// setsockopt is told). 64 KiB trains take about 70 KiB each.
    pub buffer_bytes: usize,
    /// What decides which worker receives a datagram.
    pub steering: Steering,
    /// Whether to have the kernel do so; else its hash chooses the worker, which costs speed and nothing else.
    pub steer: bool,
    /// The mark of everything we send (SO_MARK), for policy routing; 0 is none.
    pub fwmark: u32,
    /// How long to wait for a port that is taken.
    pub patience: Span,
}

/// One worker's sockets of one family, non-blocking.
#[derive(Debug)]
pub struct Sockets {
    /// Receives on the listen port.
    pub receive: OwnedFd,
    /// Sends from a port of its own and drops what arrives there; `None`: everything leaves from `receive`.
    pub send: Option<OwnedFd>,
}

impl Sockets {
    /// The socket to send from.
    pub fn sender(&self) -> &OwnedFd {
        self.send.as_ref().unwrap_or(&self.receive)
    }

    fn try_clone(&self) -> std::io::Result<Sockets> {
        let send = self.send.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Sockets { receive: self.receive.try_clone()?, send })
    }
}

/// One worker's sockets; at least one family is there, and the same ones for every worker.
#[derive(Debug)]
pub struct WorkerSockets {
    /// IPv4, unless the host or the requested address has none.
    pub v4: Option<Sockets>,
    /// IPv6 (IPV6_V6ONLY), unless the host or the requested address has none.
    pub v6: Option<Sockets>,
}

impl WorkerSockets {
    /// More descriptors of the same sockets: the port stays taken until both are closed.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> std::io::Result<WorkerSockets> {
        let family = |sockets: &Option<Sockets>| sockets.as_ref().map(Sockets::try_clone).transpose();
        Ok(WorkerSockets { v4: family(&self.v4)?, v6: family(&self.v6)? })
    }

    /// Marks what these sockets send from now on, also through their clones; 0 is no mark.
    ///
    /// # Errors
    /// As [`set_mark`]; some of the sockets may have the new mark then.
    pub fn set_mark(&self, fwmark: u32) -> nix::Result<()> {
        [&self.v4, &self.v6].into_iter().flatten().try_for_each(|sockets| {
            set_mark(&sockets.receive, fwmark)?;
            sockets.send.as_ref().map_or(Ok(()), |send| set_mark(send, fwmark))
        })
    }
}

/// Marks what `socket` sends from now on, for policy routing and filters; 0 is no mark.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN (or CAP_NET_RAW since Linux 5.17).
///
/// Source: socket(7) SO_MARK.
pub fn set_mark(socket: &OwnedFd, fwmark: u32) -> nix::Result<()> {
    sys::set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, fwmark as libc::c_int)
}

/// All sockets of the tunnel.
#[derive(Debug)]
pub struct UdpGroup {
    /// One element per worker; the index is also what the steering program answers.
    pub workers: Vec<WorkerSockets>,
    /// The listen port of all families.
    pub port: u16,
    /// Datagrams one UDP_SEGMENT send may carry; 1 means there is no UDP GSO, never send the control message.
    pub train_segments_max: u16,
    /// Whether trains are received whole.
    pub gro: bool,
    /// Kernel memory granted to the worst-off receiving socket, in the unit of [`UdpRequest::buffer_bytes`].
    pub buffer_bytes: usize,
    /// Offloads that were asked for and that the kernel refused, and how.
    pub refused: Vec<(Offload, String)>,
    /// What else we had to do without, one sentence each, for the operator.
    pub notes: Vec<String>,
}

impl UdpGroup {
    /// How the kernel refused `offload`, if it did.
    pub fn refusal(&self, offload: Offload) -> Option<&str> {
        self.refused.iter().find(|(refused, _)| *refused == offload).map(|(_, how)| how.as_str())
    }
}

/// Why the sockets could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UdpError {
    /// A worker count outside 1..=256.
    #[error(
        "udp: {workers} workers asked for, a socket group has 1 to {WORKERS_MAX}; lower the number of workers"
    )]
    WorkerCount {
        /// As asked for.
        workers: usize,
    },
    /// Somebody, possibly another instance, has the port.
    #[error(
        "udp {address}: port in use; choose another one, or find its owner: `ss -ulnp 'sport = :{}'`",
        address.port()
    )]
    PortInUse {
        /// The address that could not be bound.
        address: SocketAddr,
    },
    /// The address belongs to none of this host's interfaces.
    #[error("udp {address}: not an address of this host (`ip address` lists them); leave it out to use all")]
    AddressNotHere {
        /// As asked for.
        address: IpAddr,
    },
    /// A port below net.ipv4.ip_unprivileged_port_start.
    #[error("udp {address}: not permitted; ports below 1024 need CAP_NET_BIND_SERVICE, choose a higher one")]
    NotPermitted {
        /// The address that could not be bound.
        address: SocketAddr,
    },
    /// The host lacks the family of the requested address.
    #[error("udp {address}: this host has no {} ({errno}); choose an address of the other family",
        if address.is_ipv4() { "IPv4" } else { "IPv6" })]
    NoFamily {
        /// As asked for.
        address: IpAddr,
        /// From socket(2) or bind(2).
        errno: Errno,
    },
    /// The host has neither IPv4 nor IPv6.
    #[error("udp: this host has neither IPv4 ({v4}) nor IPv6 ({v6}); is the network stack there?")]
    NoFamilies {
        /// Why there is no IPv4.
        v4: Errno,
        /// Why there is no IPv6.
        v6: Errno,
    },
    /// What we send may not be marked.
    #[error("udp: fwmark {fwmark:#x}: {errno}; run with CAP_NET_ADMIN, or without a mark")]
    Mark {
        /// As asked for.
        fwmark: u32,
        /// From SO_MARK.
        errno: Errno,
    },
    /// The process or system ran out of file descriptors.
    #[error("udp {address}: {errno} at worker {worker}; raise the limit: `ulimit -n 4096`")]
    NoDescriptors {
        /// The address being bound.
        address: SocketAddr,
        /// The worker whose socket failed.
        worker: usize,
        /// EMFILE or ENFILE.
        errno: Errno,
    },
    /// A call failed in a way that has no better name.
    #[error("udp {address}: {call}: {errno}; `uringvpn probe` shows what this kernel offers")]
    Call {
        /// The address being bound.
        address: SocketAddr,
        /// The system call or option.
        call: &'static str,
        /// As the kernel gave it.
        errno: Errno,
    },
}

/// Opens every socket the workers need and steers them.
///
/// The port is ours alone when this returns: another program that has it, with SO_REUSEPORT or without, makes this
/// fail, and a second instance is refused. (A program of the same user that sets SO_REUSEPORT could join later; the
/// kernel has no way to close a group, but the steering program never chooses the newcomer.)
///
/// # Errors
/// [`UdpError`]; nothing stays open on an error.
///
/// Source: socket(7), net/ipv4/udp.c `udp_lib_get_port`.
pub fn open(request: &UdpRequest) -> Result<UdpGroup, UdpError> {
    if !(1..=WORKERS_MAX).contains(&request.workers) {
        return Err(UdpError::WorkerCount { workers: request.workers });
    }
    let mut draws = 0;
    let give_up = clock::now() + request.patience;
    let families = loop {
        draws += 1;
        match open_families(request) {
            // The kernel drew a port that is free for IPv4 and taken for IPv6: draw again.
            Err(UdpError::PortInUse { .. }) if request.port == 0 && draws < PORT_DRAWS => {}
            Err(UdpError::PortInUse { .. }) if request.port != 0 && clock::now() < give_up => {
                sleep(BUSY_PAUSE)
            }
            other => break other?,
        }
    };
    let Families { port, v4, v6, mut refused, mut notes, gro, buffer_bytes } = families;
    let train_segments_max = if request.gso { train_segments_max() } else { 1 };
    if request.gso && train_segments_max == 1 {
        refused.push((Offload::Gso, "UDP_SEGMENT is refused".into()));
    }
    if buffer_bytes < request.buffer_bytes {
        notes.push(format!(
            "udp: {buffer_bytes} of {} bytes of receive buffer granted, bursts may be lost; run with CAP_NET_ADMIN or \
             raise net.core.rmem_max and net.core.wmem_max to {}",
            request.buffer_bytes,
            request.buffer_bytes / 2
        ));
    }
    let mut v4 = v4.into_iter();
    let mut v6 = v6.into_iter();
    let workers = (0..request.workers).map(|_| WorkerSockets { v4: v4.next(), v6: v6.next() }).collect();
    Ok(UdpGroup { workers, port, train_segments_max, gro, buffer_bytes, refused, notes })
}

struct Families {
    port: u16,
    v4: Vec<Sockets>,
    v6: Vec<Sockets>,
    gro: bool,
    buffer_bytes: usize,
    refused: Vec<(Offload, String)>,
    notes: Vec<String>,
}

impl Families {
    fn refuse(&mut self, offload: Offload, how: String) {
        if self.refused.iter().all(|(refused, _)| *refused != offload) {
            self.refused.push((offload, how));
        }
    }
}

fn open_families(request: &UdpRequest) -> Result<Families, UdpError> {
    let mut families = Families {
        port: request.port,
        v4: Vec::new(),
        v6: Vec::new(),
        gro: request.gro,
        buffer_bytes: usize::MAX,
        refused: Vec::new(),
        notes: Vec::new(),
    };
    match request.address {
        Some(address @ IpAddr::V4(_)) => families.v4 = open_family(address, request, &mut families)?,
        Some(address @ IpAddr::V6(_)) => families.v6 = open_family(address, request, &mut families)?,
        None => {
            let mut missing = Vec::new();
            for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
                match open_family(any, request, &mut families) {
                    Ok(sockets) if any.is_ipv4() => families.v4 = sockets,
                    Ok(sockets) => families.v6 = sockets,
                    Err(UdpError::NoFamily { errno, .. }) => missing.push((any, errno)),
                    Err(error) => return Err(error),
                }
            }
            if let [(_, v4), (_, v6)] = missing[..] {
                return Err(UdpError::NoFamilies { v4, v6 });
            }
            for (any, errno) in missing {
                let (no, only) = if any.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
                families
                    .notes
                    .push(format!("udp: this host has no {no} ({errno}); listening on {only} only"));
            }
        }
    }
    Ok(families)
}

/// Opens the sockets of one family, in worker order. Settles `families.port` if it is still 0.
fn open_family(
    address: IpAddr,
    request: &UdpRequest,
    families: &mut Families,
) -> Result<Vec<Sockets>, UdpError> {
    let mut receivers = Vec::with_capacity(request.workers);
    for worker in 0..request.workers {
        let listen = SocketAddr::new(address, families.port);
        let failed = |call, errno| UdpError::Call { address: listen, call, errno };
        let socket = new_socket(listen, worker)?;
        configure_receiver(&socket, listen, request, families)?;
        // The first binds alone: the kernel then refuses a port anybody has, also a user of SO_REUSEPORT. Set
        // afterwards on it and beforehand on the others, the option forms the group.
        let reuse = |socket: &OwnedFd| {
            sys::set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
                .map_err(|errno| failed("SO_REUSEPORT", errno))
        };
        if worker > 0 {
            reuse(&socket)?;
        }
        bind_to(&socket, listen)?;
        if worker == 0 {
            families.port = port_of(&socket).map_err(|errno| failed("getsockname", errno))?;
            if request.workers > 1 {
                reuse(&socket)?;
            }
        }
        receivers.push(socket);
    }
    if let [first, _, ..] = &receivers[..]
        && request.steer
        && let Err(errno) = steer_group(first, request)
    {
        families.refuse(Offload::Steering, format!("SO_ATTACH_REUSEPORT_CBPF: {errno}"));
    }
    let mut sockets = Vec::with_capacity(request.workers);
    for (worker, receive) in receivers.into_iter().enumerate() {
        let own_port = worker > 0 && request.steering == Steering::SourcePort;
        let send = if own_port { open_sender(address, worker, request, families)? } else { None };
        sockets.push(Sockets { receive, send });
    }
    Ok(sockets)
}

fn steer_group(first: &OwnedFd, request: &UdpRequest) -> nix::Result<()> {
    match request.steering {
        Steering::SourcePort => steer::spread_by_source_port(first, request.workers),
        Steering::ReceiverIndex => steer::spread_by_receiver_index(first, request.workers),
    }
}

/// A socket bound to a port whose low byte is (listen port + worker), deaf. `None` when all 110 such ports are taken.
fn open_sender(
    address: IpAddr,
    worker: usize,
    request: &UdpRequest,
    families: &mut Families,
) -> Result<Option<OwnedFd>, UdpError> {
    let residue = (families.port as usize + worker) % usize::from(steer::PORT_RESIDUES);
    let socket = new_socket(SocketAddr::new(address, 0), worker)?;
    let unbound = SocketAddr::new(address, 0);
    configure_family(&socket, unbound, request.fwmark)?;
    grant(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, request.buffer_bytes);
    // Deaf before it is bound, so that nothing is ever queued. The kernel raises 0 to its minimum (2304 bytes).
    let _ = sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0);
    if let Err(errno) = steer::drop_everything(&socket) {
        note(
            &mut families.notes,
            format!("udp: no drop filter on send sockets (SO_ATTACH_FILTER: {errno}); harmless"),
        );
    }
    for port in SEND_PORTS.filter(|port| usize::from(*port) % usize::from(steer::PORT_RESIDUES) == residue) {
        match bind_to(&socket, SocketAddr::new(address, port)) {
            Ok(()) => return Ok(Some(socket)),
            Err(UdpError::PortInUse { .. } | UdpError::NotPermitted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    note(
        &mut families.notes,
        format!(
            "udp: worker {worker} found no free send port equal to {residue} modulo {}; it sends from the listen port",
            steer::PORT_RESIDUES
        ),
    );
    Ok(None)
}

fn new_socket(address: SocketAddr, worker: usize) -> Result<OwnedFd, UdpError> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).map_err(
        |errno| match errno {
            Errno::EAFNOSUPPORT => UdpError::NoFamily { address: address.ip(), errno },
            Errno::EMFILE | Errno::ENFILE => UdpError::NoDescriptors { address, worker, errno },
            _ => UdpError::Call { address, call: "socket", errno },
        },
    )
}

fn bind_to(socket: &OwnedFd, address: SocketAddr) -> Result<(), UdpError> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).map_err(|errno| match errno {
        Errno::EADDRINUSE => UdpError::PortInUse { address },
        Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT if address.ip().is_unspecified() => {
            UdpError::NoFamily { address: address.ip(), errno }
        }
        Errno::EADDRNOTAVAIL => UdpError::AddressNotHere { address: address.ip() },
        Errno::EACCES => UdpError::NotPermitted { address },
        _ => UdpError::Call { address, call: "bind", errno },
    })
}

fn port_of(socket: &OwnedFd) -> nix::Result<u16> {
    let name: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let v4 = name.as_sockaddr_in().map(|name| name.port());
    Ok(v4.or_else(|| name.as_sockaddr_in6().map(|name| name.port())).unwrap_or(0))
}

/// What receiving and sending sockets share: IPv6 without mapped addresses, outer packets may be fragmented (IPv4's DF is
/// clear, IPv6 ignores what it learnt of the path's MTU), the mark.
fn configure_family(socket: &OwnedFd, address: SocketAddr, fwmark: u32) -> Result<(), UdpError> {
    if fwmark != 0 {
        set_mark(socket, fwmark).map_err(|errno| UdpError::Mark { fwmark, errno })?;
    }
    let options: &[(libc::c_int, libc::c_int, libc::c_int, &'static str)] = match address {
        SocketAddr::V4(_) => {
            &[(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT, "IP_MTU_DISCOVER")]
        }
        SocketAddr::V6(_) => &[
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1, "IPV6_V6ONLY"),
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT, "IPV6_MTU_DISCOVER"),
        ],
    };
    for &(level, name, value, call) in options {
        sys::set_option(socket, level, name, value).map_err(|errno| UdpError::Call {
            address,
            call,
            errno,
        })?;
    }
    Ok(())
}

fn configure_receiver(
    socket: &OwnedFd,
    address: SocketAddr,
    request: &UdpRequest,
    families: &mut Families,
) -> Result<(), UdpError> {
    configure_family(socket, address, request.fwmark)?;
    let [pktinfo, tos] = match address {
        SocketAddr::V4(_) => [
            (libc::IPPROTO_IP, libc::IP_PKTINFO, "IP_PKTINFO"),
            (libc::IPPROTO_IP, libc::IP_RECVTOS, "IP_RECVTOS"),
        ],
        SocketAddr::V6(_) => [
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO"),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, "IPV6_RECVTCLASS"),
        ],
    };
    let time = (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, "SO_TIMESTAMPNS");
    for (level, name, call) in [pktinfo, tos, time] {
        sys::set_option(socket, level, name, 1).map_err(|errno| UdpError::Call { address, call, errno })?;
    }
    if let Err(errno) = sys::set_option(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1) {
        note(
            &mut families.notes,
            format!("udp: what finds a socket full is not counted (SO_RXQ_OVFL: {errno}); harmless"),
        );
    }
    if families.gro
        && let Err(errno) = sys::set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
    {
        families.gro = false;
        families.refuse(Offload::Gro, format!("UDP_GRO: {errno}"));
    }
    grant(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, request.buffer_bytes);
    let granted = grant(socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, request.buffer_bytes);
    families.buffer_bytes = families.buffer_bytes.min(granted);
    Ok(())
}

/// Asks for `bytes` of socket buffer and returns what was granted. Both in the kernel's count, which doubles what it
/// is told.
pub(super) fn grant(socket: &OwnedFd, force: libc::c_int, plain: libc::c_int, bytes: usize) -> usize {
    let told = libc::c_int::try_from(bytes.div_ceil(2)).unwrap_or(libc::c_int::MAX / 2);
    if sys::set_option(socket, libc::SOL_SOCKET, force, told).is_err() {
        // Never fails: the kernel cuts it to net.core.rmem_max or wmem_max.
        let _ = sys::set_option(socket, libc::SOL_SOCKET, plain, told);
    }
    let granted = sys::option(socket, libc::SOL_SOCKET, plain).unwrap_or(0);
    usize::try_from(granted).unwrap_or(0)
}

fn note(notes: &mut Vec<String>, sentence: String) {
    if !notes.contains(&sentence) {
        notes.push(sentence);
    }
}

/// The most datagrams one UDP_SEGMENT send may carry on this kernel; 1 if it knows no UDP_SEGMENT.
///
/// Sends one-byte segments over loopback to find the limit. Where loopback is down or absent, the answer is
/// [`TRAIN_SEGMENTS_SAFE`].
///
/// Source: linux/udp.h UDP_MAX_SEGMENTS; net/ipv4/udp.c `udp_send_skb`.
pub fn train_segments_max() -> u16 {
    match probe_train_segments(Ipv4Addr::LOCALHOST.into()) {
        Ok(segments) => segments,
        Err(_) => probe_train_segments(Ipv6Addr::LOCALHOST.into()).unwrap_or(TRAIN_SEGMENTS_SAFE),
    }
}

/// # Errors
/// When the probe itself could not run: no loopback.
fn probe_train_segments(loopback: IpAddr) -> std::io::Result<u16> {
    let socket = UdpSocket::bind((loopback, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(socket.local_addr()?)?;
    if sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1).is_err() {
        return Ok(1);
    }
    for segments in TRAIN_SEGMENTS_PROBED {
        match socket.send(&vec![0; usize::from(segments)]) {
            Ok(_) => return Ok(segments),
            // EINVAL: above the limit. EIO: the device cannot segment.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(1)
}
