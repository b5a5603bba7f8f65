#!/bin/sh
# Boots Debian 12's own kernel in an emulator and runs there what depends on the kernel:
# the verifier's opinion of every program, the packet tests, and IPIP to and from the
# kernel's own device. The guest has the test binaries, some tools, and nothing else.
#
#   RUN=pattern      other tests, as of go test -run; all if it is empty
#   KERNEL=package   another kernel's package, linux-image-cloud-amd64's by default
#   ACCEL=kvm        not to emulate, where the machine can
#   MINUTES=n        how long the guest may take
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
out=bin/kernel
mkdir -p "$out"

# The kernel, of which apt knows the present version.
package=${KERNEL:-$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')}
if [ -z "$package" ]; then
	echo "test-kernel: apt knows no linux-image-cloud-amd64" >&2
	exit 1
fi
if [ ! -e "$out/$package/boot" ]; then
	(cd "$out" && apt-get download -q "$package" && dpkg -x "$package"_*.deb "$package" && rm "$package"_*.deb)
fi
release=$(ls "$out/$package/lib/modules")
depmod -b "$out/$package" "$release"

tests="loader dataplane"
for name in $tests; do
	dir=pkg/$name
	[ -d "$dir" ] || dir=pkg/control/$name
	CGO_ENABLED=0 $GO test -c -tags ipip -o "$out/$name.test" "./$dir"
done

# The guest's root. Programs bring the libraries that they are linked with.
root=$out/root
rm -rf "$root"
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/etc" "$root/var/run" "$root/lib/modules"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
for tool in ip tc bridge nstat ethtool tcpdump nft; do
	at=$(PATH=$PATH:/usr/sbin:/sbin command -v "$tool")
	rm -f "$root/bin/$tool"
	cp -L "$at" "$root/bin/$tool"
	for library in $(ldd "$at" | grep -o '/[^ ]*'); do
		mkdir -p "$root$(dirname "$library")"
		cp -L "$library" "$root$library"
	done
done
echo 'root:x:0:0::/:/bin/sh' >"$root/etc/passwd"
cp -r "$out/$package/lib/modules/$release" "$root/lib/modules/"
for name in $tests; do
	cp "$out/$name.test" "$root/"
done
cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
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
		"/$name.test" -test.timeout "${MINUTES}m" ${RUN:+-test.run "$RUN"} ${SKIP:+-test.skip "$SKIP"} -test.v 2>&1
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
run="$run|TestFlows|TestAnswers|TestClosedFlows|TestFragments|ReachEachOther|TestDetachLeaves"
cat >"$root/arguments" <<ARGUMENTS
TESTS='$tests'
RUN='${RUN-$run}'
SKIP='${SKIP:-}'
MINUTES=$minutes
ARGUMENTS
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initramfs"

echo "test-kernel: $release"
log=$out/log
timeout --foreground "$((minutes * 2 + 2))m" qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=multi}" -cpu max -smp 2 -m 4096 -nographic -no-reboot \
	-net none -kernel "$out/$package/boot/vmlinuz-$release" -initrd "$out/initramfs" \
	-append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check" </dev/null | tee "$log"
grep -q '^== all passed' "$log"
