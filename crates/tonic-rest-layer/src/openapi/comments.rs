//! Comments of the protos, as descriptions in the document.

use std::collections::HashMap;

use prost_reflect::DescriptorPool;
use prost_reflect::FileDescriptor;

/// All comments of a descriptor set. Empty if the set was compiled without source information.
#[derive(Debug)]
pub(super) struct Comments(HashMap<(String, Vec<i32>), String>);

impl Comments {
    pub(super) fn new(pool: &DescriptorPool) -> Comments {
        let mut comments = HashMap::new();
        for file in pool.files() {
            let Some(info) = &file.file_descriptor_proto().source_code_info else { continue };
            for location in &info.location {
                let text = location.leading_comments.as_ref().or(location.trailing_comments.as_ref());
                if let Some(text) = text.map(|text| tidy(text)).filter(|text| !text.is_empty()) {
                    comments.insert((file.name().to_owned(), location.path.clone()), text);
                }
            }
        }
        Comments(comments)
    }

    /// The comment on the element at this path of a file (descriptor.proto, `SourceCodeInfo.Location.path`).
    pub(super) fn of(&self, file: &FileDescriptor, path: &[i32]) -> Option<&str> {
        self.0.get(&(file.name().to_owned(), path.to_vec())).map(String::as_str)
    }
}

/// Removes the space after the comment sign of each line. Keeps deeper indentation, which is Markdown.
fn tidy(text: &str) -> String {
    let lines = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned()
}

/// Splits off the first sentence, on one line.
pub(super) fn split(text: &str) -> (String, Option<String>) {
    let (first, others) = text.split_once("\n\n").unwrap_or((text, ""));
    let first = first.replace('\n', " ");
    // A full stop inside a sentence (`e.g. this`) is followed by a lowercase letter.
    let ends = |at: usize| first[at + 2..].starts_with(|next: char| !next.is_lowercase());
    let end = first.match_indices(". ").map(|(at, _)| at).find(|at| ends(*at)).map_or(first.len(), |at| at + 1);
    let (sentence, rest) = first.split_at(end);
    let rest = [rest.trim(), others].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n");
    (sentence.to_owned(), (!rest.is_empty()).then_some(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sentence_is_the_summary() {
        let both = |text: &str| {
            let (summary, description) = split(&tidy(text));
            (summary, description.unwrap_or_default())
        };
        let expected = |summary: &str, description: &str| (summary.to_owned(), description.to_owned());
        assert_eq!(both(" Ends it.\n"), expected("Ends it.", ""));
        assert_eq!(
            both(" Ends it,\n all of it. At once.\n\n Twice is\n fine.\n"),
            expected("Ends it, all of it.", "At once.\n\nTwice is\nfine.")
        );
        assert_eq!(both(" One, e.g. this. `Two`."), expected("One, e.g. this.", "`Two`."));
    }
}
