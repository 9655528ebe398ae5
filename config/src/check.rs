//! Walks a tree along the schema: every error is collected, and what is right becomes a `serde_yaml::Value` with defaults
//! filled in, for serde to read.

use serde_yaml::{Mapping, Value};

use crate::{
    error::Problem,
    load::Problems,
    nearest::{did_you_mean, nearest},
    schema::{Key, Kind, Need, Object, State, Variant, Variants, Word, job},
    tree::{Data, Entry, Node, Place, UNRESOLVED, below, item, shown},
};

/// Where a value stands: its path, and the key that leads to it.
struct Here {
    path: String,
    key: Place,
}

impl Here {
    fn below(&self, entry: &Entry) -> Self {
        Self { path: below(&self.path, &entry.key), key: entry.place }
    }
    fn item(&self, index: usize, node: &Node) -> Self {
        Self { path: item(&self.path, index), key: node.place }
    }
}

/// Checks a whole file. The value means something only where no problem was added.
pub(crate) fn check(root: &Node, object: &'static Object, problems: &mut Problems) -> Value {
    let here = Here { path: String::new(), key: root.place };
    Checker { problems }.value(root, &Kind::Object(object), &here).unwrap_or(Value::Null)
}

struct Checker<'a> {
    problems: &'a mut Problems,
}

type Checked = Option<Value>;

