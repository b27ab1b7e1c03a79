//! The id of an Engine.IO session: a secret between the client and this node.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// 20 characters that nobody can guess: 120 bits from the operating system. Whoever has them can poll
/// for the session, so they are never logged and never shown to another client.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SessionId([u8; 20]);

impl SessionId {
    /// A new id.
    pub(super) fn random() -> Self {
        let mut random = [0; 15];
        getrandom::fill(&mut random).expect("the operating system has randomness");
        let mut id = [0; 20];
        // 15 bytes are 20 characters of base64, without padding.
        let written = URL_SAFE_NO_PAD.encode_slice(random, &mut id);
        debug_assert_eq!(written, Ok(20));
        Self(id)
    }

    /// The id as text.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for SessionId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let id = <[u8; 20]>::try_from(text.as_bytes()).map_err(drop)?;
        let is_of_alphabet =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        id.iter().all(is_of_alphabet).then_some(Self(id)).ok_or(())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<session id>")
    }
}
