//! Any script for what goes out to clients: `crates/gateway/fuzz/run`. What must hold is in the model that
//! plays it, `crates/gateway/src/transport/outbound/model.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| antiphon_gateway::play_outbound(script));
