//! The TUN device: one interface, one queue per worker, offloads as far as the kernel has them.
//!
//! A queue is a file descriptor (O_NONBLOCK, O_CLOEXEC); a read gives [`VNET_HDR_BYTES`] of virtio header and one IP
//! packet or superpacket, a write takes the same.
//!
//! Source: linux/if_tun.h, Documentation/networking/tuntap.rst, drivers/net/tun.c `tun_set_iff` and `set_offload`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::{FileStat, Mode, fstat, stat};
use thiserror::Error;

use super::clock;
use super::sys::{self, FlagsRequest};
use crate::time::Span;
use crate::wire::vnet_hdr::VNET_HDR_BYTES;

/// Queues one TUN can have: MAX_TAP_QUEUES in drivers/net/tun.c.
pub const QUEUES_MAX: usize = 256;
/// Longest interface name in bytes: IFNAMSIZ without the NUL.
pub const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// How long a device still held by somebody may take to come free. A ring of a process that just ended is torn down
/// asynchronously and keeps its queues for about 100 ms, longer on a machine with much else to do.
const BUSY_PATIENCE: Span = Span::from_secs(3);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunRequest {
    /// Interface name, at most [`NAME_BYTES_MAX`] bytes; `"uring%d"` lets the kernel choose the first free number.
    pub name: String,
    /// Queues, 1 to [`QUEUES_MAX`]; one per worker.
    pub queues: usize,
    /// Offloads to ask for.
    pub offloads: OffloadSwitches,
}

/// Segmentation offloads the caller wants. Checksum offload is always asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadSwitches {
    /// TCP superpackets (TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN).
    pub tso: bool,
    /// UDP superpackets (TUN_F_USO4, TUN_F_USO6; kernel 6.2).
    pub uso: bool,
}

/// How a kernel refuses offloads that it does not know.
pub const TUNSETOFFLOAD_REFUSED: &str = "TUNSETOFFLOAD: EINVAL";

/// Offloads the kernel accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunOffloads {
    /// Packets may be read with a partial checksum and written with one.
    pub checksum: bool,
    /// TCP superpackets in both directions.
    pub tso: bool,
    /// UDP superpackets in both directions.
    pub uso: bool,
}

/// An open TUN. Dropping it closes the queues; a device that is not persistent disappears with the last one.
#[derive(Debug)]
pub struct Tun {
    /// The interface's real name (never a pattern).
    pub name: String,
    /// The interface's index.
    pub index: u32,
    /// The queues, in the order they were attached: element i is the kernel's queue i.
    pub queues: Vec<OwnedFd>,
    /// What the kernel accepted.
    pub offloads: TunOffloads,
    /// Whether this call created the device; false for a persistent one it attached to.
    pub created: bool,
}

/// Why a TUN could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TunError {
    /// A queue count outside 1..=256.
    #[error(
        "tun {name:?}: {queues} queues asked for, a TUN has 1 to {QUEUES_MAX}; lower the number of workers"
    )]
    QueueCount {
        /// As asked for.
        name: String,
        /// As asked for.
        queues: usize,
    },
    /// `/dev/net/tun` is not there or has no driver behind it.
    #[error(
        "/dev/net/tun: {errno}; load the driver with `modprobe tun`, in a container add `--device /dev/net/tun`"
    )]
    NoDriver {
        /// ENOENT, ENODEV or ENXIO.
        errno: Errno,
    },
    /// `/dev/net/tun` may not be opened.
    #[error(
        "/dev/net/tun: {errno}; its mode should be 0666, in a container add `--device /dev/net/tun` so that the device cgroup allows it"
    )]
    NoAccess {
        /// EACCES or EPERM.
        errno: Errno,
    },
    /// No right to create the device or to attach to it.
    #[error(
        "tun {name:?}: not permitted; run with CAP_NET_ADMIN (`setcap cap_net_admin+ep` on the program, in a container `--cap-add NET_ADMIN`), or let an administrator create it: `ip tuntap add dev {name} mode tun multi_queue vnet_hdr user $USER`"
    )]
    NotPermitted {
        /// As asked for.
        name: String,
    },
    /// The name belongs to another kind of interface.
    #[error(
        "tun {name:?}: an interface of that name exists and is not a TUN; choose another name or remove it: `ip link delete {name}`"
    )]
    NotATun {
        /// As asked for.
        name: String,
    },
    /// The device exists with a single queue.
    #[error(
        "tun {name:?}: exists, but was created without multi_queue; create it anew: `ip tuntap del dev {name} mode tun && ip tuntap add dev {name} mode tun multi_queue vnet_hdr`"
    )]
    NotMultiQueue {
        /// As asked for.
        name: String,
    },
    /// Another program holds queues of this device.
    #[error(
        "tun {name:?}: in use by another program ({queues} queues open); stop it (is a second instance running?) or choose another name"
    )]
    InUse {
        /// As asked for.
        name: String,
        /// Queues the others hold.
        queues: u32,
    },
    /// The process or system ran out of file descriptors.
    #[error("tun {name:?}: {errno} at queue {queue}; raise the limit: `ulimit -n 4096`")]
    NoDescriptors {
        /// As asked for.
        name: String,
        /// Index of the queue that failed.
        queue: usize,
        /// EMFILE or ENFILE.
        errno: Errno,
    },
    /// The descriptor handed over is not one of a TUN.
    #[error(
        "the descriptor handed over is not attached to a TUN ({errno}); hand over an open /dev/net/tun after TUNSETIFF"
    )]
    NotATunDescriptor {
        /// EBADFD: attached to nothing; ENOTTY or another: something else.
        errno: Errno,
    },
    /// The descriptor handed over belongs to a device of another kind.
    #[error(
        "tun {name:?}: the descriptor handed over was opened {flaw}; open it with IFF_TUN | IFF_NO_PI | IFF_VNET_HDR"
    )]
    UnfitDescriptor {
        /// The interface's name.
        name: String,
        /// What is wrong with its flags.
        flaw: &'static str,
    },
    /// A call failed in a way that has no better name.
    #[error("tun {name:?}: {call}: {errno}; `uringvpn probe` shows what this kernel offers")]
    Call {
        /// As asked for.
        name: String,
        /// The system call or request.
        call: &'static str,
        /// As the kernel gave it.
        errno: Errno,
    },
}

