//! The README's code is that of `examples/hello`, which the workspace compiles.

use std::fs;
use std::path::Path;

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for file in ["proto/hello.proto", "build.rs", "src/main.rs"] {
        let text = fs::read_to_string(root.join("examples/hello").join(file)).unwrap();
        assert!(readme.contains(&format!("\n{text}```\n")), "README.md shows another {file}");
        assert!(text.lines().count() <= 32, "{file} is short");
    }
}
