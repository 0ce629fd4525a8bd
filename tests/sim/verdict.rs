//! The laws that counters and packets of the encrypted simulation are held to: after each turn, when all stands still, and
//! when all trouble is over.

use uringvpn::io::fake::Fake;
use uringvpn::proto::output::PeerStatus;
use uringvpn::stats::counters::Totals;
use uringvpn::stats::drop::{Direction, DropReason};
use uringvpn::time::Span;

use crate::check::{Broken, Checked, Law, require};
use crate::encrypted::{World, destination};
use crate::node::Node;
use crate::packets::icmp::IcmpError;
use crate::superpacket;

impl World {
    pub(crate) fn check_write(&mut self, host: usize, worker: usize, write: &[u8]) -> Checked {
        self.trace.note(self.now, host, write, ("writes", write.len()));
        let packets = superpacket::packets(write)
            .map_err(|what| Broken { law: Law::Bytes, what: format!("host {host} wrote: {what}") })?;
        self.nodes[host].seats[worker].written += packets.len() as u64;
        packets.iter().try_for_each(|packet| {
            if let Some(error) = IcmpError::read(packet) {
                return self.book.answered(host, &error);
            }
            let here = destination(packet) == Some(host);
            require(Law::Bytes, here, || format!("host {host} wrote a packet to {:?}", destination(packet)))?;
            self.book.delivered(host, packet)
        })
    }

    pub(crate) fn check_counters(&mut self, host: usize, worker: usize) -> Checked {
        let seat = &self.nodes[host].seats[worker];
        let totals = Totals::of([&*seat.counters]);
        let balance = totals.check();
        require(Law::Conservation, balance.is_ok(), || {
            format!("worker {worker} of host {host}: {balance:?}")
        })?;
        let mut inbound = DropReason::ALL.iter().filter(|reason| reason.direction() == Direction::Inbound);
        inbound.try_for_each(|reason| {
            let (dropped, due) = (totals.dropped(*reason), seat.due.drops[*reason as usize]);
            let as_due = match reason {
                DropReason::HandoffFull => true,
                DropReason::TunDown if self.plan.faults.tun_down > 0 => dropped >= due,
                _ => dropped == due,
            };
            require(Law::Drops, as_due, || {
                format!(
                    "worker {worker} of host {host}: {dropped} dropped as {}, {due} deserved it",
                    reason.label()
                )
            })
        })?;
        let written = totals.written_packets + totals.icmp_errors;
        let counted = (totals.sent_datagrams, written, totals.in_datagrams, totals.keepalives);
        let due = (seat.sent, seat.written, seat.due.datagrams, seat.due.keepalives);
        require(Law::Conservation, counted == due, || {
            format!(
                "worker {worker} of host {host} counted {counted:?} sent, written, received and keepalives, not {due:?}"
            )
        })?;
        let handed_over = totals.handshakes + totals.dropped(DropReason::HandoffFull);
        require(Law::Conservation, handed_over == seat.due.handshakes, || {
            format!("worker {worker} of host {host}: {handed_over} of {} handshakes", seat.due.handshakes)
        })
    }

    /// The workers stand still: what they hold is staged.
    pub(crate) fn check_staged(&self) -> Checked {
        // Packets for every live peer and the absent one; the silent one's are dropped at once.
        let queues = self.nodes.len();
        let most = queues * self.largest_read.max(128);
        for node in self.nodes.iter().filter(|node| node.asleep_until <= self.now) {
            for seat in &node.seats {
                let totals = Totals::of([&*seat.counters]);
                let (staged, lost) = (totals.staged as usize, totals.in_flight(Direction::Outbound));
                require(Law::Conservation, lost == 0, || {
                    format!(
                        "host {}: {lost} packets are neither sent, dropped nor staged",
                        node.identity.host
                    )
                })?;
                require(Law::Staged, staged <= most, || {
                    format!("host {} has {staged} packets staged for {queues} peers", node.identity.host)
                })?;
                let (arrived, due) =
                    (totals.written_packets + totals.dropped(DropReason::TunDown), &seat.due);
                let due = due.packets + due.drops[DropReason::TunDown as usize];
                require(Law::Loss, arrived == due, || {
                    format!(
                        "host {}: {arrived} packets written or the TUN down, not {due}",
                        node.identity.host
                    )
                })?;
            }
            check_peers(node)?;
        }
        Ok(())
    }

    /// After the trouble everything arrives, once and in order, over rekeys and ends of sessions.
    pub(crate) fn check_life_goes_on(&mut self) -> Checked {
        for _ in 0..5 {
            for flow in 0..self.flows.len() {
                if self.flows[flow].arrives {
                    self.hand_in(flow);
                    // Long enough for a handshake: more than one read at once might not find room while it lasts.
                    self.pass(Span::from_millis(250))?;
                }
            }
            let millis = self.random.pick(&[100, 10_000, 70_000, 125_000, 200_000]);
            self.pass(Span::from_millis(millis))?;
        }
        self.pass(Span::from_secs(1))?;
        self.book.all_arrived_since_healing()?;
        self.check_rested()
    }

