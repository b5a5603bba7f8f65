#!/bin/sh
# The crossing of run.sh where there is no virtualization: two guests with Debian's kernel in
# an emulator, a wire between them, and `perf across` on it. They are reached by ssh through
# the emulator's own network. Its figures are an emulator's: what they show is that nodes on
# two kernels reach each other in every way.
#
#   REPETITIONS=n SECONDS_EACH=n   as of perf across; 3 and 2
#   MINUTES=n                      how long the guests may live, 30
set -eu
cd "$(dirname "$0")/../.."
GO=${GO:-go}
out=bin/perf-qemu
mkdir -p "$out"
. tools/guest.sh
guest_kernel
CGO_ENABLED=0 $GO build -trimpath -buildvcs=false -ldflags '-s -w' -o "$out/" ./cmd/calico-node ./cmd/calicoctl ./cmd/calico-cni ./perf

# A shell of its own: busybox's takes its own ip.
guest_root sh ip iperf3 ping dropbear
mkdir -p "$root/calico-xdp/bin" "$root/calico-xdp/perf/vagrant" "$root/.ssh" "$root/etc/dropbear"
cp "$out/calico-node" "$out/calicoctl" "$out/calico-cni" "$root/calico-xdp/bin/"
cp perf/vagrant/node.sh "$root/calico-xdp/perf/vagrant/"
[ -e "$out/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$out/key"
cp "$out/key.pub" "$root/.ssh/authorized_keys"
chmod 700 "$root" "$root/.ssh"
chmod 600 "$root/.ssh/authorized_keys"
cat >"$root/init" <<'INIT'
#!/bin/sh
. /mounts
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
for module in virtio_pci virtio_net veth vxlan sch_ingress cls_bpf act_bpf; do
	modprobe $module || echo "no module $module"
done
hostname "$(sed 's/.*guest=\([^ ]*\).*/\1/' /proc/cmdline)"
n=$(hostname | grep -o '[0-9]')
ip link set lo up
ip link set eth0 up
ip address add 192.168.61.1$n/24 dev eth0
ip link set eth1 up
ip address add 10.0.2.15/24 dev eth1
dropbear -R -s -E
echo "== ready"
while :; do sleep 1000; done
INIT
chmod +x "$root/init"
guest_archive "$out/initramfs"

limit=${MINUTES:-30}
wire=$(mktemp -d)
guests=
end() {
	for pid in $guests; do kill "$pid" 2>/dev/null || true; done
	rm -rf "$wire"
}
trap end EXIT
trap 'exit 1' INT TERM
for n in 1 2; do
	guest="guest=node$n" guest_run "$out/initramfs" -smp 1 -m 2048 \
		-netdev "dgram,id=wire,local.type=unix,local.path=$wire/$n,remote.type=unix,remote.path=$wire/$((3 - n))" \
		-device "virtio-net-pci,netdev=wire,mac=52:54:00:61:00:1$n" \
		-netdev "user,id=reach,hostfwd=tcp:127.0.0.1:$((22610 + n))-:22" -device virtio-net-pci,netdev=reach >"$out/node$n.log" 2>&1 &
	guests="$guests $!"
done
reach="ssh -q -i $out/key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 root@127.0.0.1 -p"
for n in 1 2; do
	for _ in $(seq 60); do
		if $reach $((22610 + n)) uname -r; then continue 2; fi
		sleep 2
	done
	cat "$out/node$n.log" >&2
	exit 1
done
"$out/perf" across --on1 "$reach 22611" --on2 "$reach 22612" --repetitions "${REPETITIONS:-3}" --seconds "${SECONDS_EACH:-2}" \
	192.168.61.11 192.168.61.12 >"$out/across.txt"
cat "$out/across.txt"
