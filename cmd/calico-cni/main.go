// Command calico-cni is the CNI plugin and the CNI IPAM plugin: it acts as
// "calico-ipam" if that is the name it was called by, else as "calico".
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

func main() {
	name, funcs := "calico", networkFuncs()
	if filepath.Base(os.Args[0]) == "calico-ipam" {
		name, funcs = "calico-ipam", ipamFuncs()
	}
	about := fmt.Sprintf("CNI plugin %s %s", name, buildVersion())
	if len(os.Args) > 1 && (os.Args[1] == "-v" || os.Args[1] == "--version") {
		fmt.Println(about)
		return
	}
	versions := cniversion.PluginSupports("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
	skel.PluginMainFuncs(funcs, versions, about)
}

// version is set by the build: -ldflags "-X main.version=v1.2.3".
var version string

// buildVersion returns what the binary was built from.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return info.Main.Version
}
