//! From a file to its model, or to all that is wrong with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    path::{Path, PathBuf},
};

use crate::{
    At, Daemon, Environment, Error, Errors, Job, KafkaSource, Source, SourceKind, build, check,
    error::{Problem, lines_of, render},
    glob, schema, semantics, substitute,
    tree::{self, Data, Node, below},
};

/// A configuration is no data: longer files are an accident.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The keys of a job in whose values `${...}` is replaced.
const SUBSTITUTED: [&str; 4] = ["sources", "sinks", "dead_letters", "databases"];
const BEGIN: &str = "a job begins with `job: NAME`";

/// Errors of one file that are told; a file with more of them is no configuration.
const MAX_TOLD: usize = 1_000;

/// What is wrong, as it is found.
#[derive(Default)]
pub(crate) struct Problems(Vec<(At, Problem)>);

impl Problems {
    pub fn add(&mut self, at: At, problem: Problem) {
        self.0.push((at, problem));
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn count(&self) -> usize {
        self.0.len()
    }
    /// Adds a help to the problems at `path` that came after the first `count`.
    pub fn help_since(&mut self, count: usize, path: &str, help: &str) {
        for (_, problem) in self.0.iter_mut().skip(count).filter(|(at, _)| at.path == path) {
            problem.help.push(help.to_owned());
        }
    }
    fn into_errors(mut self, file: &Path, text: &str) -> Errors {
        self.0.sort_by_key(|(at, _)| (at.line, at.column));
        // What an anchor holds is checked wherever it is used, and stands in one place: it is told once.
        let mut told = BTreeSet::new();
        self.0.retain(|(at, problem)| told.insert((at.line, at.column, problem.what.clone())));
        let more = self.0.len().saturating_sub(MAX_TOLD);
        self.0.truncate(MAX_TOLD);
        if more > 0 {
            self.add(At::default(), Problem::new(format!("{more} more errors are not shown")));
        }
        let lines = lines_of(text);
        // A value that is missing at the end of a file is noticed behind its last line.
        for (at, _) in self.0.iter_mut().filter(|(at, _)| at.line > lines.len().max(1)) {
            at.line = lines.len().max(1);
            at.column = lines.last().map_or(1, |line| line.trim_end().chars().count() + 1);
        }
        Errors(self.0.into_iter().map(|(at, problem)| Error::in_lines(file, &lines, at, problem)).collect())
    }
}

impl Job {
    /// Reads and checks a job's file. All errors come at once.
    pub fn load(path: &Path, env: &dyn Environment) -> Result<Self, Errors> {
        Self::parse(&read(path)?, path, env)
    }

    /// Checks a job's text, as if it stood in `file`: paths in it are relative to that file's folder.
    pub fn parse(text: &str, file: &Path, env: &dyn Environment) -> Result<Self, Errors> {
        let folder = folder_of(file);
        let mut problems = Problems::default();
        let root = tree::parse(text, &mut problems);
        if root.is_none() && problems.is_empty() {
            problems.add(At::default(), Problem::new("the file is empty").help(BEGIN));
        }
        let root = root.and_then(|root| mapping(root, BEGIN, &mut problems));
        if let Some(mut root) = root {
            if let Data::Map(entries) = &mut root.data {
                for entry in entries.iter_mut().filter(|entry| SUBSTITUTED.contains(&entry.key.as_str())) {
                    tree::substitute(&mut entry.value, &entry.key, folder, env, &mut problems);
                }
            }
            let value = check::check(&root, &schema::job::JOB, &mut problems);
            semantics::check(&root, folder, &mut problems);
            if problems.is_empty() {
                match build::job(&root, &value, file, text) {
                    Ok(job) => return Ok(job),
                    Err(problem) => problems.add(At::default(), problem),
                }
            }
        }
        Err(problems.into_errors(file, text))
    }

