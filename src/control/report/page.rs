//! The page: everything in one file that needs no script and no network, light or dark as the reader's system is.

use super::charts::{self, Decades, Rate};
use super::run::{Interval, Run, embedded};
use super::svg::escape;
use super::tables;
use crate::stats::histograms::Distribution;

/// How all of it looks.
pub const STYLE: &str = include_str!("page.css");

const THROUGHPUT: [Rate; 2] = [
    Rate { label: "outbound", counter: "out_bytes", factor: 8.0 },
    Rate { label: "inbound", counter: "written_bytes", factor: 8.0 },
];
const PACKETS: [Rate; 2] = [
    Rate { label: "outbound", counter: "sent_datagrams", factor: 1.0 },
    Rate { label: "inbound", counter: "written_packets", factor: 1.0 },
];
const CALLS: [Rate; 2] = [
    Rate { label: "system calls", counter: "enters", factor: 1.0 },
    Rate { label: "completions", counter: "completions", factor: 1.0 },
];

/// A stage's label and the name of its distribution.
type Stage = (&'static str, &'static str);

const OUTBOUND: &[Stage] =
    &[("outbound, all", "outbound"), ("until sealed", "outbound_seal"), ("until sent", "outbound_send")];
const INBOUND: &[Stage] = &[
    ("inbound, all", "inbound"),
    ("in the socket's queue", "inbound_queue"),
    ("until opened", "inbound_open"),
    ("until written", "inbound_write"),
];
const WORKER: &[Stage] = &[("turn of a worker", "turn"), ("waiting for a session", "staged")];

/// What stands above a report; text, not markup.
#[derive(Debug)]
pub struct Head<'a> {
    /// What it is about.
    pub name: &'a str,
    /// What it is.
    pub what: &'static str,
    /// For the browser's tab.
    pub title: String,
    /// Where and when.
    pub subtitle: String,
}

/// The report of `run`, beside `other` if there is one.
pub fn page(run: &Run, other: Option<&Run>) -> String {
    let head = Head {
        name: &run.last.interface,
        what: "tunnel report",
        title: format!("{}: uringvpn report, {}", run.last.interface, tables::when(run.began)),
        subtitle: format!(
            "uringvpn {} · {} · {} · {} · {:.0} s",
            run.last.version,
            run.last.settings.kernel,
            run.host.cpu,
            tables::when(run.began),
            run.seconds
        ),
    };
    let mut body: String = run.notes.iter().map(|text| note(text)).collect();
    if let Some(other) = other {
        body += &format!(
            "<p class=\"note\">Beside it: <b>{}</b>, {}. Differences say how this run differs from that one; \
             <span class=\"better\">better</span>, <span class=\"worse\">worse</span>. Pictures: this run at the left, \
             the other at the right, with the same axes.</p>\n",
            escape(&other.last.interface),
            tables::when(other.began)
        );
    }
    body += &(pictures(run, other) + &numbers(run, other));
    frame(&head, &body, &run.to_json())
}

/// A whole page: what stands above, the markup of the report, and its data.
pub fn frame(head: &Head<'_>, body: &str, json: &str) -> String {
    let [name, title, subtitle] = [head.name, &head.title, &head.subtitle].map(escape);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\
         <title>{title}</title><style>\n{STYLE}</style></head>\n<body>\n<h1>{name} <small>{}</small></h1>\n\
         <p class=\"subtitle\">{subtitle}</p>\n{body}{}\n</body></html>\n",
        head.what,
        embedded(json)
    )
}

/// What a reader should know first.
pub fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", escape(text))
}

/// The part that is looked at.
fn pictures(run: &Run, other: Option<&Run>) -> String {
    let runs: Vec<&Run> = std::iter::once(run).chain(other).collect();
    let seconds = runs.iter().map(|run| length(run)).fold(0.0, f64::max);
    let mut text = tables::tiles(run, other);
    let over_time = |title: &str, unit: &str, rates: &[Rate]| {
        let max = charts::rate_max(&runs, rates);
        let draw = |(run, title): (&&Run, String)| charts::rates(run, &title, unit, rates, max, seconds);
        runs.iter().zip(titles(title)).map(draw).collect::<String>()
    };
    let by_percentile = |title: &str, stages: &[Stage]| {
        let all = || runs.iter().flat_map(|run| stages.iter().filter_map(|(_, name)| run.distribution(name)));
        let (decades, nines) = (Decades::around(all()), charts::nines(all()));
        let draw = |(run, title): (&&Run, String)| {
            let series: Vec<_> =
                stages.iter().map(|(label, name)| (*label, run.distribution(name))).collect();
            charts::curves(&title, &series, decades, nines)
        };
        runs.iter().zip(titles(title)).map(draw).collect::<String>()
    };
    let heat = |title: &str, name: &str, latency: fn(&Interval) -> &Distribution, counter: &str| {
        let decades = Decades::around(runs.iter().filter_map(|run| run.distribution(name)));
        let draw =
            |(run, title): (&&Run, String)| charts::heat(run, &title, latency, counter, decades, seconds);
        runs.iter().zip(titles(title)).map(draw).collect::<String>()
    };
    text += &section("Over time", "Inner bytes and packets: what the applications see.", "two", &{
        over_time("Throughput", "bit/s", &THROUGHPUT) + &over_time("Packets", "packets/s", &PACKETS)
    });
    text += &section(
        "Latency by percentile",
        "How long packets stayed with the tunnel. A curve that jumps at 99 % says that one packet in a hundred waits; the \
         stage whose curve jumps with it says where.",
        "two",
        &(by_percentile("Outbound", OUTBOUND)
            + &by_percentile("Inbound", INBOUND)
            + &by_percentile("Workers", WORKER)
            + &over_time("System calls", "/s", &CALLS)),
    );
    text += &section(
        "Latency over time",
        "Workers hand over what they recorded once a second, so a column tells of a second that may have begun up to a \
         second earlier.",
        "two",
        &(heat("Outbound", "outbound", |interval| &interval.outbound, "sent_datagrams")
            + &heat("Inbound", "inbound", |interval| &interval.inbound, "written_packets")),
    );
    text + &section(
        "What moved at once",
        "Segmentation offload at work: the more packets a read, a send, a receive and a write move, the less each costs.",
        "three",
        &sizes(run, other),
    )
}

