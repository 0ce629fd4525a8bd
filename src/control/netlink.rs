//! Link state, addresses and routes over rtnetlink, blocking, without a runtime.
//!
//! [`Netlink`] asks and changes; every call is one request and one answer. [`LinkWatch`] listens: it tells when our
//! device goes up, down or away. Both stay in the network namespace they were opened in: the caller's, or the one that
//! our device was moved to.
//!
//! Source: rtnetlink(7), netlink(7), linux/rtnetlink.h.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::thread;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// Multicast group of link changes. linux/rtnetlink.h.
const RTMGRP_LINK: u32 = 1;
/// Attribute of an error answer with the kernel's own words. linux/netlink.h.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Bytes of the request's header that an error answer repeats (NETLINK_CAP_ACK), before the attributes.
const NLMSGHDR_BYTES: usize = 16;

/// A request that did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The object is there already (EEXIST); callers that add addresses and routes usually go on.
    #[error("{object}: exists already")]
    Exists {
        /// What was to be added, and where.
        object: String,
    },
    /// The kernel refused.
    #[error("{object}: {action}: {errno}{}; {}", Reason(message), hint(*errno))]
    Refused {
        /// What was to be changed.
        object: String,
        /// To what.
        action: String,
        /// The kernel's number.
        errno: Errno,
        /// The kernel's own words (NETLINK_EXT_ACK), if it had any.
        message: Option<String>,
    },
    /// The netlink socket itself failed.
    #[error("netlink: {call}: {errno}; network configuration is not possible here (seccomp?)")]
    Socket {
        /// The system call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// The kernel's answer could not be read.
    #[error("netlink: answer not understood: {0}; please report this with your kernel version")]
    Answer(String),
}

struct Reason<'a>(&'a Option<String>);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(words) => write!(f, " ({words})"),
            None => Ok(()),
        }
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => "run with CAP_NET_ADMIN",
        Errno::ENODEV => "the device is gone",
        Errno::ENETDOWN => "set the device up first",
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => "this kernel or device does not have it",
        _ => "check the value, and the device with `ip -d link show`",
    }
}

