//! Buffers with an owner: the worker holds a [`Lease`], or the driver does on the kernel's behalf.

use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

use crate::offload::Part;

/// Bytes per buffer: one TUN superpacket or one GRO receive of 65,535 bytes with what the kernel puts in front of it,
/// rounded up to pages.
pub const BUFFER_BYTES: usize = 69_632;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Exclusive access to one buffer. Not `Clone`: whoever holds it owns the bytes.
#[derive(Debug)]
pub struct Lease {
    slot: u16,
    bytes: NonNull<u8>,
}

// SAFETY: (L) a lease is the only way to its bytes, and they are plain memory valid in every thread.
unsafe impl Send for Lease {}

impl Lease {
    /// The buffer's number within its worker.
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// Where the buffer starts, for a submission.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.bytes.as_ptr()
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: (L) the mapping is BUFFER_BYTES long from here, initialised (zero pages), never unmapped, and ours alone.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), BUFFER_BYTES) }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), BUFFER_BYTES) }
    }
}

/// Maps `count` buffers and hands out their leases, numbered from 0. The memory is never given back: a ring may still
/// write into it after its worker has gone.
///
/// # Errors
/// ENOMEM.
pub fn map(count: u16) -> io::Result<Vec<Lease>> {
    // Whole huge pages, and one more, so that the first buffer can start on a huge-page boundary.
    let bytes = (count as usize * BUFFER_BYTES).next_multiple_of(HUGE_PAGE_BYTES);
    let mapped = NonZeroUsize::new(bytes + HUGE_PAGE_BYTES).expect("never zero");
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping aliases nothing.
    let base = unsafe { mmap_anonymous(None, mapped, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags)? };
    let skip = base.as_ptr().align_offset(HUGE_PAGE_BYTES);
    // SAFETY: skip < HUGE_PAGE_BYTES, the slack mapped above.
    let start = unsafe { base.cast::<u8>().add(skip) };
    // SAFETY: the range lies in the mapping. Without huge pages everything works as well, so the result does not matter.
    let _ = unsafe { madvise(start.cast(), bytes, MmapAdvise::MADV_HUGEPAGE) };
    Ok((0..count)
        .map(|slot| {
            // SAFETY: slot < count, so the buffer lies in the mapping.
            let bytes = unsafe { start.add(slot as usize * BUFFER_BYTES) };
            Lease { slot, bytes }
        })
        .collect())
}

/// The free buffers of a driver, by what they are for.
#[derive(Debug)]
pub(super) struct Pools {
    /// For TUN reads: slots below `tun_end`.
    pub tun: Vec<Lease>,
    /// For receives: slots from there to `receive_end`.
    pub receive: Vec<Lease>,
    /// For trains: all others.
    pub send: Vec<Lease>,
    tun_end: u16,
    receive_end: u16,
}

impl Pools {
    /// Sorts `leases`: the first `tun` are for TUN reads, the `receive` that follow for receives, the rest for trains.
    pub fn sort(leases: Vec<Lease>, tun: u16, receive: u16) -> Pools {
        let (tun_end, receive_end) = (tun, tun + receive);
        let mut pools =
            Pools { tun: Vec::new(), receive: Vec::new(), send: Vec::new(), tun_end, receive_end };
        leases.into_iter().for_each(|lease| pools.take_home(lease));
        pools
    }

    /// Takes a buffer in that nobody uses.
    pub fn take_home(&mut self, lease: Lease) {
        match lease.slot() {
            slot if slot < self.tun_end => self.tun.push(lease),
            slot if slot < self.receive_end => self.receive.push(lease),
            _ => self.send.push(lease),
        }
    }
}

/// The leases that the worker lent to the driver, and how many operations use each.
#[derive(Debug)]
pub(super) struct Loans {
    entries: Vec<Loan>,
    /// Slots whose count may have come to zero; checked in [`Loans::collect`].
    settled: Vec<u16>,
}

#[derive(Debug, Default)]
struct Loan {
    lease: Option<Lease>,
    uses: u16,
}

