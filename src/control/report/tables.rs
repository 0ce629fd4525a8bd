//! The numbers of a report as tables, beside those of another run with the difference marked.

use std::fmt::Write as _;

use super::run::Run;
use super::svg::escape;
use crate::control::show;
use crate::stats::histograms::Distribution;
use crate::stats::snapshot::{Balance, OffloadSnapshot, SettingsSnapshot};
use crate::time::WallTime;

/// Peers that are listed, the busiest first.
pub const PEERS_MAX: usize = 50;
/// Differences below are none: the histograms tell no less apart.
const SAME_PERCENT: f64 = 1.0;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The larger.
    More,
    /// The smaller.
    Less,
    /// It is a fact.
    Neither,
}

/// A number's label, how it is read off a run, how it is written, which way it should go.
type Tile<'a> = (&'a str, &'a dyn Fn(&Run) -> f64, &'a dyn Fn(f64) -> String, Better);
/// A setting's label, and how it is read off a run.
pub type Setting<'a, R> = (&'a str, &'a dyn Fn(&R) -> String);

/// A quantity in its unit.
pub fn quantity(value: u64, unit: &str) -> String {
    show::quantity(value, unit).replace(" us", " µs")
}

fn bits(per_second: f64) -> String {
    let sizes = [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")];
    match sizes.into_iter().find(|(size, _)| per_second >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", per_second / size),
        None => format!("{per_second:.0} bit/s"),
    }
}

/// How much more `ours` is than `theirs`, marked as better or worse.
pub fn difference(ours: f64, theirs: f64, better: Better) -> String {
    if ours == theirs {
        return "<span class=\"same\">=</span>".to_owned();
    }
    if theirs == 0.0 {
        return "<span class=\"same\">new</span>".to_owned();
    }
    let percent = (ours - theirs) / theirs * 100.0;
    let class = match better {
        _ if percent.abs() < SAME_PERCENT => "same",
        Better::Neither => "same",
        Better::More if percent > 0.0 => "better",
        Better::Less if percent < 0.0 => "better",
        _ => "worse",
    };
    // Of a thousandfold nobody wants the digits.
    match percent {
        999.5.. => format!("<span class=\"{class}\">×{:.0}</span>", ours / theirs),
        _ if percent.abs() < 9.95 => format!("<span class=\"{class}\">{percent:+.1} %</span>"),
        _ => format!("<span class=\"{class}\">{percent:+.0} %</span>"),
    }
}

/// The few numbers that one looks at first.
pub fn tiles(run: &Run, other: Option<&Run>) -> String {
    type Read = fn(&Run) -> f64;
    let latency =
        |run: &Run, name| run.distribution(name).and_then(|found| found.at(0.99)).map_or(0.0, |ns| ns as f64);
    let nanos = |value: f64| if value == 0.0 { "–".to_owned() } else { quantity(value as u64, "ns") };
    let count = |value: f64| show::amount(value.round() as u64);
    let dropped: Read = |run| run.drops().iter().map(|drop| drop.packets as f64).sum();
    let calls: Read = |run| {
        let packets = run.counted("sent_datagrams").saturating_add(run.counted("written_packets"));
        if packets == 0 { 0.0 } else { run.counted("enters") as f64 / packets as f64 }
    };
    let rows: [Tile<'_>; 9] = [
        ("outbound", &|run| run.rate("out_bytes") * 8.0, &bits, Better::More),
        ("inbound", &|run| run.rate("written_bytes") * 8.0, &bits, Better::More),
        ("packets out a second", &|run| run.rate("sent_datagrams"), &count, Better::More),
        ("packets in a second", &|run| run.rate("written_packets"), &count, Better::More),
        ("outbound p99", &|run| latency(run, "outbound"), &nanos, Better::Less),
        ("inbound p99", &|run| latency(run, "inbound"), &nanos, Better::Less),
        ("system calls a packet", &calls, &|value| format!("{value:.3}"), Better::Less),
        ("packets dropped", &dropped, &count, Better::Less),
        ("dropped by the kernel", &|run| run.counted("overflown") as f64, &count, Better::Less),
    ];
    let mut text = "<div class=\"tiles\">".to_owned();
    for (label, read, format, better) in rows {
        let ours = read(run);
        let _ = write!(text, "<div><span>{label}</span><b>{}</b>", format(ours));
        if let Some(theirs) = other.map(read) {
            let _ = write!(
                text,
                "<small>{} against {}</small>",
                difference(ours, theirs, better),
                format(theirs)
            );
        }
        text += "</div>";
    }
    text + "</div>\n"
}

/// A table; cells are markup already.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = "<div class=\"scroll\"><table><thead><tr>".to_owned();
    headings.iter().for_each(|heading| text += &format!("<th>{}</th>", escape(heading)));
    text += "</tr></thead><tbody>";
    for row in rows {
        text += "<tr>";
        row.iter().for_each(|cell| text += &format!("<td>{cell}</td>"));
        text += "</tr>";
    }
    text + "</tbody></table></div>\n"
}

