//! The calls that have no safe wrapper. Unsafe code of the tests is in this file only.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;

/// Makes `command` run under a seccomp filter that answers io_uring_setup with `errno`, as container runtimes do.
pub fn forbid_io_uring(command: &mut Command, errno: Errno) {
    forbid(command, libc::SYS_io_uring_setup, None, errno);
}

/// Makes `command` run as on a kernel that was started without IPv6.
pub fn forbid_ipv6_sockets(command: &mut Command) {
    forbid(command, libc::SYS_socket, Some(libc::AF_INET6 as u32), Errno::EAFNOSUPPORT);
}

/// Makes `command` run under a seccomp filter that answers `call` with `errno`, if its first argument is `first`.
fn forbid(command: &mut Command, call: libc::c_long, first: Option<u32>, errno: Errno) {
    // linux/bpf_common.h: load a word, jump if equal, return. The system call's number is the first word of seccomp_data,
    // the low half of its first argument the fifth.
    let (load, jump_if_equal, give_back) = (0x20, 0x15, 0x06);
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let (argument, jump) = match first {
        Some(first) => (16, filter(jump_if_equal, 0, 1, first)),
        None => (0, filter(jump_if_equal, 0, 1, call as u32)),
    };
    let mut program = [
        filter(load, 0, 0, 0),
        filter(jump_if_equal, 0, 3, call as u32),
        filter(load, 0, 0, argument),
        jump,
        filter(give_back, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        filter(give_back, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: `program` and the filter it points at live until the calls return; the kernel copies them.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure only makes two system calls; it neither allocates nor locks.
    unsafe { command.pre_exec(install) };
}

/// ETH_P_ALL: packets of every protocol, also those that leave.
const EVERY_PROTOCOL: u16 = 3;
/// `struct virtio_net_hdr` as packet(7) has it, without padding.
const VNET_HDR_BYTES: usize = 10;

/// A socket of this thread's namespace that puts bytes on an interface as they are.
pub struct Frames {
    socket: OwnedFd,
    index: u32,
}

impl Frames {
    /// For the interface called `link`.
    pub fn open(link: &str) -> Frames {
        Frames::new(link, libc::SOCK_DGRAM)
    }

    /// For superpackets: everything sent and received has a `struct virtio_net_hdr` in front. Also hears what comes out of
    /// the interface from now on.
    pub fn open_with_vnet_hdr(link: &str) -> Frames {
        const PACKET_VNET_HDR: libc::c_int = 15;
        let frames = Frames::new(link, libc::SOCK_RAW);
        for (level, option, value) in
            [(libc::SOL_PACKET, PACKET_VNET_HDR, 1), (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)]
        {
            let value: libc::c_int = value;
            // SAFETY: pointer and length describe one int that lives across the call.
            let set = unsafe {
                libc::setsockopt(frames.socket.as_raw_fd(), level, option, (&raw const value).cast(), 4)
            };
            assert_eq!(set, 0, "option {option}: {}", io::Error::last_os_error());
        }
        let address = frames.address(EVERY_PROTOCOL);
        // SAFETY: the pointer is valid for the length given, for the length of the call.
        let bound = unsafe {
            libc::bind(frames.socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
        };
        assert_eq!(bound, 0, "bind: {}", io::Error::last_os_error());
        frames
    }

    fn new(link: &str, kind: libc::c_int) -> Frames {
        let index = nix::net::if_::if_nametoindex(link).unwrap();
        // SAFETY: no pointers involved.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: the kernel just gave us this descriptor, nobody else has it.
        Frames { socket: unsafe { OwnedFd::from_raw_fd(fd) }, index }
    }

    fn address(&self, protocol: u16) -> libc::sockaddr_ll {
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = self.index as i32;
        address
    }

    /// The next packet that the interface handed to this host, behind its virtio header; `None` if there is none now.
    pub fn receive(&self) -> Option<([u8; VNET_HDR_BYTES], Vec<u8>)> {
        const OUTGOING: u8 = 4;
        let mut bytes = vec![0u8; 70_000];
        loop {
            let mut from = self.address(0);
            let mut from_bytes = size_of_val(&from) as u32;
            // SAFETY: all three pointers are valid for the lengths given, for the length of the call.
            let received = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut from_bytes,
                )
            };
            let received = usize::try_from(received).ok()?;
            if from.sll_pkttype != OUTGOING {
                bytes.truncate(received);
                let packet = bytes.split_off(VNET_HDR_BYTES);
                return Some((bytes.try_into().unwrap(), packet));
            }
        }
    }

    /// Sends `bytes` as a packet of `protocol` (an ETH_P number); says whether the kernel took it.
    pub fn send(&self, protocol: u16, bytes: &[u8]) -> bool {
        let to = self.address(protocol);
        // SAFETY: both pointers are valid for the lengths given, for the length of the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        sent >= 0
    }
}
