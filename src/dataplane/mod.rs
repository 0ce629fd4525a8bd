//! **The map.** One packet, one chain of calls; no syscalls, no waiting. rustdoc checks every link here.
//!
//! # Outbound: from the TUN to the network
//!
//! | # | where | what happens | may die as |
//! |---|---|---|---|
//! | 1 | [`DataWorker::on_tun_read`] | a leased buffer holds one TUN read: vnet header and superpacket | |
//! | 2 | [`outbound::superpacket`] | entry point of the walk | |
//! | 3 | [`VnetHdr::parse`], [`IpView::parse`] | once, before anything is cut | [`OutMalformed`] |
//! | 4 | [`View::route`], [`View::way_to`] | routed once: all segments share one flow; without a session they are staged; who has no way is told ([`Unreachable`]) | [`NoRoute`], [`NoEndpoint`], [`StageFull`], [`NoSession`], [`Looped`] |
//! | 5 | [`Split::plan`] | how the superpacket is cut | [`OutBadOffload`], [`OutTooLong`] |
//! | 6a | [`Split::spread`], [`Trains::adopt`] | a superpacket is cut where it lies: its buffer becomes a train | |
//! | 6b | [`Trains::reserve`] | others: room at the end of the peer's train; without a free buffer the read waits | |
//! | 7 | [`Split::emit`] | one pass copies the packet into its place and completes its checksum | |
//! | 8 | [`outbound::reserve`], [`Sealing::seal`] | each train, in place: one look-up of endpoint and session, one reservation of counters | [`NoRoute`], [`NoEndpoint`], [`NoSession`] |
//! | 9 | [`DataWorker::flush_trains`] | one submission per train: sendmsg with UDP_SEGMENT | |
//! | 10 | [`DataWorker::on_sent`] | a refused train goes again one by one; the buffer returns | [`SendError`] |
//!
//! # Inbound: from the network to the TUN
//!
//! | # | where | what happens | may die as |
//! |---|---|---|---|
//! | 1 | [`DataWorker::on_received`] | leased buffer, source, stride | [`TunDown`] |
//! | 2 | [`inbound::datagrams`] | entry point of the walk | [`Truncated`], [`UnknownSource`] |
//! | 3 | [`Received::datagrams`] | ranges of datagrams | |
//! | 4 | [`Opener::open`] | which session, opened in place, then the replay window; handshakes whose mac1 fits go to the protocol thread | [`NotWireGuard`], [`UnknownIndex`], [`KeyExpired`], [`CounterExhausted`], [`BadTag`], [`Replayed`], [`TooOld`], [`BadMac1`], [`HandoffFull`] |
//! | 5 | [`IpView::parse`] | and trimmed to the IP length | [`InMalformed`] |
//! | 6a | [`Opener::check_source`] | longest prefix over all peers | [`SourceNotAllowed`] |
//! | 6b | [`Codel::picks`] | what waited too long for us tells its sender to slow down: by a mark, else by its loss | [`QueueDelay`] |
//! | 7 | [`Coalescer::push`] | joins only the newest superpacket of its flow; ranges, no copy | |
//! | 8 | [`DataWorker::flush_writes`] | writev: rewritten header, payload ranges | |
//! | 9 | [`DataWorker::on_written`] | when no write borrows the buffer any more it goes back to the ring | [`TunDown`], [`TunWriteError`] |
//!
//! What the kernel had no room for never gets here: step 1 counts it as [`overflown`] when the next one comes.
//!
//! Plaintext mode takes the same way; [`Sealing`] and [`Opener`] then have nothing to do.
//!
//! While somebody captures, a [`Tap`] copies packets: outbound between reserving and sealing, inbound at step 9, and wherever one
//! is dropped.
//!
//! [`Tap`]: crate::worker::tap::Tap
//! [`Unreachable`]: crate::worker::unreachable::Unreachable
//! [`DataWorker::on_tun_read`]: crate::worker::data::DataWorker::on_tun_read
//! [`DataWorker::flush_trains`]: crate::worker::data::DataWorker::flush_trains
//! [`DataWorker::on_sent`]: crate::worker::data::DataWorker::on_sent
//! [`DataWorker::on_received`]: crate::worker::data::DataWorker::on_received
//! [`DataWorker::flush_writes`]: crate::worker::data::DataWorker::flush_writes
//! [`DataWorker::on_written`]: crate::worker::data::DataWorker::on_written
//! [`VnetHdr::parse`]: crate::wire::vnet_hdr::VnetHdr::parse
//! [`IpView::parse`]: crate::wire::ip::IpView::parse
//! [`View::route`]: view::View::route
//! [`View::way_to`]: view::View::way_to
//! [`Split::plan`]: crate::offload::split::Split::plan
//! [`Split::spread`]: crate::offload::split::Split::spread
//! [`Trains::adopt`]: crate::offload::train::Trains::adopt
//! [`Split::emit`]: crate::offload::split::Split::emit
//! [`Trains::reserve`]: crate::offload::train::Trains::reserve
//! [`Received::datagrams`]: crate::offload::stride::Received::datagrams
//! [`overflown`]: crate::stats::counters::WorkerCounters::overflown
//! [`Codel::picks`]: codel::Codel::picks
//! [`Coalescer::push`]: crate::offload::coalesce::Coalescer::push
//! [`Sealing`]: outbound::Sealing
//! [`Sealing::seal`]: outbound::Sealing::seal
//! [`Opener`]: encap::Opener
//! [`Opener::open`]: encap::Opener::open
//! [`Opener::check_source`]: encap::Opener::check_source
//! [`OutMalformed`]: crate::stats::drop::DropReason::OutMalformed
//! [`OutBadOffload`]: crate::stats::drop::DropReason::OutBadOffload
//! [`OutTooLong`]: crate::stats::drop::DropReason::OutTooLong
//! [`NoRoute`]: crate::stats::drop::DropReason::NoRoute
//! [`NoEndpoint`]: crate::stats::drop::DropReason::NoEndpoint
//! [`StageFull`]: crate::stats::drop::DropReason::StageFull
//! [`NoSession`]: crate::stats::drop::DropReason::NoSession
//! [`NotWireGuard`]: crate::stats::drop::DropReason::NotWireGuard
//! [`UnknownIndex`]: crate::stats::drop::DropReason::UnknownIndex
//! [`KeyExpired`]: crate::stats::drop::DropReason::KeyExpired
//! [`CounterExhausted`]: crate::stats::drop::DropReason::CounterExhausted
//! [`BadTag`]: crate::stats::drop::DropReason::BadTag
//! [`Replayed`]: crate::stats::drop::DropReason::Replayed
//! [`TooOld`]: crate::stats::drop::DropReason::TooOld
//! [`BadMac1`]: crate::stats::drop::DropReason::BadMac1
//! [`HandoffFull`]: crate::stats::drop::DropReason::HandoffFull
//! [`Looped`]: crate::stats::drop::DropReason::Looped
//! [`SendError`]: crate::stats::drop::DropReason::SendError
//! [`Truncated`]: crate::stats::drop::DropReason::Truncated
//! [`UnknownSource`]: crate::stats::drop::DropReason::UnknownSource
//! [`InMalformed`]: crate::stats::drop::DropReason::InMalformed
//! [`SourceNotAllowed`]: crate::stats::drop::DropReason::SourceNotAllowed
//! [`QueueDelay`]: crate::stats::drop::DropReason::QueueDelay
//! [`TunDown`]: crate::stats::drop::DropReason::TunDown
//! [`TunWriteError`]: crate::stats::drop::DropReason::TunWriteError

pub mod allowed_ips;
pub mod codel;
pub mod encap;
pub mod inbound;
pub mod outbound;
pub mod view;

use self::view::View;
use crate::stats::counters::WorkerCounters;
use crate::time::Time;

/// What both walks need beside the packet.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Routes, peers, sessions.
    pub view: &'a View,
    /// The time of this turn.
    pub now: Time,
    /// Where to count.
    pub counters: &'a WorkerCounters,
}
