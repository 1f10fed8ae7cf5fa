//! `Connection` names headers for the next hop only, and inner layers remove them (RFC 9110 §7.6.1). `Origin` must stay: it
//! shows that the request comes from a browser, and a server key from a browser is refused.

use http::HeaderMap;
use http::HeaderValue;
use http::header;

/// Keeps `Origin`, even if `Connection` names it.
pub(super) fn keep_origin(headers: &mut HeaderMap) {
    if !headers.contains_key(header::ORIGIN) {
        return;
    }
    let header::Entry::Occupied(connection) = headers.entry(header::CONNECTION) else { return };
    let (_, lines) = connection.remove_entry_mult();
    let options: Vec<String> = lines
        .filter_map(|line| line.to_str().map(str::to_owned).ok())
        .flat_map(|line| line.split(',').map(|option| option.trim().to_owned()).collect::<Vec<_>>())
        .filter(|option| !option.eq_ignore_ascii_case(header::ORIGIN.as_str()))
        .collect();
    let line = HeaderValue::try_from(options.join(", ")).expect("parts of header values form one");
    headers.insert(header::CONNECTION, line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_removed_from_connection() {
        for (lines, expected) in [
            (&["close, Origin"][..], "close"),
            (&["ORIGIN"], ""),
            (&["keep-alive , x-hop", " origin,close"], "keep-alive, x-hop, close"),
            (&["x-origin"], "x-origin"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, HeaderValue::from_static(""));
            for line in lines {
                headers.append(header::CONNECTION, HeaderValue::from_static(line));
            }
            keep_origin(&mut headers);
            assert_eq!(headers.get_all(header::CONNECTION).iter().collect::<Vec<_>>(), [expected]);
        }
    }
}