/// Opens or creates the device with all its queues, the 16-byte virtio header and the best offloads both sides have.
///
/// Attaches to a persistent multi-queue TUN that nobody else uses. Blocks for at most one second while a former owner
/// lets go of the device. The interface is left as it is otherwise: up or down, its addresses, its MTU.
///
/// # Panics
/// When the name is too long: the configuration checks it.
///
/// # Errors
/// [`TunError`]; nothing stays behind on an error, except the settings of a persistent device.
///
/// Source: linux/if_tun.h.
pub fn open(request: &TunRequest) -> Result<Tun, TunError> {
    assert!(
        request.name.len() <= NAME_BYTES_MAX,
        "{:?}: the configuration's names are checked",
        request.name
    );
    if !(1..=QUEUES_MAX).contains(&request.queues) {
        return Err(TunError::QueueCount { name: request.name.clone(), queues: request.queues });
    }
    let (first, name, created) = open_first(&request.name)?;
    let mut queues = Vec::with_capacity(request.queues);
    queues.push(first);
    for queue in 1..request.queues {
        let fd = open_control(&name, queue)?;
        attach(fd.as_fd(), &name, 0).map_err(|errno| attach_error(&name, errno))?;
        queues.push(fd);
    }
    let (index, offloads) = configure(queues[0].as_fd(), &name, request.offloads)?;
    Ok(Tun { name, index, queues, offloads, created })
}

/// Takes over a queue that somebody else opened (WG_TUN_FD). Sets header and offloads as [`open`] does; the device has
/// this one queue.
///
/// # Errors
/// [`TunError::NotATunDescriptor`], [`TunError::UnfitDescriptor`] or [`TunError::Call`]. The device is as it was, except
/// for its settings.
pub fn from_fd(fd: OwnedFd, offloads: OffloadSwitches) -> Result<Tun, TunError> {
    let attached = sys::tun_iff(fd.as_fd()).map_err(|errno| TunError::NotATunDescriptor { errno })?;
    let name = attached.name();
    let failed = |call, errno| TunError::Call { name: name.clone(), call, errno };
    let link = link(&name).map_err(|errno| failed("RTM_GETLINK", errno))?;
    let link = link.ok_or_else(|| failed("RTM_GETLINK", Errno::ENODEV))?;
    if let Some(flaw) = flaw(libc::c_int::from(attached.flags), &link) {
        return Err(TunError::UnfitDescriptor { name, flaw });
    }
    let status = fcntl(&fd, FcntlArg::F_GETFL).map_err(|errno| failed("F_GETFL", errno))?;
    let status = OFlag::from_bits_retain(status) | OFlag::O_NONBLOCK;
    fcntl(&fd, FcntlArg::F_SETFL(status)).map_err(|errno| failed("F_SETFL", errno))?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| failed("F_SETFD", errno))?;
    let (index, offloads) = configure(fd.as_fd(), &name, offloads)?;
    Ok(Tun { name, index, queues: vec![fd], offloads, created: false })
}

