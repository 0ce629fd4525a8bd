//! Asks a tunnel once a second.

use std::fs;
use std::io::Write;
use std::time::Duration;

use super::ReportError;
use super::run::{Host, Interval, Run, SCHEMA, since};
use crate::control::show::{self, ShowError};
use crate::io::clock;
use crate::stats::histograms::Histograms;
use crate::stats::snapshot::Snapshot;
use crate::time::Span;

/// Watches the tunnel `name` for `seconds`.
///
/// # Errors
/// [`ReportError`], also when the tunnel ends meanwhile.
pub fn watch(name: &str, seconds: u32, notes: &mut dyn Write) -> Result<Run, ReportError> {
    let began = clock::wall();
    let first = snapshot(name)?;
    let start = clock::now();
    let begin = histograms(name)?;
    // Nobody need read it.
    let _ = writeln!(notes, "watching {name} for {seconds} s");
    let mut intervals = Vec::new();
    let mut latest = begin.clone();
    for second in 1..=seconds {
        let due = start + Span::from_secs(u64::from(second));
        std::thread::sleep(Duration::from_nanos(due.since(clock::now()).as_nanos()));
        let now = histograms(name)?;
        if now.uptime_seconds < latest.uptime_seconds {
            return Err(ReportError::Restarted(name.to_owned()));
        }
        intervals.push(Interval::between(&latest, &now, begin.uptime_seconds));
        latest = now;
    }
    let last = snapshot(name)?;
    Ok(Run {
        report_schema: SCHEMA,
        host: host(),
        began: began.secs() as f64 + f64::from(began.nanos()) / 1e9,
        seconds: last.uptime_seconds - first.uptime_seconds,
        distributions: since(&latest.distributions, &begin.distributions),
        first,
        last,
        intervals,
    })
}

/// The tunnel now. Its own minute of history overlaps ours.
fn snapshot(name: &str) -> Result<Snapshot, ShowError> {
    Ok(Snapshot { seconds: Vec::new(), ..show::look(name)? })
}

fn histograms(name: &str) -> Result<Histograms, ShowError> {
    show::read(name, &show::ask(name, "histograms")?)
}

fn host() -> Host {
    let kernel = |file: &str| fs::read_to_string(format!("/proc/sys/kernel/{file}")).unwrap_or_default();
    let words = ["ostype", "osrelease"].map(kernel);
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Host {
        kernel: words.map(|word| word.trim().to_owned()).join(" ") + " " + std::env::consts::ARCH,
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
    use super::*;

    #[test]
    fn the_cpu_is_named_where_it_has_a_name() {
        assert_eq!(cpu("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t: fpu\n"), Some("AMD EPYC"));
        assert_eq!(cpu("processor\t: 0\nBogoMIPS\t: 50.00\n"), None);
        assert!(host().kernel.starts_with("Linux ") && host().cpus > 0);
    }
}
