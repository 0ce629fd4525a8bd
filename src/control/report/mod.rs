//! `uringvpn report`: watches a tunnel for some seconds and draws what it did into one page.
//!
//! | step | file |
//! |---|---|
//! | ask the tunnel once a second | `collect` |
//! | what was asked for and what came, as JSON and back | `run` |
//! | lines, curves, bars and a heat map as SVG | `svg`, `charts` |
//! | tables, and the page around everything | `tables`, `page` |
//! | logs for the tools of HdrHistogram | `hlog` |
//! | the same for what perf/run.py measured: its JSON, and the page of it | `measured`, `measured_page` |
//! | files that are whole or not there | `file` |
//!
//! Everything between the first step and the last is pure: from data to text.

mod charts;
mod collect;
mod file;
mod hlog;
mod measured;
mod measured_page;
mod page;
mod run;
mod svg;
mod tables;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::show::{self, ShowError};
use file::Destination;
use measured::Measured;
use run::Run;

/// The longest watch, in seconds: one hour.
pub const SECONDS_MAX: u32 = 3600;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of this interface; otherwise of the only one.
    pub name: Option<String>,
    /// How long to watch, 1 to [`SECONDS_MAX`].
    pub seconds: u32,
    /// Where the page goes; `-` is standard output.
    pub output: PathBuf,
    /// An earlier report or its data, instead of watching.
    pub from: Option<PathBuf>,
    /// An earlier report or its data, to compare with.
    pub against: Option<PathBuf>,
    /// Where the data goes besides.
    pub json: Option<PathBuf>,
    /// Where the logs go besides.
    pub hlog: Option<PathBuf>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The tunnel cannot be watched.
    #[error(transparent)]
    Show(#[from] ShowError),
    /// What was to be read cannot be.
    #[error("cannot read {name}: {1}", name = .0.display())]
    Read(PathBuf, io::Error),
    /// It is no report.
    #[error("{}: neither a report of uringvpn nor its data, nor a file of perf/run.py", .0.display())]
    NoReport(PathBuf),
    /// What a tunnel did stands beside what contenders did.
    #[error("cannot compare with {}: one tells what a tunnel did, the other what perf/run.py measured", .0.display())]
    Unlike(PathBuf),
    /// There are no histograms.
    #[error("--hlog needs a watch of a tunnel: what perf/run.py measured has no histograms")]
    NoHistograms,
    /// What was to be written cannot be.
    #[error("cannot write {name}: {1}", name = .0.display())]
    Write(PathBuf, io::Error),
}

/// What a page can be made of.
enum Data {
    Watched(Box<Run>),
    Measured(Box<Measured>),
}

/// Watches and writes; says on `notes` what it waits for and what it wrote.
///
/// Whether all can be written is found out before the watch.
///
/// # Errors
/// [`ReportError`].
pub fn run(report: &Report, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ReportError> {
    let other = report.against.as_deref().map(read).transpose()?;
    let from = report.from.as_deref().map(read).transpose()?;
    let page = Destination::new(&report.output)?;
    let json = report.json.as_deref().map(Destination::new).transpose()?;
    if let Some(directory) = &report.hlog {
        Destination::new(&directory.join("try.hlog"))?;
    }
    let drawn = draw(report, from, other, notes)?;
    page.write(drawn.page.as_bytes(), out)?;
    let mut written = vec![report.output.display().to_string()];
    if let (Some(json), Some(path)) = (json, &report.json) {
        json.write(drawn.json.as_bytes(), out)?;
        written.push(path.display().to_string());
    }
    if let Some(directory) = &report.hlog {
        for (name, text) in drawn.logs {
            let path = directory.join(name);
            Destination::new(&path)?.write(text.as_bytes(), out)?;
            written.push(path.display().to_string());
        }
    }
    // Nobody need read it.
    let _ = writeln!(notes, "wrote {}", written.join(", "));
    Ok(())
}

/// What there is to write.
struct Drawn {
    page: String,
    json: String,
    /// Names and texts.
    logs: Vec<(String, String)>,
}

/// Watches, if there is nothing yet to draw from.
fn draw(
    report: &Report,
    from: Option<Data>,
    other: Option<Data>,
    notes: &mut dyn Write,
) -> Result<Drawn, ReportError> {
    let unlike = || ReportError::Unlike(report.against.clone().unwrap_or_default());
    if let Some(Data::Measured(run)) = from {
        if report.hlog.is_some() {
            return Err(ReportError::NoHistograms);
        }
        let other = match other {
            Some(Data::Watched(_)) => return Err(unlike()),
            Some(Data::Measured(other)) => Some(other),
            None => None,
        };
        let page = measured_page::page(&run, other.as_deref());
        return Ok(Drawn { page, json: run.json, logs: Vec::new() });
    }
    let other = match other {
        Some(Data::Measured(_)) => return Err(unlike()),
        Some(Data::Watched(other)) => Some(other),
        None => None,
    };
    let run = match from {
        Some(Data::Watched(run)) => *run,
        _ => watch(report, notes)?,
    };
    let page = page::page(&run, other.as_deref());
    Ok(Drawn { page, json: run.to_json(), logs: hlog::logs(&run).into() })
}

fn watch(report: &Report, notes: &mut dyn Write) -> Result<Run, ReportError> {
    let name = show::meant(report.name.as_deref())?;
    collect::watch(&name, report.seconds, notes)
}

fn read(path: &Path) -> Result<Data, ReportError> {
    let bytes = fs::read(path).map_err(|error| ReportError::Read(path.to_owned(), error))?;
    let text = String::from_utf8_lossy(&bytes);
    let watched = Run::from_text(&text).map(|run| Data::Watched(Box::new(run)));
    let measured = || Measured::from_text(&text).map(|run| Data::Measured(Box::new(run)));
    watched.or_else(measured).ok_or_else(|| ReportError::NoReport(path.to_owned()))
}
