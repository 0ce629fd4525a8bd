//! What `top` shows of a program that exposes ports: rates between two looks, and its panes. Pure.

use std::collections::HashMap;

use super::super::show::exposed::{Account, accounts, number as stored};
use super::super::show::{amount, duration, quantity};
use super::keys::{Choice, Pane, PeerSort};
use super::rates::{BARS, bar_of};
use super::sheets::{ODD_LOOKS_MAX, Row, Sheet, age, bits, join, number, or_dash};
use crate::stats::exposed::counters::Counted;
use crate::stats::exposed::snapshot::{Count, ExposedSnapshot, PortSnapshot};

/// Keys and what they do, for the screen.
pub const HELP: &[(&str, &str)] = &[
    ("q Esc ^C", "quit"),
    ("Tab 1-4", "go to a pane: times, counted, ports, ends"),
    ("arrows j k", "select a row, which explains itself below"),
    ("t", "times of the last second with connections, or since the start"),
    ("s", "order of the ports: rate, received, sent, open connections, number"),
    ("p Space", "let the screen stand still, and go on"),
    ("?", "this help, and back"),
];

/// The same in few words.
pub const HINTS: &[&str] = &["q quit", "? help", "Tab 1-4 pane", "j k select", "t time", "s sort", "p pause"];

/// A program at one moment.
#[derive(Clone, Debug)]
pub struct Look {
    /// What it said.
    pub snapshot: ExposedSnapshot,
    /// CPU time of all its threads so far, in nanoseconds, if that is known.
    pub cpu: Option<u64>,
}

impl Look {
    /// What does not add up, as may be seen while it runs.
    pub fn missing(&self) -> Option<Account> {
        accounts(&self.snapshot).into_iter().find(|account| account.missing() != 0)
    }
}

/// The newest look and the one before it.
#[derive(Clone, Copy, Debug)]
pub struct Rates<'a> {
    now: &'a Look,
    /// None at the first look, and when a new program has taken over the name.
    before: Option<&'a Look>,
    seconds: f64,
}

