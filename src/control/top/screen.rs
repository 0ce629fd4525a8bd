//! The live screen: who draws, who waits for what, and that the terminal is as it was afterwards.
//!
//! Three threads bring events to the one that draws: keys and resizes, signals, and looks at the tunnel. So a tunnel that
//! takes seconds to answer never makes a key wait.

use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::signal::{SigSet, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyEvent};

use super::super::show::ShowError;
use super::keys::{Choice, Flow};
use super::page::Look;
use super::view::{Ink, Scene, draw};
use super::{Top, Watch, look_at};

/// Events that may wait; whoever brings more waits, too.
const EVENTS_MAX: usize = 16;

enum Event {
    Key(KeyEvent),
    /// Resized, or seen again.
    Redraw,
    Look(Box<Result<Look, ShowError>>),
    /// The terminal or the system wants an end.
    Signal,
    /// The keyboard is gone.
    Deaf(io::Error),
}

/// Shows the tunnel until a key, a signal, or its end.
///
/// # Errors
/// [`ShowError`].
pub fn run(top: &Top, watch: Watch, ink: Ink) -> Result<(), ShowError> {
    let (outbox, events) = bounded(EVENTS_MAX);
    wait_for_signals(outbox.clone())?;
    let mut screen = Screen::open()?;
    wait_for_keys(outbox.clone())?;
    look_again(top, watch.name.clone(), outbox)?;
    show(top, watch, ink, &mut screen.0, &events)
}

fn show(
    top: &Top,
    mut watch: Watch,
    ink: Ink,
    terminal: &mut DefaultTerminal,
    events: &Receiver<Event>,
) -> Result<(), ShowError> {
    let mut choice = Choice::new();
    let mut looks = 0;
    while top.count.is_none_or(|count| looks < count) {
        let trouble = watch.trouble.as_deref();
        let scene = Scene { page: watch.page(), choice: &choice, odd_looks: watch.odd_looks, trouble, ink };
        terminal.draw(|frame| draw(frame, &scene))?;
        // The threads end with the process, so there is always one to wait for.
        let Ok(event) = events.recv() else { return Ok(()) };
        match event {
            Event::Key(key) => {
                let sheet = scene.page.sheet(choice.pane, &choice);
                let rows: Vec<&str> = sheet.rows.iter().map(|row| row.name.as_str()).collect();
                let workers = scene.page.workers();
                if choice.press(key, &rows, workers) == Flow::Quit {
                    return Ok(());
                }
            }
            Event::Redraw => {}
            Event::Look(result) => {
                watch.take(*result, choice.paused)?;
                looks += u64::from(!choice.paused);
            }
            Event::Signal => return Ok(()),
            Event::Deaf(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The terminal while it is ours. Dropped, and in a panic, it becomes what it was.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Screen> {
        // Its hook restores the terminal before a panic is printed.
        ratatui::try_init().map(Screen).inspect_err(|_| {
            // Half of it may have been done.
            let _ = ratatui::try_restore();
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// Call before the other threads start: they inherit what is blocked.
fn wait_for_signals(outbox: Sender<Event>) -> io::Result<()> {
    let signals: SigSet =
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
    signals.thread_block()?;
    spawn("signals", move || {
        if signals.wait().is_ok() {
            // Nobody is left to tell if this fails.
            let _ = outbox.send(Event::Signal);
        }
    })
}

fn wait_for_keys(outbox: Sender<Event>) -> io::Result<()> {
    spawn("keys", move || {
        loop {
            let event = match event::read() {
                Ok(Input::Key(key)) => Event::Key(key),
                Ok(_) => Event::Redraw,
                Err(error) => Event::Deaf(error),
            };
            let deaf = matches!(event, Event::Deaf(_));
            if outbox.send(event).is_err() || deaf {
                return;
            }
        }
    })
}

fn look_again(top: &Top, name: Arc<str>, outbox: Sender<Event>) -> io::Result<()> {
    let interval = top.interval;
    spawn("looks", move || {
        loop {
            thread::sleep(interval);
            if outbox.send(Event::Look(Box::new(look_at(&name)))).is_err() {
                return;
            }
        }
    })
}

/// A thread that ends with the process.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}
