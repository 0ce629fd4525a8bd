//! What `show` prints of a program that exposes ports. Pure.

use std::fmt::Write as _;

use super::{STALE_SECONDS, amount, bytes, duration, table};
use crate::stats::exposed::snapshot::{Count, ExposedSnapshot, PortSnapshot};

/// Ports that people are shown: those with the most open connections, then those with the most traffic.
const PORTS_SHOWN_MAX: usize = 20;

/// One side of the law, and what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Account {
    /// What it is about.
    pub what: &'static str,
    /// Those that came.
    pub came: u64,
    /// Where each of them is now, or how it ended.
    pub parts: Vec<(&'static str, u64)>,
}

impl Account {
    /// How many are missing; below 0, how many are counted twice.
    pub fn missing(&self) -> i64 {
        let parts: u64 = self.parts.iter().map(|(_, count)| count).sum();
        self.came.wrapping_sub(parts).cast_signed()
    }

    /// As a sentence.
    pub fn line(&self) -> String {
        let parts: Vec<_> = self.parts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        format!("{}: {} in all = {}", self.what, self.came, parts.join(" + "))
    }
}

/// The law of [`crate::stats::exposed`].
pub(in super::super) fn accounts(snapshot: &ExposedSnapshot) -> [Account; 2] {
    let counted = |name: &str| number(&snapshot.counters, name);
    let present = |name: &str| number(&snapshot.present, name);
    let turned_away = snapshot.turned_away.iter().map(|count| count.count).sum();
    let mut visitors = vec![("joined", counted("joined")), ("turned away", turned_away)];
    if snapshot.counters.contains_key("left") {
        visitors.push(("left", counted("left")));
    }
    visitors.push(("waiting", present("waiting")));
    let ended = |reason: &str| {
        let found = snapshot.ended.iter().find(|count| count.reason == reason);
        found.map_or(0, |count| count.count)
    };
    let kinds = ["finished", "broken", "idle"].map(|reason| (reason, ended(reason)));
    let open = [("open", present("open"))];
    [
        Account { what: "visitors", came: counted("visitors"), parts: visitors },
        Account {
            what: "connections",
            came: counted("joined"),
            parts: open.into_iter().chain(kinds).collect(),
        },
    ]
}

/// A number under its name; what an older program does not tell is 0.
pub(in super::super) fn number(numbers: &std::collections::BTreeMap<String, u64>, name: &str) -> u64 {
    numbers.get(name).copied().unwrap_or_default()
}

/// A page of text.
pub(super) fn for_people(snapshot: &ExposedSnapshot) -> String {
    let ExposedSnapshot { kind, name, version, uptime_seconds, .. } = snapshot;
    let counted = |name: &str| amount(number(&snapshot.counters, name));
    let mut text = format!("{kind} {name}: uringvpn {version}, up {}\n", duration(*uptime_seconds));
    // Writing to a string does not fail.
    let _ = writeln!(text, "  {}", settings_line(snapshot));
    for account in accounts(snapshot) {
        let _ = writeln!(text, "  {}", account.line());
    }
    let [from, to] = ["in_bytes", "out_bytes"].map(|name| bytes(number(&snapshot.counters, name)));
    let _ = writeln!(text, "  bytes: {from} from visitors, {to} to them");
    let [open, held] = ["ports_open", "ports_held"].map(|name| number(&snapshot.present, name));
    let [opened, back, lost] = ["opened", "reconnects", "lost"].map(counted);
    let _ = writeln!(
        text,
        "  ports: {open} open, {held} held; {opened} opened so far, {lost} lost, {back} came back"
    );
    if kind == "server" {
        let pending = number(&snapshot.present, "pending_callers");
        let (callers, starved) = (counted("callers"), counted("starved"));
        let _ = writeln!(
            text,
            "  control port: {callers} connections so far, {pending} pending; {starved} times nobody could be accepted"
        );
    }
    table(&mut text, "\nsince the start", &snapshot.distributions);
    let age = snapshot.last_second_ago.filter(|age| *age >= STALE_SECONDS);
    let age = age.map_or_else(String::new, |age| format!(", {} ago", duration(age)));
    table(&mut text, &format!("\nthe last second{age}"), &snapshot.last_second);
    reasons(&mut text, "visitors turned away", &snapshot.turned_away);
    reasons(&mut text, "callers refused", &snapshot.refused);
    reasons(&mut text, "datagrams lost", &snapshot.lost_datagrams);
    port_lines(&mut text, &snapshot.ports);
    text
}