/// All distributions by percentile.
pub fn latencies(run: &Run, other: Option<&Run>) -> String {
    let row = |found: &Distribution| {
        let theirs = other.and_then(|other| other.distribution(&found.name));
        let better = if found.unit == "ns" { Better::Less } else { Better::Neither };
        let mut cells =
            vec![format!("<span title=\"{}\">{}</span>", escape(&found.help), label(&found.name))];
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            cells.push(value(found, theirs, quantile, better));
        }
        cells.push(format!("{} {}", show::amount(found.count()), escape(&found.per)));
        cells
    };
    let moved = |found: &&Distribution| {
        let theirs = other.and_then(|other| other.distribution(&found.name));
        found.count() > 0 || theirs.is_some_and(|theirs| theirs.count() > 0)
    };
    let rows: Vec<_> = run.distributions.iter().filter(moved).map(row).collect();
    if rows.is_empty() {
        return "<p>Nothing was recorded: no packet moved.</p>\n".to_owned();
    }
    table(&["stage or quantity", "p50", "p90", "p99", "p99.9", "max", "of"], &rows)
}

fn label(name: &str) -> String {
    escape(&name.replace('_', " "))
}

fn value(ours: &Distribution, theirs: Option<&Distribution>, quantile: f64, better: Better) -> String {
    let theirs = theirs.and_then(|theirs| theirs.at(quantile));
    match (ours.at(quantile), theirs) {
        (Some(at), Some(theirs)) => {
            format!("{} {}", quantity(at, &ours.unit), difference(at as f64, theirs as f64, better))
        }
        (Some(at), None) => quantity(at, &ours.unit),
        (None, _) => "–".to_owned(),
    }
}

/// What was dropped, also by the kernel, with what to do about it.
pub fn drops(run: &Run, other: Option<&Run>) -> String {
    let all = |run: &Run| [run.drops(), run.kernel_drops()].concat();
    let (ours, theirs) = (all(run), other.map(all));
    let packets = |reason: &str| {
        theirs.iter().flatten().find(|drop| drop.reason == reason).map_or(0, |drop| drop.packets)
    };
    let mut all: Vec<_> = ours.iter().map(|drop| (drop, drop.packets)).collect();
    let only_there = |reason: &str| ours.iter().all(|drop| drop.reason != reason);
    all.extend(theirs.iter().flatten().filter(|drop| only_there(&drop.reason)).map(|drop| (drop, 0)));
    if all.is_empty() {
        return "<p>Nothing was dropped.</p>\n".to_owned();
    }
    let rows = all.iter().map(|(drop, count)| {
        let mut cells = vec![
            label(&drop.reason),
            escape(&drop.direction),
            count.to_string(),
            format!("<span class=\"prose\">{}</span>", escape(&drop.help)),
        ];
        if theirs.is_some() {
            let before = packets(&drop.reason);
            let mark = difference(*count as f64, before as f64, Better::Less);
            cells.insert(3, format!("{before} {mark}"));
        }
        cells
    });
    let headings = ["reason", "direction", "packets", "what it means"];
    let compared = ["reason", "direction", "packets", "other run", "what it means"];
    table(if theirs.is_some() { &compared } else { &headings }, &rows.collect::<Vec<_>>())
}

/// Whether every packet since the tunnel's start is accounted for.
pub fn balance(run: &Run) -> String {
    let row = |account: &Balance| {
        let Balance { direction, taken_in, passed_on, dropped, staged, in_flight } = account;
        let mut cells = vec![escape(direction)];
        cells.extend([taken_in, passed_on, dropped, staged].map(u64::to_string));
        cells.push(in_flight.to_string());
        cells
    };
    let rows: Vec<_> = run.last.balance.iter().map(row).collect();
    table(&["direction", "taken in =", "passed on +", "dropped +", "staged +", "in flight"], &rows)
}

