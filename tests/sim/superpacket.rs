//! What the kernel makes of a TUN write or means by a TUN read: an offload header and a packet, cut into packets.
//!
//! A second implementation, on purpose: it judges `offload::split` and `offload::coalesce` and shares nothing with them.
//! Source: linux/virtio_net.h; net/ipv4/tcp_offload.c, udp_offload.c.

const VNET: usize = 16;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The packets in `bytes`, an offload header and what stands behind it, each as it looks on the wire.
pub fn packets(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let (vnet, packet) = bytes.split_at_checked(VNET).ok_or("shorter than the offload header")?;
    let field = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
    let (flags, gso_type) = (vnet[0], vnet[1]);
    let (gso_size, csum_start, csum_offset) = (field(4), field(6), field(8));
    if total_bytes(packet)? != packet.len() {
        return Err(format!("{} bytes written, the header says {}", packet.len(), total_bytes(packet)?));
    }
    if gso_type == 0 {
        let mut packet = packet.to_vec();
        if flags & 1 != 0 {
            let udp = csum_offset == 6;
            complete(&mut packet, csum_start, csum_offset, udp)?;
        }
        return Ok(vec![packet]);
    }
    let v4 = packet[0] >> 4 == 4;
    let protocol = match (gso_type & 0x7f, v4) {
        (1, true) | (4, false) => TCP,
        (5, _) => UDP,
        _ => return Err(format!("gso_type {gso_type} on IPv{}", packet[0] >> 4)),
    };
    if flags & 1 == 0 || gso_size == 0 || csum_offset != if protocol == TCP { 16 } else { 6 } {
        return Err(format!("offload header {vnet:?} makes no sense"));
    }
    let header_bytes = match protocol {
        TCP => csum_start + usize::from(*packet.get(csum_start + 12).ok_or("no TCP header")? >> 4) * 4,
        _ => csum_start + 8,
    };
    let (header, payload) = packet.split_at_checked(header_bytes).ok_or("no transport header")?;
    let begun = pseudo_header(header, protocol, packet.len() - csum_start);
    if fold(begun) != word(header, csum_start + csum_offset) {
        return Err("the checksum was not begun with the pseudo-header".into());
    }
    let count = payload.len().div_ceil(gso_size);
    let cut = Cut { header, v4, protocol, start: csum_start, count };
    Ok(payload
        .chunks(gso_size)
        .enumerate()
        .map(|(index, payload)| cut.packet(index, gso_size, payload))
        .collect())
}

/// The segmentation that an offload header asks for; 0 is none.
pub fn gso_type(bytes: &[u8]) -> u8 {
    bytes.get(1).map_or(0, |gso_type| gso_type & 0x7f)
}

struct Cut<'a> {
    header: &'a [u8],
    v4: bool,
    protocol: u8,
    /// Where the transport header starts.
    start: usize,
    count: usize,
}

impl Cut<'_> {
    fn packet(&self, index: usize, gso_size: usize, payload: &[u8]) -> Vec<u8> {
        let start = self.start;
        let mut packet = [self.header, payload].concat();
        let total = packet.len();
        if self.v4 {
            put(&mut packet, 2, total as u16);
            let id = word(self.header, 4).wrapping_add(index as u16);
            put(&mut packet, 4, id);
            put(&mut packet, 10, 0);
            let checksum = !fold(sum(&packet[..start]));
            put(&mut packet, 10, checksum);
        } else {
            put(&mut packet, 4, (total - 40) as u16);
        }
        let transport_bytes = total - start;
        let field = if self.protocol == TCP {
            let sequence = u32::from_be_bytes([
                packet[start + 4],
                packet[start + 5],
                packet[start + 6],
                packet[start + 7],
            ]);
            let sequence = sequence.wrapping_add((index * gso_size) as u32);
            packet[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            if index > 0 {
                packet[start + 13] &= !0x80; // CWR
            }
            if index + 1 < self.count {
                packet[start + 13] &= !0x09; // FIN, PSH
            }
            start + 16
        } else {
            put(&mut packet, start + 4, transport_bytes as u16);
            start + 6
        };
        put(&mut packet, field, 0);
        let checksum = !fold(pseudo_header(&packet, self.protocol, transport_bytes) + sum(&packet[start..]));
        put(&mut packet, field, if self.protocol == UDP && checksum == 0 { 0xffff } else { checksum });
        packet
    }
}

fn complete(packet: &mut [u8], start: usize, offset: usize, udp: bool) -> Result<(), String> {
    let covered = packet.get(start..).filter(|covered| covered.len() >= offset + 2);
    let checksum = !fold(sum(covered.ok_or("a checksum behind the packet")?));
    put(packet, start + offset, if udp && checksum == 0 { 0xffff } else { checksum });
    Ok(())
}

fn total_bytes(packet: &[u8]) -> Result<usize, String> {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => Ok(usize::from(word(packet, 2))),
        Some(6) if packet.len() >= 40 => Ok(40 + usize::from(word(packet, 4))),
        _ => Err("not an IP packet".into()),
    }
}

fn pseudo_header(packet: &[u8], protocol: u8, transport_bytes: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    sum(addresses) + u64::from(protocol) + transport_bytes as u64
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum of 32-bit words; 2^16 and 2^32 are both 1 modulo 65,535, so folding it gives the sum of 16-bit words.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    let whole: u64 =
        words.map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))).sum();
    whole + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
