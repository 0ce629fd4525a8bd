//! Lets `uringvpn show`, `top` and Prometheus look at a client or a server while it runs.

use anyhow::{Context, anyhow};

use super::run::Driver;
use crate::control::door;
use crate::control::expose::{ClientConfig, How, ServerConfig};
use crate::control::exposed::{Program, Recorders, listen};
use crate::control::observer::{self, Observer};
use crate::control::unix_socket::Listener;
use crate::io::features;
use crate::stats::exposed::Kind;
use crate::stats::exposed::snapshot::ExposedSettings;

/// What is told of a server.
pub(super) fn observe_server(config: &ServerConfig, driver: Driver, recorders: &Recorders) -> Observed {
    let usual = format!("server-{}", config.control.port());
    let settings = settings(&config.how, config.control.to_string(), config.secret.is_some(), driver);
    observe(Kind::Server, &config.how, &usual, settings, recorders)
}

/// What is told of the clients of one process, of which this is the first.
pub(super) fn observe_clients(first: &ClientConfig, driver: Driver, recorders: &Recorders) -> Observed {
    let usual = format!("local-{}", first.local.port);
    let settings = settings(&first.how, first.server.to_string(), first.secret.is_some(), driver);
    observe(Kind::Local, &first.how, &usual, settings, recorders)
}

/// Nobody, if nobody can look, and that is not what was asked for.
type Observed = anyhow::Result<Option<Observer>>;

fn settings(how: &How, control: String, secret: bool, driver: Driver) -> ExposedSettings {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    ExposedSettings {
        pid: std::process::id(),
        pid_namespace: namespace.to_string_lossy().into_owned(),
        driver: driver.name().to_owned(),
        control,
        through: how.through.clone(),
        secret,
        kernel: features::kernel(),
    }
}

/// Without a socket for `show` it can do, unless a name was asked for; and without metrics, unless they were.
fn observe(kind: Kind, how: &How, usual: &str, settings: ExposedSettings, recorders: &Recorders) -> Observed {
    let metrics = how.metrics.as_ref().map(door::listen_metrics).transpose()?;
    let (name, show) = named(how, usual)?;
    if show.is_none() && metrics.is_none() {
        return Ok(None);
    }
    let demanded = metrics.is_some() || how.name.is_some();
    let program = Program::new(kind, name, settings, recorders.clone());
    match observer::serve(show, metrics, program) {
        Ok(observer) => Ok(Some(observer)),
        Err(error) if demanded => Err(error).context("cannot serve those who watch"),
        Err(error) => {
            tracing::warn!("nobody can watch this program: {error}");
            Ok(None)
        }
    }
}

fn named(how: &How, usual: &str) -> anyhow::Result<(String, Option<Listener>)> {
    match (listen(how.name.as_deref(), usual), &how.name) {
        (Ok((name, listener)), _) => {
            tracing::debug!("`uringvpn show {name}` tells what happens here");
            Ok((name, Some(listener)))
        }
        (Err(error), Some(name)) => Err(anyhow!("name {name}: {error}")),
        (Err(error), None) => {
            tracing::info!("`uringvpn show` cannot look at this program: {error}");
            Ok((usual.to_owned(), None))
        }
    }
}