impl<'a> Rates<'a> {
    /// Rates from `before` to `now`.
    pub fn between(before: Option<&'a Look>, now: &'a Look) -> Rates<'a> {
        let elapsed = |before: &Look| now.snapshot.uptime_seconds - before.snapshot.uptime_seconds;
        let before = before.filter(|before| elapsed(before) > 0.0);
        Rates { now, before, seconds: before.map_or(1.0, elapsed) }
    }

    fn per_second(&self, now: u64, before: u64) -> Option<f64> {
        now.checked_sub(before).map(|grown| grown as f64 / self.seconds)
    }

    fn counter(&self, name: &str) -> Option<f64> {
        let value = |look: &Look| stored(&look.snapshot.counters, name);
        self.per_second(value(self.now), value(self.before?))
    }

    fn reason(&self, of: fn(&ExposedSnapshot) -> &Vec<Count>, reason: &str) -> Option<f64> {
        let value = |look: &Look| {
            let found = of(&look.snapshot).iter().find(|count| count.reason == reason);
            found.map_or(0, |count| count.count)
        };
        self.per_second(value(self.now), value(self.before?))
    }

    /// The share of a core that it took, 1 being all of it.
    fn cpu(&self) -> Option<f64> {
        Some(self.per_second(self.now.cpu?, self.before?.cpu?)? / 1e9)
    }

    fn minute(&self, name: &str) -> [u64; BARS] {
        let mut bars = [0; BARS];
        for second in &self.now.snapshot.seconds {
            // It ended when it was looked at, a moment after it was over.
            if let Some(bar) = bar_of(second.seconds_ago.floor() + 1.0) {
                bars[bar] += stored(&second.counters, name);
            }
        }
        bars
    }

    /// The first line, most important first; parts that do not fit are left out.
    pub fn header(&self, paused: bool, odd_looks: u32, width: usize) -> String {
        let snapshot = &self.now.snapshot;
        let sums = match self.now.missing() {
            Some(odd) if odd_looks >= ODD_LOOKS_MAX => {
                format!("sums WRONG: {} {} missing", odd.missing(), odd.what)
            }
            _ => "sums ok".to_owned(),
        };
        let parts = [
            snapshot.name.clone(),
            if paused { "PAUSED".to_owned() } else { String::new() },
            sums,
            format!("up {}", duration(snapshot.uptime_seconds)),
            or_dash(self.cpu(), |share| format!("CPU {:.0}%", share * 100.0)),
            format!("uringvpn {}", snapshot.version),
        ];
        join(parts.iter().map(String::as_str), width)
    }

    /// From visitors and to them.
    pub fn directions(&self) -> [(String, [u64; BARS]); 2] {
        let line = |name: &str, counter: &str, what: &str, bytes: &str| {
            let [count, bits] = [or_dash(self.counter(counter), number), or_dash(self.counter(bytes), bits)];
            (format!("{name:<3} {count:>6} {what:<10} {bits:>11}"), self.minute(bytes))
        };
        [line("in", "visitors", "visitors/s", "in_bytes"), line("out", "joined", "joined/s", "out_bytes")]
    }

    /// What there is now.
    pub fn state(&self, width: usize) -> String {
        let snapshot = &self.now.snapshot;
        let present = |name: &str| amount(stored(&snapshot.present, name));
        let pending = match snapshot.present.contains_key("pending_callers") {
            true => format!("{} callers pending", present("pending_callers")),
            false => String::new(),
        };
        let parts = [
            "now".to_owned(),
            format!("{} connections open", present("open")),
            format!("{} visitors waiting", present("waiting")),
            format!("{} ports open", present("ports_open")),
            format!("{} held", present("ports_held")),
            pending,
        ];
        join(parts.iter().map(String::as_str), width)
    }

    /// What stands in a pane.
    pub fn sheet(&self, pane: Pane, choice: &Choice) -> Sheet {
        match pane {
            Pane::Stages => self.times(choice),
            Pane::Workers => self.counted(),
            Pane::Peers => self.ports(choice.peer_sort),
            Pane::Drops => self.ends(),
        }
    }

    fn times(&self, choice: &Choice) -> Sheet {
        let snapshot = &self.now.snapshot;
        let (of, rows) = match choice.since_start || snapshot.last_second.is_empty() {
            true => ("since start".to_owned(), &snapshot.distributions),
            false => (age(snapshot.last_second_ago), &snapshot.last_second),
        };
        let columns = [("p50", 8), ("p90", 8), ("p99", 8), ("p99.9", 8), ("max", 8), (of.as_str(), 18)];
        let mut sheet = Sheet::new("1 times".to_owned(), 20, &columns, "no connection so far");
        for row in rows.iter().filter(|row| row.count > 0) {
            let values =
                [row.p50, row.p90, row.p99, row.p999, row.max].map(|value| quantity(value, &row.unit));
            let mut cells = Vec::from(values);
            cells.push(format!("{} {}", amount(row.count), row.per));
            sheet.rows.push(Row::new(row.name.clone(), cells, explained(&row.name)));
        }
        sheet
    }

    fn counted(&self) -> Sheet {
        let columns = [("per second", 12), ("in all", 9), ("what it means", 0)];
        let mut sheet = Sheet::new("2 counted".to_owned(), 14, &columns, "nothing");
        let counters = &self.now.snapshot.counters;
        for info in Counted::TABLE.iter().filter(|info| counters.contains_key(info.name)) {
            let (rate, total) = (self.counter(info.name), stored(counters, info.name));
            let quantities = match info.unit {
                "bytes" => [or_dash(rate, bits), quantity(total, "bytes")],
                _ => [or_dash(rate, number), amount(total)],
            };
            let cells = [Vec::from(quantities), vec![info.help.to_owned()]].concat();
            sheet.rows.push(Row::new(info.name.to_owned(), cells, format!("{}: {}", info.name, info.help)));
        }
        sheet
    }

    fn ports(&self, sort: PeerSort) -> Sheet {
        let columns =
            [("received", 12), ("sent", 12), ("visitors/s", 11), ("open", 6), ("state", 6), ("whose", 0)];
        let title = format!("3 ports by {}", label(sort));
        let mut sheet = Sheet::new(title, 19, &columns, "no port is public");
        let mut ports = self.port_rates();
        ports.sort_by(|(one, one_rates), (other, other_rates)| {
            let [one_rates, other_rates] = [one_rates, other_rates].map(|rates| rates.unwrap_or_default());
            let order = match sort {
                PeerSort::Rate => (other_rates[0] + other_rates[1]).total_cmp(&(one_rates[0] + one_rates[1])),
                PeerSort::Received => other_rates[0].total_cmp(&one_rates[0]),
                PeerSort::Sent => other_rates[1].total_cmp(&one_rates[1]),
                PeerSort::Handshake => other.open.cmp(&one.open),
                PeerSort::Endpoint => std::cmp::Ordering::Equal,
            };
            order.then_with(|| (one.port, &one.whose).cmp(&(other.port, &other.whose)))
        });
        for (port, rates) in ports {
            let cells = vec![
                or_dash(rates, |rates| bits(rates[0])),
                or_dash(rates, |rates| bits(rates[1])),
                or_dash(rates, |rates| number(rates[2])),
                amount(port.open),
                port.state.clone(),
                port.whose.clone(),
            ];
            sheet.rows.push(Row::new(port.name(), cells, told(port)));
        }
        sheet
    }

    /// Ports with bytes in, bytes out and visitors per second.
    fn port_rates(&self) -> Vec<(&'a PortSnapshot, Option<[f64; 3]>)> {
        let ports = |look: &'a Look| look.snapshot.ports.iter();
        let before: HashMap<String, &PortSnapshot> =
            self.before.into_iter().flat_map(ports).map(|port| (port.name(), port)).collect();
        let rates = |port: &PortSnapshot| {
            let before = before.get(&port.name())?;
            Some([
                self.per_second(port.in_bytes, before.in_bytes)?,
                self.per_second(port.out_bytes, before.out_bytes)?,
                self.per_second(port.visitors, before.visitors)?,
            ])
        };
        ports(self.now).map(|port| (port, rates(port))).collect()
    }

    fn ends(&self) -> Sheet {
        let columns = [("per second", 11), ("in all", 9), ("what it means", 0)];
        let mut sheet = Sheet::new("4 ends".to_owned(), 25, &columns, "nothing has ended");
        type Counts = fn(&ExposedSnapshot) -> &Vec<Count>;
        let groups: [(&str, Counts); 4] = [
            ("ended", |snapshot| &snapshot.ended),
            ("away", |snapshot| &snapshot.turned_away),
            ("refused", |snapshot| &snapshot.refused),
            ("lost", |snapshot| &snapshot.lost_datagrams),
        ];
        for (group, of) in groups {
            for Count { reason, count, help } in of(&self.now.snapshot).iter().filter(|count| count.count > 0)
            {
                let cells = vec![or_dash(self.reason(of, reason), number), amount(*count), help.clone()];
                let name = format!("{group} {reason}");
                let detail = format!("{name}: {help}");
                sheet.rows.push(Row::new(name, cells, detail));
            }
        }
        sheet
    }
}

