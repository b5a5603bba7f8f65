package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/spf13/cobra"
)

// newMigrate makes the commands that carry a datastore's contents into another one.
func newMigrate(a *app) *cobra.Command {
	lock := func(name, short, done string, ready bool) *cobra.Command {
		return &cobra.Command{
			Use: name, Short: short, Long: short + ".", Example: "  calicoctl datastore migrate " + name, Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				s, err := a.open(cmd.Context())
				if err != nil {
					return err
				}
				defer s.Close()
				if err := s.setReady(cmd.Context(), ready); err != nil {
					return err
				}
				return a.say("%s", done)
			},
		}
	}
	return group("migrate", "Carry the cluster into another datastore",
		`Carry resources, the cluster's identity and IPAM's assignments into another
datastore: lock this one, export it, import that into the other, unlock the other.
The export is Calico's: its own calicoctl imports it into Kubernetes' datastore.
Workload endpoints and profiles are not in it; 'calicoctl datastore backup', where
there is etcd on both sides, takes everything.`,
		`  calicoctl datastore migrate lock
  calicoctl datastore migrate export > calico.yaml
  ETCD_ENDPOINTS=http://new:2379 calicoctl datastore migrate import -f calico.yaml
  ETCD_ENDPOINTS=http://new:2379 calicoctl datastore migrate unlock`,
		lock("lock", "Let nodes take no more changes from this datastore", "Datastore locked.", false),
		lock("unlock", "Let nodes follow this datastore again", "Datastore unlocked.", true),
		newExport(a), newImport(a))
}

func clusterInfoKey() api.Key { return api.Key{Kind: api.KindClusterInformation, Name: "default"} }

func (s store) setReady(ctx context.Context, ready bool) error {
	if err := s.Initialize(ctx); err != nil {
		return err
	}
	_, err := s.change(ctx, clusterInfoKey(), func(r api.Resource) error {
		r.(*api.ClusterInformation).Spec.DatastoreReady = &ready
		return nil
	})
	return err
}

func (s store) clusterInfo(ctx context.Context) (*api.ClusterInformation, error) {
	r, err := s.Get(ctx, clusterInfoKey())
	if err != nil {
		return nil, explain(clusterInfoKey(), err)
	}
	return r.(*api.ClusterInformation), nil
}

// exportedKinds are in the order in which Calico exports and imports them.
func exportedKinds() []string {
	return []string{
		api.KindIPPool, api.KindBGPPeer, api.KindTier, api.KindGlobalNetworkPolicy, api.KindStagedGlobalNetworkPolicy,
		api.KindGlobalNetworkSet, api.KindHostEndpoint, api.KindKubeControllersConfiguration, api.KindNetworkPolicy,
		api.KindStagedNetworkPolicy, api.KindStagedKubernetesNetworkPolicy, api.KindNetworkSet, api.KindNode,
		api.KindBGPConfiguration, api.KindFelixConfiguration, api.KindIPReservation, api.KindBGPFilter,
	}
}

// between stands between the parts of an export: resources, cluster, IPAM.
const between = "===\n"

// ipamDump is IPAM's part of an export.
type ipamDump struct {
	Affinities []ipamObject `json:"block_affinities,omitempty"`
	Blocks     []ipamObject `json:"blocks,omitempty"`
	Handles    []ipamObject `json:"handles,omitempty"`
	Config     *ipamObject  `json:"config,omitempty"`
}

type ipamObject struct {
	Key   string // etcd's
	Value json.RawMessage
	TTL   int
}

func newExport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Write all that can be imported into another datastore",
		Long: `Write resources, the cluster's identity and IPAM's assignments for 'import'. The
datastore has to be locked. Nodes have the names that Kubernetes has for them,
where their resources say so.`,
		Example: "  calicoctl datastore migrate export > calico.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			return a.export(cmd.Context(), s)
		},
	}
}