fn settings_line(snapshot: &ExposedSnapshot) -> String {
    let settings = &snapshot.settings;
    let control = if snapshot.kind == "server" { "control port" } else { "server" };
    let secret = if settings.secret { "with a secret" } else { "without a secret" };
    let through = match &settings.through {
        Some(tunnel) => format!("through {tunnel}"),
        None => "in clear".to_owned(),
    };
    let (pid, driver, kernel) = (settings.pid, &settings.driver, &settings.kernel);
    format!("pid {pid}, {control} {}, {secret}, {through}, driver {driver}, {kernel}", settings.control)
}

fn reasons(text: &mut String, title: &str, counts: &[Count]) {
    let mut title = Some(title);
    for Count { reason, count, help } in counts.iter().filter(|count| count.count > 0) {
        if let Some(title) = title.take() {
            let _ = writeln!(text, "\n{title}");
        }
        let _ = writeln!(text, "  {reason:<19} {count:>12}  {help}");
    }
}

fn port_lines(text: &mut String, ports: &[PortSnapshot]) {
    if ports.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{:<11} {:<5} {:>6} {:>9} {:>11} {:>9} {:>9}  whose",
        "port", "state", "open", "visitors", "turned away", "in", "out"
    );
    let mut ports: Vec<_> = ports.iter().collect();
    ports.sort_by_key(|port| std::cmp::Reverse((port.open, port.in_bytes.saturating_add(port.out_bytes))));
    for port in ports.iter().take(PORTS_SHOWN_MAX) {
        let [open, visitors, turned_away] = [port.open, port.visitors, port.turned_away].map(amount);
        let [from, to] = [port.in_bytes, port.out_bytes].map(bytes);
        let _ = writeln!(
            text,
            "  {:<9} {:<5} {open:>6} {visitors:>9} {turned_away:>11} {from:>9} {to:>9}  {}",
            port.name(),
            port.state,
            port.whose
        );
    }
    if ports.len() > PORTS_SHOWN_MAX {
        let _ = writeln!(text, "  and {} more; --json tells all", ports.len() - PORTS_SHOWN_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::exposed::Kind;
    use crate::stats::exposed::recorder::Recorder;
    use crate::stats::exposed::snapshot::Sums;

    fn server() -> ExposedSnapshot {
        let recorder = Recorder::default();
        recorder.counters.visitors.add(10);
        recorder.counters.joined.add(6);
        recorder.counters.left.add(1);
        recorder.present.open.set(6);
        recorder.present.waiting.set(2);
        recorder.turn_away(None, crate::stats::exposed::reasons::TurnedAway::NotTaken);
        let mut snapshot = Sums::of([&recorder]).snapshot(Kind::Server);
        snapshot.name = "server-7835".into();
        snapshot.ports = (1..=30)
            .map(|port| PortSnapshot {
                port,
                in_bytes: port.into(),
                state: "open".into(),
                ..Default::default()
            })
            .collect();
        snapshot
    }

    #[test]
    fn each_visitor_and_each_connection_is_somewhere() {
        let mut snapshot = server();
        let lines = accounts(&snapshot).map(|account| (account.missing(), account.line()));
        assert_eq!(
            lines,
            [
                (0, "visitors: 10 in all = 6 joined + 1 turned away + 1 left + 2 waiting".to_owned()),
                (0, "connections: 6 in all = 6 open + 0 finished + 0 broken + 0 idle".to_owned())
            ]
        );
        snapshot.counters.insert("joined".into(), 8);
        assert_eq!(accounts(&snapshot).map(|account| account.missing()), [-2, 2]);
    }

    #[test]
    fn a_page_tells_what_happened_and_the_busiest_ports() {
        let text = for_people(&server());
        for part in ["server server-7835: uringvpn ", "\nvisitors turned away\n  not_taken", "and 10 more"] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(!text.contains("callers refused"), "nobody was:\n{text}");
        assert!(text.contains("\n  30 ") && !text.contains("\n  10 "), "{text}");
    }
}
