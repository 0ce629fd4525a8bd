//! What stands in each pane: a sheet of rows and columns, made of two looks and what the keys have chosen.
//!
//! The screen and the plain lines show the same sheets. A sheet is laid out in a given width by leaving out whole columns,
//! from the right: a number cut in the middle would be another number.

use super::super::show::{STALE_SECONDS, amount, duration, facts, imbalance, quantity, scaled};
use super::keys::{Choice, Pane, PeerSort};
use super::rates::Rates;
use crate::stats::snapshot::{OffloadSnapshot, PeerSnapshot};

/// Below this a column of free text says nothing.
const FREE_TEXT_MIN: usize = 8;
/// Width from which public keys stand in full.
const FULL_KEYS: usize = 120;

/// A column after the first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    title: String,
    /// With the space before it; `None`: free text that takes what is left.
    width: Option<usize>,
}

/// A line of a sheet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is about, in the first column; no two rows of a sheet have the same.
    pub name: String,
    cells: Vec<String>,
    /// What it says for itself when it is selected.
    pub detail: String,
}

/// What stands in a pane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sheet {
    title: String,
    name_width: usize,
    columns: Vec<Column>,
    /// In their order.
    pub rows: Vec<Row>,
    /// Instead of rows, when there are none.
    pub nothing: &'static str,
}

impl Row {
    /// One with its cells, and what it says for itself when it is selected.
    pub fn new(name: String, cells: Vec<String>, detail: String) -> Row {
        Row { name, cells, detail }
    }
}

impl Sheet {
    /// Without rows. A column of width 0 is free text and comes last; `nothing` stands there while there are no rows.
    pub fn new(title: String, name_width: usize, columns: &[(&str, usize)], nothing: &'static str) -> Sheet {
        let column = |(title, width): &(&str, usize)| Column {
            title: (*title).to_owned(),
            width: Some(*width).filter(|width| *width > 0),
        };
        Sheet { title, name_width, columns: columns.iter().map(column).collect(), rows: Vec::new(), nothing }
    }

    /// The line above the rows.
    pub fn head(&self, width: usize) -> String {
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title.as_str()).collect();
        self.lay_out(&self.title, &titles, width)
    }

    /// One row.
    pub fn line(&self, row: &Row, width: usize) -> String {
        let cells: Vec<&str> = row.cells.iter().map(String::as_str).collect();
        self.lay_out(&row.name, &cells, width)
    }

    fn lay_out(&self, name: &str, cells: &[&str], width: usize) -> String {
        let name_width = self.name_width(width);
        let mut line = format!("{:<name_width$}", fit(name, name_width));
        let mut left = width.saturating_sub(name_width);
        for (column, cell) in self.columns.iter().zip(cells) {
            match column.width {
                Some(column_width) if column_width <= left => {
                    line += &format!("{cell:>column_width$}");
                    left -= column_width;
                }
                None if left >= FREE_TEXT_MIN => {
                    line += &format!("  {}", cut(cell, left - 2));
                    left = 0;
                }
                _ => break,
            }
        }
        line
    }

    fn name_width(&self, width: usize) -> usize {
        if width >= FULL_KEYS {
            let longest = self.rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
            return self.name_width.max(longest);
        }
        let first = self.columns.first().and_then(|column| column.width).unwrap_or_default();
        self.name_width.min(width.saturating_sub(first).max(6)).min(width)
    }
}

/// A name in `width` characters. The stages differ at their ends.
fn fit(name: &str, width: usize) -> String {
    if name.chars().count() <= width {
        return name.to_owned();
    }
    let short = name.replacen("outbound_", "out_", 1).replacen("inbound_", "in_", 1);
    cut(&short, width)
}

/// `text` in `width` characters; a tilde says that there was more.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { kept } else { kept + "~" }
}

