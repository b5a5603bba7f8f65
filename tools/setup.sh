#!/bin/sh
# Installs from apt what building and testing need and this machine lacks.
# Nothing is missing: nothing happens, not even apt-get update. With the argument
# "perf", also what perf/ compares the product with; with "kernel", the emulator that
# boots another kernel; with "qemu", also what its guests are reached by.
set -eu

# need FILE-OR-COMMAND PACKAGE: notes the package if the first is not there.
missing=
need() {
	case $1 in
	/*) test -e "$1" && return ;;
	*) command -v "$1" >/dev/null && return ;;
	esac
	missing="$missing $2"
}

command -v go >/dev/null || test -x /usr/local/go/bin/go || {
	echo "setup: no Go found; install the version that go.mod names from https://go.dev/dl/" >&2
	exit 1
}
need gcc gcc
need /usr/include/stdio.h libc6-dev
need /usr/include/linux/bpf.h linux-libc-dev
need /usr/include/bpf/bpf_helpers.h libbpf-dev
need make make
need git git
need ip iproute2
need nsenter util-linux
need ping iputils-ping
need ethtool ethtool
need tcpdump tcpdump
need iperf3 iperf3
need bird bird2
need /usr/lib/frr/bgpd frr
need nft nftables
need iptables-nft iptables
need iptables-legacy iptables
# The committed objects are made by clang 14, Debian 12's; where there is none,
# any later one builds as well, only check-generate cannot compare objects then.
if ! command -v clang-14 >/dev/null; then
	need clang "clang-14|clang"
fi
if ! command -v llvm-strip-14 >/dev/null; then
	need llvm-strip "llvm-14|llvm"
fi
if [ "${1-}" = perf ]; then
	need ipset ipset
fi
if [ "${1-}" = kernel ] || [ "${1-}" = qemu ]; then
	need qemu-system-x86_64 qemu-system-x86
	need busybox busybox-static
	need cpio cpio
	need depmod kmod
fi
if [ "${1-}" = qemu ]; then
	need dropbear dropbear-bin
	need ssh openssh-client
fi
test -n "$missing" || exit 0

if ! command -v apt-get >/dev/null; then
	echo "setup: missing, and no apt-get to install it with:$missing" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: missing:$missing; run 'sudo make setup' once" >&2
	exit 1
fi
echo "setup: installing$missing"
apt-get update -q
packages=
for p in $missing; do
	first=${p%%|*}
	if [ "$first" != "$p" ] && [ -z "$(apt-cache madison "$first")" ]; then
		first=${p#*|}
	fi
	packages="$packages $first"
done
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
# Tests start BIRD where they want it; the service that came along is not wanted.
case $packages in
*bird2*) ! command -v systemctl >/dev/null || systemctl disable --now bird 2>/dev/null || true ;;
esac
