//! What is counted, for Prometheus.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Which requests.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// Counters and histograms of one server.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
    images: Counter,
    flagged: Counter,
    batch_images: Histogram,
    batch_seconds: Histogram,
    queued: Gauge,
    attacks: Gauge,
    memory: Gauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("talion");
        // 0.5 ms to 16 s
        let seconds = Family::<RouteLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0005, 2.0, 16))
        });
        let metrics = Self {
            requests: Family::default(),
            images: Counter::default(),
            flagged: Counter::default(),
            batch_images: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            batch_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            queued: Gauge::default(),
            attacks: Gauge::default(),
            memory: Gauge::default(),
            registry: Registry::default(),
            seconds,
        };
        registry.register("requests", "Requests answered, by route and status", metrics.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "From a request's head to its answer's",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register("images", "Images classified", metrics.images.clone());
        registry.register("flagged_images", "Images called suspicious", metrics.flagged.clone());
        registry.register("batch_images", "Images of a batch", metrics.batch_images.clone());
        registry.register_with_unit(
            "batch_duration",
            "What the networks took for a batch",
            Unit::Seconds,
            metrics.batch_seconds.clone(),
        );
        registry.register("queued_images", "Images that wait for the networks", metrics.queued.clone());
        registry.register(
            "running_attacks",
            "Attacks that visitors of the page watch",
            metrics.attacks.clone(),
        );
        registry.register_with_unit(
            "resident_memory",
            "Memory of this process, where the system tells",
            Unit::Bytes,
            metrics.memory.clone(),
        );
        Self { registry, ..metrics }
    }

    /// A request was answered.
    pub fn request(&self, route: &str, status: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { route: route.to_owned(), status }).inc();
        self.seconds.get_or_create(&RouteLabels { route: route.to_owned() }).observe(took.as_secs_f64());
    }

    /// The networks answered a batch.
    pub fn batch(&self, images: usize, took: Duration) {
        self.images.inc_by(images as u64);
        self.batch_images.observe(images as f64);
        self.batch_seconds.observe(took.as_secs_f64());
    }

    /// An image was called suspicious.
    pub fn flagged(&self) {
        self.flagged.inc();
    }

    /// An attack began; it ends when the result is dropped.
    pub fn attack(&self) -> RunningAttack {
        self.attacks.inc();
        RunningAttack(self.attacks.clone())
    }

    /// Everything in the text format, with what is true at this moment.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn text(&self, queued: usize) -> Result<String, std::fmt::Error> {
        self.queued.set(queued as i64);
        if let Some(bytes) = resident_bytes() {
            self.memory.set(bytes);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Counts as a running attack while it lives.
pub struct RunningAttack(Gauge);

impl Drop for RunningAttack {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Memory of this process, on Linux.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told() {
        let metrics = Metrics::new();
        metrics.request("/v1/classify", 200, Duration::from_millis(3));
        metrics.request("/v1/classify", 429, Duration::from_millis(1));
        metrics.batch(5, Duration::from_millis(2));
        let running = metrics.attack();
        let text = metrics.text(7).unwrap();
        for line in [
            r#"talion_requests_total{route="/v1/classify",status="200"} 1"#,
            r#"talion_requests_total{route="/v1/classify",status="429"} 1"#,
            r#"talion_request_duration_seconds_count{route="/v1/classify"} 2"#,
            "talion_images_total 5",
            "talion_queued_images 7",
            "talion_running_attacks 1",
        ] {
            assert!(text.contains(line), "{line} is missing:\n{text}");
        }
        drop(running);
        assert!(metrics.text(0).unwrap().contains("talion_running_attacks 0"));
    }
}
