# What scripts/demo and scripts/test share; sourced, never run.

# Prints why, and ends the script.
die() {
    echo "error: $*" >&2
    exit 1
}

# Puts the command prefix that makes us root into the array `as_root`: nothing, or sudo. False without either.
as_root=()
become_root() {
    [ "$(id -u)" -eq 0 ] && return 0
    command -v sudo >/dev/null || return 1
    as_root=(sudo)
}

# need WHAT:PACKAGE… installs the packages of what is missing, each a command or an absolute path. Debian and what
# derives from it.
need() {
    local pair what missing=()
    for pair in "$@"; do
        what=${pair%%:*}
        # /usr/sbin holds ip on Debian and is not on every user's path.
        [[ $what == /* && -e $what ]] || PATH="$PATH:/usr/sbin:/sbin" command -v "$what" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (no apt-get here to do it for you)"
    become_root || die "installing ${missing[*]} needs root; run this as root, or install them first"
    echo "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive bash -euc "$(declare -f install_unstarted); install_unstarted \"\$@\"" \
        install "${missing[@]}"
}

# install_unstarted PACKAGE… as root. A package with a server has the machine start it, now and at every boot, and it takes
# ports that others want (nginx 80, prometheus 9090); here servers run while a test runs them.
install_unstarted() {
    local policy=/usr/sbin/policy-rc.d units=/etc/systemd/system/multi-user.target.wants before unit
    before=$(ls "$units" 2>/dev/null || true)
    # Asked by invoke-rc.d and deb-systemd-invoke before they start anything; 101 forbids it.
    if [ ! -e "$policy" ]; then
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get install -qq -y --no-install-recommends "$@" >/dev/null
    for unit in $(ls "$units" 2>/dev/null || true); do
        grep -qxF "$unit" <<<"$before" || systemctl disable --quiet "$unit" 2>/dev/null || true
    done
}

# Finds cargo, also where rustup puts it for login shells only.
need_cargo() {
    command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    command -v cargo >/dev/null || die "no Rust toolchain found; https://rustup.rs installs one"
    # Cargo links through cc and libc's start-up files.
    need cc:gcc /usr/include/stdlib.h:libc6-dev python3:python3
}

# Installs the programs that we speak with and are measured against, where they are missing: wireguard-go from Debian, and
# boringtun and bore, which Debian lacks, from crates.io into target/peers. Call in the root of the tree, after need_cargo.
need_peers() {
    need wireguard-go:wireguard-go
    need_crate boringtun-cli boringtun-cli
    need_crate bore bore-cli
}

# need_crate PROGRAM CRATE installs the crate into target/peers if the program is missing.
need_crate() {
    PATH="$PATH:$PWD/target/peers/bin:${CARGO_HOME:-$HOME/.cargo}/bin" command -v "$1" >/dev/null && return 0
    echo "installing $2"
    cargo install --quiet --locked --root target/peers --target-dir target/peers/build "$2"
}

# Builds the release binary and prints its path. Call in the root of the tree.
build_release() {
    cargo build --release --quiet --bin uringvpn >&2 || return
    cargo metadata --format-version 1 --no-deps --offline |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"] + "/release/uringvpn")'
}
