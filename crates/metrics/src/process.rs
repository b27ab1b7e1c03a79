//! The process, and which program it is.

use prometheus::{Error, IntGaugeVec, Opts, Registry, process_collector::ProcessCollector};

/// Registers the usual `process_` metrics (CPU, memory, descriptors, threads, start) and
/// `antiphon_build_info`, which is 1 and has the version, and the revision of the sources, as its labels.
pub fn register_process(registry: &Registry, version: &str, revision: &str) -> Result<(), Error> {
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let help = "1, with the version of the program and the revision of its sources as labels.";
    let build = IntGaugeVec::new(Opts::new("antiphon_build_info", help), &["version", "revision"])?;
    build.get_metric_with_label_values(&[version, revision])?.set(1);
    registry.register(Box::new(build))
}
