# shellcheck shell=bash disable=SC2034,SC2154
# Apache Kafka: one node that is broker and controller. Listeners: plain, SASL (PLAIN and SCRAM), TLS. Read by up.sh.
#
# A client asks one address for the cluster, and then uses those that the answer names. So that a test can put a proxy between
# them, one more listener (KAFKA_PROXY_TO) names an address where nobody listens but that proxy (KAFKA_PROXY_AT).
#
# A test that needs other settings writes them to DIR/kafka.settings before the start: they are the last, so they count. With
# CLUSTER and CONTROLLER in DIR/kafka.joins it is a second broker (node 2) of the cluster whose .env has these.

port_count=6
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
jars=$root/target/tools/kafka
classpath="$jars/*"
# Quick to start is more than quick in the long run.
jvm=(-XX:TieredStopAtLevel=1 -XX:+UseSerialGC)

needs() {
    local version
    version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p') || true
    [ "${version:-0}" -ge 17 ] || { echo "Java 17 or later. Install it: apt-get install default-jre-headless"; return 1; }
    compgen -G "$jars/*.jar" >/dev/null || { echo "Kafka's jars, which Maven fetches: tests/tools.sh --services kafka"; return 1; }
    [ -e "$dir/tls/server.pem" ] || { echo "openssl. Install it: apt-get install openssl"; return 1; }
}

configure() {
    # One file of key and chain is how Kafka reads PEM.
    cat "$dir/tls/server.key" "$dir/tls/server.pem" >"$home/keys.pem"
    cat >"$home/server.properties" <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:${port[3]}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listeners=PLAIN://127.0.0.1:${port[0]},SASL://127.0.0.1:${port[1]},TLS://127.0.0.1:${port[2]},PROXY://127.0.0.1:${port[4]},CONTROLLER://127.0.0.1:${port[3]}
advertised.listeners=PLAIN://127.0.0.1:${port[0]},SASL://127.0.0.1:${port[1]},TLS://127.0.0.1:${port[2]},PROXY://127.0.0.1:${port[5]}
listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,PROXY:PLAINTEXT,CONTROLLER:PLAINTEXT
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_tidemill="s3cret";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.tls.ssl.keystore.type=PEM
listener.name.tls.ssl.keystore.location=$home/keys.pem
log.dirs=$home/data

auto.create.topics.enable=false
delete.topic.enable=true
default.replication.factor=1
min.insync.replicas=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# What a test waits for happens soon.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
transaction.max.timeout.ms=900000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=500
log.initial.task.delay.ms=500
file.delete.delay.ms=1000
# After a kill the broker may register again only when its old session is over: half of the time of a restart.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=200

# The default is a quarter of the heap.
log.cleaner.dedupe.buffer.size=16777216
END
    if [ -e "$dir/kafka.joins" ]; then
        local cluster controller
        read -r cluster controller <"$dir/kafka.joins"
        cat >>"$home/server.properties" <<END
process.roles=broker
node.id=2
controller.quorum.voters=1@$controller
listeners=PLAIN://127.0.0.1:${port[0]},SASL://127.0.0.1:${port[1]},TLS://127.0.0.1:${port[2]},PROXY://127.0.0.1:${port[4]}
END
    fi
    [ ! -e "$dir/kafka.settings" ] || cat "$dir/kafka.settings" >>"$home/server.properties"
}

prepare() {
    # Users of SCRAM are in the cluster's own log: the first node brings them.
    local cluster scram='[name=tidemill,password=s3cret]'
    local users=(--add-scram "SCRAM-SHA-256=$scram" --add-scram "SCRAM-SHA-512=$scram")
    cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | tr -d =)
    [ ! -e "$dir/kafka.joins" ] || { read -r cluster _ <"$dir/kafka.joins"; users=(); }
    "$java" "${jvm[@]}" -cp "$classpath" kafka.tools.StorageTool format -t "$cluster" -c "$home/server.properties" "${users[@]}" >"$home/log" 2>&1
}

start() {
    launch "$java" "${jvm[@]}" -Xms256m -Xmx512m -Dorg.slf4j.simpleLogger.showDateTime=true \
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS" -cp "$classpath" kafka.Kafka "$home/server.properties"
}

# Said after the broker is known to the controller and may lead partitions.
ready() { grep -q 'Kafka Server started' "$home/log"; }

address() { echo "127.0.0.1:${port[0]}"; }

environment() {
    cat <<END
KAFKA_BROKERS=127.0.0.1:${port[0]}
KAFKA_SASL_BROKERS=127.0.0.1:${port[1]}
KAFKA_SASL_USER=tidemill
KAFKA_SASL_PASSWORD=s3cret
KAFKA_TLS_BROKERS=127.0.0.1:${port[2]}
KAFKA_PROXY_AT=127.0.0.1:${port[5]}
KAFKA_PROXY_TO=127.0.0.1:${port[4]}
KAFKA_CA='$dir/tls/ca.pem'
KAFKA_CLASSPATH='$classpath'
KAFKA_JAVA='$java'
KAFKA_CLUSTER=$(sed -n 's/^cluster.id=//p' "$home/data/meta.properties")
KAFKA_CONTROLLER=127.0.0.1:${port[3]}
KAFKA_PID=$pid
END
}
