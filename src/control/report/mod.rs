//! `uringvpn report`: watches a tunnel for some seconds and draws what it did into one page.
//!
//! | step | file |
//! |---|---|
//! | ask the tunnel once a second | `collect` |
//! | what was asked for and what came, as JSON and back | `run` |
//! | lines, curves, bars and a heat map as SVG | `svg`, `charts` |
//! | tables, and the page around everything | `tables`, `page` |
//! | logs for the tools of HdrHistogram | `hlog` |
//! | files that are whole or not there | `file` |
//!
//! Everything between the first step and the last is pure: from data to text.

mod charts;
mod collect;
mod file;
mod hlog;
mod page;
mod run;
mod svg;
mod tables;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::show::{self, ShowError};
use file::Destination;
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
    /// The tunnel ended and another of its name began.
    #[error("{0}: the tunnel was started anew meanwhile; watch it again")]
    Restarted(String),
    /// What was to be read cannot be.
    #[error("cannot read {name}: {1}", name = .0.display())]
    Read(PathBuf, io::Error),
    /// It is no report.
    #[error("{}: neither a report of uringvpn nor its data", .0.display())]
    NoReport(PathBuf),
    /// What was to be written cannot be.
    #[error("cannot write {name}: {1}", name = .0.display())]
    Write(PathBuf, io::Error),
}

/// Watches and writes; says on `notes` what it waits for and what it wrote.
///
/// Whether all can be written is found out before the watch.
///
/// # Errors
/// [`ReportError`].
pub fn run(report: &Report, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ReportError> {
    let other = report.against.as_deref().map(read).transpose()?;
    let page = Destination::new(&report.output)?;
    let json = report.json.as_deref().map(Destination::new).transpose()?;
    if let Some(directory) = &report.hlog {
        Destination::new(&directory.join("try.hlog"))?;
    }
    let run = match &report.from {
        Some(path) => read(path)?,
        None => watch(report, notes)?,
    };
    page.write(page::page(&run, other.as_ref()).as_bytes(), out)?;
    let mut written = vec![report.output.display().to_string()];
    if let (Some(json), Some(path)) = (json, &report.json) {
        json.write(run.to_json().as_bytes(), out)?;
        written.push(path.display().to_string());
    }
    if let Some(directory) = &report.hlog {
        for (name, text) in hlog::logs(&run) {
            let path = directory.join(name);
            Destination::new(&path)?.write(text.as_bytes(), out)?;
            written.push(path.display().to_string());
        }
    }
    // Nobody need read it.
    let _ = writeln!(notes, "wrote {}", written.join(", "));
    Ok(())
}

fn watch(report: &Report, notes: &mut dyn Write) -> Result<Run, ReportError> {
    let name = show::meant(report.name.as_deref())?;
    collect::watch(&name, report.seconds, notes)
}

fn read(path: &Path) -> Result<Run, ReportError> {
    let bytes = fs::read(path).map_err(|error| ReportError::Read(path.to_owned(), error))?;
    let text = String::from_utf8_lossy(&bytes);
    Run::from_text(&text).ok_or_else(|| ReportError::NoReport(path.to_owned()))
}
