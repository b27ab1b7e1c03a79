//! Logs, to standard error (standard output belongs to `print-config`), and traces, to a collector. They belong to the
//! process, as `tracing` does.

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use antiphon_metrics::{Registry, TraceMetrics};
use opentelemetry::{Context, KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter,
        SpanProcessor,
    },
};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterFn, ParseError},
    fmt,
    prelude::*,
    reload,
    util::TryInitError,
};

use crate::config::{Config, LogFormat, Traces};

/// Spans that wait for the collector. Beyond it they are dropped.
const SPANS_MAX: usize = 8192;

/// How long a collector may take to answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last spans may take when the process ends.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// What goes on by itself, for as long as the process runs. Cloning it is cheap.
#[derive(Clone)]
pub struct Telemetry {
    log: LogFilter,
    registry: Registry,
    provider: Option<SdkTracerProvider>,
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
        // The configuration has checked the filter; what it could not check is better logged too much
        // than not at all.
        let filter = EnvFilter::try_new(&config.log.filter);
        let (filter, handle) =
            reload::Layer::new(filter.unwrap_or_else(|_| EnvFilter::new("info")));
        let lines: Box<dyn Layer<_> + Send + Sync> = match config.log.format {
            LogFormat::Text => {
                let colours = std::io::stderr().is_terminal();
                let lines = fmt::layer().with_writer(std::io::stderr);
                lines.with_ansi(colours).with_target(false).boxed()
            }
            LogFormat::Json => {
                let lines = json_subscriber::fmt::layer().with_writer(std::io::stderr);
                let mut lines = lines.flatten_event(true).with_opentelemetry_ids(true);
                lines.inner_layer_mut().add_static_field("node", config.node.id.clone().into());
                lines.boxed()
            }
        };
        let spans = provider.as_ref().map(|provider| {
            let ours = FilterFn::new(|metadata| {
                metadata.is_span() && metadata.target().starts_with("antiphon")
            });
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("antiphon"))
                .with_filter(ours)
        });
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
        Ok(Self { log: LogFilter(handle), registry, provider })
    }

    /// What is logged.
    pub fn log_filter(&self) -> LogFilter {
        self.log.clone()
    }

    /// The metrics of the process' traces.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Hands the collector what it has not got yet.
    pub fn finish(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(LAST_SPANS)
        {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}

/// What is logged, while the program runs.
#[derive(Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, tracing_subscriber::Registry>);

/// A filter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
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
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Puts another in its place.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        self.0.reload(EnvFilter::try_new(filter)?)?;
        Ok(())
    }
}

fn provider(
    config: &Config,
    metrics: Arc<TraceMetrics>,
) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    let Traces { endpoint: Some(endpoint), .. } = &config.traces else { return Ok(None) };
    let otlp = OtlpExporter::builder().with_http().with_endpoint(endpoint);
    let otlp = otlp.with_timeout(EXPORT_TIMEOUT).build()?;
    let exporter =
        Exporter { otlp, metrics: Arc::clone(&metrics), failing: AtomicBool::new(false) };
    // Whether an event is traced was decided where it came in.
    let batch = BatchConfigBuilder::default().with_max_queue_size(SPANS_MAX).build();
    let batch = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
    let resource = Resource::builder_empty().with_service_name("antiphon").with_attributes([
        KeyValue::new("service.instance.id", config.node.id.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ]);
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Counting { batch, metrics })
        .with_resource(resource.build());
    Ok(Some(provider.build()))
}

/// Counts spans on their way to where they wait.
#[derive(Debug)]
struct Counting {
    batch: BatchSpanProcessor,
    metrics: Arc<TraceMetrics>,
}

impl SpanProcessor for Counting {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batch.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.metrics.spans_total.inc();
        self.batch.on_end(span);
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

/// Counts what the collector takes, and says so when it begins or ceases to.
#[derive(Debug)]
struct Exporter {
    otlp: OtlpExporter,
    metrics: Arc<TraceMetrics>,
    failing: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
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
