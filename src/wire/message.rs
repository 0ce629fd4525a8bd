//! The four WireGuard messages as bytes: types, lengths, offsets.
//!
//! Source: WireGuard whitepaper §5.4.2 (initiation), §5.4.3 (response), §5.4.6 (data), §5.4.7 (cookie reply). All numbers
//! are little-endian.

use std::ops::Range;

/// Handshake initiation.
pub const TYPE_INITIATION: u8 = 1;
/// Handshake response.
pub const TYPE_RESPONSE: u8 = 2;
/// Cookie reply.
pub const TYPE_COOKIE: u8 = 3;
/// Transport data.
pub const TYPE_DATA: u8 = 4;

/// type 1 | reserved 3 | sender 4 | ephemeral 32 | static 32+16 | timestamp 12+16 | mac1 16 | mac2 16
pub const INITIATION_BYTES: usize = 148;
/// type 1 | reserved 3 | sender 4 | receiver 4 | ephemeral 32 | nothing 0+16 | mac1 16 | mac2 16
pub const RESPONSE_BYTES: usize = 92;
/// type 1 | reserved 3 | receiver 4 | nonce 24 | cookie 16+16
pub const COOKIE_BYTES: usize = 64;
/// type 1 | reserved 3 | receiver 4 | counter 8, before the sealed packet.
pub const DATA_HEADER_BYTES: usize = 16;
/// The tag behind the sealed packet.
pub const DATA_TAG_BYTES: usize = 16;
/// Header and tag: what a data message is longer than the packet and its padding.
pub const DATA_OVERHEAD_BYTES: usize = DATA_HEADER_BYTES + DATA_TAG_BYTES;
/// A data message with an empty packet is a keepalive.
pub const KEEPALIVE_BYTES: usize = DATA_OVERHEAD_BYTES;
/// The longest of the three messages that make sessions.
pub const HANDSHAKE_BYTES_MAX: usize = INITIATION_BYTES;
/// Packets are padded with zeros to a multiple of this before they are sealed.
pub const PADDING: usize = 16;

/// Where the fields of an initiation lie.
pub mod initiation {
    use super::Range;

    /// The initiator's index.
    pub const SENDER: Range<usize> = 4..8;
    /// Unencrypted ephemeral public key.
    pub const EPHEMERAL: Range<usize> = 8..40;
    /// Encrypted static public key and tag.
    pub const STATIC: Range<usize> = 40..88;
    /// Encrypted TAI64N timestamp and tag.
    pub const TIMESTAMP: Range<usize> = 88..116;
    /// MAC that proves the sender knows whom it talks to.
    pub const MAC1: Range<usize> = 116..132;
    /// MAC that proves it owns its address.
    pub const MAC2: Range<usize> = 132..148;
}

/// Where the fields of a response lie.
pub mod response {
    use super::Range;

    /// The responder's index.
    pub const SENDER: Range<usize> = 4..8;
    /// The initiator's index.
    pub const RECEIVER: Range<usize> = 8..12;
    /// Unencrypted ephemeral public key.
    pub const EPHEMERAL: Range<usize> = 12..44;
    /// The tag of an empty text.
    pub const NOTHING: Range<usize> = 44..60;
    /// See [`super::initiation::MAC1`].
    pub const MAC1: Range<usize> = 60..76;
    /// See [`super::initiation::MAC2`].
    pub const MAC2: Range<usize> = 76..92;
}

/// Where the fields of a cookie reply lie.
pub mod cookie {
    use super::Range;

    /// The index in the message that is answered.
    pub const RECEIVER: Range<usize> = 4..8;
    /// Nonce of XChaCha20-Poly1305.
    pub const NONCE: Range<usize> = 8..32;
    /// Encrypted cookie and tag.
    pub const COOKIE: Range<usize> = 32..64;
}

const _: () = assert!(initiation::MAC2.end == INITIATION_BYTES);
const _: () = assert!(response::MAC2.end == RESPONSE_BYTES);
const _: () = assert!(cookie::COOKIE.end == COOKIE_BYTES);

/// What a datagram claims to be, by its type, its reserved bytes and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A data message for this receiver index with this counter; at least [`KEEPALIVE_BYTES`] long.
    Data {
        /// Names the session.
        receiver: u32,
        /// The nonce.
        counter: u64,
    },
    /// A message that makes sessions; see [`Handshake`].
    Handshake(Handshake),
}

