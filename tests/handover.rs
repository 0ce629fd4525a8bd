//! What a worker hands over to the protocol thread, and what it keeps from it: who does not know our public key, or sends what
//! nobody can tell from junk, takes no room from those who do. The worker is the shipped one, on a driver in memory.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use uringvpn::dataplane::view::{Change, View};
use uringvpn::io::driver::Wait;
use uringvpn::io::fake::{Fake, Faults, Incoming};
use uringvpn::offload::coalesce::Merge;
use uringvpn::proto::cookie::MacWriter;
use uringvpn::proto::keys::{PrivateKey, PublicKey};
use uringvpn::proto::output::Update;
use uringvpn::proto::timers::UNDER_LOAD_QUEUED;
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::drop::DropReason;
use uringvpn::stats::recorder::{self, Reporter};
use uringvpn::time::Time;
use uringvpn::wire::message::{
    COOKIE_BYTES, INITIATION_BYTES, RESPONSE_BYTES, TYPE_COOKIE, TYPE_INITIATION, TYPE_RESPONSE,
};
use uringvpn::worker::data::{DataWorker, Flags, Parts};
use uringvpn::worker::handoff::{self, ARRIVALS_MAX, Arrival, COOKIES_MAX, Inbox, Order, Orders};

/// Joined messages of one receive.
const TRAIN: usize = 400;

/// A worker on a fake driver, and the protocol thread's ends of the ways to it and from it.
struct Desk {
    worker: DataWorker<Fake>,
    counters: Arc<WorkerCounters>,
    orders: Orders,
    inbox: Inbox,
    _stats: crossbeam_channel::Receiver<recorder::Full>,
}

impl Desk {
    fn new() -> Desk {
        let counters = Arc::new(WorkerCounters::default());
        let (reports, stats) = recorder::channel(1);
        let (outbox, inbox) = handoff::to_protocol();
        let (orders, orders_out) = handoff::to_worker(None);
        let parts = Parts {
            view: View::for_wireguard(1420),
            orders: orders_out,
            outbox,
            train_segments_max: 64,
            merge: Merge { tcp: true, udp: true },
            counters: counters.clone(),
            reporter: Reporter::new(0, reports, Time::default()),
            flags: Arc::new(Flags::default()),
            self_check: Arc::default(),
        };
        let worker = DataWorker::new(Fake::new(Faults::default(), 1), parts);
        Desk { worker, counters, orders, inbox, _stats: stats }
    }

    fn with_key(public_key: PublicKey) -> Desk {
        let mut desk = Desk::new();
        desk.set_key(Some(public_key));
        desk
    }

    fn set_key(&mut self, public_key: Option<PublicKey>) {
        self.orders.give(Order::Change(Change::Peer(Update::LocalKey { public_key })));
    }

    /// Messages of one length arrive, joined as the kernel does.
    fn receive(&mut self, messages: &[Vec<u8>]) {
        for train in messages.chunks(TRAIN) {
            self.worker.driver_mut().receives.push_back(Incoming {
                from: "192.0.2.66:9".parse().unwrap(),
                to: None,
                bytes: train.concat(),
                stride: train[0].len() as u16,
                tos: 0,
            });
        }
        while !self.worker.driver_mut().is_idle() {
            self.worker.turn(Wait::Not).unwrap();
        }
        assert_eq!(self.totals().check_drained(), Ok(()));
    }

    /// The messages that were handed over since this was last asked, cookie replies behind the others.
    fn handed_over(&self) -> Vec<Vec<u8>> {
        let arrivals = self.inbox.arrivals.try_iter().chain(self.inbox.cookies.try_iter());
        let message = |arrival| match arrival {
            Arrival::Handshake { bytes, len, .. } => bytes[..len].to_vec(),
            other => panic!("{other:?}"),
        };
        arrivals.map(message).collect()
    }

    fn totals(&self) -> Totals {
        Totals::of([&*self.counters])
    }
}

fn key(byte: u8) -> PublicKey {
    PrivateKey::from_bytes([byte; 32]).public_key()
}

/// A message of which nothing is right but its type, its length and, for whoever has this public key, its mac1.
fn signed(kind: u8, bytes: usize, to: &PublicKey) -> Vec<u8> {
    let mut message = vec![0; bytes];
    message[0] = kind;
    MacWriter::new(to).write_macs(&mut message, Time::default());
    message
}

fn initiation(to: &PublicKey) -> Vec<u8> {
    signed(TYPE_INITIATION, INITIATION_BYTES, to)
}

fn response(to: &PublicKey) -> Vec<u8> {
    signed(TYPE_RESPONSE, RESPONSE_BYTES, to)
}

