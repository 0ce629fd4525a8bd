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
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

# Finds cargo, also where rustup puts it for login shells only.
need_cargo() {
    command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    command -v cargo >/dev/null || die "no Rust toolchain found; https://rustup.rs installs one"
    # Cargo links through cc and libc's start-up files.
    need cc:gcc /usr/include/stdlib.h:libc6-dev python3:python3
}

# Installs the WireGuard programs that we are measured against, where they are missing: from Debian, and boringtun, which
# Debian lacks, from crates.io into target/peers. Call in the root of the tree, after need_cargo.
need_peers() {
    need wireguard-go:wireguard-go
    PATH="$PATH:$PWD/target/peers/bin:${CARGO_HOME:-$HOME/.cargo}/bin" command -v boringtun-cli >/dev/null && return 0
    echo "installing boringtun-cli"
    cargo install --quiet --locked --root target/peers --target-dir target/peers/build boringtun-cli
}

# Builds the release binary and prints its path. Call in the root of the tree.
build_release() {
    cargo build --release --quiet --bin uringvpn >&2 || return
    cargo metadata --format-version 1 --no-deps --offline |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"] + "/release/uringvpn")'
}
