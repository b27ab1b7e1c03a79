//! Reads one key at a time, and remembers: what was wrong, which keys were asked for (the others
//! are unknown), and what was read, as TOML.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use config::{Value, ValueKind};

use super::{
    ConfigErrors, Secret,
    errors::{Mistake, nearest, origin, show, to_toml},
    load::Table,
};

/// What is printed in place of a secret. Nobody may end up with a secret that stands in the manual.
const REDACTED: &str = "<redacted>";

/// The value is missing or wrong, and that has been noted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noted;

/// What a key holds.
pub(super) type Read<T> = Result<T, Noted>;

/// What is made of a value, or else what would be right.
pub(super) type Parsed<T> = Result<T, String>;

/// Reads a whole tree.
pub(super) struct Reader {
    mistakes: Vec<Mistake>,
    toml: String,
}

impl Reader {
    /// Goes on from the mistakes already found.
    pub(super) fn new(mistakes: Vec<Mistake>) -> Self {
        Self { mistakes, toml: String::new() }
    }

    /// What `read` makes of the tree, and all of it as TOML; or every mistake.
    pub(super) fn read<T>(
        mut self,
        tree: &Table,
        read: impl FnOnce(&mut Section<'_>) -> Read<T>,
    ) -> Result<(T, String), ConfigErrors> {
        let value = Section::read(&mut self, tree, String::new(), None, read);
        match value {
            Ok(value) if self.mistakes.is_empty() => Ok((value, self.toml)),
            _ => Err(ConfigErrors(self.mistakes)),
        }
    }
}

/// One table: the root, a `[section]`, an `[[entry]]`.
pub(super) struct Section<'a> {
    reader: &'a mut Reader,
    table: &'a Table,
    /// What goes before a key in errors.
    prefix: String,
    /// Where an entry is, for what is missing in it.
    origin: Option<String>,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    fn read<T>(
        reader: &'a mut Reader,
        table: &'a Table,
        prefix: String,
        origin: Option<String>,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        let mut section = Self { reader, table, prefix, origin, asked: Vec::new() };
        let value = read(&mut section);
        section.refuse_unknown();
        value
    }

