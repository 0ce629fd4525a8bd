//! What happens to the hosts of the encrypted simulation: nonsense from the kernel, attacks, restarts, sleep, clocks that are
//! set, addresses that change.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use uringvpn::io::fake::Fake;
use uringvpn::stats::counters::Totals;
use uringvpn::stats::drop::DropReason;
use uringvpn::time::Span;

use crate::check::{Checked, HOSTS_MAX, Law, require};
use crate::encrypted::{Cause, World};
use crate::node::Identity;
use crate::packets::{self, Packet};
use crate::plan::Incidents;
use crate::wire::Hostility;
use crate::workload::{self, NOBODY, inner, outer};

impl World {
    pub(crate) fn throw_junk(&mut self, host: usize) {
        let other = (host + self.random.between(1, self.nodes.len() - 1)) % self.nodes.len();
        let read = if self.random.chance(30) {
            self.spoofed[host][0] += 1;
            let read = self.spoof(host, other);
            self.may_be_lost(host, &read);
            read
        } else {
            let junk = workload::tun_junk(host, other, &mut self.random);
            self.junk[host][junk.reason as usize] += junk.packets;
            self.book.lost(host, &junk.what, junk.reason);
            junk.what
        };
        let worker = self.random.below(self.plan.workers[host]);
        self.nodes[host].seats[worker].worker.driver_mut().tun_reads.push_back(read);
    }

    /// A server does not know yet where its peers are.
    pub(crate) fn may_be_lost(&mut self, host: usize, read: &[u8]) {
        if self.plan.server == Some(host) {
            self.book.lost(host, read, DropReason::NoEndpoint);
        }
    }

    /// A packet with a source that is not ours: that of the receiver, of a third host, of nobody.
    pub(crate) fn spoof(&mut self, host: usize, other: usize) -> Vec<u8> {
        let v6 = self.random.chance(50);
        let third = self.random.pick(&[other, (other + 1) % HOSTS_MAX]);
        let source = if third == host { inner(v6, other, NOBODY, 1) } else { inner(v6, third, 0, 1) };
        let ends = Some((source, inner(v6, other, 0, 1)));
        let packet = Packet { ends, ..Packet::udp(v6, packets::payload(100, 7)) };
        [vec![0; 16], packet.bytes()].concat()
    }

    pub(crate) fn attack(&mut self, host: usize) {
        let Hostility { replays, forges, floods, .. } = self.plan.hostility;
        let (to, index) = (self.nodes[host].identity.address, self.observer.index_of(host));
        if replays && self.random.chance(70) {
            self.wire.replay(self.now, &mut self.random);
        }
        if forges && self.random.chance(70) {
            self.wire.forge(to, host, index, self.now, &mut self.random);
        }
        if floods && self.random.chance(5) {
            self.wire.flood(to, host, self.now, &mut self.random);
        }
    }

    pub(crate) fn incident(&mut self, host: usize) -> Checked {
        let Incidents { restarts, roams, clock_jumps, suspends, sticks, links, .. } = self.plan.incidents;
        match self.random.below(7) {
            0 if restarts => self.restart(host),
            1 if roams => {
                let port = self.random.between(1024, 65_535) as u16;
                self.nodes[host].identity.address = SocketAddr::new(outer(self.plan.outer_v6, host), port);
                Ok(())
            }
            2 if clock_jumps => {
                let jump = self.random.between(1, 1_000_000) as i64;
                let back = !restarts && self.random.chance(50);
                self.nodes[host].identity.wall_ahead += if back { -jump } else { jump };
                Ok(())
            }
            3 if suspends => {
                let millis = self.random.pick(&[1_000, 30_000, 200_000, 3_600_000]);
                self.nodes[host].asleep_until = self.now + Span::from_millis(millis);
                Ok(())
            }
            4 if sticks => {
                let millis = self.random.below(10_000) as u64;
                self.nodes[host].stuck_until = self.now + Span::from_millis(millis);
                Ok(())
            }
            5 if links => {
                let up = self.nodes[host].paused();
                self.set_link(host, up)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn set_link(&mut self, host: usize, up: bool) -> Checked {
        let (now, mtu) = (self.now, self.plan.mtu);
        let node = &mut self.nodes[host];
        let wall = node.wall(now);
        node.pause(!up);
        node.exchange.link_changed(up, mtu, now, wall);
        self.observer.forgot_initiations(host);
        self.speak(host, Cause::default())
    }

    /// The program ends in an orderly way and is started again; what waits in the TUN's queues waits on.
    pub(crate) fn restart(&mut self, host: usize) -> Checked {
        let fakes = self.nodes[host].seats.iter_mut().map(|seat| seat.worker.driver_mut());
        let reads: Vec<_> = fakes.map(|fake| std::mem::take(&mut fake.tun_reads)).collect();
        self.finish(host)?;
        let (wall_ahead, address) = (self.nodes[host].identity.wall_ahead, self.nodes[host].identity.address);
        let node = self.started(Identity { host, address, wall_ahead });
        let before = std::mem::replace(&mut self.nodes[host], node);
        let past = before.totals();
        for seat in before.seats {
            let home = seat.worker.into_driver().buffers_home();
            let total = Fake::buffers_total();
            require(Law::Buffers, home == total, || format!("{home} of {total} buffers came home"))?;
        }
        let node = &mut self.nodes[host];
        node.past = past;
        for (seat, reads) in node.seats.iter_mut().zip(reads) {
            seat.worker.driver_mut().tun_reads = reads;
        }
        self.observer.restarted(host);
        self.introduce(host)
    }

    /// The workers of `host` are told to stop and finish what they read.
    pub(crate) fn finish(&mut self, host: usize) -> Checked {
        self.nodes[host].flags.stop.store(true, Ordering::Relaxed);
        for worker in 0..self.plan.workers[host] {
            self.nodes[host].seats[worker].worker.driver_mut().receives.clear();
            let ended = self.nodes[host].seats[worker].worker.run();
            require(Law::Liveness, ended.is_ok(), || format!("{ended:?}"))?;
            self.look_at(host, worker)?;
            let balance = Totals::of([&*self.nodes[host].seats[worker].counters]).check_drained();
            require(Law::Conservation, balance.is_ok(), || format!("host {host} has stopped: {balance:?}"))?;
        }
        Ok(())
    }
}
