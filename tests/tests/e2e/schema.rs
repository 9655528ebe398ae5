//! `tidemill schema`, judged by Python's jsonschema: it is a schema, every right job passes it, wrong ones do not.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::{Value, json};
use tidemill_tests::{
    Folder,
    daemon::tidemill,
    needs::{output, python_with},
    root,
};

/// Reads a schema and documents by name; prints the first error of each document that has one.
const JUDGE: &str = r#"
import json, sys
from jsonschema import Draft202012Validator as Validator
given = json.load(open(sys.argv[1]))
Validator.check_schema(given["schema"])
judge = Validator(given["schema"])
errors = {name: next(judge.iter_errors(document), None) for name, document in given["documents"].items()}
print(json.dumps({name: error.message for name, error in errors.items() if error}))
"#;

/// The documents that the schema refuses, with the reason.
fn refused(documents: &BTreeMap<String, Value>) -> Option<BTreeMap<String, String>> {
    let python = python_with("jsonschema")?;
    let folder = Folder::new();
    let schema: Value = serde_json::from_slice(&tidemill(&folder, &["schema"]).stdout).unwrap();
    let given = folder.write("given.json", json!({ "schema": schema, "documents": documents }).to_string());
    Some(serde_json::from_str(&output(Command::new(python).args(["-c", JUDGE]).arg(given))).unwrap())
}

#[test]
fn every_job_of_this_repository_passes_the_schema() {
    let folders =
        fs::read_dir(root().join("tests/golden")).unwrap().map(|entry| entry.unwrap().path().join("job.yaml"));
    let examples = ["examples", "deploy/kubernetes/jobs"].map(|name| fs::read_dir(root().join(name)).unwrap());
    let examples = examples.into_iter().flatten().map(|entry| entry.unwrap().path());
    let examples = examples.filter(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    let mut jobs = BTreeMap::new();
    for path in folders.chain(examples).filter(|path| path.is_file()) {
        jobs.insert(path.display().to_string(), serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap());
    }
    assert!(jobs.len() >= 9, "{} jobs", jobs.len());
    let Some(refused) = refused(&jobs) else { return };
    assert!(refused.is_empty(), "{refused:#?}");
}

/// The jobs of the table of wrong files, by heading, as far as they are YAML.
fn wrong_jobs() -> BTreeMap<String, Value> {
    let mut jobs = BTreeMap::new();
    for entry in fs::read_dir(root().join("config/tests/wrong")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for case in text.split("\n## ").skip(1) {
            let Some((_, yaml)) = case.split_once("```yaml\n") else { continue };
            let yaml = yaml.split("```").next().unwrap();
            if let Ok(document @ Value::Object(_)) = serde_yaml::from_str(yaml) {
                let heading = case.lines().next().unwrap();
                jobs.insert(format!("{}: {heading}", path.file_name().unwrap().display()), document);
            }
        }
    }
    jobs
}

/// What only `tidemill validate` sees: names that refer to each other, globs, folders, encodings, what is put in.
const NOT_SEEN: usize = 25;

#[test]
fn wrong_jobs_do_not_pass_the_schema() {
    let wrong = wrong_jobs();
    let Some(refused) = refused(&wrong) else { return };
    let passed: Vec<_> = wrong.keys().filter(|name| !refused.contains_key(*name)).collect();
    println!("{} of {} wrong jobs are refused; not seen: {passed:#?}", refused.len(), wrong.len());
    assert!(refused.len() >= 60 && passed.len() <= NOT_SEEN, "refused: {}, passed: {passed:#?}", refused.len());
}
