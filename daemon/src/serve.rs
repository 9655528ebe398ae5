//! The HTTP server: how many may connect, for how long, and under which names this daemon answers.
//!
//! Nothing that a client does may cost the jobs their file descriptors, their memory or their time. So connections are
//! counted, in all and for each address; a request's head has [`HEAD_TIMEOUT`] to arrive, a connection has
//! [`LIFETIME`] in all, and a request that names a host that is not this one is refused: a web page whose name was made
//! to resolve to this machine (DNS rebinding) reads nothing.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{net::TcpListener, time};

/// Connections at once. Others are closed as soon as they are made.
pub const MAX_CONNECTIONS: usize = 64;
/// Of them, connections from one address: a client that leaks connections does not keep the others out.
pub const MAX_CONNECTIONS_OF_ONE: usize = 32;
/// How long the head of a request may take, the wait for a next request on an open connection included.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stay open, whatever it does.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// The head of a request is at most this long, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after an `accept` that failed (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until the process ends.
pub async fn serve(listener: TcpListener, router: Router, hosts: Hosts) {
    let seats = Arc::new(Seats::default());
    let router = router.layer(middleware::from_fn_with_state(Arc::new(hosts), check_host));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "HTTP: cannot accept a connection; trying again");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(seat) = Seats::take(&seats, peer) else {
            tracing::debug!(%peer, "HTTP: too many connections; this one is closed");
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD_BYTES)
                // The header is optional, and the crate that formats it panics beyond the year 9999.
                .auto_date_header(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = time::timeout(LIFETIME, connection).await {
                tracing::debug!(%peer, %error, "HTTP: a connection broke");
            }
            drop(seat);
        });
    }
}

/// Connections that are open, by the address that they come from.
#[derive(Default)]
struct Seats(Mutex<BTreeMap<IpAddr, usize>>);

/// One connection's place; dropping it gives the place back.
struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    fn take(seats: &Arc<Self>, peer: SocketAddr) -> Option<Seat> {
        let address = peer.ip().to_canonical();
        let mut open = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = open.get(&address).copied().unwrap_or(0);
        if of_this >= MAX_CONNECTIONS_OF_ONE || open.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        open.insert(address, of_this + 1);
        Some(Seat { seats: seats.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// The names under which a request may address this daemon.
///
/// An IP address and a name without a dot (`localhost`, a container's or a Kubernetes service's short name) are always
/// taken: no public name server gives them out. Any other name must be this machine's own, or be listed in `http_hosts`.
#[derive(Clone, Debug)]
pub struct Hosts {
    own: String,
    listed: Vec<String>,
}

impl Hosts {
    /// `own`: the machine's name. `listed`: further names, `*.example.org` for all below one, `*` for all.
    pub fn new(own: &str, listed: &[String]) -> Self {
        let listed = listed.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self { own: own.to_ascii_lowercase(), listed }
    }

    /// Whether a `Host` header names this daemon.
    pub fn are_named_by(&self, host: &str) -> bool {
        let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let is_plain =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        is_address
            || is_plain
            || name == self.own
            || self.listed.iter().any(|listed| match listed.strip_prefix('*') {
                Some(suffix) => name.ends_with(suffix),
                None => *listed == name,
            })
    }
}

/// A host without its port; an IPv6 address stands in brackets.
fn without_port(host: &str) -> &str {
    let Some((name, port)) = host.rsplit_once(':') else { return host };
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    let is_inside_brackets = name.starts_with('[') && !name.ends_with(']');
    if is_port && !is_inside_brackets { name } else { host }
}

/// Refuses requests that name another host, none (in HTTP/1.1) or two.
async fn check_host(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (first, second) = (named.next(), named.next());
    let needs_one = request.version() > axum::http::Version::HTTP_10;
    let host = first.map(|host| host.to_str().unwrap_or_default());
    match (host, second) {
        (None, _) if !needs_one => next.run(request).await,
        (Some(host), None) if hosts.are_named_by(host) => next.run(request).await,
        (Some(host), None) => {
            let error = format!(
                "this daemon does not answer under the name {host:?}. If it is one of its names, list it in `http_hosts` of the \
                 daemon's file; an IP address and names without a dot need no listing"
            );
            (StatusCode::MISDIRECTED_REQUEST, Json(json!({ "error": error }))).into_response()
        }
        _ => {
            let error = "a request has one Host header";
            (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_no_stranger_can_make_resolve_to_this_machine_are_taken() {
        let hosts = Hosts::new("mill.example.org", &["tides.example.org".into(), "*.svc.cluster.local".into()]);
        for host in [
            "127.0.0.1:9720",
            "10.1.2.3",
            "[::1]:9720",
            "[::1]",
            "localhost:9720",
            "LOCALHOST",
            "tidemill",
            "my_mill:80",
            "mill.example.org",
            "Mill.Example.Org.:9720",
            "tides.example.org",
            "tidemill.jobs.svc.cluster.local:9720",
        ] {
            assert!(hosts.are_named_by(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9720",
            "127.0.0.1.evil.example",
            "",
            ":9720",
            "x.tides.example.org",
            "mill.example.org.evil.example",
            "localhost.evil.example",
            "svc.cluster.local",
            "[::1].evil.example",
        ] {
            assert!(!hosts.are_named_by(host), "{host}");
        }
        assert!(Hosts::new("mill", &["*".into()]).are_named_by("any.thing.example"));
    }

    #[test]
    fn one_address_leaves_places_for_others_and_gives_its_own_back() {
        let seats = Arc::new(Seats::default());
        let peer = |n: u8| SocketAddr::from(([10, 0, 0, n], 5000));
        let held: Vec<_> = (0..MAX_CONNECTIONS_OF_ONE).map(|_| Seats::take(&seats, peer(1)).unwrap()).collect();
        assert!(Seats::take(&seats, peer(1)).is_none());
        let others: Vec<_> =
            (MAX_CONNECTIONS_OF_ONE..MAX_CONNECTIONS).map(|_| Seats::take(&seats, peer(2)).unwrap()).collect();
        assert!(Seats::take(&seats, peer(3)).is_none());
        drop(held);
        assert!(Seats::take(&seats, peer(3)).is_some());
        drop(others);
        assert!(seats.0.lock().unwrap().is_empty());
    }
}
