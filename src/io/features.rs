//! What the running kernel offers, found out by trying: the table behind `uringvpn probe`.
//!
//! Nothing is derived from a version number; `since` is for the reader. A scratch TUN `uvprobe%d` exists for a moment
//! if we may create one, sockets talk to themselves over loopback, rings are set up and torn down.
//!
//! The table [`probe`] returns is also the list of what we do without each feature.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, Probe, cqueue, opcode, squeue};
use nix::errno::Errno;

use super::cmsg::SendControl;
use super::sys;
use super::tun::{self, OffloadSwitches, TUNSETOFFLOAD_REFUSED, Tun, TunError, TunRequest};
use super::udp::{self, Steering, UdpGroup, UdpRequest};
use crate::stats::offloads::{Offload, OffloadInfo};

/// One row: something we use if the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Part of the table it belongs to.
    pub group: Group,
    /// What it is, with the kernel's own name.
    pub name: &'static str,
    /// Whether it is there.
    pub state: State,
    /// First Linux version that has it.
    pub since: &'static str,
    /// What we do without it.
    pub without: &'static str,
}

/// Part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The TUN device.
    Tun,
    /// UDP sockets.
    Udp,
    /// The ring.
    IoUring,
}

/// Whether a feature is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Yes,
    /// It does not, and why.
    No(String),
    /// We could not try it, and why: usually for lack of rights.
    Unknown(String),
}

impl State {
    fn of<T>(outcome: nix::Result<T>) -> State {
        match outcome {
            Ok(_) => State::Yes,
            Err(errno) => State::No(errno.to_string()),
        }
    }

    fn when(there: bool, otherwise: &str) -> State {
        if there { State::Yes } else { State::No(otherwise.to_owned()) }
    }
}

/// The kernel's name, release and machine.
pub fn kernel() -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/sys/kernel/{file}")).unwrap_or_default();
    let words = ["ostype", "osrelease"].map(read);
    words.map(|word| word.trim().to_owned()).join(" ") + " " + std::env::consts::ARCH
}

/// Tries everything. Takes some milliseconds, half a second if io_uring misbehaves; never fails: a row says so instead.
pub fn probe() -> Vec<Feature> {
    let mut features = probe_tun();
    features.extend(probe_udp());
    features.extend(probe_io_uring());
    features
}

/// Prints the table, one line per feature, grouped, columns aligned; a second line where something is missing.
///
/// # Errors
/// Those of `out`.
pub fn print(features: &[Feature], out: &mut impl Write) -> io::Result<()> {
    let width = features.iter().map(|feature| feature.name.chars().count()).max().unwrap_or(0);
    let mut group = None;
    for feature in features {
        if group != Some(feature.group) {
            let gap = if group.is_none() { "" } else { "\n" };
            let title = match feature.group {
                Group::Tun => "TUN",
                Group::Udp => "UDP",
                Group::IoUring => "io_uring",
            };
            writeln!(out, "{gap}{title:<pad$}  {:<7}  since Linux", "here", pad = width + 2)?;
            group = Some(feature.group);
        }
        let (word, reason) = match &feature.state {
            State::Yes => ("yes", None),
            State::No(reason) => ("no", Some(reason)),
            State::Unknown(reason) => ("unknown", Some(reason)),
        };
        writeln!(out, "  {:<width$}  {word:<7}  {}", feature.name, feature.since)?;
        if let Some(reason) = reason {
            writeln!(out, "      {reason}")?;
            writeln!(out, "      without it: {}", feature.without)?;
        }
    }
    Ok(())
}

/// The row of something that a running tunnel says more about: `uringvpn show`.
fn offload(group: Group, offload: Offload, state: State) -> Feature {
    let OffloadInfo { what, since, without, .. } = offload.info();
    Feature { group, name: what, state, since, without }
}

