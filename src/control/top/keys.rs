//! What the keys do: which pane is chosen, what is selected in it, in which order and of which time it tells.
//!
//! Pure: a key and what is on the screen in, the new state out.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// The parts of the screen, in their order. Named after what a tunnel has there; of a program that exposes ports, see
/// [`super::exposed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    /// Latencies and quantities.
    Stages,
    /// Worker by worker.
    Workers,
    /// Peer by peer.
    Peers,
    /// Reasons of dropped packets.
    Drops,
}

/// All of them.
pub const PANES: [Pane; 4] = [Pane::Stages, Pane::Workers, Pane::Peers, Pane::Drops];

/// The order of the peers. Whatever it is, equals stand in the order of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerSort {
    /// Busiest first.
    Rate,
    /// Most received per second first.
    Received,
    /// Most sent per second first.
    Sent,
    /// Newest handshake first.
    Handshake,
    /// By address.
    Endpoint,
}

impl PeerSort {
    /// As it stands on the screen.
    pub fn label(self) -> &'static str {
        match self {
            PeerSort::Rate => "rate",
            PeerSort::Received => "received",
            PeerSort::Sent => "sent",
            PeerSort::Handshake => "handshake",
            PeerSort::Endpoint => "endpoint",
        }
    }

    fn next(self) -> PeerSort {
        match self {
            PeerSort::Rate => PeerSort::Received,
            PeerSort::Received => PeerSort::Sent,
            PeerSort::Sent => PeerSort::Handshake,
            PeerSort::Handshake => PeerSort::Endpoint,
            PeerSort::Endpoint => PeerSort::Rate,
        }
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Draw again.
    Continue,
    /// End.
    Quit,
}

/// What the keys have chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The pane that the arrows move in.
    pub pane: Pane,
    /// What is selected in each pane, by its name, so that it stays selected when rows move. None: the first.
    pub selected: [Option<String>; PANES.len()],
    /// Order of the peers.
    pub peer_sort: PeerSort,
    /// The stages since the start, not those of a second.
    pub since_start: bool,
    /// The worker whose second the stages tell of; none: the busiest.
    pub worker: Option<usize>,
    /// The screen stands still.
    pub paused: bool,
    /// The keys are explained.
    pub help: bool,
}

impl Choice {
    /// At the start.
    pub fn new() -> Choice {
        Choice {
            pane: Pane::Stages,
            selected: Default::default(),
            peer_sort: PeerSort::Rate,
            since_start: false,
            worker: None,
            paused: false,
            help: false,
        }
    }

    /// What is selected in `pane`.
    pub fn selected(&self, pane: Pane) -> Option<&str> {
        self.selected[pane as usize].as_deref()
    }

    /// A key was pressed while the chosen pane had `rows`, by name, and the tunnel `workers`.
    pub fn press(&mut self, key: KeyEvent, rows: &[&str], workers: usize) -> Flow {
        if key.kind == KeyEventKind::Release {
            return Flow::Continue;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Flow::Quit } else { Flow::Continue };
        }
        match key.code {
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Char('q') | KeyCode::Esc => return Flow::Quit,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Char(digit @ '1'..='4') => self.pane = PANES[digit as usize - '1' as usize],
            KeyCode::Tab | KeyCode::Right => self.pane = self.beside(1),
            KeyCode::BackTab | KeyCode::Left => self.pane = self.beside(PANES.len() - 1),
            KeyCode::Down | KeyCode::Char('j') => self.select(rows, |row| row.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(rows, |row| row.saturating_sub(1)),
            KeyCode::PageDown => self.select(rows, |row| row.saturating_add(10)),
            KeyCode::PageUp => self.select(rows, |row| row.saturating_sub(10)),
            KeyCode::Home => self.select(rows, |_| 0),
            KeyCode::End => self.select(rows, |_| usize::MAX),
            KeyCode::Char('s') => self.peer_sort = self.peer_sort.next(),
            KeyCode::Char('t') => self.since_start = !self.since_start,
            KeyCode::Char('w') => {
                let next = self.worker.map_or(0, |worker| worker + 1);
                self.worker = Some(next).filter(|worker| *worker < workers);
                self.since_start = false;
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            _ => {}
        }
        Flow::Continue
    }

    fn beside(&self, steps: usize) -> Pane {
        PANES[(self.pane as usize + steps) % PANES.len()]
    }

    fn select(&mut self, rows: &[&str], to: impl FnOnce(usize) -> usize) {
        let selected = &mut self.selected[self.pane as usize];
        let row = place(rows, selected.as_deref());
        let row = to(row).min(rows.len().saturating_sub(1));
        *selected = rows.get(row).map(|name| (*name).to_owned());
    }
}

/// Where the row named `selected` stands; what is gone is looked for at the top.
pub fn place(rows: &[&str], selected: Option<&str>) -> usize {
    selected.and_then(|name| rows.iter().position(|row| *row == name)).unwrap_or(0)
}

/// Keys and what they do, for the screen.
pub const HELP: &[(&str, &str)] = &[
    ("q Esc ^C", "quit"),
    ("Tab 1-4", "go to a pane: stages, workers, peers, drops"),
    ("arrows j k", "select a row; a peer or a reason explains itself below"),
    ("t", "stages of the last second with packets, or since the start"),
    ("w", "whose second: the busiest worker's, or worker 0, 1, ..."),
    ("s", "order of the peers: rate, received, sent, handshake, endpoint"),
    ("p Space", "let the screen stand still, and go on"),
    ("?", "this help, and back"),
];

/// The same in few words.
pub const HINTS: &[&str] =
    &["q quit", "? help", "Tab 1-4 pane", "j k select", "t time", "w worker", "s sort", "p pause"];

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [&str; 3] = ["a", "b", "c"];

