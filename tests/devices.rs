//! TUN, UDP sockets and netlink against the running kernel, each test in a network namespace of its own.
//!
//! Needs root. Without it a test prints that it was skipped, or fails if the environment says `CI=true`.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use uringvpn::control::netlink::{LinkEvent, LinkWatch, Netlink, NetlinkError};
use uringvpn::io::steer;
use uringvpn::io::tun::{self, OffloadSwitches, Tun, TunError, TunRequest};
use uringvpn::io::udp::{self, Steering, UdpError, UdpGroup, UdpRequest};
use uringvpn::offload::train::TRAIN_SEGMENTS_SAFE;

#[path = "devices/descriptors.rs"]
mod descriptors;
#[path = "devices/wireguard.rs"]
mod wireguard;

const ALL_OFFLOADS: OffloadSwitches = OffloadSwitches { tso: true, uso: true };

/// Runs `test` on a thread of its own in a new network namespace with loopback up; gone when the thread ends.
fn in_new_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root, and CI=true forbids skipping");
        // Straight to the descriptor: the test harness would swallow what a passing test prints.
        let name = thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "SKIPPED: needs root: {name}");
        return;
    }
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare a network namespace");
        let mut netlink = Netlink::connect().unwrap();
        let lo = netlink.link("lo").unwrap().expect("every namespace has a loopback");
        netlink.set_up(lo.index).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    // A child inherits the namespace of the thread that starts it.
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("ip(8)");
    assert!(status.success(), "ip {arguments}");
}

fn open_tun(name: &str, queues: usize) -> Result<Tun, TunError> {
    tun::open(&TunRequest { name: name.into(), queues, offloads: ALL_OFFLOADS })
}

fn udp_request() -> UdpRequest {
    UdpRequest {
        address: None,
        port: 0,
        workers: 4,
        gro: true,
        gso: true,
        buffer_bytes: 1 << 20,
        steering: Steering::SourcePort,
        steer: true,
        fwmark: 0,
        patience: udp::BUSY_PATIENCE,
    }
}

fn receivers(group: UdpGroup, v6: bool) -> Vec<UdpSocket> {
    let family = |worker: udp::WorkerSockets| if v6 { worker.v6 } else { worker.v4 };
    group.workers.into_iter().map(|worker| UdpSocket::from(family(worker).unwrap().receive)).collect()
}