fn probe_tun() -> Vec<Feature> {
    let row = |name, state, since, without| Feature { group: Group::Tun, name, state, since, without };
    let request = TunRequest {
        name: "uvprobe%d".to_owned(),
        queues: 2,
        offloads: OffloadSwitches { tso: true, uso: true },
    };
    let opened = tun::open(&request);
    let device = match &opened {
        Err(error @ (TunError::NoDriver { .. } | TunError::NoAccess { .. })) => State::No(error.to_string()),
        _ => State::Yes,
    };
    let needs_device = |have: &dyn Fn(&Tun) -> State| match &opened {
        Ok(tun) => have(tun),
        Err(TunError::NoDriver { .. } | TunError::NoAccess { .. }) => {
            State::Unknown("no /dev/net/tun to try it on".to_owned())
        }
        Err(TunError::NotPermitted { .. }) => {
            State::Unknown("not permitted to create a TUN; run as root or with CAP_NET_ADMIN".to_owned())
        }
        Err(error) => State::No(error.to_string()),
    };
    let refused = TUNSETOFFLOAD_REFUSED;
    vec![
        row("device /dev/net/tun", device, "2.4", "no tunnel"),
        row(
            "several queues, 16-byte virtio header (IFF_MULTI_QUEUE, TUNSETVNETHDRSZ)",
            needs_device(&|_| State::Yes),
            "3.8",
            "no tunnel",
        ),
        row(
            "checksum offload (TUN_F_CSUM)",
            needs_device(&|tun| State::when(tun.offloads.checksum, refused)),
            "2.6.27",
            "packets one by one, each checked by the kernel",
        ),
        offload(Group::Tun, Offload::Tso, needs_device(&|tun| State::when(tun.offloads.tso, refused))),
        offload(Group::Tun, Offload::Uso, needs_device(&|tun| State::when(tun.offloads.uso, refused))),
    ]
}

fn probe_udp() -> Vec<Feature> {
    let row = |name, state, since, without| Feature { group: Group::Udp, name, state, since, without };
    const BUFFER_BYTES: usize = 8 << 20;
    let open = |address: IpAddr| {
        udp::open(&UdpRequest {
            address: Some(address),
            port: 0,
            workers: 2,
            gro: true,
            gso: true,
            buffer_bytes: BUFFER_BYTES,
            steering: Steering::SourcePort,
            steer: true,
            fwmark: 0,
            patience: crate::time::Span::ZERO,
        })
    };
    let v4 = open(Ipv4Addr::UNSPECIFIED.into());
    let v6 = open(Ipv6Addr::UNSPECIFIED.into());
    let family = |group: &Result<UdpGroup, udp::UdpError>| match group {
        Ok(_) => State::Yes,
        Err(error) => State::No(error.to_string()),
    };
    let either = v4.as_ref().or(v6.as_ref());
    let needs_socket = |have: &dyn Fn(&UdpGroup) -> State| match either {
        Ok(group) => have(group),
        Err(_) => State::Unknown("no socket to try it on".to_owned()),
    };
    let taken = |offload| {
        needs_socket(&|group| group.refusal(offload).map_or(State::Yes, |how| State::No(how.to_owned())))
    };
    vec![
        row("IPv4 sockets", family(&v4), "1.0", "IPv6 only"),
        row("IPv6 sockets", family(&v6), "2.6", "IPv4 only"),
        offload(Group::Udp, Offload::Gso, taken(Offload::Gso)),
        row(
            "trains of 128 datagrams",
            needs_socket(&|group| match group.train_segments_max {
                128.. => State::Yes,
                _ if !loopback_is_up() => State::Unknown(LOOPBACK_IS_DOWN.to_owned()),
                limit => State::No(format!("at most {limit}")),
            }),
            "6.9, stable trees",
            "trains of 64, no loss at an MTU above 1000",
        ),
        offload(Group::Udp, Offload::Gro, taken(Offload::Gro)),
        offload(Group::Udp, Offload::Steering, taken(Offload::Steering)),
        row(
            "socket buffers of 8 MiB (SO_RCVBUFFORCE)",
            needs_socket(&|group| {
                State::when(
                    group.buffer_bytes >= BUFFER_BYTES,
                    &format!(
                        "{} bytes; needs CAP_NET_ADMIN or a higher net.core.rmem_max",
                        group.buffer_bytes
                    ),
                )
            }),
            "2.6.14",
            "bursts may be lost, counted as overflown; the default buffer holds three trains",
        ),
        row("kernel receive time (SO_TIMESTAMPNS)", State::of(timestamps()), "2.6.22", "no tunnel"),
    ]
}

