//! Walks a tree along the schema: every error is collected, and what is right becomes a `serde_yaml::Value` with defaults
//! filled in, for serde to read.

use serde_yaml::{Mapping, Value};

use crate::{
    error::Problem,
    load::Problems,
    nearest::{did_you_mean, nearest},
    schema::{Key, Kind, Need, Object, State, Variant, Variants, Word, job, scalar},
    tree::{Data, Entry, Node, Place, Scalar, UNRESOLVED, below, item, shown},
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

/// The keys that a mapping may have.
struct Keys {
    groups: [&'static [Key]; 2],
    exactly_one: &'static [&'static str],
    /// Mappings of the same noun and another `type`: a key may be meant for one of them.
    siblings: Option<&'static Variants>,
}

impl Keys {
    fn of(object: &'static Object) -> Self {
        Self { groups: [object.keys, &[]], exactly_one: object.exactly_one, siblings: None }
    }

    fn all(&self) -> impl Iterator<Item = &'static Key> {
        self.groups.into_iter().flatten()
    }

    /// What to write in place of a key that is not known; `free` are those that are not given yet.
    fn instead_of(&self, given: &str, free: &[&'static str]) -> String {
        if let Some(near) = did_you_mean(given, free.iter().copied()) {
            return near;
        }
        let keys = match self.all().count() {
            0 => "it has no keys but `type`".to_owned(),
            _ => format!("keys are {}", listed(self.all().map(|key| key.name))),
        };
        let has_it = |variant: &&Variant| variant.keys.iter().any(|key| key.name == given);
        match self.siblings.and_then(|siblings| Some((siblings.listed().find(has_it)?, siblings.noun))) {
            Some((variant, noun)) => format!("a {} {noun} has it; here {keys}", variant.name),
            None => keys,
        }
    }
}

/// Whether keys of one source stand where names of sources are wanted.
fn nameless(node: &Node, variants: &Variants) -> bool {
    node.text_of("type").is_some_and(|text| variants.find(text).is_some())
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
            (Kind::Words(words) | Kind::WordOr(words, _), Data::Scalar(text)) => {
                self.word(node, text, words, kind, here)
            }
            (Kind::WordOr(_, object) | Kind::Object(object), Data::Map(_)) => {
                self.object(node, object.noun, &Keys::of(object), here)
            }
            (Kind::OneOrMore { of, .. }, Data::Scalar(_)) => {
                self.value(node, of, here).map(|one| Value::Sequence(vec![one]))
            }
            (Kind::List { of, min } | Kind::OneOrMore { of, min }, Data::List(items)) => {
                self.list(node, items, of, *min, here)
            }
            (Kind::Map { value: Kind::Variants(variants), noun, .. }, Data::Map(entries))
                if nameless(node, variants) =>
            {
                let names = entries.iter().map(|entry| entry.key.as_str());
                let problem = Problem::new(format!("this {noun} has no name: {} are its own keys", listed(names)));
                let help = format!("give it one, and its keys below it: `my-{noun}: {{ type: ... }}`");
                self.wrong(here.key, here, problem.help(help))
            }
            (Kind::Map { key, value, noun }, Data::Map(entries)) => self.map(node, entries, (*key, value, noun), here),
            (Kind::Variants(variants), Data::Map(_)) => self.variants(node, variants, here),
            (Kind::Variants(variants), Data::Scalar(text)) if variants.short => {
                let found = self.variant(node, &text.text, text.substituted, variants, here)?;
                self.with_type(found, variants, Mapping::new())
            }
            (Kind::Step, Data::Map(entries)) => self.step(node, entries, here),
            (Kind::Either(_, mapping), Data::Map(_)) => self.value(node, mapping, here),
            (Kind::Either(value, _), _) => self.value(node, value, here),
            _ => {
                let problem = Problem::new(format!("expected {}, found {}", wanted(kind), node.shown()));
                self.wrong(node.place, here, problem.maybe(shape_help(kind, node)))
            }
        }
    }

    fn word(&mut self, node: &Node, given: &Scalar, words: &[Word], kind: &Kind, here: &Here) -> Checked {
        let text = given.text.as_str();
        let problem = match words.iter().find(|word| word.name == text).map(|word| word.state) {
            Some(State::Later) => not_yet(text),
            Some(_) => return Some(Value::String(text.to_owned())),
            None if given.substituted => scalar::hidden(given, &wanted(kind)),
            None => {
                let usable = words.iter().filter(|word| word.state.usable()).map(|word| word.name);
                let problem = Problem::new(format!("expected {}, found {}", wanted(kind), node.shown()));
                scalar::taken_as_it_stands(given, problem.maybe(did_you_mean(text, usable)))
            }
        };
        self.wrong(node.place, here, problem)
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
            let name = Scalar { text: entry.key.clone(), plain: true, substituted: false };
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

    /// A mapping with known keys.
    fn object(&mut self, node: &Node, noun: &str, keys: &Keys, here: &Here) -> Checked {
        let mut map = Mapping::new();
        let free: Vec<_> = keys.all().map(|key| key.name).filter(|name| node.get(name).is_none()).collect();
        for entry in node.entries() {
            let below = here.below(entry);
            let Some(key) = keys.all().find(|key| key.name == entry.key) else {
                let problem = Problem::new(format!("{} is not a key of {noun}", shown(&entry.key)));
                self.wrong(entry.place, &below, problem.help(keys.instead_of(&entry.key, &free)));
                continue;
            };
            if entry.value.is_nothing() && !is_word(&entry.value, &key.kind) {
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
        self.missing(node, noun, keys, here);
        self.exactly_one(node, noun, keys, here);
        for key in keys.all().filter(|key| node.get(key.name).is_none()) {
            if let Need::Default(text) = key.need {
                map.insert(key.name.into(), self.filled(text, &key.kind));
            }
        }
        Some(Value::Mapping(map))
    }

    fn missing(&mut self, node: &Node, noun: &str, keys: &Keys, here: &Here) {
        let is_known = |name: &str| keys.all().any(|key| key.name == name);
        let unknown: Vec<&str> =
            node.entries().iter().map(|entry| entry.key.as_str()).filter(|name| !is_known(name)).collect();
        for key in keys.all().filter(|key| matches!(key.need, Need::Required) && node.get(key.name).is_none()) {
            // A misspelt key is one error, not two.
            if unknown.iter().any(|given| nearest(given, [key.name]).is_some()) {
                continue;
            }
            let problem = Problem::new(format!("{noun} needs the key `{}`", key.name));
            let help = match key.kind {
                Kind::Map { noun, .. } => format!("add `{}:`, and a line for each {noun} below it", key.name),
                _ => format!("add `{}:` with {}", key.name, wanted(&key.kind)),
            };
            self.wrong(here.key, here, problem.help(help));
        }
    }

    fn exactly_one(&mut self, node: &Node, noun: &str, keys: &Keys, here: &Here) {
        let names = || keys.exactly_one.iter().copied();
        let given: Vec<&Entry> = node.entries().iter().filter(|entry| names().any(|name| name == entry.key)).collect();
        let misspelt = || node.entries().iter().any(|entry| nearest(&entry.key, names()).is_some());
        if let Some(second) = given.get(1) {
            let problem = Problem::new(format!("{noun} takes only one of {}", listed(names())));
            self.wrong(
                second.place,
                &here.below(second),
                problem.help(format!("remove `{}` or `{}`", given[0].key, second.key)),
            );
        } else if given.is_empty() && !keys.exactly_one.is_empty() && !misspelt() {
            let problem = Problem::new(format!("{noun} needs {}", one_of(names())));
            let each = keys.all().filter(|key| names().any(|name| name == key.name));
            let each: Vec<_> = each.map(|key| format!("`{}:` with {}", key.name, wanted(&key.kind))).collect();
            self.wrong(here.key, here, problem.help(format!("add {}", each.join(", or "))));
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
                Problem::new(format!("expected a type, found {}", entry.value.shown()))
                    .help(format!("write {}", one_of(variants.listed().map(|variant| variant.name)))),
            );
        };
        let variant = self.variant(&entry.value, &text.text, text.substituted, variants, &below)?;
        let mut rest = node.clone();
        if let Data::Map(entries) = &mut rest.data {
            entries.retain(|entry| entry.key != "type");
        }
        let noun = format!("a {} {}", variant.name, variants.noun);
        let keys = Keys {
            groups: [variant.keys, variants.common],
            exactly_one: variant.exactly_one,
            siblings: Some(variants),
        };
        let value = self.object(&rest, &noun, &keys, here)?;
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
                    let problem = Problem::new(format!("`{}` has no value", key.name));
                    let help = format!("write {}, or leave the key out", wanted(&key.kind));
                    self.wrong(entry.place, &below, problem.help(help));
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

/// `null` where it is one of the words that may stand here.
fn is_word(node: &Node, kind: &Kind) -> bool {
    matches!(kind, Kind::Words(words) if words.iter().any(|word| Some(word.name) == node.text()))
}

fn wanted(kind: &Kind) -> String {
    match kind {
        Kind::Scalar(scalar) => scalar.wanted().into(),
        Kind::Words(words) => one_of(words.iter().filter(|word| word.state.usable()).map(|word| word.name)),
        Kind::List { of: Kind::Step, .. } => "a list of steps".into(),
        Kind::List { .. } => "a list".into(),
        Kind::OneOrMore { of, .. } => format!("{}, or a list of them", wanted(of)),
        Kind::Map { noun, .. } => format!("a mapping with a {noun} in each line"),
        Kind::Object(object) => match object.keys {
            [one] => format!("a mapping `{{ {}: ... }}`", one.name),
            keys => format!("a mapping of {}", listed(keys.iter().map(|key| key.name))),
        },
        Kind::Variants(variants) if variants.short => one_of(variants.listed().map(|variant| variant.name)),
        Kind::Variants(variants) => format!("a {}: a mapping with a `type`", variants.noun),
        Kind::WordOr(words, object) => {
            let words = words.iter().map(|word| format!("`{}`", word.name));
            let keys = object.keys.iter().map(|key| format!("`{{ {}: ... }}`", key.name));
            let mut all: Vec<_> = words.chain(keys).collect();
            let last = all.pop().unwrap_or_default();
            format!("{} or {last}", all.join(", "))
        }
        Kind::Step => "a step: a mapping with one verb".into(),
        Kind::Either(value, mapping) => format!("{}, or {}", wanted(value), wanted(mapping)),
    }
}

/// Where the shape is wrong, the likeliest reason.
fn shape_help(kind: &Kind, node: &Node) -> Option<String> {
    match (kind, &node.data) {
        (Kind::List { of: Kind::Step, .. }, _) => Some("begin each step with `- `".into()),
        (Kind::List { .. }, Data::Scalar(scalar)) if !scalar.substituted => {
            Some(format!("write it in brackets: `[{}]`", scalar.text))
        }
        (Kind::Map { value: Kind::Scalar(scalar), .. }, Data::List(_) | Data::Scalar(_))
            if *scalar == crate::schema::Scalar::Type =>
        {
            Some("name each column with its type: `{ time: timestamp, agent: string }`".into())
        }
        (Kind::Map { noun: noun @ ("source" | "sink"), .. }, Data::List(_)) => {
            Some(format!("give each {noun} a name instead of a `-`: `my-{noun}: {{ type: ... }}`"))
        }
        (Kind::Map { .. }, Data::List(_)) => Some("write `name: value` for each, without `-` or brackets".into()),
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
            Some(format!("braces in a text need quotes, and a variable its `$`: `\"${{{}}}\"`", entries[0].key))
        }
        _ => None,
    }
}