    fn press(choice: &mut Choice, codes: &[KeyCode]) -> Flow {
        let press = |choice: &mut Choice, code| choice.press(KeyEvent::from(code), &ROWS, 2);
        codes.iter().map(|code| press(choice, *code)).last().unwrap_or(Flow::Continue)
    }

    #[test]
    fn three_keys_quit_but_escape_leaves_the_help_first() {
        let mut choice = Choice::new();
        assert_eq!(press(&mut choice, &[KeyCode::Char('q')]), Flow::Quit);
        assert_eq!(press(&mut choice, &[KeyCode::Char('?'), KeyCode::Esc]), Flow::Continue);
        assert_eq!(press(&mut choice, &[KeyCode::Esc]), Flow::Quit);
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        assert_eq!(choice.press(control('c'), &ROWS, 2), Flow::Quit);
        assert_eq!(choice.press(control('p'), &ROWS, 2), Flow::Continue);
        assert!(!choice.paused);
    }

    #[test]
    fn panes_are_reached_by_number_and_in_a_ring() {
        let mut choice = Choice::new();
        press(&mut choice, &[KeyCode::Char('4')]);
        assert_eq!(choice.pane, Pane::Drops);
        press(&mut choice, &[KeyCode::Tab]);
        assert_eq!(choice.pane, Pane::Stages);
        press(&mut choice, &[KeyCode::BackTab, KeyCode::BackTab]);
        assert_eq!(choice.pane, Pane::Peers);
    }

    #[test]
    fn a_selection_follows_its_row_and_stays_within_the_rows() {
        let mut choice = Choice::new();
        press(&mut choice, &[KeyCode::Down, KeyCode::Char('j'), KeyCode::Down, KeyCode::Down]);
        assert_eq!(choice.selected(Pane::Stages), Some("c"));
        assert_eq!(place(&["c", "a"], choice.selected(Pane::Stages)), 0);
        press(&mut choice, &[KeyCode::Char('k'), KeyCode::Up, KeyCode::Up]);
        assert_eq!(choice.selected(Pane::Stages), Some("a"));
        choice.press(KeyEvent::from(KeyCode::End), &[], 2);
        assert_eq!(choice.selected(Pane::Stages), None);
    }

    #[test]
    fn orders_times_and_workers_come_round_again() {
        let mut choice = Choice::new();
        press(&mut choice, &[KeyCode::Char('w'), KeyCode::Char('w')]);
        assert_eq!(choice.worker, Some(1));
        let rest = [KeyCode::Char('w')].into_iter().chain([KeyCode::Char('s'); 5]);
        press(&mut choice, &rest.chain([KeyCode::Char('t'); 2]).collect::<Vec<_>>());
        assert_eq!(choice, Choice::new());
    }
}