impl Checker<'_> {
    fn wrong(&mut self, place: Place, here: &Here, problem: Problem) -> Checked {
        self.problems.add(place.at(&here.path), problem);
        None
    }

    fn value(&mut self, node: &Node, kind: &Kind, here: &Here) -> Checked {
        if node.text() == Some(UNRESOLVED) {
            return None;
        }
        match (kind, &node.data) {
            (Kind::Scalar(scalar), Data::Scalar(text)) => match scalar.check(text) {
                Ok(value) => Some(value),
                Err(problem) => self.wrong(node.place, here, problem),
            },
            (Kind::Words(words), Data::Scalar(_)) => self.word(node, words, here),
            (Kind::WordOr(words, _), Data::Scalar(_)) => self.word(node, words, here),
            (Kind::WordOr(_, object) | Kind::Object(object), Data::Map(_)) => {
                self.object(node, object.noun, &[object.keys], object.exactly_one, here)
            }
            (Kind::OneOrMore { of, .. }, Data::Scalar(_)) => {
                self.value(node, of, here).map(|one| Value::Sequence(vec![one]))
            }
            (Kind::List { of, min } | Kind::OneOrMore { of, min }, Data::List(items)) => {
                self.list(node, items, of, *min, here)
            }
            (Kind::Map { key, value, noun }, Data::Map(entries)) => self.map(node, entries, (*key, value, noun), here),
            (Kind::Variants(variants), Data::Map(_)) => self.variants(node, variants, here),
            (Kind::Variants(variants), Data::Scalar(text)) if variants.short => {
                let found = self.variant(node, &text.text, text.substituted, variants, here)?;
                self.with_type(found, variants, Mapping::new())
            }
            (Kind::Step, Data::Map(entries)) => self.step(node, entries, here),
            _ => {
                let problem = Problem::new(format!("expected {}, found {}", wanted(kind), node.shown()));
                self.wrong(node.place, here, problem.maybe(shape_help(kind, node)))
            }
        }
    }

    fn word(&mut self, node: &Node, words: &[Word], here: &Here) -> Checked {
        let text = node.text().unwrap_or_default();
        let found = words.iter().find(|word| word.name == text);
        match found.map(|word| word.state) {
            Some(State::Later) => self.wrong(node.place, here, not_yet(text)),
            Some(_) => Some(Value::String(text.to_owned())),
            None => {
                let usable = || words.iter().filter(|word| word.state.usable()).map(|word| word.name);
                let all = one_of(usable());
                let problem = if node.shown() == "`***`" {
                    Problem::new(format!("`***` is not what is wanted here: {all}"))
                        .help("the value comes from the environment or a file and is not shown")
                } else {
                    let problem = Problem::new(format!("expected {all}, found {}", node.shown()));
                    problem.maybe(did_you_mean(text, usable()))
                };
                self.wrong(node.place, here, problem)
            }
        }
    }

    fn list(&mut self, node: &Node, items: &[Node], of: &Kind, min: usize, here: &Here) -> Checked {
        if items.len() < min {
            return self.wrong(
                node.place,
                here,
                Problem::new("this list is empty").help(format!("write {} in it", wanted(of))),
            );
        }
        let mut values = Vec::with_capacity(items.len());
        for (index, node) in items.iter().enumerate() {
            let here = here.item(index, node);
            if node.is_empty_plain() && !matches!(of, Kind::Step) {
                self.wrong(node.place, &here, Problem::new(format!("this item is empty: expected {}", wanted(of))));
                continue;
            }
            values.extend(self.value(node, of, &here));
        }
        (values.len() == items.len()).then_some(Value::Sequence(values))
    }

    fn map(
        &mut self,
        node: &Node,
        entries: &[Entry],
        of: (crate::schema::Scalar, &Kind, &str),
        here: &Here,
    ) -> Checked {
        let (key, kind, noun) = of;
        if entries.is_empty() {
            let problem = Problem::new(format!("no {noun} is given")).help(format!("at least one {noun} is needed"));
            return self.wrong(node.place, here, problem);
        }
        let mut map = Mapping::new();
        let mut broken: Option<&Entry> = None;
        for entry in entries {
            let below = here.below(entry);
            // `{ price: decimal(10, 2) }` is two entries to YAML: the first says so, the second need not.
            if broken.is_some_and(|b| b.place.line == entry.place.line) && entry.value.is_empty_plain() {
                continue;
            }
            broken = Some(entry).filter(|e| e.value.text().is_some_and(|t| t.contains('(') && !t.contains(')')));
            let name = crate::tree::Scalar { text: entry.key.clone(), plain: true, substituted: false };
            if let Err(problem) = key.check(&name) {
                self.wrong(entry.place, &below, problem);
            }
            if entry.value.is_nothing() {
                let problem = Problem::new(format!("{} has no value", shown(&entry.key)));
                self.wrong(entry.place, &below, problem.help(format!("write {}", wanted(kind))));
            } else if let Some(value) = self.value(&entry.value, kind, &below) {
                map.insert(entry.key.clone().into(), value);
            }
        }
        Some(Value::Mapping(map))
    }

    /// A mapping with known keys; `keys` come in groups.
    fn object(
        &mut self,
        node: &Node,
        noun: &str,
        keys: &[&'static [Key]],
        exactly_one: &[&str],
        here: &Here,
    ) -> Checked {
        let known = || keys.iter().flat_map(|group| group.iter());
        let mut map = Mapping::new();
        for entry in node.entries() {
            let below = here.below(entry);
            let Some(key) = known().find(|key| key.name == entry.key) else {
                let problem = Problem::new(format!("{} is not a key of {noun}", shown(&entry.key)));
                let near =
                    did_you_mean(&entry.key, known().map(|key| key.name).filter(|name| node.get(name).is_none()));
                let all = || format!("keys are {}", listed(known().map(|key| key.name)));
                self.wrong(entry.place, &below, problem.help(near.unwrap_or_else(all)));
                continue;
            };
            if entry.value.is_nothing() {
                let problem = Problem::new(format!("{} has no value", shown(&entry.key)));
                let help = match key.need {
                    Need::Required => format!("write {}", wanted(&key.kind)),
                    _ => format!("write {}, or leave the key out", wanted(&key.kind)),
                };
                self.wrong(entry.place, &below, problem.help(help));
            } else if let Some(value) = self.value(&entry.value, &key.kind, &below) {
                map.insert(key.name.into(), value);
            }
        }
        self.missing(node, noun, known(), here);
        self.exactly_one(node, noun, exactly_one, here);
        for key in known().filter(|key| node.get(key.name).is_none()) {
            if let Need::Default(text) = key.need {
                map.insert(key.name.into(), self.filled(text, &key.kind));
            }
        }
        Some(Value::Mapping(map))
    }

    fn missing(&mut self, node: &Node, noun: &str, keys: impl Iterator<Item = &'static Key>, here: &Here) {
        let keys: Vec<&Key> = keys.collect();
        let is_known = |name: &str| keys.iter().any(|key| key.name == name);
        let unknown: Vec<&str> =
            node.entries().iter().map(|entry| entry.key.as_str()).filter(|name| !is_known(name)).collect();
        for key in keys.iter().filter(|key| matches!(key.need, Need::Required) && node.get(key.name).is_none()) {
            // A misspelt key is one error, not two.
            if unknown.iter().any(|given| nearest(given, [key.name]).is_some()) {
                continue;
            }
            let problem = Problem::new(format!("{noun} needs the key `{}`", key.name));
            let help = format!("add `{}:` with {}", key.name, wanted(&key.kind));
            self.wrong(here.key, here, problem.help(help));
        }
    }

    fn exactly_one(&mut self, node: &Node, noun: &str, names: &[&str], here: &Here) {
        let given: Vec<&Entry> = node.entries().iter().filter(|entry| names.contains(&entry.key.as_str())).collect();
        let all = one_of(names.iter().copied());
        let misspelt = || node.entries().iter().any(|entry| nearest(&entry.key, names.iter().copied()).is_some());
        if let Some(second) = given.get(1) {
            let problem = Problem::new(format!("{noun} takes only one of {}", listed(names.iter().copied())));
            self.wrong(
                second.place,
                &here.below(second),
                problem.help(format!("remove `{}` or `{}`", given[0].key, second.key)),
            );
        } else if given.is_empty() && !names.is_empty() && !misspelt() {
            self.wrong(here.key, here, Problem::new(format!("{noun} needs {all}")));
        }
    }

    fn variants(&mut self, node: &Node, variants: &'static Variants, here: &Here) -> Checked {
        let Some(entry) = node.get("type") else {
            let noun = variants.noun;
            let types = one_of(variants.listed().map(|variant| variant.name));
            if let Some(near) = node.entries().iter().find(|entry| nearest(&entry.key, ["type"]).is_some()) {
                let problem = Problem::new(format!("{} is not a key of a {noun}", shown(&near.key)));
                return self.wrong(near.place, &here.below(near), problem.help("did you mean `type`?"));
            }
            return self.wrong(
                here.key,
                here,
                Problem::new(format!("this {noun} has no `type`")).help(format!("add `type:` with {types}")),
            );
        };
        let below = here.below(entry);
        let Data::Scalar(text) = &entry.value.data else {
            return self.wrong(
                entry.value.place,
                &below,
                Problem::new(format!("expected a type, found {}", entry.value.shown())),
            );
        };
        let variant = self.variant(&entry.value, &text.text, text.substituted, variants, &below)?;
        let mut rest = node.clone();
        if let Data::Map(entries) = &mut rest.data {
            entries.retain(|entry| entry.key != "type");
        }
        let noun = format!("a {} {}", variant.name, variants.noun);
        let value = self.object(&rest, &noun, &[variant.keys, variants.common], variant.exactly_one, here)?;
        let Value::Mapping(map) = value else { return None };
        self.with_type(variant, variants, map)
    }

    fn variant(
        &mut self,
        node: &Node,
        text: &str,
        hidden: bool,
        of: &'static Variants,
        here: &Here,
    ) -> Option<&'static Variant> {
        let listed: Vec<&str> = of.listed().map(|variant| variant.name).collect();
        let problem = match of.find(text) {
            Some(variant) if variant.state.usable() => return Some(variant),
            Some(Variant { state: State::Elsewhere(sentence), .. }) => Problem::new(*sentence),
            Some(_) => not_yet(text),
            None if hidden => Problem::new(format!("`***` is not a type of {}", of.noun)),
            None if node.is_nothing() => Problem::new(format!("the type of the {} is missing", of.noun)),
            None => Problem::new(format!("{} is not a type of {}", shown(text), of.noun)),
        };
        let near = did_you_mean(text, listed.iter().copied()).filter(|_| !hidden && of.find(text).is_none());
        let all = format!("types of {}s are {}", of.noun, self::listed(listed.iter().copied()));
        self.wrong(node.place, here, problem.help(near.unwrap_or(all)));
        None
    }

    fn with_type(&mut self, variant: &Variant, variants: &Variants, mut map: Mapping) -> Checked {
        for key in variant.keys.iter().chain(variants.common) {
            if let (Need::Default(text), false) = (key.need, map.contains_key(key.name)) {
                let value = self.filled(text, &key.kind);
                map.insert(key.name.into(), value);
            }
        }
        map.insert("type".into(), variant.name.into());
        Some(Value::Mapping(map))
    }

    /// A default, in the form that a given value would have.
    fn filled(&mut self, default: &str, kind: &Kind) -> Value {
        let mut problems = Problems::default();
        let here = Here { path: String::new(), key: Place::default() };
        let node = crate::tree::parse(default, &mut problems);
        let value = node.and_then(|node| Checker { problems: &mut problems }.value(&node, kind, &here));
        debug_assert!(problems.is_empty(), "the default `{default}` of the schema is wrong");
        value.unwrap_or(Value::Null)
    }

    fn step(&mut self, node: &Node, entries: &[Entry], here: &Here) -> Checked {
        let options = job::STEP.keys;
        let verb = |name: &str| job::VERBS.iter().find(|verb| verb.name == name);
        let mut seen: Option<&Entry> = None;
        let mut unknown = false;
        for entry in entries {
            let below = here.below(entry);
            if let Some(key) = options.iter().find(|key| key.name == entry.key) {
                if entry.value.is_nothing() {
                    self.wrong(entry.place, &below, Problem::new(format!("`{}` has no value", key.name)));
                } else {
                    self.value(&entry.value, &key.kind, &below);
                }
            } else if let Some(verb) = verb(&entry.key) {
                if let Some(first) = seen {
                    let problem =
                        Problem::new(format!("a step has one verb; this one has `{}` and `{}`", first.key, verb.name));
                    self.wrong(entry.place, &below, problem.help(format!("begin a new step: `- {}: ...`", verb.name)));
                    continue;
                }
                seen = Some(entry);
                self.verb(entry, verb, &below);
            } else {
                unknown = true;
                let names = || job::VERBS.iter().filter(|verb| verb.kind.is_some()).map(|verb| verb.name);
                let near = did_you_mean(&entry.key, names().chain(options.iter().map(|key| key.name)));
                let problem = Problem::new(format!("{} is no verb of a step, and no option", shown(&entry.key)));
                self.wrong(
                    entry.place,
                    &below,
                    problem.help(near.unwrap_or_else(|| format!("verbs are {}", listed(names())))),
                );
            }
        }
        if seen.is_none() && !unknown {
            let names = job::VERBS.iter().filter(|verb| verb.kind.is_some()).map(|verb| verb.name);
            let problem = Problem::new("this step has no verb").help(format!("verbs are {}", listed(names)));
            self.wrong(node.place, here, problem);
        }
        Some(Value::Null)
    }

    fn verb(&mut self, entry: &Entry, verb: &crate::schema::Verb, here: &Here) {
        let Some(kind) = verb.kind else {
            self.wrong(entry.place, here, not_yet(verb.name));
            return;
        };
        let example = format!("for example: `{}`", verb.example);
        if entry.value.is_nothing() {
            self.wrong(entry.place, here, Problem::new(format!("`{}` has no value", verb.name)).help(example));
            return;
        }
        let before = self.problems.count();
        self.value(&entry.value, &kind, here);
        // The example helps where the shape is wrong; a wrong value in the right shape has its own help.
        self.problems.help_since(before, &here.path, &example);
    }
}