fn flaw(flags: libc::c_int, link: &LinkMessage) -> Option<&'static str> {
    if flags & libc::IFF_TUN == 0 {
        Some("as a TAP (Ethernet)")
    } else if tun_fact(link, sys::IFLA_TUN_PI) != Some(0) {
        Some("without IFF_NO_PI (four bytes in front of every packet)")
    } else if flags & libc::IFF_VNET_HDR == 0 {
        Some("without IFF_VNET_HDR (no offloads)")
    } else {
        None
    }
}

/// Sets header size and offloads, which belong to the device: once, not per queue, and never as a former owner left
/// them. Returns the interface's index and the offloads.
fn configure(
    device: BorrowedFd<'_>,
    name: &str,
    wanted: OffloadSwitches,
) -> Result<(u32, TunOffloads), TunError> {
    let failed = |call| move |errno| TunError::Call { name: name.to_owned(), call, errno };
    sys::tun_set_vnet_hdr_bytes(device, VNET_HDR_BYTES as libc::c_int).map_err(failed("TUNSETVNETHDRSZ"))?;
    let offloads = set_offloads(device, wanted).map_err(failed("TUNSETOFFLOAD"))?;
    let index = nix::net::if_::if_nametoindex(name).map_err(failed("if_nametoindex"))?;
    Ok((index, offloads))
}

/// Where a TUN's device is, seen from the calling thread.
#[derive(Debug)]
pub enum Whereabouts {
    /// It was deleted.
    Gone,
    /// In our network namespace.
    Here {
        /// Its name now.
        name: String,
    },
    /// It was moved to another one, where its index may be a different one.
    Elsewhere {
        /// Its name now.
        name: String,
        /// That network namespace.
        netns: OwnedFd,
    },
}

/// Asks a queue where its device is. Moved to another network namespace it goes on working, although a watch in the old
/// one reports it as deleted.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN in the device's namespace, EINVAL below Linux 5.8, ENOENT without /proc.
pub fn whereabouts(queue: &OwnedFd) -> nix::Result<Whereabouts> {
    let netns = match sys::tun_netns(queue.as_fd()) {
        Err(Errno::EBADFD) => return Ok(Whereabouts::Gone),
        netns => netns?,
    };
    let name = match sys::tun_iff(queue.as_fd()) {
        Err(Errno::EBADFD) => return Ok(Whereabouts::Gone),
        attached => attached?.name(),
    };
    let identity = |stat: FileStat| (stat.st_dev, stat.st_ino);
    if identity(fstat(&netns)?) == identity(stat("/proc/thread-self/ns/net")?) {
        return Ok(Whereabouts::Here { name });
    }
    Ok(Whereabouts::Elsewhere { name, netns })
}

/// Attaches the first queue. Returns it with the device's real name and whether the device is new.
fn open_first(name: &str) -> Result<(OwnedFd, String, bool), TunError> {
    let fd = open_control(name, 0)?;
    let give_up = clock::now() + BUSY_PATIENCE;
    loop {
        // IFF_TUN_EXCL tells creating from attaching: without it a second instance would join the first one's
        // device and take a part of its flows.
        match attach(fd.as_fd(), name, libc::IFF_TUN_EXCL) {
            Ok(real) => return Ok((fd, real, true)),
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(attach_error(name, errno)),
        }
        let busy = match existing(name) {
            Ok(Existing::Idle) => match attach(fd.as_fd(), name, 0) {
                Ok(real) => return Ok((fd, real, false)),
                Err(Errno::EBUSY) => 0,
                Err(errno) => return Err(attach_error(name, errno)),
            },
            Ok(Existing::Gone) => 0,
            Ok(Existing::InUse { queues }) => queues,
            Ok(Existing::SingleQueue) => return Err(TunError::NotMultiQueue { name: name.to_owned() }),
            Ok(Existing::NotATun) => return Err(TunError::NotATun { name: name.to_owned() }),
            Err(errno) => return Err(TunError::Call { name: name.to_owned(), call: "RTM_GETLINK", errno }),
        };
        if clock::now() >= give_up {
            return Err(TunError::InUse { name: name.to_owned(), queues: busy });
        }
        thread::sleep(BUSY_PAUSE);
    }
}

fn open_control(name: &str, queue: usize) -> Result<OwnedFd, TunError> {
    nix::fcntl::open("/dev/net/tun", OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => TunError::NoDriver { errno },
            Errno::EACCES | Errno::EPERM => TunError::NoAccess { errno },
            Errno::EMFILE | Errno::ENFILE => TunError::NoDescriptors { name: name.to_owned(), queue, errno },
            _ => TunError::Call { name: name.to_owned(), call: "open /dev/net/tun", errno },
        })
}

fn attach(fd: BorrowedFd<'_>, name: &str, extra: libc::c_int) -> nix::Result<String> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | extra;
    let mut request = FlagsRequest::new(name, flags);
    sys::tun_set_iff(fd, &mut request)?;
    Ok(request.name())
}