/// The sheet of a pane.
pub fn sheet(pane: Pane, rates: &Rates, choice: &Choice) -> Sheet {
    match pane {
        Pane::Stages => stages(rates, choice),
        Pane::Workers => workers(rates),
        Pane::Peers => peers(rates, choice.peer_sort),
        Pane::Drops => drops(rates),
    }
}

fn stages(rates: &Rates, choice: &Choice) -> Sheet {
    let snapshot = rates.snapshot();
    let worker = choice.worker.unwrap_or_else(|| rates.busiest());
    let second = snapshot.workers.iter().find(|found| found.worker == worker);
    let (of, quantiles) = match second {
        Some(second) if !choice.since_start => {
            (format!("of worker {worker}, {}", age(second.last_second_ago)), &second.last_second)
        }
        _ => ("of all since start".to_owned(), &snapshot.distributions),
    };
    let columns = [("p50", 8), ("p90", 8), ("p99", 8), ("p99.9", 8), ("max", 8), (of.as_str(), 21)];
    let mut sheet = Sheet::new("1 stages".to_owned(), 17, &columns, "no packet so far");
    for row in quantiles.iter().filter(|row| row.count > 0) {
        let values = [row.p50, row.p90, row.p99, row.p999, row.max].map(|value| quantity(value, &row.unit));
        let mut cells = Vec::from(values);
        cells.push(format!("{} {}", amount(row.count), row.per));
        sheet.rows.push(Row { name: row.name.clone(), cells, detail: String::new() });
    }
    sheet
}

/// Which second it is. Short: it stands above a column.
pub fn age(seconds: Option<f64>) -> String {
    match seconds.unwrap_or_default() {
        ..STALE_SECONDS => "last s".to_owned(),
        seconds @ ..100.0 => format!("{seconds:.0}s ago"),
        seconds @ ..6_000.0 => format!("{:.0}m ago", seconds / 60.0),
        seconds @ ..360_000.0 => format!("{:.0}h ago", seconds / 3_600.0),
        seconds => format!("{:.0}d ago", seconds / 86_400.0),
    }
}

fn workers(rates: &Rates) -> Sheet {
    let columns =
        [("out/s", 9), ("in/s", 9), ("out bit/s", 12), ("in bit/s", 12), ("calls/packet", 13), ("CPU", 6)];
    let mut sheet = Sheet::new("2 workers".to_owned(), 11, &columns, "no worker");
    for worker in &rates.snapshot().workers {
        let rate = |name| rates.worker(worker.worker, name);
        let packets = rate("out_packets").zip(rate("in_datagrams")).map(|(out, inward)| out + inward);
        let calls = rate("enters").zip(packets).filter(|(_, packets)| *packets > 0.0);
        let cells = vec![
            or_dash(rate("out_packets"), number),
            or_dash(rate("in_datagrams"), number),
            or_dash(rate("out_bytes"), bits),
            or_dash(rate("written_bytes"), bits),
            or_dash(calls, |(calls, packets)| format!("{:.3}", calls / packets)),
            or_dash(rates.cpu(worker.worker), |share| format!("{:.0}%", share * 100.0)),
        ];
        sheet.rows.push(Row { name: format!("worker {}", worker.worker), cells, detail: String::new() });
    }
    sheet
}