fn not_yet(name: &str) -> Problem {
    Problem::new(format!("`{name}` is not available in this version of Tidemill"))
}

/// `a`, `b` or `c`
pub(crate) fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let last = names.pop().unwrap_or_default();
    if names.is_empty() { last } else { format!("{} or {last}", names.join(", ")) }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn wanted(kind: &Kind) -> String {
    match kind {
        Kind::Scalar(scalar) => scalar.wanted().into(),
        Kind::Words(words) => one_of(words.iter().filter(|word| word.state.usable()).map(|word| word.name)),
        Kind::List { of: Kind::Step, .. } => "a list of steps".into(),
        Kind::List { .. } => "a list".into(),
        Kind::OneOrMore { of, .. } => format!("{}, or a list of them", wanted(of)),
        Kind::Map { noun, .. } => format!("a mapping with a {noun} in each line"),
        Kind::Object(_) => "a mapping".into(),
        Kind::Variants(variants) if variants.short => one_of(variants.listed().map(|variant| variant.name)),
        Kind::Variants(variants) => format!("a {}: a mapping with a `type`", variants.noun),
        Kind::WordOr(words, object) => {
            let words = one_of(words.iter().map(|word| word.name));
            let keys = object.keys.iter().map(|key| format!("`{{ {}: ... }}`", key.name));
            format!("{words}, or {}", keys.collect::<Vec<_>>().join(" or "))
        }
        Kind::Step => "a step: a mapping with one verb".into(),
    }
}

