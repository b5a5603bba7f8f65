#!/bin/sh
# Brings Vagrant's machines up, has the harness measure on each of them and across, and
# collects what it finds in bin/perf-vagrant. The machines stay; `vagrant destroy` ends them.
set -eu
cd "$(dirname "$0")/../.."
out=bin/perf-vagrant
mkdir -p "$out"
vagrant up
vagrant rsync
vagrant ssh-config >"$out/ssh-config"
nodes=$(vagrant status --machine-readable | awk -F, '$3 == "state" && $4 == "running" { print $2 }')

on() { # MACHINE COMMAND...
	machine=$1
	shift
	ssh -F "$out/ssh-config" "$machine" sudo "$@"
}

for n in $nodes; do
	on "$n" sh /calico-xdp/perf/vagrant/provision.sh
done
for n in $nodes; do
	on "$n" sh -c "'cd /calico-xdp && bin/perf --quick --out bin/perf-quick'" >"$out/$n.txt"
	for file in results.json report.md; do
		on "$n" cat "/calico-xdp/bin/perf-quick/$file" >"$out/$n-$file"
	done
done
set -- $nodes
go run ./perf across --on1 "ssh -F $out/ssh-config $1 sudo" --on2 "ssh -F $out/ssh-config $2 sudo" -o json \
	192.168.61.11 192.168.61.12 >"$out/across.json"
echo "results are in $out"
