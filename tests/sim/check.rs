//! The laws, and the book of what was handed in that they are checked against.
//!
//! The book knows every packet by its bytes. Nothing in it is clever: that is what makes it the judge.

use std::collections::HashMap;

use uringvpn::stats::drop::DropReason;

use crate::packets;
use crate::packets::icmp::IcmpError;

/// What must hold whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// What is sent and delivered is what was handed in, byte for byte, and in its place.
    Bytes,
    /// Nothing is sent twice, nothing delivered more often than the network carried it.
    Twice,
    /// The packets of a flow leave and arrive in the order in which they were handed in.
    Order,
    /// Packets in are packets out, drops, and what is in flight; and the counters tell the truth.
    Conservation,
    /// What is counted of each peer adds up to what is counted of all.
    Peers,
    /// A packet is dropped only for a reason that was there, and counted under it.
    Drops,
    /// What was carried and not dropped arrives.
    Loss,
    /// Whoever sent a packet that has nowhere to go is told so, rightly and once, and nobody else.
    Answers,
    /// Every buffer is at home, or held as a spare.
    Buffers,
    /// A kernel that refuses trains is not offered any more of them.
    Trains,
    /// No counter of a session is used twice.
    Nonce,
    /// Nobody is answered who has not proven who it is, and nothing that was accepted is accepted again; a peer gets an
    /// initiation every five seconds at most.
    Silence,
    /// A session older than 180 seconds neither seals nor opens.
    Age,
    /// A peer is where an authentic datagram, seen for the first time, came from.
    Endpoint,
    /// At most 128 packets per peer wait for a session with one worker.
    Staged,
    /// A responder sends nothing before the initiator has shown that it has the keys.
    Mute,
    /// The workers go on, come to rest, and are as good as new when the trouble is over.
    Liveness,
}

/// A law that did not hold.
#[derive(Debug)]
pub struct Broken {
    pub law: Law,
    pub what: String,
}

pub type Checked = Result<(), Broken>;

/// Holds `law` to `holds`.
pub fn require(law: Law, holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Broken { law, what: what() }) }
}

/// Hosts a world has at most.
pub const HOSTS_MAX: usize = 3;

/// Which flow, and the packet's number in it.
pub type Name = (u32, u32);

/// One packet that was handed in.
struct Page {
    name: Name,
    bytes: Vec<u8>,
    host: usize,
    sent: bool,
    /// Copies that the network carried to the other end.
    copies: u8,
    delivered: u8,
    /// It need not arrive.
    excused: bool,
}

/// Where a flow stands.
#[derive(Default)]
struct Line {
    arrives: bool,
    /// Whether its packets must leave in order.
    leaves_in_order: bool,
    handed: u32,
    /// Numbers below this were handed in among the faults.
    healed_at: u32,
    last_sent: Option<u32>,
    last_delivered: Option<u32>,
}

/// Everything that was handed in.
#[derive(Default)]
pub struct Book {
    /// By [`gist`].
    pages: HashMap<Vec<u8>, Page>,
    lines: Vec<Line>,
    /// Packets handed in per host.
    pub handed: [u64; HOSTS_MAX],
    /// Packets delivered per host.
    pub delivered: [u64; HOSTS_MAX],
    /// TUN reads per host whose sender may be told that they have nowhere to go, by the part that is quoted then: how many
    /// were handed in, and how many were answered.
    lost: [HashMap<Vec<u8>, [u64; 2]>; HOSTS_MAX],
    /// ICMP errors written per host.
    answered: [u64; HOSTS_MAX],
    /// Whether the network keeps the order of a flow.
    pub arrives_in_order: bool,
    /// Whether the identification of an unfragmentable packet may change on the way: when a packet and its copy are
    /// joined, the kernel numbers them anew on cutting. Without fragments it means nothing (RFC 6864 §4.1).
    pub renumbers: bool,
}

impl Book {
    /// The next flow, whose number is the count of those before.
    pub fn open_flow(&mut self, arrives: bool, leaves_in_order: bool) {
        self.lines.push(Line { arrives, leaves_in_order, ..Line::default() });
    }

    /// From now on the packets of `flow` must leave in order.
    pub fn demand_order(&mut self, flow: usize) {
        let line = &mut self.lines[flow];
        *line = Line { leaves_in_order: true, last_sent: None, last_delivered: None, ..*line };
    }

    /// Packets that the kernel of `host` means by one TUN read of `flow`.
    pub fn handed_in(&mut self, host: usize, flow: u32, packets: Vec<Vec<u8>>) {
        let line = &mut self.lines[flow as usize];
        self.handed[host] += packets.len() as u64;
        for packet in packets {
            let gist = gist(&packet);
            let page = Page {
                name: (flow, line.handed),
                bytes: packet,
                host,
                sent: false,
                copies: 0,
                delivered: 0,
                excused: false,
            };
            assert!(self.pages.insert(gist, page).is_none(), "the workload made a packet twice");
            line.handed += 1;
        }
    }

    /// The kernel of `host` hands over a read that must die for `reason`.
    pub fn lost(&mut self, host: usize, read: &[u8], reason: DropReason) {
        if [DropReason::NoRoute, DropReason::NoEndpoint].contains(&reason) {
            let quote = &read[16..];
            let most = if quote[0] >> 4 == 4 { 576 - 28 } else { 1280 - 48 };
            self.lost[host].entry(quote[..quote.len().min(most)].to_vec()).or_default()[0] += 1;
        }
    }

