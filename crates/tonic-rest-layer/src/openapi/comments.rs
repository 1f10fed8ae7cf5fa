//! The protos' comments: what is written there once is the API's documentation everywhere.

use std::collections::HashMap;

use prost_reflect::DescriptorPool;
use prost_reflect::FileDescriptor;

/// Every comment of a descriptor set that was compiled with source information; of any other, none.
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

    /// The comment on what stands at this path of a file (descriptor.proto, `SourceCodeInfo.Location.path`).
    pub(super) fn of(&self, file: &FileDescriptor, path: &[i32]) -> Option<&str> {
        self.0.get(&(file.name().to_owned(), path.to_vec())).map(String::as_str)
    }
}

/// Takes off what the comment signs left in front of each line. Deeper indentation stays: it is Markdown.
fn tidy(text: &str) -> String {
    let lines = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned()
}

/// The first sentence, on one line, and all that follows it.
pub(super) fn split(text: &str) -> (String, Option<String>) {
    let (first, others) = text.split_once("\n\n").unwrap_or((text, ""));
    let first = first.replace('\n', " ");
    // A full stop within a sentence (`e.g. this`) is not followed by a capital.
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
