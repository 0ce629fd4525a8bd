//! Files that hold secrets: key files and configuration files, read without hanging and without showing what is in them.
//!
//! [`super::cli`] names the files, [`super::file`] and [`crate::proto::keys`] make sense of the bytes. A secret is never
//! an argument: everybody can read those in /proc. So a key where a file name belongs is refused, and no message repeats
//! it ([`quote`]).
//!
//! What is read may come from anywhere: `<(pass show vpn)`, a FIFO, standard input, a device by mistake. Files and pipes
//! are read, bounded in bytes and in time; everything else is refused.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::isatty;
use zeroize::{Zeroize, Zeroizing};

use super::shorten;
use crate::io::clock;
use crate::proto::keys::KeyError;
use crate::time::{Span, Time};

/// Longest key file in bytes. A key has 44; this leaves room for a careless editor.
pub const KEY_FILE_BYTES_MAX: usize = 4096;
/// Longest configuration file in bytes: some 80,000 peers.
pub const CONFIG_FILE_BYTES_MAX: usize = 16 << 20;
/// How long a pipe may take to end. People at a terminal take the time they need.
const PATIENCE: Span = Span::from_secs(4);
/// Characters of base64 or hexadecimal in a row from which on we take them for a key. No key has fewer than 43.
const KEY_LIKE_CHARS: usize = 40;
/// The same of what is left of a key that was cut off or has a mistyped character in it: half of it is still a secret, as half a
/// key is found by trying.
const PART_LIKE_CHARS: usize = 20;

/// Bytes of a file, wiped when dropped, and what is to be said about the file.
pub struct Secret {
    /// The bytes.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Everybody on this machine can read the file.
    pub world_readable: bool,
}

/// Without the bytes.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("world_readable", &self.world_readable).finish_non_exhaustive()
    }
}

/// A file that gives us no secret. Nothing that was read is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A key where a file name belongs.
    #[error(
        "{option}: this is a key, and everybody can read it in /proc; write it to a file (`umask 077; cat > wg.key`) and give its name, or - for standard input; a private key seen by others should be replaced"
    )]
    KeyGiven {
        /// Which option had it.
        option: &'static str,
    },
    /// The file cannot be opened or read.
    #[error("{}: {reason}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        reason: String,
    },
    /// Neither a file nor a pipe.
    #[error("{}: is {kind}; a file or a pipe is needed", .path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// "a directory", "a device" and so on.
        kind: &'static str,
    },
    /// More bytes than anything useful has.
    #[error("{}: has more than {bytes_max} bytes; is this the right file?", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How many may be there.
        bytes_max: usize,
    },
    /// A pipe into which nobody writes, or never an end.
    #[error("{}: waited {} seconds for its end; does anybody write to it?", .path.display(), PATIENCE.as_nanos() / 1_000_000_000)]
    Silent {
        /// The file.
        path: PathBuf,
    },
    /// What it holds is no key.
    #[error("{}: {}", .path.display(), .problem.map_or("is empty; it must hold one key, for example from `uringvpn genkey`".to_owned(), |problem| problem.to_string()))]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is wrong; `None`: it is empty.
        problem: Option<KeyError>,
    },
}

/// Whether `text` is 44 characters of base64 that stand for 32 bytes.
pub fn is_key(text: &str) -> bool {
    crate::proto::keys::PresharedKey::from_str(text.trim()).is_ok()
}

/// `text` for a message: shortened, and nothing of it that could be a key or half of one.
pub fn show(text: &str) -> String {
    if holds_part(text) { "(not shown, it may be a key)".to_owned() } else { shorten(text) }
}

/// As [`show`], in quotes.
pub fn quote(text: &str) -> String {
    if holds_part(text) { show(text) } else { format!("{:?}", shorten(text)) }
}

/// Whether a run of characters in it is as long as a key and made of a key's characters.
pub fn holds_key(text: &str) -> bool {
    runs(text).any(|run| run.len() >= KEY_LIKE_CHARS)
}

/// Whether it holds a key, or what is left of one: runs of characters that look random and are together as long as half a key. Names
/// and paths are seldom so long and so mixed.
pub fn holds_part(text: &str) -> bool {
    let random: usize = runs(text).filter(|run| is_mixed(run)).map(str::len).sum();
    random >= PART_LIKE_CHARS || runs(text).any(|run| run.len() >= KEY_LIKE_CHARS || is_hex_part(run))
}

/// Whether a run has all that a piece of base64 has sooner or later.
fn is_mixed(run: &str) -> bool {
    let has = |kind: fn(char) -> bool| run.contains(kind);
    has(|c| c.is_ascii_uppercase())
        && has(|c| c.is_ascii_lowercase())
        && has(|c| c.is_ascii_digit() || c == '+')
}

fn is_hex_part(run: &str) -> bool {
    run.len() >= PART_LIKE_CHARS
        && run.chars().all(|c| c.is_ascii_hexdigit())
        && run.contains(|c: char| c.is_ascii_digit())
        && run.contains(|c: char| c.is_ascii_alphabetic())
}

