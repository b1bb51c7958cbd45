#!/usr/bin/env bash
# A hub, two workers that dial out to it, and a laptop that reaches them through it.
#
#   examples/mesh/run.sh [PORT]
#
# `alknet` has to be on the path. The three nodes are processes of this machine, each with a home in a temporary
# directory; the laptop is a home only, because nothing needs to run there. Only the hub is ever dialled, on PORT (7022):
# a worker may sit behind NAT. At the end, and on Ctrl-C, everything is stopped and removed.
set -euo pipefail
exec 2>&1 # so that errors stand where they happen

port=${1:-7022}
examples=$(cd "$(dirname "$0")" && pwd)
directory=$(mktemp -d)
cd "$directory"
declare -A pid=()

stop_all() {
    kill "${pid[@]}" 2>/dev/null || true
    wait
    rm -rf "$directory"
}
trap stop_all EXIT
trap 'exit 130' INT TERM

say() { printf '\n# %s\n' "$*"; }

# Show a command, then run it.
try() {
    printf '$'
    for word; do
        case $word in
            *[!A-Za-z0-9_./:@=-]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

start() {
    WORKER=$1 PYTHONPATH=$examples alknet --home "$1" serve >>"$1.log" 2>&1 &
    pid[$1]=$!
}

wait_until() {
    for _ in {1..100}; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.5
    done
    echo "in vain: $*"
    tail -n 5 ./*.log
    exit 1
}

say "Four homes: each has keys of its own."
try alknet --home hub init --no-user-keys --listen "127.0.0.1:$port"
for name in w1 w2 laptop; do try alknet --home "$name" init --no-user-keys --listen 127.0.0.1:0; done
me=$(id -un)

say "The hub knows the workers by their node keys. They may bring job/*, which is work/job/* here."
for name in w1 w2; do
    try alknet --home hub peer add "$name" --key "$name/keys/node.pub" --offers 'job/*' --expose work
done

say "A worker knows the hub, dials it, and lets it call job/*."
for name in w1 w2; do
    sed -i 's/^modules = .*/modules = ["job"]/' "$name/alknet.toml"
    try alknet --home "$name" peer add hub --node-key hub/keys/node.pub --address "127.0.0.1:$port" --dial --scope 'job:*'
done

say "The laptop may reach w1 through the hub, and call work/job/*. To log in on w1 it needs an entry there, too."
try alknet --home hub peer add laptop --key laptop/keys/owner.pub --scope peer:w1 --scope 'work:*' --scope 'job:*'
try alknet --home w1 peer add laptop --key laptop/keys/owner.pub --scope ssh:exec --user "$me" --as-daemon
try alknet --home laptop peer add hub --node-key hub/keys/node.pub --address "127.0.0.1:$port"
try alknet --home laptop peer add w1 --via hub --host-key w1/keys/ssh_host_ed25519_key.pub

start hub
wait_until alknet --home hub status
for name in w1 w2; do start "$name"; done
for name in w1 w2; do wait_until alknet --home hub call "$name" job/who; done

say "One worker and no other, by its name, which the laptop's entry says the way to. Without one -J is the way."
try alknet --home laptop call w1 job/who
try alknet --home laptop call -J hub w2 job/who || echo "exit code $?"

say "Any of them: an operation of the hub, for which the workers take turns."
for _ in 1 2 3; do try alknet --home laptop call hub work/job/who; done

say "ssh to w1 through the hub, which carries what it cannot read: host key and login are w1's."
try alknet --home laptop ssh laptop@w1 'echo "on w1 I am $ALKNET_PEER"'

say "w1 is killed in the middle of a call: the caller hears of it at once, and the hub sends the next calls elsewhere."
alknet --home laptop call --stream w1 job/steps >steps 2>&1 &
steps=$!
wait_until test -s steps
kill -9 "${pid[w1]}"
wait "${pid[w1]}" 2>/dev/null || true
wait "$steps" || echo "exit code $?" >>steps
cat steps
for _ in 1 2; do try alknet --home laptop call hub work/job/who; done

say "It comes back by itself."
start w1
wait_until alknet --home hub call w1 job/who
try alknet --home laptop call w1 job/who

if [ -t 0 ]; then
    say "All of it goes on in $directory until you press Enter. Try: cd $directory; alknet --home hub status"
    read -r _
fi
