//! What each error code of Kafka and of librdkafka means to somebody who writes: the one table.
//!
//! The rule behind it: what Kafka's protocol calls retriable passes, and so does what a new producer and a look at the marks
//! settle (an id that was taken, a sequence that has a gap). A refusal that concerns one record is that record's. What is
//! left stops the lane, since the same request would be refused for ever: only a code that nobody knows yet is tried again,
//! and is then seen as a sink that keeps failing.

use rdkafka::error::RDKafkaErrorCode::{self as Code, *};

/// What follows from an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A record, or the batch of records that it was sent in, is refused: the row becomes a dead letter.
    Row,
    /// The record was refused, or thrown away, for the sake of another one: that one's code counts.
    Aside,
    /// A right is missing. It may be given at any time.
    Denied,
    /// The login is refused. A broker may refuse a right one while it starts, or while a password is changed.
    Login,
    /// The topic is not there, or not shown. It may be made again at any time.
    Absent,
    /// It passes by itself, or a new producer settles it.
    Passes,
    /// The same request is refused for ever.
    Stops,
}

use Meaning::{Absent, Aside, Denied, Login, Passes, Row, Stops};

/// What a code means.
pub(crate) fn meaning(code: Code) -> Meaning {
    TABLE.iter().find(|(_, codes)| codes.contains(&code)).map_or(Passes, |(meaning, _)| *meaning)
}

