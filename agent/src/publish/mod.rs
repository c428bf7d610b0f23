//! The publishing side: what lays a served folder out, signs it, and serves it in a lab. Host only, never part of the initrd.
//!
//! What is written is static files (`docs/formats.md`, «The served folder»): any web server serves them as well as [`serve`] does.

pub mod bzimage;
pub mod cli;
pub mod closure;
pub mod folder;
pub mod generation;
pub mod inspect;
pub mod keys;
pub mod netboot;
pub mod params;
pub mod progress;
pub mod registration;
pub mod run;
pub mod serve;
pub mod sign;
pub mod systems;
