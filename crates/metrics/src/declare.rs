//! How a metric is declared: the macros, and the families that resolve label children at the start.

use std::{marker::PhantomData, time::Duration};

use prometheus::{
    Counter, Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

/// One or more labels whose values are all known when the program is compiled.
pub trait Label: Copy + 'static {
    /// The label names, in the order of [`Label::values`].
    const NAMES: &'static [&'static str];

    /// Every combination there is; the position of each is its [`Label::index`].
    fn all() -> Vec<Self>;

    /// Where this one stands in [`Label::all`].
    fn index(self) -> usize;

    /// The label values of this one.
    fn values(self) -> Vec<&'static str>;

    /// The values of each label, and what they mean.
    fn describe() -> Vec<LabelDescription>;
}

/// A label's name; its values, and what they mean.
pub type LabelDescription = (&'static str, Vec<(&'static str, &'static str)>);

/// No label.
impl Label for () {
    const NAMES: &'static [&'static str] = &[];

    fn all() -> Vec<Self> {
        vec![()]
    }

    fn index(self) -> usize {
        0
    }

    fn values(self) -> Vec<&'static str> {
        Vec::new()
    }

    fn describe() -> Vec<LabelDescription> {
        Vec::new()
    }
}

impl<A: Label, B: Label> Label for (A, B) {
    // Two names at most are needed so far; a const cannot concatenate slices of other consts.
    const NAMES: &'static [&'static str] = &[A::NAMES[0], B::NAMES[0]];

    fn all() -> Vec<Self> {
        let pairs = |a| B::all().into_iter().map(move |b| (a, b));
        A::all().into_iter().flat_map(pairs).collect()
    }

    fn index(self) -> usize {
        self.0.index() * B::all().len() + self.1.index()
    }

    fn values(self) -> Vec<&'static str> {
        [self.0.values(), self.1.values()].concat()
    }

    fn describe() -> Vec<LabelDescription> {
        [A::describe(), B::describe()].concat()
    }
}

/// Declares an enum of label values.
macro_rules! label {
    ($(#[$meta:meta])* $label:literal $Name:ident { $($(#[doc = $doc:literal])+ $Variant:ident = $value:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Name { $($(#[doc = $doc])+ $Variant,)+ }

        impl $Name {
            /// The value as it stands in the label, and wherever else it is shown.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$Variant => $value,)+ }
            }
        }

        impl $crate::declare::Label for $Name {
            const NAMES: &'static [&'static str] = &[$label];

            fn all() -> Vec<Self> {
                vec![$(Self::$Variant,)+]
            }

            fn index(self) -> usize {
                self as usize
            }

            fn values(self) -> Vec<&'static str> {
                vec![self.as_str()]
            }

            fn describe() -> Vec<$crate::declare::LabelDescription> {
                vec![($label, vec![$(($value, concat!($($doc),+).trim()),)+])]
            }
        }
    };
}
pub(crate) use label;

/// Declares the metrics of a subsystem: a field's name after the prefix is the metric's name, its
/// doc comment the help text.
macro_rules! subsystem {
    ($(#[$meta:meta])* $prefix:literal $Name:ident { $($(#[doc = $help:literal])+ $field:ident: $Type:ty,)+ }) => {
        $(#[$meta])*
        pub struct $Name { $($(#[doc = $help])+ pub $field: $Type,)+ }

        impl std::fmt::Debug for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($Name)).finish_non_exhaustive()
            }
        }

        impl $Name {
            /// Registers every metric of the subsystem; fails when one is there already.
            pub fn register(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
                Ok(Self {$(
                    $field: $crate::declare::Metric::register(
                        registry,
                        concat!($prefix, stringify!($field)),
                        concat!($($help),+).trim(),
                    )?,
                )+})
            }

            /// What its metrics are.
            pub fn describe() -> Vec<$crate::Description> {
                vec![$($crate::Description {
                    name: concat!($prefix, stringify!($field)),
                    help: concat!($($help),+).trim(),
                    kind: <$Type as $crate::declare::Metric>::KIND,
                    labels: <$Type as $crate::declare::Metric>::labels(),
                },)+]
            }
        }
    };
}
pub(crate) use subsystem;

/// What a metric is.
#[derive(Debug)]
pub struct Description {
    /// As it is scraped.
    pub name: &'static str,
    /// Its help text.
    pub help: &'static str,
    /// Its type, in Prometheus' terms.
    pub kind: &'static str,
    /// Its labels; one without values gets them from the configuration.
    pub labels: Vec<LabelDescription>,
}

/// What the `subsystem` macro can make a field of.
pub(crate) trait Metric: Sized {
    const KIND: &'static str;

    fn labels() -> Vec<LabelDescription> {
        Vec::new()
    }

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error>;
}

impl Metric for IntCounter {
    const KIND: &'static str = "counter";

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let counter = IntCounter::new(name, help)?;
        registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }
}

impl Metric for Counter {
    const KIND: &'static str = "counter";

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let counter = Counter::new(name, help)?;
        registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }
}

/// The bucket bounds of a histogram, with the reason for them in the implementor's documentation.
pub trait Buckets: 'static {
    /// The upper bounds, in seconds, in rising order.
    const BOUNDS: &'static [f64];
}

/// A histogram of durations.
pub struct Seconds<B> {
    histogram: Histogram,
    buckets: PhantomData<fn() -> B>,
}

