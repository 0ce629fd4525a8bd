//! The page of what perf/run.py measured: for each kind of traffic a table and lines over the rounds.

use std::collections::BTreeMap;

use super::charts::{HEIGHT, LINES, WIDTH, figure, short};
use super::measured::{Contender, Measured, Spread, Traffic};
use super::page::{Head, frame, note, section, titles};
use super::svg::{Canvas, escape, ticks};
use super::tables::{Better, Setting, difference, settings_table, table};

/// Groups of spreads, as the file has them.
type Group = fn(&Contender) -> &BTreeMap<String, Spread>;

/// A column: its title, where it stands, the metric, what to multiply by, digits after the point, which way is better.
type Column = (&'static str, Group, &'static str, f64, usize, Better);

const SPREAD: Group = |found| &found.spread;
const CONTROL: Group = |found| &found.ratio_to_control;
const LIMIT: Group = |found| &found.ratio_to_limit;

const COLUMNS: &[Column] = &[
    ("Gbit/s", SPREAD, "gbps", 1.0, 2, Better::More),
    ("of the control", CONTROL, "gbps", 1.0, 2, Better::More),
    ("thousand packets/s", SPREAD, "packets_per_second", 1e-3, 0, Better::More),
    ("cores per Gbit/s", SPREAD, "cores_per_gbps", 1.0, 3, Better::Less),
    ("of the control", CONTROL, "cores_per_gbps", 1.0, 1, Better::Less),
    ("of the limit", LIMIT, "cores_per_gbps", 1.0, 2, Better::Less),
    ("round trip p50, ms", SPREAD, "rtt_p50_ms", 1.0, 2, Better::Less),
    ("round trip p99, ms", SPREAD, "rtt_p99_ms", 1.0, 2, Better::Less),
    ("pings lost, %", SPREAD, "lost_pings_percent", 1.0, 2, Better::Less),
    ("lost, %", SPREAD, "lost_percent", 1.0, 2, Better::Less),
    ("system calls a segment", SPREAD, "syscalls_per_segment", 1.0, 3, Better::Less),
    ("memory, MiB", SPREAD, "rss_mib", 1.0, 1, Better::Less),
];

/// A picture over the rounds: its title, the metric, what to multiply by.
const PICTURES: &[(&str, &str, f64)] = &[
    ("Throughput, Gbit/s", "gbps", 1.0),
    ("Thousand packets a second", "packets_per_second", 1e-3),
    ("CPU, cores per Gbit/s", "cores_per_gbps", 1.0),
    ("Round trip p50, ms", "rtt_p50_ms", 1.0),
    ("Round trip p99, ms", "rtt_p99_ms", 1.0),
];

/// The report of `run`, beside `other` if there is one.
pub fn page(run: &Measured, other: Option<&Measured>) -> String {
    let name = |run: &Measured| format!("commit {}", run.commit);
    let head = Head {
        name: &name(run),
        what: "measured side by side",
        title: format!("{}: uringvpn measurements", name(run)),
        subtitle: format!(
            "{} · {} cores · Linux {} · {} rounds of {} s, contenders taking turns",
            run.machine.cpu, run.machine.cores, run.machine.kernel, run.options.rounds, run.options.seconds
        ),
    };
    let mut body = other.map_or_else(String::new, |other| {
        note(&format!(
            "Beside it: {}. Differences say how this run differs from that one, in colour where each median lies outside the \
             range of the other's rounds: what is grey may be noise. Pictures: this run at the left, the other at the right, \
             with the same axes.",
            name(other)
        ))
    });
    for (title, traffic) in &run.results {
        let other = other.and_then(|other| other.results.get(title));
        let help = "Medians, below them the range of the rounds. Ratios are taken within each round.";
        body += &section(&escape(title), help, "", &numbers(traffic, other));
        body += &format!("<div class=\"two\">\n{}</div>\n", pictures(traffic, other));
    }
    let only_there = |title: &&String| !run.results.contains_key(*title);
    let missing: Vec<_> = other.iter().flat_map(|other| other.results.keys().filter(only_there)).collect();
    missing.iter().for_each(|title| body += &note(&format!("Only the other run has {title}.")));
    body += &section("Where and how", "", "", &settings(run, other));
    frame(&head, &body, &run.json)
}

/// A row for each contender, a column for each metric that any of them has.
fn numbers(traffic: &Traffic, other: Option<&Traffic>) -> String {
    let measured = |(_, group, metric, ..): &&Column| {
        traffic.contenders.values().any(|found| group(found).contains_key(*metric))
    };
    let columns: Vec<_> = COLUMNS.iter().filter(measured).collect();
    let headings: Vec<_> =
        std::iter::once("contender").chain(columns.iter().map(|column| column.0)).collect();
    let rows = traffic.contenders().map(|(label, found)| {
        let theirs = other
            .and_then(|other| other.contenders.get(label))
            .filter(|theirs| theirs.encrypted == found.encrypted);
        let cells = columns.iter().map(|column| cell(column, found, theirs));
        std::iter::once(escape(label)).chain(cells).collect()
    });
    table(&headings, &rows.collect::<Vec<_>>())
}

