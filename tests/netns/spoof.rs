//! Packets on the wire from addresses that nobody has, and pieces of packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::daemon::{Daemon, PORT};
use crate::rig::Host;

/// A socket that sends IPv4 packets as they are.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn open(host: &Host) -> Wire {
        let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
        Wire(host.inside(|| open().unwrap()))
    }

    /// Sends an IPv4 packet to the daemon's host. `fragment` is the header's word of flags and offset.
    pub fn send(&self, source: Ipv4Addr, protocol: u8, id: u16, fragment: u16, payload: &[u8]) {
        let IpAddr::V4(to) = Daemon::address().ip() else { unreachable!("the daemon's address is IPv4") };
        let length = (20 + payload.len()) as u16;
        let mut packet = vec![0x45, 0];
        for word in [length, id, fragment, u16::from_be_bytes([64, protocol]), 0] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend(source.octets());
        packet.extend(to.octets());
        packet.extend_from_slice(payload);
        let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
        // What finds no room on the wire is lost, as anywhere.
        let _ = sendto(self.0.as_raw_fd(), &packet, &address, MsgFlags::empty());
    }
}

/// A UDP datagram to the daemon's port, without checksum.
pub fn udp(from_port: u16, payload: &[u8]) -> Vec<u8> {
    let words = [from_port, PORT, 8 + payload.len() as u16, 0];
    let mut datagram: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    datagram.extend_from_slice(payload);
    datagram
}
