#!/bin/sh
# Makes a Debian machine one that builds the project, from apt alone, and builds it. Runs
# as root; a second run does little.
#
# bookworm's Go is too old to know that go.mod names a newer one; that of the backports
# fetches it through the module proxy, as it does the other modules.
set -eu
export DEBIAN_FRONTEND=noninteractive

. /etc/os-release
backports=
if [ "$VERSION_CODENAME" = bookworm ]; then
	backports="-t bookworm-backports"
	echo "deb http://deb.debian.org/debian bookworm-backports main" >/etc/apt/sources.list.d/backports.list
fi
apt-get update -q
apt-get install -y -q --no-install-recommends ca-certificates git make gcc libc6-dev iproute2 util-linux iperf3 iputils-ping
# shellcheck disable=SC2086 # two words or none
apt-get install -y -q --no-install-recommends $backports golang-go
cd /calico-xdp
export HOME=/root GOTOOLCHAIN=auto GOFLAGS=-buildvcs=false
make setup-perf build
go build -o bin/perf ./perf