fn peers(rates: &Rates, sort: PeerSort) -> Sheet {
    let columns = [("received", 12), ("sent", 12), ("handshake", 12), ("dropped", 9), ("endpoint", 0)];
    // Where nothing is dropped the endpoint has the room.
    let drops = rates.snapshot().peers.iter().any(|peer| !peer.drops.is_empty());
    let columns: Vec<_> = columns.into_iter().filter(|(title, _)| drops || *title != "dropped").collect();
    let title = format!("3 peers by {}", sort.label());
    let mut sheet = Sheet::new(title, 20, &columns, "no peer, as in plaintext mode");
    let mut peers = rates.peers();
    peers.sort_by(|(one, one_rates), (other, other_rates)| {
        let [one_rates, other_rates] = [one_rates, other_rates].map(|rates| rates.unwrap_or_default());
        let age = |peer: &PeerSnapshot| peer.handshake_age_seconds.unwrap_or(f64::INFINITY);
        // Those without come last.
        let place = |peer: &'_ PeerSnapshot| (peer.endpoint.is_none(), peer.endpoint.clone());
        let order = match sort {
            PeerSort::Rate => other_rates.iter().sum::<f64>().total_cmp(&one_rates.iter().sum()),
            PeerSort::Received => other_rates[0].total_cmp(&one_rates[0]),
            PeerSort::Sent => other_rates[1].total_cmp(&one_rates[1]),
            PeerSort::Handshake => age(one).total_cmp(&age(other)),
            PeerSort::Endpoint => place(one).cmp(&place(other)),
        };
        order.then_with(|| one.public_key.cmp(&other.public_key))
    });
    for (peer, rates) in peers {
        let age = peer.handshake_age_seconds.map_or_else(|| "none yet".to_owned(), duration);
        let mut cells =
            vec![or_dash(rates, |rates| bits(rates[0])), or_dash(rates, |rates| bits(rates[1])), age];
        if drops {
            cells.push(amount(peer.drops.values().sum()));
        }
        cells.push(peer.endpoint.clone().unwrap_or_else(|| "not known".to_owned()));
        let allowed =
            if peer.allowed_ips.is_empty() { "none".to_owned() } else { peer.allowed_ips.join(", ") };
        let detail = format!("{}: {}; allowed IPs {allowed}", peer.public_key, facts(peer).join("; "));
        sheet.rows.push(Row { name: peer.public_key.clone(), cells, detail });
    }
    sheet
}

fn drops(rates: &Rates) -> Sheet {
    let columns = [("dropped/s", 10), ("in all", 9), ("what it means", 0)];
    let mut sheet = Sheet::new("4 drops".to_owned(), 18, &columns, "nothing was dropped");
    for drop in rates.drops() {
        let cells =
            vec![or_dash(rates.dropped(&drop.reason), number), amount(drop.packets), drop.help.clone()];
        let detail = format!("{}, {}: {}", drop.reason, drop.direction, drop.help);
        sheet.rows.push(Row { name: drop.reason.clone(), cells, detail });
    }
    sheet
}

/// The first line, most important first; parts that do not fit are left out.
pub fn header(rates: &Rates, paused: bool, odd_looks: u32, width: usize) -> String {
    let snapshot = rates.snapshot();
    let count = snapshot.workers.len();
    let parts = [
        snapshot.interface.clone(),
        if paused { "PAUSED".to_owned() } else { String::new() },
        balance(rates, odd_looks),
        format!("up {}", duration(snapshot.uptime_seconds)),
        format!("{count} worker{}", if count == 1 { "" } else { "s" }),
        format!("uringvpn {}", snapshot.version),
    ];
    join(parts.iter().map(String::as_str), width)
}

/// Looks in a row with an odd balance before it is called wrong: counters are read while workers run.
pub const ODD_LOOKS_MAX: u32 = 5;

fn balance(rates: &Rates, odd_looks: u32) -> String {
    match imbalance(rates.snapshot()) {
        Some(odd) if odd_looks >= ODD_LOOKS_MAX => {
            format!("balance WRONG: {} packets {} in flight", odd.in_flight, odd.direction)
        }
        _ => "balance ok".to_owned(),
    }
}

