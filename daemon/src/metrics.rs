//! Prometheus metrics: names and labels of the docs' table, one registry for the process.

use std::{collections::HashMap, time::Duration};

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
    core::{Collector, MetricVec, MetricVecBuilder},
    process_collector::ProcessCollector,
};

/// From half a millisecond to a minute: a batch of one row and a batch of a full budget.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What a lane does: at work; of another owner, or not claimed yet; tried again after a failure; waits for a person.
pub const LANE_STATES: [&str; 4] = ["running", "waiting", "retrying", "stopped"];

/// The phases of a batch.
const PHASES: [&str; 8] = ["plan", "read", "decode", "steps", "stage", "unmarked", "anchor", "sinks"];

/// Every metric of the daemon.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// `records_received_total{job,source}`
    pub records_received: IntCounterVec,
    /// `bytes_received_total{job,source}`
    pub bytes_received: IntCounterVec,
    /// `records_rejected_total{job,step,reason}`
    pub records_rejected: IntCounterVec,
    /// `records_written_total{job,sink}`
    pub records_written: IntCounterVec,
    /// `step_rows_in_total{job,step}`
    pub step_rows_in: IntCounterVec,
    /// `step_rows_out_total{job,step}`
    pub step_rows_out: IntCounterVec,
    /// `config_last_reload_successful`
    pub reload_successful: IntGauge,
    /// `config_reload_failures_total`
    pub reload_failures: IntCounter,
    /// `batches_total{job}`
    pub batches: IntCounterVec,
    /// `batch_duration_seconds{job}`
    pub batch_duration: HistogramVec,
    /// `batch_phase_seconds{job,phase}`
    pub batch_phase: HistogramVec,
    /// `source_lag_records{job,source}`
    pub source_lag_records: IntGaugeVec,
    /// `source_lag_seconds{job,source}`
    pub source_lag_seconds: GaugeVec,
    /// `sink_retries_total{job,sink}`
    pub sink_retries: IntCounterVec,
    /// `spool_bytes{job,source}`
    pub spool_bytes: IntGaugeVec,
    /// `lookup_rows{job,step}`
    pub lookup_rows: IntGaugeVec,
    /// `lookup_bytes{job,step}`
    pub lookup_bytes: IntGaugeVec,
    /// `lookup_refresh_timestamp_seconds{job,step}`: when the table was looked at last, and could be.
    pub lookup_refreshed: GaugeVec,
    /// `lookup_refresh_failures_total{job,step}`
    pub lookup_failures: IntCounterVec,
    /// `lookup_queries_total{job,step}`
    pub lookup_queries: IntCounterVec,
    /// `checkpoint_duration_seconds{job}`
    pub checkpoint_duration: HistogramVec,
    /// `last_batch_timestamp_seconds{job}`
    pub last_batch: GaugeVec,
    /// `clock_behind_seconds{job}`: how far the machine's clock is behind the last plan's.
    pub clock_behind: GaugeVec,
    /// `job_up{job}`: 1 while the job owns its lanes and makes progress, 0 while it waits, retries or is stopped.
    pub job_up: IntGaugeVec,
    /// `lanes{job,state}`: see [`LANE_STATES`].
    pub lanes: IntGaugeVec,
    /// `busy_ratio{job}`: the part of the last second in which the batch loop worked.
    pub busy_ratio: GaugeVec,
}

