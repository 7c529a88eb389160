//! Parses the addresses that a program listens on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

/// Errors of [`listen_address`].
#[derive(Debug, thiserror::Error)]
pub enum ListenAddressError {
    /// The text is not `ADDR:PORT`.
    #[error("an address to listen on is ADDR:PORT, as 0.0.0.0:8873, [::]:8873, :8873 or localhost:8873")]
    Form,
    /// The name does not resolve to an address.
    #[error("{name:?} has no address here")]
    Resolve { name: String, source: std::io::Error },
}

/// Parses `ADDR:PORT`. A host name is resolved once, preferring IPv4, which blocks. `:PORT` means all IPv4
/// addresses.
pub fn listen_address(text: &str) -> Result<SocketAddr, ListenAddressError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or(ListenAddressError::Form)?;
    let port: u16 = port.parse().map_err(|_| ListenAddressError::Form)?;
    if host.is_empty() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    // Without brackets, the last part of an IPv6 address is ambiguous: it could be a port.
    if host.contains([':', '[', ']', '/']) {
        return Err(ListenAddressError::Form);
    }
    let resolve = |source| ListenAddressError::Resolve { name: host.to_owned(), source };
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(resolve)?.collect();
    let v4 = found.iter().find(|address| address.is_ipv4());
    v4.or(found.first()).copied().ok_or_else(|| resolve(std::io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (text, address) in [
            ("127.0.0.1:8873", "127.0.0.1:8873"),
            ("[::1]:0", "[::1]:0"),
            (":8873", "0.0.0.0:8873"),
            ("localhost:8873", "127.0.0.1:8873"),
        ] {
            assert_eq!(listen_address(text).unwrap(), address.parse().unwrap(), "{text}");
        }
        for bad in ["8873", "", ":", ":x", "127.0.0.1", "::1:8873:", "http://127.0.0.1:80", "a:99999"] {
            let error = listen_address(bad).unwrap_err().to_string();
            assert!(error.contains("0.0.0.0:8873"), "{bad}: {error}");
        }
    }
}