fn cell(column: &Column, ours: &Contender, theirs: Option<&Contender>) -> String {
    let (_, group, metric, factor, digits, better) = *column;
    let Some(ours) = group(ours).get(metric) else { return "–".to_owned() };
    let [median, min, max] = [ours.median, ours.min, ours.max].map(|value| value * factor);
    let range = format!("{median:.digits$}<br/><span class=\"same\">{min:.digits$}–{max:.digits$}</span>");
    let Some(theirs) = theirs.and_then(|theirs| group(theirs).get(metric)) else { return range };
    let better = if ours.differs(theirs) { better } else { Better::Neither };
    format!("{range}<br/>{}", difference(ours.median, theirs.median, better))
}

fn pictures(traffic: &Traffic, other: Option<&Traffic>) -> String {
    let runs: Vec<_> = std::iter::once(traffic).chain(other).collect();
    let mut text = String::new();
    for (title, metric, factor) in PICTURES {
        let values = |run: &&Traffic| -> Vec<f64> {
            run.contenders.values().flat_map(|found| found.rounds(metric)).collect()
        };
        let all: Vec<f64> = runs.iter().flat_map(values).collect();
        if values(&traffic).is_empty() {
            continue;
        }
        let max = all.into_iter().fold(0.0, f64::max) * factor;
        for (run, title) in runs.iter().zip(titles(title)) {
            text += &rounds(run, &title, metric, *factor, max);
        }
    }
    text
}

/// A line for each contender over the rounds.
fn rounds(traffic: &Traffic, title: &str, metric: &str, factor: f64, max: f64) -> String {
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    let ticks = ticks(max, 5);
    let lines: Vec<_> = traffic
        .contenders()
        .map(|(label, found)| (label.as_str(), found.rounds(metric)))
        .filter(|(_, values)| !values.is_empty())
        .collect();
    let count = lines.iter().map(|(_, values)| values.len()).max().unwrap_or(1);
    let x = canvas.x(0.0, count as f64);
    let y = canvas.y(0.0, ticks.last().copied().unwrap_or(1.0));
    ticks.iter().for_each(|tick| canvas.tick_y(y.at(*tick), &short(*tick)));
    for round in (0..count).step_by(count.div_ceil(10)) {
        canvas.label_x(x.at(round as f64 + 0.5), &(round + 1).to_string());
    }
    for (index, (_, values)) in lines.iter().enumerate() {
        // A level for each round: what lies between two rounds was not measured.
        let steps = values.iter().enumerate().flat_map(|(round, value)| {
            let at = y.at(value * factor);
            [(x.at(round as f64), at), (x.at(round as f64 + 1.0), at)]
        });
        canvas.path(&format!("s s{}", index % LINES), &steps.collect::<Vec<_>>());
    }
    canvas.title_x("round");
    let labels: Vec<_> = lines.iter().map(|(label, _)| *label).collect();
    figure(title, &labels, &canvas.finish(title))
}

fn settings(run: &Measured, other: Option<&Measured>) -> String {
    let versions = |run: &Measured| {
        let versions: Vec<_> =
            run.machine.peers.iter().map(|(name, version)| format!("{name} {version}")).collect();
        versions.join("; ")
    };
    let rows: [Setting<'_, Measured>; 6] = [
        ("commit", &|run| run.commit.clone()),
        ("CPU", &|run| format!("{}, {} cores", run.machine.cpu, run.machine.cores)),
        ("kernel", &|run| format!("Linux {}", run.machine.kernel)),
        ("rounds", &|run| format!("{} of {} s", run.options.rounds, run.options.seconds)),
        ("cores busy before", &|run| format!("{:.2}", run.busy_cores_before)),
        ("others", &versions),
    ];
    settings_table(&rows, run, other)
}

#[cfg(test)]
mod tests {
    use super::super::measured::samples;
    use super::super::svg::assert_well_formed;
    use super::*;

    fn measured(label: &str, gbps: f64) -> Measured {
        Measured::from_text(&samples::file(label, gbps)).expect("it is a file of perf/run.py")
    }

    #[test]
    fn a_page_has_a_row_and_lines_for_each_contender_and_is_the_data_of_the_next() {
        let run = measured("ours/uring", 4.0);
        let page = page(&run, None);
        assert_well_formed(&page.replace(super::super::page::STYLE, ""));
        for part in ["A &lt;CPU&gt;", "tcp4-1flow", "ours/uring", "direct", "2 rounds of 5 s", "3.80<br/>"] {
            assert!(page.contains(part), "{part}");
        }
        // Throughput and CPU of two contenders, round trips of one.
        assert_eq!(page.matches("<polyline").count(), 5);
        assert_eq!(Measured::from_text(&page).as_ref(), Some(&run));
    }

    #[test]
    fn beside_another_run_differences_are_marked_where_they_exceed_the_rounds() {
        let (run, other) = (measured("ours/uring", 8.0), measured("ours/uring", 4.0));
        let beside = page(&run, Some(&other));
        assert_well_formed(&beside.replace(super::super::page::STYLE, ""));
        assert!(beside.contains("class=\"better\">+100 %") && beside.contains("(other run)"));
        assert!(!page(&run, Some(&run)).contains("class=\"better\">+"));
        let alike = page(&measured("ours/uring", 4.2), Some(&other));
        assert!(alike.contains("class=\"same\">+5.0 %"), "within the range of the rounds");
        let elsewhere = page(&run, Some(&measured("theirs", 4.0)));
        assert_eq!(elsewhere.matches("class=\"better\">+100 %").count(), 2, "the cable alone, and its ratio");
    }
}
