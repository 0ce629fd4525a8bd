//! nftables on a host: counts, drops and translates what passes. Rules live in the table `inet t`.

use crate::rig::Host;

/// Makes `rules` the table's: chains and counters, as nft(8) writes them. What was there before goes.
#[track_caller]
pub fn load(host: &Host, rules: &str) {
    let output = host
        .command(["nft", &format!("table inet t; delete table inet t; table inet t {{ {rules}\n}}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Packets that the counter called `name` has seen.
#[track_caller]
pub fn counted(host: &Host, name: &str) -> u64 {
    packets(&host.run(&format!("nft list counter inet t {name}")))
}

/// [`counted`], and counts from 0 again.
#[track_caller]
pub fn count_anew(host: &Host, name: &str) -> u64 {
    packets(&host.run(&format!("nft reset counter inet t {name}")))
}

#[track_caller]
fn packets(text: &str) -> u64 {
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap_or_else(|| panic!("no number of packets in {text}")).parse().unwrap()
}
