//! ICMP errors, read field by field with sums of their own.

use super::ones_complement;

/// An ICMP error: who seems to send it, to whom, what it says, and the beginning of what it answers.
pub struct IcmpError<'a> {
    pub source: &'a [u8],
    pub destination: &'a [u8],
    pub kind: [u8; 2],
    pub quote: &'a [u8],
}

/// Host and address unreachable.
pub const UNREACHABLE: [[u8; 2]; 2] = [[3, 1], [1, 3]];

impl<'a> IcmpError<'a> {
    /// `packet` as an ICMP message; `None` if it is anything else.
    ///
    /// # Panics
    /// When a length or a checksum in it is wrong.
    pub fn read(packet: &'a [u8]) -> Option<IcmpError<'a>> {
        let v4 = packet[0] == 0x45 && packet[9] == 1;
        let v6 = packet[0] == 0x60 && packet[6] == 58;
        let (length, ends) = match (v4, v6) {
            (true, _) => (usize::from(word(packet, 2)), [12..16, 16..20]),
            (_, true) => (40 + usize::from(word(packet, 4)), [8..24, 24..40]),
            _ => return None,
        };
        assert_eq!(length, packet.len(), "the packet is as long as it says");
        let [source, destination] = ends.map(|end| &packet[end]);
        let (header, message) = packet.split_at(if v4 { 20 } else { 40 });
        let pseudo = [source, destination, &(message.len() as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
        let (covered, begun) = if v4 { (header, &[][..]) } else { (&[0xff, 0xff][..], &pseudo[..]) };
        assert_eq!(ones_complement(&[covered]), 0xffff, "the checksum of the IPv4 header");
        assert_eq!(ones_complement(&[begun, message]), 0xffff, "the checksum of the ICMP message");
        assert_eq!(message[4..8], [0; 4], "an unused field is zero");
        Some(IcmpError { source, destination, kind: [message[0], message[1]], quote: &message[8..] })
    }

    /// # Panics
    /// When it is not the whole and right answer to `packet`: that there is nobody, from whom it was for, and as much of it
    /// as the smallest MTU has room for.
    pub fn assert_answers(&self, packet: &[u8]) {
        let (ends, host, most) = if packet[0] >> 4 == 4 {
            ([12..16, 16..20], UNREACHABLE[0], 576 - 28)
        } else {
            ([8..24, 24..40], UNREACHABLE[1], 1280 - 48)
        };
        let [source, destination] = ends.map(|end| &packet[end]);
        assert_eq!((self.source, self.destination, self.kind), (destination, source, host));
        assert_eq!(self.quote, &packet[..packet.len().min(most)]);
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