/// Which of the messages that make sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// [`INITIATION_BYTES`] long.
    Initiation,
    /// [`RESPONSE_BYTES`] long.
    Response,
    /// [`COOKIE_BYTES`] long.
    Cookie,
}

/// Tells what `datagram` claims to be; `None` if it is no WireGuard message.
pub fn classify(datagram: &[u8]) -> Option<Kind> {
    let kind = u32::from_le_bytes(*datagram.first_chunk()?);
    // The three reserved bytes are zero, so the first word is the type.
    match (kind, datagram.len()) {
        (4, KEEPALIVE_BYTES..) => Some(Kind::Data {
            receiver: u32::from_le_bytes(*datagram[4..].first_chunk()?),
            counter: u64::from_le_bytes(*datagram[8..].first_chunk()?),
        }),
        (1, INITIATION_BYTES) => Some(Kind::Handshake(Handshake::Initiation)),
        (2, RESPONSE_BYTES) => Some(Kind::Handshake(Handshake::Response)),
        (3, COOKIE_BYTES) => Some(Kind::Handshake(Handshake::Cookie)),
        _ => None,
    }
}

/// Writes the header of a data message into the first [`DATA_HEADER_BYTES`] of `message`.
pub fn emit_data_header(message: &mut [u8], receiver: u32, counter: u64) {
    message[..4].copy_from_slice(&u32::from(TYPE_DATA).to_le_bytes());
    message[4..8].copy_from_slice(&receiver.to_le_bytes());
    message[8..16].copy_from_slice(&counter.to_le_bytes());
}

/// Bytes of a packet of `packet_bytes` with its padding: up to a multiple of [`PADDING`], but not past `mtu`. A packet longer
/// than the MTU is padded as if it were cut at the MTU, as the kernel does.
///
/// Source: drivers/net/wireguard/send.c `calculate_skb_padding`.
pub fn padded_bytes(packet_bytes: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return packet_bytes.next_multiple_of(PADDING);
    }
    let last_unit = if packet_bytes > mtu { packet_bytes % mtu } else { packet_bytes };
    packet_bytes - last_unit + last_unit.next_multiple_of(PADDING).min(mtu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_known_by_type_reserved_bytes_and_length() {
        for (first, bytes, expected) in [
            (1, 148, Some(Kind::Handshake(Handshake::Initiation))),
            (2, 92, Some(Kind::Handshake(Handshake::Response))),
            (3, 64, Some(Kind::Handshake(Handshake::Cookie))),
            (4, 32, Some(Kind::Data { receiver: 0, counter: 0 })),
            (1, 147, None),
            (1, 149, None),
            (2, 91, None),
            (3, 65, None),
            (4, 31, None),
            (0, 148, None),
            (5, 148, None),
        ] {
            let mut datagram = vec![0; bytes];
            datagram[0] = first;
            assert_eq!(classify(&datagram), expected, "type {first}, {bytes} bytes");
            datagram[2] = 1;
            assert_eq!(classify(&datagram), None, "type {first} with a reserved byte set");
        }
    }

    #[test]
    fn the_data_header_is_read_as_it_was_written() {
        let mut message = [0xff; 40];
        emit_data_header(&mut message, 0x0403_0201, 0x0807_0605_0403_0201);
        assert_eq!(message[..16], [4, 0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            classify(&message),
            Some(Kind::Data { receiver: 0x0403_0201, counter: 0x0807_0605_0403_0201 })
        );
    }

    #[test]
    fn padding_ends_at_the_mtu() {
        for (packet, mtu, padded) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
            (84, 84, 84),
        ] {
            assert_eq!(padded_bytes(packet, mtu), padded, "{packet} bytes at {mtu}");
        }
        assert_eq!(padded_bytes(1421, 1420), 1436);
    }

    proptest! {
        #[test]
        fn any_bytes_classify_without_panic(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(Kind::Data { .. }) = classify(&datagram) {
                prop_assert!(datagram.len() >= KEEPALIVE_BYTES);
            }
        }

        #[test]
        fn padding_never_shortens_and_adds_less_than_sixteen(packet in 0usize..70_000, mtu in 68usize..70_000) {
            let padded = padded_bytes(packet, mtu);
            prop_assert!(padded >= packet && padded < packet + PADDING);
            prop_assert!(packet > mtu || padded <= mtu);
        }
    }
}
