//! The public id of a socket.

use std::{
    fmt,
    str::{self, FromStr},
};

/// Characters of an id, as many as Node's have.
const LENGTH: usize = 20;

/// Random bytes of an id. Three check bytes follow: together they make 20 characters.
const RANDOM_BYTES: usize = 12;

const BYTES: usize = LENGTH / 4 * 3;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The public id of a socket, which is a client in a namespace: 20 characters, as in Node.
///
/// It opens nothing. It names a room that holds this socket alone. Ids of [`SocketId::random`]
/// carry a checksum, so that any node recognizes the id of a socket that another node holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId([u8; LENGTH]);

/// A text that is no socket id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a socket id has 20 characters of A-Z, a-z, 0-9, - and _")]
pub struct SocketIdError;

impl SocketId {
    /// An id that nobody can guess, from the operating system's random numbers.
    pub fn random() -> Self {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes[..RANDOM_BYTES]).expect(
            "the system's random source cannot fail once it is seeded, which it is at boot",
        );
        let check = checksum(&bytes[..RANDOM_BYTES]);
        bytes[RANDOM_BYTES..].copy_from_slice(&check);
        Self(encode(&bytes))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("the only constructors accept ASCII alone")
    }

    /// Whether `room` is the name of a socket of this or another node, past or present. One name in
    /// 16 million is taken for an id by mistake.
    pub fn names_socket(room: &str) -> bool {
        room.parse().is_ok_and(|id: Self| id.has_checksum())
    }

    fn has_checksum(self) -> bool {
        let mut bytes = [0; BYTES];
        for (bytes, chars) in bytes.chunks_exact_mut(3).zip(self.0.chunks_exact(4)) {
            let bits = chars.iter().fold(0, |bits, char| bits << 6 | value(*char));
            bytes.copy_from_slice(&bits.to_be_bytes()[1..]);
        }
        bytes[RANDOM_BYTES..] == checksum(&bytes[..RANDOM_BYTES])
    }
}

/// FNV-1a, cut to 24 bits. It keeps nobody from making ids; they open nothing.
fn checksum(bytes: &[u8]) -> [u8; BYTES - RANDOM_BYTES] {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [_, _, a, b, c, ..] = hash.to_be_bytes();
    [a, b, c]
}

fn encode(bytes: &[u8; BYTES]) -> [u8; LENGTH] {
    let mut text = [0; LENGTH];
    for (chars, bytes) in text.chunks_exact_mut(4).zip(bytes.chunks_exact(3)) {
        let bits = bytes.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        for (char, shift) in chars.iter_mut().zip([18, 12, 6, 0]) {
            *char = ALPHABET[bits >> shift & 63];
        }
    }
    text
}

/// The six bits that a character of the alphabet stands for.
fn value(char: u8) -> u32 {
    u32::from(match char {
        b'A'..=b'Z' => char - b'A',
        b'a'..=b'z' => char - b'a' + 26,
        b'0'..=b'9' => char - b'0' + 52,
        b'-' => 62,
        _ => 63,
    })
}

impl FromStr for SocketId {
    type Err = SocketIdError;

    fn from_str(text: &str) -> Result<Self, SocketIdError> {
        let id: [u8; LENGTH] = text.as_bytes().try_into().map_err(|_| SocketIdError)?;
        let known =
            id.iter().all(|char| char.is_ascii_alphanumeric() || matches!(char, b'-' | b'_'));
        known.then_some(Self(id)).ok_or(SocketIdError)
    }
}

impl AsRef<str> for SocketId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn random_ids_are_read_as_they_are_written_and_recognized() {
        let ids: HashSet<SocketId> = (0..1000).map(|_| SocketId::random()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert_eq!(id.as_ref().len(), LENGTH);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert!(SocketId::names_socket(id.as_str()));
        }
    }

    #[test]
    fn other_texts_are_no_ids() {
        for text in
            ["", "abc", "abcdefghijklmnopqrs", "abcdefghijklmnopqrstu", "abcdefghij klmnopqrs"]
        {
            assert_eq!(text.parse::<SocketId>(), Err(SocketIdError), "{text:?}");
        }
        assert!("ééééé_____01234567890".parse::<SocketId>().is_err());
    }

    #[test]
    fn ids_of_others_are_read_but_name_no_socket_of_ours() {
        for text in ["lVUEJ9i8zpaqvLZGAAAB", "abcdefghij0123456789", "AAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(text.parse::<SocketId>().map(|id| id.to_string()), Ok(text.to_owned()));
            assert!(!SocketId::names_socket(text), "{text}");
        }
    }
}