/// What we want to know about an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface's index.
    pub index: u32,
    /// Whether it is administratively up (IFF_UP).
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A connection to the kernel's routing subsystem.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens the connection; needs no rights.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn connect() -> Result<Netlink, NetlinkError> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(failed("socket"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        // Only for better messages; kernels before 4.3 and 4.12 lack them.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Opens the connection in another network namespace; the caller stays in its own.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`]; EPERM without CAP_SYS_ADMIN here and there.
    pub fn connect_in(netns: BorrowedFd<'_>) -> Result<Netlink, NetlinkError> {
        inside(netns, Netlink::connect)
    }

    /// Looks up an interface by name; `None` if there is none.
    ///
    /// # Errors
    /// [`NetlinkError`], never [`NetlinkError::Exists`].
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.look_up(question, format!("link {name:?}"))
    }

    /// Looks up an interface by index; `None` if there is none.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        self.look_up(question, format!("link {index}"))
    }

    fn look_up(&mut self, question: LinkMessage, object: String) -> Result<Option<Link>, NetlinkError> {
        match self.ask(RouteNetlinkMessage::GetLink(question), 0) {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(read_link(&link))),
            Ok(other) => Err(NetlinkError::Answer(format!("{other:?} to RTM_GETLINK"))),
            Err(Refusal::Kernel(Errno::ENODEV, _)) => Ok(None),
            Err(refusal) => Err(refusal.about(object, "look up".into())),
        }
    }

    /// Sets the interface up.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: EPERM, ENODEV.
    pub fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.set_flags(index, LinkFlags::Up, "set up")
    }

    /// Sets the interface down; the kernel forgets its routes.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: EPERM, ENODEV.
    pub fn set_down(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.set_flags(index, LinkFlags::empty(), "set down")
    }

    /// Sets the MTU, in bytes of IP packet.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: EPERM, ENODEV, EINVAL outside the device's limits (a TUN: 68 to 65535).
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.set_attributes(index, vec![LinkAttribute::Mtu(mtu)], format!("set mtu {mtu}"))
    }

    /// Sets the transmit queue's length, in packets; on a TUN a superpacket counts as one.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: EPERM, ENODEV, ENOMEM.
    pub fn set_txqueuelen(&mut self, index: u32, packets: u32) -> Result<(), NetlinkError> {
        self.set_attributes(
            index,
            vec![LinkAttribute::TxQueueLen(packets)],
            format!("set txqueuelen {packets}"),
        )
    }

    /// Limits what the kernel hands us as one superpacket: at most `segments_max` segments and `bytes_max` bytes.
    /// Something to live without: callers go on after an error.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: EPERM, ENODEV, EINVAL above the device's limits (a TUN: 65535 segments, 65536
    /// bytes).
    ///
    /// Source: linux/if_link.h IFLA_GSO_MAX_SEGS, IFLA_GSO_MAX_SIZE.
    pub fn set_gso_limits(
        &mut self,
        index: u32,
        segments_max: u32,
        bytes_max: u32,
    ) -> Result<(), NetlinkError> {
        self.set_attributes(
            index,
            vec![LinkAttribute::GsoMaxSegs(segments_max), LinkAttribute::GsoMaxSize(bytes_max)],
            format!("set gso_max_segs {segments_max} gso_max_size {bytes_max}"),
        )
    }

    /// Adds an address with the length of its subnet; the kernel adds the subnet's route when the link is up.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] if this interface has the address; [`NetlinkError::Refused`]: EPERM, ENODEV, EACCES
    /// or EOPNOTSUPP (IPv6 switched off).
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes =
            vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        self.change(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
            || format!("address {address} on link {index}"),
            "add",
        )
    }

    /// Adds a route through the interface, without gateway (scope link), to the main table.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] if there is a route to this prefix with the same metric, through whatever interface;
    /// [`NetlinkError::Refused`]: EPERM, ENODEV, ENETDOWN.
    pub fn add_route(&mut self, index: u32, destination: IpNet) -> Result<(), NetlinkError> {
        self.change(
            RouteNetlinkMessage::NewRoute(route(index, destination)),
            NLM_F_CREATE | NLM_F_EXCL,
            || format!("route {destination} through link {index}"),
            "add",
        )
    }

    /// Removes a route that [`Netlink::add_route`] added.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: EPERM, ESRCH if there is none.
    pub fn remove_route(&mut self, index: u32, destination: IpNet) -> Result<(), NetlinkError> {
        self.change(
            RouteNetlinkMessage::DelRoute(route(index, destination)),
            0,
            || format!("route {destination} through link {index}"),
            "remove",
        )
    }

    fn set_flags(&mut self, index: u32, flags: LinkFlags, action: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("link {index}"), action)
    }

    fn set_attributes(
        &mut self,
        index: u32,
        attributes: Vec<LinkAttribute>,
        action: String,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("link {index}"), &action)
    }

    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        object: impl FnOnce() -> String,
        action: &str,
    ) -> Result<(), NetlinkError> {
        match self.ask(message, NLM_F_ACK | flags) {
            Ok(_) | Err(Refusal::Acknowledged) => Ok(()),
            Err(refusal) => Err(refusal.about(object(), action.to_owned())),
        }
    }

    /// Sends one request and reads up to its answer.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<RouteNetlinkMessage, Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(failed("send")).map_err(Refusal::Other)?;
        loop {
            let (bytes, _) = match self.socket.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(failed("recv")).map_err(Refusal::Other)?,
            };
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(|error| Refusal::Other(NetlinkError::Answer(error.to_string())))?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            let attributes_follow = answer.header.flags & NLM_F_ACK_TLVS != 0;
            return match answer.payload {
                NetlinkPayload::InnerMessage(message) => Ok(message),
                NetlinkPayload::Error(error) if error.code.is_none() => Err(Refusal::Acknowledged),
                NetlinkPayload::Error(error) => Err(Refusal::Kernel(
                    Errno::from_raw(-error.raw_code()),
                    attributes_follow.then(|| kernel_words(&error.header)).flatten(),
                )),
                other => Err(Refusal::Other(NetlinkError::Answer(format!("{other:?}")))),
            };
        }
    }
}

/// Why [`Netlink::ask`] has no message to return.
enum Refusal {
    Acknowledged,
    Kernel(Errno, Option<String>),
    Other(NetlinkError),
}

impl Refusal {
    fn about(self, object: String, action: String) -> NetlinkError {
        match self {
            Refusal::Kernel(Errno::EEXIST, _) => NetlinkError::Exists { object },
            Refusal::Kernel(errno, message) => NetlinkError::Refused { object, action, errno, message },
            Refusal::Acknowledged => {
                NetlinkError::Answer(format!("{object}: {action}: acknowledged without an answer"))
            }
            Refusal::Other(error) => error,
        }
    }
}

/// The text attribute behind the repeated request header of an error answer.
fn kernel_words(answer: &[u8]) -> Option<String> {
    NlasIterator::new(answer.get(NLMSGHDR_BYTES..)?)
        .map_while(Result::ok)
        .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())
}

