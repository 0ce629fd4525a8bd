//! Descriptors that whoever started us opened for us, by number: `WG_TUN_FD`, `WG_UAPI_FD`.

use std::collections::HashSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// Numbers that were taken: a second owner would close somebody else's descriptor one day.
static TAKEN: Mutex<Option<HashSet<RawFd>>> = Mutex::new(None);

/// Takes over descriptor `number`, which was open when the program started; children do not inherit it, and it does not
/// block.
///
/// # Errors
/// EBADF if there is no such descriptor, or it was taken before; EINVAL for standard input, output and error.
pub fn take(number: RawFd) -> Result<OwnedFd, Errno> {
    if number <= libc::STDERR_FILENO {
        return Err(Errno::EINVAL);
    }
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !taken.get_or_insert_default().insert(number) {
        return Err(Errno::EBADF);
    }
    // SAFETY: (H) the number was handed in, nobody else of this process owns it, and it is taken once.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    let flags = OFlag::from_bits_retain(fcntl(borrowed, FcntlArg::F_GETFL)?);
    fcntl(borrowed, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: (H) as above, and fcntl found it open.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_descriptor_is_taken_once_and_only_if_it_is_there() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let number = read.into_raw_fd();
        assert!(take(number).is_ok());
        assert_eq!(take(number).unwrap_err(), Errno::EBADF);
        assert_eq!(take(1).unwrap_err(), Errno::EINVAL);
        assert_eq!(take(i32::MAX).unwrap_err(), Errno::EBADF);
    }
}
