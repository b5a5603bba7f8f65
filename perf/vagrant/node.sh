#!/bin/sh
# What the harness has a machine do, as root:
#
#   up NAME ADDRESS FIRST   start calico-node; the one whose address is FIRST has the etcd
#   apply                   resources on standard input, for all
#   workload NAME POOL      a workload with an address of the pool, which is printed
#   kernel N ADDRESS OTHER  what the kernel does by itself: a namespace on network N of this
#                           machine, with a way to that of OTHER, plain and through vxlan
#   serve NAME              an iperf3 server in a workload
#   inside NAME CMD...      a command in a workload
#   down                    end and remove all of it
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
state=${STATE:-/run/calico-xdp-perf}
verb=$1
shift

# Words, without blanks in them.
# shellcheck disable=SC2086
node="$root/bin/calico-node --run-dir $state/run --pin-dir /sys/fs/bpf/$(basename "$state") --log-dir $state/log --nodename-file $state/nodename"

# cni COMMAND NAME: the plugin on a workload's namespace; the network is on standard input.
cni() {
	env CNI_COMMAND="$1" CNI_CONTAINERID="$2" CNI_NETNS="/run/netns/$2" CNI_IFNAME=eth0 CNI_PATH="$state/cni" \
		"$state/cni/calico"
}

network() { # POOL
	cat <<JSON
{"cniVersion": "1.0.0", "name": "perf", "type": "calico", "etcd_endpoints": "$(cat "$state/etcd")",
 "nodename": "$(cat "$state/name")", "run_dir": "$state/run", "ipam": {"type": "calico-ipam", "ipv4_pools": ["$1"]}}
JSON
}

case $verb in
up)
	name=$1 address=$2 first=$3
	mkdir -p "$state/cni" "$state/run"
	ln -sf "$root/bin/calico-cni" "$state/cni/calico"
	ln -sf "$root/bin/calico-cni" "$state/cni/calico-ipam"
	echo "$name" >"$state/name"
	echo "http://$first:2379" >"$state/etcd"
	export NODENAME="$name" IP="$address" NO_DEFAULT_POOLS=true FELIX_DEFAULTENDPOINTTOHOSTACTION=Return
	if [ "$address" = "$first" ]; then
		set -- --datastore=embedded --data-dir "$state/data" --etcd-listen-client "http://127.0.0.1:2379,http://$first:2379"
	else
		export ETCD_ENDPOINTS="http://$first:2379"
		set --
	fi
	$node "$@" >"$state/output" 2>&1 </dev/null &
	echo $! >"$state/pid"
	for _ in $(seq 100); do
		if CALICO_RUN_DIR=$state/run ETCD_ENDPOINTS=http://$first:2379 "$root/bin/calicoctl" node status >/dev/null 2>&1; then exit 0; fi
		kill -0 "$(cat "$state/pid")" || { cat "$state/output" >&2; exit 1; }
		sleep 0.2
	done
	cat "$state/output" >&2
	exit 1
	;;
apply)
	ETCD_ENDPOINTS=$(cat "$state/etcd") "$root/bin/calicoctl" apply -f -
	;;
workload)
	ip netns add "$1"
	echo "$1" >>"$state/workloads"
	network "$2" | cni ADD "$1" >"$state/$1"
	grep -o '"address": *"[0-9.]*' "$state/$1" | grep -o '[0-9.]*$'
	;;
kernel)
	n=$1 address=$2 other=$3
	m=$((3 - n))
	echo 1 >/proc/sys/net/ipv4/ip_forward
	ip netns add perf-kernel
	ip link add perf-kernel type veth peer name eth0 netns perf-kernel
	ip address add "10.99.$n.1/24" dev perf-kernel
	ip address add "10.97.$n.1/24" dev perf-kernel
	ip link set perf-kernel up
	ip -n perf-kernel link set lo up
	ip -n perf-kernel address add "10.99.$n.2/24" dev eth0
	ip -n perf-kernel address add "10.97.$n.2/24" dev eth0
	ip -n perf-kernel link set eth0 mtu 1450 up
	ip -n perf-kernel route add "10.99.$m.0/24" via "10.99.$n.1" src "10.99.$n.2"
	ip -n perf-kernel route add "10.97.$m.0/24" via "10.97.$n.1" src "10.97.$n.2"
	ip route add "10.99.$m.0/24" via "$other"
	ip link add perf-vxlan type vxlan id 99 local "$address" remote "$other" dstport 8472
	ip address add "10.98.0.$n/24" dev perf-vxlan
	ip link set perf-vxlan up
	ip route add "10.97.$m.0/24" via "10.98.0.$m"
	;;
serve)
	# It ends with its namespace's last client, or with down.
	ip netns exec "$1" iperf3 -s >/dev/null 2>&1 </dev/null &
	echo $! >>"$state/servers"
	sleep 0.3
	;;
inside)
	name=$1
	shift
	exec ip netns exec "$name" "$@"
	;;
down)
	for file in servers pid; do
		test ! -e "$state/$file" || for pid in $(cat "$state/$file"); do kill "$pid" 2>/dev/null || true; done
	done
	test ! -e "$state/workloads" || for name in $(cat "$state/workloads"); do
		ip netns delete "$name" || true
	done
	ip netns delete perf-kernel 2>/dev/null || true
	ip link delete perf-kernel 2>/dev/null || true
	ip link delete perf-vxlan 2>/dev/null || true
	for _ in $(seq 50); do
		kill -0 "$(cat "$state/pid" 2>/dev/null || echo 0)" 2>/dev/null || break
		sleep 0.2
	done
	test ! -d "$state" || $node --detach >/dev/null
	rm -rf "$state"
	;;
*)
	echo "node.sh: no verb $verb" >&2
	exit 1
	;;
esac
