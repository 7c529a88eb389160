//! The sockets of an origin, bound before anything is started.

use std::net::SocketAddr;
use std::path::Path;

use rustix::fs::{Gid, Mode};
use syncd_runtime::local_socket::LocalListener;
use tokio::net::TcpListener;

use super::{ServeOptions, StartError};
use crate::admin::socket_path;

/// Bound sockets with the addresses that they got.
pub(super) struct Sockets {
    pub grpc: TcpListener,
    pub grpc_address: SocketAddr,
    /// `None` if the default port was occupied.
    pub http: Option<TcpListener>,
    pub http_address: Option<SocketAddr>,
    /// The page for other machines.
    pub page: Option<(TcpListener, SocketAddr)>,
    pub admin: LocalListener,
}

impl Sockets {
    pub(super) async fn bind(options: &ServeOptions) -> Result<Self, StartError> {
        let grpc = bind(options.listen, "another program has this port; give another --listen").await?;
        let (http, http_address) = bind_http(options).await?.unzip();
        let page = match options.page_listen {
            Some(address) => {
                let hint = "another program has this port; give another --page-listen";
                let page = bind(address, hint).await?;
                let address = address_of(&page, address)?;
                Some((page, address))
            }
            None => None,
        };
        Ok(Self {
            grpc_address: address_of(&grpc, options.listen)?,
            http_address,
            admin: bind_admin(options)?,
            grpc,
            http,
            page,
        })
    }
}

/// The port for health and metrics, with the address that it got. `None`: the default port is occupied.
pub(super) async fn bind_http(
    options: &ServeOptions,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    match bind(options.http, "another program has this port; give another --http").await {
        Ok(listener) => {
            let address = address_of(&listener, options.http)?;
            Ok(Some((listener, address)))
        }
        Err(error) if options.http_required => Err(error),
        Err(error) => {
            tracing::warn!("health is not answered: {}", crate::error_chain(&error));
            Ok(None)
        }
    }
}

pub(super) fn bind_admin(options: &ServeOptions) -> Result<LocalListener, StartError> {
    let group = options.admin_group.map(Gid::from_raw);
    let source = |source| StartError::AdminGroup { path: options.data.clone(), source };
    match group {
        Some(group) => let_through(&options.data, group).map_err(source)?,
        None => shut_out(&options.data).map_err(source)?,
    }
    Ok(LocalListener::bind_for(&socket_path(&options.data), group)?)
}

/// Lets a group pass through DATA to the socket. Mode 0710 allows entering, but not listing or reading.
fn let_through(data: &Path, group: Gid) -> std::io::Result<()> {
    rustix::fs::chown(data, None, Some(group))?;
    Ok(rustix::fs::chmod(data, Mode::RWXU | Mode::XGRP)?)
}

/// Undoes [`let_through`] once the option is gone. A mode that the operator gave DATA stays.
fn shut_out(data: &Path) -> std::io::Result<()> {
    let found = rustix::fs::stat(data)?;
    if found.st_mode & 0o777 == 0o710 {
        rustix::fs::chmod(data, Mode::RWXU)?;
        rustix::fs::chown(data, None, Some(rustix::process::getegid()))?;
    }
    Ok(())
}

async fn bind(address: SocketAddr, hint: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, hint, source })
}

fn address_of(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    let hint = "the address of the socket can't be read";
    listener.local_addr().map_err(|source| StartError::Listen { address: asked, hint, source })
}
