package command_test

import (
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args string
		want string
	}{
		{"gett", "unknown command \"gett\" for \"calicoctl\"\n\nDid you mean this?\n\tget\nRun 'calicoctl --help' for usage.\n"},
		{"node stauts", "unknown command \"stauts\" for \"calicoctl node\"\nRun 'calicoctl node --help' for usage.\n"},
		{"get", "name a resource type, or a file with -f\nRun 'calicoctl get --help' for usage.\n"},
		{"get --none", "unknown flag: --none\nRun 'calicoctl get --help' for usage.\n"},
		{"apply", "name a file, a directory or - with -f\nRun 'calicoctl apply --help' for usage.\n"},
		{"apply ippool -f x", "unexpected argument \"ippool\"\nRun 'calicoctl apply --help' for usage.\n"},
		{"delete ippool", "name the ippools to delete\n"},
		{"get node -A", "Node is not namespaced\n"},
		{"get node -n prod", "Node is not namespaced\n"},
		{"get node -o xml", "unrecognized output format 'xml': expected ps, table, wide, yaml, json, name, custom-columns=..., go-template=... or go-template-file=...\n"},
		{"get node --log-level loud", "--log-level: \"loud\" is none of debug, info, warn, error, fatal, panic\n"},
		{"get ippool,node a", "several resource types cannot be combined with names; use KIND/NAME\n"},
		{"get ippool/a/b", "IPPool is not namespaced\n"},
		{"get ippool//b", "\"ippool//b\" is neither KIND/NAME nor KIND/NAMESPACE/NAME\n"},
	} {
		if got := (client{}).fails(t, strings.Fields(test.args)...); got != test.want {
			t.Errorf("%s: got %q, expected %q", test.args, got, test.want)
		}
	}
	// Calico's own IPAM objects are not for users.
	for _, kind := range []string{"pod", "ipamblock", "blockaffinity"} {
		if got := (client{}).fails(t, "get", kind); !strings.Contains(got, "resource type '"+kind+"' is not supported; known are bgpconfiguration, ") {
			t.Errorf("get %s: %s", kind, got)
		}
	}
}

func TestHelp(t *testing.T) {
	root := client{}.ok(t)
	for _, want := range []string{"Resources:", "State:", "apply", "calico-node", "ETCD_ENDPOINTS"} {
		if !strings.Contains(root, want) {
			t.Errorf("%q is missing in\n%s", want, root)
		}
	}
	for _, cmd := range []string{"get", "apply", "create", "replace", "delete", "patch", "label", "edit", "diff", "validate", "confirm", "wait", "why", "observe", "rules", "flows", "node", "node status", "node tables", "node run", "node stop", "node checksystem", "node diags", "cluster", "cluster diags", "datastore", "datastore migrate", "datastore migrate export", "convert", "pool", "profile", "endpoint", "bgp", "bgppeer", "bgp-node-mesh", "default-node-as", "shownodes", "container", "status", "diags", "checksystem", "ipam", "ipam show", "ipam check", "ipam release", "ipam configure", "ipam split", "ipam gc", "datastore backup", "version"} {
		help := client{}.ok(t, append(strings.Fields(cmd), "--help")...)
		if !strings.Contains(help, "Examples:\n") || !strings.Contains(help, "Usage:\n  calicoctl "+cmd) {
			t.Errorf("%s: %s", cmd, help)
		}
	}
	if got := (client{}).ok(t, "completion", "bash"); !strings.Contains(got, "__start_calicoctl") {
		t.Error("no completion for bash")
	}
	if got := (client{}).run(t, "__complete", "get", "ippo").stdout; got != "ippool\n:4\n" {
		t.Errorf("completion of kinds: %q", got)
	}
}

func TestClientVersion(t *testing.T) {
	want := "Client Version:    v1.2.3\nGit commit:        0123456789\n"
	if got := (client{}).ok(t, "version", "--client"); got != want {
		t.Errorf("got %q", got)
	}
}
