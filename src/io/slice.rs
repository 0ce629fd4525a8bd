//! How long the scheduler lets a thread run before it looks for another one.
//!
//! The fair scheduler gives each thread its share in slices, of 0.7 ms times one to four by the number of processors unless a
//! thread asks for others (Linux 6.12). A longer one takes nothing from anybody: the next comes later, too.
//!
//! Source: sched(7), sched_setattr(2), kernel/sched/syscalls.c `__setparam_fair`.

use std::mem::MaybeUninit;

use nix::errno::Errno;

use crate::time::Span;

/// Asks for slices of `length` for the calling thread. Older kernels take the wish and ignore it. A thread with another policy than
/// the usual one keeps what it has: somebody has thought about it.
///
/// # Errors
/// The kernel's errno: a filter of system calls, as in some containers.
pub fn prefer(length: Span) -> nix::Result<()> {
    let mut attributes = attributes()?;
    if attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_runtime = length.as_nanos();
        // SAFETY: (R) the kernel reads `size` bytes of a `struct sched_attr` that lives across the call.
        Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    }
    Ok(())
}

/// What the calling thread has.
fn attributes() -> nix::Result<libc::sched_attr> {
    let mut attributes = MaybeUninit::<libc::sched_attr>::zeroed();
    let size = size_of::<libc::sched_attr>();
    // SAFETY: (R) the kernel writes at most `size` bytes of a `struct sched_attr` that lives across the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) })?;
    // SAFETY: all zero is a valid `sched_attr`, and so is what the kernel wrote.
    Ok(unsafe { attributes.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_the_slices_it_asked_for_and_is_as_nice_as_before() {
        std::thread::spawn(|| {
            let before = attributes().unwrap();
            prefer(Span::from_millis(3)).unwrap();
            let after = attributes().unwrap();
            assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
            // Before Linux 6.12 there is nothing to be had.
            assert!([3_000_000, before.sched_runtime].contains(&after.sched_runtime));
        })
        .join()
        .unwrap();
    }
}
