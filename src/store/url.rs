//! The parts of a database URL that concern TLS and our own settings. The driver reads the rest.

use std::path::PathBuf;
use std::str::FromStr as _;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// Why a database URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It does not parse. The URL is not repeated: it contains a password.
    #[error("the database URL is malformed; expected postgres://user:password@host:port/database")]
    Malformed(#[source] tokio_postgres::Error),
    /// It names no host.
    #[error("the database URL names no host")]
    NoHost,
    /// A host name is invalid. It is not repeated: it may be the end of a password.
    #[error(
        "the database URL has an invalid host. In a user or a password, write @ as %40, / as %2F, ? as %3F, # as \
         %23 and % as %25"
    )]
    Host,
    /// It has a password, and another one is given.
    #[error("the database URL has a password, and a file has another: use one of them")]
    TwoPasswords,
    /// `sslmode` has an unknown value.
    #[error("sslmode in the database URL must be disable, prefer, require, verify-ca or verify-full")]
    SslMode,
    /// The certificate file cannot be read.
    #[error("the file of trusted certificates cannot be read")]
    Certificates(#[source] rustls::pki_types::pem::Error),
    /// A client certificate without its key, or the reverse.
    #[error("sslcert and sslkey in the database URL must both be set, or neither")]
    HalfClientCertificate,
    /// A file of the client certificate cannot be read.
    #[error("the client certificate for the database, or its key, cannot be read")]
    ClientCertificate(#[source] rustls::pki_types::pem::Error),
    /// The client certificate cannot be used, for example because the key belongs to another one.
    #[error("the client certificate for the database cannot be used with its key")]
    ClientTls(#[source] rustls::Error),
    /// The certificates cannot be used.
    #[error("the trusted certificates cannot be used")]
    Tls(#[source] rustls::Error),
}

/// How a connection is protected. With TLS, the server's certificate is always verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS if the server supports it.
    Prefer,
    /// TLS, with a certificate for the host's name.
    Require,
    /// TLS, with a certificate of a trusted authority, for any name.
    VerifyCa,
}

/// The trusted authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// The system's.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// The files of a client certificate, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientCertificateFiles {
    /// The certificate, then its chain.
    pub(super) certificate: PathBuf,
    /// The private key.
    pub(super) key: PathBuf,
}

/// A database URL.
pub(super) struct DatabaseUrl {
    /// The driver's configuration.
    pub(super) config: Config,
    /// `sslmode`, if given.
    pub(super) mode: Option<TlsMode>,
    /// `sslrootcert`, if given.
    pub(super) roots: Option<Roots>,
    /// `sslcert` and `sslkey`, if given.
    pub(super) client_certificate: Option<ClientCertificateFiles>,
    /// `search_path`, if set by `options`.
    pub(super) search_path: Option<String>,
}

impl DatabaseUrl {
    /// Parses `postgres://…` or `key=value …`, as libpq does.
    ///
    /// # Errors
    ///
    /// Fails if it is malformed. The error does not repeat it.
    pub(super) fn parse(text: &str) -> Result<Self, DatabaseUrlError> {
        // Files and shells add newlines and spaces around it.
        let text = text.trim();
        let (rest, ours) = split(text).unwrap_or_else(|| (text.to_owned(), vec![]));
        let config = Config::from_str(&rest).map_err(DatabaseUrlError::Malformed)?;
        if config.get_hosts().iter().any(is_invalid_host) {
            return Err(DatabaseUrlError::Host);
        }
        let (mut mode, mut roots, mut certificate, mut private_key) = (None, None, None, None);
        for (key, value) in ours {
            match key.as_str() {
                "sslmode" => mode = Some(parse_mode(&value)?),
                "sslcert" => certificate = Some(value.into()),
                "sslkey" => private_key = Some(value.into()),
                _ if value == "system" => roots = Some(Roots::System),
                _ => roots = Some(Roots::File(value.into())),
            }
        }
        let client_certificate = match (certificate, private_key) {
            (Some(certificate), Some(key)) => Some(ClientCertificateFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(DatabaseUrlError::HalfClientCertificate),
        };
        let search_path = config.get_options().and_then(search_path);
        Ok(Self { config, mode, roots, client_certificate, search_path })
    }
}

impl DatabaseUrl {
    /// Sets the password.
    ///
    /// # Errors
    ///
    /// Fails if the URL has one.
    pub(super) fn set_password(&mut self, password: &str) -> Result<(), DatabaseUrlError> {
        if self.config.get_password().is_some() {
            return Err(DatabaseUrlError::TwoPasswords);
        }
        self.config.password(password);
        Ok(())
    }
}

/// Whether a database URL has a password; `false` if it is malformed.
pub fn has_password(url: &str) -> bool {
    DatabaseUrl::parse(url).is_ok_and(|url| url.config.get_password().is_some())
}

/// Whether it cannot be a host name, but may be the part of a password after an `@`.
fn is_invalid_host(host: &Host) -> bool {
    matches!(host, Host::Tcp(name) if name.contains(['@', '/', '?', '&', '#', '=']) || name.contains(char::is_whitespace))
}

fn parse_mode(value: &str) -> Result<TlsMode, DatabaseUrlError> {
    Ok(match value {
        "disable" => TlsMode::Disable,
        // libpq starts without TLS for `allow`; here TLS is always used if the server supports it.
        "allow" | "prefer" => TlsMode::Prefer,
        "require" | "verify-full" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        _ => return Err(DatabaseUrlError::SslMode),
    })
}

/// The parameters that the driver does not know, or of which it knows fewer values.
fn is_ours(key: &str) -> bool {
    ["sslmode", "sslrootcert", "sslcert", "sslkey"].contains(&key)
}

/// Extracts our parameters. `None` if the URL is malformed: the driver reports how.
fn split(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let scheme = ["postgres://", "postgresql://"].into_iter().find(|scheme| text.starts_with(scheme));
    match scheme {
        Some(scheme) => split_url(text, scheme.len()),
        None => {
            let (ours, theirs): (Vec<_>, Vec<_>) = pairs(text)?.into_iter().partition(|(key, _)| is_ours(key));
            let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
            let theirs = theirs.iter().map(|(key, value)| format!("{key}='{}' ", quoted(value)));
            Some((theirs.collect(), ours))
        }
    }
}

fn split_url(text: &str, scheme: usize) -> Option<(String, Vec<(String, String)>)> {
    // The first `@` ends the user and password, for the driver too: what looks like a parameter before it is not one.
    let after_password = text[scheme..].find('@').map_or(scheme, |at| scheme + at);
    let Some(begin) = text[after_password..].find('?').map(|at| after_password + at) else {
        return Some((text.to_owned(), vec![]));
    };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(String::from);
    let (mut ours, mut theirs) = (vec![], vec![]);
    for parameter in text[begin + 1..].split('&') {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match decoded(key)? {
            key if is_ours(&key) => ours.push((key, decoded(value)?)),
            _ => theirs.push(parameter),
        }
    }
    let mark = if theirs.is_empty() { "" } else { "?" };
    Some((format!("{}{mark}{}", &text[..begin], theirs.join("&")), ours))
}

/// Parses `key = value` pairs. A value is a word or single-quoted; a backslash escapes the next character.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut letters = text.chars().peekable();
    let mut pairs = vec![];
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Some(pairs);
        }
        let mut key = String::new();
        while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace() && *letter != '=') {
            key.push(letter);
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        letters.next_if_eq(&'=')?;
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let quoted = letters.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match letters.next() {
                Some('\\') => value.push(letters.next()?),
                Some('\'') if quoted => break,
                Some(letter) if !quoted && letter.is_whitespace() => break,
                Some(letter) => value.push(letter),
                None if quoted => return None,
                None => break,
            }
        }
        pairs.push((key, value));
    }
}

