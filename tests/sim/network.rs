//! The network between the two hosts: loses, duplicates, swaps and pads datagrams, and joins trains as UDP_GRO does.

use std::net::SocketAddr;

use uringvpn::io::fake::Incoming;

use crate::random::Random;

/// How likely each trouble is, in percent per datagram.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
    pub lost: u8,
    pub duplicated: u8,
    /// Overtaken by the one behind it.
    pub swapped: u8,
    /// Arrives with bytes behind the packet.
    pub padded: u8,
}

impl Troubles {
    /// The datagrams as they arrive, each with the number of its copies; nothing is carried in zero copies.
    pub fn befall<T>(&self, datagrams: Vec<T>, random: &mut Random) -> Vec<(T, u8)> {
        let mut carried: Vec<_> = datagrams
            .into_iter()
            .filter_map(|datagram| {
                let copies = if random.chance(self.duplicated) { 2 } else { 1 };
                (!random.chance(self.lost)).then_some((datagram, copies))
            })
            .collect();
        for index in 1..carried.len() {
            if random.chance(self.swapped) {
                carried.swap(index - 1, index);
            }
        }
        carried
    }

    /// `datagram` with padding, sometimes.
    pub fn pad(&self, mut datagram: Vec<u8>, random: &mut Random) -> Vec<u8> {
        if random.chance(self.padded) {
            let bytes = random.between(1, 40);
            datagram.extend(random.bytes(bytes));
        }
        datagram
    }
}

/// Joins consecutive datagrams of one sender: equal lengths, the last may be shorter. Sometimes ends a run early.
pub fn join(
    from: SocketAddr,
    to: SocketAddr,
    datagrams: Vec<Vec<u8>>,
    random: &mut Random,
) -> Vec<(Incoming, u64)> {
    let mut joined: Vec<(Incoming, u64)> = Vec::new();
    let mut open = false;
    for datagram in datagrams {
        let bytes = datagram.len();
        if open && let Some((train, count)) = joined.last_mut() {
            let stride = usize::from(train.stride);
            if bytes <= stride && *count < 64 && train.bytes.len() + bytes <= 65_535 && !random.chance(3) {
                train.bytes.extend(datagram);
                *count += 1;
                open = bytes == stride;
                continue;
            }
        }
        // The kernel reports a stride only for joined datagrams; 0 and its own length mean the same for a lone one.
        let to = random.chance(50).then_some(to.ip());
        joined.push((Incoming { from, to, stride: bytes as u16, bytes: datagram, tos: 0 }, 1));
        open = true;
    }
    joined
}
