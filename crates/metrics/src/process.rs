//! The process, and which program it is.

use prometheus::{Error, IntGaugeVec, Opts, Registry, process_collector::ProcessCollector};

/// Registers the usual `process_` metrics (CPU, memory, descriptors, threads, start) and
/// `antiphon_build_info`, which is 1 and has the version as its label.
pub fn register_process(registry: &Registry, version: &str) -> Result<(), Error> {
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let help = "1, with the version of the program as label.";
    let build = IntGaugeVec::new(Opts::new("antiphon_build_info", help), &["version"])?;
    build.get_metric_with_label_values(&[version])?.set(1);
    registry.register(Box::new(build))
}
