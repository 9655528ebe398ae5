//! Requests over HTTP/1.1, a connection for each: a registry is asked once for each schema.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::codec::base64;

/// For connecting and for the answer, together.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A longer answer is no schema.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Where requests go.
pub(super) struct Client {
    host: String,
    port: u16,
    /// The path before each request's own.
    path: String,
    authority: String,
    tls: Option<tokio_native_tls::TlsConnector>,
    authorization: Option<String>,
    pub(super) timeout: Duration,
}

impl Client {
    /// For `http://host:port/path`, with a user and a password.
    pub fn new(url: &str, login: Option<(&str, &str)>) -> Result<Self, String> {
        let wrong = |why: &dyn std::fmt::Display| format!("the registry's URL is wrong: {why}");
        let uri: Uri = url.parse().map_err(|error| wrong(&error))?;
        let host = uri.host().ok_or_else(|| wrong(&"it has no host"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong(&"it holds a user: write `user` and `password` beside it"));
        }
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong(&"it begins with neither http:// nor https://")),
        };
        let connector = || native_tls::TlsConnector::new().map_err(|error| format!("TLS cannot be used: {error}"));
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            path: uri.path().trim_end_matches('/').to_owned(),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            tls: if is_tls { Some(connector()?.into()) } else { None },
            authorization: login
                .map(|(user, password)| format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))),
            timeout: TIMEOUT,
        })
    }

    /// The status and the body of an answer; an error is a sentence about why there is none.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes), String> {
        let answer = async {
            let stream =
                TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| error.to_string())?;
            match &self.tls {
                None => self.ask(stream, method, path, body).await,
                Some(tls) => {
                    let stream = tls.connect(&self.host, stream).await.map_err(|error| error.to_string())?;
                    self.ask(stream, method, path, body).await
                }
            }
        };
        timeout(self.timeout, answer).await.map_err(|_| format!("no answer within {:?}", self.timeout))?
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes), String> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "application/vnd.schemaregistry.v1+json, application/json")
            .header(header::CONNECTION, "close");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/vnd.schemaregistry.v1+json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| error.to_string())?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        // The connection is driven beside the request, and ends with it.
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            driven = connection => {
                driven.map_err(|error| error.to_string())?;
                answer.await
            }
        }
    }
}