/// What the kernel does for the tunnel in one line, what it refuses first; nothing if the tunnel does not tell.
pub fn offloads(rates: &Rates, width: usize) -> String {
    let offloads = &rates.snapshot().offloads;
    let refused = |offload: &OffloadSnapshot| {
        let OffloadSnapshot { offload, cause, seconds_ago, .. } = offload;
        let ago = seconds_ago.map_or_else(String::new, |ago| format!(" {} ago", duration(ago)));
        format!("{offload} DOWNGRADED: {cause}{ago}")
    };
    let downgraded = offloads.iter().filter(|offload| offload.state == "downgraded").map(refused);
    let groups = [
        ("off by switch:", "off", "switch"),
        ("refused:", "off", "kernel"),
        ("on:", "on", "none"),
        ("unneeded:", "off", "unneeded"),
    ];
    let groups = groups.into_iter().filter_map(|(title, state, cause)| {
        let of_group = offloads.iter().filter(|offload| offload.state == state && offload.cause == cause);
        let names: Vec<_> = of_group.map(|offload| offload.offload.as_str()).collect();
        (!names.is_empty()).then(|| format!("{title} {}", names.join(" ")))
    });
    let parts: Vec<_> = downgraded.chain(groups).collect();
    let title = parts.first().map(|_| "offloads");
    join(title.into_iter().chain(parts.iter().map(String::as_str)), width)
}

/// As many of `parts` as fit, two spaces between them.
pub fn join<'a>(parts: impl IntoIterator<Item = &'a str>, width: usize) -> String {
    let mut line = String::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let gap = if line.is_empty() { "" } else { "  " };
        if line.len() + gap.len() + part.len() > width && !line.is_empty() {
            break;
        }
        line = line + gap + part;
    }
    line
}

/// Packets and bits per second of one direction: inner bytes, counted where they enter or leave the interface.
pub fn direction(rates: &Rates, outbound: bool) -> String {
    let (name, packets, bytes) = if outbound {
        ("out", "out_packets", "out_bytes")
    } else {
        ("in", "written_packets", "written_bytes")
    };
    let [packets, bits] = [or_dash(rates.total(packets), number), or_dash(rates.total(bytes), bits)];
    format!("{name:<3} {packets:>6} packets/s {bits:>11}")
}

/// What there may not be.
pub fn or_dash<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

/// A rate.
pub fn number(value: f64) -> String {
    amount(value.round() as u64)
}

/// Bits per second of bytes per second.
pub fn bits(bytes: f64) -> String {
    scaled(
        (bytes * 8.0).round(),
        &[(1e12, " Tbit/s"), (1e9, " Gbit/s"), (1e6, " Mbit/s"), (1e3, " kbit/s")],
        " bit/s",
    )
}

#[cfg(test)]
mod tests {
    use super::super::keys::PANES;
    use super::super::made_up::look;
    use super::super::rates::Look;
    use super::*;

    #[test]
    fn columns_are_left_out_whole_and_stages_stay_apart() {
        let now = look(100.0, 1_000);
        let rates = Rates::between(None, &now);
        let stages = sheet(Pane::Stages, &rates, &Choice::new());
        let narrow: Vec<_> = stages.rows.iter().map(|row| stages.line(row, 20)).collect();
        assert_eq!(narrow[..2], ["outbound     12.3 us", "out_seal     2.00 ms"]);
        assert!(stages.head(30).ends_with("p50"), "{}", stages.head(30));
        for width in 0..200 {
            for sheet in PANES.map(|pane| sheet(pane, &rates, &Choice::new())) {
                assert!(sheet.head(width).chars().count() <= width);
                assert!(sheet.rows.iter().all(|row| sheet.line(row, width).chars().count() <= width));
            }
        }
    }

    #[test]
    fn peers_stand_in_the_chosen_order() {
        let [before, now] = [look(100.0, 1_000), look(101.0, 2_000)];
        let rates = Rates::between(Some(&before), &now);
        let first = |sort| peers(&rates, sort).rows[0].name.clone();
        assert!(first(PeerSort::Rate).starts_with("busy"));
        assert!(first(PeerSort::Received).starts_with("busy"));
        assert!(first(PeerSort::Handshake).starts_with("fresh"));
        assert!(first(PeerSort::Endpoint).starts_with("fresh"));
        let last = peers(&rates, PeerSort::Endpoint).rows.pop().map(|row| row.name);
        assert!(last.is_some_and(|name| name.starts_with("absent")));
    }

