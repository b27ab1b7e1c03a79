//! Reads what arrives on the receiving connection.
//!
//! The redis crate takes each message apart with a general parser, into a tree of values, and sends it
//! through a channel of its own: a multiple of what the rest of a message's way costs. When the server can
//! write faster than a node reads, it cuts the node off. So messages are picked out here, before that
//! parser, as slices of what was read; everything else (answers to the handshake and to commands) goes on
//! to the redis crate as it came.

use std::{convert::Infallible, future::pending, ops::Range};

use bytes::BytesMut;
use redis::{
    ConnectionAddr, ConnectionInfo, RedisResult,
    aio::{PubSub, PubSubSink, PubSubStream},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, join, split},
    net::{TcpStream, UnixStream},
};

use super::{Message, link::Messages};

/// What is read at a time: some hundred small messages share a system call and an allocation. One that waits
/// keeps those read with it in memory; but these wait with it, or went before it.
const READ_BYTES: usize = 64 << 10;
/// A smaller rest of it is not worth a read.
const READ_BYTES_MIN: usize = 8 << 10;
/// Answers on their way to the redis crate, which takes them at once.
const ANSWERS_BYTES: usize = 4 << 10;

/// No line of the protocol is longer: errors are, numbers are not.
const LINE_BYTES_MAX: usize = 4 << 10;
/// Far above what a payload may have, far below an overflow.
const NUMBER_DIGITS_MAX: usize = 15;

/// Connects and authenticates; `None` if TLS is asked for.
pub(super) async fn connect(info: &ConnectionInfo) -> RedisResult<Option<(PubSubSink, Reader)>> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Reader::start(info, stream).await.map(Some)
        }
        ConnectionAddr::Unix(path) => {
            Reader::start(info, UnixStream::connect(path).await?).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// The reading side of a connection.
pub(super) struct Reader {
    source: Box<dyn AsyncRead + Send + Unpin>,
    unread: BytesMut,
    answers: BytesMut,
    answered: DuplexStream,
    // Ends the redis crate's task for this connection when dropped; no message reaches it.
    _commands: Option<PubSubStream>,
}

impl Reader {
    async fn start<S>(info: &ConnectionInfo, stream: S) -> RedisResult<(PubSubSink, Self)>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (source, sink) = split(stream);
        let (answered, answers) = duplex(ANSWERS_BYTES);
        let mut reader = Self {
            source: Box::new(source),
            unread: BytesMut::new(),
            answers: BytesMut::new(),
            answered,
            _commands: None,
        };
        let greeted = PubSub::new(info.redis_settings(), join(answers, sink));
        let (commands, stream) = tokio::select! {
            greeted = greeted => greeted?.split(),
            never = reader.greet() => match never {},
        };
        reader._commands = Some(stream);
        Ok((commands, reader))
    }

    /// Hands on everything, the end included: before the first subscription there are answers only, of kinds
    /// that do not occur later, and the redis crate says what is wrong with them.
    async fn greet(&mut self) -> Infallible {
        while self.fill().await.is_some() {
            self.answers.extend_from_slice(&self.unread.split());
            if self.hand_on().await.is_none() {
                break;
            }
        }
        // Fails only if it has ended already.
        let _ = self.answered.shutdown().await;
        pending().await
    }

    /// Reads more; `None` when the connection has ended. Dropping the future loses nothing.
    async fn fill(&mut self) -> Option<()> {
        if self.unread.capacity() - self.unread.len() < READ_BYTES_MIN {
            self.unread.reserve(READ_BYTES);
        }
        let read = self.source.read_buf(&mut self.unread).await;
        read.is_ok_and(|bytes| bytes > 0).then_some(())
    }

    /// Gives the redis crate its answers; `None` when it has ended. Dropping the future loses nothing.
    async fn hand_on(&mut self) -> Option<()> {
        while !self.answers.is_empty() {
            self.answered.write_buf(&mut self.answers).await.ok()?;
        }
        Some(())
    }
}

impl Messages for Reader {
    async fn next(&mut self) -> Option<Message> {
        loop {
            // No message gives way to other tasks, only a read does (tokio counts those): a busy node that reads
            // a hundred messages at a turn is cut off by the server.
            match first(&self.unread) {
                Ok(Some(Frame { message: Some([channel, payload]), end })) => {
                    let frame = self.unread.split_to(end).freeze();
                    if end > READ_BYTES {
                        // Not for ever in the buffer that was made for this one.
                        self.unread = BytesMut::from(&self.unread[..]);
                    }
                    let (channel, payload) = (frame.slice(channel), frame.slice(payload));
                    return Some(Message { channel, payload });
                }
                Ok(Some(Frame { message: None, end })) => {
                    self.answers.extend_from_slice(&self.unread.split_to(end));
                }
                Ok(None) => {
                    self.hand_on().await?;
                    self.fill().await?;
                }
                Err(Garbled) => {
                    tracing::error!("the server does not speak its protocol");
                    return None;
                }
            }
        }
    }
}

