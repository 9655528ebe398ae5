# shellcheck shell=bash disable=SC2034,SC2154
# A schema registry: Apicurio, by the interface that it shares with Confluent's. Read by up.sh.

port_count=1
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
program=$root/target/tools/registry

needs() {
    local version
    version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p') || true
    [ "${version:-0}" -ge 17 ] || { echo "Java 17 or later. Install it: apt-get install default-jre-headless"; return 1; }
    compgen -G "$program/*-runner.jar" >/dev/null || { echo "Apicurio Registry, which Maven fetches: tests/tools.sh --services registry"; return 1; }
}

configure() { :; }
prepare() { :; }

start() {
    launch "$java" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx384m -Dquarkus.http.host=127.0.0.1 "-Dquarkus.http.port=${port[0]}" \
        "-Dquarkus.datasource.jdbc.url=jdbc:h2:file:$home/data/registry;WRITE_DELAY=0" -jar "$program"/*-runner.jar
}

ready() { grep -q 'Listening on: http' "$home/log"; }

address() { echo "127.0.0.1:${port[0]}"; }

environment() {
    cat <<END
REGISTRY_URL=http://127.0.0.1:${port[0]}/apis/ccompat/v7
REGISTRY_PORT=${port[0]}
REGISTRY_PID=$pid
END
}
