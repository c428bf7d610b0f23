//! Formats: what is published, and what is kept on the cache disk. See `docs/formats.md`.
