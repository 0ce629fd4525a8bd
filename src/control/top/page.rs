//! What the screen and the plain lines show: a tunnel, or a program that exposes ports, each with the same parts.

use super::exposed;
use super::keys::{self, Choice, PANES, Pane};
use super::rates::{self, BARS, Rates};
use super::sheets::{self, Sheet};
use crate::control::show::imbalance;

/// Somebody at one moment.
#[derive(Clone, Debug)]
pub enum Look {
    /// A tunnel.
    Tunnel(Box<rates::Look>),
    /// A program that exposes ports.
    Exposed(Box<exposed::Look>),
}

impl Look {
    /// Whether something is unaccounted for, as may be seen while it runs.
    pub fn is_odd(&self) -> bool {
        match self {
            Look::Tunnel(look) => imbalance(&look.snapshot).is_some(),
            Look::Exposed(look) => look.missing().is_some(),
        }
    }
}

/// Two looks, ready to be shown.
#[derive(Clone, Copy, Debug)]
pub enum Page<'a> {
    /// Of a tunnel.
    Tunnel(Rates<'a>),
    /// Of a program that exposes ports.
    Exposed(exposed::Rates<'a>),
}

impl<'a> Page<'a> {
    /// What happened from `before` to `now`. Of a predecessor of another kind nothing is known.
    pub fn between(before: Option<&'a Look>, now: &'a Look) -> Page<'a> {
        match (now, before) {
            (Look::Tunnel(now), Some(Look::Tunnel(before))) => {
                Page::Tunnel(Rates::between(Some(before), now))
            }
            (Look::Tunnel(now), _) => Page::Tunnel(Rates::between(None, now)),
            (Look::Exposed(now), Some(Look::Exposed(before))) => {
                Page::Exposed(exposed::Rates::between(Some(before), now))
            }
            (Look::Exposed(now), _) => Page::Exposed(exposed::Rates::between(None, now)),
        }
    }

    /// The first line.
    pub fn header(&self, paused: bool, odd_looks: u32, width: usize) -> String {
        match self {
            Page::Tunnel(rates) => sheets::header(rates, paused, odd_looks, width),
            Page::Exposed(rates) => rates.header(paused, odd_looks, width),
        }
    }

    /// A line for each direction, and how many bytes went that way in each second of the last minute.
    pub fn directions(&self) -> [(String, [u64; BARS]); 2] {
        match self {
            Page::Tunnel(rates) => [(true, "out_bytes"), (false, "written_bytes")]
                .map(|(outbound, bytes)| (sheets::direction(rates, outbound), rates.minute(bytes))),
            Page::Exposed(rates) => rates.directions(),
        }
    }

    /// How things stand; perhaps nothing.
    pub fn state(&self, width: usize) -> String {
        match self {
            Page::Tunnel(rates) => sheets::offloads(rates, width),
            Page::Exposed(rates) => rates.state(width),
        }
    }

    /// What stands in a pane.
    pub fn sheet(&self, pane: Pane, choice: &Choice) -> Sheet {
        match self {
            Page::Tunnel(rates) => sheets::sheet(pane, rates, choice),
            Page::Exposed(rates) => rates.sheet(pane, choice),
        }
    }

    /// The same of all panes, in their order.
    pub fn sheets(&self, choice: &Choice) -> [Sheet; PANES.len()] {
        PANES.map(|pane| self.sheet(pane, choice))
    }

    /// How many workers a key can choose from.
    pub fn workers(&self) -> usize {
        match self {
            Page::Tunnel(rates) => rates.snapshot().workers.len(),
            Page::Exposed(_) => 0,
        }
    }

    /// The keys and what they do.
    pub fn help(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Page::Tunnel(_) => keys::HELP,
            Page::Exposed(_) => exposed::HELP,
        }
    }

    /// The same in few words.
    pub fn hints(&self) -> &'static [&'static str] {
        match self {
            Page::Tunnel(_) => keys::HINTS,
            Page::Exposed(_) => exposed::HINTS,
        }
    }
}