    pub(crate) fn check_rested(&mut self) -> Checked {
        for host in 0..self.nodes.len() {
            self.check_outbound(host)?;
            for seat in &mut self.nodes[host].seats {
                // A worker may keep one buffer for the next train.
                let away = Fake::buffers_total() - seat.worker.driver_mut().buffers_home();
                require(Law::Buffers, away <= 1, || format!("host {host}: {away} buffers are not at home"))?;
            }
        }
        Ok(())
    }

    pub(crate) fn check_outbound(&self, host: usize) -> Checked {
        let (totals, faults) = (self.nodes[host].totals(), &self.plan.faults);
        let dropped = |reason| totals.dropped(reason);
        require(Law::Drops, faults.send_error > 0 || dropped(DropReason::SendError) == 0, || {
            format!("host {host} could not send, and nothing was in the way")
        })?;
        self.book.check_answers(host, totals.icmp_errors, false)?;
        if faults.short_read > 0 {
            return Ok(());
        }
        let junk = &self.junk[host];
        for reason in [DropReason::OutMalformed, DropReason::OutBadOffload, DropReason::NoRoute] {
            let (dropped, deserved) = (dropped(reason), junk[reason as usize]);
            require(Law::Drops, dropped == deserved, || {
                format!("host {host} dropped {dropped} packets as {}, {deserved} deserved it", reason.label())
            })?;
        }
        // A server drops what is for those that it has not heard of yet.
        let early = dropped(DropReason::NoEndpoint) - junk[DropReason::NoEndpoint as usize];
        require(Law::Drops, early == 0 || self.plan.server == Some(host), || {
            format!("host {host} dropped {early} packets to peers whose address it knew")
        })?;
        let outbound = DropReason::ALL.iter().filter(|reason| reason.direction() == Direction::Outbound);
        let thrown: u64 = outbound.map(|reason| junk[*reason as usize]).sum();
        let [spoofed, spoofed_sent] = self.spoofed[host];
        let taken_in = self.book.handed[host] + thrown + spoofed;
        require(Law::Conservation, totals.out_packets == taken_in, || {
            format!("host {host} was handed {taken_in} packets and counted {}", totals.out_packets)
        })?;
        let unsent = self.book.unsent(host) + spoofed - spoofed_sent;
        let staged = totals.staged + totals.in_flight(Direction::Outbound).cast_unsigned();
        let reasons = [DropReason::StageFull, DropReason::NoSession, DropReason::SendError];
        let accounted = reasons.map(dropped).iter().sum::<u64>() + early + staged;
        require(Law::Loss, unsent == accounted, || {
            format!("host {host}: {unsent} packets were never sent, {accounted} are accounted for")
        })
    }
}

/// Reasons of which it is never certain whose packet it was, or that are nobody's.
const OF_NO_PEER: [DropReason; 11] = [
    DropReason::OutMalformed,
    DropReason::OutBadOffload,
    DropReason::NoRoute,
    DropReason::UnknownSource,
    DropReason::Truncated,
    DropReason::NotWireGuard,
    DropReason::UnknownIndex,
    DropReason::BadMac1,
    DropReason::HandoffFull,
    DropReason::TunDown,
    DropReason::TunWriteError,
];

/// No peer was ever removed from `node`, so its peers have together what its workers and its protocol thread counted.
fn check_peers(node: &Node) -> Checked {
    let (host, totals) = (node.identity.host, Totals::of(node.seats.iter().map(|seat| &*seat.counters)));
    let peers: Vec<_> = node.exchange.tunnel.device.peers().map(|(_, status)| status).collect();
    let sum = |of: &dyn Fn(&PeerStatus<'_>) -> u64| peers.iter().map(of).sum::<u64>();
    let down: u64 = node.seats.iter().map(|seat| seat.due.drops[DropReason::TunDown as usize]).sum();
    let after_opening =
        [DropReason::InMalformed, DropReason::SourceNotAllowed, DropReason::QueueDelay, DropReason::TunDown];
    let lost: u64 = after_opening.iter().map(|reason| totals.dropped(*reason)).sum();
    // While the interface was down nothing was opened.
    let opened = totals.written_packets + totals.keepalives + lost - down;
    let (received, due) = (sum(&|peer| peer.activity.rx_packets()), opened + node.accepted);
    require(Law::Peers, received == due, || {
        format!("host {host}: {received} datagrams came from its peers, not {due}")
    })?;
    let (sent, due) = (
        sum(&|peer| peer.activity.tx_packets()),
        totals.sent_datagrams + totals.dropped(DropReason::SendError) + node.said,
    );
    require(Law::Peers, sent == due, || {
        format!("host {host}: {sent} datagrams went to its peers, not {due}")
    })?;
    for reason in DropReason::ALL {
        let of_peer = |peer: &PeerStatus<'_>| {
            peer.activity.drops().filter(|(found, _)| found == reason).map(|(_, packets)| packets).sum()
        };
        let dropped = sum(&of_peer);
        let due = if OF_NO_PEER.contains(reason) { 0 } else { totals.dropped(*reason) };
        require(Law::Peers, dropped == due, || {
            format!("host {host}: its peers have {dropped} packets dropped as {}, not {due}", reason.label())
        })?;
    }
    let (made, recorded) = (sum(&|peer| peer.round_trips.count), node.handshakes.lock().len());
    require(Law::Peers, made == recorded, || {
        format!("host {host} made {made} handshakes with its peers and recorded {recorded}")
    })
}
