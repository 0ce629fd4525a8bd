//! What completions are told apart by.

/// What a completion belongs to: the upper half of its user data; the lower half is the socket's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Accept,
    Connect,
    Receive,
    Send,
    Broken,
    Wake,
    Datagrams,
    Cancel,
    Readable,
    Writable,
}

/// Names what a submission is for.
pub fn token(kind: Kind, key: u32) -> u64 {
    u64::from(kind as u32) << 32 | u64::from(key)
}

/// What [`token`] was made of.
pub fn kind_of(user_data: u64) -> Kind {
    match user_data >> 32 {
        0 => Kind::Accept,
        1 => Kind::Connect,
        2 => Kind::Receive,
        3 => Kind::Send,
        4 => Kind::Broken,
        5 => Kind::Wake,
        6 => Kind::Datagrams,
        7 => Kind::Cancel,
        8 => Kind::Readable,
        9 => Kind::Writable,
        other => panic!("a completion of kind {other}, which we never submit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_completion_is_told_by_its_number() {
        let sockets = [Kind::Accept, Kind::Connect, Kind::Receive, Kind::Send, Kind::Broken];
        let others = [Kind::Wake, Kind::Datagrams, Kind::Cancel, Kind::Readable, Kind::Writable];
        for kind in sockets.into_iter().chain(others) {
            assert_eq!(kind_of(token(kind, u32::MAX)), kind);
        }
    }
}