/// Where the shape is wrong, the likeliest reason.
fn shape_help(kind: &Kind, node: &Node) -> Option<String> {
    match (kind, &node.data) {
        (Kind::List { of: Kind::Step, .. }, Data::Map(_)) => Some("begin each step with `- `".into()),
        (Kind::Map { noun: noun @ ("source" | "sink"), .. }, Data::List(_)) => {
            Some(format!("give each {noun} a name instead of a `-`: `my-{noun}: {{ type: ... }}`"))
        }
        (Kind::Map { .. }, Data::List(_)) => Some("write `name: value` lines without `-`".into()),
        (Kind::Variants(variants), Data::Scalar(scalar)) if !scalar.substituted => {
            let near = nearest(&scalar.text, variants.listed().map(|variant| variant.name))?;
            Some(format!("did you mean `{{ type: {near} }}`?"))
        }
        (Kind::Step, Data::Scalar(scalar)) => {
            let first = scalar.text.split_whitespace().next()?;
            let verb = job::VERBS.iter().find(|verb| verb.name == first && verb.kind.is_some())?;
            Some(format!("write a colon after the verb, for example: `- {}`", verb.example))
        }
        (Kind::Scalar(_), Data::Map(entries)) if entries.len() == 1 && entries[0].value.is_empty_plain() => {
            Some("braces in a text need quotes: `\"${NAME}\"`".into())
        }
        _ => None,
    }
}