impl Metrics {
    /// Makes and registers all metrics, and the process collector's.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        macro_rules! register {
            ($kind:ident, $name:literal, $help:literal, $labels:expr) => {{
                let metric = $kind::new(Opts::new(concat!("tidemill_", $name), $help).into(), &$labels)?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        macro_rules! histogram {
            ($name:literal, $help:literal, $labels:expr) => {{
                let options = HistogramOpts::new(concat!("tidemill_", $name), $help).buckets(SECONDS.to_vec());
                let metric = HistogramVec::new(options, &$labels)?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        let build =
            IntGaugeVec::new(Opts::new("tidemill_build_info", "Version of this binary; always 1."), &["version"])?;
        registry.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let reload_successful = IntGauge::new(
            "tidemill_config_last_reload_successful",
            "1 where every file of the last reload (or of the start) was right, else 0.",
        )?;
        registry.register(Box::new(reload_successful.clone()))?;
        reload_successful.set(1);
        let reload_failures = IntCounter::new(
            "tidemill_config_reload_failures_total",
            "Reloads of which a file was wrong, so that at least one job runs on as it was.",
        )?;
        registry.register(Box::new(reload_failures.clone()))?;
        Ok(Self {
            records_received: register!(
                IntCounterVec,
                "records_received_total",
                "Records read from a source, rejects included.",
                ["job", "source"]
            ),
            bytes_received: register!(
                IntCounterVec,
                "bytes_received_total",
                "Bytes of records read from a source.",
                ["job", "source"]
            ),
            records_rejected: register!(
                IntCounterVec,
                "records_rejected_total",
                "Records that went to the dead letters.",
                ["job", "step", "reason"]
            ),
            records_written: register!(
                IntCounterVec,
                "records_written_total",
                "Rows committed to a sink.",
                ["job", "sink"]
            ),
            step_rows_in: register!(
                IntCounterVec,
                "step_rows_in_total",
                "Rows that a step got, in batches that every sink has.",
                ["job", "step"]
            ),
            step_rows_out: register!(
                IntCounterVec,
                "step_rows_out_total",
                "Rows that a step gave, in batches that every sink has.",
                ["job", "step"]
            ),
            reload_successful,
            reload_failures,
            batches: register!(IntCounterVec, "batches_total", "Batches that every sink has.", ["job"]),
            batch_duration: histogram!("batch_duration_seconds", "From a batch's plan to its close.", ["job"]),
            batch_phase: histogram!("batch_phase_seconds", "Duration of one phase of a batch.", ["job", "phase"]),
            source_lag_records: register!(
                IntGaugeVec,
                "source_lag_records",
                "Records that wait in a source, where they can be counted.",
                ["job", "source"]
            ),
            source_lag_seconds: register!(
                GaugeVec,
                "source_lag_seconds",
                "Age of the oldest record that waits in a source.",
                ["job", "source"]
            ),
            sink_retries: register!(
                IntCounterVec,
                "sink_retries_total",
                "Calls of a sink that failed and are tried again.",
                ["job", "sink"]
            ),
            spool_bytes: register!(
                IntGaugeVec,
                "spool_bytes",
                "Bytes in a source's spool that are not released.",
                ["job", "source"]
            ),
            lookup_rows: register!(IntGaugeVec, "lookup_rows", "Rows of a lookup's table.", ["job", "step"]),
            lookup_bytes: register!(
                IntGaugeVec,
                "lookup_bytes",
                "Bytes of a lookup's table in memory.",
                ["job", "step"]
            ),
            lookup_refreshed: register!(
                GaugeVec,
                "lookup_refresh_timestamp_seconds",
                "When a lookup's table was last confirmed to be current, seconds since the epoch; 0 before the first.",
                ["job", "step"]
            ),
            lookup_failures: register!(
                IntCounterVec,
                "lookup_refresh_failures_total",
                "Times that a lookup's table could not be read.",
                ["job", "step"]
            ),
            lookup_queries: register!(
                IntCounterVec,
                "lookup_queries_total",
                "Queries that a database got for keys of batches.",
                ["job", "step"]
            ),
            checkpoint_duration: histogram!(
                "checkpoint_duration_seconds",
                "Writing the ledger's record of a batch.",
                ["job"]
            ),
            last_batch: register!(
                GaugeVec,
                "last_batch_timestamp_seconds",
                "When the last batch was closed, seconds since the epoch; 0 before the first.",
                ["job"]
            ),
            clock_behind: register!(
                GaugeVec,
                "clock_behind_seconds",
                "How far the machine's clock is behind the last plan's.",
                ["job"]
            ),
            lanes: register!(
                IntGaugeVec,
                "lanes",
                "Lanes of the job that this daemon knows of, by state: running, waiting, retrying, stopped.",
                ["job", "state"]
            ),
            job_up: register!(IntGaugeVec, "job_up", "1 while the job owns its lanes and makes progress.", ["job"]),
            busy_ratio: register!(
                GaugeVec,
                "busy_ratio",
                "The part of the last second in which the job worked on batches.",
                ["job"]
            ),
            registry,
        })
    }

    /// Every series of a job that can be known before its first batch, at 0: a rate sees the first event, too. Of a
    /// source it is said whether it has a spool.
    pub fn begin(&self, job: &str, sources: &[(String, bool)], sinks: &[&str]) {
        for (source, spooled) in sources {
            if *spooled {
                self.spool_bytes.with_label_values(&[job, source]);
            }
            self.records_received.with_label_values(&[job, source]);
            self.bytes_received.with_label_values(&[job, source]);
        }
        for sink in sinks {
            self.records_written.with_label_values(&[job, sink]);
            self.sink_retries.with_label_values(&[job, sink]);
        }
        for phase in PHASES {
            self.batch_phase.with_label_values(&[job, phase]);
        }
        // The reject that every codec knows; others appear with their first.
        self.records_rejected.with_label_values(&[job, "decode", "type"]);
        self.last_batch.with_label_values(&[job]);
        self.clock_behind.with_label_values(&[job]);
        self.batches.with_label_values(&[job]);
        self.batch_duration.with_label_values(&[job]);
        self.checkpoint_duration.with_label_values(&[job]);
        self.job_up.with_label_values(&[job]);
        self.lanes(job, [0; 4]);
        self.busy_ratio.with_label_values(&[job]);
    }

    /// The same for a lookup; `asked`: its database is asked for keys.
    pub fn begin_lookup(&self, job: &str, step: &str, asked: bool) {
        if asked {
            self.lookup_queries.with_label_values(&[job, step]);
            return;
        }
        self.lookup_rows.with_label_values(&[job, step]);
        self.lookup_bytes.with_label_values(&[job, step]);
        self.lookup_refreshed.with_label_values(&[job, step]);
        self.lookup_failures.with_label_values(&[job, step]);
    }

    /// The same for a step.
    pub fn begin_step(&self, job: &str, step: &str) {
        self.step(job, step, 0, 0);
    }

    /// Rows that a step got and gave. Names of steps are those of the job's file, and no more.
    pub fn step(&self, job: &str, step: &str, rows_in: u64, rows_out: u64) {
        self.step_rows_in.with_label_values(&[job, step]).inc_by(rows_in);
        self.step_rows_out.with_label_values(&[job, step]).inc_by(rows_out);
    }

    /// A reload is over.
    pub fn reloaded(&self, is_successful: bool) {
        self.reload_successful.set(is_successful.into());
        if !is_successful {
            self.reload_failures.inc();
        }
    }

    /// The exposition text.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8(out).unwrap_or_default(),
            Err(error) => format!("# cannot encode: {error}\n"),
        }
    }

    /// Drops all series of a job that does not run here any more: their last values would raise alerts for ever.
    pub fn forget(&self, job: &str) {
        fn drop_of<B: MetricVecBuilder>(vec: &MetricVec<B>, job: &str)
        where
            MetricVec<B>: Collector,
        {
            for family in vec.collect() {
                for metric in family.get_metric() {
                    let labels: HashMap<&str, &str> =
                        metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
                    if labels.get("job") == Some(&job) {
                        // It is there: it was just listed.
                        let _ = vec.remove(&labels);
                    }
                }
            }
        }
        for counters in [
            &self.records_received,
            &self.bytes_received,
            &self.records_rejected,
            &self.records_written,
            &self.batches,
            &self.sink_retries,
            &self.lookup_failures,
            &self.lookup_queries,
            &self.step_rows_in,
            &self.step_rows_out,
        ] {
            drop_of(counters, job);
        }
        for histograms in [&self.batch_duration, &self.batch_phase, &self.checkpoint_duration] {
            drop_of(histograms, job);
        }
        for gauges in [
            &self.source_lag_records,
            &self.spool_bytes,
            &self.job_up,
            &self.lanes,
            &self.lookup_rows,
            &self.lookup_bytes,
        ] {
            drop_of(gauges, job);
        }
        for gauges in
            [&self.source_lag_seconds, &self.last_batch, &self.clock_behind, &self.busy_ratio, &self.lookup_refreshed]
        {
            drop_of(gauges, job);
        }
    }

    /// What waits in a source, as far as it is known: a series that says 0 for "nobody knows" would hide what an alert is for.
    pub fn lag(&self, labels: [&str; 2], records: Option<i64>, seconds: Option<f64>) {
        // Where there is none, nothing is removed.
        match records {
            Some(records) => self.source_lag_records.with_label_values(&labels).set(records),
            None => drop(self.source_lag_records.remove_label_values(&labels)),
        }
        match seconds {
            Some(seconds) => self.source_lag_seconds.with_label_values(&labels).set(seconds),
            None => drop(self.source_lag_seconds.remove_label_values(&labels)),
        }
    }

    /// How many lanes of a job are in each state, in the order of [`LANE_STATES`].
    pub fn lanes(&self, job: &str, counts: [usize; 4]) {
        for (state, count) in LANE_STATES.into_iter().zip(counts) {
            self.lanes.with_label_values(&[job, state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Records how long a phase of a batch took.
    pub fn phase(&self, job: &str, phase: &str, took: Duration) {
        self.batch_phase.with_label_values(&[job, phase]).observe(took.as_secs_f64());
    }
}
