//! Settings that are read again, for callers that did not read them from flags.

/// A setting that cannot work.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` {expected}")]
pub struct SettingError {
    text: String,
    expected: String,
}

/// Reads a list of settings, each at most once.
pub(super) fn read(texts: &[String], one: fn(&str) -> Result<String, String>) -> Result<Vec<String>, SettingError> {
    let mut read = vec![];
    for text in texts {
        let setting = one(text).map_err(|expected| SettingError { text: text.clone(), expected })?;
        if !read.contains(&setting) {
            read.push(setting);
        }
    }
    Ok(read)
}
