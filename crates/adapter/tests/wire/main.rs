//! The wire against what Node wrote, against whatever may come, and (on demand) against Node.

#[cfg(feature = "external-tests")]
mod check;
mod fixtures;
mod hostile;
mod payloads;
mod round_trips;

use antiphon_adapter::wire::Limits;

const LIMITS: Limits =
    Limits { frame_bytes_max: 1 << 22, depth_max: 100, rooms_max: 100, attachments_max: 10_000 };