    #[test]
    fn drops_have_a_column_among_the_peers_only_if_there_are_any() {
        let mut now = look(100.0, 1_000);
        let head = |now: &Look| peers(&Rates::between(None, now), PeerSort::Rate).head(80);
        assert!(!head(&now).contains("dropped"));
        now.snapshot.peers[0].drops.insert("replayed".to_owned(), 7);
        now.snapshot.peers[0].drops.insert("too_old".to_owned(), 2);
        assert!(head(&now).contains("dropped"));
        let rates = Rates::between(None, &now);
        let sheet = peers(&rates, PeerSort::Rate);
        let busy = sheet.rows.iter().find(|row| row.name.starts_with("busy")).expect("it is among them");
        assert!(sheet.line(busy, 80).contains("      9  192.0"), "{}", sheet.line(busy, 80));
        assert!(busy.detail.contains("dropped: replayed 7, too_old 2"), "{}", busy.detail);
    }

    #[test]
    fn a_balance_is_wrong_only_when_it_stays_so() {
        let mut now = look(100.0, 1_000);
        now.snapshot.balance[0].in_flight = -3;
        let rates = Rates::between(None, &now);
        assert!(header(&rates, false, 1, 80).contains("balance ok"));
        assert!(header(&rates, false, ODD_LOOKS_MAX, 80).contains("WRONG: -3 packets outbound"));
        assert_eq!(header(&rates, true, 0, 20), "uvt7  PAUSED");
    }

    #[test]
    fn the_age_of_a_second_fits_above_its_column() {
        let ages = [None, Some(2.9), Some(3.0), Some(99.9), Some(3_600.0), Some(86_400.0), Some(8_553_600.0)]
            .map(age);
        assert_eq!(ages, ["last s", "last s", "3s ago", "100s ago", "60m ago", "24h ago", "99d ago"]);
    }

    #[test]
    fn offloads_that_are_refused_or_off_come_first() {
        let mut now = look(100.0, 1_000);
        let line = |now: &Look, width| offloads(&Rates::between(None, now), width);
        assert_eq!(
            line(&now, 80),
            "offloads  on: tso uso gso gro steering uring defer-taskrun multishot-read"
        );
        let changes = [
            (2, "downgraded", "EMSGSIZE"),
            (1, "off", "kernel"),
            (3, "off", "switch"),
            (4, "off", "unneeded"),
        ];
        for (index, state, cause) in changes {
            let offload = &mut now.snapshot.offloads[index];
            (offload.state, offload.cause) = (state.to_owned(), cause.to_owned());
        }
        now.snapshot.offloads[2].seconds_ago = Some(12.3);
        let all = "offloads  gso DOWNGRADED: EMSGSIZE 12 s ago  off by switch: gro  refused: uso  \
                   on: tso uring defer-taskrun multishot-read  unneeded: steering";
        assert_eq!(line(&now, 200), all);
        assert_eq!(line(&now, 70), "offloads  gso DOWNGRADED: EMSGSIZE 12 s ago  off by switch: gro");
        now.snapshot.offloads.clear();
        assert_eq!(line(&now, 80), "");
    }

    #[test]
    fn a_second_or_the_whole_run_is_chosen_and_so_is_the_worker() {
        let now = look(100.0, 1_000);
        let rates = Rates::between(None, &now);
        let head = |choice: &Choice| sheet(Pane::Stages, &rates, choice).head(80);
        assert!(head(&Choice::new()).ends_with("of worker 0, last s"));
        assert!(head(&Choice { worker: Some(1), ..Choice::new() }).ends_with("of worker 1, last s"));
        let mut idle = now.clone();
        idle.snapshot.workers[1].last_second_ago = Some(35.2);
        let choice = Choice { worker: Some(1), ..Choice::new() };
        let stages = sheet(Pane::Stages, &Rates::between(None, &idle), &choice);
        assert!(stages.head(80).ends_with("of worker 1, 35s ago"), "{}", stages.head(80));
        assert!(head(&Choice { since_start: true, ..Choice::new() }).ends_with("of all since start"));
    }
}