fn timestamps() -> nix::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))
        .map_err(errno_of)?;
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

fn probe_io_uring() -> Vec<Feature> {
    let row = |name, state, since, without| Feature { group: Group::IoUring, name, state, since, without };
    const SYSCALLS: &str = "plain system calls (epoll, readv, sendmsg): up to 10 % slower";
    const BUFFERS: &str = "plain system calls, see above";
    let ring = IoUring::new(8).map_err(errno_of);
    let allowed = match &ring {
        Ok(_) => State::Yes,
        Err(errno) => State::No(io_uring_refusal(*errno)),
    };
    let needs_ring = |have: &dyn Fn(&IoUring) -> State| match &ring {
        Ok(ring) => have(ring),
        Err(_) => State::Unknown("no ring to try it on".to_owned()),
    };
    let setup = |flags: &dyn Fn(&mut Builder)| {
        needs_ring(&|_| {
            let mut builder = IoUring::builder();
            flags(&mut builder);
            State::of(builder.build(8).map_err(errno_of))
        })
    };
    // The flags of `Builder` return the builder; here only their effect is wanted.
    vec![
        row("io_uring_setup", allowed, "5.1", SYSCALLS),
        row(
            "one submitting thread (SINGLE_ISSUER)",
            setup(&|builder| {
                builder.setup_single_issuer();
            }),
            "6.0",
            SYSCALLS,
        ),
        offload(
            Group::IoUring,
            Offload::DeferTaskrun,
            setup(&|builder| {
                builder.setup_single_issuer().setup_defer_taskrun();
            }),
        ),
        row(
            "a bad submission does not stop the batch (SUBMIT_ALL)",
            setup(&|builder| {
                builder.setup_submit_all();
            }),
            "5.18",
            SYSCALLS,
        ),
        row(
            "no index array (NO_SQARRAY)",
            setup(&|builder| {
                builder.setup_no_sqarray();
            }),
            "6.6",
            "one more cache line per submission",
        ),
        row(
            "registered ring descriptor",
            needs_ring(&|ring| State::of(ring.submitter().register_ring_fd().map_err(errno_of))),
            "5.18",
            "one descriptor look-up per call",
        ),
        row("registered files", needs_ring(&|_| State::of(registered_files())), "5.1", SYSCALLS),
        row("provided buffer rings", needs_ring(&|_| State::of(buffer_ring())), "5.19", BUFFERS),
        offload(Group::IoUring, Offload::MultishotRead, needs_ring(&|_| State::of(read_multishot()))),
        row("multishot recvmsg", needs_ring(&|_| needs_loopback(receive_multishot)), "6.0", BUFFERS),
        row(
            "sendmsg with UDP_SEGMENT",
            needs_ring(&|_| needs_loopback(send_train)),
            "5.3",
            "one send per datagram: several times slower",
        ),
        row(
            "sync cancellation, for a quick end (REGISTER_SYNC_CANCEL)",
            needs_ring(&|ring| {
                let cancel = io_uring::types::CancelBuilder::any();
                match ring.submitter().register_sync_cancel(None, cancel).map_err(errno_of) {
                    Ok(()) | Err(Errno::ENOENT) => State::Yes, // nothing there to cancel
                    Err(errno) => State::No(errno.to_string()),
                }
            }),
            "6.0",
            "a stopped tunnel may hold its TUN for 100 ms longer",
        ),
        row(
            "no completion is lost (FEAT_NODROP)",
            needs_ring(&|ring| State::when(ring.params().is_feature_nodrop(), "feature bit not set")),
            "5.5",
            SYSCALLS,
        ),
        row("all operations known to the kernel", needs_ring(&|ring| operations(ring)), "5.6", BUFFERS),
    ]
}