fn loopback(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

fn port(socket: &OwnedFd) -> u16 {
    UdpSocket::from(socket.as_fd().try_clone_to_owned().unwrap()).local_addr().unwrap().port()
}

fn wait_for(watch: &mut LinkWatch, index: u32, wanted: LinkEvent) {
    let patience = Instant::now() + Duration::from_secs(60);
    let mut seen = Vec::new();
    while Instant::now() < patience {
        seen.extend(watch.events(index).unwrap());
        if seen.contains(&wanted) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("waited for {wanted:?}, saw {seen:?}");
}

mod devices {
    use super::*;

    #[test]
    fn a_device_is_created_with_its_queues_and_disappears_with_the_last_one() {
        in_new_namespace(|| {
            let tun = open_tun("uvt%d", 2).unwrap();
            assert_eq!((tun.name.as_str(), tun.queues.len(), tun.created), ("uvt0", 2, true));
            let mut netlink = Netlink::connect().unwrap();
            assert_eq!(netlink.link("uvt0").unwrap().unwrap().index, tun.index);
            drop(tun);
            assert_eq!(netlink.link("uvt0").unwrap(), None);
        });
    }

    #[test]
    fn every_queue_is_nonblocking_and_closes_on_exec() {
        use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
        in_new_namespace(|| {
            for queue in open_tun("uvt0", 3).unwrap().queues {
                let status = OFlag::from_bits_truncate(fcntl(&queue, FcntlArg::F_GETFL).unwrap());
                let descriptor = FdFlag::from_bits_truncate(fcntl(&queue, FcntlArg::F_GETFD).unwrap());
                assert!(status.contains(OFlag::O_NONBLOCK) && descriptor.contains(FdFlag::FD_CLOEXEC));
            }
        });
    }

    #[test]
    fn a_read_has_sixteen_bytes_in_front_of_the_packet() {
        in_new_namespace(|| {
            let tun = open_tun("uvt0", 1).unwrap();
            let mut netlink = Netlink::connect().unwrap();
            netlink.add_address(tun.index, "10.9.0.1/24".parse().unwrap()).unwrap();
            netlink.set_up(tun.index).unwrap();
            UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"0123", "10.9.0.2:9").unwrap();
            let mut queue = std::fs::File::from(tun.queues.into_iter().next().unwrap());
            let mut buffer = [0; 2048];
            let packet = loop {
                let bytes = queue.read(&mut buffer).unwrap();
                if buffer[16] >> 4 == 4 {
                    break &buffer[..bytes]; // past the kernel's own IPv6 packets
                }
            };
            assert_eq!(packet.len(), 16 + 20 + 8 + 4);
        });
    }

    #[test]
    fn offloads_are_what_was_asked_for_and_not_what_the_former_owner_left() {
        in_new_namespace(|| {
            ip("tuntap add dev uvt0 mode tun multi_queue vnet_hdr");
            let all = open_tun("uvt0", 1).unwrap();
            assert!(all.offloads.checksum && all.offloads.tso, "{:?}", all.offloads);
            drop(all);
            let offloads = OffloadSwitches { tso: false, uso: false };
            let none = tun::open(&TunRequest { name: "uvt0".into(), queues: 1, offloads }).unwrap();
            assert!(none.offloads.checksum && !none.offloads.tso && !none.offloads.uso);
            let features = Command::new("ethtool").args(["-k", "uvt0"]).output();
            if let Ok(output) = features {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains("tx-tcp-segmentation: off"), "{text}");
            }
        });
    }

    #[test]
    fn a_persistent_multi_queue_device_is_joined_and_outlives_us() {
        in_new_namespace(|| {
            ip("tuntap add dev uvt0 mode tun multi_queue");
            let tun = open_tun("uvt0", 4).unwrap();
            assert_eq!((tun.queues.len(), tun.created), (4, false));
            drop(tun);
            assert!(Netlink::connect().unwrap().link("uvt0").unwrap().is_some());
        });
    }

    #[test]
    fn a_device_that_is_not_multi_queue_is_refused_with_the_command_that_makes_one() {
        in_new_namespace(|| {
            ip("tuntap add dev uvt0 mode tun vnet_hdr");
            let error = open_tun("uvt0", 1).unwrap_err();
            assert_eq!(error, TunError::NotMultiQueue { name: "uvt0".into() });
        });
    }

    #[test]
    fn an_interface_that_is_not_a_tun_is_refused() {
        in_new_namespace(|| {
            ip("link add uvt0 type veth peer name uvt1");
            ip("tuntap add dev uvt2 mode tap multi_queue");
            for name in ["uvt0", "uvt2", "lo"] {
                assert_eq!(open_tun(name, 1).unwrap_err(), TunError::NotATun { name: name.into() });
            }
        });
    }

    #[test]
    fn a_device_in_use_is_refused_and_its_owner_keeps_its_queues() {
        in_new_namespace(|| {
            for persistent in [false, true] {
                if persistent {
                    ip("tuntap add dev uvt0 mode tun multi_queue");
                }
                let first = open_tun("uvt0", 2).unwrap();
                let error = open_tun("uvt0", 2).unwrap_err();
                assert_eq!(error, TunError::InUse { name: "uvt0".into(), queues: 2 });
                drop(first);
            }
        });
    }

    #[test]
    fn a_device_that_comes_free_within_a_second_is_waited_for() {
        in_new_namespace(|| {
            let first = open_tun("uvt0", 2).unwrap();
            let release = thread::spawn(move || {
                thread::sleep(Duration::from_millis(150));
                drop(first);
            });
            let second = open_tun("uvt0", 2).unwrap();
            assert!(second.created);
            release.join().unwrap();
        });
    }

    #[test]
    fn two_hundred_and_fifty_six_queues_are_opened_and_one_more_is_refused() {
        in_new_namespace(|| {
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, soft.max(2048), hard.max(2048)).unwrap();
            assert_eq!(open_tun("uvt0", 256).unwrap().queues.len(), 256);
            for queues in [0, 257] {
                assert_eq!(
                    open_tun("uvt1", queues).unwrap_err(),
                    TunError::QueueCount { name: "uvt1".into(), queues }
                );
            }
        });
    }
}

