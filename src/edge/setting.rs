//! Validates settings again, for callers that did not parse them from flags.

/// An invalid setting.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` {expected}")]
pub struct SettingError {
    text: String,
    expected: String,
}

/// Validates a list of settings, without duplicates.
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
