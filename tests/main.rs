//! One binary for all integration tests. This file is their table of contents.

// The private Postgres: its life, and above all its deaths.
mod cluster;
