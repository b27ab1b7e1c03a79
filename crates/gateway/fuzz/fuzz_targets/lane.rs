//! Any script for the fan-out lane: `crates/gateway/fuzz/run`. What must hold is in the model that plays it,
//! `crates/gateway/src/net/lane/model.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| antiphon_gateway::play_lane(script));