    /// Reads several jobs; their errors come together. Two jobs with one name are an error.
    pub fn load_all(paths: &[PathBuf], env: &dyn Environment) -> Result<Vec<Self>, Errors> {
        let (mut jobs, mut errors) = (Vec::new(), Vec::new());
        let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
        for path in paths {
            match Self::load(path, env) {
                Err(more) => errors.extend(more),
                Ok(job) => {
                    if let Some(first) = names.insert(job.name.clone(), path.clone()) {
                        let problem =
                            Problem::new(format!("a job of the name `{}` is in {} too", job.name, first.display()));
                        let problem =
                            problem.help("a job's name is its identity in checkpoints and sinks: give each its own");
                        errors.push(Error::new(path, &job.text, name_at(&job), problem));
                    }
                    errors.extend(jobs.iter().find_map(|other| job.shares_group(other)));
                    jobs.push(job);
                }
            }
        }
        if errors.is_empty() { Ok(jobs) } else { Err(Errors(errors)) }
    }

    /// The error of a consumer group that another job is in: each would be given a part of the partitions, and nothing would
    /// fail.
    pub fn shares_group(&self, other: &Self) -> Option<Error> {
        let addresses =
            |brokers: &str| -> BTreeSet<String> { brokers.split(',').map(|one| one.trim().to_owned()).collect() };
        if self.name == other.name {
            return None;
        }
        self.groups().find_map(|(source, group, brokers)| {
            let is_it = |(_, name, at): &(&Source, String, &str)| {
                *name == group && !addresses(at).is_disjoint(&addresses(brokers))
            };
            let (theirs, ..) = other.groups().find(is_it)?;
            let (path, other_name) = (below(&below("sources", &source.name.value), "group"), &other.name);
            let group = self.shown(&path, &group);
            let problem = Problem::new(format!(
                "the source `{}` of job `{other_name}` ({}) is in the group `{group}` too",
                theirs.name.value,
                other.file.display()
            ));
            let problem = problem.help(
                "a group belongs to one job: each would read a part of the records. Give each a group of its own, or leave \
                 `group` out",
            );
            let root = tree::parse(&self.text, &mut Problems::default());
            let at = root.and_then(|root| Some(tree::find(&root, &path)?.place.at(&path)));
            Some(Error::new(&self.file, &self.text, at.unwrap_or_else(|| source.name.at.clone()), problem))
        })
    }

    /// The consumer groups of the job's sources, and where their brokers are.
    fn groups(&self) -> impl Iterator<Item = (&Source, String, &str)> {
        self.sources.iter().filter_map(|source| match &source.kind {
            SourceKind::Kafka(kafka) => {
                let group = kafka.group.clone().unwrap_or_else(|| KafkaSource::usual_group(&self.name));
                Some((source, group, kafka.brokers.as_str()))
            }
            _ => None,
        })
    }

    /// The form of a configuration error, for one that is found later (a wrong column name, found by planning). The
    /// message's first line says what is wrong; each further line is printed as a help.
    ///
    /// A message about a text that comes from the environment or a file may quote it: its place is told, and no more.
    pub fn render(&self, at: &At, message: &str) -> String {
        let hidden =
            "`***` does not fit the rows that come here\nit comes from the environment or a file and is not shown";
        let message = if self.as_written(&at.path).is_some() { hidden } else { message };
        render(&self.file, &self.text, at, message)
    }

    /// A value of a source or sink as it may be shown, by its path of keys (`sinks.db.path`): as the file has it where it
    /// comes from the environment or a file, which may be a secret.
    pub fn shown(&self, path: &str, value: impl Display) -> String {
        self.as_written(path).unwrap_or_else(|| value.to_string())
    }

    /// The text at a path of keys as the file has it, where something is put into it.
    fn as_written(&self, path: &str) -> Option<String> {
        let root = tree::parse(&self.text, &mut Problems::default())?;
        let text = tree::find(&root, path)?.text()?;
        let substituted = substitute::has_values(text) && SUBSTITUTED.iter().any(|section| path.starts_with(section));
        substituted.then(|| text.to_owned())
    }
}

impl Daemon {
    /// Reads and checks the daemon's own file. All errors come at once. Job files are not read yet.
    pub fn load(path: &Path, env: &dyn Environment) -> Result<Self, Errors> {
        Self::parse(&read(path)?, path, env)
    }