/// Runs `open` in `netns`, on a thread of its own, since a thread is what a namespace belongs to. A netlink socket keeps
/// the namespace it was opened in.
fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    open: impl FnOnce() -> Result<T, NetlinkError> + Send,
) -> Result<T, NetlinkError> {
    let enter_and_open = || {
        setns(netns, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetlinkError::Socket { call: "setns", errno })?;
        open()
    };
    thread::scope(|scope| {
        let visit = thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter_and_open);
        visit.map_err(failed("clone"))?.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> NetlinkError {
    move |error| NetlinkError::Socket {
        call,
        errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// A route through the interface without gateway, in the main table.
fn route(index: u32, destination: IpNet) -> RouteMessage {
    let destination = destination.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(RouteAddress::from(destination.addr())), RouteAttribute::Oif(index)];
    message
}

fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn read_link(link: &LinkMessage) -> Link {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Link { index: link.header.index, up: link.header.flags.contains(LinkFlags::Up), mtu: mtu.unwrap_or(0) }
}

/// What happened to the watched interface. Every change of any attribute repeats the state it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is up.
    Up {
        /// MTU in bytes.
        mtu: u32,
    },
    /// It is down.
    Down {
        /// MTU in bytes.
        mtu: u32,
    },
    /// It no longer exists, or moved to another network namespace: [`crate::io::tun::whereabouts`] knows.
    Deleted,
    /// Events were lost or not understood: ask [`Netlink::link`] how things stand.
    Overrun,
}

/// A subscription to the link changes of one network namespace.
pub struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Subscribes; needs no rights. Changes from here on are seen.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<LinkWatch, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("socket"))?;
        socket.bind(&SocketAddr::new(0, RTMGRP_LINK)).map_err(failed("bind"))?;
        socket.set_non_blocking(true).map_err(failed("fcntl"))?;
        Ok(LinkWatch { socket })
    }

    /// Subscribes in another network namespace; the caller stays in its own.
    ///
    /// # Errors
    /// As [`Netlink::connect_in`].
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<LinkWatch, NetlinkError> {
        inside(netns, LinkWatch::open)
    }

    /// Readable when [`LinkWatch::events`] has something to read.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads everything there is, without blocking, and returns what concerns interface `index`, oldest first,
    /// without immediate repetitions.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] if the socket broke; ENOBUFS is no error but [`LinkEvent::Overrun`].
    pub fn events(&mut self, index: u32) -> Result<Vec<LinkEvent>, NetlinkError> {
        let mut events = Vec::new();
        loop {
            let bytes = match self.socket.recv_from_full() {
                Ok((bytes, from)) if from.port_number() == 0 => bytes,
                Ok(_) => continue, // not from the kernel
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => break,
                    Some(Errno::EINTR) => continue,
                    Some(Errno::ENOBUFS) => {
                        events.push(LinkEvent::Overrun);
                        continue;
                    }
                    _ => return Err(failed("recv")(error)),
                },
            };
            read_events(&bytes, index, &mut events);
        }
        events.dedup();
        Ok(events)
    }
}

fn read_events(mut bytes: &[u8], index: u32, events: &mut Vec<LinkEvent>) {
    while !bytes.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
            events.push(LinkEvent::Overrun);
            return;
        };
        match &message.payload {
            // Bridges announce their ports as links of family AF_BRIDGE: not the life of the interface.
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) if concerns(link, index) => {
                let Link { up, mtu, .. } = read_link(link);
                events.push(if up { LinkEvent::Up { mtu } } else { LinkEvent::Down { mtu } });
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) if concerns(link, index) => {
                events.push(LinkEvent::Deleted);
            }
            NetlinkPayload::Overrun(_) => events.push(LinkEvent::Overrun),
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4).max(NLMSGHDR_BYTES);
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

fn concerns(link: &LinkMessage, index: u32) -> bool {
    link.header.index == index && link.header.interface_family == AddressFamily::Unspec
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(payload: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(payload));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn link(index: u32, flags: LinkFlags) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        link.attributes = vec![LinkAttribute::Mtu(1420)];
        link
    }

    #[test]
    fn only_the_watched_link_is_reported_and_several_messages_in_one_datagram_are_read() {
        let mut bytes = message(RouteNetlinkMessage::NewLink(link(7, LinkFlags::Up)));
        bytes.extend(message(RouteNetlinkMessage::NewLink(link(8, LinkFlags::Up))));
        bytes.extend(message(RouteNetlinkMessage::NewLink(link(7, LinkFlags::empty()))));
        bytes.extend(message(RouteNetlinkMessage::DelLink(link(7, LinkFlags::empty()))));
        let mut events = Vec::new();
        read_events(&bytes, 7, &mut events);
        assert_eq!(events, [LinkEvent::Up { mtu: 1420 }, LinkEvent::Down { mtu: 1420 }, LinkEvent::Deleted]);
    }

    #[test]
    fn a_bridge_that_releases_the_link_does_not_delete_it() {
        let mut port = link(7, LinkFlags::Up);
        port.header.interface_family = AddressFamily::Bridge;
        let mut events = Vec::new();
        read_events(&message(RouteNetlinkMessage::DelLink(port)), 7, &mut events);
        assert_eq!(events, []);
    }

    #[test]
    fn loopback_is_found_and_a_link_that_is_not_there_is_none() {
        let mut netlink = Netlink::connect().unwrap();
        assert!(netlink.link("lo").unwrap().is_some());
        assert_eq!(netlink.link("uvt-not-there").unwrap(), None);
    }

    #[test]
    fn a_refusal_names_object_action_and_what_to_do() {
        let error = Refusal::Kernel(Errno::EPERM, Some("no".into())).about("link 7".into(), "set up".into());
        let text = error.to_string();
        assert!(text.starts_with("link 7: set up: EPERM") && text.contains("(no)"), "{text}");
        assert!(text.ends_with("run with CAP_NET_ADMIN"), "{text}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_to_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_events(&bytes, 1, &mut Vec::new());
            let _ = kernel_words(&bytes);
        }
    }
}
