package desired

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// EnvironmentObject is the object that problems with FELIX_* variables name, and
// FileObject the one that problems with Felix's configuration file name.
var (
	EnvironmentObject = api.Key{Kind: api.KindFelixConfiguration, Name: "environment"}
	FileObject        = api.Key{Kind: api.KindFelixConfiguration, Name: "file"}
)

// settings are the FelixConfiguration parameters that this node uses.
type settings struct {
	toHost            ToHostAction
	rpf               RPF
	xdp               bool // XDP programs may be attached
	anySource         bool // workloads may ask to send from any address
	workloadIPIP      bool // workloads may encapsulate
	workloadVXLAN     bool
	dataInterfaces    *regexp.Regexp
	interfacePrefixes []string
	vxlanPort         uint16
	vxlanVNI          uint32
	tables            TableSizes
	ipipMTU           int // 0: from the uplinks
	vxlanMTU          int
	vxlanMTUv6        int
	mtuInterfaces     *regexp.Regexp // whose MTU counts; nil: the uplinks
	ipForwarding      bool
	ipv6              bool
	servers           Servers
	logLevel          slog.Level
	nat               natSettings
	excluded          []*regexp.Regexp // interfaces that no host endpoint is on
	// What the host sends from to its own workloads; invalid: the kernel's choice.
	routeSource, routeSourceV6 netip.Addr
	// What no policy closes; nil: not configured.
	failsafeIn, failsafeOut []FailsafePort
}

// Tunnel devices are not in the pattern: packets are encapsulated on the
// uplinks themselves.
const defaultDataInterfaces = `^((en|wl|ww|sl|ib)[Popsvx].*|(eth|wlan|wwan|bond).*)$`

func defaultSettings() settings {
	return settings{
		dataInterfaces:    regexp.MustCompile(defaultDataInterfaces),
		interfacePrefixes: []string{"cali"},
		vxlanPort:         4789,
		vxlanVNI:          4096,
		ipForwarding:      true,
		rpf:               RPFLoose,
		xdp:               true,
		ipv6:              true,
		nat:               natSettings{iptablesMask: defaultMarkMask, nftMask: defaultMarkMask},
		servers: Servers{
			Metrics: Server{Enabled: true, Port: 9091},
			Health:  Server{Enabled: true, Host: "localhost", Port: 9099},
			Debug:   Server{Host: "localhost"},
		},
		excluded: []*regexp.Regexp{regexp.MustCompile("^kube-ipvs0$")},
	}
}

// parameter is one name of FelixConfiguration, and how its value is taken.
type parameter struct {
	name string
	set  func(value string) error // changes nothing when it fails
}