const LOOPBACK_IS_DOWN: &str = "loopback is down; `ip link set lo up`";

fn needs_loopback(attempt: impl FnOnce() -> nix::Result<()>) -> State {
    if loopback_is_up() { State::of(attempt()) } else { State::Unknown(LOOPBACK_IS_DOWN.to_owned()) }
}

fn loopback_is_up() -> bool {
    loopback_socket().is_ok_and(|(socket, address)| socket.send_to(b"x", address).is_ok())
}

fn operations(ring: &IoUring) -> State {
    let mut probe = Probe::new();
    if let Err(error) = ring.submitter().register_probe(&mut probe) {
        return State::No(error.to_string());
    }
    let ours = [
        ("READ", opcode::Read::CODE),
        ("WRITEV", opcode::Writev::CODE),
        ("SENDMSG", opcode::SendMsg::CODE),
        ("RECVMSG", opcode::RecvMsg::CODE),
        ("POLL_ADD", opcode::PollAdd::CODE),
    ];
    let missing: Vec<&str> =
        ours.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name).collect();
    State::when(missing.is_empty(), &format!("missing: {}", missing.join(", ")))
}

fn registered_files() -> nix::Result<()> {
    let ring = IoUring::new(8).map_err(errno_of)?;
    let (socket, _) = loopback_socket()?;
    ring.submitter().register_files(&[socket.as_raw_fd()]).map_err(errno_of)
}

fn buffer_ring() -> nix::Result<()> {
    let ring = IoUring::new(8).map_err(errno_of)?;
    provide_buffer(&ring)
}

fn read_multishot() -> nix::Result<()> {
    let mut ring = IoUring::new(8).map_err(errno_of)?;
    provide_buffer(&ring)?;
    let (reader, writer): (OwnedFd, OwnedFd) = nix::unistd::pipe()?;
    let entry = opcode::ReadMulti::new(Fd(reader.as_raw_fd()), 0, BUFFER_GROUP).build();
    // SAFETY: the entry points at no memory; the kernel writes into the leaked buffer of `provide_buffer`.
    unsafe { submit(&mut ring, &entry)? };
    nix::unistd::write(&writer, b"x")?;
    multishot_outcome(&mut ring)
}

fn receive_multishot() -> nix::Result<()> {
    let mut ring = IoUring::new(8).map_err(errno_of)?;
    provide_buffer(&ring)?;
    let (socket, address) = loopback_socket()?;
    // SAFETY: (R) all-zero is a valid msghdr: no name, no vectors, no control.
    let header: &'static libc::msghdr = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    let entry = opcode::RecvMsgMulti::new(Fd(socket.as_raw_fd()), header, BUFFER_GROUP).build();
    // SAFETY: the header is leaked, so it outlives the request; so is the buffer of `provide_buffer`.
    unsafe { submit(&mut ring, &entry)? };
    socket.send_to(b"x", address).map_err(errno_of)?;
    multishot_outcome(&mut ring)
}