/// What the server sent is not what it sends to subscribers.
#[derive(Debug, PartialEq, Eq)]
struct Garbled;

/// What the server sent in one piece.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// Where channel and payload are, if it is a message.
    message: Option<[Range<usize>; 2]>,
    end: usize,
}

/// The first frame, once all of it is there. After the handshake there are messages, confirmations, pongs
/// and errors: arrays or pushes of simple elements, or one of those.
fn first(bytes: &[u8]) -> Result<Option<Frame>, Garbled> {
    let Some(kind) = bytes.first() else { return Ok(None) };
    if !matches!(kind, b'*' | b'>') {
        return Ok(element(bytes, 0)?.map(|(_, end)| Frame { message: None, end }));
    }
    let Some((count, mut end)) = line(bytes, 1)? else { return Ok(None) };
    let mut elements = [const { 0..0 }; 4];
    for at in 0..number(count)? {
        let Some((content, next)) = element(bytes, end)? else { return Ok(None) };
        *elements.get_mut(at).ok_or(Garbled)? = content;
        end = next;
    }
    let [name, first, second, third] = elements;
    let message = match &bytes[name] {
        b"message" => Some([first, second]),
        b"pmessage" => Some([second, third]),
        _ => None,
    };
    Ok(Some(Frame { message, end }))
}

/// Where the content of the element at `at` is, and where the next one begins.
fn element(bytes: &[u8], at: usize) -> Result<Option<(Range<usize>, usize)>, Garbled> {
    let Some(kind) = bytes.get(at) else { return Ok(None) };
    let Some((text, start)) = line(bytes, at + 1)? else { return Ok(None) };
    match kind {
        b'$' if text == b"-1" => Ok(Some((0..0, start))),
        b'$' => {
            let end = start.checked_add(number(text)?).ok_or(Garbled)?;
            let next = end.checked_add(2).ok_or(Garbled)?;
            Ok((bytes.len() >= next).then_some((start..end, next)))
        }
        b'+' | b'-' | b':' | b'_' => Ok(Some((0..0, start))),
        _ => Err(Garbled),
    }
}

/// The text from `at` to the end of its line, and where the next line begins.
fn line(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, Garbled> {
    let rest = &bytes[at..];
    let Some(length) = rest.iter().position(|byte| *byte == b'\r') else {
        return if rest.len() > LINE_BYTES_MAX { Err(Garbled) } else { Ok(None) };
    };
    match rest.get(length + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((&rest[..length], at + length + 2))),
        Some(_) => Err(Garbled),
    }
}

fn number(digits: &[u8]) -> Result<usize, Garbled> {
    if digits.is_empty() || digits.len() > NUMBER_DIGITS_MAX {
        return Err(Garbled);
    }
    digits.iter().try_fold(0, |number, digit| match digit {
        b'0'..=b'9' => Ok(number * 10 + usize::from(digit - b'0')),
        _ => Err(Garbled),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$4\r\n\r\n\r\n\r\n";
    const PATTERN: &[u8] = b">4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$2\r\nch\r\n$0\r\n\r\n";

    #[track_caller]
    fn check(bytes: &[u8], message: Option<(&[u8], &[u8])>) {
        for length in 0..bytes.len() {
            assert_eq!(first(&bytes[..length]), Ok(None), "cut at {length}");
        }
        for behind in [&b""[..], MESSAGE] {
            let bytes = [bytes, behind].concat();
            let frame = first(&bytes).expect("not garbled").expect("complete");
            assert_eq!(frame.end, bytes.len() - behind.len());
            let found = frame.message.map(|ranges| ranges.map(|range| &bytes[range]));
            assert_eq!(found.map(|[channel, payload]| (channel, payload)), message);
        }
    }

    #[test]
    fn messages_are_picked_out() {
        check(MESSAGE, Some((b"ch", b"\r\n\r\n")));
        check(PATTERN, Some((b"ch", b"")));
    }

    #[test]
    fn answers_are_left() {
        check(b"*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n", None);
        check(b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n", None);
        check(b"*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n", None);
        check(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", None);
        check(b"+PONG\r\n", None);
        check(b"-NOPERM this user has no permissions\r\n", None);
    }

    #[test]
    fn what_no_server_sends_is_refused() {
        let long = [b'+'; LINE_BYTES_MAX + 2];
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"*5\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n",
            b"*1\r\n*1\r\n:1\r\n",
            b"*-1\r\n",
            b"*\r\n",
            b"$99999999999999999999\r\n",
            b"+a\rb\r\n",
            &long,
        ] {
            assert_eq!(first(bytes), Err(Garbled), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
