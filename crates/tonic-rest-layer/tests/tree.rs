//! The dependencies between the modules have no cycles.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The modules that a file uses as `crate::module`, outside of comments and unit tests.
fn used(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let name = |rest: &str| rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    code.split("crate::").skip(1).map(name).collect()
}

#[test]
fn modules_have_no_dependency_cycles() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for dir in [src.clone(), src.join("openapi")] {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            if !path.is_file() || path.extension().is_none_or(|extension| extension != "rs") || stem == "lib" {
                continue;
            }
            let module = if dir == src { stem } else { "openapi" };
            let names = used(&fs::read_to_string(&path).unwrap());
            uses.entry(module.to_owned()).or_default().extend(names.into_iter().filter(|name| name != module));
        }
    }
    assert!(uses.len() > 25, "the modules were found");
    // Repeatedly removes modules without dependencies. What remains has a cycle.
    while let Some(module) = uses.iter().find(|(_, names)| names.is_empty()).map(|(module, _)| module.clone()) {
        uses.remove(&module);
        uses.values_mut().for_each(|names| names.retain(|name| *name != module));
    }
    assert!(uses.is_empty(), "{uses:#?}");
}