impl<B: Buckets> Seconds<B> {
    /// Takes note of one duration.
    pub fn observe(&self, duration: Duration) {
        self.histogram.observe(duration.as_secs_f64());
    }

    /// How many durations were noted.
    pub fn count(&self) -> u64 {
        self.histogram.get_sample_count()
    }
}

impl<B: Buckets> Metric for Seconds<B> {
    const KIND: &'static str = "histogram";

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let options = HistogramOpts::new(name, help).buckets(B::BOUNDS.to_vec());
        let histogram = Histogram::with_opts(options)?;
        registry.register(Box::new(histogram.clone()))?;
        Ok(Self { histogram, buckets: PhantomData })
    }
}

impl Metric for IntGauge {
    const KIND: &'static str = "gauge";

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let gauge = IntGauge::new(name, help)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }
}

/// A metric for each value of a label.
pub struct Family<L, M> {
    children: Vec<M>,
    label: PhantomData<L>,
}

/// A counter for each value of a label.
pub type Counters<L> = Family<L, IntCounter>;

/// A gauge for each value of a label.
pub type Gauges<L> = Family<L, IntGauge>;

impl<L: Label, M> Family<L, M> {
    fn new(child: impl FnMut(L) -> Result<M, Error>) -> Result<Self, Error> {
        let children = L::all().into_iter().map(child).collect::<Result<_, _>>()?;
        Ok(Self { children, label: PhantomData })
    }

    /// The metric of one value.
    pub fn of(&self, label: L) -> &M {
        &self.children[label.index()]
    }
}

impl<L: Label> Metric for Counters<L> {
    const KIND: &'static str = "counter";

    fn labels() -> Vec<LabelDescription> {
        L::describe()
    }

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let family = IntCounterVec::new(Opts::new(name, help), L::NAMES)?;
        registry.register(Box::new(family.clone()))?;
        Family::new(|label: L| family.get_metric_with_label_values(&label.values()))
    }
}

impl<L: Label> Metric for Gauges<L> {
    const KIND: &'static str = "gauge";

    fn labels() -> Vec<LabelDescription> {
        L::describe()
    }

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let family = IntGaugeVec::new(Opts::new(name, help), L::NAMES)?;
        registry.register(Box::new(family.clone()))?;
        Family::new(|label: L| family.get_metric_with_label_values(&label.values()))
    }
}

/// Labels whose values come from the configuration.
pub trait Configured: 'static {
    /// Their names.
    const NAMES: &'static [&'static str];
}

/// A namespace.
pub struct OfNamespace;

impl Configured for OfNamespace {
    const NAMES: &'static [&'static str] = &["namespace"];
}

/// An event rule of a namespace.
pub struct OfRule;

impl Configured for OfRule {
    const NAMES: &'static [&'static str] = &["namespace", "event"];
}

/// Counters by what the configuration names, and by a label.
pub struct ConfiguredCounters<C, L> {
    family: IntCounterVec,
    labels: PhantomData<(C, L)>,
}

/// Counters by namespace, and by a label.
pub type NamespaceCounters<L> = ConfiguredCounters<OfNamespace, L>;

/// Counters by namespace and event rule, and by a label.
pub type EventFamily<L> = ConfiguredCounters<OfRule, L>;

impl<L: Label> NamespaceCounters<L> {
    /// The counters of one namespace; ask once, and keep them.
    pub fn of(&self, namespace: &str) -> Result<Counters<L>, Error> {
        self.resolve(&[namespace])
    }
}

impl<L: Label> EventFamily<L> {
    /// The counters of one rule; call it once for each when the rules are read.
    pub fn rule(&self, namespace: &str, event: &str) -> Result<Counters<L>, Error> {
        self.resolve(&[namespace, event])
    }
}

impl<C: Configured, L: Label> ConfiguredCounters<C, L> {
    fn resolve(&self, configured: &[&str]) -> Result<Counters<L>, Error> {
        Family::new(|label: L| {
            let values = [configured, &label.values()].concat();
            self.family.get_metric_with_label_values(&values)
        })
    }
}

impl<C: Configured, L: Label> Metric for ConfiguredCounters<C, L> {
    const KIND: &'static str = "counter";

    fn labels() -> Vec<LabelDescription> {
        C::NAMES.iter().map(|name| (*name, Vec::new())).chain(L::describe()).collect()
    }

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let labels = [C::NAMES, L::NAMES].concat();
        let family = IntCounterVec::new(Opts::new(name, help), &labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(Self { family, labels: PhantomData })
    }
}

/// A gauge for each namespace, whose names come from the configuration.
pub struct NamespaceGauges(IntGaugeVec);

impl NamespaceGauges {
    /// The gauge of one namespace; ask once, and keep it.
    pub fn of(&self, namespace: &str) -> Result<IntGauge, Error> {
        self.0.get_metric_with_label_values(&[namespace])
    }
}

impl Metric for NamespaceGauges {
    const KIND: &'static str = "gauge";

    fn labels() -> Vec<LabelDescription> {
        vec![("namespace", Vec::new())]
    }

    fn register(registry: &Registry, name: &str, help: &str) -> Result<Self, Error> {
        let family = IntGaugeVec::new(Opts::new(name, help), &["namespace"])?;
        registry.register(Box::new(family.clone()))?;
        Ok(Self(family))
    }
}