    /// An ICMP error was written to the TUN of `host`.
    pub fn answered(&mut self, host: usize, error: &IcmpError<'_>) -> Checked {
        let Some([handed_in, answered]) = self.lost[host].get_mut(error.quote) else {
            let what = format!("host {host} answered what is not lost: {:02x?}", error.quote);
            return Err(Broken { law: Law::Answers, what });
        };
        *answered += 1;
        self.answered[host] += 1;
        require(Law::Answers, answered <= handed_in, || {
            format!("host {host} answered {handed_in} reads {answered} times")
        })?;
        error.assert_answers(error.quote);
        Ok(())
    }

    /// `counted` answers is what was counted, and if `all` were to be answered, all were.
    pub fn check_answers(&self, host: usize, counted: u64, all: bool) -> Checked {
        let answered = self.answered[host];
        require(Law::Answers, counted == answered, || {
            format!("host {host} answered {answered} reads and counted {counted}")
        })?;
        let silent = self.lost[host].values().filter(|[handed_in, answered]| handed_in != answered).count();
        require(Law::Answers, !all || silent == 0, || {
            format!("host {host} did not answer {silent} kinds of reads")
        })
    }

    /// The trouble is over; what is handed in from now on must all arrive.
    pub fn healed(&mut self) {
        self.arrives_in_order = true;
        for flow in 0..self.lines.len() {
            self.lines[flow].healed_at = self.lines[flow].handed;
            self.demand_order(flow);
        }
    }

    /// A datagram left `host`.
    pub fn sent(&mut self, host: usize, datagram: &[u8]) -> Checked {
        let page =
            self.pages.get_mut(&gist(datagram)).filter(|page| page.host == host && page.bytes == datagram);
        let page = page.ok_or_else(|| unknown("sent", host, datagram))?;
        let (flow, number) = page.name;
        require(Law::Twice, !page.sent, || format!("packet {number} of flow {flow} was sent twice"))?;
        page.sent = true;
        let line = &mut self.lines[flow as usize];
        let last = &mut line.last_sent;
        let in_order = !line.leaves_in_order || last.is_none_or(|last| last < number);
        require(Law::Order, in_order, || format!("flow {flow} sent packet {number} after {last:?}"))?;
        *last = Some(number);
        Ok(())
    }

    /// The network carried a datagram to the other end, so often.
    pub fn carried(&mut self, datagram: &[u8], copies: u8) {
        if let Some(page) = self.pages.get_mut(&gist(datagram)) {
            page.copies += copies;
        }
    }

    /// A packet that was sent need not arrive.
    pub fn excuse(&mut self, packet: &[u8]) {
        if let Some(page) = self.pages.get_mut(&gist(packet)) {
            page.excused = true;
        }
    }

    /// A packet was written to the TUN of `host`.
    pub fn delivered(&mut self, host: usize, packet: &[u8]) -> Checked {
        if let Some(error) = IcmpError::read(packet) {
            return self.answered(host, &error);
        }
        let renumbers = self.renumbers;
        let page = self.pages.get_mut(&gist(packet));
        let page = page.filter(|page| page.host != host && (renumbers || page.bytes == packet));
        let page = page.ok_or_else(|| unknown("delivered", host, packet))?;
        let (flow, number) = page.name;
        page.delivered += 1;
        self.delivered[host] += 1;
        require(Law::Twice, page.delivered <= page.copies, || {
            format!("packet {number} of flow {flow}: {} delivered, {} carried", page.delivered, page.copies)
        })?;
        let line = &mut self.lines[flow as usize];
        let last = &mut line.last_delivered;
        // A second copy may follow the first.
        let in_order =
            !self.arrives_in_order || !line.leaves_in_order || last.is_none_or(|last| last <= number);
        require(Law::Order, in_order, || format!("flow {flow} delivered packet {number} after {last:?}"))?;
        *last = Some(number);
        Ok(())
    }

    /// Packets handed in at `host` that never left it.
    pub fn unsent(&self, host: usize) -> u64 {
        self.pages.values().filter(|page| page.host == host && !page.sent).count() as u64
    }

    /// Copies that were carried to `host` and did not reach its TUN.
    pub fn undelivered(&self, host: usize) -> u64 {
        let missing = |page: &Page| u64::from(page.copies - page.delivered);
        self.pages.values().filter(|page| page.host != host).map(missing).sum()
    }

    /// Whatever was handed in after the trouble was over has arrived, once.
    pub fn all_arrived_since_healing(&self) -> Checked {
        for page in self.pages.values() {
            let (flow, number) = page.name;
            let line = &self.lines[flow as usize];
            if number >= line.healed_at && !page.excused {
                let arrived = page.sent && page.delivered == u8::from(line.arrives);
                require(Law::Liveness, arrived, || {
                    let Page { sent, copies, delivered, .. } = page;
                    format!(
                        "packet {number} of flow {flow}: sent {sent}, carried {copies}, delivered {delivered}"
                    )
                })?;
            }
        }
        Ok(())
    }
}

/// The packet's bytes without what may change on the way: identification and header checksum of IPv4 with DF. The
/// header checksum must be right instead.
fn gist(packet: &[u8]) -> Vec<u8> {
    let mut gist = packet.to_vec();
    let right = |header: &[u8]| packets::ones_complement(&[header]) == 0xffff;
    if packet.len() >= 20 && packet[0] == 0x45 && packet[6] & 0x40 != 0 && right(&packet[..20]) {
        gist[4..6].fill(0);
        gist[10..12].fill(0);
    }
    gist
}

fn unknown(what: &str, host: usize, bytes: &[u8]) -> Broken {
    let head = &bytes[..bytes.len().min(64)];
    let what = format!("host {host} {what} {} bytes that nobody handed in: {head:02x?}", bytes.len());
    Broken { law: Law::Bytes, what }
}
