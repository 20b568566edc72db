//! Detects clients that use another protocol by the first bytes of a connection.
//!
//! hyper closes such a connection without a response. Its user gets a closed connection or a
//! framing error, and no message gives the cause. These clients therefore get a readable response,
//! and the log gets a line:
//!
//! | first bytes | protocol | response |
//! |---|---|---|
//! | `PRI * HTTP/2.0` | HTTP/2 with prior knowledge (gRPC) | 505 in HTTP/2 frames |
//! | `16 03` | a TLS ClientHello | 400 in plain text, as from other servers |
//! | `PROXY `, `\r\n\r\n\0\r\nQUIT\n` | a load balancer's PROXY header | 400 in plain text |
//!
//! HTTP/2 is not served: profiles do not need multiplexing, and each stream would be another slot
//! that a client could hold.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time;

/// Total time for the response to another protocol.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum bytes read from such a client.
const MAX_READ_BYTES: usize = 32 << 10;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PROTOCOL_PREFIXES: [(&[u8], Protocol); 4] = [
    (HTTP2_PREFACE, Protocol::Http2),
    (b"\x16\x03", Protocol::Tls),
    (b"PROXY ", Protocol::Proxy),
    (b"\r\n\r\n\0\r\nQUIT\n", Protocol::Proxy),
];
const MAX_PREFIX_BYTES: usize = HTTP2_PREFACE.len();

const HTTP1_ONLY_MESSAGE: &str = "this endpoint supports only HTTP/1.1";

/// A protocol that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http2,
    Tls,
    Proxy,
}

impl Protocol {
    /// Returns the name for the log, used instead of a method.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http2 => "HTTP/2",
            Self::Tls => "TLS",
            Self::Proxy => "PROXY",
        }
    }

    pub(super) fn status(self) -> u16 {
        match self {
            Self::Http2 => 505,
            Self::Tls | Self::Proxy => 400,
        }
    }
}

/// Reads until the protocol of `stream` is known. Returns the stream with those bytes unread, and
/// the protocol if it is not HTTP/1.1.
pub(super) async fn detect_protocol<S: AsyncRead + Unpin>(
    mut stream: S,
) -> io::Result<(RewoundStream<S>, Option<Protocol>)> {
    let mut prefix = Vec::with_capacity(MAX_PREFIX_BYTES);
    loop {
        if let Some((_, protocol)) =
            PROTOCOL_PREFIXES.iter().find(|(start, _)| prefix.starts_with(start))
        {
            return Ok((RewoundStream { prefix, position: 0, stream }, Some(*protocol)));
        }
        let may_match = PROTOCOL_PREFIXES.iter().any(|(start, _)| start.starts_with(&prefix));
        if !may_match
            || (&mut stream)
                .take((MAX_PREFIX_BYTES - prefix.len()) as u64)
                .read_buf(&mut prefix)
                .await?
                == 0
        {
            return Ok((RewoundStream { prefix, position: 0, stream }, None));
        }
    }
}

/// Sends a readable error response and closes the connection.
pub(super) async fn refuse(stream: impl AsyncRead + AsyncWrite + Unpin, protocol: Protocol) {
    // The client may be gone.
    let _ = time::timeout(RESPONSE_TIMEOUT, send_error(stream, protocol)).await;
}

async fn send_error(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    protocol: Protocol,
) -> io::Result<()> {
    let text = match protocol {
        Protocol::Http2 => return send_http2_error(stream).await,
        Protocol::Tls => {
            format!("{HTTP1_ONLY_MESSAGE}, without TLS; use http:// instead of https://\n")
        }
        Protocol::Proxy => {
            format!(
                "{HTTP1_ONLY_MESSAGE}, without a PROXY header; disable it in the load balancer\n"
            )
        }
    };
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        text.len()
    );
    stream.write_all(format!("{head}{text}").as_bytes()).await?;
    shutdown_and_drain(stream).await
}

