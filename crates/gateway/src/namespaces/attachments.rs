//! A packet whose attachments are on their way.

use std::time::Instant;

use bytes::Bytes;

use crate::packet::Packet;

/// The text of a packet, and those of its attachments that have come.
#[derive(Debug)]
pub(super) struct Attachments {
    text: String,
    expected: usize,
    attachments: Vec<Bytes>,
    bytes: usize,
    since: Instant,
}

impl Attachments {
    pub(super) fn new(text: &str, packet: &Packet<'_>) -> Self {
        Self {
            text: text.to_owned(),
            expected: packet.attachments,
            attachments: Vec::new(),
            bytes: 0,
            since: Instant::now(),
        }
    }

    /// Adds one. Returns whether it was the last.
    pub(super) fn add(&mut self, attachment: Bytes) -> bool {
        self.bytes += attachment.len();
        self.attachments.push(attachment);
        self.attachments.len() >= self.expected
    }

    /// Bytes of text and attachments.
    pub(super) fn bytes(&self) -> usize {
        self.text.len() + self.bytes
    }

    /// Bytes of the attachments.
    pub(super) fn attachment_bytes(&self) -> usize {
        self.bytes
    }

    /// When the text came.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn into_parts(self) -> (String, Vec<Bytes>) {
        (self.text, self.attachments)
    }
}
