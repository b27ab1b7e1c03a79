//! Many nodes in one process, on the bus in memory: what they ask of each other, and what happens
//! when a remote node is silent, receives nothing, is gone, or writes nonsense. Time is paused.

mod acks;
mod clients;
mod engine;
mod faults;
mod node;
mod requests;
mod rooms;
mod trace;