    /// The section `[name]`.
    pub(super) fn section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> Read<T>,
    ) -> Read<T> {
        let Some(Value { kind: ValueKind::Table(table), .. }) = self.ask(name) else {
            return Err(self.note(name, "the section is missing".to_owned(), None));
        };
        self.reader.toml.push_str(&format!("\n[{name}]\n"));
        Section::read(self.reader, table, format!("{}{name}.", self.prefix), None, read)
    }

    /// The entries `[[name]]`, each called by its number and its `name` in errors.
    pub(super) fn entries<T>(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(&mut Section<'_>) -> Read<T>,
    ) -> Read<Vec<T>> {
        let value = self.ask(name);
        let Some(Value { kind: ValueKind::Array(items), .. }) = value else {
            return Err(self.note(name, format!("want entries [[{name}]]"), value));
        };
        // All are read before any is given up: a mistake in one must not hide those of the next.
        let entries: Vec<Read<T>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let ValueKind::Table(table) = &item.kind else {
                    let right = format!("want entries [[{name}]]");
                    return Err(self.note(&format!("{name}[{index}]"), right, Some(item)));
                };
                let prefix = match table.get("name").map(|value| &value.kind) {
                    Some(ValueKind::String(called)) => format!("{name}[{index}] {called:?}: "),
                    _ => format!("{name}[{index}]: "),
                };
                self.reader.toml.push_str(&format!("\n[[{name}]]\n"));
                Section::read(self.reader, table, prefix, origin(item), &mut read)
            })
            .collect();
        if entries.is_empty() {
            // Without this line the defaults would come back when the output is loaded.
            self.reader.toml.insert_str(0, &format!("{name} = []\n"));
        }
        entries.into_iter().collect()
    }

    /// A key that must be there.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Parsed<T>,
    ) -> Read<T> {
        match self.optional(key, parse)? {
            Some(value) => Ok(value),
            None => {
                let at = format!("{}{key}", self.prefix);
                self.reader.mistakes.push(Mistake::new(at, "is missing", self.origin.clone()));
                Err(Noted)
            }
        }
    }

    /// A key that may be left out.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Parsed<T>,
    ) -> Read<Option<T>> {
        let Some(value) = self.ask(key) else {
            return Ok(None);
        };
        self.print(key, &to_toml(value));
        parse(value).map(Some).map_err(|right| self.note(key, right, Some(value)))
    }

    /// A list; every wrong item is reported.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Value) -> Parsed<T>,
    ) -> Read<Vec<T>> {
        let value = self.ask(key);
        let Some(Value { kind: ValueKind::Array(items), .. }) = value else {
            return Err(self.note(key, "want a list: [\"…\", \"…\"]".to_owned(), value));
        };
        self.print(key, &toml::Value::Array(items.iter().map(to_toml).collect()));
        let parsed: Vec<Read<T>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let at = format!("{key}[{index}]");
                parse(item).map_err(|right| self.note(&at, right, Some(item)))
            })
            .collect();
        parsed.into_iter().collect()
    }

    /// A secret that may be empty. It is never shown.
    pub(super) fn secret(&mut self, key: &'static str) -> Read<Option<Secret>> {
        let value = self.ask(key);
        let text = match value.map(|value| &value.kind) {
            Some(ValueKind::String(text)) if text.chars().all(|c| c.is_ascii_graphic()) => text,
            _ => {
                let right = "want a text of visible ASCII characters, without spaces or line ends";
                return Err(self.note_unshown(key, right.to_owned(), value));
            }
        };
        if text == REDACTED {
            let right = "this stands where print-config hid the secret: put the secret itself";
            return Err(self.note_unshown(key, right.to_owned(), value));
        }
        let shown = if text.is_empty() { "" } else { REDACTED };
        self.print(key, &toml::Value::String(shown.to_owned()));
        Ok((!text.is_empty()).then(|| Secret(text.clone())))
    }

    /// Refuses a value that is well-formed but does not fit the others.
    pub(super) fn refuse(&mut self, key: &str, right: String) -> Noted {
        self.note(key, right, self.table.get(key))
    }

    /// The same for a secret.
    pub(super) fn refuse_unshown(&mut self, key: &str, right: String) -> Noted {
        self.note_unshown(key, right, self.table.get(key))
    }

    /// Whether the key is set.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn ask(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.table.get(key)
    }

    fn note(&mut self, at: &str, right: String, value: Option<&Value>) -> Noted {
        let at = format!("{}{at}", self.prefix);
        let (got, origin) = (value.map(show), value.and_then(origin));
        self.reader.mistakes.push(Mistake { at, right, got, origin });
        Noted
    }

    fn note_unshown(&mut self, at: &str, right: String, value: Option<&Value>) -> Noted {
        let at = format!("{}{at}", self.prefix);
        self.reader.mistakes.push(Mistake::new(at, right, value.and_then(origin)));
        Noted
    }

    fn print(&mut self, key: &str, value: &toml::Value) {
        self.reader.toml.push_str(&format!("{key} = {value}\n"));
    }

    fn refuse_unknown(&mut self) {
        let mut unknown: Vec<_> =
            self.table.iter().filter(|(key, _)| !self.asked.contains(&key.as_str())).collect();
        unknown.sort_by_key(|(key, _)| *key);
        for (key, value) in unknown {
            let right = if key == "namespaces" {
                "belongs at the top of the file, before the first [section]".to_owned()
            } else if let Some(meant) = nearest(key, &self.asked) {
                format!("unknown key; did you mean {meant:?}?")
            } else {
                format!("unknown key; known here: {}", self.asked.join(", "))
            };
            // There may be a secret under a misspelt key.
            self.note_unshown(key, right, Some(value));
        }
    }
}

