//! A TUN by its descriptor: handed over by somebody else, or moved to another network namespace.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use uringvpn::control::netlink::{LinkEvent, LinkWatch, Netlink};
use uringvpn::io::sys::{self, FlagsRequest};
use uringvpn::io::tun::{self, OffloadSwitches, TunError, Whereabouts};

use super::{ALL_OFFLOADS, in_new_namespace, ip, open_tun, wait_for};

/// What a program does that opens a TUN for another one: blocking, and open across exec.
fn opened_by_somebody(name: &str, flags: i32) -> OwnedFd {
    let fd = open("/dev/net/tun", OFlag::O_RDWR, Mode::empty()).unwrap();
    sys::tun_set_iff(fd.as_fd(), &mut FlagsRequest::new(name, flags)).unwrap();
    fd
}

#[test]
fn a_descriptor_handed_over_becomes_the_one_queue() {
    in_new_namespace(|| {
        for multi_queue in [0, libc::IFF_MULTI_QUEUE] {
            let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue;
            let fd = opened_by_somebody("uvt0", flags);
            sys::tun_set_vnet_hdr_bytes(fd.as_fd(), 12).unwrap();
            let tun = tun::from_fd(fd, ALL_OFFLOADS).unwrap();
            let expected = open_tun("uvt1", 1).unwrap().offloads;
            assert_eq!((tun.name.as_str(), tun.created, tun.offloads), ("uvt0", false, expected));
            assert_eq!(Netlink::connect().unwrap().link("uvt0").unwrap().unwrap().index, tun.index);
            let [queue] = &tun.queues[..] else { panic!("{} queues", tun.queues.len()) };
            let status = OFlag::from_bits_truncate(fcntl(queue, FcntlArg::F_GETFL).unwrap());
            let descriptor = FdFlag::from_bits_truncate(fcntl(queue, FcntlArg::F_GETFD).unwrap());
            assert!(status.contains(OFlag::O_NONBLOCK) && descriptor.contains(FdFlag::FD_CLOEXEC));
            sixteen_bytes_are_in_front(tun);
        }
    });
}

fn sixteen_bytes_are_in_front(tun: tun::Tun) {
    Netlink::connect().unwrap().set_up(tun.index).unwrap();
    let [queue] = &tun.queues[..] else { panic!("one queue") };
    let mut packet = [0; 16 + 20];
    packet[16] = 0x45;
    assert_eq!(nix::unistd::write(queue, &packet), Ok(packet.len()));
    packet[12] = 0x45; // where it would be behind a header of 12 bytes
    packet[16] = 0;
    assert_eq!(nix::unistd::write(queue, &packet), Err(Errno::EINVAL));
}

#[test]
fn a_descriptor_that_does_not_fit_is_refused_with_what_is_wrong() {
    in_new_namespace(|| {
        let (tun, bare, vnet) = (libc::IFF_TUN, libc::IFF_NO_PI, libc::IFF_VNET_HDR);
        for (flags, word) in
            [(libc::IFF_TAP | bare | vnet, "TAP"), (tun | vnet, "IFF_NO_PI"), (tun | bare, "IFF_VNET_HDR")]
        {
            let error = tun::from_fd(opened_by_somebody("uvt0", flags), ALL_OFFLOADS).unwrap_err();
            assert!(matches!(&error, TunError::UnfitDescriptor { name, .. } if name == "uvt0"), "{error:?}");
            assert!(error.to_string().contains(word), "{error}");
        }
        for other in ["/dev/null", "/dev/net/tun"] {
            let fd = OwnedFd::from(File::open(other).unwrap());
            let error = tun::from_fd(fd, OffloadSwitches { tso: true, uso: true }).unwrap_err();
            assert!(matches!(error, TunError::NotATunDescriptor { .. }), "{error:?}");
        }
    });
}

/// A network namespace that lives as long as the descriptor.
fn another_namespace() -> OwnedFd {
    let open = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    };
    thread::spawn(open).join().unwrap()
}

fn move_to(netns: &OwnedFd, name: &str) {
    ip(&format!("link set {name} netns /proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
}

fn elsewhere(queue: &OwnedFd) -> (String, OwnedFd) {
    match tun::whereabouts(queue).unwrap() {
        Whereabouts::Elsewhere { name, netns } => (name, netns),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_queue_knows_its_devices_name_after_it_was_renamed_and_that_it_was_deleted() {
    in_new_namespace(|| {
        let tun = open_tun("uvt0", 2).unwrap();
        for name in ["uvt0", "uvt7"] {
            for queue in &tun.queues {
                let found = tun::whereabouts(queue).unwrap();
                assert!(matches!(&found, Whereabouts::Here { name: here } if here == name), "{found:?}");
            }
            if name == "uvt0" {
                ip("link set uvt0 name uvt7");
            }
        }
        ip("link delete uvt7");
        assert!(matches!(tun::whereabouts(&tun.queues[1]), Ok(Whereabouts::Gone)));
    });
}

#[test]
fn a_device_moved_to_another_namespace_is_found_changed_and_watched_there() {
    in_new_namespace(|| {
        let tun = open_tun("uvt0", 1).unwrap();
        let mut old_watch = LinkWatch::open().unwrap();
        let target = another_namespace();
        move_to(&target, "uvt0");
        wait_for(&mut old_watch, tun.index, LinkEvent::Deleted);

        let (name, netns) = elsewhere(&tun.queues[0]);
        assert_eq!(name, "uvt0");
        let mut there = Netlink::connect_in(netns.as_fd()).unwrap();
        let link = there.link(&name).unwrap().unwrap();
        let mut watch = LinkWatch::open_in(netns.as_fd()).unwrap();
        there.set_up(link.index).unwrap();
        wait_for(&mut watch, link.index, LinkEvent::Up { mtu: link.mtu });

        // Looking into it moved nobody: here there is no such device.
        assert_eq!(Netlink::connect().unwrap().link("uvt0").unwrap(), None);
        let (_, still) = elsewhere(&tun.queues[0]);
        drop(still);
        drop(tun);
        wait_for(&mut watch, link.index, LinkEvent::Deleted);
        assert_eq!(there.link("uvt0").unwrap(), None);
    });
}

#[test]
fn a_device_moved_back_is_here_again() {
    in_new_namespace(|| {
        let tun = open_tun("uvt0", 1).unwrap();
        let home = OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap());
        let target = another_namespace();
        move_to(&target, "uvt0");
        elsewhere(&tun.queues[0]);
        let move_back = move || {
            setns(&target, CloneFlags::CLONE_NEWNET).unwrap();
            move_to(&home, "uvt0");
        };
        thread::spawn(move_back).join().unwrap();
        assert!(matches!(tun::whereabouts(&tun.queues[0]), Ok(Whereabouts::Here { .. })));
    });
}

#[test]
fn no_connection_is_made_into_what_is_no_network_namespace() {
    let file = OwnedFd::from(File::open("/dev/null").unwrap());
    let error = Netlink::connect_in(file.as_fd()).err().expect("refused").to_string();
    assert!(error.contains("setns"), "{error}");
    assert!(LinkWatch::open_in(file.as_fd()).is_err());
}
