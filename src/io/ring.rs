//! An io_uring of one thread, and the buffer rings that feed its multishot operations.
//!
//! Source: io_uring_setup(2), io_uring_register(2), io_uring_setup_buf_ring(3).

use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, CancelBuilder, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, Probe, SubmissionQueue, Submitter, opcode, squeue};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::lease::{BUFFER_BYTES, Lease};
use super::portion::Portion;
use crate::time::Span;

/// Submissions per enter at most; more are submitted in between.
const SUBMISSIONS: u32 = 256;
/// Four times as many completions: an overflow would end our multishot operations.
const COMPLETIONS: u32 = 4 * SUBMISSIONS;

/// Features that a ring can do without: those wanted, or those it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Completions come only when asked for (Linux 6.1); else COOP_TASKRUN.
    pub defer_taskrun: bool,
    /// One multishot read serves the TUN (Linux 6.7); else it takes single reads.
    pub multishot_read: bool,
}

/// All of them.
impl Default for Features {
    fn default() -> Self {
        Features { defer_taskrun: true, multishot_read: true }
    }
}

/// Whether this process may have a ring as we need it; those of the `wanted` features that it would have.
///
/// # Errors
/// As [`io_uring_setup(2)`]: EPERM when a sysctl or seccomp forbids it, ENOSYS without it, EINVAL below Linux 6.0.
///
/// [`io_uring_setup(2)`]: https://man7.org/linux/man-pages/man2/io_uring_setup.2.html
pub fn available(wanted: Features) -> io::Result<Features> {
    Ring::new(wanted).map(|ring| ring.features)
}

/// A ring whose submission and completion queues are always at hand.
pub(super) struct Ring {
    // These three borrow from `owner`; see `Drop`.
    submitter: ManuallyDrop<Submitter<'static>>,
    submissions: ManuallyDrop<SubmissionQueue<'static>>,
    completions: ManuallyDrop<CompletionQueue<'static>>,
    owner: NonNull<IoUring>,
    /// What it has of what was wanted.
    pub features: Features,
}

impl Ring {
    /// Sets up a ring for the calling thread, stepping down where the kernel is older.
    ///
    /// # Errors
    /// EPERM when a sysctl or seccomp forbids io_uring, ENOSYS without it, EINVAL below Linux 6.0.
    pub fn new(wanted: Features) -> io::Result<Ring> {
        let ladder: [Step; 3] = [
            (|b| b.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_no_sqarray(), true),
            (|b| b.setup_single_issuer().setup_defer_taskrun().setup_submit_all(), true),
            (|b| b.setup_single_issuer().setup_coop_taskrun().setup_submit_all(), false),
        ];
        let steps = ladder.into_iter().filter(|(_, defers)| wanted.defer_taskrun || !defers);
        let (ring, defer_taskrun) = set_up(steps)?;
        let owner = NonNull::from(Box::leak(Box::new(ring)));
        // SAFETY: the box lives until `drop`, which ends the three borrowers first; nothing else refers to it.
        let (mut submitter, submissions, completions) = unsafe { (*owner.as_ptr()).split() };
        // Saves a look-up per enter; a kernel without it (below 5.18) does without.
        let _ = submitter.register_ring_fd();
        let multishot_read = wanted.multishot_read && has_multishot_read(&submitter);
        Ok(Ring {
            features: Features { defer_taskrun, multishot_read },
            submitter: ManuallyDrop::new(submitter),
            submissions: ManuallyDrop::new(submissions),
            completions: ManuallyDrop::new(completions),
            owner,
        })
    }

    /// Registers the descriptors that submissions name by their index.
    pub fn register_files(&self, files: &[RawFd]) -> io::Result<()> {
        self.submitter.register_files(files)
    }

    /// Replaces registered descriptors from index `first` on; what is under way keeps the old ones until it ends.
    pub fn replace_files(&self, first: u32, files: &[RawFd]) -> io::Result<()> {
        match self.submitter.register_files_update(first, files)? {
            count if count == files.len() => Ok(()),
            count => Err(io::Error::other(format!("io_uring: {count} of {} files replaced", files.len()))),
        }
    }