/// Any text.
pub(super) fn text(value: &Value) -> Parsed<String> {
    match &value.kind {
        ValueKind::String(text) => Ok(text.clone()),
        _ => Err("want a text in quotes".to_owned()),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &Value) -> Parsed<bool> {
    match value.kind {
        ValueKind::Boolean(yes) => Ok(yes),
        _ => Err("want true or false".to_owned()),
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(words: &[(&str, T)]) -> impl Fn(&Value) -> Parsed<T> {
    |value| {
        let chosen = match &value.kind {
            ValueKind::String(text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        chosen.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let quoted: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            format!("want {}", quoted.join(" or "))
        })
    }
}

/// A whole number within bounds.
pub(super) fn whole<T: TryFrom<i64>>(bounds: RangeInclusive<i64>) -> impl Fn(&Value) -> Parsed<T> {
    move |value| {
        let number = match value.kind {
            ValueKind::I64(number) if bounds.contains(&number) => T::try_from(number).ok(),
            _ => None,
        };
        number.ok_or_else(|| {
            format!("want a whole number from {} to {}", bounds.start(), bounds.end())
        })
    }
}

/// A part of all: from 0 to 1.
pub(super) fn share(value: &Value) -> Parsed<f64> {
    let share = match value.kind {
        ValueKind::Float(number) => Some(number),
        ValueKind::I64(number @ 0..=1) => Some(number as f64),
        _ => None,
    };
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "want a number from 0 to 1".to_owned())
}

/// A number of bytes within bounds: `65536` or `"64KiB"`.
pub(super) fn size(bounds: RangeInclusive<usize>) -> impl Fn(&Value) -> Parsed<usize> {
    move |value| {
        let bytes = match &value.kind {
            ValueKind::I64(number) => usize::try_from(*number).ok(),
            ValueKind::String(text) => parse_size(text),
            _ => None,
        };
        bytes.filter(|bytes| bounds.contains(bytes)).ok_or_else(|| {
            let (min, max) = (bounds.start(), bounds.end());
            format!("want a number of bytes from {min} to {max}, such as 65536 or \"64KiB\"")
        })
    }
}

fn parse_size(text: &str) -> Option<usize> {
    const UNITS: [(&str, usize); 7] = [
        ("b", 1),
        ("kb", 1000),
        ("mb", 1000 * 1000),
        ("gb", 1000 * 1000 * 1000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
    ];
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(digits_end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<usize>().ok()?.checked_mul(*bytes)
}

/// A duration within bounds: `"10s"`.
pub(super) fn duration(bounds: RangeInclusive<Duration>) -> impl Fn(&Value) -> Parsed<Duration> {
    move |value| {
        let is_bare = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let bare = match &value.kind {
            ValueKind::I64(number) => Some(number.unsigned_abs().to_string()),
            ValueKind::Float(number) => Some(number.abs().to_string()),
            ValueKind::String(text) if !text.is_empty() && is_bare(text) => Some(text.clone()),
            _ => None,
        };
        if let Some(number) = bare {
            return Err(format!("want a duration with its unit, such as \"{number}s\""));
        }
        let duration = match &value.kind {
            ValueKind::String(text) => humantime::parse_duration(text.trim()).ok(),
            _ => None,
        };
        match duration {
            Some(duration) if bounds.contains(&duration) => Ok(duration),
            Some(_) => Err(format!(
                "want a duration from {} to {}",
                humantime::format_duration(*bounds.start()),
                humantime::format_duration(*bounds.end()),
            )),
            None => Err("want a duration, such as \"10s\", \"500ms\" or \"1m 30s\"".to_owned()),
        }
    }
}

/// An address to listen on.
pub(super) fn address(value: &Value) -> Parsed<SocketAddr> {
    let text = match &value.kind {
        ValueKind::String(text) => text.trim(),
        ValueKind::I64(port) => return Err(format!("want the address too: \"0.0.0.0:{port}\"")),
        _ => "",
    };
    text.parse().map_err(|_| match text.rsplit_once(':') {
        Some(("", port)) => format!("want the address too: \"0.0.0.0:{port}\""),
        Some(("localhost", port)) => {
            format!("want an IP address, not a name: \"127.0.0.1:{port}\"")
        }
        _ => match text.parse() {
            Ok(std::net::IpAddr::V4(ip)) => format!("want the port too: \"{ip}:5000\""),
            Ok(std::net::IpAddr::V6(ip)) => format!("want brackets and the port: \"[{ip}]:5000\""),
            Err(_) => "want an IP address and a port, such as \"0.0.0.0:5000\"".to_owned(),
        },
    })
}