mod sockets {
    use super::*;

    #[test]
    fn a_second_instance_on_the_same_port_is_refused() {
        in_new_namespace(|| {
            for workers in [1, 4] {
                let first = udp::open(&UdpRequest { workers, ..udp_request() }).unwrap();
                let error = udp::open(&UdpRequest { port: first.port, workers, ..udp_request() });
                let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), first.port);
                assert_eq!(error.unwrap_err(), UdpError::PortInUse { address });
            }
        });
    }

    #[test]
    fn a_port_of_a_foreign_reuseport_socket_is_refused_in_either_family() {
        in_new_namespace(|| {
            for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
                let foreign = bound_with_reuseport(SocketAddr::new(any, 0), any.is_ipv6()).unwrap();
                let address = SocketAddr::new(any, foreign.local_addr().unwrap().port());
                let error = udp::open(&UdpRequest { port: address.port(), ..udp_request() }).unwrap_err();
                assert_eq!(error, UdpError::PortInUse { address });
            }
        });
    }

    #[test]
    fn one_worker_alone_lets_nobody_join_its_port() {
        in_new_namespace(|| {
            let group = udp::open(&UdpRequest { workers: 1, ..udp_request() }).unwrap();
            let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), group.port);
            assert!(bound_with_reuseport(address, false).is_err());
        });
    }

    fn bound_with_reuseport(address: SocketAddr, v6_only: bool) -> nix::Result<UdpSocket> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
        use std::os::fd::AsRawFd;
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
        if v6_only {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true).unwrap();
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(UdpSocket::from(socket))
    }

    #[test]
    fn both_families_share_the_port_the_kernel_chose() {
        in_new_namespace(|| {
            let group = udp::open(&udp_request()).unwrap();
            assert_eq!(group.workers.len(), 4);
            assert_ne!(group.port, 0);
            for worker in &group.workers {
                for sockets in [worker.v4.as_ref().unwrap(), worker.v6.as_ref().unwrap()] {
                    assert_eq!(port(&sockets.receive), group.port);
                }
            }
            assert!(group.notes.is_empty() && group.refused.is_empty(), "{group:?}");
            assert!(group.gro && group.train_segments_max >= 64);
            assert_eq!(group.buffer_bytes, 1 << 20);
        });
    }

    #[test]
    fn a_given_address_opens_its_family_only() {
        in_new_namespace(|| {
            let group = udp::open(&UdpRequest { address: Some(Ipv6Addr::LOCALHOST.into()), ..udp_request() });
            let group = group.unwrap();
            assert!(group.workers.iter().all(|worker| worker.v4.is_none() && worker.v6.is_some()));
            let address: IpAddr = "192.0.2.1".parse().unwrap();
            let error = udp::open(&UdpRequest { address: Some(address), ..udp_request() }).unwrap_err();
            assert_eq!(error, UdpError::AddressNotHere { address });
        });
    }

    #[test]
    fn a_host_with_ipv6_switched_off_still_starts() {
        in_new_namespace(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
            let group = udp::open(&udp_request()).unwrap();
            assert!(group.workers.iter().all(|worker| worker.v4.is_some()));
        });
    }

    #[test]
    fn with_loopback_down_the_train_limit_is_at_least_the_safe_one() {
        in_new_namespace(|| {
            let mut netlink = Netlink::connect().unwrap();
            let lo = netlink.link("lo").unwrap().unwrap();
            netlink.set_down(lo.index).unwrap();
            assert!(udp::train_segments_max() >= TRAIN_SEGMENTS_SAFE);
        });
    }

    #[test]
    fn send_ports_have_consecutive_low_bytes_in_both_families_and_hear_nothing() {
        in_new_namespace(|| {
            let group = udp::open(&udp_request()).unwrap();
            for (worker, sockets) in group.workers.into_iter().enumerate() {
                for sockets in [sockets.v4.unwrap(), sockets.v6.unwrap()] {
                    assert_eq!(port(sockets.sender()) % 256, (group.port + worker as u16) % 256);
                    assert_eq!(sockets.send.is_none(), worker == 0);
                    let Some(send) = sockets.send else { continue };
                    let deaf = UdpSocket::from(send);
                    let to = deaf.local_addr().unwrap();
                    let loopback = loopback(to.is_ipv6());
                    UdpSocket::bind((loopback, 0)).unwrap().send_to(b"x", (loopback, to.port())).unwrap();
                    let error = deaf.recv(&mut [0; 16]).unwrap_err();
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                }
            }
        });
    }

    #[test]
    fn four_senders_reach_four_receivers_one_by_one_and_as_trains() {
        in_new_namespace(|| {
            for v6 in [false, true] {
                for segment_bytes in [None, Some(100)] {
                    let senders = udp::open(&udp_request()).unwrap();
                    let group = udp::open(&udp_request()).unwrap();
                    let to = SocketAddr::new(loopback(v6), group.port);
                    let receivers = receivers(group, v6);
                    let mut heard = Vec::new();
                    for worker in senders.workers {
                        let sockets = if v6 { worker.v6 } else { worker.v4 }.unwrap();
                        let send = UdpSocket::from(sockets.send.unwrap_or(sockets.receive));
                        if let Some(bytes) = segment_bytes {
                            setsockopt(&send, sockopt::UdpGsoSegment, &bytes).unwrap();
                        }
                        let from = send.local_addr().unwrap().port();
                        for _ in 0..8 {
                            assert_eq!(send.send_to(&[7; 1000], to).unwrap(), 1000);
                        }
                        heard.push(listening(&receivers, 8 * 1000));
                        assert_eq!(heard.last(), Some(&(usize::from(from) % 256 % 4)));
                    }
                    heard.sort_unstable();
                    assert_eq!(heard, [0, 1, 2, 3], "v6: {v6}, segments: {segment_bytes:?}");
                }
            }
        });
    }

    /// The index of the only receiver that has something to read; it must be `bytes` in all.
    fn listening(receivers: &[UdpSocket], bytes: usize) -> usize {
        let mut only = None;
        for (index, receiver) in receivers.iter().enumerate() {
            let mut total = 0;
            while let Ok(read) = receiver.recv(&mut [0; 65536]) {
                total += read;
            }
            if total > 0 {
                assert_eq!((only, total), (None, bytes), "a second receiver, or lost datagrams");
                only = Some(index);
            }
        }
        only.expect("nobody heard it")
    }

    #[test]
    fn three_workers_without_a_group_have_no_program_to_attach() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(steer::spread_by_source_port(&socket, 3).is_err());
        assert!(steer::spread_by_receiver_index(&socket, 3).is_err());
    }

    #[test]
    fn what_arrives_carries_local_address_receive_time_and_segment_size() {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
        use std::os::fd::AsRawFd;
        in_new_namespace(|| {
            for v6 in [false, true] {
                let group = udp::open(&UdpRequest { workers: 1, ..udp_request() }).unwrap();
                let to = SocketAddr::new(loopback(v6), group.port);
                let receiver = &receivers(group, v6)[0];
                let sender = UdpSocket::bind((loopback(v6), 0)).unwrap();
                setsockopt(&sender, sockopt::UdpGsoSegment, &100).unwrap();
                sender.send_to(&[0; 1000], to).unwrap();
                let mut buffer = [0; 2048];
                let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
                let mut control = vec![0; 256];
                let message = recvmsg::<SockaddrStorage>(
                    receiver.as_raw_fd(),
                    &mut slices,
                    Some(&mut control),
                    MsgFlags::empty(),
                )
                .unwrap();
                let (mut time, mut local, mut segment) = (false, false, 0);
                for control in message.cmsgs().unwrap() {
                    match control {
                        ControlMessageOwned::ScmTimestampns(_) => time = true,
                        ControlMessageOwned::Ipv4PacketInfo(_) => local = !v6,
                        ControlMessageOwned::Ipv6PacketInfo(_) => local = v6,
                        ControlMessageOwned::UdpGroSegments(bytes) => segment = bytes,
                        _ => {}
                    }
                }
                assert_eq!((message.bytes, time, local, segment), (1000, true, true, 100));
            }
        });
    }
}

