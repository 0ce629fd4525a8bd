//! What WireGuard wants of the sockets: steering by receiver index, one port for everything, marks, single datagrams.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, setsockopt, sockopt,
};
use uringvpn::control::netlink::Netlink;
use uringvpn::io::driver::Endpoint;
use uringvpn::io::sys;
use uringvpn::io::udp::{self, Mailer, Steering, UdpRequest, WorkerSockets};

use super::{in_new_namespace, ip, loopback, open_tun, port, receivers, udp_request};

/// One of WireGuard's messages, 32 bytes: its type, then the receiver index (for type 4).
fn message(kind: u8, index: u32) -> Vec<u8> {
    let mut message = vec![0xee; 32];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message[4..8].copy_from_slice(&index.to_le_bytes());
    message
}

fn wireguard_request() -> UdpRequest {
    UdpRequest { workers: 3, steering: Steering::ReceiverIndex, ..udp_request() }
}

#[test]
fn transport_messages_reach_the_worker_of_their_receiver_index_and_all_else_the_first() {
    in_new_namespace(|| {
        for v6 in [false, true] {
            let group = udp::open(&wireguard_request()).unwrap();
            assert!(group.notes.is_empty() && group.refused.is_empty(), "{group:?}");
            let to = SocketAddr::new(loopback(v6), group.port);
            let receivers = receivers(group, v6);
            let mut cases = vec![(Vec::new(), 0), (vec![4], 0), (vec![4, 0, 0, 0], 0)];
            // The low byte decides, 0 to 255; the others only tell sessions apart.
            for (index, worker) in [(0, 0), (1, 1), (2, 2), (3, 0), (0xfe, 2), (0xff, 0), (0xab_cd_ef_01, 1)]
            {
                cases.push((message(4, index), worker));
                cases.extend([1, 2, 3, 0, 5, 0xff].map(|kind| (message(kind, index), 0)));
            }
            for (bytes, worker) in cases {
                // Another port each time: it must not matter.
                UdpSocket::bind((loopback(v6), 0)).unwrap().send_to(&bytes, to).unwrap();
                let mut heard = vec![0; 64];
                let length =
                    receivers[worker].recv(&mut heard).unwrap_or_else(|_| panic!("{worker}: {bytes:?}"));
                assert_eq!(heard[..length], bytes);
                assert!(receivers.iter().all(|receiver| receiver.recv(&mut [0; 64]).is_err()));
            }
        }
    });
}

#[test]
fn a_burst_of_a_session_reaches_its_worker_whole() {
    in_new_namespace(|| {
        for v6 in [false, true] {
            let group = udp::open(&wireguard_request()).unwrap();
            let to = SocketAddr::new(loopback(v6), group.port);
            let receivers = receivers(group, v6);
            let sender = UdpSocket::bind((loopback(v6), 0)).unwrap();
            setsockopt(&sender, sockopt::UdpGsoSegment, &32).unwrap();
            for index in 0..6 {
                let burst = message(4, 0x0700 + index).repeat(40);
                assert_eq!(sender.send_to(&burst, to).unwrap(), burst.len());
                let mut heard = vec![0; 65536];
                let length = receivers[index as usize % 3].recv(&mut heard).unwrap();
                assert_eq!(heard[..length], burst, "received whole: one buffer of 40 datagrams");
                assert!(receivers.iter().all(|receiver| receiver.recv(&mut [0; 64]).is_err()));
            }
        }
    });
}

#[test]
fn steered_by_receiver_index_everything_leaves_from_the_listen_port() {
    in_new_namespace(|| {
        let group = udp::open(&wireguard_request()).unwrap();
        for worker in &group.workers {
            for sockets in [worker.v4.as_ref().unwrap(), worker.v6.as_ref().unwrap()] {
                assert!(sockets.send.is_none());
                assert_eq!(port(sockets.sender()), group.port);
            }
        }
    });
}

#[test]
fn every_socket_has_the_mark_and_gets_a_new_one() {
    in_new_namespace(|| {
        for steering in [Steering::SourcePort, Steering::ReceiverIndex] {
            let request = UdpRequest { fwmark: 0xca6c_0001, steering, ..udp_request() };
            let group = udp::open(&request).unwrap();
            assert!(group.workers.iter().flat_map(marks).all(|mark| mark == 0xca6c_0001));
            for fwmark in [7, 0] {
                for worker in &group.workers {
                    worker.try_clone().unwrap().set_mark(fwmark).unwrap();
                    assert!(marks(worker).iter().all(|mark| *mark == fwmark));
                }
            }
        }
    });
}

fn marks(worker: &WorkerSockets) -> Vec<u32> {
    let sockets = [worker.v4.as_ref().unwrap(), worker.v6.as_ref().unwrap()];
    let all = sockets.into_iter().flat_map(|sockets| [&sockets.receive, sockets.sender()]);
    all.map(|socket| getsockopt(socket, sockopt::Mark).unwrap()).collect()
}

