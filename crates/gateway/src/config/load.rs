//! From four layers of text to one tree in which every value knows where it was set.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use config::{ConfigError, Map, Source, Value, ValueKind};
use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

use super::{
    Config, ConfigErrors,
    errors::{Mistake, origin},
    read::Reader,
    settings,
};

pub(super) type Table = Map<String, Value>;

/// The lowest layer, and the manual.
pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");

/// A variable whose name begins so is ours. Kubernetes injects `<SERVICE>_PORT` and the like, with
/// one underscore: those of a Service called `antiphon` are not.
const ENV_PREFIX: &str = "ANTIPHON__";

/// No real file comes near; `--config /dev/zero` ends here.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The one key under which every layer is merged. The config crate reads a top-level key as a path
/// (`a.b`, `a[9]`), which a key in somebody's file must not be.
const ROOT: &str = "settings";

/// Settings that are valid, and as they print.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    toml: String,
}

impl Loaded {
    /// The effective settings as a configuration file, with secrets as `<redacted>`. An empty
    /// `node.id` stays empty, so that nodes which share the output do not share a name.
    pub fn to_toml(&self) -> String {
        self.toml.clone()
    }
}

impl Config {
    /// Merges the embedded defaults, a file, the environment (see [`environment`]) and flags, each
    /// over the one before, and reads the result. A flag is a key such as `server.listen` and its
    /// text.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Loaded, ConfigErrors> {
        let file = match file {
            // What is in a file that cannot be read is unknown, so nothing else can be judged.
            Some(path) => Some(read_file(path).map_err(|mistake| ConfigErrors(vec![mistake]))?),
            None => None,
        };
        layered(file, env, overrides)
    }

    /// The embedded defaults.
    pub fn embedded() -> Self {
        layered(None, std::iter::empty(), &[])
            .expect("default.toml is part of the binary and a test loads it")
            .config
    }
}

/// The environment of this process, for [`Config::load`]. A name that is not Unicode cannot be
/// ours; in a value, what is not Unicode is replaced (`std::env::vars` would panic).
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    })
}

/// Merges the layers and reads the result; every mistake of both steps is in the answer.
fn layered(
    file: Option<Table>,
    env: impl Iterator<Item = (String, String)>,
    overrides: &[(String, String)],
) -> Result<Loaded, ConfigErrors> {
    let defaults = parse(DEFAULTS, &|_| "built-in default".to_owned())
        .map_err(|syntax| ConfigErrors(vec![syntax.mistake("default.toml")]))?;

    let mut layers = Layers { defaults: &defaults, mistakes: Vec::new(), upper: Vec::new() };
    if let Some(file) = file {
        layers.push(file);
    }
    // Sorted, so that the same environment gives the same errors in the same order.
    for (name, text) in env.collect::<BTreeMap<_, _>>() {
        layers.push_variable(&name, &text);
    }
    for (key, text) in overrides {
        layers.push_text(key, text, &format!("flag for {key}"));
    }
    let Layers { mistakes, upper, .. } = layers;

    let tree = merge(defaults, upper)
        .map_err(|error| ConfigErrors(vec![Mistake::new(ROOT, error.to_string(), None)]))?;
    let (config, toml) = Reader::new(mistakes).read(&tree, settings::config)?;
    Ok(Loaded { config, toml })
}

/// The layers over the defaults, lowest first, and what was wrong with them as such.
struct Layers<'a> {
    defaults: &'a Table,
    upper: Vec<Table>,
    mistakes: Vec<Mistake>,
}

impl Layers<'_> {
    fn push(&mut self, layer: Table) {
        let layer = same_shape(layer, self.defaults, "", &mut self.mistakes);
        self.upper.push(layer);
    }

    fn push_variable(&mut self, name: &str, text: &str) {
        let Some(path) = name.strip_prefix(ENV_PREFIX) else {
            return;
        };
        let origin = format!("environment variable {name}");
        let key = path.replacen("__", ".", 1).to_ascii_lowercase();
        let right = if path.chars().any(|c| c.is_ascii_lowercase()) {
            format!("write it in capitals: {}", name.to_ascii_uppercase())
        } else if let Some((section, rest)) = key.split_once('_')
            && !key.contains('.')
            && let Some(Value { kind: ValueKind::Table(_), .. }) = self.defaults.get(section)
        {
            let meant = format!("{section}__{rest}").to_ascii_uppercase();
            format!("write two underscores between levels: {ENV_PREFIX}{meant}")
        } else {
            return self.push_text(&key, text, &origin);
        };
        self.mistakes.push(Mistake::new(key, right, Some(origin)));
    }

    /// A value from where there is only text: the default of its key says what type is meant.
    fn push_text(&mut self, key: &str, text: &str, origin: &str) {
        let (section, name) = match key.split_once('.') {
            Some((section, name)) => (Some(section), name),
            None => (None, key),
        };
        if section.unwrap_or(name) == "event" {
            let right = "events can only be set in a file, as [[event]]";
            self.mistakes.push(Mistake::new("event", right, Some(origin.to_owned())));
            return;
        }
        let siblings = match section.map(|section| self.defaults.get(section)) {
            None => Some(self.defaults),
            Some(Some(Value { kind: ValueKind::Table(table), .. })) => Some(table),
            Some(_) => None,
        };
        let default = siblings.and_then(|table| table.get(name)).map(|value| &value.kind);
        let value = typed(text, default, &origin.to_owned());
        let mut layer = Table::from([(name.to_owned(), value)]);
        if let Some(section) = section {
            layer = Table::from([(section.to_owned(), Value::new(None, layer))]);
        }
        self.push(layer);
    }
}