/// Worker by worker: is one of them doing all the work?
pub fn workers(run: &Run) -> String {
    let counters = ["sent_datagrams", "written_packets", "out_bytes", "written_bytes", "enters", "turns"];
    let sums = counters.map(|name| run.counted(name));
    let row = |index: usize| {
        let mut cells = vec![run.last.workers[index].worker.to_string()];
        for (name, sum) in counters.into_iter().zip(sums) {
            let count = run.worker_counted(index, name);
            let unit = if name.ends_with("bytes") { "bytes" } else { "" };
            let share = if sum == 0 { 0.0 } else { count as f64 / sum as f64 * 100.0 };
            cells.push(format!("{} <span class=\"same\">{share:.0} %</span>", quantity(count, unit)));
        }
        cells
    };
    let rows: Vec<_> = (0..run.last.workers.len()).map(row).collect();
    table(&["worker", "packets out", "packets in", "bytes out", "bytes in", "system calls", "turns"], &rows)
}

/// The busiest peers.
pub fn peers(run: &Run) -> String {
    let rows: Vec<_> = run.peers().iter().map(|(peer, rx, tx)| peer_row(run, peer, *rx, *tx)).collect();
    let mut text = match rows.len() {
        0 => "<p>None: plaintext mode, or not configured yet.</p>\n".to_owned(),
        _ => table(&["peer", "endpoint", "received", "sent", "handshake", "keepalive", "allowed IPs"], &rows),
    };
    let more = run.last.peers.len() - rows.len();
    if more > 0 {
        let _ = writeln!(text, "<p>And {more} more, which moved less since the start.</p>");
    }
    text
}

fn peer_row(run: &Run, peer: &crate::stats::snapshot::PeerSnapshot, rx: u64, tx: u64) -> Vec<String> {
    let rate = |bytes: u64| bits(if run.seconds > 0.0 { bytes as f64 * 8.0 / run.seconds } else { 0.0 });
    let handshake = peer.handshake_age_seconds.map(|age| show::duration(age) + " ago");
    let allowed: Vec<_> = peer.allowed_ips.iter().take(8).map(String::as_str).collect();
    let more = if peer.allowed_ips.len() > allowed.len() { ", …" } else { "" };
    vec![
        format!("<code>{}</code>", escape(&peer.public_key)),
        escape(peer.endpoint.as_deref().unwrap_or("not known")),
        rate(rx),
        rate(tx),
        escape(handshake.as_deref().unwrap_or("none yet")),
        match peer.persistent_keepalive {
            0 => "off".to_owned(),
            seconds => format!("{seconds} s"),
        },
        escape(&(allowed.join(", ") + more)),
    ]
}

/// What the kernel did for the tunnel.
pub fn offloads(run: &Run, other: Option<&Run>) -> String {
    let row = |ours: &OffloadSnapshot| {
        let OffloadSnapshot { offload, state, reason, .. } = ours;
        let mut cells = vec![
            format!("<code>{}</code>", escape(offload)),
            escape(state),
            format!("<span class=\"prose\">{}</span>", escape(reason)),
        ];
        if let Some(other) = other {
            let found = other.last.offloads.iter().find(|found| found.offload == *offload);
            let theirs = found.map_or("not told", |found| &found.state);
            let class = if theirs == state { "same" } else { "differs" };
            cells.insert(2, format!("<span class=\"{class}\">{}</span>", escape(theirs)));
        }
        cells
    };
    let rows: Vec<_> = run.last.offloads.iter().map(row).collect();
    let headings = ["offload", "state", "why"];
    let compared = ["offload", "state", "other run", "why"];
    table(if other.is_some() { &compared } else { &headings }, &rows)
}

/// Where and how a run was made.
pub fn settings(run: &Run, other: Option<&Run>) -> String {
    let rows: [Setting<'_, Run>; 13] = [
        ("interface", &|run| run.last.interface.clone()),
        ("uringvpn", &|run| run.last.version.clone()),
        ("kernel", &|run| run.last.settings.kernel.clone()),
        ("mode", &|run| run.last.settings.mode.clone()),
        ("queues, driver", &|run| {
            let SettingsSnapshot { queues, drivers, .. } = &run.last.settings;
            format!("{queues}, {}", drivers.join(" and "))
        }),
        ("MTU", &|run| run.last.settings.mtu.to_string()),
        ("UDP port", &|run| run.last.settings.listen_port.to_string()),
        ("CPU", &|run| format!("{}, {} to use", run.host.cpu, run.host.cpus)),
        ("began", &|run| when(run.began)),
        ("watched", &|run| format!("{:.1} s", run.seconds)),
        ("tunnel up", &|run| show::duration(run.last.uptime_seconds)),
        ("workers, peers", &|run| format!("{}, {}", run.last.workers.len(), run.last.peers.len())),
        ("recorded late", &|run| {
            let late = run.last.merged_intervals.saturating_sub(run.first.merged_intervals);
            format!("{late} worker seconds")
        }),
    ];
    settings_table(&rows, run, other)
}

