//! Replays the corpus of the fuzzer, as a regression test. `fuzz/run` searches for new inputs.

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/target.rs"]
mod target;

#[test]
fn the_corpus_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = target::Target::new(root);
    let mut count = 0;
    for entry in fs::read_dir(root.join("fuzz/corpus")).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target.check(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 100, "{count} inputs");
}