/// Whether a key was given, or a part of one, where the name of a file belongs.
pub fn is_instead_of_file(path: &Path) -> bool {
    let Some(text) = path.to_str() else { return false };
    is_key(text) || !text.starts_with(['/', '.']) && holds_part(text) && !path.exists()
}

/// The runs of characters that base64 and hexadecimal are made of.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/')))
}

/// Reads the key in the file `path`, `-` meaning standard input; says whether everybody can read the file.
///
/// White space around the key does not count.
///
/// # Errors
/// [`SecretError`]; its messages name `option` if that had a key instead of a file.
pub fn read_key<K>(path: &Path, option: &'static str) -> Result<(K, bool), SecretError>
where
    K: FromStr<Err = KeyError>,
{
    let secret = read(path, option, KEY_FILE_BYTES_MAX)?;
    let not_a_key = |problem| SecretError::NotAKey { path: path.to_owned(), problem };
    let text = std::str::from_utf8(&secret.bytes).map_err(|_| not_a_key(Some(KeyError::Base64)))?;
    if text.trim().is_empty() {
        return Err(not_a_key(None));
    }
    let key = text.trim().parse().map_err(|problem| not_a_key(Some(problem)))?;
    Ok((key, secret.world_readable))
}

/// Reads all of the file `path`, `-` and /dev/stdin meaning standard input. Takes no longer than five seconds unless a
/// person types.
///
/// # Errors
/// [`SecretError`], above `bytes_max` too.
pub fn read(path: &Path, option: &'static str, bytes_max: usize) -> Result<Secret, SecretError> {
    if is_instead_of_file(path) {
        return Err(SecretError::KeyGiven { option });
    }
    if path == Path::new("-") || path == Path::new("/dev/stdin") {
        return read_from(io::stdin().as_fd(), path, bytes_max, true);
    }
    // Non-blocking: opening a FIFO without a writer would wait, and so would reading from it.
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(|error| SecretError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
    read_from(file.as_fd(), path, bytes_max, false)
}

fn read_from(fd: BorrowedFd, path: &Path, bytes_max: usize, stdin: bool) -> Result<Secret, SecretError> {
    let unreadable = |errno: Errno| SecretError::Unreadable {
        path: path.to_owned(),
        reason: io::Error::from(errno).to_string(),
    };
    let status = fstat(fd).map_err(unreadable)?;
    let typed = stdin && isatty(fd).unwrap_or(false);
    if let Some(kind) = wrong_kind(&status)
        && !typed
    {
        return Err(SecretError::Kind { path: path.to_owned(), kind });
    }
    let too_long = || SecretError::TooLong { path: path.to_owned(), bytes_max };
    if status.st_size > bytes_max as i64 {
        return Err(too_long());
    }
    let deadline = (!typed).then(|| clock::now() + PATIENCE);
    let size = usize::try_from(status.st_size).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(size.max(KEY_FILE_BYTES_MAX)));
    let mut chunk = Zeroizing::new([0; KEY_FILE_BYTES_MAX]);
    loop {
        if !wait(fd, deadline).map_err(unreadable)? {
            return Err(SecretError::Silent { path: path.to_owned() });
        }
        match nix::unistd::read(fd, chunk.as_mut_slice()) {
            Ok(0) => break,
            Ok(count) => append(&mut bytes, &chunk[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(unreadable(errno)),
        }
        if bytes.len() > bytes_max {
            return Err(too_long());
        }
    }
    let file = kind_of(&status) == SFlag::S_IFREG;
    Ok(Secret { bytes, world_readable: file && status.st_mode & 0o007 != 0 })
}

/// Adds to a list of things with keys in them. A vector that grows by itself would leave copies behind that nobody wipes.
pub fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        let mut larger = Vec::with_capacity(2 * list.len().max(4));
        larger.append(list);
        list.spare_capacity_mut().zeroize();
        *list = larger;
    }
    list.push(item);
}

/// As [`push`], for bytes.
fn append(bytes: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if bytes.capacity() - bytes.len() < chunk.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity(2 * bytes.capacity() + chunk.len()));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(chunk);
}