/// A cookie reply with this receiver index.
fn cookie(receiver: u32) -> Vec<u8> {
    let mut reply = vec![7; COOKIE_BYTES];
    reply[..4].copy_from_slice(&[TYPE_COOKIE, 0, 0, 0]);
    reply[4..8].copy_from_slice(&receiver.to_le_bytes());
    reply
}

#[test]
fn what_does_not_know_our_public_key_is_counted_and_takes_no_room() {
    let mut desk = Desk::with_key(key(1));
    for (junk, honest) in [(initiation(&key(2)), initiation(&key(1))), (response(&key(2)), response(&key(1)))]
    {
        let before = desk.totals().dropped(DropReason::BadMac1);
        desk.receive(&vec![junk; 2 * ARRIVALS_MAX]);
        assert!(desk.inbox.arrivals.is_empty(), "no queue that could mean load");
        desk.receive(std::slice::from_ref(&honest));
        assert_eq!(desk.handed_over(), [honest]);
        assert_eq!(desk.totals().dropped(DropReason::BadMac1) - before, 2 * ARRIVALS_MAX as u64);
    }
    assert_eq!((desk.totals().handshakes, desk.totals().dropped(DropReason::HandoffFull)), (2, 0));
}

#[test]
fn one_flipped_bit_before_mac2_is_enough_and_mac2_is_for_the_protocol_thread_to_judge() {
    let mut desk = Desk::with_key(key(1));
    let good = initiation(&key(1));
    let flipped = |bit: usize| {
        let mut message = good.clone();
        message[bit / 8] ^= 1 << (bit % 8);
        message
    };
    // Not the type and what is reserved: with those it is no handshake message at all.
    let (before, behind) = (4 * 8, 8 * (INITIATION_BYTES - 16));
    desk.receive(&(before..behind).map(flipped).collect::<Vec<_>>());
    assert_eq!(desk.handed_over(), Vec::<Vec<u8>>::new());
    assert_eq!(desk.totals().dropped(DropReason::BadMac1), (behind - before) as u64);
    let others: Vec<_> = (behind..8 * INITIATION_BYTES).map(flipped).collect();
    desk.receive(&others);
    assert_eq!(desk.handed_over(), others);
}

#[test]
fn good_and_bad_messages_in_one_receive_are_told_apart() {
    let mut desk = Desk::with_key(key(1));
    let [good, bad] = [1, 2].map(|byte| initiation(&key(byte)));
    desk.receive(&[&bad, &good, &bad, &bad, &good].map(Vec::clone));
    assert_eq!(desk.handed_over(), [good.clone(), good]);
    assert_eq!(desk.totals().dropped(DropReason::BadMac1), 3);
}

#[test]
fn messages_are_judged_by_the_newest_key_and_all_pass_while_there_is_none() {
    let mut desk = Desk::new();
    let both = [1, 2].map(|byte| initiation(&key(byte)));
    let [first, second] = both.clone();
    for (told, passes) in [
        // Before any key is known the protocol thread is asked: it may know more.
        (None, both.to_vec()),
        (Some(Some(key(1))), vec![first]),
        (Some(Some(key(2))), vec![second]),
        (Some(None), both.to_vec()),
    ] {
        if let Some(public_key) = told {
            desk.set_key(public_key);
        }
        desk.receive(&both);
        assert_eq!(desk.handed_over(), passes, "{told:?}");
    }
    assert_eq!(desk.totals().dropped(DropReason::BadMac1), 2);
}

#[test]
fn cookie_replies_pass_without_a_mac1_and_however_many_leave_room_for_others() {
    let mut desk = Desk::with_key(key(1));
    desk.receive(&[cookie(1)]);
    assert_eq!(desk.handed_over(), [cookie(1)]);
    let flood = 2 * ARRIVALS_MAX;
    desk.receive(&(0..flood as u32).map(cookie).collect::<Vec<_>>());
    assert!(desk.inbox.cookies.len() == COOKIES_MAX && COOKIES_MAX < UNDER_LOAD_QUEUED);
    assert_eq!(desk.totals().dropped(DropReason::HandoffFull), (flood - COOKIES_MAX) as u64);
    let honest = [initiation(&key(1)), response(&key(1))];
    honest.iter().for_each(|message| desk.receive(std::slice::from_ref(message)));
    assert_eq!(desk.handed_over()[..2], honest);
}

#[test]
fn messages_that_make_sessions_leave_room_for_cookie_replies() {
    let mut desk = Desk::with_key(key(1));
    desk.receive(&vec![initiation(&key(1)); ARRIVALS_MAX + 1]);
    assert_eq!(desk.totals().dropped(DropReason::HandoffFull), 1);
    desk.receive(&[cookie(1)]);
    assert_eq!(desk.handed_over().last(), Some(&cookie(1)));
}
