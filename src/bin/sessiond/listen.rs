//! Checks the listen addresses before anything is started that would have to be stopped again.

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;

use sessiond::config::Listen;

/// Binds each address and releases it again. If another program takes one in between, the server reports it.
///
/// # Errors
///
/// The first address that cannot be bound: by its flag, the cause, and what to do.
pub(crate) fn check(wanted: &[(&str, SocketAddr)]) -> Result<(), String> {
    // Held until all are bound: two flags may name one address.
    let mut held = vec![];
    for (flag, address) in wanted {
        held.push(TcpListener::bind(address).map_err(|error| refused(flag, *address, &error))?);
    }
    Ok(())
}

fn refused(flag: &str, address: SocketAddr, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use. Stop the program that uses it, or choose another port; port 0 picks a free one"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 0.0.0.0 means all of its addresses".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied. Ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher one".to_owned()
        }
        _ => error.to_string(),
    };
    format!("cannot listen on {address} ({flag}): {why}")
}

/// Warns of listeners without TLS that other machines can reach.
pub(crate) fn warn_of_plaintext(listen: &Listen) {
    let flags = [
        ("--listen", Some(listen.listen)),
        ("--metrics-listen", Some(listen.metrics_listen)),
        ("--proxy-listen", listen.proxy_listen),
    ];
    let exposed = |(flag, address): (&'static str, Option<SocketAddr>)| {
        address.filter(|address| !address.ip().to_canonical().is_loopback()).map(|_| flag)
    };
    let exposed: Vec<&str> = flags.into_iter().filter_map(exposed).collect();
    if !exposed.is_empty() {
        tracing::warn!(
            listeners = exposed.join(", "),
            "listening for other machines without TLS: anyone in between can read tokens. Let a proxy on this machine or a \
             trusted network terminate TLS, or use --tls-certificate-file"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_reported_by_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let free: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let error = check(&[("--listen", free), ("--metrics-listen", address)]).expect_err("taken");
        assert!(
            error.starts_with(&format!("cannot listen on {address} (--metrics-listen): the port is in use")),
            "{error}"
        );
        drop(taken);
        assert_eq!(check(&[("--listen", free), ("--metrics-listen", address)]), Ok(()));
        assert!(check(&[("--listen", address), ("--metrics-listen", address)]).is_err(), "one address for both");
        let elsewhere = "192.0.2.1:0".parse().expect("an address");
        assert!(check(&[("--listen", elsewhere)]).expect_err("not ours").contains("no such address"));
    }
}
