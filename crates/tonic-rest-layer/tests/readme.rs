//! The code in the README is that of `examples/hello`, which the workspace compiles.

use std::fs;
use std::path::Path;

#[test]
fn the_readme_has_the_code_of_the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for file in ["proto/hello.proto", "build.rs", "src/main.rs"] {
        let text = fs::read_to_string(root.join("examples/hello").join(file)).unwrap();
        assert!(readme.contains(&format!("\n{text}```\n")), "README.md does not have the text of {file}");
        assert!(text.lines().count() <= 32, "{file} is short");
    }
}