impl Loans {
    /// For buffers numbered below `slots`.
    pub fn new(slots: usize) -> Loans {
        Loans { entries: (0..slots).map(|_| Loan::default()).collect(), settled: Vec::with_capacity(slots) }
    }

    /// Takes a lease in; it comes back from the next [`Loans::collect`] at which no operation uses it.
    pub fn lend(&mut self, lease: Lease) {
        let slot = lease.slot;
        let entry = &mut self.entries[slot as usize];
        assert!(entry.lease.is_none(), "buffer {slot} lent twice");
        entry.lease = Some(lease);
        self.settled.push(slot);
    }

    /// Counts one more operation on each of `parts`, from when it is queued.
    ///
    /// # Panics
    /// When a range does not lie in a buffer that is lent: the worker was wrong.
    pub fn begin_use(&mut self, parts: &[Part]) {
        for part in parts {
            self.address(*part);
            self.entries[part.slot as usize].uses += 1;
        }
    }

    /// Ends the uses that [`Loans::begin_use`] counted, when the operation has completed.
    pub fn end_use(&mut self, parts: &[Part]) {
        for part in parts {
            let entry = &mut self.entries[part.slot as usize];
            assert!(entry.uses > 0, "buffer {} has no use to end", part.slot);
            entry.uses -= 1;
            if entry.uses == 0 {
                self.settled.push(part.slot);
            }
        }
    }

    /// Where the bytes of `part` lie.
    ///
    /// # Panics
    /// As [`Loans::begin_use`].
    pub fn address(&self, part: Part) -> *mut u8 {
        let Part { slot, start, len } = part;
        let Some(lease) = &self.entries[slot as usize].lease else {
            panic!("buffer {slot} is used but not lent")
        };
        assert!(start as usize + len as usize <= BUFFER_BYTES, "range {start}+{len} leaves buffer {slot}");
        // SAFETY: start lies within the buffer, as just checked.
        unsafe { lease.as_ptr().add(start as usize) }
    }

    /// The bytes of `part`.
    ///
    /// # Panics
    /// As [`Loans::begin_use`].
    pub fn bytes(&self, part: Part) -> &[u8] {
        let bytes = self.address(part);
        // SAFETY: (L) the range lies in a lent buffer, as was just checked, and operations only read those.
        unsafe { std::slice::from_raw_parts(bytes, part.len as usize) }
    }

    /// Hands every lease that nothing uses to `home`.
    pub fn collect(&mut self, mut home: impl FnMut(Lease)) {
        while let Some(slot) = self.settled.pop() {
            let entry = &mut self.entries[slot as usize];
            if entry.uses == 0
                && let Some(lease) = entry.lease.take()
            {
                home(lease);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_start_zeroed() {
        let mut leases = map(3).expect("memory");
        for lease in &mut leases {
            assert!(lease.iter().all(|byte| *byte == 0));
            let mark = lease.slot() as u8 + 1;
            lease.fill(mark);
        }
        for lease in &leases {
            assert!(lease.iter().all(|byte| *byte == lease.slot() as u8 + 1));
        }
    }

    #[test]
    fn a_lent_buffer_comes_home_once_and_only_after_its_last_use() {
        let mut loans = Loans::new(2);
        let mut leases = map(2).expect("memory");
        loans.lend(leases.pop().expect("two"));
        let part = Part { slot: 1, start: 0, len: 10 };
        loans.begin_use(&[part, Part { start: 10, ..part }]);
        let mut home = Vec::new();
        loans.collect(|lease| home.push(lease.slot()));
        loans.end_use(&[part]);
        loans.collect(|lease| home.push(lease.slot()));
        assert!(home.is_empty());
        loans.end_use(&[part]);
        loans.collect(|lease| home.push(lease.slot()));
        loans.collect(|lease| home.push(lease.slot()));
        assert_eq!(home, [1]);
    }

    #[test]
    #[should_panic(expected = "not lent")]
    fn using_a_buffer_that_is_not_lent_is_our_bug() {
        Loans::new(1).begin_use(&[Part { slot: 0, start: 0, len: 1 }]);
    }
}
