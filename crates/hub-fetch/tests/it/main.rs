//! Fetching from a server that is a process of its own: the Hub's protocol, with everything that can go wrong in it.

mod caching;
mod fetching;
mod python;
mod refusals;
mod server;
mod stopping;
mod trouble;
mod world;
