//! What stands at the end of `--help`.

/// Of the program as a whole.
pub(super) const EXAMPLES: &str = "\
Examples:
  A key for each end; the public one is for the other end:

    umask 077; uringvpn genkey > wg.key; uringvpn pubkey < wg.key

  A server at 192.0.2.1 that learns where its client is, and the client,
  10.9.0.1 and 10.9.0.2 being their addresses inside the tunnel:

    uringvpn --private-key wg.key --address 10.9.0.1/24 --peer CLIENT_KEY@,allowed-ips=10.9.0.2
    uringvpn --private-key wg.key --address 10.9.0.2/24 \\
      --peer SERVER_KEY@192.0.2.1:51820,allowed-ips=10.9.0.0/24

  The same from a file of wg-quick, by us, and by wg-quick with its hooks, DNS and default routes
  on a kernel without WireGuard of its own:

    uringvpn --config wg0.conf
    WG_QUICK_USERSPACE_IMPLEMENTATION=uringvpn wg-quick up ./wg0.conf

  An interface for `wg` to configure, in the foreground:

    uringvpn -f wg0

  Two hosts on a network you trust, tunnelled without encryption:

    on 192.0.2.1:  uringvpn --plaintext --address 10.9.0.1/24 --peer 192.0.2.2:51820
    on 192.0.2.2:  uringvpn --plaintext --address 10.9.0.2/24 --peer 192.0.2.1:51820

  What this kernel offers, and what is done without it; what running tunnels do:

    uringvpn probe
    uringvpn show
    uringvpn top

  A web server on port 8000 of this machine, public on a port of example.net, and the server there:

    uringvpn local 8000 --to example.net --secret-file secret.txt
    uringvpn server --secret-file secret.txt

  Ten seconds of a running tunnel as a page of pictures, and ten more beside them:

    uringvpn report -o before.html
    uringvpn report -o after.html --against before.html

  Packets inside a running tunnel, to a file and live; those that are dropped, with the reason:

    uringvpn capture -w wg0.pcapng
    uringvpn capture -w - --snap 96 | wireshark -k -i -
    uringvpn capture -w - --drops | tshark -r - -T fields -e ip.dst -e frame.comment

Exit codes:
  0  the tunnel ran and was stopped, or is running in the background
  1  something failed, the message says what
  2  the command line, an environment variable or a file named there is wrong";

/// Of `uringvpn local`.
pub(super) const LOCAL_EXAMPLES: &str = "\
Examples:
  A web server on port 8000 of this machine, public on any free port of example.net:

    uringvpn local 8000 --to example.net --secret-file secret.txt

  The same on port 8080 there, beside it a name server over UDP, and a range of ports:

    uringvpn local 8000:8080 53:5353/udp 9000-9003 --to example.net --secret-file secret.txt

  Through the tunnel wg0, so encrypted, 10.9.0.1 being the server's address inside; the service runs
  on another machine, and is told where visitors come from:

    uringvpn local 80 --local-host 192.0.2.9 --proxy-protocol --to 10.9.0.1 --through wg0";

/// Of `uringvpn server`.
pub(super) const SERVER_EXAMPLES: &str = "\
Examples:
  For whoever knows the secret:

    uringvpn server --secret-file secret.txt

  For clients that come through the tunnel wg0, 10.9.0.1 being our address inside; visitors come to
  all addresses of this machine:

    uringvpn server --bind-addr 10.9.0.1 --bind-tunnels 0.0.0.0 --through wg0

  A hundred ports for the clients of one network, with metrics for Prometheus:

    uringvpn server --allow-clients 192.0.2.0/24 --min-port 20000 --max-port 20099 \\
      --metrics 127.0.0.1:9587";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cli::{CliError, Invocation, parse};

    #[test]
    fn examples_of_exposing_ports_mean_something_and_fit_a_terminal() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret.txt");
        std::fs::write(&secret, "hush").unwrap();
        let (mut clients, mut servers) = (0, 0);
        for text in [EXAMPLES, LOCAL_EXAMPLES, SERVER_EXAMPLES] {
            let commands = text.replace("\\\n", " ");
            for line in commands.lines().map(str::trim) {
                if !line.starts_with("uringvpn local ") && !line.starts_with("uringvpn server ") {
                    continue;
                }
                let line = line.replace("secret.txt", secret.to_str().unwrap());
                match parse(line.split_whitespace()) {
                    Ok(Invocation::Local { .. }) => clients += 1,
                    Ok(Invocation::Server { .. }) => servers += 1,
                    other => panic!("{line}: {other:?}"),
                }
            }
        }
        assert_eq!((clients, servers), (4, 4));
        for line in LOCAL_EXAMPLES.lines().chain(SERVER_EXAMPLES.lines()) {
            assert!(line.len() <= 100, "{line}");
        }
    }

    #[test]
    fn help_of_exposing_ports_ends_with_examples_and_speaks_of_no_background() {
        for (command, examples) in [("local", LOCAL_EXAMPLES), ("server", SERVER_EXAMPLES)] {
            let Err(CliError::Clap(help)) = parse(["uringvpn", command, "--help"]) else { panic!("no help") };
            let help = help.to_string();
            assert!(help.trim_end().ends_with(examples.lines().last().unwrap()), "{help}");
            assert!(help.contains("--log-to") && !help.contains("background"), "{help}");
        }
    }
}