mod netlink {
    use super::*;

    #[test]
    fn mtu_queue_length_and_gso_limits_are_really_set() {
        in_new_namespace(|| {
            let tun = open_tun("uvt0", 1).unwrap();
            let mut netlink = Netlink::connect().unwrap();
            netlink.set_mtu(tun.index, 1400).unwrap();
            netlink.set_txqueuelen(tun.index, 1234).unwrap();
            netlink.set_gso_limits(tun.index, 45, 65000).unwrap();
            assert_eq!(netlink.link("uvt0").unwrap().unwrap().mtu, 1400);
            let shown = shown("-d link show dev uvt0");
            for wanted in ["mtu 1400", "qlen 1234", "gso_max_segs 45", "gso_max_size 65000"] {
                assert!(shown.contains(wanted), "{wanted}: {shown}");
            }
        });
    }

    #[test]
    fn addresses_and_routes_are_really_there_and_a_second_time_exist() {
        in_new_namespace(|| {
            let tun = open_tun("uvt0", 1).unwrap();
            let mut netlink = Netlink::connect().unwrap();
            netlink.set_up(tun.index).unwrap();
            for address in ["10.9.0.1/24", "fd09::1/64"] {
                let address = address.parse().unwrap();
                netlink.add_address(tun.index, address).unwrap();
                assert!(matches!(netlink.add_address(tun.index, address), Err(NetlinkError::Exists { .. })));
                assert!(shown("address show dev uvt0").contains(&address.to_string()));
            }
            for (route, text) in [("10.10.0.7/16", "10.10.0.0/16 scope link"), ("fd0a::/48", "fd0a::/48")] {
                let route = route.parse().unwrap();
                netlink.add_route(tun.index, route).unwrap();
                assert!(matches!(netlink.add_route(tun.index, route), Err(NetlinkError::Exists { .. })));
                let family = if route.addr().is_ipv6() { "-6" } else { "-4" };
                let table = shown(&format!("{family} route show dev uvt0"));
                assert!(table.contains(text), "{table}");
            }
        });
    }