fn multishot_outcome(ring: &mut IoUring) -> nix::Result<()> {
    let (_, flags) = completion(ring)?;
    // Without F_MORE it was a single shot.
    if cqueue::more(flags) { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}

fn send_train() -> nix::Result<()> {
    let mut ring = IoUring::new(8).map_err(errno_of)?;
    let (socket, address) = loopback_socket()?;
    socket.connect(address).map_err(errno_of)?;
    let mut control = SendControl::new();
    control.segment(100);
    // Leaked, a few bytes per probe: then nothing the request points at can go before it.
    let control: &'static mut [u8] = Box::leak(control.bytes().to_vec().into_boxed_slice());
    let payload: &'static mut [u8] = Box::leak(vec![0_u8; 200].into_boxed_slice());
    let vector: &'static mut libc::iovec =
        Box::leak(Box::new(libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() }));
    // SAFETY: (R) all-zero is a valid msghdr.
    let header: &'static mut libc::msghdr = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    header.msg_iov = vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    let entry = opcode::SendMsg::new(Fd(socket.as_raw_fd()), header).build();
    // SAFETY: header, vector, payload and control bytes are leaked, so they outlive the request.
    unsafe { submit(&mut ring, &entry)? };
    completion(&mut ring).map(drop)
}

/// A non-blocking socket on loopback and its address.
fn loopback_socket() -> nix::Result<(UdpSocket, std::net::SocketAddr)> {
    let open = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .or_else(|_| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    open().map_err(errno_of)
}

const BUFFER_GROUP: u16 = 1;

#[repr(C, align(4096))]
struct Page([u8; 4096]);
const _: () = assert!(size_of::<Page>() == 4096 && size_of::<BufRingEntry>() == 16);

/// Gives `ring` one buffer of a page, in a buffer ring of one entry.
fn provide_buffer(ring: &IoUring) -> nix::Result<()> {
    // Leaked, two pages per probe: the kernel may write to them until it has torn the ring down, whenever that is.
    let entries: *mut BufRingEntry = std::ptr::from_mut(Box::leak(Box::new(Page([0; 4096])))).cast();
    let buffer: &'static mut Page = Box::leak(Box::new(Page([0; 4096])));
    // SAFETY: `entries` is a leaked page, aligned for a buffer ring and longer than one entry of 16 bytes.
    unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, 1, BUFFER_GROUP, 0) }
        .map_err(errno_of)?;
    // SAFETY: entry 0 lies in the page, and until the tail moves the kernel does not read it.
    let entry = unsafe { &mut *entries };
    entry.set_addr(std::ptr::from_mut(buffer) as u64);
    entry.set_len(4096);
    entry.set_bid(0);
    // SAFETY: the tail is an aligned u16 inside entry 0; the kernel only reads it, so an atomic store is enough.
    let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) };
    // Pairs with the kernel's acquire load of the tail: the entry is complete before it is visible.
    tail.store(1, Ordering::Release);
    Ok(())
}

/// Submits `entry` without waiting.
///
/// # Safety
/// What `entry` points at must outlive the request.
unsafe fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> nix::Result<()> {
    // SAFETY: passed on to our caller.
    unsafe { ring.submission().push(entry) }.map_err(|_| Errno::EBUSY)?;
    ring.submit().map_err(errno_of).map(drop)
}

/// The next completion's result and flags; ETIME after 200 ms.
fn completion(ring: &mut IoUring) -> nix::Result<(i32, u32)> {
    let patience = Timespec::new().nsec(200_000_000);
    ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&patience)).map_err(errno_of)?;
    let entry = ring.completion().next().ok_or(Errno::ETIME)?;
    match entry.result() {
        result if result < 0 => Err(Errno::from_raw(-result)),
        result => Ok((result, entry.flags())),
    }
}

fn errno_of(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL))
}

/// Why `io_uring_setup` failed with `errno` and how to get it, in one line.
///
/// Reads /proc to tell a sysctl from a seccomp filter.
///
/// Source: io_uring_setup(2); Documentation/admin-guide/sysctl/kernel.rst `io_uring_disabled`.
pub fn io_uring_refusal(errno: Errno) -> String {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered =
        status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
    explain_refusal(errno, disabled.and_then(|value| value.trim().parse().ok()), filtered)
}

