//! Every setting, as templates and people fill it in: blank, with a newline, with invalid values. Errors are reported
//! before anything is started, never as a panic.

use std::{collections::BTreeMap, fs, process::Output};

use crate::binary::{Dir, sessiond};
use crate::harness::database::fresh_dir;
use crate::harness::serving::Installed;
use crate::harness::{SEALING_KEY, eventually};

/// The flag of each environment variable of a command, from its help.
fn variables(command: &[&str]) -> BTreeMap<String, String> {
    let help = sessiond(&[command, &["--help"]].concat(), &[("COLUMNS", "200")]);
    let help = String::from_utf8(help.stdout).expect("text");
    let (mut flag, mut found) = (String::new(), BTreeMap::new());
    for line in help.lines() {
        let line = line.trim_start();
        if line.starts_with("--") {
            flag = line.split(' ').next().expect("a word").to_owned();
        }
        if let Some((_, rest)) = line.split_once("[env: ") {
            let name = rest.split(['=', ']']).next().expect("a name");
            found.insert(name.to_owned(), flag.clone());
        }
    }
    found
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Asserts an error that names the setting.
#[track_caller]
fn assert_refused(output: &Output, about: &str, case: &str) {
    let printed = printed(output);
    assert!(!output.status.success(), "{case}: {printed}");
    assert!(!printed.contains("panicked"), "{case}: {printed}");
    assert!(printed.contains(about), "{case}: {about} in {printed}");
}

/// A template filled with nothing leaves `NAME=`, which counts as unset.
#[test]
fn a_blank_variable_counts_as_unset() {
    for blank in ["", " ", "\n", " \t\r\n"] {
        let variables = variables(&["serve"]);
        assert!(variables.len() > 30, "{variables:?}");
        let env: Vec<_> = variables.keys().map(|name| (name.as_str(), blank)).collect();
        let output = sessiond(&["serve"], &env);
        // The same settings are missing as without the variables.
        assert_eq!(printed(&output), printed(&sessiond(&["serve"], &[])), "{blank:?}");
        for list in [",", " , ,", ",,"] {
            let output = sessiond(&["openapi"], &[("SESSIOND_BASE_PATHS", list)]);
            assert_eq!(output.stdout, sessiond(&["openapi"], &[]).stdout, "{list:?}");
        }
    }
}

/// Files and editors end values with a newline, people put spaces into lists.
#[test]
fn surrounding_white_space_is_ignored() {
    let expected = sessiond(&["openapi", "--base-path", "/a", "--base-path", "/b"], &[]);
    assert!(expected.status.success());
    for list in ["/a,/b", "/a, /b", " /a ,/b/\n", "/a,,/b,", ",/a,/b"] {
        let output = sessiond(&["openapi"], &[("SESSIOND_BASE_PATHS", list), ("SESSIOND_LOG_FORMAT", "text\n")]);
        assert_eq!(output.stdout, expected.stdout, "{list:?}: {}", printed(&output));
    }
    // Everything but the database is valid.
    let output = sessiond(
        &["serve"],
        &[
            ("SESSIOND_LISTEN", " 127.0.0.1:0\n"),
            ("SESSIOND_METRICS_LISTEN", "127.0.0.1:0\n"),
            ("SESSIOND_ISSUER", "https://a.example/\n"),
            ("SESSIOND_CORS_ORIGINS", "https://a:443, capacitor://localhost,\n"),
            ("SESSIOND_CORS_HEADERS", "X-Team , x-other"),
            ("SESSIOND_ALLOWED_HOSTS", "a, B,\n::1"),
            ("SESSIOND_TRUSTED_PROXIES", " 10.0.0.0/8 , ::1\n"),
            ("SESSIOND_FORWARDED_HEADER", "forwarded\n"),
            ("SESSIOND_REQUEST_TIMEOUT", "10s\n"),
            ("SESSIOND_BODY_BYTES_MAX", "2048\n"),
            ("SESSIOND_ADDRESS_RATE", " 5 "),
            ("SESSIOND_LOG", "debug, sessiond=trace\n"),
            ("SESSIOND_LOG_FORMAT", "text\n"),
            ("SESSIOND_ALLOW_UNSAFE_DURABILITY", "true\n"),
            ("SESSIOND_SEALING_KEY", SEALING_KEY),
        ],
    );
    assert_refused(&output, "--database-url", "only the database is missing");
    assert!(!printed(&output).contains("invalid value"), "{}", printed(&output));
}

/// Invalid settings are refused at the start, by name and with a message. Flags and variables alike.
#[test]
fn invalid_settings_are_refused_with_a_message() {
    let rows: &[(&str, &[&str])] = &[
        (
            "--issuer",
            &[
                "",
                "x.example",
                "nonsense",
                "https://x?x=1",
                "https://x#f",
                "https://x\ny",
                "https://u:p@x",
                "ftp://x",
                "https://x/a//b",
                "https://",
            ],
        ),
        ("--base-path", &["", "auth", "/../", "/./a", "//", "/a//b", "/{a}", "/*", "/a:b", "/a b"]),
        ("--cors-origin", &["", "null", "a", "https://a/", "https://*.a", "https://a:x", "https://"]),
        ("--cors-header", &["", "*", "a b", "é"]),
        ("--allowed-host", &["", "*", "https://a", "a:8080", "a/b", "*.a"]),
        ("--trusted-proxy", &["", "*", "a", "10.0.0.0/33", "fe80::1%eth0"]),
        ("--forwarded-header", &["", "x-real-ip"]),
        ("--listen", &["", "a", "8080", "127.0.0.1", "127.0.0.1:99999"]),
        ("--metrics-listen", &["", ":9464"]),
        ("--log", &["", "inof", "sessiond", "a=b=c"]),
        ("--log-format", &["", "xml"]),
        ("--request-timeout", &["", "1", "-1s", "99999999999999999999s", "1h"]),
        ("--body-bytes-max", &["", "-1", "1e9", "99999999999999999999", "1 MiB"]),
        ("--address-rate", &["", "-1", "1.5", "x"]),
        ("--sessions-max", &[]),
    ];
    let env = [("DATABASE_URL", "postgres://u@127.0.0.1:1/d"), ("SESSIOND_SEALING_KEY", "short")];
    let variables = variables(&["serve"]);
    for (flag, values) in rows {
        for value in *values {
            let output = sessiond(&["serve", &format!("{flag}={value}")], &env);
            assert_refused(&output, flag, &format!("{flag}={value:?}"));
            let name = variables.iter().find(|(_, of)| of == flag).map(|(name, _)| name.as_str());
            if let Some(name) = name.filter(|_| !value.trim().is_empty()) {
                let output = sessiond(&["serve"], &[env[0], env[1], (name, value)]);
                assert_refused(&output, flag, &format!("{name}={value:?}"));
            }
        }
    }
}

/// Any value of any setting gets a message, never a panic.
#[test]
fn no_setting_causes_a_panic() {
    let hostile = ["\u{1}", "é", "-", "=", "/", "%", "{}", "[", "1e400", "18446744073709551616", "''", "\u{202e}"];
    let env = [("SESSIOND_SEALING_KEY", "short")];
    for name in variables(&["serve"]).keys() {
        for value in hostile {
            // Without a database, so that nothing waits.
            let url = if name == "DATABASE_URL" { value } else { "mysql://" };
            let output = sessiond(&["serve"], &[env[0], ("DATABASE_URL", url), (name, value)]);
            let printed = printed(&output);
            assert!(!output.status.success() && !printed.contains("panicked"), "{name}={value:?}: {printed}");
            assert!(!printed.trim().is_empty(), "{name}={value:?}");
        }
    }
    for value in hostile.into_iter().chain(["/auth/", "/../", "//", "/a,/a", "/projects/,/projects"]) {
        let printed = printed(&sessiond(&["openapi"], &[("SESSIOND_BASE_PATHS", value)]));
        assert!(!printed.contains("panicked"), "{value:?}: {printed}");
    }
}

/// A JSON log collector also gets the reason of an exit.
#[test]
fn fatal_errors_are_json_if_the_log_is() {
    for (args, env) in [
        (&["serve", "--log-format", "json", "--listen", "x"][..], vec![]),
        (&["serve", "--log-format=json"], vec![]),
        (&["serve"], vec![("SESSIOND_LOG_FORMAT", "json\n")]),
        (
            &["serve"],
            vec![
                ("SESSIOND_LOG_FORMAT", "json"),
                ("DATABASE_URL", "postgres://127.0.0.1:1/d"),
                ("SESSIOND_SEALING_KEY", "x"),
            ],
        ),
        (&["migrate"], vec![("SESSIOND_LOG_FORMAT", "json"), ("DATABASE_URL", "mysql://")]),
        (&["nonsense", "--log-format", "json"], vec![]),
    ] {
        let output = sessiond(args, &env);
        assert!(!output.status.success());
        let text = String::from_utf8(output.stderr).expect("text");
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{args:?}: {text}"));
            assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
        }
        assert!(text.contains(r#""level":"ERROR""#), "{args:?}: {text}");
    }
    // Help stays text.
    let help = sessiond(&["serve", "--help"], &[("SESSIOND_LOG_FORMAT", "json")]);
    assert!(help.status.success() && help.stdout.starts_with(b"Run the server"));
}

/// A secret comes from a file or from a variable, of either from one alone, and never from the command line. No message
/// repeats it.
#[test]
fn secrets_come_from_files_and_not_from_the_command_line() {
    let dir = Dir::fresh("secrets");
    fs::create_dir_all(&*dir).expect("creates");
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("writes");
        path.display().to_string()
    };
    let key = file("key", &format!("{SEALING_KEY}\n"));
    let [password, short] = [file("password", "hunter2\n"), file("short", "hunter2")];
    let absent = dir.join("absent").display().to_string();
    // The database does not exist, so nothing is started.
    let [plain, with] = ["postgres://u@127.0.0.1:1/d", "postgres://u:hunter2@127.0.0.1:1/d"];
    let (key_file, previous, password_file) =
        ("--sealing-key-file", "--previous-sealing-key-file", "--database-password-file");
    /// Flags, variables, and what the error says.
    type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let rows: &[Row<'_>] = &[
        (&[], &[("DATABASE_URL", plain)], "a sealing key is required: use --sealing-key-file"),
        (&["--sealing-key", SEALING_KEY], &[("DATABASE_URL", plain)], "unexpected argument '--sealing-key'"),
        (&[key_file, &short], &[("DATABASE_URL", plain)], "--sealing-key-file is not 32 bytes in base64"),
        (&[key_file, &absent], &[("DATABASE_URL", plain)], "absent cannot be read"),
        (
            &[key_file, &key, previous, &short],
            &[("DATABASE_URL", plain)],
            "--previous-sealing-key-file is not 32 bytes",
        ),
        (
            &[key_file, &key],
            &[("DATABASE_URL", plain), ("SESSIOND_SEALING_KEY", SEALING_KEY)],
            "--sealing-key-file and SESSIOND_SEALING_KEY are both set",
        ),
        (&["--database-url", with, key_file, &key], &[], "--database-url has a password, which every user"),
        (
            &["--database-listen-url", with, key_file, &key],
            &[("DATABASE_URL", plain)],
            "--database-listen-url has a password",
        ),
        (&[key_file, &key, password_file, &password], &[("DATABASE_URL", with)], "a file has another"),
        (&[key_file, &key, password_file, &absent], &[("DATABASE_URL", plain)], "absent cannot be read"),
    ];
    for (args, env, about) in rows {
        let output = sessiond(&[&["serve"], *args].concat(), env);
        assert_refused(&output, about, &format!("{args:?} {env:?}"));
        let printed = printed(&output);
        // clap repeats an unknown argument, and not its value.
        assert!(!printed.contains("hunter2") && !printed.contains(SEALING_KEY), "{args:?}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_the_environment_is_warned_of() {
    let (installed, dir) = (Installed::new().await, fresh_dir("secrets"));
    fs::create_dir(&dir).expect("creates");
    let _serving = installed.serve(&[], &[], fs::File::create(dir.join("log")).expect("creates")).await;
    let log = || fs::read_to_string(dir.join("log")).expect("reads");
    eventually("says that it is ready", async || log().contains("INFO ready")).await;
    let log = log();
    assert!(log.contains("prefer --sealing-key-file") && log.contains("variables=\"SESSIOND_SEALING_KEY\""), "{log}");
    assert!(!log.contains(SEALING_KEY), "{log}");
}
