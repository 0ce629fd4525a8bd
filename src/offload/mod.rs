//! Superpackets and datagram trains. Pure: no clock, no I/O; ranges instead of pointers.
//!
//! Four words carry the whole folder:
//!
//! | word | what | who makes it |
//! |---|---|---|
//! | superpacket | one TUN read or write larger than the MTU | the kernel's TSO/USO on read ([`split`] cuts it); [`coalesce`] on write |
//! | segment | one MTU-sized IP packet cut from a superpacket | [`split`] |
//! | datagram | one UDP payload | one segment, encapsulated |
//! | train | equal-sized datagrams to one endpoint in one buffer, sent in one call | [`train`], by UDP_SEGMENT; arrives as UDP_GRO with a [`stride`] |

pub mod coalesce;
pub mod split;
pub mod stride;
pub mod train;

/// A range of bytes in one of a worker's numbered buffers: how pure code points at bytes it does not own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The buffer's number.
    pub slot: u16,
    /// First byte.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}
