//! Asks a tunnel once a second.
//!
//! An answer that comes late, and the tunnel's end, cost the seconds that they fall into and no more: what was collected is kept,
//! with a note.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use super::ReportError;
use super::run::{Host, Interval, Run, SCHEMA, since};
use crate::control::show::{self, ShowError};
use crate::io::clock;
use crate::stats::histograms::Histograms;
use crate::stats::snapshot::Snapshot;
use crate::time::{Span, WallTime};

/// Watches the tunnel `name` for `seconds`, or to its end.
///
/// # Errors
/// [`ReportError`], if the tunnel told nothing of even one second.
pub fn watch(name: &str, seconds: u32, notes: &mut dyn Write) -> Result<Run, ReportError> {
    let began = clock::wall();
    let mut watch = Watch::begin(Moment::of(name)?);
    let start = clock::now();
    // Nobody need read it.
    let _ = writeln!(notes, "watching {name} for {seconds} s");
    let mut second = 0;
    while second < seconds {
        second += 1;
        let due = start + Span::from_secs(u64::from(second));
        std::thread::sleep(Duration::from_nanos(due.since(clock::now()).as_nanos()));
        if watch.take(second, Moment::of(name))?.is_break() {
            break;
        }
        if watch.missed_last {
            // What passed while we waited in vain is told with the next second, too.
            let passed = clock::now().since(start).as_nanos() / Span::from_secs(1).as_nanos();
            second = second.max(u32::try_from(passed).unwrap_or(u32::MAX));
        }
    }
    let run = watch.end(began)?;
    run.notes.iter().for_each(|note| drop(writeln!(notes, "{note}")));
    Ok(run)
}

/// What a tunnel tells at one moment.
#[derive(Clone, Debug)]
struct Moment {
    snapshot: Snapshot,
    histograms: Histograms,
}

impl Moment {
    fn of(name: &str) -> Result<Moment, ShowError> {
        // Its own minute of history overlaps ours.
        let snapshot = Snapshot { seconds: Vec::new(), ..show::look(name)? };
        Ok(Moment { snapshot, histograms: show::read(name, &show::ask(name, "histograms")?)? })
    }
}

/// What was collected so far.
#[derive(Debug)]
struct Watch {
    first: Moment,
    latest: Moment,
    intervals: Vec<Interval>,
    notes: Vec<String>,
    /// The newest answer did not come.
    missed_last: bool,
    /// Why, or why the watch ended.
    trouble: Option<ShowError>,
}

impl Watch {
    fn begin(first: Moment) -> Watch {
        let latest = first.clone();
        Watch { first, latest, intervals: Vec::new(), notes: Vec::new(), missed_last: false, trouble: None }
    }

    /// Takes in the answer of a second. Breaks when there will be no more.
    ///
    /// # Errors
    /// What no later answer will mend and is no end of the tunnel.
    fn take(&mut self, second: u32, answer: Result<Moment, ShowError>) -> Result<ControlFlow<()>, ShowError> {
        self.missed_last = false;
        match answer {
            Ok(now) if now.histograms.uptime_seconds < self.latest.histograms.uptime_seconds => {
                let name = now.snapshot.interface;
                self.notes.push(format!(
                    "the tunnel was started anew in second {second}: this is the old one's end"
                ));
                self.trouble = Some(ShowError::Ended(name));
                return Ok(ControlFlow::Break(()));
            }
            Ok(now) => {
                let start = self.first.histograms.uptime_seconds;
                self.intervals.push(Interval::between(&self.latest.histograms, &now.histograms, start));
                self.latest = now;
            }
            Err(ShowError::NotRunning(name)) => {
                self.notes.push(format!("the tunnel ended in second {second}"));
                self.trouble = Some(ShowError::Ended(name));
                return Ok(ControlFlow::Break(()));
            }
            Err(late @ ShowError::Answer(..)) => {
                self.notes.push(format!("in second {second} the tunnel did not tell: {late}"));
                (self.missed_last, self.trouble) = (true, Some(late));
            }
            Err(other) => return Err(other),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn end(self, began: WallTime) -> Result<Run, ShowError> {
        if let (true, Some(trouble)) = (self.intervals.is_empty(), self.trouble) {
            return Err(trouble);
        }
        let (first, last) = (self.first, self.latest);
        Ok(Run {
            report_schema: SCHEMA,
            host: host(),
            began: began.as_secs_f64(),
            seconds: last.snapshot.uptime_seconds - first.snapshot.uptime_seconds,
            distributions: since(&last.histograms.distributions, &first.histograms.distributions),
            first: first.snapshot,
            last: last.snapshot,
            intervals: self.intervals,
            notes: self.notes,
        })
    }
}

fn host() -> Host {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Host {
        cpu: cpu(&cpus).unwrap_or("unknown CPU").to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// The name in /proc/cpuinfo; some machines have none.
fn cpu(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::super::run::samples;
    use super::*;

    fn moment(second: u64) -> Moment {
        let (snapshot, histograms) = samples::moment("wg0", second, 100, 5_000);
        Moment { snapshot, histograms }
    }

    fn late() -> Result<Moment, ShowError> {
        Err(ShowError::Answer("wg0".to_owned(), "it does not answer".to_owned()))
    }

    #[test]
    fn a_late_answer_costs_its_second_and_the_next_tells_of_both() {
        let mut watch = Watch::begin(moment(10));
        for (second, answer) in [(1, Ok(moment(11))), (2, late()), (3, Ok(moment(13)))] {
            assert!(watch.take(second, answer).is_ok_and(|flow| flow.is_continue()));
        }
        let run = watch.end(WallTime::default()).expect("two intervals");
        let seconds: Vec<_> = run.intervals.iter().map(|interval| (interval.from, interval.to)).collect();
        assert_eq!(seconds, [(0.0, 1.0), (1.0, 3.0)]);
        assert_eq!((run.seconds, run.counted("sent_datagrams")), (3.0, 300));
        assert_eq!(run.notes, ["in second 2 the tunnel did not tell: wg0: it does not answer"]);
    }

    #[test]
    fn what_was_collected_before_the_tunnels_end_or_its_new_start_is_kept() {
        let ended = || Err(ShowError::NotRunning("wg0".to_owned()));
        for (end, words) in
            [(ended(), "the tunnel ended in second 2"), (Ok(moment(1)), "started anew in second 2")]
        {
            let mut watch = Watch::begin(moment(10));
            assert!(watch.take(1, Ok(moment(11))).is_ok_and(|flow| flow.is_continue()));
            assert!(watch.take(2, end).is_ok_and(|flow| flow.is_break()));
            let run = watch.end(WallTime::default()).expect("an interval");
            assert_eq!((run.intervals.len(), run.last.uptime_seconds), (1, 11.0));
            assert!(run.notes[0].contains(words), "{:?}", run.notes);
        }
        let mut watch = Watch::begin(moment(10));
        assert!(watch.take(1, ended()).is_ok_and(|flow| flow.is_break()));
        let nothing = watch.end(WallTime::default()).expect_err("nothing was collected");
        assert_eq!(nothing.to_string(), "wg0: the tunnel has ended");
    }

    #[test]
    fn the_cpu_is_named_where_it_has_a_name() {
        assert_eq!(cpu("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t: fpu\n"), Some("AMD EPYC"));
        assert_eq!(cpu("processor\t: 0\nBogoMIPS\t: 50.00\n"), None);
        assert!(host().cpus > 0);
    }
}