/// The search path in start-up options: `-c search_path=…`, `-csearch_path=…` or `--search-path=…`; the last one wins.
fn search_path(options: &str) -> Option<String> {
    let (mut words, mut word, mut letters) = (vec![], String::new(), options.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.extend(letters.next()),
            letter if letter.is_whitespace() => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    let named = |word: &String| {
        let word = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(word);
        let (name, value) = word.split_once('=')?;
        (name.replace('-', "_") == "search_path").then(|| value.to_owned())
    };
    words.iter().filter_map(named).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> DatabaseUrl {
        DatabaseUrl::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn a_password_that_looks_like_a_parameter_stays_as_it_is() {
        for text in [
            "postgres://u:p%3Fsslmode%3Dverify-full@h/d?sslmode=verify-full&connect_timeout=3",
            "postgresql://u:p?sslmode=verify-full@h/d?connect_timeout=3&sslmode=require",
            "host=h user=u dbname=d password='p?sslmode=verify-full' sslmode = verify-full",
            "  postgres://u@h/d?password=p%3Fsslmode%3Dverify-full&sslmode=verify-full\n",
        ] {
            let url = parsed(text);
            assert_eq!(url.config.get_password(), Some(&b"p?sslmode=verify-full"[..]), "{text}");
            assert_eq!((url.config.get_user(), url.mode), (Some("u"), Some(TlsMode::Require)), "{text}");
        }
    }

    /// Errors name the host, and are logged.
    #[test]
    fn the_end_of_a_password_is_not_taken_for_a_host() {
        for text in ["postgres://u:p@ss@h/d", "postgres://h/d?user=u&password=p@ss&sslmode=disable"] {
            assert!(matches!(DatabaseUrl::parse(text), Err(DatabaseUrlError::Host)), "{text}");
        }
        for text in ["postgres://u:p%40ss@h/d", "postgres://u@h/d?password=p@ss", "host=h user=u password=p@ss"] {
            assert_eq!(parsed(text).config.get_password(), Some(&b"p@ss"[..]), "{text}");
        }
    }

    #[test]
    fn each_mode_is_known_in_both_forms() {
        let modes = [
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Prefer),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::Require),
        ];
        for (word, mode) in modes {
            assert_eq!(parsed(&format!("postgres://h/d?sslmode={word}")).mode, Some(mode));
            assert_eq!(parsed(&format!("host=h sslmode='{word}'")).mode, Some(mode));
        }
        assert!(matches!(DatabaseUrl::parse("postgres://h/d?sslmode=on"), Err(DatabaseUrlError::SslMode)));
        assert_eq!(parsed("postgres://h/d").mode, None);
    }

    #[test]
    fn trusted_authorities_come_from_a_file_or_the_system() {
        let file = Some(Roots::File("/etc/db ca.pem".into()));
        assert_eq!(parsed("postgres://h/d?sslrootcert=%2Fetc%2Fdb%20ca.pem").roots, file);
        assert_eq!(parsed("host=h sslrootcert='/etc/db ca.pem'").roots, file);
        assert_eq!(parsed("postgres://h/d?sslrootcert=system").roots, Some(Roots::System));
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let files = Some(ClientCertificateFiles { certificate: "/a b.pem".into(), key: "/k.pem".into() });
        assert_eq!(parsed("postgres://h/d?sslcert=%2Fa%20b.pem&sslkey=/k.pem").client_certificate, files);
        assert_eq!(parsed("host=h sslkey=/k.pem sslcert='/a b.pem'").client_certificate, files);
        for half in ["postgres://h/d?sslcert=/a.pem", "host=h sslkey=/k.pem"] {
            assert!(matches!(DatabaseUrl::parse(half), Err(DatabaseUrlError::HalfClientCertificate)), "{half}");
        }
    }

    #[test]
    fn quotes_and_backslashes_survive() {
        let url = parsed(r"host=h password='it\'s \\ here' dbname=a\ b");
        assert_eq!(url.config.get_password(), Some(&br"it's \ here"[..]));
        assert_eq!(url.config.get_dbname(), Some("a b"));
    }

    #[test]
    fn a_search_path_in_the_options_is_found() {
        for options in
            ["-c search_path=a,b", "-csearch_path=a,b -c jit=off", "--search-path=a,b", "-c search_path=a,\\b"]
        {
            assert_eq!(search_path(options).as_deref(), Some("a,b"), "{options}");
        }
        assert_eq!(search_path("-c jit=off"), None);
    }
}
