//! Plain lines: a block for every look, for pipes, files, and terminals that can do no more.

use std::io::Write;
use std::thread;

use super::super::show::ShowError;
use super::keys::{Choice, PANES, Pane};
use super::page::Page;
use super::{Top, Watch, look_at};

/// Columns; numbers stand in the first 80.
const WIDTH: usize = 110;
/// Rows of one sheet: of ten thousand peers those are printed that come first.
const ROWS_MAX: usize = 20;

/// Prints blocks to `out` until the tunnel ends, nobody reads, or so many were printed as were asked for.
///
/// # Errors
/// [`ShowError`].
pub fn run(top: &Top, mut watch: Watch, out: &mut dyn Write) -> Result<(), ShowError> {
    let mut blocks = 0;
    while top.count.is_none_or(|count| blocks < count) {
        thread::sleep(top.interval);
        watch.take(look_at(&watch.name), false)?;
        match &watch.trouble {
            Some(trouble) => writeln!(out, "{trouble}\n")?,
            None => writeln!(out, "{}", block(&watch.page(), watch.odd_looks))?,
        }
        out.flush()?;
        blocks += 1;
    }
    Ok(())
}

/// What is known, a line end after every line.
fn block(page: &Page, odd_looks: u32) -> String {
    let choice = Choice::new();
    let mut text = page.header(false, odd_looks, WIDTH) + "\n";
    for (line, _) in page.directions() {
        text += &(line + "\n");
    }
    let state = page.state(WIDTH);
    if !state.is_empty() {
        text += &(state + "\n");
    }
    for pane in PANES {
        let sheet = page.sheet(pane, &choice);
        // In plaintext mode there are no peers to speak of, and no drops are good news that need no line.
        if sheet.rows.is_empty() && matches!(pane, Pane::Peers | Pane::Drops) {
            continue;
        }
        text += &(sheet.head(WIDTH) + "\n");
        for row in sheet.rows.iter().take(ROWS_MAX) {
            text += &(sheet.line(row, WIDTH) + "\n");
        }
        if sheet.rows.len() > ROWS_MAX {
            text += &format!("and {} more\n", sheet.rows.len() - ROWS_MAX);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{exposed, look};
    use super::super::rates::Rates;
    use super::*;

    #[test]
    fn a_block_holds_every_part_and_no_more_peers_than_can_be_read() {
        let [before, mut now] = [look(100.0, 1_000), look(101.0, 2_000)];
        let first = now.snapshot.peers[1].clone();
        for number in 0..30 {
            let mut peer = first.clone();
            peer.public_key = format!("peer{number:039}=");
            now.snapshot.peers.push(peer);
        }
        let text = block(&Page::Tunnel(Rates::between(Some(&before), &now)), 0);
        for part in [
            "uvt7  balance ok",
            "out   1000 packets/s 8.00 Mbit/s\n",
            "\noffloads  on: tso uso gso gro steering",
            "of worker 0, last s\n",
            "inbound_queue",
            "worker 1 ",
            "busypeer",
            "and 13 more\n",
            "no_route",
            "\noverflown                500     1000  Datagrams the kernel dropped ",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH && line.is_ascii()));
    }

    #[test]
    fn what_does_not_exist_has_no_lines() {
        let mut now = look(100.0, 1_000);
        now.snapshot.peers.clear();
        now.snapshot.drops.clear();
        now.snapshot.kernel_drops.clear();
        let text = block(&Page::Tunnel(Rates::between(None, &now)), 0);
        assert!(!text.contains("3 peers") && !text.contains("4 drops"), "{text}");
        assert!(text.contains("out      - packets/s           -\n"), "{text}");
    }

    #[test]
    fn a_block_of_exposed_ports_holds_every_part() {
        let [before, now] = [exposed(100.0, 1_000), exposed(101.0, 2_000)];
        let rates = super::super::exposed::Rates::between(Some(&before), &now);
        let text = block(&Page::Exposed(rates), 0);
        for part in
            ["server-7835  sums ok", "visitors/s", "\nnow  12 ", "first_byte", "8080", "away not_taken"]
        {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH && line.is_ascii()));
    }
}
