//! Kernel interfaces that libc and nix lack in a safe form: ioctl requests, a repr(C) struct, plain socket options.
//!
//! Everything here takes and returns numbers; the `unsafe` blocks are the system calls themselves.
//!
//! Source: linux/if_tun.h, linux/if.h, linux/filter.h, linux/udp.h, ioctl_tun in tun(4), setsockopt(2).

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::Result;
use nix::errno::Errno;

/// Makes a system call until it is not interrupted, and turns -1 into errno.
///
/// # Errors
/// The kernel's errno.
pub fn uninterrupted(mut call: impl FnMut() -> isize) -> Result<usize> {
    loop {
        match Errno::result(call()) {
            Err(Errno::EINTR) => {}
            result => return result.map(|value| value as usize),
        }
    }
}

/// The argument of TUNSETIFF: `struct ifreq` with its union used as `ifr_flags`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FlagsRequest {
    /// Interface name or pattern, NUL-terminated; the kernel writes the real name back.
    pub name: [u8; libc::IFNAMSIZ],
    /// IFF_TUN and friends.
    pub flags: libc::c_short,
    unused: [u8; 22],
}
const _: () = assert!(size_of::<FlagsRequest>() == size_of::<libc::ifreq>());
const _: () = assert!(size_of::<FlagsRequest>() == 40 || cfg!(target_pointer_width = "32"));

impl FlagsRequest {
    /// A request for `name` (cut after 15 bytes: callers check the length first) with `flags`.
    pub fn new(name: &str, flags: libc::c_int) -> FlagsRequest {
        let mut request =
            FlagsRequest { name: [0; libc::IFNAMSIZ], flags: flags as libc::c_short, unused: [0; 22] };
        // A slice writer stops when full; the last byte stays the terminating NUL.
        let _ = (&mut request.name[..libc::IFNAMSIZ - 1]).write(name.as_bytes());
        request
    }

    /// The name the kernel settled on.
    pub fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

// What rtnetlink tells about a TUN inside IFLA_LINKINFO/IFLA_INFO_DATA. Source: linux/if_link.h.
/// u8: 1 for a TUN, 2 for a TAP.
pub const IFLA_TUN_TYPE: u16 = 3;
/// u8: 1 if packets have a `struct tun_pi` in front, that is without IFF_NO_PI.
pub const IFLA_TUN_PI: u16 = 4;
/// u8: 1 if the device outlives its last queue.
pub const IFLA_TUN_PERSIST: u16 = 6;
/// u8: 1 if created with IFF_MULTI_QUEUE.
pub const IFLA_TUN_MULTI_QUEUE: u16 = 7;
/// u32: queues attached; only on a multi-queue device.
pub const IFLA_TUN_NUM_QUEUES: u16 = 8;
/// u32: queues attached but switched off; only on a multi-queue device.
pub const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// TUNSETIFF: attaches the open `/dev/net/tun` to an interface, creating it if need be.
///
/// # Errors
/// The kernel's errno; its meaning is decided in [`super::tun`].
///
/// Source: linux/if_tun.h.
pub fn tun_set_iff(fd: BorrowedFd<'_>, request: &mut FlagsRequest) -> Result<()> {
    // SAFETY: (R) FlagsRequest has the size of `struct ifreq`; the kernel reads and writes only within it.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, request as *mut FlagsRequest) })
        .map(drop)
}

/// TUNGETIFF: name and flags of the interface that `fd` is attached to. The flag IFF_NO_PI is no use here: it has the
/// value of IFF_NOFILTER, which the kernel sets in its answer.
///
/// # Errors
/// EBADFD when it is attached to none (any more), ENOTTY when it is no `/dev/net/tun` at all.
///
/// Source: linux/if_tun.h.
pub fn tun_iff(fd: BorrowedFd<'_>) -> Result<FlagsRequest> {
    let mut request = FlagsRequest::new("", 0);
    // SAFETY: (R) FlagsRequest has the size of `struct ifreq`; the kernel writes only within it.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    Ok(request)
}

/// TUNGETDEVNETNS: the network namespace in which the interface of `fd` lives now.
///
/// # Errors
/// EBADFD when it is attached to none (any more), EPERM without CAP_NET_ADMIN there, EINVAL below Linux 5.8.
///
/// Source: linux/if_tun.h.
pub fn tun_netns(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: this request takes no argument.
    let netns = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETDEVNETNS as _) })?;
    // SAFETY: the kernel just opened this descriptor for us, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(netns) })
}

/// TUNSETVNETHDRSZ: bytes in front of every packet read or written; at least 10.
///
/// # Errors
/// EINVAL below 10.
///
/// Source: linux/if_tun.h.
pub fn tun_set_vnet_hdr_bytes(fd: BorrowedFd<'_>, bytes: libc::c_int) -> Result<()> {
    // SAFETY: the argument is a pointer to an int that lives across the call; the kernel only reads it.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const bytes) })
        .map(drop)
}

/// TUNSETOFFLOAD: which TUN_F_* offloads the reader of this device understands; replaces the former set.
///
/// # Errors
/// EINVAL when the kernel does not know one of them.
///
/// Source: linux/if_tun.h.
pub fn tun_set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> Result<()> {
    // SAFETY: this request takes its argument by value, no memory is involved.
    Errno::result(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags))
    })
    .map(drop)
}

/// Sets an integer socket option.
///
/// # Errors
/// The kernel's errno.
///
/// Source: setsockopt(2).
pub fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> Result<()> {
    // SAFETY: pointer and length describe one int that lives across the call; the kernel only reads it.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Reads an integer socket option.
///
/// # Errors
/// The kernel's errno.
///
/// Source: getsockopt(2).
pub fn option(socket: impl AsFd, level: libc::c_int, name: libc::c_int) -> Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length describe one int that lives across the call; the kernel writes at most `bytes`.
    Errno::result(unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut bytes)
    })?;
    Ok(value)
}

/// Hands a classic BPF program to the socket: SO_ATTACH_FILTER or SO_ATTACH_REUSEPORT_CBPF.
///
/// # Errors
/// EINVAL for a program the kernel's checker refuses or, for the group, a socket bound without SO_REUSEPORT; EPERM on
/// a socket whose filter is locked; ENOMEM.
///
/// Source: linux/filter.h, socket(7).
pub fn attach_program(socket: impl AsFd, option: libc::c_int, program: &[libc::sock_filter]) -> Result<()> {
    let Ok(len) = libc::c_ushort::try_from(program.len()) else { return Err(Errno::EINVAL) };
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` points at `len` instructions borrowed across the call; the kernel copies and never writes them.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_in_and_comes_back_and_a_long_one_is_cut() {
        assert_eq!(FlagsRequest::new("uring%d", libc::IFF_TUN).name(), "uring%d");
        assert_eq!(FlagsRequest::new("0123456789abcdefgh", 0).name(), "0123456789abcde");
        assert_eq!(FlagsRequest::new("", 0).name(), "");
    }

    #[test]
    fn an_option_set_is_the_option_read() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
        assert_eq!(option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT), Ok(1));
        assert_eq!(set_option(&socket, libc::SOL_SOCKET, 9999, 1), Err(Errno::ENOPROTOOPT));
    }
}