    /// Checks the text of a daemon's file, as if it stood in `file`. An empty one means all defaults.
    pub fn parse(text: &str, file: &Path, env: &dyn Environment) -> Result<Self, Errors> {
        let mut problems = Problems::default();
        let empty = || Some(Node { place: tree::Place { line: 1, column: 1 }, data: Data::Map(Vec::new()) });
        let root = tree::parse(text, &mut problems);
        let root = if root.is_none() && problems.is_empty() { empty() } else { root };
        if let Some(mut root) = root.and_then(|root| mapping(root, "write lines like `data_dir: PATH`", &mut problems))
        {
            if let Some(entry) = root.get("sinks").or(root.get("sources")) {
                let problem = Problem::new("this is a job, and no file of a daemon");
                let help = "name it under `jobs:` in the daemon's file, or run it: `tidemill run FILE`";
                return Err(Problems(vec![(entry.place.at(&entry.key), problem.help(help))]).into_errors(file, text));
            }
            tree::substitute(&mut root, "", folder_of(file), env, &mut problems);
            let value = check::check(&root, &schema::daemon::DAEMON, &mut problems);
            if problems.is_empty() {
                match build::daemon(&root, value, file, text) {
                    Ok(daemon) => return Ok(daemon),
                    Err(problem) => problems.add(At::default(), problem),
                }
            }
        }
        Err(problems.into_errors(file, text))
    }

    /// The defaults, for a daemon without a file; paths are relative to the working directory.
    pub fn defaults() -> Self {
        let mut daemon = Self::parse("", Path::new(""), &BTreeMap::new())
            .expect("the defaults of the schema are right: a test reads them");
        daemon.file = None;
        daemon
    }

    /// The files that `jobs:` names, in order, each once. A glob that names none is an error.
    pub fn job_files(&self) -> Result<Vec<PathBuf>, Errors> {
        let (mut files, mut errors) = (Vec::new(), Vec::new());
        let file = self.file.clone().unwrap_or_default();
        for pattern in &self.jobs {
            match glob::expand(folder_of(&file), &pattern.value) {
                Ok(found) => files.extend(found),
                Err(cause) => {
                    let problem = Problem::new(format!("no job file is named by this: {cause}"));
                    let problem = problem.help("globs are relative to the folder of this file");
                    errors.push(Error::new(&file, &self.text, pattern.at.clone(), problem));
                }
            }
        }
        let mut seen = BTreeSet::new();
        files.retain(|file| seen.insert(file.clone()));
        if errors.is_empty() { Ok(files) } else { Err(Errors(errors)) }
    }

    /// Loads every job that `jobs:` names.
    pub fn load_jobs(&self, env: &dyn Environment) -> Result<Vec<Job>, Errors> {
        Job::load_all(&self.job_files()?, env)
    }
}

fn name_at(job: &Job) -> At {
    let mut problems = Problems::default();
    let root = tree::parse(&job.text, &mut problems);
    root.and_then(|root| root.get("job").map(|entry| entry.value.place.at("job"))).unwrap_or_default()
}

pub(crate) fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

fn read(path: &Path) -> Result<String, Errors> {
    let fail = |cause: String| Errors(vec![Error::of_file(path, Problem::new(format!("cannot be read: {cause}")))]);
    let size = path.metadata().map_err(|error| fail(plain(&error)))?;
    if size.is_dir() {
        return Err(fail("it is a folder".into()));
    }
    if size.len() > MAX_FILE_BYTES {
        return Err(fail(format!("it has more than {MAX_FILE_BYTES} bytes, which no configuration needs")));
    }
    let bytes = std::fs::read(path).map_err(|error| fail(plain(&error)))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..good]);
        let last = before.rsplit('\n').next().unwrap_or_default();
        let at = At { line: before.matches('\n').count() + 1, column: last.chars().count() + 1, ..At::default() };
        let problem = Problem::new("not UTF-8").help("save the file as UTF-8");
        Errors(vec![Error::new(path, &String::from_utf8_lossy(error.as_bytes()), at, problem)])
    })
}

fn plain(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound { "there is no such file".into() } else { error.to_string() }
}

fn mapping(root: Node, help: &str, problems: &mut Problems) -> Option<Node> {
    let what = match &root.data {
        Data::Map(_) => return Some(root),
        _ => format!("expected lines of `key: value`, found {}", root.shown()),
    };
    problems.add(root.place.at(""), Problem::new(what).help(help));
    None
}
