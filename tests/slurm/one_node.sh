#!/usr/bin/env bash
# A real SLURM of one node on this machine, to try the launchers: run as root on Debian.
#
#   tests/slurm/one_node.sh start    install what is missing, start the daemons, wait for an idle node
#   tests/slurm/one_node.sh stop     cancel all jobs, end the daemons, delete the folder
#
# Afterwards:  export SLURM_CONF=/tmp/one-node-slurm/slurm.conf
#
#   ONE_NODE_DIR=FOLDER   where configuration, key, logs and state go (default /tmp/one-node-slurm)
#   ONE_NODE_CPUS=N       CPUs that the node claims to have (default 2; may exceed the real ones)
#   ONE_NODE_GPUS=N       accelerators that the node claims to have (default 0): they exist on paper only,
#                         enough to see how many ranks a launcher starts
#   ONE_NODE_TIMEOUT=S    seconds to wait for the node (default 60)
set -euo pipefail

dir=${ONE_NODE_DIR:-/tmp/one-node-slurm}
cpus=${ONE_NODE_CPUS:-2}
gpus=${ONE_NODE_GPUS:-0}
timeout=${ONE_NODE_TIMEOUT:-60}
export SLURM_CONF=$dir/slurm.conf

die() { echo "one_node.sh: $*" >&2; exit 1; }

alive() { # NAME
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
    # The program is compared too: the number may belong to another process by now.
    [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == */$1* ]]
}

failed() { # NAME REASON
    echo "one_node.sh: $1 $2; the end of $dir/$1.log:" >&2
    tail -n 20 "$dir/$1.log" >&2 || true
    exit 1
}

install_missing() {
    command -v munged slurmctld slurmd sbatch >/dev/null && return
    command -v apt-get >/dev/null || die "munge and slurm are missing, and there is no apt-get to install them"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends munge slurm-wlm
}

configure() {
    local host
    host=$(hostname -s)
    install -d -m 755 "$dir" "$dir/state" "$dir/spool"
    # munged of its own (key, socket): one that the machine already runs stays as it is.
    [[ -s $dir/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")

    # The node is called localhost because that name resolves everywhere, also as MASTER_ADDR.
    # Ports differ from SLURM's own, for machines that already belong to a cluster.
    cat >"$SLURM_CONF" <<CONF
ClusterName=onenode
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
# A requeued job waits until its old credential has expired: by default two minutes.
AuthInfo=socket=$dir/munged.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
# Neither cgroups nor accounting: they need systemd and a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Take the numbers below for true, whatever the hardware says.
SlurmdParameters=config_overrides
CONF
    if ((gpus > 0)); then
        echo "GresTypes=gpu" >>"$SLURM_CONF"
        # SLURM wants a device file for each: copies of /dev/null.
        local i
        for ((i = 0; i < gpus; i++)); do [[ -e $dir/gpu$i ]] || mknod -m 666 "$dir/gpu$i" c 1 3; done
        echo "Name=gpu File=$dir/gpu[0-$((gpus - 1))]" >"$dir/gres.conf"
    else
        : >"$dir/gres.conf"
    fi
    local gres=""
    ((gpus == 0)) || gres="Gres=gpu:$gpus"
    cat >>"$SLURM_CONF" <<CONF
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$cpus $gres State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES OverSubscribe=YES MaxTime=INFINITE State=UP
CONF
    # Without this file slurmd looks for a cgroup controller at its start.
    echo "IgnoreSystemd=yes" >"$dir/cgroup.conf"
}

launch() { # NAME COMMAND...
    local name=$1
    shift
    alive "$name" && return
    rm -f "$dir/$name.pid"
    # Daemons close neither standard stream in time: leave them none that a caller may be waiting on.
    "$@" >>"$dir/$name.log" 2>&1 </dev/null || failed "$name" "did not start"
    for _ in $(seq 50); do
        alive "$name" && return
        sleep 0.2
    done
    failed "$name" "ended right after its start"
}

start() {
    [[ $(id -u) == 0 ]] || die "start needs root"
    [[ ! -e $dir || -O $dir ]] || die "$dir belongs to somebody else; set ONE_NODE_DIR"
    install_missing
    # A running daemon keeps the configuration that it was started with.
    [[ -s $SLURM_CONF ]] && alive slurmctld || configure
    launch munged munged --key-file "$dir/munge.key" --socket "$dir/munged.socket" --pid-file "$dir/munged.pid" \
        --log-file "$dir/munged.log" --seed-file "$dir/munged.seed"
    launch slurmctld slurmctld
    launch slurmd slurmd -N localhost
    local state="" deadline=$((SECONDS + timeout))
    while ((SECONDS < deadline)); do
        state=$(sinfo --noheader --format %T 2>/dev/null) || state=""
        case $state in
        idle | mixed | allocated)
            sinfo
            echo "export SLURM_CONF=$SLURM_CONF"
            return
            ;;
        esac
        for name in munged slurmctld slurmd; do alive "$name" || failed "$name" "ended"; done
        sleep 0.5
    done
    if [[ -z $state ]]; then failed slurmctld "did not answer within $timeout s"; fi
    failed slurmd "left the node in state '$state' for $timeout s"
}

stop() {
    if alive slurmctld && alive slurmd; then
        squeue --noheader --format %A 2>/dev/null | xargs --no-run-if-empty scancel || true
        for _ in $(seq 40); do
            [[ -n $(squeue --noheader 2>/dev/null) ]] || break
            sleep 0.5
        done
    fi
    local name
    for name in slurmd slurmctld munged; do
        alive "$name" || continue
        kill "$(cat "$dir/$name.pid")"
        for _ in $(seq 50); do
            alive "$name" || break
            sleep 0.2
        done
        ! alive "$name" || failed "$name" "does not end"
    done
    # Only a folder that start() made: ONE_NODE_DIR may point anywhere.
    [[ ! -e $dir/munge.key ]] || rm -rf "$dir"
}

case ${1:-} in
start) start ;;
stop) stop ;;
*) die "usage: $0 start|stop" ;;
esac