    fn shown(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip(8)");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_refusal_has_the_kernels_words() {
        in_new_namespace(|| {
            let tun = open_tun("uvt0", 1).unwrap();
            let mut netlink = Netlink::connect().unwrap();
            let error = netlink.set_mtu(tun.index, 100_000).unwrap_err().to_string();
            assert!(error.contains("mtu greater than device maximum"), "{error}");
            let error = netlink.set_up(4_000_000).unwrap_err().to_string();
            assert!(error.contains("ENODEV") && error.contains("the device is gone"), "{error}");
        });
    }

    #[test]
    fn the_watch_sees_down_up_a_new_mtu_and_the_end() {
        in_new_namespace(|| {
            let tun = open_tun("uvt0", 1).unwrap();
            let mut netlink = Netlink::connect().unwrap();
            netlink.set_up(tun.index).unwrap();
            let mtu = netlink.link("uvt0").unwrap().unwrap().mtu;
            let mut watch = LinkWatch::open().unwrap();
            assert_eq!(watch.events(tun.index).unwrap(), []);
            netlink.set_down(tun.index).unwrap();
            wait_for(&mut watch, tun.index, LinkEvent::Down { mtu });
            netlink.set_up(tun.index).unwrap();
            wait_for(&mut watch, tun.index, LinkEvent::Up { mtu });
            netlink.set_mtu(tun.index, 1300).unwrap();
            wait_for(&mut watch, tun.index, LinkEvent::Up { mtu: 1300 });
            ip("link delete uvt0");
            wait_for(&mut watch, tun.index, LinkEvent::Deleted);
        });
    }

    #[test]
    fn a_watch_that_was_not_read_for_long_reports_an_overrun() {
        in_new_namespace(|| {
            let tun = open_tun("uvt0", 1).unwrap();
            let mut netlink = Netlink::connect().unwrap();
            let mut watch = LinkWatch::open().unwrap();
            for round in 0..2000 {
                netlink.set_mtu(tun.index, 1300 + round % 2).unwrap();
            }
            let events = watch.events(tun.index).unwrap();
            assert!(events.contains(&LinkEvent::Overrun), "{} events", events.len());
            assert_eq!(watch.events(tun.index).unwrap(), []);
        });
    }
}