func (a *app) export(ctx context.Context, s store) error {
	info, err := s.clusterInfo(ctx)
	if err != nil {
		return err
	}
	if !api.Locked(info) {
		return errors.New("datastore is not locked. Run the `calicoctl datastore migrate lock` command in order to begin migration")
	}
	names, err := s.kubernetesNames(ctx)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, name := range exportedKinds() {
		kind, _ := api.FindKind(name)
		found, err := s.List(ctx, name, "")
		if err != nil {
			return err
		}
		var rs []api.Resource
		for _, r := range found {
			if name == api.KindNetworkPolicy && strings.HasPrefix(r.GetName(), "knp.default.") {
				continue // Kubernetes' own, which the other side has from there
			}
			rename(r, names)
			rs = append(rs, r)
		}
		groups := exported([]output.Group{{Kind: kind, Resources: rs, Listed: true}})
		if err := output.YAML(&out, groups); err != nil {
			return err
		}
		out.WriteString("---\n")
	}
	out.WriteString(between)
	if err := output.WriteJSON(&out, info); err != nil {
		return err
	}
	out.WriteString(between)
	dump, err := s.dumpIPAM(ctx, names)
	if err != nil {
		return err
	}
	if err := output.WriteJSON(&out, dump); err != nil {
		return err
	}
	_, err = a.Out.Write(out.Bytes())
	return err
}

// kubernetesNames returns what Kubernetes calls nodes that we call otherwise.
func (s store) kubernetesNames(ctx context.Context) (map[string]string, error) {
	nodes, err := s.List(ctx, api.KindNode, "")
	out := make(map[string]string)
	for _, r := range nodes {
		for _, ref := range r.(*api.Node).Spec.OrchRefs {
			if ref.Orchestrator == v3.OrchestratorKubernetes && ref.NodeName != "" && ref.NodeName != r.GetName() {
				out[r.GetName()] = ref.NodeName
			}
		}
	}
	return out, err
}

// rename gives nodes, and what belongs to one, the name that the node will have.
func rename(r api.Resource, names map[string]string) {
	switch r := r.(type) {
	case *api.HostEndpoint:
		if to := names[r.Spec.Node]; to != "" {
			r.Spec.Node = to
		}
	case *api.BGPPeer:
		if to := names[r.Spec.Node]; to != "" {
			r.Spec.Node = to
		}
	case *api.Node:
		if to := names[r.GetName()]; to != "" {
			r.SetName(to)
		}
	case *api.FelixConfiguration, *api.BGPConfiguration:
		if node, ok := strings.CutPrefix(r.GetName(), "node."); ok && names[node] != "" {
			r.SetName("node." + names[node])
		}
	}
}

// tunnelHandles are how the handles of nodes' own addresses begin.
func tunnelHandles() []string {
	return []string{"ipip-tunnel-addr-", "vxlan-tunnel-addr-", "vxlan-v6-tunnel-addr-", "wireguard-tunnel-addr-"}
}

func renamedHandle(handle string, names map[string]string) string {
	for _, prefix := range tunnelHandles() {
		if node, ok := strings.CutPrefix(handle, prefix); ok && names[node] != "" {
			return prefix + names[node]
		}
	}
	return handle
}

func (s store) dumpIPAM(ctx context.Context, names map[string]string) (dump ipamDump, err error) {
	add := func(list *[]ipamObject, r api.Resource) error {
		path, err := s.Path(api.KeyOf(r))
		if err != nil {
			return err
		}
		value, err := api.Encode(r)
		*list = append(*list, ipamObject{Key: path, Value: value})
		return err
	}
	blocks, err := s.List(ctx, api.KindIPAMBlock, "")
	if err != nil {
		return dump, err
	}
	for _, r := range blocks {
		b := r.(*api.IPAMBlock)
		for i := range b.Attributes {
			at := &b.Attributes[i]
			if to := names[at.Secondary["node"]]; to != "" {
				at.Secondary["node"] = to
			}
			if at.HandleID != nil {
				at.HandleID = new(renamedHandle(*at.HandleID, names))
			}
		}
		if b.Affinity != nil {
			if node, ok := strings.CutPrefix(*b.Affinity, "host:"); ok && names[node] != "" {
				b.Affinity = new("host:" + names[node])
			}
		}
		if err := add(&dump.Blocks, b); err != nil {
			return dump, err
		}
	}
	affinities, err := s.List(ctx, api.KindBlockAffinity, "")
	if err != nil {
		return dump, err
	}
	for _, r := range affinities {
		if node, block, err := r.(*api.BlockAffinity).Claim(); err == nil && names[node] != "" {
			r.SetName(api.AffinityName(names[node], block))
		}
		if err := add(&dump.Affinities, r); err != nil {
			return dump, err
		}
	}
	handles, err := s.List(ctx, api.KindIPAMHandle, "")
	if err != nil {
		return dump, err
	}
	for _, r := range handles {
		r.SetName(renamedHandle(r.GetName(), names))
		if err := add(&dump.Handles, r); err != nil {
			return dump, err
		}
	}
	config, err := s.Get(ctx, api.Key{Kind: api.KindIPAMConfig, Name: "default"})
	if notFound(err) {
		return dump, nil
	}
	if err != nil {
		return dump, err
	}
	var one []ipamObject
	err = add(&one, config)
	dump.Config = &one[0]
	return dump, err
}

