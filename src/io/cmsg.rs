//! Control messages: UDP_SEGMENT, pktinfo and traffic class on the way out; UDP_GRO, pktinfo, traffic class, the
//! receive time and what the socket had no room for on the way in.
//!
//! The bytes are laid out and read here as cmsg(3) says, without pointers.
//!
//! Source: linux/socket.h (struct cmsghdr), udp(7), ip(7), ipv6(7), socket(7) SO_TIMESTAMPNS and SO_RXQ_OVFL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libc::c_int;

/// Room for everything we ever send: UDP_SEGMENT (24), IPV6_PKTINFO (40) and IPV6_TCLASS (24).
pub const SEND_CONTROL_BYTES: usize = 88;
/// Room for everything we ask to receive: SCM_TIMESTAMPNS (32), SO_RXQ_OVFL (24), UDP_GRO (24), IPV6_PKTINFO (40) and
/// IPV6_TCLASS (24). The kernel leaves out what finds no room.
pub const RECEIVE_CONTROL_BYTES: usize = 144;
const _: () = assert!(RECEIVE_CONTROL_BYTES >= 32 + 24 + 24 + 40 + 24);

/// struct cmsghdr on 64-bit Linux: length (8), level (4), type (4).
const HEADER_BYTES: usize = 16;
const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER_BYTES);
const ALIGN: usize = 8;

/// Control bytes for a send.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct SendControl {
    bytes: [u8; SEND_CONTROL_BYTES],
    used: u8,
}

impl SendControl {
    /// No message.
    pub const fn new() -> SendControl {
        SendControl { bytes: [0; SEND_CONTROL_BYTES], used: 0 }
    }