/// The order of the ports, as it stands on the screen.
fn label(sort: PeerSort) -> &'static str {
    match sort {
        PeerSort::Rate => "rate",
        PeerSort::Received => "received",
        PeerSort::Sent => "sent",
        PeerSort::Handshake => "open",
        PeerSort::Endpoint => "number",
    }
}

/// What a distribution includes.
fn explained(name: &str) -> String {
    let table = crate::stats::exposed::recorder::DISTRIBUTIONS;
    let found = table.iter().find(|(_, info)| info.name == name);
    found.map_or_else(String::new, |(_, info)| format!("{name}: {}", info.help))
}

/// All of a port.
fn told(port: &PortSnapshot) -> String {
    let [visitors, turned_away] = [port.visitors, port.turned_away].map(amount);
    let [from, to] = [port.in_bytes, port.out_bytes].map(|bytes| quantity(bytes, "bytes"));
    format!(
        "port {} of {}: {visitors} visitors, {turned_away} of them turned away; {from} received, {to} sent",
        port.name(),
        port.whose
    )
}

#[cfg(test)]
mod tests {
    use super::super::made_up::exposed as made_up;
    use super::super::sheets::Sheet;
    use super::*;

    fn names(sheet: &Sheet) -> Vec<&str> {
        sheet.rows.iter().map(|row| row.name.as_str()).collect()
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_none_at_first() {
        let [before, now] = [made_up(100.0, 1_000), made_up(102.0, 5_000)];
        let rates = Rates::between(Some(&before), &now);
        assert_eq!((rates.counter("visitors"), rates.cpu()), (Some(2_000.0), Some(0.5)));
        assert_eq!(rates.port_rates()[0].1, Some([200_000.0, 2_000_000.0, 2_000.0]));
        assert_eq!(Rates::between(None, &now).counter("visitors"), None);
        // A new program under the same name.
        assert_eq!(Rates::between(Some(&now), &made_up(1.0, 3)).counter("visitors"), None);
    }

    #[test]
    fn ports_stand_in_the_chosen_order() {
        let [before, now] = [made_up(100.0, 1_000), made_up(101.0, 2_000)];
        let rates = Rates::between(Some(&before), &now);
        assert_eq!(names(&rates.ports(PeerSort::Rate)), ["8080", "80", "443"]);
        assert_eq!(names(&rates.ports(PeerSort::Handshake)), ["443", "80", "8080"]);
        assert_eq!(names(&rates.ports(PeerSort::Endpoint)), ["80", "443", "8080"]);
    }

    #[test]
    fn sheets_fit_any_width_and_rows_explain_themselves() {
        let now = made_up(100.0, 1_000);
        let rates = Rates::between(None, &now);
        for pane in super::super::keys::PANES {
            let sheet = rates.sheet(pane, &Choice::new());
            assert!(sheet.rows.iter().all(|row| !row.detail.is_empty()), "{pane:?}");
            for width in 0..200 {
                assert!(sheet.head(width).chars().count() <= width);
                assert!(sheet.rows.iter().all(|row| sheet.line(row, width).chars().count() <= width));
            }
        }
        assert_eq!(names(&rates.ends()), ["ended finished", "away not_taken", "refused wrong_secret"]);
    }

    #[test]
    fn the_times_are_of_the_last_second_or_of_all() {
        let now = made_up(100.0, 1_000);
        let rates = Rates::between(None, &now);
        assert!(rates.times(&Choice::new()).head(80).ends_with("last s"));
        let all = Choice { since_start: true, ..Choice::new() };
        assert!(rates.times(&all).head(80).ends_with("since start"));
    }

    #[test]
    fn sums_are_wrong_only_when_they_stay_so() {
        let mut now = made_up(100.0, 1_000);
        now.snapshot.present.insert("waiting".into(), 1_000);
        let rates = Rates::between(None, &now);
        assert!(rates.header(false, 1, 80).contains("sums ok"));
        assert!(rates.header(false, ODD_LOOKS_MAX, 80).contains("sums WRONG: -"), "{:?}", now.missing());
    }

    #[test]
    fn each_second_of_the_minute_has_its_bar() {
        let now = made_up(100.0, 1_000);
        let bars = Rates::between(None, &now).minute("in_bytes");
        assert_eq!((bars[59], bars[57], bars.iter().sum::<u64>()), (9, 5, 14));
    }
}
