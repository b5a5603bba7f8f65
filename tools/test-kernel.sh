#!/bin/sh
# Boots Debian 12's own kernel in an emulator and runs there what depends on the kernel:
# the verifier's opinion of every program, the packet tests, and IPIP to and from the
# kernel's own device. The guest has the test binaries, some tools, and nothing else.
#
#   RUN=pattern      other tests, as of go test -run; all if it is empty
#   COUNT=n          each so often
#   MINUTES=n        how long each package's tests may take
#
# and what guest.sh knows.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
out=bin/kernel
. tools/guest.sh
guest_kernel

tests="loader dataplane"
for name in $tests; do
	dir=pkg/$name
	[ -d "$dir" ] || dir=pkg/control/$name
	CGO_ENABLED=0 $GO test -c -tags ipip -o "$out/$name.test" "./$dir"
done

guest_root ip tc bridge nstat ethtool tcpdump nft
for name in $tests; do
	cp "$out/$name.test" "$root/"
done
cat >"$root/init" <<'INIT'
#!/bin/sh
. /mounts
for module in veth bridge br_netfilter vxlan ipip tun ifb sch_ingress cls_bpf act_bpf sch_fq_codel; do
	modprobe $module || echo "no module $module"
done
ip link set lo up
. /arguments
uname -r
failed=
for name in $TESTS; do
	echo "== $name"
	cd /tmp
	{
		"/$name.test" -test.timeout "${MINUTES}m" ${RUN:+-test.run "$RUN"} ${SKIP:+-test.skip "$SKIP"} -test.count "$COUNT" -test.v 2>&1
		echo $? >/tmp/code
	} | tee /tmp/$name.log | grep -a -e '^ *--- '
	if [ "$(cat /tmp/code)" != 0 ]; then
		failed="$failed $name"
		cat /tmp/$name.log
	fi
done
[ -z "$failed" ] && echo "== all passed" || echo "== failed:$failed"
poweroff -f
INIT
chmod +x "$root/init"
minutes=${MINUTES:-20}
# Without RUN: what depends on the kernel, and does not take an emulator too long.
run='Verifier|TestSweepRuns|WithLinux|LocalPackets|PacketsTo|PacketsFrom|PacketsThat|WorkloadPackets|ICMPErrors'
run="$run|TestFlows|TestAnswers|TestClosedFlows|TestFragments|ReachEachOther|TestDetach|ClsactRespects|TestPathMTU|Tcpdump"
cat >"$root/arguments" <<ARGUMENTS
TESTS='$tests'
RUN='${RUN-$run}'
SKIP='${SKIP:-}'
COUNT=${COUNT:-1}
MINUTES=$minutes
ARGUMENTS
guest_archive "$out/initramfs"

echo "test-kernel: $release"
limit=$((minutes * 2 + 2))
guest_run "$out/initramfs" -smp 2 -m 4096 -net none | tee "$out/log"
grep -q '^== all passed' "$out/log"