fn attach_error(name: &str, errno: Errno) -> TunError {
    let name = name.to_owned();
    match errno {
        Errno::EPERM => TunError::NotPermitted { name },
        Errno::EBUSY => TunError::InUse { name, queues: 0 },
        Errno::E2BIG => TunError::InUse { name, queues: QUEUES_MAX as u32 },
        _ => TunError::Call { name, call: "TUNSETIFF", errno },
    }
}

/// Asks for the most first; a kernel refuses a set with an unknown bit as a whole (EINVAL).
fn set_offloads(device: BorrowedFd<'_>, wanted: OffloadSwitches) -> nix::Result<TunOffloads> {
    let ladder = [
        TunOffloads { checksum: true, tso: wanted.tso, uso: wanted.uso },
        TunOffloads { checksum: true, tso: wanted.tso, uso: false },
        TunOffloads { checksum: true, tso: false, uso: false },
    ];
    for offloads in ladder {
        match sys::tun_set_offload(device, offload_flags(offloads)) {
            Ok(()) => return Ok(offloads),
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    sys::tun_set_offload(device, 0)?;
    Ok(TunOffloads::default())
}

fn offload_flags(offloads: TunOffloads) -> libc::c_uint {
    let mut flags = 0;
    if offloads.checksum {
        flags |= libc::TUN_F_CSUM;
    }
    if offloads.tso {
        flags |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    }
    if offloads.uso {
        flags |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    flags
}

/// The interface that already has the name we want.
enum Existing {
    Gone,
    NotATun,
    SingleQueue,
    InUse { queues: u32 },
    Idle,
}

/// Asks rtnetlink who has `name`: TUNSETIFF alone would answer EINVAL to three different faults, and would let us join
/// a multi-queue device that another process is using.
fn existing(name: &str) -> nix::Result<Existing> {
    Ok(link(name)?.map_or(Existing::Gone, |link| classify(&link)))
}

/// The interface of that name; `None` if there is none.
fn link(name: &str) -> nix::Result<Option<LinkMessage>> {
    let os = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message =
        NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetLink(question)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE).map_err(os)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(os)?;
    socket.send(&bytes, 0).map_err(os)?;
    let (bytes, _) = socket.recv_from_full().map_err(os)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(|_| Errno::EBADMSG)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
        NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => Ok(None),
        NetlinkPayload::Error(error) => Err(Errno::from_raw(-error.raw_code())),
        _ => Err(Errno::EBADMSG),
    }
}

fn classify(link: &LinkMessage) -> Existing {
    let number = |wanted| tun_fact(link, wanted);
    let queues = number(sys::IFLA_TUN_NUM_QUEUES).unwrap_or(0)
        + number(sys::IFLA_TUN_NUM_DISABLED_QUEUES).unwrap_or(0);
    if number(sys::IFLA_TUN_TYPE) != Some(libc::IFF_TUN as u32) {
        Existing::NotATun
    } else if number(sys::IFLA_TUN_MULTI_QUEUE) != Some(1) {
        Existing::SingleQueue
    } else if queues > 0 || number(sys::IFLA_TUN_PERSIST) != Some(1) {
        // Not persistent and without queues: on its way out.
        Existing::InUse { queues }
    } else {
        Existing::Idle
    }
}

/// One of the numbers `IFLA_TUN_*`; `None` for an interface of another kind.
fn tun_fact(link: &LinkMessage, wanted: u16) -> Option<u32> {
    let facts = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Tun(facts)) => Some(facts),
            _ => None,
        }),
        _ => None,
    })?;
    let fact = facts.iter().find(|fact| fact.kind() == wanted)?;
    let mut value = [0; 4];
    match fact.value_len() {
        1 => {
            fact.emit_value(&mut value[..1]);
            Some(u32::from(value[0]))
        }
        4 => {
            fact.emit_value(&mut value);
            Some(u32::from_ne_bytes(value))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_offload_ladder_is_a_set_the_kernel_knows() {
        let all = offload_flags(TunOffloads { checksum: true, tso: true, uso: true });
        assert_eq!(all, 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40);
        assert_eq!(offload_flags(TunOffloads { checksum: true, ..Default::default() }), 1);
        assert_eq!(offload_flags(TunOffloads::default()), 0);
    }

    #[test]
    fn an_error_says_what_on_which_object_and_what_to_do() {
        let error = attach_error("wg0", Errno::EPERM).to_string();
        assert!(error.contains("\"wg0\"") && error.contains("CAP_NET_ADMIN"), "{error}");
        let error = TunError::NotMultiQueue { name: "wg0".into() }.to_string();
        assert!(error.contains("ip tuntap add dev wg0 mode tun multi_queue vnet_hdr"), "{error}");
    }
}
