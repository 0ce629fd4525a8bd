//! The encrypted tunnel with other programs over a longer time: sessions are renewed, peers move and start anew.

use std::thread;

use crate::ends::{End, Keys, Program, far_endpoint, installed, join};
use crate::rig::{FAMILIES, Family, Host, Rig, Turn, inner, wait_equal, wait_until};
use crate::traffic::{ping, reaches};

/// Two programs, of which the first begins.
struct Couple {
    rig: Rig,
    programs: [Program; 2],
    ends: [End; 2],
    keys: [Keys; 2],
}

impl Couple {
    fn start(programs: [Program; 2], family: Family, psk: bool) -> Option<Couple> {
        let rig = Rig::pair_aside()?;
        let keys = [Keys::new(), Keys::new()];
        let start = |index: usize| {
            End::start(programs[index], &rig.hosts[index], index as u8, &keys[index], "--queues 2")
        };
        let ends = [start(0), start(1)];
        join(&rig, &ends, &keys, family, psk);
        let couple = Couple { rig, programs, ends, keys };
        wait_until("an answer", || reaches(couple.near(), inner(Family::V4, 1)));
        Some(couple)
    }

    fn near(&self) -> &Host {
        &self.rig.hosts[0]
    }

    fn far(&self) -> &Host {
        &self.rig.hosts[1]
    }

    /// The end on host `index` ends and another one with the same key takes its place.
    fn restart(&mut self, index: usize) {
        let host = &self.rig.hosts[index];
        let end = |keys: &Keys| End::start(self.programs[index], host, index as u8, keys, "--queues 1");
        // The port must be free, and one interface at a time have the addresses.
        host.run(&format!("ip link del {}", self.ends[index].interface));
        wait_until("the former process to end", || !self.ends[index].process.is_alive());
        self.ends[index] = end(&self.keys[index]);
        let endpoint = (index == 0).then(|| far_endpoint(Family::V4));
        self.ends[index].meet(host, &self.keys[1 - index], 1 - index as u8, endpoint, "");
    }

    /// What `wg` says of each end's newest handshake.
    fn handshakes(&self) -> [u64; 2] {
        [0, 1].map(|index| self.ends[index].latest_handshake(&self.rig.hosts[index], &self.keys[1 - index]))
    }
}

/// All of our programs and others beside us, those that are installed.
fn couples() -> Vec<[Program; 2]> {
    let mut couples = vec![[Program::Ours, Program::Ours]];
    for (other, name) in [(Program::WireguardGo, "wireguard-go"), (Program::Boringtun, "boringtun-cli")] {
        if installed(name) {
            couples.extend([[Program::Ours, other], [other, Program::Ours]]);
        }
    }
    couples
}

/// Runs `test` with every couple at the same time.
fn with_every_couple(test: impl Fn(usize, [Program; 2]) + Sync) {
    thread::scope(|scope| {
        let test = &test;
        let tests: Vec<_> = couples()
            .into_iter()
            .enumerate()
            .map(|(number, programs)| (programs, scope.spawn(move || test(number, programs))))
            .collect();
        let failed: Vec<_> = tests
            .into_iter()
            .filter_map(|(programs, test)| test.join().is_err().then_some(programs))
            .collect();
        assert!(failed.is_empty(), "failed: {failed:?}");
    });
}

#[test]
fn sessions_are_renewed_without_losing_a_packet() {
    // A session is renewed when it is 120 seconds old.
    const PINGS: usize = 520;
    // On a busy machine the other programs do lose some.
    let _turn = Turn::alone();
    with_every_couple(|number, programs| {
        let family = FAMILIES[number % 2];
        let Some(couple) = Couple::start(programs, family, number % 3 == 0) else { return };
        let before = couple.handshakes();
        let pings = |from: &Host, to| {
            // Never waits long for the last: its answer is awaited below.
            let words = format!("ping -n -q -i 0.25 -W 5 -c {PINGS} {to}");
            from.command(words.split_whitespace()).stdout(std::process::Stdio::piped()).spawn().unwrap()
        };
        let running = [pings(couple.near(), inner(Family::V4, 1)), pings(couple.far(), inner(Family::V6, 0))];
        for child in running {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(&format!("{PINGS} received")), "{programs:?}: {text}");
        }
        for ((before, after), program) in before.into_iter().zip(couple.handshakes()).zip(programs) {
            // boringtun tells how long ago.
            let renewed = if program == Program::Boringtun { after < 60 } else { after > before + 100 };
            assert!(renewed, "{program:?} of {programs:?}: {before}, {after}");
        }
    });
}

#[test]
fn a_program_that_moved_or_was_restarted_is_found_again_when_it_speaks() {
    with_every_couple(|_, programs| {
        let Some(mut couple) = Couple::start(programs, Family::V4, false) else { return };
        // The others stay with the address that they once sent from.
        let moved = if programs[0] == Program::Ours {
            couple.near().run("ip address del 192.0.2.1/24 dev to-b");
            couple.near().run("ip address add 192.0.2.77/24 dev to-b");
            "192.0.2.77:51820"
        } else {
            couple.ends[0].wg(couple.near(), "listen-port 51999");
            "192.0.2.1:51999"
        };
        wait_until("an answer at the new address", || reaches(couple.near(), inner(Family::V4, 1)));
        let seen = || couple.ends[1].endpoint(couple.far(), &couple.keys[0]);
        wait_equal("the endpoint", moved.to_owned(), seen);
        ping(couple.far(), inner(Family::V6, 0), 3, 1420);
        couple.restart(0);
        wait_until("an answer after the restart", || reaches(couple.near(), inner(Family::V4, 1)));
        ping(couple.far(), inner(Family::V6, 0), 3, 1420);
    });
}

#[test]
fn a_program_that_was_restarted_and_waits_is_found_again_by_the_other() {
    with_every_couple(|_, programs| {
        let Some(mut couple) = Couple::start(programs, Family::V4, false) else { return };
        couple.restart(1);
        // After 15 seconds without an answer there is a new handshake; boringtun waits longer.
        wait_until("an answer after the restart", || reaches(couple.near(), inner(Family::V4, 1)));
        ping(couple.far(), inner(Family::V6, 0), 3, 1420);
    });
}
