#!/usr/bin/env python3
"""Shows in a few seconds how a local port becomes public: a web server on one host listens on its loopback address only,
and a visitor on the other host fetches its page.

`scripts/demo expose` builds the product and calls this.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from rig import UNDERLAY, Rig, RigError, wait_until

SERVER = UNDERLAY["b", 4]
PAGE = "<!doctype html><title>It works</title><p>This page is served on the loopback address of a host without public ports.\n"


def demonstrate(rig: Rig, binary: Path, site: Path) -> None:
    """Puts the page into the directory `site`, exposes it and fetches it."""
    secret = rig.write("secret", "correct horse battery staple\n")
    (site / "index.html").write_text(PAGE)
    web = rig.start("a", [sys.executable, "-u", "-m", "http.server", "8000", "--bind", "127.0.0.1",
                          "--directory", str(site)])
    wait_until(lambda: "Serving HTTP" in web.output(), [web], 20.0, "the web server does not start")
    print("host a: a web server at 127.0.0.1:8000")

    server = [str(binary), "server", "--bind-addr", SERVER, "--secret-file", str(secret)]
    serving = rig.start("b", server)
    wait_until(lambda: "waiting for clients" in serving.output(), [serving], 20.0, "the server does not start")
    print(f"host b: uringvpn {' '.join(server[1:])}")

    local = [str(binary), "local", "8000", "--local-host", "127.0.0.1", "--to", SERVER, "--secret-file", str(secret)]
    client = rig.start("a", local)
    listening = re.compile(r"^listening at (\S+)$", re.MULTILINE)
    wait_until(lambda: listening.search(client.output()) is not None, [serving, client], 20.0, "the port is not public")
    found = listening.search(client.output())
    assert found is not None
    print(f"host a: uringvpn {' '.join(local[1:])}\n        {found.group(0)}")

    fetch = "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=20).read().decode())"
    url = f"http://{found.group(1)}/"
    got = rig.run("b", [sys.executable, "-c", fetch, url])
    if got != PAGE:
        raise RigError(f"{url} is not the page: {got[:200]!r}")
    print(f"host b: fetched {url}, {len(got)} bytes:\n        {got}", end="")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True, help="the uringvpn to show")
    arguments = parser.parse_args()
    try:
        with Rig() as rig, tempfile.TemporaryDirectory() as site:
            demonstrate(rig, arguments.binary.resolve(), Path(site))
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