/// What `receiver` got: the bytes, the sender and the traffic class.
fn heard(receiver: &UdpSocket) -> (Vec<u8>, SocketAddr, i32) {
    let mut buffer = vec![0; 2048];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut control = vec![0; 256];
    let fd = receiver.as_raw_fd();
    let flags = MsgFlags::empty();
    let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), flags).unwrap();
    let tos = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::Ipv4Tos(tos) => Some(tos.into()),
        ControlMessageOwned::Ipv6TClass(class) => Some(class),
        _ => None,
    });
    let (bytes, from) = (message.bytes, message.address.unwrap());
    let v4 = from.as_sockaddr_in().map(|from| SocketAddr::from(SocketAddrV4::from(*from)));
    let from = v4.unwrap_or_else(|| SocketAddrV6::from(*from.as_sockaddr_in6().unwrap()).into());
    buffer.truncate(bytes);
    (buffer, from, tos.unwrap())
}

#[test]
fn mail_leaves_from_the_listen_port_with_its_source_and_class_and_a_stale_source_is_given_up() {
    in_new_namespace(|| {
        ip("address add 10.9.0.1/32 dev lo");
        // Without duplicate address detection: the address can be used at once.
        ip("address add fd09::1/128 dev lo nodad");
        let group = udp::open(&wireguard_request()).unwrap();
        let mailer = Mailer::new(&group.workers[0]).unwrap();
        for (v6, ours, stale) in [(false, "10.9.0.1", "192.0.2.7"), (true, "fd09::1", "2001:db8::7")] {
            let receiver = UdpSocket::bind((loopback(v6), 0)).unwrap();
            receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            if v6 {
                setsockopt(&receiver, sockopt::Ipv6RecvTClass, &true).unwrap();
            } else {
                setsockopt(&receiver, sockopt::IpRecvTos, &true).unwrap();
            }
            let remote = receiver.local_addr().unwrap();
            let (ours, stale) = (ours.parse::<IpAddr>().unwrap(), stale.parse::<IpAddr>().unwrap());
            for (local, from, tos) in
                [(None, loopback(v6), 0), (Some(ours), ours, 0xb8), (Some(stale), loopback(v6), 0x88)]
            {
                mailer.send(b"hello", Endpoint { remote, local }, tos).unwrap();
                let told = heard(&receiver);
                assert_eq!(told, (b"hello".to_vec(), SocketAddr::new(from, group.port), tos.into()));
            }
        }
    });
}

#[test]
fn mail_to_a_family_without_a_socket_is_refused() {
    in_new_namespace(|| {
        let request = UdpRequest { address: Some(Ipv4Addr::LOCALHOST.into()), ..wireguard_request() };
        let mailer = Mailer::new(&udp::open(&request).unwrap().workers[0]).unwrap();
        let to = Endpoint { remote: "[::1]:9".parse().unwrap(), local: None };
        assert_eq!(mailer.send(b"x", to, 0), Err(Errno::EAFNOSUPPORT));
    });
}

/// The next packet of `queue` of that IP version which is no router solicitation of the kernel's own.
fn next_packet(queue: &OwnedFd, version: u8) -> Vec<u8> {
    let mut buffer = vec![0; 65_551];
    for _ in 0..100 {
        let bytes = nix::unistd::read(queue, &mut buffer).unwrap();
        let packet = &buffer[16..bytes];
        if packet[0] >> 4 == version && !(version == 6 && packet[6] == ICMPV6) {
            return packet.to_vec();
        }
    }
    panic!("no IPv{version} packet of ours");
}

const ICMPV6: u8 = 58;
const FRAGMENT_HEADER: u8 = 44;

#[test]
fn outer_packets_have_df_clear_and_one_longer_than_the_mtu_leaves_in_fragments() {
    in_new_namespace(|| {
        let tun = open_tun("uvt0", 1).unwrap();
        Netlink::connect().unwrap().set_up(tun.index).unwrap();
        ip("address add 10.9.0.1/24 dev uvt0");
        ip("address add fd09::1/64 dev uvt0 nodad");
        let group = udp::open(&wireguard_request()).unwrap();
        let mailer = Mailer::new(&group.workers[0]).unwrap();
        let to =
            |address: &str| Endpoint { remote: SocketAddr::new(address.parse().unwrap(), 9), local: None };
        let flags = |packet: &[u8]| packet[6] >> 5;
        mailer.send(&[7; 100], to("10.9.0.2"), 0).unwrap();
        assert_eq!(flags(&next_packet(&tun.queues[0], 4)), 0);
        mailer.send(&[7; 2000], to("10.9.0.2"), 0).unwrap();
        let more_fragments = 1;
        assert_eq!(flags(&next_packet(&tun.queues[0], 4)), more_fragments);
        assert_eq!(flags(&next_packet(&tun.queues[0], 4)), 0);
        mailer.send(&[7; 2000], to("fd09::2"), 0).unwrap();
        assert_eq!(next_packet(&tun.queues[0], 6)[6], FRAGMENT_HEADER);
    });
}

#[test]
fn no_socket_heeds_what_the_path_says_of_its_mtu() {
    in_new_namespace(|| {
        for worker in udp::open(&udp_request()).unwrap().workers {
            let (v4, v6) = (worker.v4.unwrap(), worker.v6.unwrap());
            for socket in [&v4.receive, v4.sender()] {
                let discover = sys::option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
                assert_eq!(discover, Ok(libc::IP_PMTUDISC_DONT));
            }
            for socket in [&v6.receive, v6.sender()] {
                let discover = sys::option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
                assert_eq!(discover, Ok(libc::IPV6_PMTUDISC_DONT));
            }
        }
    });
}