/// Waits until there is something to read, at most until `deadline`; says whether there is.
fn wait(fd: BorrowedFd, deadline: Option<Time>) -> Result<bool, Errno> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.since(clock::now());
                // Rounded up, so that it does not spin through the last millisecond.
                PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::ZERO)
            }
        };
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(deadline.is_none_or(|deadline| clock::now() < deadline)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn kind_of(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT
}

/// What it is, if neither a file nor a pipe.
fn wrong_kind(status: &FileStat) -> Option<&'static str> {
    match kind_of(status) {
        SFlag::S_IFREG | SFlag::S_IFIFO => None,
        SFlag::S_IFDIR => Some("a directory"),
        SFlag::S_IFSOCK => Some("a socket"),
        _ => Some("a device"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::keys::PrivateKey;

    const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn key(path: &Path) -> Result<(PrivateKey, bool), SecretError> {
        read_key(path, "--private-key")
    }

    #[test]
    fn a_key_is_read_and_a_readable_file_noticed() {
        let file = file(format!(" {KEY}\r\n").as_bytes());
        assert_eq!(key(file.path()).unwrap(), (KEY.parse().unwrap(), false));
        for mode in [0o604, 0o602] {
            std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
            assert!(key(file.path()).unwrap().1, "{mode:o}");
        }
    }

    #[test]
    fn a_wrong_content_is_told_without_showing_it() {
        for content in [&KEY.as_bytes()[1..], b"\xff\xfe", b"a\nb", &KEY.repeat(2).into_bytes()] {
            let error = key(file(content).path()).unwrap_err();
            assert!(matches!(error, SecretError::NotAKey { problem: Some(KeyError::Base64), .. }), "{error}");
            assert!(!error.to_string().contains(&KEY[2..20]), "{error}");
        }
        assert!(matches!(key(file(b" \n").path()), Err(SecretError::NotAKey { problem: None, .. })));
        let long = key(file(&[b'x'; KEY_FILE_BYTES_MAX + 1]).path());
        assert!(matches!(long, Err(SecretError::TooLong { .. })), "{long:?}");
    }

    #[test]
    fn what_is_neither_file_nor_pipe_is_refused() {
        for (path, expected) in
            [("/dev/zero", "a device"), ("/dev/null", "a device"), ("/proc", "a directory")]
        {
            let error = key(Path::new(path)).unwrap_err();
            assert!(matches!(error, SecretError::Kind { kind, .. } if kind == expected), "{error}");
        }
        let missing = key(Path::new("/nonexistent/wg.key")).unwrap_err();
        assert!(missing.to_string().starts_with("/nonexistent/wg.key: No such file"), "{missing}");
    }

    #[test]
    fn a_key_instead_of_a_file_is_not_repeated() {
        for given in [KEY, &KEY[..43], &KEY[5..], &KEY.replace('q', "-")] {
            let error = key(Path::new(given)).unwrap_err().to_string();
            assert!(
                error.starts_with("--private-key: this is a key") && !error.contains(&KEY[5..8]),
                "{error}"
            );
        }
        let error = key(Path::new("/nonexistent/Berlin2/wireguard/wg.key")).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_fifo_without_a_writer_is_given_up_and_one_with_a_writer_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert_eq!(key(&path), Err(SecretError::Silent { path: path.clone() }));

        let writer = path.clone();
        let writer = std::thread::spawn(move || std::fs::write(writer, KEY));
        assert_eq!(key(&path).unwrap().0, KEY.parse().unwrap());
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn quotes_show_names_and_hide_what_could_be_a_key() {
        assert_eq!(quote("10.0.0.0/40"), "\"10.0.0.0/40\"");
        assert_eq!(quote(&"vpn.example.org, ".repeat(3)), format!("{:?}", "vpn.example.org, ".repeat(3)));
        for secret in [KEY.to_owned(), format!("PrivateKey: {KEY}"), KEY[1..].to_owned(), "ab".repeat(32)] {
            assert!(!quote(&secret).contains(&secret[10..20]), "{secret}");
        }
        for name in [
            "PersistentKeepalives",
            "/home/Bob/wireguard/keys/private",
            "gateway-12.Frankfurt.example.org:51820",
            "fd00:1234:5678:9abc:def0:1234:5678:9abc",
        ] {
            assert_eq!(quote(name), format!("{name:?}"));
        }
    }

    #[test]
    fn a_damaged_key_is_not_quoted_either() {
        for at in 0..KEY.len() {
            let (before, after) = KEY.split_at(at);
            for damaged in [before.to_owned(), after.to_owned(), format!("{before}`{}", &after[1..])] {
                let quoted = quote(&format!("[ = {damaged} MTU"));
                let parts = KEY.as_bytes()[..43].windows(20).map(|part| std::str::from_utf8(part).unwrap());
                assert_eq!(parts.filter(|part| quoted.contains(part)).count(), 0, "{quoted}");
            }
        }
        let twice = format!("{}-{}-{}", &KEY[..14], &KEY[15..29], &KEY[30..]);
        let hexadecimal = "c8bcf5e8f2a1e93cc1d2f53d0b20bd1d";
        for damaged in [&twice, hexadecimal, &hexadecimal[..20]] {
            assert!(!quote(damaged).contains(&damaged[..14]), "{damaged}");
        }
    }

    proptest! {
        #[test]
        fn no_key_is_ever_quoted(bytes in any::<[u8; 32]>(), before in "[ -~]{0,9}", after in "[ -~]{0,9}") {
            let key = PrivateKey::from_bytes(bytes).to_base64();
            let quoted = quote(&format!("{before}{key}{after}"));
            prop_assert!(!quoted.contains(&key[..20]), "{}", quoted);
        }
    }
}