/// Responds to the first request of an HTTP/2 client with 505 (RFC 9113).
async fn send_http2_error(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const END_STREAM: u8 = 1;
    const ACK: u8 = 1;
    const END_HEADERS: u8 = 4;
    const HTTP_1_1_REQUIRED: u32 = 13;
    // HPACK: `:status` is entry 8 of the static table, `content-type` is entry 31, each with a
    // literal value.
    const HEADER_BLOCK: &[u8] = b"\x48\x03505\x5f\x0atext/plain";

    stream.read_exact(&mut [0; HTTP2_PREFACE.len()]).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, b"")).await?;
    let mut remaining = MAX_READ_BYTES;
    let stream_id = loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, _, d, e, f, g] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let Some(after_frame) = remaining.checked_sub(head.len() + length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        remaining = after_frame;
        stream.read_exact(&mut vec![0; length]).await?;
        if kind == HEADERS {
            break u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff;
        }
    };
    let text = format!("{HTTP1_ONLY_MESSAGE}; use curl without --http2-prior-knowledge\n");
    let mut response = frame(SETTINGS, ACK, 0, b"");
    response.extend(frame(HEADERS, END_HEADERS, stream_id, HEADER_BLOCK));
    response.extend(frame(DATA, END_STREAM, stream_id, text.as_bytes()));
    let mut goaway = stream_id.to_be_bytes().to_vec();
    goaway.extend(HTTP_1_1_REQUIRED.to_be_bytes());
    goaway.extend(HTTP1_ONLY_MESSAGE.as_bytes());
    response.extend(frame(GOAWAY, 0, 0, &goaway));
    stream.write_all(&response).await?;
    shutdown_and_drain(stream).await
}

/// Encodes an HTTP/2 frame. `payload` is at most a few hundred bytes.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes().get(1..).unwrap_or_default().to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Shuts down the write side, then drains the read side. Closing with unread bytes resets the
/// connection, and the client could lose the response.
async fn shutdown_and_drain(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(MAX_READ_BYTES as u64), &mut tokio::io::sink()).await?;
    Ok(())
}

/// A stream that returns bytes read earlier before it reads on.
pub(super) struct RewoundStream<S> {
    prefix: Vec<u8>,
    position: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for RewoundStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unread = self.prefix.get(self.position..).unwrap_or_default();
        if unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let n = unread.len().min(buffer.remaining());
        buffer.put_slice(unread.get(..n).unwrap_or_default());
        self.position += n;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RewoundStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the protocol of a client that sends `bytes` one by one, and the bytes that can be
    /// read afterwards.
    async fn detect_bytewise(bytes: &[u8]) -> (Option<Protocol>, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(1);
        let bytes = bytes.to_vec();
        tokio::spawn(async move { client.write_all(&bytes).await });
        let (mut stream, protocol) = detect_protocol(server).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        (protocol, all)
    }

    #[tokio::test]
    async fn detects_protocol_by_prefix_and_preserves_bytes() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], None),
            (b"POST / HTTP/1.1\r\n\r\n", None),
            (b"PRI * HTTP/1.1\r\n\r\n", None),
            (b"PROPFIND / HTTP/1.1\r\n\r\n", None),
            (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", None),
            (b"", None),
            (b"P", None),
            (b"\x16", None),
            (b"\x16\x04", None),
            (b"\x16\x03\x01\x02\x00\x01", Some(Protocol::Tls)),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n\r\n", Some(Protocol::Proxy)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21", Some(Protocol::Proxy)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Some(Protocol::Http2)),
        ] {
            assert_eq!(detect_bytewise(bytes).await, (expected, bytes.to_vec()), "{bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn http2_client_gets_505_on_its_stream() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        tokio::spawn(refuse(server, Protocol::Http2));
        let headers = frame(1, 5, 7, b"\x82\x86\x84");
        let sent = [HTTP2_PREFACE, &frame(4, 0, 0, b""), &headers].concat();
        client.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        let text = String::from_utf8_lossy(&got);
        assert!(text.contains("505") && text.contains(HTTP1_ONLY_MESSAGE), "{text}");
        assert!(got.starts_with(&frame(4, 0, 0, b"")));
        let response = frame(1, 4, 7, b"\x48\x03505\x5f\x0atext/plain");
        assert!(got.windows(response.len()).any(|window| window == response), "{got:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn http2_client_without_request_is_disconnected() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let serving = tokio::spawn(async move {
            let started = time::Instant::now();
            refuse(server, Protocol::Http2).await;
            started.elapsed()
        });
        client.write_all(HTTP2_PREFACE).await.unwrap();
        assert!(serving.await.unwrap() <= RESPONSE_TIMEOUT);
        // An endless sequence of frames without a request.
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let serving = tokio::spawn(refuse(server, Protocol::Http2));
        let _ = client.write_all(HTTP2_PREFACE).await;
        while client.write_all(&frame(6, 0, 0, b"12345678")).await.is_ok() {}
        serving.await.unwrap();
    }
}
