//! Logs, to standard error (standard output belongs to `print-config`), and traces, to a collector. They belong to the
//! process, as `tracing` does.

mod text;

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use antiphon_metrics::{LogMetrics, Registry, TraceMetrics, traces::SpanLoss};
use opentelemetry::{Context, KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData,
        SpanExporter, SpanProcessor,
    },
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterFn, LevelFilter, ParseError},
    fmt,
    prelude::*,
    reload,
    util::TryInitError,
};

use crate::config::{Config, LogFormat, Traces};

/// Lines that wait to be written, some 200 bytes each. Beyond it they are dropped, and counted.
const LINES_MAX: usize = 16_384;

/// Spans that wait for the collector. Beyond it they are dropped, and counted.
const SPANS_MAX: usize = 8192;

/// How long a collector may take to answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last spans may take when the process ends.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// What goes on by itself, for as long as the process runs. Cloning it is cheap.
#[derive(Clone)]
pub struct Telemetry {
    log: LogFilter,
    registry: Registry,
    provider: Option<SdkTracerProvider>,
    // Writes what waits when it is dropped.
    lines: Arc<Mutex<Option<WorkerGuard>>>,
}

/// Why telemetry cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The process has a subscriber already.
    #[error(transparent)]
    Init(#[from] TryInitError),
    /// Traces cannot be sent.
    #[error("cannot send traces")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Metrics are there already.
    #[error("cannot set up metrics")]
    Metrics(#[from] antiphon_metrics::Error),
}

impl Telemetry {
    /// Starts it, as configured.
    pub fn start(config: &Config) -> Result<Self, TelemetryError> {
        let registry = Registry::new();
        let metrics = Arc::new(TraceMetrics::register(&registry)?);
        let provider = provider(config, metrics)?;
        // The configuration has checked it; what it could not check is better logged too much than not at all.
        let filter = parse_filter(&config.log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
        let (filter, handle) = reload::Layer::new(filter);
        let writer = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX);
        let (stderr, written) = writer.thread_name("log").finish(std::io::stderr());
        let dropped = stderr.error_counter();
        let lines: Box<dyn Layer<_> + Send + Sync> = match config.log.format {
            LogFormat::Text => {
                let colours = std::io::stderr().is_terminal();
                let lines = fmt::layer().with_timer(text::Stamp::new(&config.node.id));
                lines.with_writer(stderr).with_ansi(colours).with_target(false).boxed()
            }
            LogFormat::Json => {
                let lines = json_subscriber::fmt::layer().with_writer(stderr);
                let mut lines = lines.flatten_event(true).with_opentelemetry_ids(true);
                lines.inner_layer_mut().add_static_field("node", config.node.id.clone().into());
                lines.boxed()
            }
        };
        let spans = provider.as_ref().map(|provider| {
            let ours = FilterFn::new(|metadata| {
                metadata.is_span() && metadata.target().starts_with("antiphon")
            });
            // All there are. Without it libraries took it that everything is wanted, and print what nobody reads.
            let ours = ours.with_max_level_hint(LevelFilter::INFO);
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("antiphon"))
                .with_filter(ours)
        });
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
        let metrics = Arc::new(LogMetrics::register(&registry)?);
        let log = LogFilter { filter: handle, dropped, metrics };
        Ok(Self { log, registry, provider, lines: Arc::new(Mutex::new(Some(written))) })
    }

    /// What is logged.
    pub fn log_filter(&self) -> LogFilter {
        self.log.clone()
    }

    /// The metrics of the process' traces.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Hands the collector what it has not got yet, and writes the last lines.
    pub fn finish(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(LAST_SPANS)
        {
            tracing::warn!(%error, "the last spans are lost");
        }
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// What is logged, while the program runs.
#[derive(Clone)]
pub struct LogFilter {
    filter: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
    dropped: ErrorCounter,
    metrics: Arc<LogMetrics>,
}

/// Reads a filter: a level, or directives.
pub(crate) fn parse_filter(text: &str) -> Result<EnvFilter, FilterError> {
    if text.trim().is_empty() {
        return Err(FilterError::Empty);
    }
    let filter = EnvFilter::builder().parse(text.trim())?;
    // It prints frames, with what clients send and the ids that they are trusted for.
    Ok(filter.add_directive("tungstenite=info".parse()?))
}

/// A filter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// There is nothing in it.
    #[error("want a level or directives, such as \"info,antiphon_gateway=debug\"")]
    Empty,
    /// It is not one.
    #[error("want a level or directives, such as \"info,antiphon_gateway=debug\": {0}")]
    Syntax(#[from] ParseError),
    /// Logging has ended.
    #[error(transparent)]
    Gone(#[from] reload::Error),
}

impl LogFilter {
    /// The filter in use.
    pub fn get(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Puts another in its place.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        let parsed = parse_filter(filter)?;
        // Before it: the new one may leave this out.
        tracing::info!(filter, "what is logged is changed");
        self.filter.reload(parsed)?;
        Ok(())
    }

    /// Brings the metrics up to date.
    pub(crate) fn count(&self) {
        let counted = &self.metrics.lines_dropped_total;
        let dropped = u64::try_from(self.dropped.dropped_lines()).unwrap_or(u64::MAX);
        counted.inc_by(dropped.saturating_sub(counted.get()));
    }
}

fn provider(
    config: &Config,
    metrics: Arc<TraceMetrics>,
) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    let Traces { endpoint: Some(endpoint), .. } = &config.traces else { return Ok(None) };
    let otlp = OtlpExporter::builder().with_http().with_endpoint(endpoint);
    let otlp = otlp.with_timeout(EXPORT_TIMEOUT).build()?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter = Exporter {
        otlp,
        metrics: Arc::clone(&metrics),
        waiting: Arc::clone(&waiting),
        failing: AtomicBool::new(false),
        losing: AtomicBool::new(false),
        lost: AtomicU64::new(0),
    };
    // Whether an event is traced was decided where it came in.
    let batch = BatchConfigBuilder::default().with_max_queue_size(SPANS_MAX).build();
    let batch = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
    let resource = Resource::builder_empty().with_service_name("antiphon").with_attributes([
        KeyValue::new("service.instance.id", config.node.id.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ]);
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Counting { batch, metrics, waiting })
        // Not what the environment says (OTEL_TRACES_SAMPLER), which would sample a second time.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
        .with_resource(resource.build());
    Ok(Some(provider.build()))
}

/// Counts spans on their way to where they wait. OpenTelemetry's queue drops what does not fit and tells nobody how
/// much: so nothing gets there that would not fit.
#[derive(Debug)]
struct Counting {
    batch: BatchSpanProcessor,
    metrics: Arc<TraceMetrics>,
    // Never less than are in the queue.
    waiting: Arc<AtomicUsize>,
}

impl SpanProcessor for Counting {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batch.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.metrics.spans_total.inc();
        if self.waiting.fetch_add(1, Ordering::Relaxed) < SPANS_MAX {
            self.batch.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.metrics.spans_lost_total.of(SpanLoss::QueueFull).inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batch.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batch.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batch.set_resource(resource);
    }
}

/// Counts what the collector takes, and says so when it begins or ceases to; and when it takes too little.
#[derive(Debug)]
struct Exporter {
    otlp: OtlpExporter,
    metrics: Arc<TraceMetrics>,
    waiting: Arc<AtomicUsize>,
    failing: AtomicBool,
    losing: AtomicBool,
    // What the queue had lost when it was last looked at.
    lost: AtomicU64,
}

impl Exporter {
    /// Here and not where a span ends, which is no place to log from: a subscriber is at work there.
    fn say_what_the_queue_lost(&self) {
        let lost = self.metrics.spans_lost_total.of(SpanLoss::QueueFull).get();
        let spans = lost - self.lost.swap(lost, Ordering::Relaxed);
        if spans == 0 {
            self.losing.store(false, Ordering::Relaxed);
        } else if !self.losing.swap(true, Ordering::Relaxed) {
            tracing::warn!(spans, "spans are lost: more come than the collector takes");
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        self.say_what_the_queue_lost();
        let result = self.otlp.export(batch).await;
        match &result {
            Ok(()) => {
                self.metrics.spans_exported_total.inc_by(spans as u64);
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the collector takes traces again");
                }
            }
            Err(error) => {
                self.metrics.export_failures_total.inc();
                self.metrics.spans_lost_total.of(SpanLoss::ExportFailed).inc_by(spans as u64);
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the collector takes no traces");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.otlp.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}
