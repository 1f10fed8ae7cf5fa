//! Checks the listen addresses before anything is started that would have to be stopped again.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;

use sessiond::config::Listen;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

/// Binds each address and releases it again, without listening: a client must not take the check for the server. If another
/// program takes one in between, the server reports it.
///
/// # Errors
///
/// The first address that cannot be bound: by its flag, the cause, and what to do.
pub(crate) fn check(wanted: &[(&str, SocketAddr)]) -> Result<(), String> {
    for (at, (flag, address)) in wanted.iter().enumerate() {
        bind(*address).map_err(|error| refused(flag, *address, &error))?;
        if let Some((other, _)) = wanted[..at].iter().find(|(_, other)| overlap(*other, *address)) {
            return Err(format!("cannot listen on {address} ({flag}): {other} has that port already"));
        }
    }
    Ok(())
}

/// Fails as a listener would: with `SO_REUSEADDR`, connections of an earlier server that are still closing do not matter.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Whether two listeners cannot have both addresses.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_one_port = one.port() == other.port() && one.port() != 0;
    // `[::]` is all addresses, and `0.0.0.0` those of IPv4.
    let has = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.to_canonical().is_ipv4());
    is_one_port && (one.ip() == other.ip() || has(one.ip(), other.ip()) || has(other.ip(), one.ip()))
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

/// The server's listeners, by their flags.
pub(crate) fn listeners(listen: &Listen) -> Vec<(&'static str, SocketAddr)> {
    let flags = [
        ("--listen", Some(listen.listen)),
        ("--metrics-listen", Some(listen.metrics_listen)),
        ("--proxy-listen", listen.proxy_listen),
    ];
    flags.into_iter().filter_map(|(flag, address)| Some((flag, address?))).collect()
}

/// Warns of listeners without TLS that other machines can reach.
pub(crate) fn warn_of_plaintext(listen: &Listen) {
    let is_exposed = |address: SocketAddr| !address.ip().to_canonical().is_loopback();
    let exposed: Vec<&str> =
        listeners(listen).into_iter().filter_map(|(flag, address)| is_exposed(address).then_some(flag)).collect();
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
    use std::net::TcpListener;

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
        let overlaps = |one: &str, other: &str| overlap(one.parse().expect("one"), other.parse().expect("other"));
        assert!(
            overlaps("[::]:1", "127.0.0.1:1") && overlaps("0.0.0.0:1", "[::]:1") && overlaps("0.0.0.0:1", "10.0.0.1:1")
        );
        assert!(!overlaps("0.0.0.0:1", "[::1]:1") && !overlaps("127.0.0.1:1", "127.0.0.1:2"));
        let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
        for other in [address, any] {
            let error = check(&[("--listen", address), ("--metrics-listen", other)]).expect_err("one address for both");
            assert!(error.ends_with("--listen has that port already"), "{error}");
        }
        let elsewhere = "192.0.2.1:0".parse().expect("an address");
        assert!(check(&[("--listen", elsewhere)]).expect_err("not ours").contains("no such address"));
    }
}