func (s *settings) parameters() []parameter {
	return append(s.nat.parameters(), []parameter{
		{"defaultEndpointToHostAction", func(v string) error {
			action, ok := map[string]ToHostAction{"drop": ToHostDrop, "return": ToHostReturn, "accept": ToHostAccept}[strings.ToLower(v)]
			if !ok {
				return errors.New("want Drop, Return or Accept")
			}
			s.toHost = action
			return nil
		}},
		{"bpfEnforceRPF", func(v string) error {
			mode, ok := map[string]RPF{"disabled": RPFDisabled, "loose": RPFLoose, "strict": RPFStrict}[strings.ToLower(v)]
			if !ok {
				return errors.New("want Disabled, Loose or Strict")
			}
			s.rpf = mode
			return nil
		}},
		{"xdpEnabled", boolean(&s.xdp)},
		{"workloadSourceSpoofing", func(v string) error {
			allowed, ok := map[string]bool{"any": true, "disabled": false}[strings.ToLower(v)]
			if !ok {
				return errors.New("want Any or Disabled")
			}
			s.anySource = allowed
			return nil
		}},
		{"allowIPIPPacketsFromWorkloads", boolean(&s.workloadIPIP)},
		{"allowVXLANPacketsFromWorkloads", boolean(&s.workloadVXLAN)},
		{"bpfDataIfacePattern", func(v string) error {
			re, err := regexp.Compile(v)
			if err == nil {
				s.dataInterfaces = re
			}
			return err
		}},
		{"interfacePrefix", func(v string) error {
			prefixes := strings.Split(v, ",")
			if slices.Contains(prefixes, "") {
				return errors.New("want prefixes of interface names, separated by commas")
			}
			s.interfacePrefixes = prefixes
			return nil
		}},
		{"interfaceExclude", func(v string) error {
			excluded, err := parseInterfaceExclude(v)
			if err == nil {
				s.excluded = excluded
			}
			return err
		}},
		{"failsafeInboundHostPorts", failsafe(&s.failsafeIn)},
		{"failsafeOutboundHostPorts", failsafe(&s.failsafeOut)},
		{"vxlanPort", integer(&s.vxlanPort, 1, math.MaxUint16)},
		{"vxlanVNI", integer(&s.vxlanVNI, 1, 1<<24-1)},
		{"bpfMapSizeConntrack", entries(&s.tables.Flows)},
		{"bpfMapSizePerCpuConntrack", entries(&s.tables.FlowsPerCPU)},
		{"bpfMapSizeConntrackScaling", func(v string) error {
			switch strings.ToLower(v) {
			case "doubleiffull":
				s.tables.FlowsFixed = false
			case "disabled":
				s.tables.FlowsFixed = true
			default:
				return errors.New("want DoubleIfFull or Disabled")
			}
			return nil
		}},
		{"bpfMapSizeRoute", entries(&s.tables.Routes)},
		{"bpfMapSizeIPSets", entries(&s.tables.Classes)},
		// Below 1280 there is no IPv6; 576 is what every IPv4 host must take.
		{"ipipMTU", mtu(&s.ipipMTU, 576)},
		{"vxlanMTU", mtu(&s.vxlanMTU, 576)},
		{"vxlanMTUV6", mtu(&s.vxlanMTUv6, 1280)},
		{"mtuIfacePattern", func(v string) error {
			re, err := regexp.Compile(v)
			if err == nil {
				s.mtuInterfaces = re
			}
			return err
		}},
		{"ipForwarding", func(v string) error {
			switch strings.ToLower(v) {
			case "enabled":
				s.ipForwarding = true
			case "disabled":
				s.ipForwarding = false
			default:
				return errors.New("want Enabled or Disabled")
			}
			return nil
		}},
		{"ipv6Support", boolean(&s.ipv6)},
		{"deviceRouteSourceAddress", address(&s.routeSource, "IPv4", netip.Addr.Is4)},
		{"deviceRouteSourceAddressIPv6", address(&s.routeSourceV6, "IPv6", netip.Addr.Is6)},
		{"logSeverityScreen", func(v string) error {
			level, ok := map[string]slog.Level{
				"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn,
				"error": slog.LevelError, "fatal": slog.LevelError, "none": slog.LevelError,
			}[strings.ToLower(v)]
			if !ok {
				return errors.New("want Debug, Info, Warning, Error or Fatal")
			}
			s.logLevel = level
			return nil
		}},
		// Whoever asks for these must not believe that they have them.
		{"wireguardEnabled", absent("false", "this node does not encrypt what it sends to others")},
		{"wireguardEnabledV6", absent("false", "this node does not encrypt what it sends to others")},
		{"floatingIPs", absent("disabled", "this node does not translate floating addresses")},
		{"externalNodesList", absent("[]", "this node opens tunnels for the cluster's nodes only")},
		{"iptablesFilterDenyAction", absent("drop", "this node drops what policy denies, without an answer")},
		{"nftablesFilterDenyAction", absent("drop", "this node drops what policy denies, without an answer")},
		{"iptablesFilterAllowAction", absent("accept", "what this node forwards itself does not pass the host's own rules")},
		{"nftablesFilterAllowAction", absent("accept", "what this node forwards itself does not pass the host's own rules")},
		{"awsSrcDstCheck", absent("donothing", "this node does not tell AWS what to check")},
		{"routeSyncDisabled", absent("false", "this node makes the routes to its workloads itself")},
		{"prometheusMetricsEnabled", boolean(&s.servers.Metrics.Enabled)},
		{"prometheusMetricsHost", text(&s.servers.Metrics.Host)},
		{"prometheusMetricsPort", integer(&s.servers.Metrics.Port, 1, math.MaxUint16)},
		{"healthEnabled", boolean(&s.servers.Health.Enabled)},
		{"healthHost", text(&s.servers.Health.Host)},
		{"healthPort", integer(&s.servers.Health.Port, 1, math.MaxUint16)},
		{"debugHost", text(&s.servers.Debug.Host)},
		{"debugPort", func(v string) error {
			if strings.EqualFold(v, none) {
				v = "0"
			}
			err := integer(&s.servers.Debug.Port, 0, math.MaxUint16)(v)
			if err == nil {
				s.servers.Debug.Enabled = s.servers.Debug.Port != 0
			}
			return err
		}},
	}...)
}

