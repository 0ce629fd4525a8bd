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

/// A socket of this thread's namespace that puts bytes on an interface as they are.
pub struct Frames {
    socket: OwnedFd,
    index: u32,
}

impl Frames {
    /// For the interface called `link`.
    pub fn open(link: &str) -> Frames {
        let index = nix::net::if_::if_nametoindex(link).unwrap();
        // SAFETY: no pointers involved.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: the kernel just gave us this descriptor, nobody else has it.
        Frames { socket: unsafe { OwnedFd::from_raw_fd(fd) }, index }
    }

    /// Sends `bytes` as a packet of `protocol` (an ETH_P number); says whether the kernel took it.
    pub fn send(&self, protocol: u16, bytes: &[u8]) -> bool {
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol.to_be();
        to.sll_ifindex = self.index as i32;
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
