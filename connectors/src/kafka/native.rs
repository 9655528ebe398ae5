//! What rdkafka has no safe call for: topics with their ids and one's rights to them (`DescribeTopics`), by librdkafka's own
//! functions.
//!
//! A topic that is deleted and made again has the same name and another id. Without the id its offsets would be taken for
//! those of the old topic, and records would be passed over in silence: that is worth a page of unsafe code. rdkafka binds
//! the functions and wraps no one of them (0.39).

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    ptr,
    time::Duration,
};

use rdkafka::{
    Offset, TopicPartitionList, bindings as native, client::Client, error::RDKafkaErrorCode, types::RDKafkaRespErr,
};

use super::Operation;
use crate::codec::base64;

/// A topic as the cluster describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub name: String,
    /// As Kafka's own tools write it; `None`: a broker older than topic ids.
    pub id: Option<String>,
    /// How many partitions it has.
    pub partitions: usize,
    /// What this user may do with it. `None`: it was not asked for, or the broker is too old to tell.
    pub rights: Option<Vec<Operation>>,
}

/// What is asked of topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What they are.
    Topics,
    /// And what this user may do with them, which costs the broker a look at its rules for each.
    Rights,
}

/// A topic, or its name and why there is none.
pub(crate) type Answer = Result<Described, (String, RDKafkaErrorCode)>;

/// Frees what librdkafka allocated, when the scope ends.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from librdkafka's constructor that belongs to this destructor, is not null, and is
        // dropped once.
        unsafe { (self.1)(self.0) }
    }
}

/// Topics by their names, each described or with its error. Blocks for as long as `timeout`.
pub(crate) fn describe_topics<C: rdkafka::ClientContext>(
    client: &Client<C>,
    names: &[&str],
    ask: Ask,
    timeout: Duration,
) -> Result<Vec<Answer>, String> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<CString> = names.iter().filter_map(|name| CString::new(*name).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let rk = client.native_ptr();
    // SAFETY: `rk` lives as long as `client`. `pointers` point into `names`, which outlives the call that copies them. Every
    // object is freed by its own destructor (`Owned`) after its last use; results belong to `event` and are read before it
    // is freed.
    unsafe {
        let topics = native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let topics = Owned(topics, native::rd_kafka_TopicCollection_destroy);
        let options =
            native::rd_kafka_AdminOptions_new(rk, native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let options = Owned(options, native::rd_kafka_AdminOptions_destroy);
        native::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, ptr::null_mut(), 0);
        let asks = c_int::from(ask == Ask::Rights);
        let refused = native::rd_kafka_AdminOptions_set_include_authorized_operations(options.0, asks);
        if !refused.is_null() {
            let refused = Owned(refused, native::rd_kafka_error_destroy);
            return Err(text(native::rd_kafka_error_string(refused.0)));
        }
        let queue = Owned(native::rd_kafka_queue_new(rk), native::rd_kafka_queue_destroy);
        native::rd_kafka_DescribeTopics(rk, topics.0, options.0, queue.0);
        // The request has a timeout of its own: its answer comes a little later at most.
        let event = native::rd_kafka_queue_poll(queue.0, timeout_ms.saturating_add(1000));
        if event.is_null() {
            return Err("no answer".to_owned());
        }
        let event = Owned(event, native::rd_kafka_event_destroy);
        if native::rd_kafka_event_error(event.0) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(native::rd_kafka_event_error_string(event.0)));
        }
        let result = native::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err("an answer of another kind".to_owned());
        }
        let mut count = 0;
        let described = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok((0..count).map(|index| described_topic(*described.add(index))).collect())
    }
}

/// Where a client that has the partition assigned goes on: behind the last record that it gave, and behind what it passed
/// over without a word (markers of transactions). rdkafka asks for all partitions at once. `None`: it gave none yet.
pub(crate) fn position<C: rdkafka::ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Option<u64> {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    // SAFETY: both live for the whole call, which fills the list and keeps nothing of it.
    let error = unsafe { native::rd_kafka_position(client.native_ptr(), list.ptr()) };
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    match list.elements().first()?.offset() {
        Offset::Offset(offset) => u64::try_from(offset).ok(),
        _ => None,
    }
}

/// # Safety
/// `topic` belongs to an answer that is not freed yet.
unsafe fn described_topic(
    topic: *const native::rd_kafka_TopicDescription_t,
) -> Result<Described, (String, RDKafkaErrorCode)> {
    // SAFETY: as above; what the functions return belongs to the same answer.
    unsafe {
        let name = text(native::rd_kafka_TopicDescription_name(topic));
        let error = native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(topic));
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err((name, error.into()));
        }
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        let bits = (!id.is_null()).then(|| {
            [native::rd_kafka_Uuid_most_significant_bits(id), native::rd_kafka_Uuid_least_significant_bits(id)]
        });
        let mut count = 0;
        native::rd_kafka_TopicDescription_partitions(topic, &raw mut count);
        let mut allowed = 0;
        let operations = native::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut allowed);
        let operations = (0..allowed).filter_map(|index| Operation::of(*operations.add(index)));
        Ok(Described {
            name,
            id: bits.filter(|bits| *bits != [0, 0]).map(id_text),
            partitions: count,
            // Who may do nothing at all does not see the topic: no answer is none.
            rights: (allowed > 0).then(|| operations.collect()),
        })
    }
}

/// # Safety
/// `text` is null or a string that ends with a zero byte.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and librdkafka's strings end with a zero byte.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A topic's id as Kafka's own tools write it: base64 for URLs, without padding.
fn id_text(bits: [i64; 2]) -> String {
    let bytes: Vec<u8> = bits.iter().flat_map(|half| half.to_be_bytes()).collect();
    base64(&bytes).trim_end_matches('=').replace('+', "-").replace('/', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_kafka_writes_them() {
        assert_eq!(id_text([0, 1]), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(id_text([-1, -1]), "_____________________w");
    }
}