// environmentNames are the parameters that FELIX_* variables, Felix's file and annotations
// call otherwise.
var environmentNames = map[string]string{"ipipmtu": "ipinipmtu", "externalnodeslist": "externalnodescidrlist"}

// layer is one place that parameters come from.
type layer struct {
	object api.Key
	values map[string]string // by lower-cased parameter name
}

// annotationPrefix begins annotations that are parameters by Felix's own names; they are
// looked at before the spec.
const annotationPrefix = "config.projectcalico.org/"

// newLayer takes values by the names that Felix has for them.
func newLayer(object api.Key, values map[string]string) layer {
	l := layer{object, maps.Clone(values)}
	for name, alias := range environmentNames {
		if v, ok := l.values[alias]; ok {
			l.values[name] = v
		}
	}
	return l
}

// resolveSettings takes each parameter from the first of environment, file, node's
// and default FelixConfiguration that has a usable value, else the built-in
// one.
func resolveSettings(in Input) (settings, []policy.Problem) {
	layers := []layer{newLayer(EnvironmentObject, in.Config.Felix), newLayer(FileObject, in.Config.FelixFile)}
	for _, name := range []string{"node." + in.Node, "default"} {
		key := api.Key{Kind: api.KindFelixConfiguration, Name: name}
		if fc, ok := in.Resources.Get(key).(*api.FelixConfiguration); ok {
			annotated := make(map[string]string)
			for name, value := range fc.Annotations {
				if name, ok := strings.CutPrefix(name, annotationPrefix); ok {
					annotated[strings.ToLower(name)] = value
				}
			}
			layers = append(layers, newLayer(key, annotated), layer{key, specValues(&fc.Spec)})
		}
	}
	s := defaultSettings()
	var problems []policy.Problem
	for _, p := range append(s.parameters(), parameter{"felixHostname", nameOf(in.Node)}) {
		for _, l := range layers {
			v, ok := l.values[strings.ToLower(p.name)]
			if !ok || v == "" {
				continue
			}
			err := p.set(v)
			if err == nil {
				break
			}
			problems = append(problems, policy.Problem{Object: l.object, Err: fmt.Errorf("%s %q: %w", p.name, v, err)})
		}
	}
	return s, problems
}

// specValues returns what the spec sets, by lower-cased JSON name, as text: lists
// and objects in JSON.
func specValues(spec *api.FelixConfigurationSpec) map[string]string {
	values := make(map[string]string)
	data, err := json.Marshal(spec)
	if err != nil {
		return values // not for a spec that was decoded from JSON
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber() // 4096, not 4.096e+03
	var fields map[string]any
	if err := d.Decode(&fields); err != nil {
		return values
	}
	for name, v := range fields {
		text := fmt.Sprint(v)
		switch v.(type) {
		case []any, map[string]any:
			if data, err := json.Marshal(v); err == nil {
				text = string(data)
			}
		}
		values[strings.ToLower(name)] = text
	}
	return values
}
