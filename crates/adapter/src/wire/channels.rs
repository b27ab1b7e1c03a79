//! The names of the Redis channels of one namespace.

use std::sync::Arc;

/// How peers call the channels of a namespace, and which of them are this node's.
#[derive(Debug, Clone)]
pub struct Channels {
    broadcast: Arc<str>,
    request: String,
    response: String,
    own_response: String,
}

/// What a channel of a namespace carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic<'a> {
    /// Events for many.
    Broadcast(Scope<'a>),
    /// Questions and orders to all nodes.
    Request,
    /// Answers, to all nodes or to this one.
    Response,
}

/// For whom a broadcast is, as far as the name of its channel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// The channel of the namespace: the frame says who gets it.
    Namespace,
    /// The channel of one room, which a node without members of it need not decode. A room's name may
    /// contain anything, `#` too.
    Room(&'a str),
}

/// Where emitters from before 2021 publish, for all namespaces.
pub fn legacy_channel(prefix: &str) -> String {
    format!("{prefix}#emitter")
}

impl Channels {
    /// Those of namespace `nsp` under `prefix` (Node: the adapter's option `key`, `socket.io` by default),
    /// for the node that signs with `uid`.
    pub fn new(prefix: &str, nsp: &str, uid: &str) -> Self {
        let response = format!("{prefix}-response#{nsp}#");
        Self {
            broadcast: format!("{prefix}#{nsp}#").into(),
            request: format!("{prefix}-request#{nsp}#"),
            own_response: format!("{response}{uid}#"),
            response,
        }
    }

    /// Where broadcasts to everyone, or to more than one room, are published.
    pub fn broadcast(&self) -> &str {
        &self.broadcast
    }

    /// Where a broadcast to exactly this room is published.
    pub fn room(&self, room: &str) -> String {
        format!("{}{room}#", self.broadcast)
    }

    /// Where a broadcast with these rooms is published. Shared, as most go to everyone.
    pub fn for_rooms<R: AsRef<str>>(&self, rooms: &[R]) -> Arc<str> {
        match rooms {
            [room] => self.room(room.as_ref()).into(),
            _ => Arc::clone(&self.broadcast),
        }
    }

    /// What to PSUBSCRIBE to for all broadcasts. Node does not escape what Redis takes for wildcards
    /// in the name of a namespace, and hears nothing in `/[a]`; here it is escaped.
    pub fn pattern(&self) -> String {
        let mut pattern = String::with_capacity(self.broadcast.len() + 1);
        for char in self.broadcast.chars() {
            if matches!(char, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(char);
        }
        pattern.push('*');
        pattern
    }

    /// Where requests to all nodes are published; its number of subscribers is the number of nodes.
    pub fn request(&self) -> &str {
        &self.request
    }

    /// Where all nodes hear responses.
    pub fn response(&self) -> &str {
        &self.response
    }

    /// Where this node alone hears responses, from peers with `publishOnSpecificResponseChannel`.
    pub fn own_response(&self) -> &str {
        &self.own_response
    }

    /// Where only the node that signs with `uid` hears responses.
    pub fn response_to(&self, uid: &str) -> String {
        format!("{}{uid}#", self.response)
    }

    /// What a frame is that came on `channel`; `None` if the channel is none of this namespace's.
    pub fn traffic<'a>(&self, channel: &'a [u8]) -> Option<Traffic<'a>> {
        if channel == self.request.as_bytes() {
            return Some(Traffic::Request);
        }
        if channel == self.response.as_bytes() || channel == self.own_response.as_bytes() {
            return Some(Traffic::Response);
        }
        self.scope(channel).map(Traffic::Broadcast)
    }

    /// For whom a frame is that came on `channel`; `None` if it is none of this namespace's broadcasts.
    pub fn scope<'a>(&self, channel: &'a [u8]) -> Option<Scope<'a>> {
        let rest = channel.strip_prefix(self.broadcast.as_bytes())?;
        match rest.split_last() {
            None => Some(Scope::Namespace),
            // A lone `#` would be the room with the empty name, which Node takes for no room as well.
            Some((b'#', [])) => Some(Scope::Namespace),
            Some((b'#', room)) => std::str::from_utf8(room).ok().map(Scope::Room),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_called_as_node_calls_them() {
        let channels = Channels::new("socket.io", "/admin", "abc123");
        assert_eq!(channels.broadcast(), "socket.io#/admin#");
        assert_eq!(channels.room("r#1"), "socket.io#/admin#r#1#");
        assert_eq!(&*channels.for_rooms(&["r"]), "socket.io#/admin#r#");
        assert_eq!(&*channels.for_rooms(&["r", "s"]), "socket.io#/admin#");
        assert_eq!(&*channels.for_rooms::<&str>(&[]), "socket.io#/admin#");
        assert_eq!(channels.pattern(), "socket.io#/admin#*");
        assert_eq!(channels.request(), "socket.io-request#/admin#");
        assert_eq!(channels.response(), "socket.io-response#/admin#");
        assert_eq!(channels.own_response(), "socket.io-response#/admin#abc123#");
        assert_eq!(channels.response_to("x"), "socket.io-response#/admin#x#");
        assert_eq!(Channels::new("a?", "/[x]*\\", "u").pattern(), r"a\?#/\[x\]\*\\#*");
    }

    #[test]
    fn a_channel_tells_what_it_carries() {
        let channels = Channels::new("socket.io", "/", "abc123");
        let check = |channel: &str, is| assert_eq!(channels.traffic(channel.as_bytes()), is);
        check("socket.io#/#", Some(Traffic::Broadcast(Scope::Namespace)));
        check("socket.io#/#room#", Some(Traffic::Broadcast(Scope::Room("room"))));
        check("socket.io-request#/#", Some(Traffic::Request));
        check("socket.io-response#/#", Some(Traffic::Response));
        check("socket.io-response#/#abc123#", Some(Traffic::Response));
        check("socket.io-response#/#other1#", None);
        check("socket.io-request#/admin#", None);
        check(&legacy_channel("socket.io"), None);
    }

    #[test]
    fn the_room_is_what_stands_before_the_last_hash() {
        let channels = Channels::new("socket.io", "/", "abc123");
        let check = |channel: &str, scope| assert_eq!(channels.scope(channel.as_bytes()), scope);
        check("socket.io#/#", Some(Scope::Namespace));
        check("socket.io#/##", Some(Scope::Namespace));
        check("socket.io#/#room#", Some(Scope::Room("room")));
        check("socket.io#/#a#b##", Some(Scope::Room("a#b#")));
        check("socket.io#/#café#", Some(Scope::Room("café")));
        check("socket.io#/#room", None);
        check("socket.io#/admin#", None);
        check("socket.io-request#/#", None);
        check("", None);
        assert_eq!(channels.scope(b"socket.io#/#\xff#"), None);
    }
}