    /// The encoded messages.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used as usize]
    }

    /// Asks the kernel to cut the payload every `bytes` bytes.
    pub fn segment(&mut self, bytes: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }

    /// Asks the kernel to send from `source`.
    pub fn source(&mut self, source: IpAddr) {
        match source {
            IpAddr::V4(v4) => {
                // struct in_pktinfo: interface index, local address to use, destination (ignored on send).
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[4..8].copy_from_slice(&v4.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(v6) => {
                // struct in6_pktinfo: address, interface index.
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&v6.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// Asks the kernel to put `tos` into the IP header of a datagram to `receiver`'s family.
    pub fn traffic_class(&mut self, tos: u8, receiver: IpAddr) {
        let (level, kind) = match receiver {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        self.push(level, kind, &c_int::from(tos).to_ne_bytes());
    }

    fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let start = self.used as usize;
        let length = HEADER_BYTES + data.len();
        let end = start + length.next_multiple_of(ALIGN);
        let message = &mut self.bytes[start..end];
        message[..8].copy_from_slice(&length.to_ne_bytes());
        message[8..12].copy_from_slice(&level.to_ne_bytes());
        message[12..16].copy_from_slice(&kind.to_ne_bytes());
        message[16..].fill(0);
        message[16..length].copy_from_slice(data);
        self.used = end as u8;
    }
}

impl Default for SendControl {
    fn default() -> Self {
        SendControl::new()
    }
}

/// What the kernel told us beside a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveControl {
    /// Bytes per datagram when several were joined (UDP_GRO); else 0.
    pub stride: u16,
    /// The address it was sent to.
    pub to: Option<IpAddr>,
    /// Its IPv4 TOS or IPv6 traffic class byte.
    pub tos: u8,
    /// When the kernel received it: nanoseconds of CLOCK_REALTIME.
    pub realtime_ns: Option<u64>,
    /// Datagrams that the socket had no room for until this one came, in 32 bits; 0 unless it was asked to tell (SO_RXQ_OVFL).
    /// See [`Overflow`].
    pub overflown: u32,
}

impl ReceiveControl {
    /// Reads received control bytes; unknown and malformed messages are passed over.
    pub fn parse(mut control: &[u8]) -> ReceiveControl {
        let mut told = ReceiveControl::default();
        while let Some((header, _)) = control.split_first_chunk::<HEADER_BYTES>() {
            let length = usize::from_ne_bytes(field(header, 0));
            let Some(data) = control.get(HEADER_BYTES..length) else { break };
            told.message(i32::from_ne_bytes(field(header, 8)), i32::from_ne_bytes(field(header, 12)), data);
            control = control.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        }
        told
    }

    fn message(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) if data.len() >= 4 => {
                self.stride = i32::from_ne_bytes(field(data, 0)) as u16;
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() >= 12 => {
                // ipi_spec_dst, which is an address of ours even when the packet was a broadcast.
                self.to = Some(Ipv4Addr::from(field::<4>(data, 4)).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() >= 16 => {
                // A group is nobody's source address.
                let to = Ipv6Addr::from(field::<16>(data, 0));
                self.to = (!to.is_multicast()).then_some(to.into());
            }
            // One byte, although a send gives it as an int.
            (libc::IPPROTO_IP, libc::IP_TOS) if !data.is_empty() => self.tos = data[0],
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if data.len() >= 4 => {
                self.tos = i32::from_ne_bytes(field(data, 0)) as u8;
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) if data.len() >= 16 => {
                let seconds = u64::from_ne_bytes(field(data, 0));
                let nanos = u64::from_ne_bytes(field(data, 8));
                self.realtime_ns = seconds.checked_mul(1_000_000_000).and_then(|ns| ns.checked_add(nanos));
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if data.len() >= 4 => {
                self.overflown = u32::from_ne_bytes(field(data, 0));
            }
            _ => {}
        }
    }
}

/// How many datagrams one socket had no room for, as it said last ([`ReceiveControl::overflown`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overflow {
    told: u32,
}

impl Overflow {
    /// How many more there are than before, now that the socket says `told` in all.
    pub fn more(&mut self, told: u32) -> u32 {
        // The kernel counts in 32 bits, and then from 0 again.
        let more = told.wrapping_sub(self.told);
        if more > u32::MAX / 2 {
            // Behind what it said last: nothing that is not counted already.
            return 0;
        }
        self.told = told;
        more
    }
}

/// The `N` bytes at `start`; the caller has checked the length.
fn field<const N: usize>(bytes: &[u8], start: usize) -> [u8; N] {
    bytes[start..start + N].try_into().expect("N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_for_a_send_is_laid_out_as_the_kernel_lays_it_out_for_a_receive() {
        let mut control = SendControl::new();
        control.segment(1452);
        let address = "2001:db8::7".parse().expect("an address");
        control.source(address);
        control.traffic_class(0xb9, address);
        assert_eq!(control.bytes().len(), SEND_CONTROL_BYTES);
        let told = ReceiveControl::parse(control.bytes());
        assert_eq!((told.to, told.tos), (Some(address), 0xb9));
    }

    #[test]
    fn the_ipv4_tos_is_read_from_its_one_byte() {
        let mut control = SendControl::new();
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[0x03]);
        assert_eq!(ReceiveControl::parse(control.bytes()).tos, 3);
    }

    #[test]
    fn the_stride_the_receive_time_and_what_found_no_room_are_read() {
        let mut control = SendControl::new();
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        let mut stamp = [0; 16];
        stamp[..8].copy_from_slice(&3u64.to_ne_bytes());
        stamp[8..].copy_from_slice(&7u64.to_ne_bytes());
        control.push(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &stamp);
        control.push(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &9u32.to_ne_bytes());
        let told = ReceiveControl::parse(control.bytes());
        assert_eq!((told.stride, told.realtime_ns, told.overflown), (1452, Some(3_000_000_007), 9));
    }

    #[test]
    fn a_socket_that_counts_in_32_bits_is_counted_on_past_their_end() {
        let mut overflow = Overflow::default();
        let mut more = |told: &[u32]| told.iter().map(|told| overflow.more(*told)).collect::<Vec<_>>();
        assert_eq!(more(&[0, 3, 3, 10]), [0, 3, 0, 7]);
        assert_eq!(more(&[1 << 31, u32::MAX, 0, 2]), [(1 << 31) - 10, (1 << 31) - 1, 1, 2]);
        // It never counts back. If it seems to, nothing was lost, and nothing is counted twice.
        assert_eq!(more(&[1, 2, 3]), [0, 0, 1]);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_control_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            ReceiveControl::parse(&bytes);
        }
    }
}
