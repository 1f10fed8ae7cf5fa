//! One binary for all integration tests. This file is their table of contents.

#![allow(missing_docs, unreachable_pub, reason = "a test's name says what it shows")]

// The real server, its database, its clients.
mod harness;

// The service's methods, on every wire.
mod audit;
mod backchannel;
mod create;
mod introspect;
mod keys;
mod list;
mod manage;
mod origin;
mod policy;
mod privileges;
mod refresh;
mod revoke;
mod server_keys;
mod sweep;
mod theft;
mod verify;
mod watch;
mod writers;

// The guard in other services.
mod guard;
mod sidecar;
mod step_up;

// Bad input, foreign credentials, random interleavings.
mod input;
mod model;

// The edge, and failures.
mod certificates;
mod client_certificates;
mod clocks;
mod connect;
mod cookies;
mod divided;
mod durable;
mod engines;
mod errors;
mod faults;
mod group;
mod grpc;
mod http_rules;
mod ledger;
mod oauth;
mod openapi;
mod outage;
mod pooler;
mod pressure;
mod proxies;
mod rates;
mod readiness;
mod recovery;
mod rest;
mod stack_auth;
mod tls;

// The binary as people run it, its scripts and settings.
mod binary;
mod deploy;
mod doctor;
mod log;
mod process;
mod readme;
mod scripts;
mod settings;
mod traces;

// The tables and the tree.
mod floors;
mod generated;
mod migrations;
mod plans;
mod reference;
