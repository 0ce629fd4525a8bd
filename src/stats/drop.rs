//! One variant per way a packet can die; doubles as counter index, label and help text.
//!
//! The first line of each says what it means, the second what to do about it; the table does not compile without either.

/// Which way the packet was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
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
    ($(#[doc = $meaning:literal] #[doc = $advice:literal] $variant:ident $direction:ident $label:literal;)*) => {
        /// Why a packet went no further. Every drop is counted under exactly one of these.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $meaning] #[doc = $advice] $variant,)*
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
                match self { $(DropReason::$variant => concat!($meaning, $advice).trim_ascii()),* }
            }
        }
    };
}

drop_reasons! {
    /// The TUN handed us bytes that are not an IP packet, or whose lengths lie.
    /// Find the program that writes raw packets to the interface: the kernel itself makes none like that.
    OutMalformed Outbound "out_malformed";
    /// The TUN handed us an offload header that does not fit its packet.
    /// Start with `--disable tso,uso`: if that helps, segmentation offload of this kernel is at fault.
    OutBadOffload Outbound "out_bad_offload";
    /// The packet is so long that no datagram holds it once it is sealed.
    /// Set a smaller MTU.
    OutTooLong Outbound "out_too_long";
    /// No peer has the destination in its allowed IPs.
    /// Add it to the allowed IPs of the peer that is to have it, or take away the route that leads it here; ICMP tells the sender.
    NoRoute Outbound "no_route";
    /// The peer has no address to send to yet.
    /// Set the peer's endpoint, or wait until it makes itself known by a handshake; ICMP tells the sender.
    NoEndpoint Outbound "no_endpoint";
    /// The peer had no session, and more than 128 packets waited for one: the oldest went.
    /// See whether handshakes with the peer come to an end: its endpoint, its keys, the firewalls between.
    StageFull Outbound "stage_full";
    /// No session could be made with the peer, or it ended: the packets that waited for it went.
    /// See that the peer runs, is reachable at its endpoint and knows our public key.
    NoSession Outbound "no_session";
    /// The packet was a datagram of ours to the peer that it was routed to: the peer's endpoint is routed into its own tunnel.
    /// Route the peer's endpoint past the tunnel, or set `--fwmark` and a rule for it.
    Looped Outbound "looped";
    /// The kernel refused the send; transient errors (no route, full queue) end here.
    /// A few are a full queue; if they go on, ask `ip route get` about the peer's endpoint, and the firewall.
    SendError Outbound "send_error";
    /// The datagram came from an address that belongs to no peer.
    /// If it is a peer, configure that address as its endpoint; else let the firewall keep it out.
    UnknownSource Inbound "unknown_source";
    /// The datagram was longer than our receive buffer and came cut off.
    /// Set a smaller MTU at the other end.
    Truncated Inbound "truncated";
    /// The datagram is not a WireGuard message: wrong type, length or reserved bytes.
    /// Strays are harmless; if a peer sends them, it speaks another protocol, or plaintext mode.
    NotWireGuard Inbound "not_wireguard";
    /// No session has the receiver index of the data message: it ended, or there never was one.
    /// A few follow every restart and renewal; if they go on, the peer does not hear our handshakes.
    UnknownIndex Inbound "unknown_index";
    /// The session of the data message is older than 180 seconds.
    /// A few follow a pause; if they go on, see why the peer's new handshakes do not arrive.
    KeyExpired Inbound "key_expired";
    /// The counter of the data message is beyond what a session may use.
    /// Restart the peer: no sound one gets that far.
    CounterExhausted Inbound "counter_exhausted";
    /// The tag of the data message does not fit: forged or damaged.
    /// Nothing was let in; if they are the peer's own, something on the path damages datagrams.
    BadTag Inbound "bad_tag";
    /// The data message was received before.
    /// Nothing was let in; if they are many, look for a path that doubles datagrams.
    Replayed Inbound "replayed";
    /// The data message is so late that the replay window does not reach back to it.
    /// Look for paths of very different delay, or a very long queue, between the peer and us.
    TooOld Inbound "too_old";
    /// The mac1 of the handshake message does not fit: its sender does not know our public key.
    /// If it was a peer, give it our public key; if it is a flood, it takes no room from others.
    BadMac1 Inbound "bad_mac1";
    /// Handshake messages whose mac1 fits, or cookie replies, came faster than they could be looked at.
    /// If peers get no sessions meanwhile, keep the flood out by a firewall.
    HandoffFull Inbound "handoff_full";
    /// The datagram does not hold an IP packet, or its lengths lie.
    /// The peer that seals such datagrams is at fault: see what runs there.
    InMalformed Inbound "in_malformed";
    /// The inner source address is not among the sending peer's allowed IPs.
    /// Add the source to the peer's allowed IPs, or have the peer keep to its own addresses.
    SourceNotAllowed Inbound "source_not_allowed";
    /// Packets kept waiting for a worker, and the sender of this TCP segment, who knows no ECN, had to be told to slow down.
    /// A few are how TCP finds its rate; if they are many, give the tunnel more workers or its workers more cores.
    QueueDelay Inbound "queue_delay";
    /// The interface is down.
    /// Set it up: `ip link set NAME up`.
    TunDown Inbound "tun_down";
    /// The kernel refused the packet as malformed.
    /// Start with `--disable tso,uso`, so that packets are written one by one: if that helps, joining is at fault.
    TunWriteError Inbound "tun_write_error";
}

/// How many reasons there are.
pub const DROP_REASONS: usize = DropReason::ALL.len();

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_says_in_a_sentence_what_it_means_and_in_another_what_to_do() {
        for reason in DropReason::ALL {
            let (meaning, advice) = reason.help().split_once(". ").expect("two sentences");
            assert!(advice.ends_with('.'), "{reason:?}: {advice}");
            for sentence in [meaning, advice] {
                let begins = sentence.starts_with(|letter: char| letter.is_ascii_uppercase());
                assert!(begins && sentence.split(' ').count() >= 4, "{reason:?}: {sentence}");
            }
        }
    }

    #[test]
    fn no_two_reasons_have_a_name_or_a_help_text_in_common() {
        let distinct = |text: fn(DropReason) -> &'static str| {
            DropReason::ALL.iter().map(|reason| text(*reason)).collect::<HashSet<_>>().len()
        };
        assert_eq!([distinct(DropReason::label), distinct(DropReason::help)], [DROP_REASONS; 2]);
    }
}
