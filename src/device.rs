//! Names a device after its `User-Agent`, such as "Chrome on Windows". The client can send anything, so the name only helps
//! people recognise their devices; no decision depends on it.
//!
//! Uses the patterns of the ua-parser project (`uap-core/`). They are compiled once, when the first request has a
//! `User-Agent` to name, which takes about 60 ms and 11 MB; the patterns for device models would more than double both and
//! are left out. A name takes about 10 µs, and a few times that for the worst texts: matching takes time linear in the
//! length, which callers bound.

use std::sync::LazyLock;

use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use ua_parser::Extractor;
use ua_parser::Regexes;

/// The longest name, in bytes. Nobody would recognise a longer one; an app's name may be anything.
const NAME_BYTES_MAX: usize = 64;

static PATTERNS: LazyLock<Extractor<'static>> = LazyLock::new(|| {
    let patterns: Regexes<'static> =
        serde_json::from_str(include_str!("device/uap-core/regexes.json")).expect("a test reads it");
    Extractor::try_from(patterns).expect("a test compiles it")
});

/// Compiles the patterns unless that is done, on a thread for blocking work. Call it before [`name`], which would block its
/// thread, and whatever the caller has locked, for the time of the compilation.
pub async fn prepare() {
    /// Awaited by concurrent callers, so that only one thread compiles.
    static PREPARED: OnceCell<()> = OnceCell::const_new();
    let compile = async || {
        // Fails only when the runtime shuts down; then the first name compiles them.
        let _ = spawn_blocking(|| LazyLock::force(&PATTERNS)).await;
    };
    PREPARED.get_or_init(compile).await;
}

/// Names the device with this `User-Agent`, whose length the caller has bounded; `None` if it names no device.
pub fn name(user_agent: &str) -> Option<String> {
    let (browser, system, _) = PATTERNS.extract(user_agent);
    let browser = browser.as_ref().map(|browser| without_form(&browser.family));
    let system = system.as_ref().map(|system| system_name(&system.os, user_agent));
    let name = match (browser, system) {
        (Some(browser), Some(system)) if browser != system => format!("{browser} on {system}"),
        (Some(name), _) | (None, Some(name)) => name.to_owned(),
        (None, None) => return None,
    };
    (!name.is_empty() && name.len() <= NAME_BYTES_MAX).then_some(name)
}

/// The browser without its variant ("Chrome Mobile iOS"), which the system already shows.
fn without_form(family: &str) -> &str {
    let family = family.strip_prefix("Mobile ").unwrap_or(family);
    let family = family.strip_suffix("/WKWebView").unwrap_or(family);
    [" UI", " WebView", " iOS", " Mobile"]
        .iter()
        .fold(family, |family, form| family.strip_suffix(form).unwrap_or(family))
}

/// The system's usual name: that of the device, if only one kind of device has the system.
fn system_name<'a>(system: &'a str, user_agent: &str) -> &'a str {
    match system {
        "iOS" => ["iPhone", "iPad", "iPod"].into_iter().find(|device| user_agent.contains(device)).unwrap_or(system),
        "Mac OS X" => "Mac",
        _ => system,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_devices_are_named() {
        let windows = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
        let mac = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit";
        let iphone = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)";
        let ipad = "Mozilla/5.0 (iPad; CPU OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)";
        let android = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko)";
        let cases = [
            (windows.to_owned(), "Chrome on Windows"),
            (format!("{windows} Edg/142.0.3595.65"), "Edge on Windows"),
            (format!("{windows} Vivaldi/7.6.3797.63"), "Vivaldi on Windows"),
            ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0".to_owned(), "Firefox on Windows"),
            (format!("{mac}/605.1.15 (KHTML, like Gecko) Version/26.1 Safari/605.1.15"), "Safari on Mac"),
            (format!("{mac}/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 OPR/123.0.0.0"), "Opera on Mac"),
            (format!("{iphone} Version/26.1 Mobile/15E148 Safari/604.1"), "Safari on iPhone"),
            (format!("{iphone} CriOS/142.0.7444.148 Mobile/15E148 Safari/604.1"), "Chrome on iPhone"),
            (format!("{iphone} FxiOS/145.0 Mobile/15E148 Safari/605.1.15"), "Firefox on iPhone"),
            (format!("{iphone} EdgiOS/141.0.3537.85 Version/18.0 Mobile/15E148 Safari/604.1"), "Edge on iPhone"),
            (format!("{iphone} Mobile/15E148"), "Safari on iPhone"),
            (format!("{ipad} Version/26.1 Mobile/15E148 Safari/604.1"), "Safari on iPad"),
            (format!("{android} Chrome/142.0.0.0 Mobile Safari/537.36"), "Chrome on Android"),
            (format!("{android} SamsungBrowser/29.0 Chrome/136.0.0.0 Mobile Safari/537.36"), "Samsung Internet on Android"),
            ("Mozilla/5.0 (Android 16; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0".to_owned(), "Firefox on Android"),
            ("Mozilla/5.0 (Linux; Android 14; SM-S918B Build/UP1A.231005.007; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/142.0.7444.102 Mobile Safari/537.36".to_owned(), "Chrome on Android"),
            ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36".to_owned(), "Chrome on Linux"),
            ("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0".to_owned(), "Firefox on Ubuntu"),
            ("Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36".to_owned(), "Chrome on Chrome OS"),
            ("Notes/3.2.1 CFNetwork/3826.500.111.2.2 Darwin/24.4.0".to_owned(), "Notes on iOS"),
            ("Notes/1.2 (com.example.notes; build:7; iOS 18.5.0) Alamofire/5.9.1".to_owned(), "iOS"),
            ("Dalvik/2.1.0 (Linux; U; Android 14; Pixel 7 Build/UQ1A.240205.002)".to_owned(), "Android"),
            ("curl/8.14.1".to_owned(), "curl"),
        ];
        for (user_agent, expected) in cases {
            assert_eq!(name(&user_agent).as_deref(), Some(expected), "{user_agent}");
        }
    }

    #[test]
    fn other_user_agents_name_no_device() {
        let app = format!("{}/1.0 CFNetwork/3826.500.111.2.2 Darwin/24.4.0", "x".repeat(900));
        for user_agent in
            ["", "rubbish", "Mozilla/5.0", "Dart/3.9 (dart:io)", "grpc-node-js/1.14.1", "tonic/0.14.2", &app]
        {
            assert_eq!(name(user_agent), None, "{user_agent}");
        }
    }

    /// A client may send any text of up to a kilobyte, and none may take long.
    #[tokio::test]
    async fn the_worst_texts_are_fast() {
        let pieces = ["(", "a", "1.", " ; Build/", "Mozilla/5.0 (Linux; Android ", "Mozilla ", "Safari/", "é"];
        let worst: Vec<String> = pieces.iter().map(|piece| piece.repeat(1_024 / piece.len())).collect();
        prepare().await;
        let started = std::time::Instant::now();
        for text in &worst {
            name(text);
        }
        // A hundred times what it takes on a slow machine, unoptimised: this is about minutes, not about microseconds.
        assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
    }
}
