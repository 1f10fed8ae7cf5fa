//! libFuzzer's entry: `fuzz/run` builds and starts it.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod target;

static TARGET: LazyLock<target::Target> =
    LazyLock::new(|| target::Target::new(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")));

fuzz_target!(|input: &[u8]| TARGET.check(input));