func newImport(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "import -f FILE",
		Short: "Read an export into an empty datastore",
		Long: `Read what 'export' wrote into a datastore that has no resources yet. It is locked
until 'unlock'.`,
		Example: "  calicoctl datastore migrate import -f calico.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usageError{errors.New("name a file, or - for standard input, with -f"), cmd.CommandPath()}
			}
			var data []byte
			var err error
			if file == "-" {
				data, err = io.ReadAll(a.In)
			} else {
				data, err = os.ReadFile(file)
			}
			if err != nil {
				return err
			}
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			return a.importAll(cmd.Context(), s, file, data)
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "file that export wrote, - for standard input")
	return cmd
}

func (a *app) importAll(ctx context.Context, s store, file string, data []byte) error {
	// Everything is read and checked before anything is written.
	parts := bytes.Split(data, []byte("\n"+between))
	if len(parts) != 3 {
		return fmt.Errorf("%s is no export: expected three parts with lines of === between them, found %d", file, len(parts))
	}
	objects, err := manifest.Read([]string{"-"}, false, bytes.NewReader(parts[0]))
	if err != nil {
		return err
	}
	items, err := prepare(objects, scope{})
	if err != nil {
		return err
	}
	var info api.ClusterInformation
	if err := json.Unmarshal(parts[1], &info); err != nil {
		return fmt.Errorf("%s: the cluster's part: %w", file, err)
	}
	var dump ipamDump
	if err := json.Unmarshal(parts[2], &dump); err != nil {
		return fmt.Errorf("%s: IPAM's part: %w", file, err)
	}
	assignments, err := s.ipamResources(dump)
	if err != nil {
		return fmt.Errorf("%s: IPAM's part: %w", file, err)
	}
	if err := s.checkEmpty(ctx); err != nil {
		return err
	}
	if err := s.setReady(ctx, false); err != nil {
		return err
	}
	r := report{app: a, verb: "apply", participle: "applied", objects: objects}
	for _, it := range items {
		_, err := apply(ctx, s, it)
		if err != nil {
			r.errs = append(r.errs, explain(it.key, err))
			continue
		}
		r.done++
	}
	if err := r.end(); err != nil {
		return err
	}
	now, err := s.clusterInfo(ctx)
	if err != nil {
		return err
	}
	now.Spec.ClusterGUID, now.Spec.CalicoVersion, now.Spec.ClusterType = info.Spec.ClusterGUID, info.Spec.CalicoVersion, info.Spec.ClusterType
	if _, err := s.Update(ctx, now); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, "Importing IPAM resources")
	for _, r := range assignments {
		if _, err := s.Create(ctx, r); err != nil {
			return explain(api.KeyOf(r), err)
		}
	}
	return a.say("Successfully applied %d IPAM resource(s)\nDatastore information successfully imported. Unlock it when the nodes use it: calicoctl datastore migrate unlock", len(assignments))
}

// ipamResources reads IPAM's part of an export.
func (s store) ipamResources(dump ipamDump) (out []api.Resource, err error) {
	objects := append(append(append([]ipamObject{}, dump.Affinities...), dump.Blocks...), dump.Handles...)
	if dump.Config != nil {
		objects = append(objects, *dump.Config)
	}
	for _, o := range objects {
		key, ok := s.KeyAt(o.Key)
		if kind, _ := api.FindKind(key.Kind); !ok || kind == nil || !kind.Internal {
			return nil, fmt.Errorf("%q is no key of IPAM", o.Key)
		}
		r, err := api.DecodeStored(key.Kind, o.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		r.SetName(key.Name)
		if err := api.Validate(r); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// checkEmpty makes sure that nothing is there but what every datastore has.
func (s store) checkEmpty(ctx context.Context) error {
	for _, kind := range append(exportedKinds(), api.KindIPAMBlock, api.KindBlockAffinity, api.KindIPAMHandle) {
		found, err := s.List(ctx, kind, "")
		if err != nil {
			return err
		}
		for _, r := range found {
			usual := kind == api.KindTier && (r.GetName() == api.DefaultTier || strings.HasPrefix(r.GetName(), "kube-"))
			if !usual {
				return fmt.Errorf("the datastore is not empty, it has %s for one: import needs one without resources", api.KeyOf(r))
			}
		}
	}
	return nil
}