/// What two runs have in common, and where they differ.
pub fn settings_table<R>(rows: &[Setting<'_, R>], run: &R, other: Option<&R>) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|(label, read)| {
            let mut cells = vec![escape(label), escape(&read(run))];
            if let Some(theirs) = other.map(read) {
                let class = if theirs == read(run) { "same" } else { "differs" };
                cells.push(format!("<span class=\"{class}\">{}</span>", escape(&theirs)));
            }
            cells
        })
        .collect();
    table(if other.is_some() { &["", "this run", "other run"] } else { &["", ""] }, &rows)
}

/// A moment in UTC.
pub fn when(seconds: f64) -> String {
    let moment = WallTime::from_parts(seconds.clamp(0.0, 253_402_300_799.0) as u64, 0);
    let ((year, month, day), (hour, minute, second)) = (moment.date(), moment.clock());
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// All counters of the watch.
pub fn counters(run: &Run, other: Option<&Run>) -> String {
    let row = |name: &String| {
        let mut cells = vec![label(name), run.counted(name).to_string(), format!("{:.0}", run.rate(name))];
        if let Some(other) = other {
            let mark = difference(run.rate(name), other.rate(name), Better::Neither);
            cells.push(format!("{:.0} {mark}", other.rate(name)));
        }
        cells
    };
    let rows: Vec<_> = run.last.counters.keys().map(row).collect();
    let headings = ["counter", "in the watch", "a second", "a second, other run"];
    table(&headings[..if other.is_some() { 4 } else { 3 }], &rows)
}

#[cfg(test)]
mod tests {
    use super::super::run::samples;
    use super::super::svg::assert_well_formed;
    use super::*;

    #[test]
    fn a_difference_says_how_much_and_whether_it_is_good() {
        let marked = |ours, theirs, better| difference(ours, theirs, better);
        assert!(marked(110.0, 100.0, Better::More).contains("class=\"better\">+10 %"));
        assert!(marked(110.0, 100.0, Better::Less).contains("class=\"worse\">+10 %"));
        assert!(marked(95.0, 100.0, Better::Less).contains("class=\"better\">-5.0 %"));
        assert!(marked(100.5, 100.0, Better::Less).contains("class=\"same\""));
        assert!(marked(1e6, 1.0, Better::Less).contains("×1000000"));
        assert!(
            marked(5.0, 0.0, Better::Less).contains("new") && marked(0.0, 0.0, Better::More).contains('=')
        );
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(when(0.0), "1970-01-01 00:00:00 UTC");
        assert_eq!(when(951_782_400.5), "2000-02-29 00:00:00 UTC");
        assert_eq!(when(1_735_689_599.9), "2024-12-31 23:59:59 UTC");
        assert_eq!(when(f64::INFINITY), when(253_402_300_799.0));
    }

    #[test]
    fn tables_compare_and_are_well_formed() {
        let [run, other] = [4_000, 8_000].map(|nanos| samples::run("<wg&0>", 3, 500, nanos));
        for other in [None, Some(&other)] {
            let all =
                tiles(&run, other) + &latencies(&run, other) + &drops(&run, other) + &settings(&run, other);
            let all = all
                + &offloads(&run, other)
                + &counters(&run, other)
                + &balance(&run)
                + &workers(&run)
                + &peers(&run);
            assert_well_formed(&all);
            assert!(all.contains("&lt;wg&amp;0&gt;") && all.contains("<code>gso</code>"));
            assert_eq!(all.contains("class=\"better\">-50 %"), other.is_some());
            assert!(all.contains("No peer has the destination in its allowed IPs."));
            assert!(all.contains("<span>dropped by the kernel</span><b>21</b>"));
            assert!(all.contains("<td>overflown</td><td>inbound</td><td>21</td>"));
            assert!(all.contains("raise net.core.rmem_max."));
        }
    }
}
