//! Figures for monitoring, as Prometheus and OpenMetrics readers expect them: `GET /metrics` over plain HTTP.
//!
//! What is measured is its owners' business: at each request they fill a [`Page`]. There is nothing secret on it, and
//! nobody listens unless told where.

use super::Shutdown;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// What one answer shows.
pub struct Page(Registry);

/// Makes a page of what is so now.
pub type Fill = Arc<dyn Fn(&mut Page) + Send + Sync>;

/// A label's name and value each.
pub type Labels = Vec<(&'static str, String)>;

/// How many of how many took how long, or were how large.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    pub count: u64,
    /// Of all values.
    pub sum: f64,
    /// Upper bounds, ascending, and how many values do not exceed each.
    pub within: Vec<(f64, u64)>,
}

/// Readers at the same time; others wait in the listener's queue.
const READERS: usize = 8;
/// How long one reader may take, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(10);
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Page {
    fn new() -> Self {
        Self(Registry::with_prefix("symphony"))
    }

    /// A figure that goes up and down, one value for each set of labels. Units belong into the name.
    pub fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    /// A figure that only grows while the process lives.
    pub fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    /// How values are distributed that came while the process lives. Bounds need not name infinity.
    pub fn histogram(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, Distribution)>) {
        self.0.register(name, help, Distributions(values.into_iter().collect()));
    }

    /// The same without labels.
    pub fn count(&mut self, name: &str, help: &str, value: u64) {
        self.0.register(name, help, ConstCounter::new(value));
    }
}

/// Distributions as they are written.
#[derive(Debug)]
struct Distributions(Vec<(Labels, Distribution)>);

impl EncodeMetric for Distributions {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (labels, Distribution { count, sum, within }) in &self.0 {
            // The encoder adds up what is in each bucket alone.
            let mut below = 0;
            let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(within.len() + 1);
            for (bound, upto) in within.iter().copied().chain([(f64::INFINITY, *count)]) {
                buckets.push((bound, upto.saturating_sub(below)));
                below = below.max(upto);
            }
            encoder.encode_family(labels)?.encode_histogram::<NoLabelSet>(*sum, *count, &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Serves pages on `address` until the end; the bound address, for port 0.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn serve(address: SocketAddr, fill: Fill, shutdown: &Shutdown) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let group = shutdown.clone();
    shutdown.spawn_until_end(async move { accept_all(listener, &fill, &group).await });
    Ok(bound)
}

async fn accept_all(listener: TcpListener, fill: &Fill, group: &Shutdown) {
    let seats = Arc::new(Semaphore::new(READERS));
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let fill = fill.clone();
                group.spawn_until_end(async move {
                    answer(stream, fill).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of metrics");
                // Out of descriptors or memory: nothing tells when that is over.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, fill: Fill) {
    let service = service_fn(move |request| std::future::ready(respond(&request, &fill)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a reader of metrics went away"),
        Err(_) => tracing::debug!("a reader of metrics took too long"),
    }
}

fn respond(request: &Request<Incoming>, fill: &Fill) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let plain = |status, text: &'static str| Response::builder().status(status).body(Full::from(text));
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "look at /metrics\n");
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET is all there is\n");
    }
    match text_of(fill) {
        Ok(text) => Response::builder().header(CONTENT_TYPE, TEXT).body(Full::from(text)),
        Err(std::fmt::Error) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the figures cannot be written\n"),
    }
}

fn text_of(fill: &Fill) -> Result<String, std::fmt::Error> {
    let mut page = Page::new();
    fill(&mut page);
    let mut text = String::new();
    encode(&mut text, &page.0)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_reader_gets_the_figures_of_now_and_nothing_else() {
        let shutdown = Shutdown::new();
        let fill: Fill = Arc::new(|page: &mut Page| {
            page.gauge("volumes", "Volumes", [(vec![("phase", "ready".to_owned())], 3.0)]);
            page.counter("reads", "Reads", [(vec![("volume", "a\"b".to_owned())], 7)]);
            page.count("starts", "Starts", 1);
        });
        let address = serve("127.0.0.1:0".parse().unwrap(), fill, &shutdown).await.unwrap();
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for line in [
            "symphony_volumes{phase=\"ready\"} 3.0",
            "symphony_reads_total{volume=\"a\\\"b\"} 7",
            "symphony_starts_total 1",
        ] {
            assert!(answer.contains(line), "{answer}");
        }
        assert!(ask(address, "GET /etc/passwd HTTP/1.1\r\nhost: a\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        shutdown.finish().await;
    }
}
