//! The kernel. The only folder where `unsafe` is allowed.
//!
//! ```text
//!            worker (safe code)                      driver                          kernel
//!   Lease ── owns the bytes ──┐                                                        
//!        lend(lease) ─────────┼──▶ Loans: counts the operations that use a buffer ──▶ reads it
//!        send / write ────────┘        │ none left                                       
//!                                      ▼                                                 
//!                            goes home: send pool, TUN group, UDP group ──────────────▶ fills it
//!   Completion{lease} ◀──────────────────────────────────────────────────────────────── done
//! ```
//!
//! # The arguments that `SAFETY` comments point at
//!
//! * **(L) lease.** Buffer memory is mapped once and never unmapped. A [`lease::Lease`] is the only way to its bytes and
//!   cannot be copied; while the kernel may touch a buffer its lease sits in the driver's tables, out of the worker's
//!   reach, and only a reaped completion takes it out.
//! * **(O) operation memory.** What a submission points at besides buffers (msghdr, iovec, address, control bytes) lies in
//!   a slot of a fixed table that neither moves nor is used again before the completion of that submission.
//! * **(S) single issuer.** One thread creates, submits to and reaps a ring; the driver is not `Send`.
//! * **(H) handed in.** A descriptor that whoever started us opened is ours alone; its number is taken over once.
//! * **(R) repr.** Structures that cross the boundary are `repr(C)`, from libc or checked for size at compile time.
//!
//! # Which feature needs which kernel
//!
//! `uringvpn probe` ([`features`]) prints this table for the running kernel, with what we do without.
#![allow(unsafe_code)]

pub mod allocations;
pub mod clock;
pub mod cmsg;
pub mod daemon;
pub mod descriptor;
pub mod driver;
pub mod fake;
pub mod features;
pub mod lease;
pub mod mailer;
pub mod message;
mod portion;
pub mod ring;
pub mod steer;
pub mod sys;
pub mod syscall;
pub mod tcp;
pub mod tun;
pub mod udp;
pub mod uring;
pub mod wake;

pub use portion::BUFFERS_PER_WORKER;