/// Text as the type of the default; what does not fit stays text, for the reader to refuse.
fn typed(text: &str, default: Option<&ValueKind>, origin: &String) -> Value {
    let trimmed = text.trim();
    let kind: ValueKind = match default {
        Some(ValueKind::Array(_)) => {
            let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| Value::new(Some(origin), item)).collect::<Vec<_>>().into()
        }
        Some(ValueKind::Boolean(_)) => match trimmed {
            "true" => true.into(),
            "false" => false.into(),
            _ => text.into(),
        },
        Some(ValueKind::I64(_)) => match trimmed.parse::<i64>() {
            Ok(number) => number.into(),
            Err(_) => text.into(),
        },
        Some(ValueKind::Float(_)) => match trimmed.parse::<f64>() {
            Ok(number) => number.into(),
            Err(_) => text.into(),
        },
        _ => text.into(),
    };
    Value::new(Some(origin), kind)
}

/// Takes out of a layer, and reports, what is a section where the defaults have a value or the
/// other way round: merged, it would wipe out every default below.
fn same_shape(layer: Table, defaults: &Table, prefix: &str, mistakes: &mut Vec<Mistake>) -> Table {
    let mut kept = Table::new();
    for (key, value) in layer.into_iter().collect::<BTreeMap<_, _>>() {
        let at = format!("{prefix}{key}");
        let right = match (&value.kind, defaults.get(&key).map(|value| &value.kind)) {
            (ValueKind::Table(table), Some(ValueKind::Table(below))) => {
                let table = same_shape(table.clone(), below, &format!("{at}."), mistakes);
                kept.insert(key, Value::new(None, table));
                continue;
            }
            (ValueKind::Table(_), Some(_)) if at == "event" => {
                "write [[event]], with two brackets, before each event".to_owned()
            }
            (ValueKind::Table(_), Some(_)) => "is a setting, not a section".to_owned(),
            (_, Some(ValueKind::Table(_))) => {
                format!("is a section: set the keys below it, after a line [{at}]")
            }
            _ => {
                kept.insert(key, value);
                continue;
            }
        };
        mistakes.push(Mistake::new(at, right, origin(&value)));
    }
    kept
}

/// One layer, for the config crate to merge.
#[derive(Debug, Clone)]
struct Layer(Table);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Table, ConfigError> {
        Ok(Table::from([(ROOT.to_owned(), Value::new(None, self.0.clone()))]))
    }
}

/// Sections merge key by key; any other value, lists too, replaces the one below as a whole.
fn merge(defaults: Table, upper: Vec<Table>) -> Result<Table, ConfigError> {
    let mut layers = config::Config::builder().add_source(Layer(defaults));
    for layer in upper {
        layers = layers.add_source(Layer(layer));
    }
    layers.build()?.get_table(ROOT)
}

fn read_file(path: &Path) -> Result<Table, Mistake> {
    let name = path.display().to_string();
    let unreadable = |right: String| Mistake::new(&name, right, None);
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let message = "is not UTF-8 here".to_owned();
        Syntax::at(&String::from_utf8_lossy(valid), valid.len(), message).mistake(&name)
    })?;
    parse(&text, &|line| format!("{name}:{line}")).map_err(|syntax| syntax.mistake(&name))
}

/// The place where a file stops being TOML.
struct Syntax {
    line: usize,
    column: usize,
    message: String,
}

impl Syntax {
    fn at(text: &str, offset: usize, message: String) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }

    fn mistake(self, file: &str) -> Mistake {
        Mistake::new(format!("{file}:{}:{}", self.line, self.column), self.message, None)
    }
}

/// TOML as a tree in which every value knows its line.
fn parse(text: &str, origin: &dyn Fn(usize) -> String) -> Result<Table, Syntax> {
    // `DeTable::parse` tells one error, not always the first in the text: the cause of the others.
    let (table, errors) = DeTable::parse_recoverable(text);
    let offset = |error: &Error| error.span().map_or(0, |span| span.start);
    if let Some(first) = errors.iter().min_by_key(|error| offset(error)) {
        // Not its Display: that quotes the line, which may hold a secret.
        return Err(Syntax::at(text, offset(first), first.message().to_owned()));
    }
    let newlines = text.match_indices('\n').map(|(at, _)| at).collect();
    Ok(Lines { newlines, origin }.table(table.get_ref()))
}

struct Lines<'a> {
    newlines: Vec<usize>,
    origin: &'a dyn Fn(usize) -> String,
}

impl Lines<'_> {
    fn table(&self, table: &DeTable<'_>) -> Table {
        let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            (String::from(Clone::clone(key.get_ref())), self.value(value))
        };
        table.iter().map(entry).collect()
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Value {
        let line = self.newlines.partition_point(|newline| *newline < value.span().start) + 1;
        let kind: ValueKind = match value.get_ref() {
            DeValue::String(text) => text.as_ref().into(),
            DeValue::Integer(digits) => {
                match i64::from_str_radix(digits.as_str(), digits.radix()) {
                    Ok(number) => number.into(),
                    Err(_) => digits.to_string().into(),
                }
            }
            DeValue::Float(digits) => match digits.as_str().parse::<f64>() {
                Ok(number) => number.into(),
                Err(_) => digits.to_string().into(),
            },
            DeValue::Boolean(yes) => (*yes).into(),
            DeValue::Datetime(time) => time.to_string().into(),
            DeValue::Array(items) => {
                items.iter().map(|item| self.value(item)).collect::<Vec<_>>().into()
            }
            DeValue::Table(table) => self.table(table).into(),
        };
        Value::new(Some(&(self.origin)(line)), kind)
    }
}
