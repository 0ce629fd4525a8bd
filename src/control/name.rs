//! Interface names, as the kernel allows them.
//!
//! The lowest of the operator's values: [`super::config`] checks the device's name here, [`super::endpoint`] the scope of
//! an IPv6 address. Pure: whether an interface of that name exists is not asked.

/// Interface name if none is given. Fixed rather than `%d`, so that firewall rules can be written in advance.
pub const TUN_DEFAULT: &str = "uringvpn0";
/// Interface name length in bytes. linux/if.h: IFNAMSIZ is 16, one of them for the final zero.
pub const NAME_BYTES_MAX: usize = 15;

/// Why the kernel would refuse an interface name.
///
/// Source: linux net/core/dev.c `dev_valid_name` and `__dev_alloc_name`, net/ipv4/devinet.c for the reserved names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// No characters at all.
    #[error("is empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("has {bytes} bytes, at most {NAME_BYTES_MAX} are possible")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// `.`, `..`, `all`, `default`: the kernel keeps them for itself.
    #[error("is reserved by the kernel")]
    Reserved,
    /// A space, a slash, a colon, a control character, anything beyond ASCII.
    #[error("contains {character:?}; use ASCII letters, digits, '-', '_' and '.'")]
    Character {
        /// The first such character.
        character: char,
    },
    /// A percent sign other than one final `%d`.
    #[error("contains '%'; only one \"%d\" at the end is possible, the kernel replaces it by a free number")]
    Percent,
}

pub(super) fn check_name(name: &str) -> Result<(), NameProblem> {
    if name.is_empty() {
        return Err(NameProblem::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameProblem::TooLong { bytes: name.len() });
    }
    if matches!(name, "." | ".." | "all" | "default") {
        return Err(NameProblem::Reserved);
    }
    if let Some(character) = name.chars().find(|&c| !c.is_ascii_graphic() || matches!(c, '/' | ':')) {
        return Err(NameProblem::Character { character });
    }
    if name.strip_suffix("%d").unwrap_or(name).contains('%') {
        return Err(NameProblem::Percent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_refused_where_the_kernel_would_refuse_them() {
        let good = ["a", "uringvpn0", "123456789012345", "uring%d", "wg-0_a.b", "..."];
        for name in good {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
        let character = |character| Err(NameProblem::Character { character });
        assert_eq!(check_name(""), Err(NameProblem::Empty));
        assert_eq!(check_name("1234567890123456"), Err(NameProblem::TooLong { bytes: 16 }));
        assert_eq!(check_name("../x"), character('/'));
        assert_eq!(check_name("a b"), character(' '));
        assert_eq!(check_name("a:1"), character(':'));
        assert_eq!(check_name("über"), character('ü'));
        assert_eq!(check_name(".."), Err(NameProblem::Reserved));
        assert_eq!(check_name("default"), Err(NameProblem::Reserved));
        for name in ["%", "a%", "%s", "%d%d", "a%d1"] {
            assert_eq!(check_name(name), Err(NameProblem::Percent), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_check_panic(text in any::<String>()) {
            let _ = check_name(&text);
        }
    }
}
