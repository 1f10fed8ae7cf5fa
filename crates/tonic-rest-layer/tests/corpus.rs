//! The fuzzer's corpus, again: what it found once stays found. `fuzz/run` looks for more.

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/target.rs"]
mod target;

#[test]
fn everything_in_the_corpus_holds() {
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
