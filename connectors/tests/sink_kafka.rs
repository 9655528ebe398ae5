//! The Kafka sink against a real broker: what the suites of all sinks do not know of.

#![allow(clippy::unwrap_used, missing_docs)]

mod sinks;

use std::{sync::Arc, time::Instant};

use sinks::*;
use tidemill_checkpoint::Lane;
use tidemill_connectors::sink::Sink;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
#[ignore = "prints numbers"]
fn how_long_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let began = Instant::now();
        let sink: Arc<dyn Sink> = make(Kind::Kafka, dir.path());
        println!("make {:?}", began.elapsed());
        for round in 0..3 {
            let began = Instant::now();
            sink.peek(&[Lane::single()]).await.unwrap();
            println!("peek {:?}", began.elapsed());
            let began = Instant::now();
            let mut runner = Runner::claim(sink.clone(), &Lane::single(), 1).await.unwrap();
            println!("claim+prepare {:?}", began.elapsed());
            for _ in 0..4 {
                let began = Instant::now();
                runner.step().await.unwrap();
                println!("step {:?}", began.elapsed());
            }
            let began = Instant::now();
            sink.peek(&[Lane::single()]).await.unwrap();
            println!("peek {:?}", began.elapsed());
            let began = Instant::now();
            if round == 1 {
                sink.release(&runner.key).await.unwrap();
                println!("release {:?}", began.elapsed());
            }
        }
        let began = Instant::now();
        drop(sink);
        println!("drop {:?}", began.elapsed());
    });
}
