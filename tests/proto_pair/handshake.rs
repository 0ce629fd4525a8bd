//! Making sessions. Whitepaper §5.1, §5.4.

use super::net::{A, B, DATA, INITIATION, Net, PEER, RESPONSE, millis, secs};

#[test]
fn the_first_packet_makes_a_session_and_confirms_it() {
    let mut net = Net::pair();
    net.send(A, b"hello");
    net.run(millis(100));
    assert_eq!(net.nodes[B].delivered[0][..5], *b"hello");
    let kinds: Vec<u8> = net.log.iter().map(|flight| flight.kind()).collect();
    assert_eq!(kinds, [INITIATION, RESPONSE, DATA]);
}

#[test]
fn without_a_staged_packet_a_keepalive_confirms_at_once() {
    let mut net = Net::pair();
    net.set_keepalive(A, 25);
    net.run(millis(100));
    assert_eq!(net.keepalives(A).len(), 1);
    net.send(B, b"back");
    net.run(millis(20));
    assert_eq!(net.delivered(A), 1);
    assert_eq!(net.sent(B, INITIATION).len(), 0);
    let _ = (PEER, secs(1));
}
