//! One variant per way a packet can die; doubles as counter index, label and help text.

/// Which way the packet was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the TUN to the network.
    Outbound,
    /// From the network to the TUN.
    Inbound,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

    /// The name in statistics.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[doc = $help:literal])+ $variant:ident $direction:ident $label:literal;)*) => {
        /// Why a packet went no further. Every drop is counted under exactly one of these.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $help])+ $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of its counter index.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant),*];

            /// The name in statistics.
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$variant => $label),* }
            }

            /// Which way the packet was going.
            pub const fn direction(self) -> Direction {
                match self { $(DropReason::$variant => Direction::$direction),* }
            }

            /// What it means and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($help),+).trim_ascii()),* }
            }
        }
    };
}

drop_reasons! {
    /// The TUN handed us bytes that are not an IP packet, or whose lengths lie.
    OutMalformed Outbound "out_malformed";
    /// The TUN handed us an offload header that does not fit its packet.
    OutBadOffload Outbound "out_bad_offload";
    /// The packet is so long that no datagram holds it once it is sealed: set a smaller MTU.
    OutTooLong Outbound "out_too_long";
    /// No peer has the destination in its allowed IPs.
    NoRoute Outbound "no_route";
    /// The peer has no address to send to yet.
    NoEndpoint Outbound "no_endpoint";
    /// The peer had no session, and more than 128 packets waited for one: the oldest went.
    StageFull Outbound "stage_full";
    /// No session could be made with the peer, or it ended: the packets that waited for it went.
    NoSession Outbound "no_session";
    /// The packet was a datagram of ours to the peer that it was routed to: the peer's endpoint is routed into its own tunnel.
    Looped Outbound "looped";
    /// The kernel refused the send; transient errors (no route, full queue) end here.
    SendError Outbound "send_error";
    /// The datagram came from an address that belongs to no peer.
    UnknownSource Inbound "unknown_source";
    /// The datagram was longer than our receive buffer and came cut off.
    Truncated Inbound "truncated";
    /// The datagram is not a WireGuard message: wrong type, length or reserved bytes.
    NotWireGuard Inbound "not_wireguard";
    /// No session has the receiver index of the data message: it ended, or there never was one.
    UnknownIndex Inbound "unknown_index";
    /// The session of the data message is older than 180 seconds.
    KeyExpired Inbound "key_expired";
    /// The counter of the data message is beyond what a session may use.
    CounterExhausted Inbound "counter_exhausted";
    /// The tag of the data message does not fit: forged or damaged.
    BadTag Inbound "bad_tag";
    /// The data message was received before.
    Replayed Inbound "replayed";
    /// The data message is so late that the replay window does not reach back to it.
    TooOld Inbound "too_old";
    /// Handshake messages came faster than they could be looked at.
    HandoffFull Inbound "handoff_full";
    /// The datagram does not hold an IP packet, or its lengths lie.
    InMalformed Inbound "in_malformed";
    /// The inner source address is not among the sending peer's allowed IPs.
    SourceNotAllowed Inbound "source_not_allowed";
    /// The interface is down.
    TunDown Inbound "tun_down";
    /// The kernel refused the packet as malformed.
    TunWriteError Inbound "tun_write_error";
}

/// How many reasons there are.
pub const DROP_REASONS: usize = DropReason::ALL.len();