/// Titles for this run and the other.
pub fn titles(title: &str) -> [String; 2] {
    [title.to_owned(), format!("{title} (other run)")]
}

/// Sums of whole seconds are a little more.
fn length(run: &Run) -> f64 {
    run.intervals.last().map_or(run.seconds, |last| last.to).max(0.001)
}

fn sizes(run: &Run, other: Option<&Run>) -> String {
    let draw = |ours: &Distribution| match other.and_then(|other| other.distribution(&ours.name)) {
        Some(theirs) => charts::bars(&[ours, theirs], &["this run", "other run"]),
        None => charts::bars(&[ours], &[]),
    };
    run.distributions.iter().filter(|found| found.unit != "ns").map(draw).collect()
}

/// The part that is looked up.
fn numbers(run: &Run, other: Option<&Run>) -> String {
    section("Dropped in the watch", "", "", &tables::drops(run, other))
        + &section("Stages and quantities", "", "", &tables::latencies(run, other))
        + &section(
            "Balance since the tunnel's start",
            "What was taken in was passed on, dropped, or is still here. Read while workers run, so in flight is off by what \
             happened meanwhile.",
            "",
            &tables::balance(run),
        )
        + &section("Workers in the watch", "", "", &tables::workers(run))
        + &section("Peers", "", "", &tables::peers(run))
        + &section("Offloads at the end of the watch", "", "", &tables::offloads(run, other))
        + &section("Where and how", "", "", &tables::settings(run, other))
        + &format!("<details><summary>All counters</summary>{}</details>\n", tables::counters(run, other))
}

/// A heading, a sentence of help, and in a grid of that class the content.
pub fn section(title: &str, help: &str, grid: &str, content: &str) -> String {
    let help = if help.is_empty() { String::new() } else { format!("<p class=\"help\">{help}</p>\n") };
    format!("<section><h2>{title}</h2>\n{help}<div class=\"{grid}\">\n{content}</div></section>\n")
}

#[cfg(test)]
mod tests {
    use super::super::run::samples;
    use super::super::svg::assert_well_formed;
    use super::*;

    /// Markup without the style sheet, whose `>` would be no tag's.
    fn markup(page: &str) -> String {
        page.replace(STYLE, "").replace("<!DOCTYPE html>\n", "<!DOCTYPE html>")
    }

    #[test]
    fn a_page_is_well_formed_whatever_moved() {
        let huge = samples::run("wg0", 2, u64::MAX / 1_000, 200_000_000);
        for run in [samples::run("wg0", 5, 1_000, 3_000), samples::run("wg0", 1, 0, 1), huge] {
            assert_well_formed(&markup(&page(&run, None)));
            assert_well_formed(&markup(&page(&run, Some(&samples::run("wg1", 9, 2_000, 5_000)))));
        }
    }

    #[test]
    fn a_page_needs_no_network_and_no_script() {
        let page = page(&samples::run("wg0", 5, 1_000, 3_000), None);
        let without = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for word in ["http://", "https://", "src=", "@import", "url(", "javascript", "onload"] {
            assert!(!without.contains(word), "{word}");
        }
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("prefers-color-scheme"));
    }

    #[test]
    fn names_of_interfaces_are_text_and_never_markup() {
        let mut run = samples::run("</title><script>alert(1)</script>", 2, 10, 1_000);
        run.notes.push("it <ended>".to_owned());
        let page = page(&run, Some(&run));
        assert_well_formed(&markup(&page));
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("&lt;/title&gt;&lt;script&gt;alert(1)") && page.contains("it &lt;ended&gt;"));
        assert_eq!(Run::from_text(&page), Some(run));
    }

    #[test]
    fn a_page_has_curves_maps_bars_and_help_and_two_of_each_beside_another() {
        let [run, other] = [3_000, 9_000].map(|nanos| samples::run("wg0", 5, 1_000, nanos));
        let (alone, beside) = (page(&run, None), page(&run, Some(&other)));
        let lines = |page: &str| page.matches("<polyline").count();
        assert_eq!(lines(&beside), 2 * lines(&alone));
        assert!(alone.matches("class=\"heat\"").count() >= 40);
        assert!(alone.contains("No peer has the destination in its allowed IPs."));
        assert!(beside.contains("(other run)") && beside.contains("class=\"better\">-67 %"));
        assert!(!alone.contains("other run"));
    }
}