/// Every code that there is.
const TABLE: [(Meaning, &[Code]); 7] = [
    (
        Row,
        &[
            // A null key in a compacted topic, a time that the topic does not take, whatever else a broker looks for.
            InvalidRecord,
            InvalidTimestamp,
            // The batch that it was sent in is longer than `max.message.bytes`, or than a segment of the topic.
            MessageSizeTooLarge,
            MessageBatchTooLarge,
        ],
    ),
    (Aside, &[InvalidDifferentRecord, PurgeQueue, PurgeInflight, Fatal]),
    (
        Denied,
        &[
            TopicAuthorizationFailed,
            GroupAuthorizationFailed,
            TransactionalIdAuthorizationFailed,
            ClusterAuthorizationFailed,
            DelegationTokenAuthorizationFailed,
        ],
    ),
    (
        Login,
        &[
            SaslAuthenticationFailed,
            Authentication,
            UnsupportedSASLMechanism,
            IllegalSASLState,
            DelegationTokenAuthDisabled,
            DelegationTokenNotFound,
            DelegationTokenOwnerMismatch,
            DelegationTokenRequestNotAllowed,
            DelegationTokenExpired,
            InvalidPrincipalType,
            UnacceptableCredential,
        ],
    ),
    (Absent, &[UnknownTopicOrPartition, UnknownTopic, UnknownPartition, UnknownTopicId]),
    (
        Passes,
        &[
            // Connections, and clients that end.
            BrokerDestroy,
            DestroyBroker,
            BrokerTransportFailure,
            AllBrokersDown,
            UnknownBroker,
            Resolve,
            SSL,
            NetworkException,
            RebootstrapRequired,
            Fail,
            CriticalSystemResource,
            FileSystem,
            // Time.
            MessageTimedOut,
            OperationTimedOut,
            TimedOutQueue,
            RequestTimedOut,
            QueueFull,
            Retry,
            WaitCache,
            WaitingForCoordinator,
            InProgress,
            PreviousInProgress,
            Interrupted,
            Outdated,
            Partial,
            Noop,
            NodeUpdate,
            ThrottlingQuotaExceeded,
            // Damage under way: the same bytes are sent again.
            BadMessage,
            BadCompression,
            InvalidMessage,
            Underflow,
            // Leaders, controllers and replicas that change.
            LeaderNotAvailable,
            NotLeaderForPartition,
            BrokerNotAvailable,
            ReplicaNotAvailable,
            StaleControllerEpoch,
            StaleBrokerEpoch,
            NotController,
            NotEnoughReplicas,
            NotEnoughReplicasAfterAppend,
            ISRInsufficient,
            KafkaStorageError,
            LogDirNotFound,
            ListenerNotFound,
            FencedLeaderEpoch,
            UnknownLeaderEpoch,
            OffsetNotAvailable,
            PreferredLeaderNotAvailable,
            EligibleLeadersNotAvailable,
            ElectionNotNeeded,
            ReassignmentInProgress,
            NoReassignmentInProgress,
            InconsistentVoterSet,
            InvalidUpdateVersion,
            FeatureUpdateFailed,
            // Fewer brokers are up than the brokers' own replication asks for.
            InvalidReplicationFactor,
            // Coordinators and transactions: a new producer, and the marks.
            CoordinatorLoadInProgress,
            CoordinatorNotAvailable,
            NotCoordinator,
            OutOfOrderSequenceNumber,
            DuplicateSequenceNumber,
            InvalidProducerEpoch,
            InvalidProducerIdMapping,
            InvalidTransactionalState,
            ConcurrentTransactions,
            TransactionCoordinatorFenced,
            UnknownProducerId,
            ProducerFenced,
            Fenced,
            Inconsistent,
            GaplessGuarantee,
            Conflict,
            State,
            OperationNotAttempted,
            TopicAlreadyExists,
            // What readers and members of groups hear.
            PartitionEOF,
            NoOffset,
            AutoOffsetReset,
            LogTruncation,
            OffsetOutOfRange,
            FetchSessionIdNotFound,
            InvalidFetchSessionEpoch,
            UnstableOffsetCommit,
            AssignPartitions,
            RevokePartitions,
            AssignmentLost,
            PollExceeded,
            UnknownGroup,
            ExistingSubscription,
            IllegalGeneration,
            UnknownMemberId,
            RebalanceInProgress,
            MemberIdRequired,
            NonEmptyGroup,
            GroupIdNotFound,
            GroupSubscribedToTopic,
            GroupMaxSizeReached,
            FencedInstanceId,
            FencedMemberEpoch,
            StaleMemberEpoch,
            UnreleasedInstanceId,
            UnknownSubscriptionId,
            TelemetryTooLarge,
            ResourceNotFound,
            DuplicateResource,
            PrincipalDeserializationFailure,
            // The broker's own fault, of which it says nothing.
            Unknown,
            NoError,
        ],
    ),
    (
        Stops,
        &[
            // The job or the topic has to be changed.
            InvalidTopic,
            InvalidRequiredAcks,
            InvalidTransactionTimeout,
            UnsupportedCompressionType,
            UnsupportedForMessageFormat,
            PolicyViolation,
            InvalidConfig,
            InvalidPartitions,
            InvalidReplicaAssignment,
            TopicDeletionDisabled,
            SecurityDisabled,
            InvalidMessageSize,
            OffsetMetadataTooLarge,
            InvalidCommitOffsetSize,
            InconsistentGroupProtocol,
            InvalidGroupId,
            InvalidSessionTimeout,
            UnsupportedAssignor,
            // The brokers, or this client, cannot do what is asked.
            UnsupportedVersion,
            UnsupportedFeature,
            InvalidRequest,
            InvalidArgument,
            NotImplemented,
            NotConfigured,
            UnknownProtocol,
            KeySerialization,
            ValueSerialization,
            KeyDeserialization,
            ValueDeserialization,
            ReadOnly,
            NoEnt,
            InvalidType,
            Application,
        ],
    ),
];

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    /// Codes that a new librdkafka brings have to be thought of before it is taken.
    #[test]
    fn each_code_that_there_is_stands_in_the_table_once() {
        let known = (-300..1000).filter_map(|number| RDKafkaRespErr::try_from(number).ok()).map(Code::from);
        let known: Vec<Code> = known.filter(|code| !matches!(code, Begin | End | EndAll)).collect();
        assert!(known.len() > 150, "{}", known.len());
        for code in &known {
            let times = TABLE.iter().flat_map(|(_, codes)| *codes).filter(|one| *one == code).count();
            assert_eq!(times, 1, "{code:?}");
        }
        assert_eq!(TABLE.iter().map(|(_, codes)| codes.len()).sum::<usize>(), known.len());
    }

    #[test]
    fn what_concerns_one_record_is_its_row_s_and_what_passes_is_tried_again() {
        for (code, expected) in [
            (InvalidRecord, Row),
            (MessageSizeTooLarge, Row),
            (MessageBatchTooLarge, Row),
            (InvalidTimestamp, Row),
            (InvalidDifferentRecord, Aside),
            (UnsupportedCompressionType, Stops),
            (PolicyViolation, Stops),
            (InvalidTopic, Stops),
            (UnknownTopicOrPartition, Absent),
            (NotEnoughReplicas, Passes),
            (ThrottlingQuotaExceeded, Passes),
            (ProducerFenced, Passes),
            (SaslAuthenticationFailed, Login),
            (TopicAuthorizationFailed, Denied),
        ] {
            assert_eq!(meaning(code), expected, "{code:?}");
        }
    }
}