    /// Queues a submission; a full queue is submitted first, which adds to `enters`.
    ///
    /// # Safety
    /// Everything `entry` points at must stay valid and, where the kernel writes, unread until its completion.
    pub unsafe fn push(&mut self, entry: &squeue::Entry, enters: &mut u64) -> io::Result<()> {
        // SAFETY: passed on to our caller.
        while unsafe { self.submissions.push(entry) }.is_err() {
            *enters += 1;
            self.enter(0, None)?;
        }
        Ok(())
    }

    /// Submits what is queued and waits for `want` completions, or until `timeout`.
    ///
    /// # Errors
    /// Never EINTR, ETIME, EBUSY or EAGAIN: those end the wait like a completion does.
    pub fn enter(&mut self, want: u32, timeout: Option<Span>) -> io::Result<()> {
        self.submissions.sync();
        let entered = match timeout {
            Some(span) => {
                let nanos = span.as_nanos();
                let spec = Timespec::new().sec(nanos / 1_000_000_000).nsec((nanos % 1_000_000_000) as u32);
                self.submitter.submit_with_args(want as usize, &SubmitArgs::new().timespec(&spec))
            }
            // GETEVENTS also without waiting: with DEFER_TASKRUN nothing completes otherwise.
            None if want == 0 => {
                let queued = self.submissions.len() as u32;
                // SAFETY: no argument is passed; (S).
                unsafe { self.submitter.enter::<()>(queued, 0, EnterFlags::GETEVENTS.bits(), None) }
            }
            None => self.submitter.submit_and_wait(want as usize),
        };
        self.submissions.sync();
        self.completions.sync();
        match entered {
            Err(error) if !ends_the_wait(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The next completion: user data, result, flags.
    pub fn next(&mut self) -> Option<(u64, i32, u32)> {
        let entry = self.completions.next()?;
        Some((entry.user_data(), entry.result(), entry.flags()))
    }

    /// Tells the kernel which completions were taken: else it counts them as news and the next wait ends at once.
    pub fn reaped(&mut self) {
        self.completions.sync();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel tears a ring down some time after it is closed, and until then its files stay open: the next
        // start would find the port and the TUN taken. So end what is pending and let go of the files here.
        let _ = self.submitter.register_sync_cancel(None, CancelBuilder::any());
        let _ = self.enter(0, None);
        let _ = self.submitter.unregister_files();
        // SAFETY: each is dropped once, and before the ring that it borrows from.
        unsafe {
            ManuallyDrop::drop(&mut self.submitter);
            ManuallyDrop::drop(&mut self.submissions);
            ManuallyDrop::drop(&mut self.completions);
            drop(Box::from_raw(self.owner.as_ptr()));
        }
    }
}

type Builder = io_uring::Builder<squeue::Entry, io_uring::cqueue::Entry>;

/// One way to set a ring up, and whether it has DEFER_TASKRUN.
type Step = (fn(&mut Builder) -> &mut Builder, bool);

fn set_up(ladder: impl Iterator<Item = Step>) -> io::Result<(IoUring, bool)> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for (step, defers) in ladder {
        let mut builder: Builder = IoUring::builder();
        match step(builder.setup_cqsize(COMPLETIONS)).build(SUBMISSIONS) {
            Ok(ring) => return Ok((ring, defers)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

fn has_multishot_read(submitter: &Submitter<'_>) -> bool {
    let mut probe = Probe::new();
    submitter.register_probe(&mut probe).is_ok() && probe.is_supported(opcode::ReadMulti::CODE)
}

fn ends_the_wait(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN))
}

/// A provided-buffer ring: buffers the kernel picks from when a multishot operation has something to deliver.
/// Registered before the first packet.
pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    mask: u16,
    tail: u16,
    group: u16,
    mapped_bytes: NonZeroUsize,
    /// The leases in the kernel's hands, by slot number minus `first_slot`.
    provided: Vec<Option<Lease>>,
    first_slot: u16,
    /// How many buffers the kernel still has.
    pub available: u16,
    /// How many it may have.
    portion: Portion,
    /// The others; the newest first, since it may still be in the cache.
    idle: Vec<Lease>,
}

impl BufferRing {
    /// Registers a ring for the buffers numbered `first_slot .. first_slot + count` (`count` a power of two) as `group`.
    ///
    /// # Errors
    /// EINVAL below Linux 5.19, ENOMEM.
    pub fn register(ring: &Ring, group: u16, first_slot: u16, count: u16) -> io::Result<BufferRing> {
        assert!(count.is_power_of_two(), "{count} buffers");
        let mapped_bytes =
            NonZeroUsize::new((count as usize * size_of::<BufRingEntry>()).next_multiple_of(4096))
                .expect("never zero");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping aliases nothing; page-aligned as the kernel wants.
        let base = unsafe { mmap_anonymous(None, mapped_bytes, protection, MapFlags::MAP_PRIVATE)? };
        // SAFETY: the mapping stays until `drop`, which the driver runs after the ring's.
        unsafe { ring.submitter.register_buf_ring_with_flags(base.as_ptr() as u64, count, group, 0)? };
        Ok(BufferRing {
            entries: base.cast(),
            mask: count - 1,
            tail: 0,
            group,
            mapped_bytes,
            provided: (0..count).map(|_| None).collect(),
            first_slot,
            available: 0,
            portion: Portion::default(),
            idle: Vec::with_capacity(usize::from(count)),
        })
    }

    /// The group's number, for submissions.
    pub fn group(&self) -> u16 {
        self.group
    }

    /// Whether `slot` belongs to this ring.
    pub fn owns(&self, slot: u16) -> bool {
        usize::from(slot.wrapping_sub(self.first_slot)) < self.provided.len()
    }

    /// Takes a buffer in that nobody uses.
    pub fn give_back(&mut self, lease: Lease) {
        self.idle.push(lease);
    }

    /// Gives the kernel as many buffers as suit packets of the length that arrives.
    pub fn top_up(&mut self) {
        self.top_up_to(self.portion.buffers());
    }

    /// Gives the kernel as many buffers as there are, but not more than `buffers` in all.
    pub fn top_up_to(&mut self, buffers: u16) {
        while self.available < buffers
            && let Some(lease) = self.idle.pop()
        {
            self.provide(lease);
        }
    }

    fn provide(&mut self, lease: Lease) {
        let index = usize::from(lease.slot() - self.first_slot);
        assert!(self.provided[index].is_none(), "buffer {} provided twice", lease.slot());
        // SAFETY: index within the mapping; the kernel reads an entry only after the tail has passed it.
        let entry = unsafe { &mut *self.entries.as_ptr().add(usize::from(self.tail & self.mask)) };
        entry.set_addr(lease.as_ptr() as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(lease.slot());
        self.tail = self.tail.wrapping_add(1);
        self.available += 1;
        self.provided[index] = Some(lease);
        // SAFETY: the tail lies in the first entry's reserved field, aligned, written by us alone.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        // Pairs with the kernel's acquire load of the tail before it reads entries.
        tail.store(self.tail, Ordering::Release);
    }

    /// Takes back the buffer that a completion named; `result` is the completion's, bytes or an error.
    pub fn take(&mut self, slot: u16, result: i32) -> Lease {
        self.available -= 1;
        self.portion.note(result.max(0) as u32);
        self.provided[usize::from(slot - self.first_slot)]
            .take()
            .expect("the kernel returns what it was given")
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: mapped in `register` and used by nobody else here; the kernel holds the pages of a ring that lives on.
        let _ = unsafe { munmap(self.entries.cast(), self.mapped_bytes.get()) };
    }
}
