//! A whole node, in this process or as the real binary, and clients that speak to it over real sockets.

mod admin;
mod bad_input;
mod client;
mod command;
mod drain;
mod examples;
mod harness;
mod order;
mod outbound;
mod proxies;
mod rules;
mod slow;