fn explain_refusal(errno: Errno, disabled: Option<u32>, filtered: bool) -> String {
    const SECCOMP: &str = "a seccomp filter forbids it (container runtimes do by default); \
         docker and podman: --security-opt seccomp=PROFILE with io_uring_setup, io_uring_enter and \
         io_uring_register allowed, or seccomp=unconfined";
    let cause = match (errno, disabled) {
        (Errno::EPERM, Some(1)) => {
            "sysctl kernel.io_uring_disabled is 1 (only CAP_SYS_ADMIN and the group kernel.io_uring_group); \
             run as root or `sysctl -w kernel.io_uring_disabled=0`"
        }
        (Errno::EPERM, Some(disabled)) if disabled >= 2 => {
            "sysctl kernel.io_uring_disabled is 2 (nobody); `sysctl -w kernel.io_uring_disabled=0`"
        }
        (Errno::EPERM | Errno::EACCES | Errno::ENOSYS, _) if filtered => SECCOMP,
        (Errno::EPERM | Errno::EACCES, _) => {
            "neither sysctl nor seccomp forbids it, so a security module does (SELinux, AppArmor); see its audit log"
        }
        (Errno::ENOSYS, _) => "this kernel is built without it (CONFIG_IO_URING) or older than 5.1",
        (Errno::EINVAL, _) => "this kernel is older than 6.0 and lacks SINGLE_ISSUER; upgrade it",
        (Errno::ENOMEM, _) => "not enough memory, or more locked than allowed; raise `ulimit -l`",
        (Errno::EMFILE | Errno::ENFILE, _) => "too many open files; raise `ulimit -n`",
        _ => "unexpected; `uringvpn probe` shows what this kernel offers",
    };
    format!("io_uring: {}: {cause}", errno_name(errno))
}

/// "EPERM" rather than "EPERM: Operation not permitted": the cause follows.
fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_never_panics_and_every_row_says_what_we_do_without() {
        let features = probe();
        assert!(features.len() > 20);
        for feature in &features {
            assert!(!feature.without.is_empty() && !feature.since.is_empty(), "{feature:?}");
            if let State::No(reason) | State::Unknown(reason) = &feature.state {
                assert!(!reason.is_empty(), "{feature:?}");
            }
        }
        let mut table = Vec::new();
        print(&features, &mut table).unwrap();
        println!("{}", String::from_utf8(table).unwrap());
    }

    #[test]
    fn the_table_is_grouped_and_aligned_and_explains_what_is_missing() {
        let row = |group, name, state| Feature { group, name, state, since: "6.2", without: "slower" };
        let mut table = Vec::new();
        let features = [
            row(Group::Tun, "short", State::Yes),
            row(Group::Tun, "much longer", State::No("EINVAL".into())),
            row(Group::IoUring, "ring", State::Unknown("no rights".into())),
        ];
        print(&features, &mut table).unwrap();
        let expected = "\
TUN            here     since Linux
  short        yes      6.2
  much longer  no       6.2
      EINVAL
      without it: slower

io_uring       here     since Linux
  ring         unknown  6.2
      no rights
      without it: slower
";
        assert_eq!(String::from_utf8(table).unwrap(), expected);
    }

    #[test]
    fn a_refused_ring_is_explained_by_its_cause_and_the_fix() {
        for (errno, disabled, filtered, wanted) in [
            (Errno::EPERM, Some(2), true, "io_uring_disabled=0"),
            (Errno::EPERM, Some(1), false, "io_uring_group"),
            (Errno::EPERM, Some(0), true, "seccomp=unconfined"),
            (Errno::EPERM, None, true, "seccomp=unconfined"),
            (Errno::ENOSYS, None, true, "seccomp=unconfined"),
            (Errno::ENOSYS, None, false, "CONFIG_IO_URING"),
            (Errno::EPERM, Some(0), false, "SELinux"),
            (Errno::ENOMEM, Some(0), false, "ulimit -l"),
        ] {
            let line = explain_refusal(errno, disabled, filtered);
            assert!(line.contains(wanted) && line.contains(&format!("{errno:?}")), "{line}");
            assert!(!line.contains('\n') && !line.contains("  "), "{line}");
        }
    }
}
