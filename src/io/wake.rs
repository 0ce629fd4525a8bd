//! Waking a worker that waits in its driver.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A doorbell: the worker's driver waits on it together with its devices.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// A new doorbell.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn new() -> nix::Result<Waker> {
        Ok(Waker(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)))
    }

    /// Rings it; the driver reports [`super::driver::Completion::Woken`].
    pub fn wake(&self) {
        // The only possible error is a counter at its limit, and then the worker is awake anyway.
        let _ = self.0.write(1);
    }

    /// Whether it rang since the last time it was asked.
    pub fn rang(&self) -> bool {
        self.0.read().is_ok()
    }

    /// Silences it after it rang.
    pub(super) fn clear(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
