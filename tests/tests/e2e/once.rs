//! `--once` ends when everything is done that was there, and not when a batch of it has failed for a moment.

use tidemill_tests::{Folder, Rows, Run};

const JOB: &str = "
job: once
sources: { in: { type: directory, path: in, settle: 200ms, codec: json, schema: { n: int64 } } }
sinks: { out: { type: files, path: out, codec: json } }
";

#[test]
fn a_batch_that_fails_for_a_moment_is_awaited_with_its_files() {
    for point in ["files.before-data-sync:1:error", "files.before-mark:3:full"] {
        let folder = Folder::new();
        folder.write("in/a.json", "{\"n\":1}\n{\"n\":2}\n");
        Run::new(&folder).job(JOB).failpoint(point).once().expect_success();
        let rows = Rows::files(&folder.join("out"));
        assert_eq!(rows.column("n"), ["1", "2"], "{point}");
    }
}
